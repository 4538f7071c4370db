#include "migrate/guest/lab/dirty_bitmap.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { WORD_PAGES = 64 };

/* Mapped rather than allocated: zero, and no memory until a bit is set. */
static uint64_t *map_words(size_t words)
{
    void *memory = mmap(NULL, words * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

int dirty_bitmap_init(struct dirty_bitmap *map, uint64_t region_bytes, struct error *err)
{
    map->pages = region_bytes / GUEST_PAGE_SIZE;
    map->words = (map->pages + GUEST_CHUNK_PAGES - 1) / GUEST_CHUNK_PAGES * TRACKER_WORDS_PER_CHUNK;
    map->found = map_words(map->words);
    map->marks = map_words(map->words);
    if (map->found && map->marks)
        return 0;
    return error_set(err, ENOMEM, "out of memory for a dirty bitmap of %zu words", map->words);
}

void dirty_bitmap_free(struct dirty_bitmap *map)
{
    if (map->found)
        munmap(map->found, map->words * sizeof(uint64_t));
    if (map->marks)
        munmap(map->marks, map->words * sizeof(uint64_t));
    *map = (struct dirty_bitmap){0};
}

void dirty_bitmap_clear(struct dirty_bitmap *map)
{
    for (size_t i = 0; i < map->words; i++) {
        if (map->found[i])
            map->found[i] = 0;
        if (__atomic_load_n(&map->marks[i], __ATOMIC_RELAXED))
            __atomic_store_n(&map->marks[i], 0, __ATOMIC_RELAXED);
    }
}

void dirty_bitmap_mark(struct dirty_bitmap *map, uint64_t page, uint64_t count)
{
    uint64_t end = count < map->pages && page < map->pages - count ? page + count : map->pages;

    while (page < end) {
        unsigned bit = page % WORD_PAGES;
        uint64_t some = WORD_PAGES - bit < end - page ? WORD_PAGES - bit : end - page;
        uint64_t mask = (some == WORD_PAGES ? UINT64_MAX : (1ull << some) - 1) << bit;

        __atomic_fetch_or(&map->marks[page / WORD_PAGES], mask, __ATOMIC_RELEASE);
        page += some;
    }
}

uint64_t dirty_bitmap_publish(struct dirty_bitmap *map)
{
    uint64_t pages = 0;

    for (size_t i = 0; i < map->words; i++) {
        if (__atomic_load_n(&map->marks[i], __ATOMIC_RELAXED))
            map->found[i] |= __atomic_exchange_n(&map->marks[i], 0, __ATOMIC_ACQUIRE);
        if (map->found[i])
            pages += (uint64_t)__builtin_popcountll(map->found[i]);
    }
    return pages;
}

bool dirty_bitmap_next(const struct dirty_bitmap *map, uint64_t *page)
{
    size_t i = *page / WORD_PAGES;
    uint64_t word;

    if (*page >= map->pages)
        return false;
    word = map->found[i] & UINT64_MAX << *page % WORD_PAGES;
    while (!word && ++i < map->words)
        word = map->found[i];
    if (!word)
        return false;
    *page = i * WORD_PAGES + (uint64_t)__builtin_ctzll(word);
    return true;
}

bool dirty_bitmap_take(struct dirty_bitmap *map, uint64_t chunk,
                       uint64_t bits[TRACKER_WORDS_PER_CHUNK])
{
    uint64_t *found = &map->found[chunk * TRACKER_WORDS_PER_CHUNK];
    uint64_t any = 0;

    for (int i = 0; i < TRACKER_WORDS_PER_CHUNK; i++) {
        bits[i] = found[i];
        any |= found[i];
    }
    if (any)
        memset(found, 0, TRACKER_WORDS_PER_CHUNK * sizeof *found);
    return any != 0;
}

void dirty_bitmap_peek(const struct dirty_bitmap *map, uint64_t chunk,
                       uint64_t bits[TRACKER_WORDS_PER_CHUNK])
{
    for (int i = 0; i < TRACKER_WORDS_PER_CHUNK; i++)
        bits[i] = __atomic_load_n(&map->marks[chunk * TRACKER_WORDS_PER_CHUNK + (size_t)i],
                                  __ATOMIC_ACQUIRE);
}

uint64_t dirty_bitmap_chunks(const struct dirty_bitmap *map)
{
    return map->words / TRACKER_WORDS_PER_CHUNK;
}
