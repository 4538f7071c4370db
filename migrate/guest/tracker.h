/* Dirty tracking. A page is dirty from the guest's write until `take` hands it out. The rule that
 * everything rests on: a page is re-armed BEFORE its bytes are read, so that a write during the
 * sending makes it dirty again and a torn copy is always overwritten later.
 *
 * Calls come from the session's thread, in the order start, {collect, {next, take}*}*, stop, close.
 */
#ifndef MIGRATE_GUEST_TRACKER_H
#define MIGRATE_GUEST_TRACKER_H

#include <stdbool.h>
#include <stdint.h>

#include "migrate/guest/guest.h"

enum { TRACKER_WORDS_PER_CHUNK = GUEST_CHUNK_PAGES / 64 };

struct tracker {
    const struct tracker_ops *ops;
};

struct tracker_ops {
    const char *name; /* "dirty-log", "dirty-ring", "userfaultfd" */

    /* Every write from here on is seen. Before guest_ops.present is read. */
    int (*start)(struct tracker *t, struct error *err);
    /* Once at the beginning of a round: gathers what is dirty now; *pages is how many pages that
     * is. KVM log: a snapshot, nothing re-armed. Ring: harvest, RESET, and only then publish.
     * userfaultfd: a scan of present extents (new ones included). */
    int (*collect)(struct tracker *t, uint64_t *pages, struct error *err);
    /* The first page at or after *page that the last collect found dirty and no take has handed
     * out: sets *page and returns true; false: none left in the region. Cost follows dirty or
     * present memory. */
    bool (*next)(struct tracker *t, uint32_t region, uint64_t *page);
    /* Hands out the dirty pages of one chunk of a region: bit i of `bits` is page chunk*256+i.
     * Re-arms them first. May hand out pages dirtied since collect as well. Bits beyond the
     * region's end are 0. */
    int (*take)(struct tracker *t, uint32_t region, uint64_t chunk,
                uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err);
    /* Marks pages that are already dirty again: the caller may leave them out of this round, they
     * come with the next collect anyway; NULL where the tracker cannot tell. Called after take,
     * same chunk. */
    int (*peek)(struct tracker *t, uint32_t region, uint64_t chunk,
                uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err);
    /* Marks pages as dirty by hand: for writes by the VMM itself, and for pages that could not be
     * sent. Any thread between start and stop. */
    void (*mark)(struct tracker *t, uint32_t region, uint64_t page, uint64_t count);
    /* Ends tracking. After the guest runs on the other side (or the migration was given up), never
     * before: it may take tens of milliseconds. */
    void (*stop)(struct tracker *t);
    void (*close)(struct tracker *t); /* stops if need be, frees */
};

#endif
