#include "transport/rdma/rdma.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/base/thread.h"
#include "transport/rdma/destination.h"
#include "transport/rdma/device.h"
#include "transport/rdma/source.h"

enum { DEFAULT_DEAD_AFTER_MS = 5000 };

static struct rdma *rdma_of(struct transport *t)
{
    return (struct rdma *)t;
}

/* From here on no card takes or gives a byte, and everyone who sleeps looks at the latch. */
static void end_lanes(struct rdma *r)
{
    uint64_t one = 1;

    pthread_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->params.lanes; i++)
        rdma_lane_end(&r->lanes[i]);
    pthread_mutex_unlock(&r->lock);
    outbox_kick(&r->outbox);
    /* Fails only when the counter is about to overflow, and is readable then. */
    if (write(r->stop_fd, &one, sizeof one) < 0)
        return;
}

void rdma_fail(struct rdma *r, const struct error *cause)
{
    if (latch_fail(&r->latch, cause))
        end_lanes(r);
}

static void remember_device(struct rdma *r)
{
    pthread_mutex_lock(&r->lock);
    device_read(r->lanes[0].id, &r->device);
    device_read_counters(&r->device, true);
    r->device.max_work_requests = r->lanes[0].queue.depth;
    r->device.operation = r->params.operation;
    r->device.registration = r->params.registration;
    r->described = true;
    pthread_mutex_unlock(&r->lock);
}

static int start(struct rdma *r, enum rdma_role role, struct error *err)
{
    remember_device(r);
    r->role = role;
    for (; r->running < r->params.lanes; r->running++) {
        struct rdma_lane *lane = &r->lanes[r->running];
        int result = thread_start(
            &lane->thread, role == RDMA_SOURCE ? rdma_source_main : rdma_destination_main, lane);

        if (result) {
            error_set_errno(err, -result, "cannot start a thread for lane %u", lane->index);
            rdma_fail(r, err);
            return result;
        }
    }
    return latch_check(&r->latch, err);
}

static unsigned rdma_capabilities(const struct transport *t)
{
    (void)t;
    return TRANSPORT_ONE_SIDED | TRANSPORT_PINS_MEMORY | TRANSPORT_HOLDS_SOURCE;
}

static int rdma_do_listen(struct transport *t, const struct address *at, uint16_t *port,
                          struct error *err)
{
    struct rdma *r = rdma_of(t);
    int result = latch_check(&r->latch, err);

    if (result < 0)
        return result;
    if (r->role != RDMA_NEW || r->listening)
        return error_set(err, EINVAL, "this end listens already, or has its lanes");
    return rdma_bind_listen(r, at, port, err);
}

static int rdma_do_accept(struct transport *t, int timeout_ms, struct error *err)
{
    struct rdma *r = rdma_of(t);
    int result = latch_check(&r->latch, err);

    if (result < 0)
        return result;
    if (r->role != RDMA_NEW || !r->listener || r->accepted)
        return error_set(err, EINVAL, "accept comes once, after listen");
    r->accepted = true;
    result = rdma_bind_destination(r, timeout_ms, err);
    if (!result)
        result = inbox_open(r, err);
    if (!result)
        result = registrar_start(&r->registrar, registrar_threads(), err);
    return result < 0 ? result : start(r, RDMA_DESTINATION, err);
}

static int rdma_do_connect(struct transport *t, const struct address *peer, int timeout_ms,
                           struct error *err)
{
    struct rdma *r = rdma_of(t);
    struct rdma_answer answer;
    int result = latch_check(&r->latch, err);

    if (result < 0)
        return result;
    if (r->role != RDMA_NEW || r->listening || r->lanes[0].id)
        return error_set(err, EINVAL, "connect comes once");
    result = rdma_bind_source(r, peer, timeout_ms, &answer, err);
    if (!result)
        result = rdma_source_begin(r, &answer, err);
    return result < 0 ? result : start(r, RDMA_SOURCE, err);
}

static int rdma_open_region(struct transport *t, const struct transport_region *region,
                            struct error *err)
{
    struct rdma *r = rdma_of(t);
    int result = latch_check(&r->latch, err);

    return result < 0 ? result : regions_open(&r->regions, region, err);
}

static int rdma_close_region(struct transport *t, uint32_t id, struct error *err)
{
    struct rdma *r = rdma_of(t);
    int result = latch_check(&r->latch, err);

    if (!result)
        result = regions_close(&r->regions, id, err);
    if (!result && r->inbox)
        inbox_close_region(r, id);
    if (!result && r->pieces)
        pieces_forget(r->pieces, id);
    return result;
}

static void rdma_will_need(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    struct rdma *r = rdma_of(t);
    struct error err = {0};

    if (r->role == RDMA_SOURCE && rdma_source_will_need(r, region, offset, length, &err) < 0)
        rdma_fail(r, &err);
}

static void rdma_done_with(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    struct rdma *r = rdma_of(t);

    if (r->role == RDMA_SOURCE)
        pieces_cool(r->pieces, region, offset, length);
}

static int check_source(struct rdma *r, struct error *err)
{
    int result = latch_check(&r->latch, err);

    if (!result && r->role != RDMA_SOURCE)
        result = error_set(err, ENOTCONN, "only a connected source can post");
    return result;
}

static int rdma_post(struct transport *t, const struct transfer *transfers, unsigned n,
                     struct error *err)
{
    struct rdma *r = rdma_of(t);
    int result = check_source(r, err);

    return result < 0 ? result : rdma_source_post(r, transfers, n, err);
}

static int rdma_kick(struct transport *t, struct error *err)
{
    struct rdma *r = rdma_of(t);
    int result = check_source(r, err);

    if (!result)
        outbox_kick(&r->outbox);
    return result;
}

static int rdma_fence(struct transport *t, uint64_t id, struct error *err)
{
    struct rdma *r = rdma_of(t);
    int result = check_source(r, err);

    return result < 0 ? result : outbox_fence(&r->outbox, id, err);
}

static int rdma_reap(struct transport *t, struct completion *completions, unsigned max,
                     int timeout_ms, struct error *err)
{
    struct rdma *r = rdma_of(t);

    if (r->role == RDMA_SOURCE)
        return outbox_reap(&r->outbox, completions, max, timeout_ms, err);
    return latch_await_end(&r->latch, timeout_ms, err);
}

static void rdma_stats(const struct transport *t, struct transport_stats *stats)
{
    const struct rdma *r = (const struct rdma *)t;

    *stats = (struct transport_stats){0};
    outbox_stats(&r->outbox, stats);
    for (unsigned i = 0; i < r->params.lanes; i++) {
        const struct work_counts *counts = &r->lanes[i].queue.counts;

        stats->wire_bytes += counts->message_bytes + counts->served_bytes +
                             (r->role == RDMA_SOURCE ? counts->data_bytes : 0);
        stats->frames += counts->posted;
        stats->system_calls += counts->doorbells;
    }
}

static bool rdma_describe(const struct transport *t, struct transport_device *device)
{
    struct rdma *r = (struct rdma *)t;
    bool described;

    pthread_mutex_lock(&r->lock);
    described = r->described;
    if (described)
        device_read_counters(&r->device, false);
    *device = r->device;
    pthread_mutex_unlock(&r->lock);
    for (unsigned i = 0; i < r->params.lanes; i++) {
        const struct work_counts *counts = &r->lanes[i].queue.counts;

        device->work_requests += counts->posted;
        device->data_work_requests += counts->data;
        device->data_bytes += counts->data_bytes;
        device->signalled += counts->signalled;
    }
    device->registrations = r->registrar.registrations;
    device->registered_bytes = r->registrar.registered_bytes;
    device->register_ns = r->registrar.register_ns;
    device->pinned_bytes = r->registrar.pinned_bytes;
    device->pinned_peak_bytes = r->registrar.pinned_peak;
    return described;
}

static void rdma_shutdown(struct transport *t)
{
    struct rdma *r = rdma_of(t);

    latch_shutdown(&r->latch);
    end_lanes(r);
    for (unsigned i = 0; i < r->params.lanes; i++) {
        pthread_mutex_lock(&r->lanes[i].applying);
        pthread_mutex_unlock(&r->lanes[i].applying);
    }
}

static void rdma_free(struct rdma *r)
{
    registrar_stop(&r->registrar);
    rdma_source_end(r);
    inbox_close(r);
    for (unsigned i = 0; i < r->params.lanes; i++)
        rdma_lane_close_queues(&r->lanes[i]);
    if (r->pd)
        ibv_dealloc_pd(r->pd);
    /* The last id of a device that was removed takes the device with it. */
    for (unsigned i = 0; i < r->params.lanes; i++) {
        rdma_lane_close(&r->lanes[i]);
        pthread_mutex_destroy(&r->lanes[i].lock);
        pthread_mutex_destroy(&r->lanes[i].applying);
    }
    rdma_bind_close(r);
    registrar_destroy(&r->registrar);
    outbox_destroy(&r->outbox);
    pthread_mutex_destroy(&r->lock);
    regions_destroy(&r->regions);
    latch_destroy(&r->latch);
    close(r->stop_fd);
    free(r);
}

static void rdma_close(struct transport *t)
{
    struct rdma *r = rdma_of(t);

    rdma_shutdown(t);
    while (r->running)
        pthread_join(r->lanes[--r->running].thread, NULL);
    rdma_free(r);
}

static const struct transport_ops rdma_ops = {
    .name = "rdma",
    .capabilities = rdma_capabilities,
    .listen = rdma_do_listen,
    .accept = rdma_do_accept,
    .connect = rdma_do_connect,
    .open_region = rdma_open_region,
    .close_region = rdma_close_region,
    .will_need = rdma_will_need,
    .done_with = rdma_done_with,
    .post = rdma_post,
    .kick = rdma_kick,
    .fence = rdma_fence,
    .reap = rdma_reap,
    .stats = rdma_stats,
    .describe = rdma_describe,
    .shutdown = rdma_shutdown,
    .close = rdma_close,
};

static void rdma_init(struct rdma *r, const struct transport_params *params)
{
    r->transport.ops = &rdma_ops;
    r->params = *params;
    if (!r->params.dead_after_ms)
        r->params.dead_after_ms = DEFAULT_DEAD_AFTER_MS;
    latch_init(&r->latch);
    regions_init(&r->regions);
    registrar_init(&r->registrar);
    pthread_mutex_init(&r->lock, NULL);
    for (unsigned i = 0; i < params->lanes; i++) {
        r->lanes[i].rdma = r;
        r->lanes[i].index = i;
        r->lanes[i].mail_last = &r->lanes[i].mail_first;
        pthread_mutex_init(&r->lanes[i].lock, NULL);
        pthread_mutex_init(&r->lanes[i].applying, NULL);
    }
}

int rdma_transport_new(const struct transport_params *params, struct transport **out,
                       struct error *err)
{
    struct rdma *r;
    uint64_t limit;
    int result = rdma_piece_limit(params, true, &limit, err);

    if (result < 0)
        return result;
    r = calloc(1, sizeof *r);
    if (!r)
        return error_set(err, ENOMEM, "no memory for an rdma transport");
    rdma_init(r, params);
    r->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    result = r->stop_fd < 0
                 ? error_set_errno(err, errno, "cannot make an eventfd")
                 : outbox_init(&r->outbox, params->lanes, RDMA_LANE_BYTES, &r->latch, err);
    if (result < 0) {
        rdma_free(r);
        return result;
    }
    *out = &r->transport;
    return 0;
}
