/* Messages on a lane: registered buffers, receives that are always posted, and credits, so that no
 * message ever finds the peer without a receive.
 *
 * A message takes one credit; the last one is kept for a CREDIT message, which is sent when half of
 * the peer's credits are owed to it and no other message carries them. */
#ifndef TRANSPORT_RDMA_MAILBOX_H
#define TRANSPORT_RDMA_MAILBOX_H

#include "transport/rdma/message.h"
#include "transport/rdma/queue_pair.h"
#include "transport/rdma/registrar.h"

enum { MAILBOX_SENDS = 8 };

struct mailbox {
    struct queue_pair *queue;
    struct registrar *registrar;
    struct ibv_mr *mr;
    uint8_t *buffers;  /* receives, then sends */
    size_t size;       /* of all buffers */
    unsigned receives; /* posted here */
    size_t receive_size, send_size;
    unsigned credits;       /* messages the peer can take */
    unsigned peer_receives; /* what it had at first */
    unsigned owed;          /* credits to give back */
    unsigned free_count;
    uint8_t free[MAILBOX_SENDS];
};

struct mailbox_config {
    struct ibv_pd *pd;
    struct registrar *registrar; /* counts what is registered here, too */
    unsigned receives;
    size_t receive_size, send_size; /* of the largest message each way, header included */
};

/* Bytes that mailbox_open registers. */
size_t mailbox_bytes(const struct mailbox_config *config);
/* Makes the buffers and posts the receives. -ENOMEM and others. */
int mailbox_open(struct mailbox *m, struct queue_pair *queue, const struct mailbox_config *config,
                 struct error *err);
/* After queue_pair_close. Fine when open failed or never was. */
void mailbox_close(struct mailbox *m);
/* The peer's receives, learned when the lane bound. */
void mailbox_set_credits(struct mailbox *m, unsigned receives);

/* A message can be sent now: there are a credit, a buffer and room in the queue. */
bool mailbox_ready(const struct mailbox *m);
/* Where the payload of the next message (BLOB, PUBLISH) is to be written, behind room for its
 * header. Needs mailbox_ready. */
uint8_t *mailbox_payload(struct mailbox *m);
/* Adds a message to the queue's batch; `count` comes back with its work. Its payload, if
 * it has one, is in mailbox_payload already. Needs mailbox_ready. */
int mailbox_send(struct mailbox *m, const struct rdma_message *message, unsigned count,
                 struct error *err);
/* Sends a CREDIT message when it is due and possible. */
int mailbox_give_credit(struct mailbox *m, struct error *err);
/* A message's work request has completed: its buffer is free again. */
void mailbox_sent(struct mailbox *m, int buffer);

/* Takes a completed receive: decodes it and counts its credits. -EPROTO with a text. */
int mailbox_take(struct mailbox *m, const struct ibv_wc *completion, struct rdma_message *message,
                 struct error *err);
/* Posts the receive of `completion` anew: `message` is invalid from now on. */
int mailbox_done(struct mailbox *m, const struct ibv_wc *completion, struct error *err);

#endif
