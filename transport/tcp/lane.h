/* Inside the tcp transport: the transport, its lanes, and who owns which field. */
#ifndef TRANSPORT_TCP_LANE_H
#define TRANSPORT_TCP_LANE_H

#include <stdatomic.h>

#include "transport/latch.h"
#include "transport/outbox.h"
#include "transport/regions.h"
#include "transport/tcp/frame.h"

enum tcp_role { TCP_NEW, TCP_SOURCE, TCP_DESTINATION };

struct tcp_lane {
    struct tcp *tcp;
    unsigned index;
    int socket; /* -1 until bound; changed under tcp->lock, closed after the thread was joined */
    pthread_t thread;
    /* Written by the lane's thread (before it runs: by the engine's), read by stats. */
    atomic_uint_fast64_t wire_bytes, frames, system_calls;
};

struct tcp {
    struct transport transport; /* first */
    struct transport_params params;
    struct latch latch;
    struct regions regions;
    struct outbox outbox;
    int stop_fd;          /* eventfd, readable from shutdown on: ends what waits for connections */
    int listener;         /* engine; -1 when not listening */
    atomic_int role;      /* enum tcp_role; set once all lanes are bound */
    unsigned running;     /* engine: threads to join */
    pthread_mutex_t lock; /* lanes[].socket against shutdown; taken last */
    struct tcp_lane lanes[TRANSPORT_MAX_LANES];
};

/* Binding, engine's thread (bind.c). On success every lane has a socket with its options set. */
int tcp_bind_source(struct tcp *tcp, const struct address *peer, int timeout_ms, struct error *err);
int tcp_bind_destination(struct tcp *tcp, int timeout_ms, struct error *err);

/* Thread functions; the argument is the lane. They end with the transport, or end it. */
void *tcp_sender_main(void *lane);   /* source: sender.c */
void *tcp_receiver_main(void *lane); /* destination: receiver.c */

/* Ends the transport because of `cause` and wakes all its threads. Any thread. (tcp.c) */
void tcp_fail(struct tcp *tcp, const struct error *cause);

#endif
