/* A longer way back: completions are held in a ring until they are due. What came in counts from
 * the reap that finds it. The ring is bounded; when it is full the inner transport keeps its
 * completions, and so runs full itself. */
#include "transport/filter/filter.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "transport/base/clock.h"
#include "transport/filter/pass.h"

enum { RING_SIZE = 1 << 16, BATCH = 256 };

struct held {
    struct completion completion;
    uint64_t due;
};

struct delay {
    struct filter filter;
    uint64_t delay_ns;
    struct held *ring;   /* owned; RING_SIZE of them */
    uint64_t first;      /* engine; grows, as a ring index modulo RING_SIZE */
    atomic_uint holding; /* engine changes it, stats read it */
};

static const struct transport_ops delay_ops;

static uint64_t after(uint64_t ns)
{
    uint64_t now = clock_now();

    return ns > UINT64_MAX - now ? UINT64_MAX : now + ns;
}

static void hold(struct delay *d, const struct completion *completions, unsigned n)
{
    uint64_t due = after(d->delay_ns);

    for (unsigned i = 0; i < n; i++)
        d->ring[(d->first + d->holding + i) % RING_SIZE] = (struct held){completions[i], due};
    d->holding += n;
}

/* Takes from the inner transport what fits, waiting for the first at most wait_ms. Returns how many
 * came. */
static int harvest(struct delay *d, int wait_ms, struct error *err)
{
    struct completion batch[BATCH];
    unsigned room, total = 0;
    int n;

    do {
        room = RING_SIZE - d->holding;
        room = room < BATCH ? room : BATCH;
        if (!room)
            break;
        n = pass_reap(&d->filter.transport, batch, room, total ? 0 : wait_ms, err);
        if (n < 0)
            return n;
        hold(d, batch, (unsigned)n);
        total += (unsigned)n;
    } while (n == BATCH);
    return total || room ? (int)total : filter_sleep(&d->filter, wait_ms, err);
}

static unsigned release(struct delay *d, struct completion *completions, unsigned max)
{
    uint64_t now = clock_now();
    unsigned n = 0;

    for (; n < max && d->holding && d->ring[d->first % RING_SIZE].due <= now; n++) {
        completions[n] = d->ring[d->first % RING_SIZE].completion;
        d->first++;
        d->holding--;
    }
    return n;
}

/* When to look again: as the caller's time runs out, or a held completion falls due. */
static uint64_t wake_at(const struct delay *d, uint64_t deadline)
{
    uint64_t due = d->holding ? d->ring[d->first % RING_SIZE].due : UINT64_MAX;

    return due < deadline ? due : deadline;
}

static int wait_ms(uint64_t until)
{
    return until == UINT64_MAX ? -1 : clock_ms_until(until);
}

static int delay_reap(struct transport *t, struct completion *completions, unsigned max,
                      int timeout_ms, struct error *err)
{
    struct delay *d = (struct delay *)t;
    uint64_t deadline = timeout_ms < 0 ? UINT64_MAX : after((uint64_t)timeout_ms * NS_PER_MS);

    for (;;) {
        uint64_t until = wake_at(d, deadline);
        int came = harvest(d, wait_ms(until), err);
        unsigned n;

        if (came < 0)
            return came;
        n = release(d, completions, max);
        /* Nothing, and before its time: the inner transport says that it has room again. */
        if (n || clock_now() >= deadline || (!came && clock_now() < until))
            return (int)n;
    }
}

/* What is held has not completed for the caller. */
static void delay_stats(const struct transport *t, struct transport_stats *stats)
{
    pass_stats(t, stats);
    stats->outstanding += ((const struct delay *)t)->holding;
}

static void delay_close(struct transport *t)
{
    free(((struct delay *)t)->ring);
    pass_close(t);
}

int delay_filter_new(struct transport *inner, uint64_t delay_ns, struct transport **out,
                     struct error *err)
{
    struct held *ring = calloc(RING_SIZE, sizeof(*ring));
    struct filter *f;
    int result;

    if (!ring)
        return error_set_errno(err, ENOMEM, "cannot make the filter \"delay\"");
    result = filter_new(sizeof(struct delay), &delay_ops, inner, &f, err);
    if (result)
        goto free_ring;
    ((struct delay *)f)->delay_ns = delay_ns;
    ((struct delay *)f)->ring = ring;
    *out = &f->transport;
    return 0;

free_ring:
    free(ring);
    return result;
}

static const struct transport_ops delay_ops = {
    .name = "delay",
    .capabilities = pass_capabilities,
    .listen = pass_listen,
    .accept = pass_accept,
    .connect = pass_connect,
    .open_region = pass_open_region,
    .close_region = pass_close_region,
    .will_need = pass_will_need,
    .done_with = pass_done_with,
    .post = pass_post,
    .kick = pass_kick,
    .fence = pass_fence,
    .reap = delay_reap,
    .stats = delay_stats,
    .describe = pass_describe,
    .shutdown = pass_shutdown,
    .close = delay_close,
};
