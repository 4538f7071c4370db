/* The source's half of a transport: what was posted and is not yet reaped. Shared by the
 * transports.
 *
 * Each lane has one ring of entries and three cursors that only ever grow:
 *
 *     reaped  <=  sent  <=  posted          posted - reaped <= OUTBOX_ENTRIES
 *
 * The engine's thread writes entries and `posted`, the lane's thread moves `sent` over entries
 * whose bytes it needs no more, the engine's thread collects completions from behind it. Nothing
 * here allocates or locks.
 *
 * A fence is one entry on every lane. Lanes acknowledge fences in order, so a count per lane is all
 * there is to know: fence number k has completed once every lane has acknowledged more than k. */
#ifndef TRANSPORT_OUTBOX_H
#define TRANSPORT_OUTBOX_H

#include <stdatomic.h>

#include "transport/latch.h"
#include "transport/regions.h"
#include "transport/transport.h"

enum {
    OUTBOX_ENTRIES = 4096,    /* per lane */
    OUTBOX_FENCES = 1024,     /* of these are kept for fences: so many may be outstanding */
    OUTBOX_BYTES = 4 << 20,   /* per lane, posted and not sent: enough for copying transports */
    OUTBOX_QUANTUM = 1 << 20, /* bytes of a batch that stay together on one lane */
};

enum outbox_kind { OUTBOX_PLACE = TRANSFER_PLACE, OUTBOX_BLOB = TRANSFER_BLOB, OUTBOX_FENCE };

struct outbox_entry {
    enum outbox_kind kind;
    uint32_t region;
    uint64_t offset; /* OUTBOX_FENCE: its id */
    const void *bytes;
    size_t length;
    void *cookie;
    void *tag; /* the transport's own */
};

struct outbox_lane {
    struct outbox_entry *entries; /* owned */
    int wake_fd;                 /* eventfd: the lane's thread polls it when it has nothing to do */
    atomic_uint asleep;          /* set by the lane before it polls; the waker clears it */
    atomic_uint_fast64_t seen;   /* entries the lane knew of when it fell asleep */
    atomic_uint_fast64_t posted; /* engine */
    atomic_uint_fast64_t sent;   /* lane */
    uint64_t reaped;             /* engine */
    uint64_t posted_bytes;       /* engine */
    atomic_uint_fast64_t sent_bytes;
    atomic_uint_fast64_t sent_transfers;
    uint64_t fences_sent;              /* lane */
    atomic_uint_fast64_t acknowledged; /* fences; lane */
};

struct outbox {
    struct latch *latch;
    unsigned lane_count;
    struct outbox_lane lanes[TRANSPORT_MAX_LANES];
    uint64_t lane_bytes;            /* posted and not sent, of one lane, at most (and a transfer) */
    uint64_t fences[OUTBOX_FENCES]; /* ids of fence number k at k % OUTBOX_FENCES */
    atomic_uint_fast64_t fences_posted, fences_reaped;
    atomic_uint_fast64_t posted_transfers, posted_bytes;
    bool starved; /* engine: the newest post did not find room for all */
    atomic_bool nudged;
};

/* `lane_bytes`: how much one lane may have posted and not sent. `latch` outlives the outbox; errors
 * that end the transport go there. -ENOMEM, -EMFILE. */
int outbox_init(struct outbox *o, unsigned lanes, uint64_t lane_bytes, struct latch *latch,
                struct error *err);
void outbox_destroy(struct outbox *o);

/* The engine's thread; as the members of struct transport_ops with these names. `regions` are this
 * end's. reap returns 0 early once a transport that had no room has some again. fence: -EAGAIN when
 * OUTBOX_FENCES are outstanding. */
int outbox_post(struct outbox *o, const struct regions *regions, const struct transfer *transfers,
                unsigned n, struct error *err);
/* The same without looking at regions again; tags[i] goes into the entry of transfers[i]. */
unsigned outbox_put(struct outbox *o, const struct transfer *transfers, void *const *tags,
                    unsigned n);
int outbox_check(const struct regions *regions, const struct transfer *transfer, struct error *err);
/* The engine's thread: the transport could not take more for a reason of its own. Any thread: that
 * reason may have gone, so the next or present reap returns. */
void outbox_starve(struct outbox *o);
void outbox_nudge(struct outbox *o);
int outbox_fence(struct outbox *o, uint64_t id, struct error *err);
int outbox_reap(struct outbox *o, struct completion *completions, unsigned max, int timeout_ms,
                struct error *err);
void outbox_kick(struct outbox *o); /* any thread */

/* The lane's thread. How many entries wait, and the i-th of them (i < pending). */
unsigned outbox_pending(const struct outbox_lane *lane);
const struct outbox_entry *outbox_entry(const struct outbox_lane *lane, unsigned i);
/* The first n entries' bytes are needed no more. */
void outbox_sent(struct outbox *o, struct outbox_lane *lane, unsigned n);
/* The peer has applied what came before fence `id`: -EPROTO unless it is the next one this lane has
 * sent. */
int outbox_acknowledge(struct outbox *o, struct outbox_lane *lane, uint64_t id, struct error *err);
/* Fences this lane has sent and the peer has not acknowledged. */
bool outbox_awaits(const struct outbox_lane *lane);
/* Announces that the lane will poll its wake_fd until there is more than the `known` entries that
 * it has under way; false when there is already. */
bool outbox_fall_asleep(struct outbox_lane *lane, unsigned known);
void outbox_wake_up(struct outbox_lane *lane); /* after the poll */
void outbox_wake(struct outbox_lane *lane);    /* any thread: ends its sleep, whatever the reason */

/* posted_bytes, completed, outstanding. Any thread. */
void outbox_stats(const struct outbox *o, struct transport_stats *stats);

#endif
