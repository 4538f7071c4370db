#include "transport/rdma/queue_pair.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/base/log.h"

enum {
    MAX_SPINS = 256,
    EVENT_BATCH = 64,
    MAX_FDS = 4,
};

static unsigned least(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

static int open_completions(struct queue_pair *q, unsigned receives, struct error *err)
{
    struct ibv_context *verbs = q->id->verbs;

    q->channel = ibv_create_comp_channel(verbs);
    if (!q->channel)
        return error_set_errno(err, errno, "cannot make a completion channel");
    if (fcntl(q->channel->fd, F_SETFL, O_NONBLOCK) < 0)
        return error_set_errno(err, errno, "cannot make a completion channel non-blocking");
    q->send_cq = ibv_create_cq(verbs, (int)q->depth, NULL, q->channel, 0);
    if (!q->send_cq)
        return error_set_errno(err, errno, "cannot make a completion queue");
    q->receive_cq = ibv_create_cq(verbs, (int)receives, NULL, q->channel, 0);
    if (!q->receive_cq)
        return error_set_errno(err, errno, "cannot make a completion queue");
    return 0;
}

static int open_pair(struct queue_pair *q, const struct queue_pair_config *config,
                     struct error *err)
{
    struct ibv_qp_init_attr attributes = {
        .send_cq = q->send_cq,
        .recv_cq = q->receive_cq,
        .qp_type = IBV_QPT_RC,
        .cap =
            {
                .max_send_wr = q->depth,
                .max_recv_wr = config->receives,
                .max_send_sge = 1,
                .max_recv_sge = 1,
            },
    };

    if (rdma_create_qp(q->id, config->pd, &attributes) < 0)
        return error_set_errno(err, errno, "cannot make a queue pair");
    return 0;
}

static int read_limits(struct queue_pair *q, const struct queue_pair_config *config,
                       struct ibv_device_attr *device, struct error *err)
{
    struct ibv_port_attr port;
    int result = ibv_query_device(q->id->verbs, device);

    if (!result)
        result = ibv_query_port(q->id->verbs, q->id->port_num, &port);
    if (result)
        return error_set_errno(err, result, "cannot ask the device for its limits");
    q->depth =
        least(QUEUE_PAIR_SENDS, least((unsigned)device->max_qp_wr, (unsigned)device->max_cqe));
    if (q->depth < config->receives)
        return error_set(err, EINVAL, "the device's queues hold %u work requests, %u are needed",
                         q->depth, config->receives);
    q->max_message =
        (uint32_t)(port.max_msg_sz < config->max_transfer ? port.max_msg_sz : config->max_transfer);
    return 0;
}

int queue_pair_open(struct queue_pair *q, struct rdma_cm_id *id,
                    const struct queue_pair_config *config, struct error *err)
{
    struct ibv_device_attr device;
    int result;

    memset(q, 0, sizeof *q);
    q->id = id;
    q->signal_bytes = config->signal_bytes;
    q->max_spins = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? MAX_SPINS : 0;
    result = read_limits(q, config, &device, err);
    if (result < 0)
        return result;
    q->works = calloc(q->depth, sizeof *q->works);
    if (!q->works)
        return error_set(err, ENOMEM, "no memory for a send queue");
    result = open_completions(q, config->receives, err);
    if (!result)
        result = open_pair(q, config, err);
    return result < 0 ? error_prefix(err, "device %s", ibv_get_device_name(id->verbs->device)) : 0;
}

static void close_completions(struct ibv_cq *cq, unsigned events)
{
    if (!cq)
        return;
    if (events)
        ibv_ack_cq_events(cq, events);
    ibv_destroy_cq(cq);
}

void queue_pair_close(struct queue_pair *q)
{
    if (q->id && q->id->qp)
        rdma_destroy_qp(q->id);
    close_completions(q->send_cq, q->send_events);
    close_completions(q->receive_cq, q->receive_events);
    if (q->channel)
        ibv_destroy_comp_channel(q->channel);
    free(q->works);
    q->id = NULL;
    q->send_cq = q->receive_cq = NULL;
    q->channel = NULL;
    q->works = NULL;
}

void queue_pair_kill(struct queue_pair *q)
{
    struct ibv_qp_attr attributes = {.qp_state = IBV_QPS_ERR};

    int result = q->id && q->id->qp ? ibv_modify_qp(q->id->qp, &attributes, IBV_QP_STATE) : 0;

    if (result)
        log_line(LOG_ERROR, "device %s: a queue pair could not be stopped: %s",
                 ibv_get_device_name(q->id->verbs->device), strerror(result));
}

unsigned queue_pair_room(const struct queue_pair *q)
{
    return q->depth - (unsigned)(q->added - q->returned);
}

/* Seldom enough to cost little, often enough that the queue does not run dry; and the last one that
 * fits always tells, because nothing can be added behind it. */
static bool signal_due(const struct queue_pair *q)
{
    return q->unsignalled >= q->depth / 4 || q->unsignalled_bytes >= q->signal_bytes ||
           !queue_pair_room(q);
}

static void signal_completion(struct queue_pair *q, struct ibv_send_wr *wr)
{
    wr->send_flags |= IBV_SEND_SIGNALED;
    q->unsignalled = 0;
    q->unsignalled_bytes = 0;
    q->counts.signalled++;
}

static int ring(struct queue_pair *q, bool last, struct error *err)
{
    struct ibv_send_wr *bad;
    int result;

    if (!q->batched)
        return 0;
    for (unsigned i = 0; i < q->batched; i++)
        q->batch[i].next = i + 1 < q->batched ? &q->batch[i + 1] : NULL;
    if (last && q->unsignalled)
        signal_completion(q, &q->batch[q->batched - 1]);
    result = ibv_post_send(q->id->qp, q->batch, &bad);
    q->counts.doorbells++;
    q->batched = 0;
    if (result)
        return error_set_errno(err, result, "device %s: cannot post work requests",
                               ibv_get_device_name(q->id->verbs->device));
    return 0;
}

int queue_pair_add(struct queue_pair *q, const struct ibv_send_wr *wr, const struct ibv_sge *sge,
                   const struct work *work, struct error *err)
{
    /* Not as soon as it is full: the last one of all must still be here to ask for a completion. */
    int result = q->batched == QUEUE_PAIR_BATCH ? ring(q, false, err) : 0;
    struct ibv_send_wr *slot = &q->batch[q->batched];

    if (result < 0)
        return result;
    *slot = *wr;
    if (sge) {
        q->pieces[q->batched] = *sge;
        slot->sg_list = &q->pieces[q->batched];
        slot->num_sge = 1;
    }
    q->works[q->added % q->depth] = *work;
    q->added++;
    slot->wr_id = q->added;
    q->unsignalled++;
    q->unsignalled_bytes += work->length;
    q->counts.posted++;
    q->counts.data += work->length != 0;
    q->counts.data_bytes += work->length;
    q->counts.message_bytes += sge && !work->length ? sge->length : 0;
    if (signal_due(q))
        signal_completion(q, slot);
    q->batched++;
    return 0;
}

int queue_pair_ring(struct queue_pair *q, struct error *err)
{
    return ring(q, true, err);
}

static unsigned give_back(struct queue_pair *q, uint64_t until,
                          void (*done)(void *context, const struct work *work), void *context)
{
    unsigned count = 0;

    for (; q->returned < until; count++) {
        struct work work = q->works[q->returned % q->depth];

        q->returned++;
        done(context, &work);
    }
    return count;
}

int queue_pair_completed(struct queue_pair *q, void (*done)(void *context, const struct work *work),
                         void *context, struct ibv_wc *failed, struct work *work)
{
    struct ibv_wc completions[QUEUE_PAIR_POLL];
    int total = 0, count;

    do {
        count = ibv_poll_cq(q->send_cq, QUEUE_PAIR_POLL, completions);
        if (count < 0) {
            *failed = (struct ibv_wc){.status = IBV_WC_FATAL_ERR};
            *work = (struct work){.buffer = -1};
            return -1;
        }
        for (int i = 0; i < count; i++) {
            if (completions[i].status != IBV_WC_SUCCESS) {
                *failed = completions[i];
                *work = q->works[(completions[i].wr_id - 1) % q->depth];
                return -1;
            }
            total += (int)give_back(q, completions[i].wr_id, done, context);
        }
    } while (count == QUEUE_PAIR_POLL);
    return total;
}

void queue_pair_busy(struct queue_pair *q)
{
    if (q->looks)
        q->spins = least(2 * q->spins + 1, q->max_spins);
    q->looks = 0;
    q->armed = false;
}

static int arm(struct queue_pair *q, struct error *err)
{
    int result = ibv_req_notify_cq(q->send_cq, 0);

    if (!result)
        result = ibv_req_notify_cq(q->receive_cq, 0);
    q->armed = true;
    return result ? error_set_errno(err, result, "cannot ask for completion events") : 0;
}

/* Acknowledged to the device in batches, because that takes a lock. */
static void drain_events(struct queue_pair *q)
{
    struct ibv_cq *cq;
    void *context;

    while (ibv_get_cq_event(q->channel, &cq, &context) == 0) {
        unsigned *events = cq == q->send_cq ? &q->send_events : &q->receive_events;

        if (++*events == EVENT_BATCH) {
            ibv_ack_cq_events(cq, EVENT_BATCH);
            *events = 0;
        }
    }
}

int queue_pair_may_sleep(struct queue_pair *q, struct error *err)
{
    if (q->armed)
        return 1;
    if (q->looks < q->spins) {
        q->looks++;
        __builtin_ia32_pause();
        return 0;
    }
    q->spins /= 2;
    return arm(q, err);
}

int queue_pair_sleep(struct queue_pair *q, struct pollfd *fds, unsigned count, int timeout_ms,
                     struct error *err)
{
    struct pollfd all[MAX_FDS + 1] = {{.fd = q->channel->fd, .events = POLLIN}};

    memcpy(all + 1, fds, count * sizeof *fds);
    if (poll(all, count + 1, timeout_ms) < 0 && errno != EINTR)
        return error_set_errno(err, errno, "cannot wait for completions");
    memcpy(fds, all + 1, count * sizeof *fds);
    if (all[0].revents)
        drain_events(q);
    q->looks = 0;
    q->armed = false;
    return 0;
}
