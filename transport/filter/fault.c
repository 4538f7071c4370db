/* Fault injection: lets operations through, counting, and acts at the N-th. */
#include "transport/filter/filter.h"

#include <errno.h>
#include <stdatomic.h>

#include "transport/filter/pass.h"

struct fault {
    struct filter filter; /* its latch also keeps the error of FAULT_FAIL and FAULT_CUT */
    enum fault_action action;
    uint64_t at;
    uint64_t operations; /* engine; posts only for FAULT_SKIP */
    bool stalled;        /* engine */
    bool owes;           /* engine; the completion of the skipped transfer, if it has a cookie */
    struct completion owed;
    atomic_uint_fast64_t skipped_bytes;
    atomic_uint skipped; /* 0 or 1 */
};

static const struct transport_ops fault_ops;

static void end_with(struct fault *f, int code, const char *what, const char *operation)
{
    struct error cause = {0};

    error_set(&cause, code, "injected fault: %s at operation %llu, a %s", what,
              (unsigned long long)f->operations, operation);
    latch_fail(&f->filter.latch, &cause);
}

static void strike(struct fault *f, const char *operation)
{
    switch (f->action) {
    case FAULT_FAIL:
        end_with(f, EIO, "failed", operation);
        break;
    case FAULT_STALL:
        f->stalled = true;
        break;
    case FAULT_CUT:
        end_with(f, ECONNRESET, "the link was cut", operation);
        transport_shutdown(f->filter.inner);
        break;
    case FAULT_SKIP:
        break;
    }
}

/* Counts an operation and strikes when it is the one. 0: it may go on, unless stalled now. */
static int count(struct fault *f, const char *operation, struct error *err)
{
    int result = latch_check(&f->filter.latch, err);

    if (result)
        return result;
    if (++f->operations == f->at)
        strike(f, operation);
    return latch_check(&f->filter.latch, err);
}

static bool skips(const struct fault *f)
{
    return f->action == FAULT_SKIP;
}

/* Drops the first transfer, hands on the rest. */
static int post_but_first(struct fault *f, const struct transfer *transfers, unsigned n,
                          struct error *err)
{
    int taken = 0;

    if (n > 1)
        taken = pass_post(&f->filter.transport, transfers + 1, n - 1, err);
    if (taken < 0)
        return taken;
    f->skipped_bytes = transfers->length;
    f->skipped = 1;
    f->owes = transfers->cookie != NULL;
    f->owed = (struct completion){.kind = COMPLETION_TRANSFER, .cookie = transfers->cookie};
    return taken + 1;
}

static int fault_post(struct transport *t, const struct transfer *transfers, unsigned n,
                      struct error *err)
{
    struct fault *f = (struct fault *)t;
    int result = count(f, "post", err);

    if (result || f->stalled)
        return result;
    if (skips(f) && f->operations == f->at && n)
        return post_but_first(f, transfers, n, err);
    return pass_post(t, transfers, n, err);
}

static int fault_kick(struct transport *t, struct error *err)
{
    struct fault *f = (struct fault *)t;
    int result = skips(f) ? 0 : count(f, "kick", err);

    return result || f->stalled ? result : pass_kick(t, err);
}

/* A fence posted while stalled is taken, and never completes. */
static int fault_fence(struct transport *t, uint64_t id, struct error *err)
{
    struct fault *f = (struct fault *)t;
    int result = skips(f) ? 0 : count(f, "fence", err);

    return result || f->stalled ? result : pass_fence(t, id, err);
}

static int reap_owed(struct fault *f, struct completion *completions, unsigned max,
                     struct error *err)
{
    int n = max > 1 ? pass_reap(&f->filter.transport, completions + 1, max - 1, 0, err) : 0;

    if (n < 0)
        return n;
    completions[0] = f->owed;
    f->owes = false;
    return n + 1;
}

static int fault_reap(struct transport *t, struct completion *completions, unsigned max,
                      int timeout_ms, struct error *err)
{
    struct fault *f = (struct fault *)t;
    int result = skips(f) ? 0 : count(f, "reap", err);

    if (result)
        return result;
    if (f->stalled)
        return filter_sleep(&f->filter, timeout_ms, err);
    if (f->owes && max)
        return reap_owed(f, completions, max, err);
    return pass_reap(t, completions, max, timeout_ms, err);
}

/* The skipped transfer counts as what it is reported to be. */
static void fault_stats(const struct transport *t, struct transport_stats *stats)
{
    const struct fault *f = (const struct fault *)t;

    pass_stats(t, stats);
    stats->posted_bytes += f->skipped_bytes;
    stats->completed += f->skipped;
}

int fault_filter_new(struct transport *inner, enum fault_action action, uint64_t at,
                     struct transport **out, struct error *err)
{
    struct filter *f;
    int result;

    if (!at)
        return error_set(err, EINVAL, "operations count from 1: there is none at 0 to fail");
    result = filter_new(sizeof(struct fault), &fault_ops, inner, &f, err);
    if (result)
        return result;
    ((struct fault *)f)->action = action;
    ((struct fault *)f)->at = at;
    *out = &f->transport;
    return 0;
}

static const struct transport_ops fault_ops = {
    .name = "fault",
    .capabilities = pass_capabilities,
    .listen = pass_listen,
    .accept = pass_accept,
    .connect = pass_connect,
    .open_region = pass_open_region,
    .close_region = pass_close_region,
    .will_need = pass_will_need,
    .done_with = pass_done_with,
    .post = fault_post,
    .kick = fault_kick,
    .fence = fault_fence,
    .reap = fault_reap,
    .stats = fault_stats,
    .describe = pass_describe,
    .shutdown = pass_shutdown,
    .close = pass_close,
};
