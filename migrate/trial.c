#include "migrate/trial.h"

#include <errno.h>
#include <stdio.h>

#include "transport/base/clock.h"

enum {
    REAP_MS = 20,
    REAP_MAX = 16,
    ARRIVE_MS = 5000, /* from the last byte posted, or the last piece that arrived */
    AHEAD = 2,        /* pieces under way at first */
};

struct trial {
    const struct trial_config *config;
    struct trial_result *result;
    struct transport *transport;
    uint64_t began, deadline;
    uint64_t posted, fenced; /* bytes */
    uint64_t next_fence, completed_fence;
};

static int timed_out(const struct trial *t, struct error *err)
{
    return error_set(err, ETIMEDOUT,
                     "the lanes opened, but of %llu KiB posted the last did not arrive in time: "
                     "the path is too slow, or it drops large packets (see its MTU)",
                     (unsigned long long)t->posted >> 10);
}

static void note_fence(struct trial *t, uint64_t fence)
{
    struct trial_result *r = t->result;
    uint64_t now = clock_now();

    t->completed_fence = fence;
    if (t->deadline < now + ARRIVE_MS * NS_PER_MS)
        t->deadline = now + ARRIVE_MS * NS_PER_MS;
    if (fence <= r->piece_count)
        r->pieces[fence - 1].at_ns = now - t->began;
}

static int reap(struct trial *t, int timeout_ms, struct error *err)
{
    struct completion done[REAP_MAX];
    int count = transport_reap(t->transport, done, REAP_MAX, timeout_ms, err);

    for (int i = 0; i < count; i++)
        if (done[i].kind == COMPLETION_FENCE)
            note_fence(t, done[i].fence);
    if (count < 0)
        return count;
    if (clock_now() >= t->deadline)
        return timed_out(t, err);
    bool idle = count == 0 && timeout_ms;
    return idle && t->config->interrupted ? t->config->interrupted(t->config->context, err) : 0;
}

/* Neither fences nor pieces run out: what is left over goes into the last piece. */
static int post_fence(struct trial *t, struct error *err)
{
    int result;

    t->next_fence++;
    while ((result = transport_fence(t->transport, t->next_fence, err)) == -EAGAIN) {
        error_clear(err);
        result = reap(t, REAP_MS, err);
        if (result)
            return result;
    }
    return result ? result : transport_kick(t->transport, err);
}

static int end_piece(struct trial *t, struct error *err)
{
    struct trial_result *r = t->result;

    r->pieces[r->piece_count++] = (struct trial_piece){.bytes = t->posted - t->fenced};
    t->fenced = t->posted;
    return post_fence(t, err);
}

static int await_fences(struct trial *t, struct error *err)
{
    int result = 0;

    while (!result && t->completed_fence < t->next_fence)
        result = reap(t, REAP_MS, err);
    return result;
}

/* The more arrive, the more are let out: a slow path is not buried under what fills the buffers at
 * this end at once, and one that is fast and long has enough under way before long. */
static int pace(struct trial *t, struct error *err)
{
    int result = 0;

    while (!result && t->next_fence - t->completed_fence >= AHEAD + t->completed_fence)
        result = reap(t, REAP_MS, err);
    return result;
}

static int post_chunk(struct trial *t, uint64_t offset, uint64_t length, struct error *err)
{
    struct transfer transfer = {
        .offset = offset,
        .bytes = (const char *)t->config->memory + offset,
        .length = length,
    };
    int taken, result = 0;

    while (!result && (taken = transport_post(t->transport, &transfer, 1, err)) != 1) {
        if (taken < 0)
            return taken;
        result = transport_kick(t->transport, err);
        if (!result)
            result = reap(t, REAP_MS, err);
    }
    if (!result)
        result = transport_kick(t->transport, err);
    transport_done_with(t->transport, 0, offset, length);
    return result;
}

static bool is_enough(const struct trial *t)
{
    uint64_t passed = clock_now() - t->began;

    return t->posted == t->config->size || passed >= t->config->limit_ns ||
           (passed >= t->config->enough_ns && t->posted >= t->config->least_bytes);
}

static uint64_t chunk_at(uint64_t size, uint64_t offset)
{
    return size - offset < TRANSPORT_MAX_TRANSFER ? size - offset : TRANSPORT_MAX_TRANSFER;
}

static int send_all(struct trial *t, struct error *err)
{
    const struct trial_config *c = t->config;
    int result = 0;

    t->began = clock_now();
    t->deadline = t->began + c->limit_ns + ARRIVE_MS * NS_PER_MS;
    transport_will_need(t->transport, 0, 0, c->size);
    while (!result && !is_enough(t)) {
        uint64_t length = chunk_at(c->size, t->posted);

        result = post_chunk(t, t->posted, length, err);
        t->posted += length;
        if (!result && t->posted - t->fenced >= c->piece_bytes &&
            t->result->piece_count < TRIAL_MAX_PIECES - 1)
            result = end_piece(t, err);
        if (!result)
            result = reap(t, 0, err);
        if (!result)
            result = pace(t, err);
    }
    if (!result && t->posted > t->fenced)
        result = end_piece(t, err);
    if (!result)
        result = await_fences(t, err);
    t->result->bytes = t->posted;
    t->result->ns = clock_now() - t->began;
    return result;
}

/* What has arrived already, as later rounds do; at once, for windows of lanes that rest get small.
 */
static int send_again(struct trial *t, struct error *err)
{
    struct trial_result *r = t->result;
    uint64_t began = clock_now(), bytes = 0, fenced = 0;
    int result = 0;

    t->deadline = began + t->config->again_ns + ARRIVE_MS * NS_PER_MS;
    while (!result && bytes < t->posted && clock_now() - began < t->config->again_ns) {
        uint64_t length = chunk_at(t->posted, bytes);

        result = post_chunk(t, bytes, length, err);
        bytes += length;
        if (!result)
            result = reap(t, 0, err);
        if (!result && bytes - fenced >= t->config->piece_bytes) {
            fenced = bytes;
            result = post_fence(t, err);
        }
    }
    if (!result && bytes > fenced)
        result = post_fence(t, err);
    if (!result)
        result = await_fences(t, err);
    if (result)
        return result;
    r->again_bytes = bytes;
    r->again_ns = clock_now() - began;
    return 0;
}

static int time_fences(struct trial *t, struct error *err)
{
    struct trial_result *r = t->result;
    int result = 0;

    t->deadline = clock_now() + ARRIVE_MS * NS_PER_MS;
    while (!result && r->fence_count < t->config->fences) {
        uint64_t began = clock_now();
        result = post_fence(t, err);
        if (!result)
            result = await_fences(t, err);
        if (!result)
            r->fence_ns[r->fence_count++] = clock_now() - began;
    }
    return result;
}

/* All that was to be sent has arrived: what fails from now on only leaves unknown how long it would
 * have taken. */
static int send_more(struct trial *t, struct error *err)
{
    int result = t->config->again_ns ? send_again(t, err) : 0;

    if (!result)
        result = time_fences(t, err);
    if (!result || result == -ECANCELED)
        return result;
    error_clear(err);
    return 0;
}

static int make_transport(struct trial *t, struct error *err)
{
    const struct trial_config *c = t->config;
    struct transport_region region = {.base = c->memory, .size = c->size};
    char rate[64];
    int result = transport_new(c->peer->scheme, c->params, &t->transport, err);

    if (!result && c->filter[0])
        result = transport_wrap(c->filter, &t->transport, err);
    snprintf(rate, sizeof(rate), "rate=%llu", (unsigned long long)c->max_bandwidth);
    if (!result && c->max_bandwidth)
        result = transport_wrap(rate, &t->transport, err);
    return result ? result : transport_open_region(t->transport, &region, err);
}

int trial_run(const struct trial_config *config, int connect_ms, struct trial_result *out,
              struct error *err)
{
    struct trial t = {.config = config, .result = out};
    uint64_t began = clock_now();

    *out = (struct trial_result){0};
    int result = make_transport(&t, err);
    if (!result)
        result = transport_connect(t.transport, config->peer, connect_ms, err);
    out->connect_ns = clock_now() - began;
    if (!result && config->before)
        result = config->before(config->context, err);
    if (!result)
        result = send_all(&t, err);
    if (!result && config->after)
        result = config->after(config->context, err);
    if (!result)
        result = send_more(&t, err);
    if (t.transport)
        transport_shutdown(t.transport);
    transport_close(t.transport);
    return result;
}
