#include "transport/loop/loop.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "transport/base/thread.h"
#include "transport/outbox.h"

enum loop_state { LOOP_CLOSED, LOOP_ACCEPTING, LOOP_CONNECTED };

/* One end. The link below belongs to both and goes with the second close. */
struct loop_end {
    struct transport transport; /* first */
    struct loop_link *link;
    bool is_source;
    struct transport_params params;
    struct latch latch;
    struct regions regions;
};

struct loop_lane {
    struct loop_link *link;
    struct outbox_lane *queue;
    unsigned index;
    pthread_t thread;
};

struct loop_link {
    struct loop_end source, destination;
    struct outbox outbox; /* the source's */
    atomic_int state;     /* enum loop_state; changed under lock */
    atomic_uint_fast64_t copied, frames;
    pthread_mutex_t lock;
    unsigned running; /* lane threads to join; under lock */
    unsigned open;    /* ends not closed yet; under lock */
    struct loop_lane lanes[TRANSPORT_MAX_LANES];
};

static struct loop_end *end_of(struct transport *t)
{
    return (struct loop_end *)t;
}

/* The latch of the end itself tells the cause, the other's that its peer is gone. */
static void loop_end_both(struct loop_end *end, unsigned lane, const struct error *cause)
{
    struct loop_link *link = end->link;
    struct error gone = {0};

    latch_fail(&end->latch, cause);
    error_set(&gone, ECONNRESET, "lane %u closed by peer", lane);
    latch_fail(end->is_source ? &link->destination.latch : &link->source.latch, &gone);
    outbox_kick(&link->outbox);
}

static int loop_place(struct loop_lane *lane, const struct outbox_entry *entry, struct error *err)
{
    struct regions *regions = &lane->link->destination.regions;
    void *at;

    regions_lock(regions);
    at = regions_resolve(regions, entry->region, entry->offset, entry->length);
    regions_unlock(regions);
    if (!at)
        return error_set(err, EPROTO,
                         "lane %u: the peer sent %zu bytes for region %u offset %llu, which is not "
                         "open here or not as large",
                         lane->index, entry->length, entry->region,
                         (unsigned long long)entry->offset);
    memcpy(at, entry->bytes, entry->length);
    return 0;
}

static int loop_decode(struct loop_lane *lane, const struct outbox_entry *entry, struct error *err)
{
    const struct transport_params *params = &lane->link->destination.params;

    if (!params->decode)
        return error_set(err, EPROTO, "lane %u: the peer sent a blob and there is no decoder",
                         lane->index);
    return params->decode(params->decode_context, entry->bytes, entry->length, err);
}

static int loop_apply(struct loop_lane *lane, const struct outbox_entry *entry, struct error *err)
{
    lane->link->copied += entry->length;
    lane->link->frames++;
    switch (entry->kind) {
    case OUTBOX_PLACE:
        return loop_place(lane, entry, err);
    case OUTBOX_BLOB:
        return loop_decode(lane, entry, err);
    case OUTBOX_FENCE:
        return 0;
    }
    return error_set(err, EINVAL, "lane %u: unknown kind of transfer", lane->index);
}

static bool loop_running(struct loop_link *link)
{
    return !latch_ended(&link->source.latch) && !latch_ended(&link->destination.latch);
}

static void loop_sleep(struct loop_lane *lane)
{
    struct pollfd fd = {.fd = lane->queue->wake_fd, .events = POLLIN};

    if (outbox_fall_asleep(lane->queue, 0) && loop_running(lane->link))
        poll(&fd, 1, -1);
    outbox_wake_up(lane->queue);
}

static void *loop_lane_main(void *context)
{
    struct loop_lane *lane = context;
    struct loop_link *link = lane->link;
    struct error err = {0};

    thread_set_name("lane", (int)lane->index);
    while (loop_running(link)) {
        struct outbox_entry entry;

        if (!outbox_pending(lane->queue)) {
            loop_sleep(lane);
            continue;
        }
        entry = *outbox_entry(lane->queue, 0);
        if (loop_apply(lane, &entry, &err) < 0) {
            loop_end_both(&link->destination, lane->index, &err);
            break;
        }
        outbox_sent(&link->outbox, lane->queue, 1);
        if (entry.kind == OUTBOX_FENCE)
            outbox_acknowledge(&link->outbox, lane->queue, entry.offset, &err);
    }
    return NULL;
}

static int loop_start(struct loop_link *link, struct error *err)
{
    for (unsigned i = 0; i < link->outbox.lane_count; i++) {
        struct loop_lane *lane = &link->lanes[i];
        int result;

        *lane = (struct loop_lane){.link = link, .queue = &link->outbox.lanes[i], .index = i};
        result = pthread_create(&lane->thread, NULL, loop_lane_main, lane);
        if (result)
            return error_set_errno(err, result, "cannot start a thread for lane %u", i);
        link->running++;
    }
    return 0;
}

static unsigned loop_capabilities(const struct transport *t)
{
    (void)t;
    return 0;
}

static int loop_listen(struct transport *t, const struct address *at, uint16_t *port,
                       struct error *err)
{
    struct loop_end *end = end_of(t);
    int result = latch_check(&end->latch, err);

    (void)at;
    if (result < 0)
        return result;
    if (end->is_source)
        return error_set(err, EINVAL, "the source's end of a loop cannot listen");
    *port = 1;
    return 0;
}

static bool loop_is_connected(void *context)
{
    return ((struct loop_link *)context)->state == LOOP_CONNECTED;
}

static bool loop_is_accepting(void *context)
{
    return ((struct loop_link *)context)->state == LOOP_ACCEPTING;
}

/* Moves from one state to another, if that is still the state, and wakes whoever waits for it. */
static bool loop_change(struct loop_link *link, enum loop_state from, enum loop_state to)
{
    bool changed;

    pthread_mutex_lock(&link->lock);
    changed = link->state == (int)from;
    if (changed)
        link->state = to;
    pthread_mutex_unlock(&link->lock);
    latch_wake(&link->source.latch);
    latch_wake(&link->destination.latch);
    return changed;
}

static int loop_accept(struct transport *t, int timeout_ms, struct error *err)
{
    struct loop_end *end = end_of(t);
    struct loop_link *link = end->link;
    int result = latch_check(&end->latch, err);

    if (result < 0)
        return result;
    if (end->is_source || !loop_change(link, LOOP_CLOSED, LOOP_ACCEPTING))
        return error_set(err, EINVAL, "only a destination that has no lanes yet can accept them");
    latch_wait(&end->latch, loop_is_connected, link, timeout_ms);
    result = latch_check(&end->latch, err);
    if (!loop_change(link, LOOP_ACCEPTING, LOOP_CLOSED) || result < 0)
        return result;
    return error_set(err, ETIMEDOUT, "the source did not bind its lanes within %d ms", timeout_ms);
}

static int loop_check_binding(struct loop_link *link, struct error *err)
{
    const struct transport_params *ours = &link->source.params, *theirs = &link->destination.params;

    if (memcmp(ours->token, theirs->token, TRANSPORT_TOKEN_SIZE) != 0)
        return error_set(err, ECONNREFUSED,
                         "lane 0 was turned away: the peer serves another session");
    if (ours->epoch != theirs->epoch)
        return error_set(err, ECONNREFUSED, "lane 0 was turned away: epoch %u is not the peer's",
                         ours->epoch);
    if (ours->lanes != theirs->lanes)
        return error_set(err, ECONNREFUSED,
                         "lane 0 was turned away: the peer expects other than %u lanes",
                         ours->lanes);
    return 0;
}

static int loop_connect(struct transport *t, const struct address *peer, int timeout_ms,
                        struct error *err)
{
    struct loop_end *end = end_of(t);
    struct loop_link *link = end->link;
    int result = latch_check(&end->latch, err);

    (void)peer;
    if (result < 0)
        return result;
    if (!end->is_source || loop_is_connected(link))
        return error_set(err, EINVAL, "only a source that has no lanes yet can connect them");
    result = loop_check_binding(link, err);
    if (result < 0)
        return result;
    latch_wait(&end->latch, loop_is_accepting, link, timeout_ms);
    result = latch_check(&end->latch, err);
    if (result < 0)
        return result;
    if (!loop_change(link, LOOP_ACCEPTING, LOOP_CONNECTED))
        return error_set(err, ETIMEDOUT, "the destination did not accept within %d ms", timeout_ms);
    result = loop_start(link, err);
    if (result < 0)
        loop_end_both(end, 0, err);
    return result;
}

static int loop_open_region(struct transport *t, const struct transport_region *region,
                            struct error *err)
{
    struct loop_end *end = end_of(t);
    int result = latch_check(&end->latch, err);

    return result < 0 ? result : regions_open(&end->regions, region, err);
}

static int loop_close_region(struct transport *t, uint32_t id, struct error *err)
{
    struct loop_end *end = end_of(t);
    int result = latch_check(&end->latch, err);

    return result < 0 ? result : regions_close(&end->regions, id, err);
}

static void loop_hint(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    (void)t, (void)region, (void)offset, (void)length;
}

static int loop_check_source(struct loop_end *end, struct error *err)
{
    int result = latch_check(&end->latch, err);

    if (result < 0)
        return result;
    if (!end->is_source || !loop_is_connected(end->link))
        return error_set(err, ENOTCONN, "only a connected source can post");
    return 0;
}

static int loop_post(struct transport *t, const struct transfer *transfers, unsigned n,
                     struct error *err)
{
    struct loop_end *end = end_of(t);
    int result = loop_check_source(end, err);

    return result < 0 ? result : outbox_post(&end->link->outbox, &end->regions, transfers, n, err);
}

static int loop_kick(struct transport *t, struct error *err)
{
    struct loop_end *end = end_of(t);
    int result = loop_check_source(end, err);

    if (!result)
        outbox_kick(&end->link->outbox);
    return result;
}

static int loop_fence(struct transport *t, uint64_t id, struct error *err)
{
    struct loop_end *end = end_of(t);
    int result = loop_check_source(end, err);

    return result < 0 ? result : outbox_fence(&end->link->outbox, id, err);
}

static int loop_reap(struct transport *t, struct completion *completions, unsigned max,
                     int timeout_ms, struct error *err)
{
    struct loop_end *end = end_of(t);

    if (end->is_source)
        return outbox_reap(&end->link->outbox, completions, max, timeout_ms, err);
    return latch_await_end(&end->latch, timeout_ms, err);
}

static void loop_stats(const struct transport *t, struct transport_stats *stats)
{
    const struct loop_end *end = (const struct loop_end *)t;

    *stats = (struct transport_stats){0};
    if (!end->is_source)
        return;
    outbox_stats(&end->link->outbox, stats);
    stats->wire_bytes = end->link->copied;
    stats->frames = end->link->frames;
}

static bool loop_describe(const struct transport *t, struct transport_device *device)
{
    (void)t, (void)device;
    return false;
}

static void loop_shutdown(struct transport *t)
{
    struct loop_end *end = end_of(t);
    struct error cause = {0};

    error_set(&cause, ESHUTDOWN, "the transport was shut down");
    latch_shutdown(&end->latch);
    loop_end_both(end, 0, &cause);
}

static void loop_join(struct loop_link *link)
{
    pthread_mutex_lock(&link->lock);
    while (link->running)
        pthread_join(link->lanes[--link->running].thread, NULL);
    pthread_mutex_unlock(&link->lock);
}

static void end_destroy(struct loop_end *end)
{
    regions_destroy(&end->regions);
    latch_destroy(&end->latch);
}

static void loop_close(struct transport *t)
{
    struct loop_link *link = end_of(t)->link;
    bool last;

    loop_shutdown(t);
    loop_join(link);
    pthread_mutex_lock(&link->lock);
    last = --link->open == 0;
    pthread_mutex_unlock(&link->lock);
    if (!last)
        return;
    end_destroy(&link->source);
    end_destroy(&link->destination);
    outbox_destroy(&link->outbox);
    pthread_mutex_destroy(&link->lock);
    free(link);
}

static const struct transport_ops loop_ops = {
    .name = "loop",
    .capabilities = loop_capabilities,
    .listen = loop_listen,
    .accept = loop_accept,
    .connect = loop_connect,
    .open_region = loop_open_region,
    .close_region = loop_close_region,
    .will_need = loop_hint,
    .done_with = loop_hint,
    .post = loop_post,
    .kick = loop_kick,
    .fence = loop_fence,
    .reap = loop_reap,
    .stats = loop_stats,
    .describe = loop_describe,
    .shutdown = loop_shutdown,
    .close = loop_close,
};

static void end_init(struct loop_link *link, struct loop_end *end,
                     const struct transport_params *params)
{
    end->transport.ops = &loop_ops;
    end->link = link;
    end->is_source = end == &link->source;
    end->params = *params;
    latch_init(&end->latch);
    regions_init(&end->regions);
}

int loop_pair_new(const struct transport_params *source_params,
                  const struct transport_params *destination_params, struct transport **source,
                  struct transport **destination, struct error *err)
{
    struct loop_link *link = calloc(1, sizeof *link);
    int result;

    if (!link)
        return error_set(err, ENOMEM, "no memory for a loop transport");
    result =
        outbox_init(&link->outbox, source_params->lanes, OUTBOX_BYTES, &link->source.latch, err);
    if (result < 0) {
        free(link);
        return result;
    }
    pthread_mutex_init(&link->lock, NULL);
    link->open = 2;
    end_init(link, &link->source, source_params);
    end_init(link, &link->destination, destination_params);
    *source = &link->source.transport;
    *destination = &link->destination.transport;
    return 0;
}
