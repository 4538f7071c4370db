#include "transport/rdma/lane.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>

#include "transport/base/clock.h"
#include "transport/rdma/device.h"
#include "transport/rdma/status.h"

enum {
    SOURCE_RECEIVES = 64,
    DESTINATION_RECEIVES = 16,
    SOURCE_SIGNAL_BYTES = RDMA_LANE_BYTES / 4,
    DESTINATION_SIGNAL_BYTES = 1 << 20, /* each lets go of as much at the source */
    MAX_READS = 8, /* under way on a lane, if both devices can: 1 MiB, for what is lost on the way
                      is read again together with all behind it */
    READ_BYTES = 128 << 10,
    ACK_TIMEOUT = 16, /* 4.096 us * 2^16 = 268 ms */
    ACK_RETRIES = 7,  /* so a peer is dead after 2 s, or 8 s where the device stretches time-outs */
    PORT_LOOKS = 5,
    PORT_LOOK_MS = 20,
    RNR_RETRIES = 3, /* never needed: the credits see to that */
};

static struct mailbox_config mail_config(struct rdma *r, bool source)
{
    return (struct mailbox_config){
        .pd = r ? r->pd : NULL,
        .registrar = r ? &r->registrar : NULL,
        .receives = source ? SOURCE_RECEIVES : DESTINATION_RECEIVES,
        .receive_size = source ? RDMA_TO_SOURCE_SIZE : RDMA_TO_DESTINATION_SIZE,
        .send_size = source ? RDMA_TO_DESTINATION_SIZE : RDMA_TO_SOURCE_SIZE,
    };
}

unsigned rdma_lane_receives(bool source)
{
    return source ? SOURCE_RECEIVES : DESTINATION_RECEIVES;
}

int rdma_piece_limit(const struct transport_params *params, bool source, uint64_t *limit,
                     struct error *err)
{
    struct mailbox_config config = mail_config(NULL, source);
    uint64_t pins = params->pin_limit ? params->pin_limit : TRANSPORT_DEFAULT_PIN_LIMIT;
    uint64_t mail = params->lanes * mailbox_bytes(&config);

    *limit = UINT64_MAX;
    if (params->registration == TRANSPORT_REGISTER_ALL)
        return 0;
    if (pins < mail + RDMA_LEAST_PIECES)
        return error_set(
            err, EINVAL,
            "a pin limit of %llu KiB is too small: %u lanes need %llu KiB for messages "
            "and %d KiB for pages; use a larger --rdma-pin-limit or fewer --lanes",
            (unsigned long long)pins >> 10, params->lanes, (unsigned long long)mail >> 10,
            RDMA_LEAST_PIECES >> 10);
    *limit = pins - mail;
    return 0;
}

uint32_t rdma_most_pieces(const struct rdma *r)
{
    struct ibv_device_attr device;
    uint32_t most;

    if (ibv_query_device(r->pd->context, &device) || device.max_mr <= 0)
        return 2 * TRANSPORT_MAX_LANES;
    most = ((uint32_t)device.max_mr + 1) / 2;
    return most < RDMA_MAX_PIECES ? most : RDMA_MAX_PIECES;
}

/* All lanes are on one device: what is registered once is good for all. */
static int take_device(struct rdma *r, struct rdma_cm_id *id, struct error *err)
{
    if (!r->pd) {
        r->pd = ibv_alloc_pd(id->verbs);
        if (!r->pd)
            return error_set_errno(err, errno, "device %s: cannot make a protection domain",
                                   ibv_get_device_name(id->verbs->device));
    }
    if (r->pd->context != id->verbs)
        return error_set(err, EINVAL, "the lanes lead through different devices, %s and %s",
                         ibv_get_device_name(r->pd->context->device),
                         ibv_get_device_name(id->verbs->device));
    return 0;
}

int rdma_lane_prepare(struct rdma_lane *lane, struct rdma_cm_id *id, bool source, struct error *err)
{
    struct rdma *r = lane->rdma;
    struct queue_pair_config config = {
        .receives = rdma_lane_receives(source),
        .signal_bytes = source ? SOURCE_SIGNAL_BYTES : DESTINATION_SIGNAL_BYTES,
        .max_transfer = source ? TRANSPORT_MAX_TRANSFER : READ_BYTES,
    };
    struct mailbox_config mail;
    int result;

    pthread_mutex_lock(&r->lock);
    lane->id = id;
    id->context = lane;
    /* Under the lock: what the shutdown did not see must not come to life behind it. */
    result = latch_check(&r->latch, err);
    if (!result)
        result = take_device(r, id, err);
    config.pd = r->pd;
    mail = mail_config(r, source);
    if (!result)
        result = queue_pair_open(&lane->queue, id, &config, err);
    pthread_mutex_unlock(&r->lock);
    return result < 0 ? result : mailbox_open(&lane->mail, &lane->queue, &mail, err);
}

static uint8_t least(int a, int b)
{
    return (uint8_t)(a < b ? a : b);
}

int rdma_lane_connection(struct rdma_cm_id *id, const void *bytes, uint8_t size,
                         struct rdma_conn_param *out, struct error *err)
{
    struct ibv_device_attr device;
    int result = ibv_query_device(id->verbs, &device);

    if (result)
        return error_set_errno(err, result, "cannot ask device %s for its limits",
                               ibv_get_device_name(id->verbs->device));
    *out = (struct rdma_conn_param){
        .private_data = bytes,
        .private_data_len = size,
        .responder_resources = least(MAX_READS, device.max_qp_rd_atom),
        .initiator_depth = least(MAX_READS, device.max_qp_init_rd_atom),
        .flow_control = 1,
        .retry_count = ACK_RETRIES,
        .rnr_retry_count = RNR_RETRIES,
    };
    return 0;
}

void rdma_lane_set_options(const struct rdma *r, struct rdma_cm_id *id)
{
    uint8_t timeout = ACK_TIMEOUT, service = (uint8_t)(r->params.dscp << 2);

    /* Kernels that lack the first keep a longer time-out of their own. */
    rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof timeout);
    if (r->params.dscp)
        rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &service, sizeof service);
}

struct rdma_event_channel *rdma_events_open(struct error *err)
{
    struct rdma_event_channel *events = rdma_create_event_channel();

    if (!events) {
        error_set_errno(err, errno,
                        "cannot open the connection manager of RDMA (/dev/infiniband/rdma_cm); "
                        "load the module rdma_ucm, and see that this user may open it");
        return NULL;
    }
    if (fcntl(events->fd, F_SETFL, O_NONBLOCK) == 0)
        return events;
    error_set_errno(err, errno, "cannot make an event channel non-blocking");
    rdma_destroy_event_channel(events);
    return NULL;
}

int rdma_lane_bound(struct rdma_lane *lane, struct error *err)
{
    int result;

    lane->events = rdma_events_open(err);
    if (!lane->events)
        return -err->code;
    pthread_mutex_lock(&lane->rdma->lock);
    result = rdma_migrate_id(lane->id, lane->events);
    pthread_mutex_unlock(&lane->rdma->lock);
    return result < 0
               ? error_set_errno(err, errno, "lane %u: cannot take over its events", lane->index)
               : 0;
}

void rdma_lane_end(struct rdma_lane *lane)
{
    queue_pair_kill(&lane->queue);
}

void rdma_lane_close_queues(struct rdma_lane *lane)
{
    pthread_mutex_lock(&lane->rdma->lock);
    queue_pair_close(&lane->queue);
    pthread_mutex_unlock(&lane->rdma->lock);
    mailbox_close(&lane->mail);
}

void rdma_lane_close(struct rdma_lane *lane)
{
    struct rdma_cm_id *id;

    rdma_lane_close_queues(lane);
    pthread_mutex_lock(&lane->rdma->lock);
    id = lane->id;
    lane->id = NULL;
    pthread_mutex_unlock(&lane->rdma->lock);
    if (id)
        rdma_destroy_id(id);
    if (lane->events)
        rdma_destroy_event_channel(lane->events);
    lane->events = NULL;
    lane->state = LANE_UNBOUND;
}

/* A connection also ends without the peer's doing, when the link of this host goes down; the port
 * may say so a moment later. */
static int closed_by_peer(const struct rdma_lane *lane, struct error *err)
{
    struct ibv_context *verbs = lane->id->verbs;
    const char *state = device_port_state(verbs, lane->id->port_num);

    for (unsigned i = 0; i < PORT_LOOKS && !strcmp(state, "active"); i++) {
        if (latch_ended(&lane->rdma->latch))
            break;
        clock_sleep_until(clock_now() + PORT_LOOK_MS * NS_PER_MS);
        state = device_port_state(verbs, lane->id->port_num);
    }

    if (strcmp(state, "active") != 0)
        return error_set(err, ENETDOWN,
                         "lane %u was lost: the port of %s is %s; see `rdma link` and `ip link`",
                         lane->index, ibv_get_device_name(verbs->device), state);
    return error_set(err, ECONNRESET, "lane %u closed by peer", lane->index);
}

int rdma_lane_events(struct rdma_lane *lane, struct error *err)
{
    struct rdma_cm_event *event;
    int result = 0;

    while (!result && rdma_get_cm_event(lane->events, &event) == 0) {
        if (event->event == RDMA_CM_EVENT_DISCONNECTED)
            result = closed_by_peer(lane, err);
        else if (event->event == RDMA_CM_EVENT_DEVICE_REMOVAL)
            result = rdma_event_error(err, lane->index, "the peer", event->event, event->status);
        rdma_ack_cm_event(event);
    }
    return result;
}

/* A flush only tells that something else has ended the connection: most often the peer. */
int rdma_lane_work_failed(struct rdma_lane *lane, const struct ibv_wc *wc, const char *operation,
                          struct error *err)
{
    struct ibv_context *verbs = lane->id->verbs;

    if (latch_check(&lane->rdma->latch, err) < 0 || rdma_lane_events(lane, err) < 0)
        return -err->code;
    if (wc->status == IBV_WC_WR_FLUSH_ERR)
        return closed_by_peer(lane, err);
    return rdma_status_error(err, lane->index, operation, ibv_get_device_name(verbs->device), wc,
                             device_port_state(verbs, lane->id->port_num));
}

int rdma_lane_rest(struct rdma_lane *lane, unsigned known, bool (*wanted)(void *context),
                   void *context, int timeout_ms, struct error *err)
{
    struct rdma *r = lane->rdma;
    struct outbox_lane *queue = &r->outbox.lanes[lane->index];
    struct pollfd fds[] = {
        {.fd = queue->wake_fd, .events = POLLIN},
        {.fd = lane->events->fd, .events = POLLIN},
    };
    int result = queue_pair_may_sleep(&lane->queue, err);

    if (result <= 0)
        return result;
    if (!outbox_fall_asleep(queue, known))
        return 0;
    result = 0;
    if (!latch_ended(&r->latch) && !wanted(context))
        result = queue_pair_sleep(&lane->queue, fds, 2, timeout_ms, err);
    outbox_wake_up(queue);
    if (!result && fds[1].revents)
        result = rdma_lane_events(lane, err);
    return result;
}

/* When the connection breaks, receives are flushed; why it broke, a work request knows. */
static int receive_failed(struct rdma_lane *lane, const struct ibv_wc *completion,
                          struct error *err)
{
    struct ibv_wc sent;

    while (completion->status == IBV_WC_WR_FLUSH_ERR &&
           ibv_poll_cq(lane->queue.send_cq, 1, &sent) > 0)
        if (sent.status != IBV_WC_SUCCESS && sent.status != IBV_WC_WR_FLUSH_ERR)
            return rdma_lane_work_failed(lane, &sent, "a work request", err);
    return rdma_lane_work_failed(lane, completion, "receiving a message", err);
}

int rdma_lane_hear(struct rdma_lane *lane, unsigned max,
                   int (*hear)(void *context, const struct rdma_message *m, struct error *err),
                   void *context, struct error *err)
{
    struct ibv_wc completions[QUEUE_PAIR_POLL];
    unsigned fetched = max < QUEUE_PAIR_POLL ? max : QUEUE_PAIR_POLL;
    int count = ibv_poll_cq(lane->queue.receive_cq, (int)fetched, completions), result = 0;

    if (count < 0)
        return error_set(err, EIO,
                         "lane %u: the device's completion queue cannot be read; see the "
                         "kernel's log",
                         lane->index);
    for (int i = 0; i < count && !result; i++) {
        struct rdma_message message;

        if (completions[i].status != IBV_WC_SUCCESS)
            return receive_failed(lane, &completions[i], err);
        result = mailbox_take(&lane->mail, &completions[i], &message, err);
        if (!result)
            result = hear(context, &message, err);
        if (!result)
            result = mailbox_done(&lane->mail, &completions[i], err);
        if (result < 0 && err->code == EPROTO)
            error_prefix(err, "lane %u", lane->index);
    }
    return result < 0 ? result : count;
}
