/* Rounds: the way of pages from the tracker to the lanes. One pass over what is dirty, chunk by
 * chunk: taken from the tracker, zero pages sifted out, adjacent pages joined into runs, posted,
 * fenced. Nothing here allocates per page.
 *
 * A page is posted at most once a round, and a round ends with a completed fence: so contract line
 * 3 of the transport (no page again before a fence that covers it) holds by construction. */
#ifndef MIGRATE_ROUNDS_H
#define MIGRATE_ROUNDS_H

#include "migrate/guest/guest.h"
#include "migrate/guest/tracker.h"
#include "migrate/policy.h"
#include "transport/transport.h"

struct rounds;

struct rounds_config {
    struct guest *guest;
    struct tracker *tracker;
    struct transport *transport;
    uint64_t max_bandwidth; /* bytes/s that the transport is held to, 0: none: how long a chunk may
                               take */
    /* Asked between chunks and while waiting: not 0 ends the round with that -errno and text. */
    int (*interrupted)(void *context, struct error *err);
    void (*progress)(void *context); /* called about every 20 ms from within a round */
    void *context;
};

/* Of the round under way, or of the last one. */
struct round_counts {
    uint64_t pages, zero_pages, skipped_pages;
    uint64_t bytes; /* guest bytes posted */
};

/* Reads the present extents of every region; tracking must have started. */
int rounds_new(const struct rounds_config *config, struct rounds **out, struct error *err);
/* The extents of one region, for the destination to prepare. Valid until rounds_free. */
const struct extent_list *rounds_present(const struct rounds *r, uint32_t region);
uint64_t rounds_present_bytes(const struct rounds *r);

/* Sends every present page that is not zero; the guest may run. Returns with everything fenced. */
int rounds_send_present(struct rounds *r, struct error *err);
/* Sends what the tracker's last collect found, but for what is dirty again by then. A page is
 * tracked anew from when its chunk is taken, so what is taken long before it can go only gets dirty
 * again: `pace` says when it is. NULL: as soon as the transport takes it. */
int rounds_send_dirty(struct rounds *r, const struct policy_pace *pace, struct error *err);
/* The same with the guest stopped: all that was found, as soon as the transport takes it. */
int rounds_send_last(struct rounds *r, struct error *err);

const struct round_counts *rounds_counts(const struct rounds *r);
void rounds_free(struct rounds *r); /* NULL is fine; the transport must be shut down or drained */

#endif
