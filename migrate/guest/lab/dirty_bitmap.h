/* A bit per page of a region, for the trackers of the lab guest. */
#ifndef MIGRATE_GUEST_LAB_DIRTY_BITMAP_H
#define MIGRATE_GUEST_LAB_DIRTY_BITMAP_H

#include "migrate/guest/tracker.h"

struct dirty_bitmap {
    uint64_t pages;
    size_t words;    /* 64 pages each, rounded up to whole chunks */
    uint64_t *found; /* dirty, not handed out; the session's thread only */
    uint64_t *marks; /* dirty, not yet in `found`; atomic: any thread sets bits */
};

int dirty_bitmap_init(struct dirty_bitmap *map, uint64_t region_bytes, struct error *err);
void dirty_bitmap_free(struct dirty_bitmap *map);
/* Forgets everything. */
void dirty_bitmap_clear(struct dirty_bitmap *map);
/* Sets bits in `marks`; bits beyond the region are ignored. Any thread. */
void dirty_bitmap_mark(struct dirty_bitmap *map, uint64_t page, uint64_t count);
/* Moves the marks to `found`; returns how many pages `found` has. */
uint64_t dirty_bitmap_publish(struct dirty_bitmap *map);
bool dirty_bitmap_next(const struct dirty_bitmap *map, uint64_t *page);
/* Hands out the found pages of one chunk; false: there are none. The caller has checked `chunk`. */
bool dirty_bitmap_take(struct dirty_bitmap *map, uint64_t chunk,
                       uint64_t bits[TRACKER_WORDS_PER_CHUNK]);
/* The marks of one chunk, left where they are. */
void dirty_bitmap_peek(const struct dirty_bitmap *map, uint64_t chunk,
                       uint64_t bits[TRACKER_WORDS_PER_CHUNK]);
uint64_t dirty_bitmap_chunks(const struct dirty_bitmap *map);

#endif
