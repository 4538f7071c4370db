/* Bandwidth cap. The token bucket is kept as one instant: when it will be full again. Taking
 * `length` bytes moves that instant length/rate further on; a transfer may go when the bucket holds
 * as much, or when it is full: a transfer larger than the bucket goes then and leaves a debt, so
 * that even the lowest rate makes progress. */
#include "transport/filter/filter.h"

#include <errno.h>

#include "transport/base/clock.h"
#include "transport/filter/pass.h"

#define BUCKET_NS (10 * NS_PER_MS)

struct rate {
    struct filter filter;
    uint64_t bytes_per_s;
    uint64_t full_at; /* engine; ns */
    uint64_t room_at; /* engine; when what was refused may go, 0: nothing was refused */
};

static const struct transport_ops rate_ops;

/* Rounded up: the cap is never exceeded. A transfer has at most 1 MiB, so nothing overflows. */
static uint64_t cost_of(const struct rate *r, size_t length)
{
    return (length * NS_PER_S + r->bytes_per_s - 1) / r->bytes_per_s;
}

/* When a transfer of this cost may go. */
static uint64_t room_for(const struct rate *r, uint64_t cost)
{
    uint64_t needed = cost < BUCKET_NS ? cost : BUCKET_NS;

    return r->full_at + needed > BUCKET_NS ? r->full_at + needed - BUCKET_NS : 0;
}

static void charge(struct rate *r, uint64_t cost, uint64_t now)
{
    r->full_at = (r->full_at > now ? r->full_at : now) + cost;
}

/* How many of the n transfers the bucket has room for. Works on a copy: what the inner transport
 * then refuses must not be charged. */
static unsigned affordable(struct rate *r, const struct transfer *transfers, unsigned n,
                           uint64_t now)
{
    struct rate bucket = {.bytes_per_s = r->bytes_per_s, .full_at = r->full_at};

    r->room_at = 0;
    for (unsigned i = 0; i < n; i++) {
        uint64_t cost = cost_of(r, transfers[i].length);
        uint64_t room = room_for(&bucket, cost);

        if (room > now) {
            r->room_at = room;
            return i;
        }
        charge(&bucket, cost, now);
    }
    return n;
}

static int rate_post(struct transport *t, const struct transfer *transfers, unsigned n,
                     struct error *err)
{
    struct rate *r = (struct rate *)t;
    uint64_t now = clock_now();
    int taken = pass_post(t, transfers, affordable(r, transfers, n, now), err);

    for (int i = 0; i < taken; i++)
        charge(r, cost_of(r, transfers[i].length), now);
    return taken;
}

/* Comes back, once, when there is room for what the newest post refused: the caller waits for that
 * here. */
static int rate_reap(struct transport *t, struct completion *completions, unsigned max,
                     int timeout_ms, struct error *err)
{
    struct rate *r = (struct rate *)t;
    int until_room = clock_ms_until(r->room_at), result;

    if (!r->room_at || (timeout_ms >= 0 && timeout_ms < until_room))
        return pass_reap(t, completions, max, timeout_ms, err);
    result = pass_reap(t, completions, max, until_room, err);
    if (result == 0 && clock_now() >= r->room_at)
        r->room_at = 0;
    return result;
}

int rate_filter_new(struct transport *inner, uint64_t bytes_per_s, struct transport **out,
                    struct error *err)
{
    struct filter *f;
    int result;

    if (!bytes_per_s)
        return error_set(err, EINVAL,
                         "a rate of 0 moves nothing; leave the filter out for no limit");
    result = filter_new(sizeof(struct rate), &rate_ops, inner, &f, err);
    if (result)
        return result;
    ((struct rate *)f)->bytes_per_s = bytes_per_s;
    *out = &f->transport;
    return 0;
}

static const struct transport_ops rate_ops = {
    .name = "rate",
    .capabilities = pass_capabilities,
    .listen = pass_listen,
    .accept = pass_accept,
    .connect = pass_connect,
    .open_region = pass_open_region,
    .close_region = pass_close_region,
    .will_need = pass_will_need,
    .done_with = pass_done_with,
    .post = rate_post,
    .kick = pass_kick,
    .fence = pass_fence,
    .reap = rate_reap,
    .stats = pass_stats,
    .describe = pass_describe,
    .shutdown = pass_shutdown,
    .close = pass_close,
};
