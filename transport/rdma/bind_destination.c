/* The destination takes the lanes of its session, in any order, and turns others away. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

#include "transport/base/clock.h"
#include "transport/base/log.h"
#include "transport/rdma/lane.h"

enum { BACKLOG = 2 * TRANSPORT_MAX_LANES };

int rdma_bind_listen(struct rdma *r, const struct address *at, uint16_t *port, struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_PASSIVE};
    struct addrinfo *found;
    char service[8];
    int result;

    snprintf(service, sizeof service, "%u", at->port);
    result = getaddrinfo(at->host, service, &hints, &found);
    if (result)
        return error_set(err, ENOENT, "cannot find the address \"%s\": %s", at->host,
                         gai_strerror(result));
    r->listening = rdma_events_open(err);
    if (!r->listening)
        result = -err->code;
    else if (rdma_create_id(r->listening, &r->listener, NULL, RDMA_PS_TCP) < 0)
        result = error_set_errno(err, errno, "cannot make an id to listen with");
    else if (rdma_bind_addr(r->listener, found->ai_addr) < 0)
        result = error_set_errno(err, errno,
                                 "cannot listen for RDMA on %s; see `rdma link` for whether a "
                                 "device has that address",
                                 at->host);
    else if (rdma_listen(r->listener, BACKLOG) < 0)
        result = error_set_errno(err, errno, "cannot listen for RDMA on %s", at->host);
    freeaddrinfo(found);
    if (!result && port)
        *port = ntohs(rdma_get_src_port(r->listener));
    return result;
}

/* The first lane's settings are the session's; all others must say the same. */
static enum rdma_refusal judge(struct rdma *r, const struct rdma_binding *b, bool first)
{
    const struct transport_params *p = &r->params;

    if (memcmp(b->token, p->token, sizeof b->token) || b->epoch != p->epoch)
        return RDMA_REFUSED_STRANGER;
    if (b->lanes != p->lanes)
        return RDMA_REFUSED_MISMATCH;
    if (b->lane >= p->lanes || r->lanes[b->lane].state != LANE_UNBOUND)
        return RDMA_REFUSED_LANE;
    if (!first && (b->operation != p->operation || b->registration != p->registration))
        return RDMA_REFUSED_MISMATCH;
    return RDMA_ACCEPTED;
}

static bool none_bound(const struct rdma *r)
{
    for (unsigned i = 0; i < r->params.lanes; i++)
        if (r->lanes[i].state != LANE_UNBOUND)
            return false;
    return true;
}

static int lane_accept(struct rdma_lane *lane, const struct rdma_conn_param *with,
                       struct error *err)
{
    struct rdma_answer answer = {
        .receives = (uint16_t)rdma_lane_receives(false),
        .most_pieces = rdma_most_pieces(lane->rdma),
    };
    uint8_t bytes[RDMA_ANSWER_SIZE];
    struct rdma_conn_param connection;
    int result = rdma_piece_limit(&lane->rdma->params, false, &answer.piece_limit, err);

    rdma_answer_encode(&answer, bytes);
    if (!result)
        result = rdma_lane_connection(lane->id, bytes, sizeof bytes, &connection, err);
    if (result < 0)
        return result;
    if (connection.initiator_depth > with->initiator_depth)
        connection.initiator_depth = with->initiator_depth;
    if (connection.responder_resources > with->responder_resources)
        connection.responder_resources = with->responder_resources;
    if (rdma_accept(lane->id, &connection) < 0)
        return error_set_errno(err, errno, "lane %u: cannot accept", lane->index);
    return 0;
}

static void turn_away(struct rdma_cm_id *id, enum rdma_refusal why)
{
    struct rdma_answer answer = {.refusal = why};
    uint8_t bytes[RDMA_ANSWER_SIZE];

    rdma_answer_encode(&answer, bytes);
    log_line(LOG_DEBUG, "rdma: turned a lane away: %s", rdma_refusal_text(why));
    rdma_reject(id, bytes, sizeof bytes);
}

/* *unwanted: the id, when nobody wants it: it can be destroyed once its event is acknowledged. An
 * error is of this end: the lane was the right one, and could not be made. */
static int take_request(struct rdma *r, const struct rdma_cm_event *event,
                        struct rdma_cm_id **unwanted, struct error *err)
{
    const struct rdma_conn_param *with = &event->param.conn;
    bool first = none_bound(r);
    struct rdma_binding b;
    struct rdma_lane *lane;
    enum rdma_refusal refusal = rdma_binding_decode(with->private_data, with->private_data_len, &b);

    if (refusal == RDMA_ACCEPTED)
        refusal = judge(r, &b, first);
    if (refusal != RDMA_ACCEPTED) {
        turn_away(event->id, refusal);
        *unwanted = event->id;
        return 0;
    }
    lane = &r->lanes[b.lane];
    lane->state = LANE_CONNECTING;
    r->params.operation = b.operation;
    r->params.registration = b.registration;
    rdma_lane_set_options(r, event->id);
    if (rdma_lane_prepare(lane, event->id, false, err) == 0 && lane_accept(lane, with, err) == 0) {
        mailbox_set_credits(&lane->mail, b.receives);
        return 0;
    }
    turn_away(event->id, RDMA_REFUSED_TROUBLE);
    lane->state = LANE_LOST;
    return -err->code;
}

/* Lanes that are lost before all are bound leave their places to others. */
static int take_event(struct rdma *r, struct rdma_cm_event *event, unsigned *bound,
                      struct error *err)
{
    struct rdma_lane *lane = event->id->context;
    struct rdma_cm_id *unwanted = NULL;
    int result = 0;

    if (event->event == RDMA_CM_EVENT_CONNECT_REQUEST) {
        result = take_request(r, event, &unwanted, err);
    } else if (lane && event->event == RDMA_CM_EVENT_ESTABLISHED) {
        lane->state = LANE_BOUND;
        ++*bound;
    } else if (lane) {
        *bound -= lane->state == LANE_BOUND;
        lane->state = LANE_LOST;
    }
    rdma_ack_cm_event(event);
    if (unwanted)
        rdma_destroy_id(unwanted);
    for (unsigned i = 0; i < r->params.lanes; i++)
        if (r->lanes[i].state == LANE_LOST)
            rdma_lane_close(&r->lanes[i]);
    return result;
}

int rdma_bind_destination(struct rdma *r, int timeout_ms, struct error *err)
{
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    unsigned bound = 0;

    while (bound < r->params.lanes) {
        struct rdma_cm_event *event;
        int result = rdma_bind_event(r, deadline, &event, err);

        if (result == -ETIMEDOUT) {
            error_clear(err);
            return error_set(err, ETIMEDOUT, "%u of %u lanes came within %d ms", bound,
                             r->params.lanes, timeout_ms);
        }
        if (!result)
            result = take_event(r, event, &bound, err);
        if (result < 0)
            return result;
    }
    return rdma_bind_finish(r, err);
}
