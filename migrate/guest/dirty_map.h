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
/* Adds everything in `from`. -ENOMEM. */
int dirty_map_merge(struct dirty_map *map, const struct dirty_map *from);
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
