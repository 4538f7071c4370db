/* Filters: transports around a transport, with the same table. Each takes ownership of `inner`. */
#ifndef TRANSPORT_FILTER_FILTER_H
#define TRANSPORT_FILTER_FILTER_H

#include "transport/transport.h"

/* Bandwidth cap: post takes only what a token bucket of `bytes_per_s` has room for. The bucket
 * holds 10 ms. */
int rate_filter_new(struct transport *inner, uint64_t bytes_per_s, struct transport **out,
                    struct error *err);

/* Every completion reaches the caller `delay_ns` after it came in: a longer way back. */
int delay_filter_new(struct transport *inner, uint64_t delay_ns, struct transport **out,
                     struct error *err);

enum fault_action {
    FAULT_FAIL,  /* the operation returns -EIO, and so does everything after it; lanes stay up */
    FAULT_STALL, /* from this operation on nothing moves: post takes nothing, reap times out */
    FAULT_CUT,  /* the lanes are shut down as if the link was lost; operations return -ECONNRESET */
    FAULT_SKIP, /* the operation's first transfer is dropped but reported as complete: silent
                   corruption, for tests of --verify */
};

/* Acts at operation number `at` (1 is the first post, kick, fence or reap of a source; the first
 * reap of a destination). FAULT_SKIP counts posts only. Specification: "fault=cut@17". */
int fault_filter_new(struct transport *inner, enum fault_action action, uint64_t at,
                     struct transport **out, struct error *err);

#endif
