/* The source's lanes go to the destination, all at the same time:
 * address resolved -> route resolved -> queues made, connecting -> established. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

#include "transport/base/clock.h"
#include "transport/rdma/lane.h"
#include "transport/rdma/status.h"

enum { RESOLVE_MS = 2000 };

static int resolve(const struct address *peer, struct addrinfo **found, struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    char port[8];
    int result;

    snprintf(port, sizeof port, "%u", peer->port);
    result = getaddrinfo(peer->host, port, &hints, found);
    return result ? error_set(err, ENOENT, "cannot find the host \"%s\": %s; check its name",
                              peer->host, gai_strerror(result))
                  : 0;
}

static int lane_begin(struct rdma_lane *lane, struct sockaddr *to, int timeout_ms,
                      struct error *err)
{
    struct rdma *r = lane->rdma;

    struct rdma_cm_id *id;

    if (rdma_create_id(r->listening, &id, lane, RDMA_PS_TCP) < 0)
        return error_set_errno(err, errno, "lane %u: cannot make an id", lane->index);
    rdma_lane_set_options(r, id);
    pthread_mutex_lock(&r->lock);
    lane->id = id;
    pthread_mutex_unlock(&r->lock);
    if (rdma_resolve_addr(lane->id, NULL, to, timeout_ms) < 0)
        return error_set_errno(err, errno,
                               "lane %u: no RDMA device leads to the destination; see `rdma link` "
                               "(soft-RoCE: rdma link add rxe0 type rxe netdev INTERFACE), or use "
                               "tcp://",
                               lane->index);
    return 0;
}

static int lane_connect(struct rdma_lane *lane, struct error *err)
{
    struct rdma *r = lane->rdma;
    struct rdma_binding binding = {
        .epoch = r->params.epoch,
        .lane = (uint8_t)lane->index,
        .lanes = (uint8_t)r->params.lanes,
        .operation = r->params.operation,
        .registration = r->params.registration,
        .receives = (uint16_t)rdma_lane_receives(true),
    };
    uint8_t bytes[RDMA_BINDING_SIZE];
    struct rdma_conn_param connection;
    int result = rdma_lane_prepare(lane, lane->id, true, err);

    memcpy(binding.token, r->params.token, sizeof binding.token);
    rdma_binding_encode(&binding, bytes);
    if (!result)
        result = rdma_lane_connection(lane->id, bytes, sizeof bytes, &connection, err);
    if (!result && rdma_connect(lane->id, &connection) < 0)
        result = error_set_errno(err, errno, "lane %u: cannot connect", lane->index);
    return result;
}

static int lane_established(struct rdma_lane *lane, const struct rdma_conn_param *with,
                            struct rdma_answer *out, struct error *err)
{
    struct rdma_answer answer;
    int result = rdma_answer_decode(with->private_data, with->private_data_len, &answer, err);

    if (result < 0)
        return error_prefix(err, "lane %u", lane->index);
    if (answer.refusal != RDMA_ACCEPTED)
        return error_set(err, ECONNREFUSED, "lane %u: %s", lane->index,
                         rdma_refusal_text(answer.refusal));
    mailbox_set_credits(&lane->mail, answer.receives);
    *out = answer;
    return 1;
}

static int turned_away(struct rdma_lane *lane, const struct address *peer,
                       const struct rdma_cm_event *event, struct error *err)
{
    const struct rdma_conn_param *with = &event->param.conn;
    struct rdma_answer answer;
    struct error foreign = {0};

    if (event->event == RDMA_CM_EVENT_REJECTED && with->private_data &&
        rdma_answer_decode(with->private_data, with->private_data_len, &answer, &foreign) == 0)
        return error_set(err, ECONNREFUSED, "lane %u: %s turned it away: %s", lane->index,
                         peer->host, rdma_refusal_text(answer.refusal));
    return rdma_event_error(err, lane->index, peer->host, event->event, event->status);
}

/* Returns 1 when the lane is bound. */
static int lane_step(struct rdma_lane *lane, const struct address *peer,
                     const struct rdma_cm_event *event, struct rdma_answer *answer,
                     struct error *err)
{
    switch (event->event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
        if (rdma_resolve_route(lane->id, RESOLVE_MS) == 0)
            return 0;
        return error_set_errno(err, errno, "lane %u: no route to %s", lane->index, peer->host);
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
        return lane_connect(lane, err);
    case RDMA_CM_EVENT_ESTABLISHED:
        return lane_established(lane, &event->param.conn, answer, err);
    default:
        return turned_away(lane, peer, event, err);
    }
}

static int bind_all(struct rdma *r, const struct address *peer, uint64_t deadline,
                    struct rdma_answer *answer, struct error *err)
{
    unsigned bound = 0;

    while (bound < r->params.lanes) {
        struct rdma_cm_event *event;
        int result = rdma_bind_event(r, deadline, &event, err);

        if (result == -ETIMEDOUT) {
            error_clear(err);
            return error_set(err, ETIMEDOUT,
                             "%u of %u lanes reached %s port %u; see whether a firewall stops "
                             "RDMA (RoCE v2: UDP port 4791); soft-RoCE whose link was down "
                             "may have to be deleted and added again (`rdma link`)",
                             bound, r->params.lanes, peer->host, peer->port);
        }
        if (result < 0)
            return result;
        result = lane_step(event->id->context, peer, event, answer, err);
        rdma_ack_cm_event(event);
        if (result < 0)
            return result;
        bound += (unsigned)result;
    }
    return rdma_bind_finish(r, err);
}

int rdma_bind_source(struct rdma *r, const struct address *peer, int timeout_ms,
                     struct rdma_answer *answer, struct error *err)
{
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    struct addrinfo *found;
    int result = resolve(peer, &found, err);

    if (result < 0)
        return result;
    r->listening = rdma_events_open(err);
    if (!r->listening)
        result = -err->code;
    for (unsigned i = 0; i < r->params.lanes && !result; i++)
        result = lane_begin(&r->lanes[i], found->ai_addr, timeout_ms, err);
    freeaddrinfo(found);
    return result < 0 ? result : bind_all(r, peer, deadline, answer, err);
}
