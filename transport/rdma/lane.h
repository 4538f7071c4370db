/* Shared by the files of the rdma transport. */
#ifndef TRANSPORT_RDMA_LANE_H
#define TRANSPORT_RDMA_LANE_H

#include "transport/outbox.h"
#include "transport/rdma/mailbox.h"
#include "transport/rdma/message.h"
#include "transport/rdma/pieces.h"
#include "transport/rdma/queue_pair.h"
#include "transport/rdma/registrar.h"
#include "transport/transport.h"

struct rdma;
struct rdma_inbox; /* destination: what was registered for the source */

enum rdma_role { RDMA_NEW, RDMA_SOURCE, RDMA_DESTINATION };
enum rdma_lane_state { LANE_UNBOUND, LANE_CONNECTING, LANE_BOUND, LANE_LOST };

struct rdma_lane {
    struct rdma *rdma;
    unsigned index;
    pthread_t thread;
    struct rdma_event_channel *events; /* owned; NULL until the lane is bound */
    struct rdma_cm_id *id;             /* owned */
    enum rdma_lane_state state;        /* while binding */
    struct queue_pair queue;
    struct mailbox mail;
    /* Other threads leave here what the lane shall send, and wake it. */
    pthread_mutex_t lock, applying; /* applying: the destination writes into memory by itself */
    struct rdma_piece *mail_first, **mail_last; /* source: to be (de)registered by the peer */
    struct inbox_piece *replies;                /* destination: done, newest first */
    atomic_bool stuck;                          /* source: the next transfer's piece is not ready */
};

struct rdma {
    struct transport transport; /* first */
    struct transport_params params;
    enum rdma_role role;
    struct latch latch;
    struct regions regions;
    struct outbox outbox; /* its queues' wake_fds serve the destination's lanes too */
    struct registrar registrar;
    pthread_mutex_t lock;                 /* of queue pairs against shutdown, and of `device` */
    struct rdma_event_channel *listening; /* owned: events while lanes bind */
    struct rdma_cm_id *listener;          /* owned */
    struct ibv_pd *pd;                    /* owned; NULL until the first lane knows its device */
    struct rdma_pieces *pieces;           /* source */
    struct rdma_inbox *inbox;             /* destination */
    struct transport_device device;       /* fixed parts; under lock */
    bool described, accepted;
    int stop_fd;      /* eventfd: readable from the shutdown on */
    unsigned running; /* lane threads to join */
    struct rdma_lane lanes[TRANSPORT_MAX_LANES];
};

enum {
    RDMA_LEAST_PIECES = 4 << 20, /* bytes of pages that must fit below the pin limit */
    RDMA_LANE_BYTES = 16 << 20,  /* under way on a lane: several signals' worth */
};

/* lane.c: what both ends do with a lane. Errors have a text. */
struct rdma_event_channel *rdma_events_open(struct error *err); /* non-blocking; NULL on error */
/* Before an id connects or accepts: time-outs and traffic class. */
void rdma_lane_set_options(const struct rdma *r, struct rdma_cm_id *id);
/* Makes queues and mailbox on the id's device; the lane owns the id from now on. */
int rdma_lane_prepare(struct rdma_lane *lane, struct rdma_cm_id *id, bool source,
                      struct error *err);
unsigned rdma_lane_receives(bool source); /* messages that a lane's mailbox holds */
/* What to connect or accept with; `bytes` stay the caller's. */
int rdma_lane_connection(struct rdma_cm_id *id, const void *bytes, uint8_t size,
                         struct rdma_conn_param *out, struct error *err);
/* All lanes are connected: this one's events go to its own thread. */
int rdma_lane_bound(struct rdma_lane *lane, struct error *err);
/* Under rdma->lock, any thread: nothing comes in or goes out any more. The lane's thread, at its
 * end, tells the peer: the guest at the destination waits for the former and not for the latter. */
void rdma_lane_end(struct rdma_lane *lane);
/* Frees what it has on the device, its thread being gone. */
void rdma_lane_close_queues(struct rdma_lane *lane);
/* Frees all of it; it may be bound again. */
void rdma_lane_close(struct rdma_lane *lane);
/* 0, or -ECONNRESET when the peer has closed the lane. */
int rdma_lane_events(struct rdma_lane *lane, struct error *err);
/* What a failed completion means: the end of the transport, the peer's, or an error of its own. */
int rdma_lane_work_failed(struct rdma_lane *lane, const struct ibv_wc *wc, const char *operation,
                          struct error *err);
/* The lane's thread found nothing to do: spins, arms or sleeps, until a completion, an event, more
 * than `known` entries in the outbox, a wake-up, or timeout_ms. `wanted`: whether there is
 * something to do after all, asked once others know that this lane sleeps. -errno when the lane is
 * lost. */
int rdma_lane_rest(struct rdma_lane *lane, unsigned known, bool (*wanted)(void *context),
                   void *context, int timeout_ms, struct error *err);
/* Takes the messages that have come, `max` of them at most. Returns how many, or -errno. */
int rdma_lane_hear(struct rdma_lane *lane, unsigned max,
                   int (*hear)(void *context, const struct rdma_message *m, struct error *err),
                   void *context, struct error *err);
/* How many pieces may be registered at once: the device has others to serve. */
uint32_t rdma_most_pieces(const struct rdma *r);
/* How much memory pieces may have with REGISTER_CHUNK at this end: the pin limit without the
 * mailboxes. -EINVAL when too little is left. */
int rdma_piece_limit(const struct transport_params *params, bool source, uint64_t *limit,
                     struct error *err);

/* bind.c, bind_source.c, bind_destination.c. Block at most timeout_ms; the shutdown ends them. On
 * success every lane is connected and its mailbox has its credits. */
int rdma_bind_listen(struct rdma *r, const struct address *at, uint16_t *port, struct error *err);
int rdma_bind_destination(struct rdma *r, int timeout_ms, struct error *err);
/* *answer: the destination's, with what it can register. */
int rdma_bind_source(struct rdma *r, const struct address *peer, int timeout_ms,
                     struct rdma_answer *answer, struct error *err);
/* The next event while lanes bind, to be acknowledged by the caller. -ETIMEDOUT, -ESHUTDOWN. */
int rdma_bind_event(struct rdma *r, uint64_t deadline, struct rdma_cm_event **event,
                    struct error *err);
int rdma_bind_finish(struct rdma *r, struct error *err); /* all lanes are connected */
void rdma_bind_close(struct rdma *r);                    /* the listener and its events */

/* rdma.c: ends the transport with `cause`, once; wakes everyone. Any thread. */
void rdma_fail(struct rdma *r, const struct error *cause);

#endif
