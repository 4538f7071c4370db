/* The dirty pages of a region, kept by chunk: an array of those chunks that have any, in order.
 * Memory follows the number of dirty chunks, so a sparse terabyte costs nothing. Not locked. */
#ifndef MIGRATE_GUEST_DIRTY_MAP_H
#define MIGRATE_GUEST_DIRTY_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migrate/guest/tracker.h"

struct dirty_chunk {
    uint64_t chunk;
    uint64_t bits[TRACKER_WORDS_PER_CHUNK];
};

struct dirty_map {
    /* sorted; owned. Chunks whose bits were all taken stay until the next clear */
    struct dirty_chunk *chunks;
    size_t count, capacity;
    size_t cursor; /* where the newest find ended: finds go upwards */
};

/* Adds pages [page, page+count). Cheapest in ascending order. -ENOMEM. */
int dirty_map_add(struct dirty_map *map, uint64_t page, uint64_t count);
/* Adds 64 pages' bits: the word at `word` of a bitmap of the region. -ENOMEM. */
int dirty_map_add_word(struct dirty_map *map, uint64_t word, uint64_t bits);
/* Adds everything in `from`. -ENOMEM: nothing was added. */
int dirty_map_merge(struct dirty_map *map, const struct dirty_map *from);
/* Adds the pages that are in `a` and not in `b`. -ENOMEM. */
int dirty_map_add_difference(struct dirty_map *map, const struct dirty_map *a,
                             const struct dirty_map *b);
/* Whether the map has an entry for the chunk of `page`, and in *end the page where that changes
 * (UINT64_MAX: nowhere). */
bool dirty_map_span(const struct dirty_map *map, uint64_t page, uint64_t *end);
/* The first dirty page at or after *page, into *page; false: none. */
bool dirty_map_next(struct dirty_map *map, uint64_t *page);
/* Removes a chunk's pages from the map and adds them to `bits`. */
void dirty_map_take(struct dirty_map *map, uint64_t chunk, uint64_t bits[TRACKER_WORDS_PER_CHUNK]);
uint64_t dirty_map_pages(const struct dirty_map *map);
void dirty_map_clear(struct dirty_map *map); /* keeps the memory */
void dirty_map_free(struct dirty_map *map);

/* Sets bits [first, first+count) of a chunk's words; count may be 0. */
void dirty_bits_set(uint64_t bits[TRACKER_WORDS_PER_CHUNK], unsigned first, unsigned count);

#endif
