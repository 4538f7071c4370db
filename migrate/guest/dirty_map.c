#include "migrate/guest/dirty_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void dirty_bits_set(uint64_t bits[TRACKER_WORDS_PER_CHUNK], unsigned first, unsigned count)
{
    while (count > 0) {
        unsigned shift = first % 64;
        unsigned here = count < 64 - shift ? count : 64 - shift;
        bits[first / 64] |= (here == 64 ? UINT64_MAX : (1ull << here) - 1) << shift;
        first += here;
        count -= here;
    }
}

/* The index of the first entry whose chunk is at least `chunk`. */
static size_t lower_bound(const struct dirty_map *map, uint64_t chunk)
{
    size_t low = 0, high = map->count;

    if (map->count == 0 || map->chunks[map->count - 1].chunk < chunk)
        return map->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (map->chunks[middle].chunk < chunk)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int insert(struct dirty_map *map, size_t index, uint64_t chunk)
{
    if (map->count == map->capacity) {
        size_t capacity = map->capacity ? map->capacity * 2 : 64;
        struct dirty_chunk *grown = reallocarray(map->chunks, capacity, sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        map->chunks = grown;
        map->capacity = capacity;
    }
    memmove(map->chunks + index + 1, map->chunks + index,
            (map->count - index) * sizeof(*map->chunks));
    map->chunks[index] = (struct dirty_chunk){.chunk = chunk};
    map->count++;
    return 0;
}

/* The entry of `chunk`, made when there is none. NULL: no memory. */
static struct dirty_chunk *obtain(struct dirty_map *map, uint64_t chunk)
{
    struct dirty_chunk *last = map->count ? &map->chunks[map->count - 1] : NULL;

    if (last && last->chunk == chunk)
        return last;
    size_t index = lower_bound(map, chunk);
    if ((index == map->count || map->chunks[index].chunk != chunk) && insert(map, index, chunk) < 0)
        return NULL;
    return &map->chunks[index];
}

int dirty_map_add(struct dirty_map *map, uint64_t page, uint64_t count)
{
    while (count > 0) {
        unsigned first = page % GUEST_CHUNK_PAGES;
        uint64_t here = count < GUEST_CHUNK_PAGES - first ? count : GUEST_CHUNK_PAGES - first;
        struct dirty_chunk *entry = obtain(map, page / GUEST_CHUNK_PAGES);
        if (!entry)
            return -ENOMEM;
        dirty_bits_set(entry->bits, first, (unsigned)here);
        page += here;
        count -= here;
    }
    return 0;
}

int dirty_map_add_word(struct dirty_map *map, uint64_t word, uint64_t bits)
{
    struct dirty_chunk *entry = obtain(map, word / TRACKER_WORDS_PER_CHUNK);

    if (!entry)
        return -ENOMEM;
    entry->bits[word % TRACKER_WORDS_PER_CHUNK] |= bits;
    return 0;
}

static void add_bits(struct dirty_chunk *to, const struct dirty_chunk *from)
{
    for (size_t j = 0; j < TRACKER_WORDS_PER_CHUNK; j++)
        to->bits[j] |= from->bits[j];
}

static size_t count_missing(const struct dirty_map *map, const struct dirty_map *from)
{
    size_t missing = 0;

    for (size_t i = 0; i < from->count; i++) {
        size_t at = lower_bound(map, from->chunks[i].chunk);
        missing += at == map->count || map->chunks[at].chunk != from->chunks[i].chunk;
    }
    return missing;
}

static int reserve(struct dirty_map *map, size_t count)
{
    if (count <= map->capacity)
        return 0;
    struct dirty_chunk *grown = reallocarray(map->chunks, count, sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    map->chunks = grown;
    map->capacity = count;
    return 0;
}

/* From the top down, so that every entry moves once, to its final place. */
static void merge_downwards(struct dirty_map *map, size_t missing, const struct dirty_map *from)
{
    size_t old = map->count, place = old + missing;

    map->count = place;
    for (size_t i = from->count; i > 0; i--) {
        const struct dirty_chunk *entry = &from->chunks[i - 1];
        while (old > 0 && map->chunks[old - 1].chunk > entry->chunk)
            map->chunks[--place] = map->chunks[--old];
        if (old > 0 && map->chunks[old - 1].chunk == entry->chunk)
            map->chunks[--place] = map->chunks[--old];
        else
            map->chunks[--place] = (struct dirty_chunk){.chunk = entry->chunk};
        add_bits(&map->chunks[place], entry);
    }
}

int dirty_map_merge(struct dirty_map *map, const struct dirty_map *from)
{
    size_t missing = count_missing(map, from);

    if (missing == 0) {
        for (size_t i = 0; i < from->count; i++)
            add_bits(&map->chunks[lower_bound(map, from->chunks[i].chunk)], &from->chunks[i]);
        return 0;
    }
    if (reserve(map, map->count + missing) < 0)
        return -ENOMEM;
    merge_downwards(map, missing, from);
    return 0;
}

int dirty_map_add_difference(struct dirty_map *map, const struct dirty_map *a,
                             const struct dirty_map *b)
{
    static const struct dirty_chunk none = {0};

    for (size_t i = 0, k = 0; i < a->count; i++) {
        while (k < b->count && b->chunks[k].chunk < a->chunks[i].chunk)
            k++;
        bool both = k < b->count && b->chunks[k].chunk == a->chunks[i].chunk;
        const struct dirty_chunk *other = both ? &b->chunks[k] : &none;
        for (size_t j = 0; j < TRACKER_WORDS_PER_CHUNK; j++) {
            uint64_t bits = a->chunks[i].bits[j] & ~other->bits[j];
            uint64_t word = a->chunks[i].chunk * TRACKER_WORDS_PER_CHUNK + j;
            if (bits && dirty_map_add_word(map, word, bits) < 0)
                return -ENOMEM;
        }
    }
    return 0;
}

bool dirty_map_span(const struct dirty_map *map, uint64_t page, uint64_t *end)
{
    uint64_t chunk = page / GUEST_CHUNK_PAGES;
    size_t i = lower_bound(map, chunk);

    if (i == map->count || map->chunks[i].chunk != chunk) {
        *end = i == map->count ? UINT64_MAX : map->chunks[i].chunk * GUEST_CHUNK_PAGES;
        return false;
    }
    while (i < map->count && map->chunks[i].chunk == chunk) {
        i++;
        chunk++;
    }
    *end = chunk * GUEST_CHUNK_PAGES;
    return true;
}

/* The first bit at or after `first`, or GUEST_CHUNK_PAGES. */
static unsigned first_bit(const uint64_t bits[TRACKER_WORDS_PER_CHUNK], unsigned first)
{
    for (unsigned word = first / 64; word < TRACKER_WORDS_PER_CHUNK; word++) {
        uint64_t rest = word == first / 64 ? bits[word] & UINT64_MAX << first % 64 : bits[word];
        if (rest)
            return word * 64 + (unsigned)__builtin_ctzll(rest);
    }
    return GUEST_CHUNK_PAGES;
}

/* The entry to look at first for `chunk`: the one found last or its successor, where that is right.
 */
static size_t seek(struct dirty_map *map, uint64_t chunk)
{
    size_t i = map->cursor;

    if (i < map->count && map->chunks[i].chunk < chunk)
        i++;
    if (i < map->count && map->chunks[i].chunk >= chunk &&
        (i == 0 || map->chunks[i - 1].chunk < chunk))
        return i;
    return lower_bound(map, chunk);
}

bool dirty_map_next(struct dirty_map *map, uint64_t *page)
{
    uint64_t chunk = *page / GUEST_CHUNK_PAGES;

    for (size_t i = seek(map, chunk); i < map->count; i++) {
        const struct dirty_chunk *entry = &map->chunks[i];
        unsigned bit =
            first_bit(entry->bits, entry->chunk == chunk ? *page % GUEST_CHUNK_PAGES : 0);
        map->cursor = i;
        if (bit < GUEST_CHUNK_PAGES) {
            *page = entry->chunk * GUEST_CHUNK_PAGES + bit;
            return true;
        }
    }
    return false;
}

void dirty_map_take(struct dirty_map *map, uint64_t chunk, uint64_t bits[TRACKER_WORDS_PER_CHUNK])
{
    size_t i = seek(map, chunk);

    if (i == map->count || map->chunks[i].chunk != chunk)
        return;
    for (size_t j = 0; j < TRACKER_WORDS_PER_CHUNK; j++) {
        bits[j] |= map->chunks[i].bits[j];
        map->chunks[i].bits[j] = 0;
    }
    map->cursor = i;
}

uint64_t dirty_map_pages(const struct dirty_map *map)
{
    uint64_t pages = 0;

    for (size_t i = 0; i < map->count; i++) {
        for (size_t j = 0; j < TRACKER_WORDS_PER_CHUNK; j++)
            pages += (uint64_t)__builtin_popcountll(map->chunks[i].bits[j]);
    }
    return pages;
}

void dirty_map_clear(struct dirty_map *map)
{
    map->count = 0;
    map->cursor = 0;
}

void dirty_map_free(struct dirty_map *map)
{
    free(map->chunks);
    *map = (struct dirty_map){0};
}
