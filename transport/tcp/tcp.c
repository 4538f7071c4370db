#include "transport/tcp/tcp.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/base/address.h"
#include "transport/base/thread.h"
#include "transport/tcp/lane.h"

enum { DEFAULT_DEAD_AFTER_MS = 5000 };

static struct tcp *tcp_of(struct transport *t)
{
    return (struct tcp *)t;
}

/* Wakes whatever sleeps: threads in socket calls, threads waiting for work, connect and accept. */
static void tcp_wake_all(struct tcp *tcp)
{
    pthread_mutex_lock(&tcp->lock);
    for (unsigned i = 0; i < tcp->params.lanes; i++)
        if (tcp->lanes[i].socket >= 0)
            shutdown(tcp->lanes[i].socket, SHUT_RDWR);
    pthread_mutex_unlock(&tcp->lock);
    outbox_kick(&tcp->outbox);
}

void tcp_fail(struct tcp *tcp, const struct error *cause)
{
    if (latch_fail(&tcp->latch, cause))
        tcp_wake_all(tcp);
}

static int tcp_start(struct tcp *tcp, enum tcp_role role, struct error *err)
{
    for (; tcp->running < tcp->params.lanes; tcp->running++) {
        struct tcp_lane *lane = &tcp->lanes[tcp->running];
        int result = thread_start(&lane->thread,
                                  role == TCP_SOURCE ? tcp_sender_main : tcp_receiver_main, lane);

        if (result) {
            error_set_errno(err, -result, "cannot start a thread for lane %u", lane->index);
            tcp_fail(tcp, err);
            return result;
        }
    }
    tcp->role = role;
    return 0;
}

static unsigned tcp_capabilities(const struct transport *t)
{
    (void)t;
    return TRANSPORT_HOLDS_SOURCE;
}

static int tcp_listen(struct transport *t, const struct address *at, uint16_t *port,
                      struct error *err)
{
    struct tcp *tcp = tcp_of(t);
    int result = latch_check(&tcp->latch, err);

    if (result < 0)
        return result;
    if (tcp->role != TCP_NEW || tcp->listener >= 0)
        return error_set(err, EINVAL, "this end listens already, or has its lanes");
    result = address_listen(at, port, err);
    if (result < 0)
        return result;
    tcp->listener = result;
    /* A connection that is gone again before accept must not block it. */
    if (fcntl(tcp->listener, F_SETFL, O_NONBLOCK) < 0)
        return error_set_errno(err, errno, "cannot listen for lanes");
    return 0;
}

static int tcp_accept(struct transport *t, int timeout_ms, struct error *err)
{
    struct tcp *tcp = tcp_of(t);
    int result = latch_check(&tcp->latch, err);

    if (result < 0)
        return result;
    if (tcp->role != TCP_NEW || tcp->listener < 0)
        return error_set(err, EINVAL, "accept comes once, after listen");
    result = tcp_bind_destination(tcp, timeout_ms, err);
    if (result < 0)
        return result;
    close(tcp->listener);
    tcp->listener = -1;
    return tcp_start(tcp, TCP_DESTINATION, err);
}

static int tcp_connect(struct transport *t, const struct address *peer, int timeout_ms,
                       struct error *err)
{
    struct tcp *tcp = tcp_of(t);
    int result = latch_check(&tcp->latch, err);

    if (result < 0)
        return result;
    if (tcp->role != TCP_NEW || tcp->lanes[0].socket >= 0)
        return error_set(err, EINVAL, "connect comes once");
    result = tcp_bind_source(tcp, peer, timeout_ms, err);
    return result < 0 ? result : tcp_start(tcp, TCP_SOURCE, err);
}

static int tcp_open_region(struct transport *t, const struct transport_region *region,
                           struct error *err)
{
    struct tcp *tcp = tcp_of(t);
    int result = latch_check(&tcp->latch, err);

    return result < 0 ? result : regions_open(&tcp->regions, region, err);
}

static int tcp_close_region(struct transport *t, uint32_t id, struct error *err)
{
    struct tcp *tcp = tcp_of(t);
    int result = latch_check(&tcp->latch, err);

    return result < 0 ? result : regions_close(&tcp->regions, id, err);
}

static void tcp_hint(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    (void)t, (void)region, (void)offset, (void)length;
}

static int tcp_check_source(struct tcp *tcp, struct error *err)
{
    int result = latch_check(&tcp->latch, err);

    if (!result && tcp->role != TCP_SOURCE)
        result = error_set(err, ENOTCONN, "only a connected source can post");
    return result;
}

static int tcp_post(struct transport *t, const struct transfer *transfers, unsigned n,
                    struct error *err)
{
    struct tcp *tcp = tcp_of(t);
    int result = tcp_check_source(tcp, err);

    return result < 0 ? result : outbox_post(&tcp->outbox, &tcp->regions, transfers, n, err);
}

static int tcp_kick(struct transport *t, struct error *err)
{
    struct tcp *tcp = tcp_of(t);
    int result = tcp_check_source(tcp, err);

    if (!result)
        outbox_kick(&tcp->outbox);
    return result;
}

static int tcp_fence(struct transport *t, uint64_t id, struct error *err)
{
    struct tcp *tcp = tcp_of(t);
    int result = tcp_check_source(tcp, err);

    return result < 0 ? result : outbox_fence(&tcp->outbox, id, err);
}

static int tcp_reap(struct transport *t, struct completion *completions, unsigned max,
                    int timeout_ms, struct error *err)
{
    struct tcp *tcp = tcp_of(t);

    if (tcp->role == TCP_SOURCE)
        return outbox_reap(&tcp->outbox, completions, max, timeout_ms, err);
    return latch_await_end(&tcp->latch, timeout_ms, err);
}

static void tcp_stats(const struct transport *t, struct transport_stats *stats)
{
    const struct tcp *tcp = (const struct tcp *)t;

    *stats = (struct transport_stats){0};
    outbox_stats(&tcp->outbox, stats);
    for (unsigned i = 0; i < tcp->params.lanes; i++) {
        stats->wire_bytes += tcp->lanes[i].wire_bytes;
        stats->frames += tcp->lanes[i].frames;
        stats->system_calls += tcp->lanes[i].system_calls;
    }
}

static bool tcp_describe(const struct transport *t, struct transport_device *device)
{
    (void)t, (void)device;
    return false;
}

static void tcp_shutdown(struct transport *t)
{
    struct tcp *tcp = tcp_of(t);
    uint64_t one = 1;

    latch_shutdown(&tcp->latch);
    /* Fails only when the counter is about to overflow, and is readable then. */
    if (write(tcp->stop_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        return;
    tcp_wake_all(tcp);
}

static void tcp_free(struct tcp *tcp)
{
    for (unsigned i = 0; i < tcp->params.lanes; i++)
        if (tcp->lanes[i].socket >= 0)
            close(tcp->lanes[i].socket);
    if (tcp->listener >= 0)
        close(tcp->listener);
    outbox_destroy(&tcp->outbox);
    pthread_mutex_destroy(&tcp->lock);
    regions_destroy(&tcp->regions);
    latch_destroy(&tcp->latch);
    close(tcp->stop_fd);
    free(tcp);
}

static void tcp_close(struct transport *t)
{
    struct tcp *tcp = tcp_of(t);

    tcp_shutdown(t);
    while (tcp->running)
        pthread_join(tcp->lanes[--tcp->running].thread, NULL);
    tcp_free(tcp);
}

static const struct transport_ops tcp_ops = {
    .name = "tcp",
    .capabilities = tcp_capabilities,
    .listen = tcp_listen,
    .accept = tcp_accept,
    .connect = tcp_connect,
    .open_region = tcp_open_region,
    .close_region = tcp_close_region,
    .will_need = tcp_hint,
    .done_with = tcp_hint,
    .post = tcp_post,
    .kick = tcp_kick,
    .fence = tcp_fence,
    .reap = tcp_reap,
    .stats = tcp_stats,
    .describe = tcp_describe,
    .shutdown = tcp_shutdown,
    .close = tcp_close,
};

static void tcp_init(struct tcp *tcp, const struct transport_params *params)
{
    tcp->transport.ops = &tcp_ops;
    tcp->params = *params;
    if (!tcp->params.dead_after_ms)
        tcp->params.dead_after_ms = DEFAULT_DEAD_AFTER_MS;
    tcp->listener = -1;
    latch_init(&tcp->latch);
    regions_init(&tcp->regions);
    pthread_mutex_init(&tcp->lock, NULL);
    for (unsigned i = 0; i < params->lanes; i++) {
        tcp->lanes[i].tcp = tcp;
        tcp->lanes[i].index = i;
        tcp->lanes[i].socket = -1;
    }
}

int tcp_transport_new(const struct transport_params *params, struct transport **out,
                      struct error *err)
{
    struct tcp *tcp = calloc(1, sizeof *tcp);
    int result;

    if (!tcp)
        return error_set(err, ENOMEM, "no memory for a tcp transport");
    tcp_init(tcp, params);
    tcp->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (tcp->stop_fd < 0) {
        result = error_set_errno(err, errno, "cannot make an eventfd");
        goto free_tcp;
    }
    result = outbox_init(&tcp->outbox, params->lanes, OUTBOX_BYTES, &tcp->latch, err);
    if (result < 0)
        goto close_stop_fd;
    *out = &tcp->transport;
    return 0;

close_stop_fd:
    close(tcp->stop_fd);
free_tcp:
    pthread_mutex_destroy(&tcp->lock);
    regions_destroy(&tcp->regions);
    latch_destroy(&tcp->latch);
    free(tcp);
    return result;
}
