/* One connection's queues: work requests in batches, completions for few of them, sleep until
 * something happens. Used by the lane's thread alone once the lane is bound. */
#ifndef TRANSPORT_RDMA_QUEUE_PAIR_H
#define TRANSPORT_RDMA_QUEUE_PAIR_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>
#include <stdatomic.h>

#include "transport/base/error.h"

enum {
    QUEUE_PAIR_SENDS = 512, /* work requests under way, if the device has so many */
    QUEUE_PAIR_BATCH = 64,  /* work requests for one doorbell */
    QUEUE_PAIR_POLL = 32    /* completions fetched at once */
};

/* Of a lane; the lane's thread writes them, any thread reads. */
struct work_counts {
    atomic_uint_fast64_t posted, data, data_bytes, message_bytes, signalled, doorbells;
    atomic_uint_fast64_t served_bytes; /* that the peer has read here */
};

/* What a work request in the send queue was for; given back, in order, once it is complete. */
struct work {
    uint32_t length; /* bytes of regions that it moves; 0 for a message */
    uint32_t count;  /* the lane's own: questions that it asks, runs that end with it */
    int32_t buffer;  /* of the mailbox; -1: none */
};

struct queue_pair {
    struct rdma_cm_id *id; /* not owned; id->qp is made and destroyed here */
    struct ibv_comp_channel *channel;
    struct ibv_cq *send_cq, *receive_cq;
    unsigned depth;           /* of the send queue */
    uint64_t signal_bytes;    /* moved since the last signal before the next one */
    uint32_t max_message;     /* bytes of one work request */
    uint64_t added, returned; /* work requests */
    uint64_t unsignalled_bytes;
    unsigned unsignalled;
    struct work *works; /* ring of depth */
    unsigned batched;
    struct ibv_send_wr batch[QUEUE_PAIR_BATCH];
    struct ibv_sge pieces[QUEUE_PAIR_BATCH];
    unsigned spins, max_spins; /* looks in vain before the sleep; 0 where that would take the CPU
                                  from whoever completes the work */
    unsigned looks;            /* in vain, since something was found */
    bool armed;                /* the next completion makes the channel readable */
    unsigned send_events, receive_events; /* not yet acknowledged to the device */
    struct work_counts counts;
};

struct queue_pair_config {
    struct ibv_pd *pd;
    unsigned receives; /* length of the receive queue */
    uint64_t signal_bytes;
    uint64_t max_transfer; /* no work request need be larger */
};

/* Makes the queues on the device that `id` was resolved to, within that device's limits. -ENOMEM,
 * -EINVAL and others, with a text. */
int queue_pair_open(struct queue_pair *q, struct rdma_cm_id *id,
                    const struct queue_pair_config *config, struct error *err);
/* Destroys them; the connection's id stays. Fine when open failed or never was. */
void queue_pair_close(struct queue_pair *q);
/* Any thread, at once: nothing goes out or comes in any more (state ERROR). */
void queue_pair_kill(struct queue_pair *q);

/* Work requests that can still be added. */
unsigned queue_pair_room(const struct queue_pair *q);
/* Adds one to the batch; rings the doorbell first when that is full. `wr` without wr_id, next,
 * flags and sg_list; sge NULL: no bytes. Needs room. -errno of ibv_post_send. */
int queue_pair_add(struct queue_pair *q, const struct ibv_send_wr *wr, const struct ibv_sge *sge,
                   const struct work *work, struct error *err);
/* Rings the doorbell for what was added: the last of them tells when it is complete. */
int queue_pair_ring(struct queue_pair *q, struct error *err);

/* Completed work requests since the last call, in order, each by one call of `done`. Returns how
 * many; -1 when one failed: *failed is its completion, *work what it was for. */
int queue_pair_completed(struct queue_pair *q, void (*done)(void *context, const struct work *work),
                         void *context, struct ibv_wc *failed, struct work *work);

/* Called whenever completions were found, of either queue. */
void queue_pair_busy(struct queue_pair *q);
/* Called whenever nothing was found to do. 0: look again, because it pays to spin, or because the
 * device was asked for an event just now; 1: sleep. -errno of the device. */
int queue_pair_may_sleep(struct queue_pair *q, struct error *err);
/* Sleeps until a completion, readability of one of `fds` (`count` of them, at most 4), or
 * timeout_ms
 * (-1: no limit); revents of `fds` are set. -errno of poll. */
struct pollfd;
int queue_pair_sleep(struct queue_pair *q, struct pollfd *fds, unsigned count, int timeout_ms,
                     struct error *err);

#endif
