/* What all filters share: a transport that owns another one and hands every call on to it. A filter's table names
 * these functions for all members that it leaves alone. */
#ifndef TRANSPORT_FILTER_PASS_H
#define TRANSPORT_FILTER_PASS_H

#include "transport/latch.h"
#include "transport/transport.h"

/* The first member of every filter. */
struct filter {
    struct transport transport; /* first */
    struct transport *inner;    /* owned; NULL once detached */
    struct latch latch;         /* the filter's own end: its shutdown, or a fault it injected */
};

/* Allocates a filter of `size` bytes, zero behind the shared part. -ENOMEM; `inner` stays the caller's then. */
int filter_new(size_t size, const struct transport_ops *ops, struct transport *inner,
               struct filter **out, struct error *err);
/* Frees the filter alone and returns what it was wrapped around. */
struct transport *filter_detach(struct transport *t);
/* Sleeps for timeout_ms (-1: no limit) or until the filter's end. 0, or the error that ended it. */
int filter_sleep(struct filter *f, int timeout_ms, struct error *err);

/* Each checks the filter's own end first: what has ended hands nothing on. */
unsigned pass_capabilities(const struct transport *t);
int pass_listen(struct transport *t, const struct address *at, uint16_t *port, struct error *err);
int pass_accept(struct transport *t, int timeout_ms, struct error *err);
int pass_connect(struct transport *t, const struct address *peer, int timeout_ms, struct error *err);
int pass_open_region(struct transport *t, const struct transport_region *region, struct error *err);
int pass_close_region(struct transport *t, uint32_t id, struct error *err);
void pass_will_need(struct transport *t, uint32_t region, uint64_t offset, uint64_t length);
void pass_done_with(struct transport *t, uint32_t region, uint64_t offset, uint64_t length);
int pass_post(struct transport *t, const struct transfer *transfers, unsigned n, struct error *err);
int pass_kick(struct transport *t, struct error *err);
int pass_fence(struct transport *t, uint64_t id, struct error *err);
int pass_reap(struct transport *t, struct completion *completions, unsigned max, int timeout_ms,
              struct error *err);
void pass_stats(const struct transport *t, struct transport_stats *stats);
bool pass_describe(const struct transport *t, struct transport_device *device);
void pass_shutdown(struct transport *t);
void pass_close(struct transport *t);

#endif
