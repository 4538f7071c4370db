#include "transport/rdma/mailbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER_ALIGNMENT = 4096 };

size_t mailbox_bytes(const struct mailbox_config *config)
{
    return config->receives * config->receive_size + MAILBOX_SENDS * config->send_size;
}

static uint8_t *receive_buffer(const struct mailbox *m, uint64_t index)
{
    return m->buffers + index * m->receive_size;
}

static uint8_t *send_buffer(const struct mailbox *m, unsigned index)
{
    return m->buffers + m->receives * m->receive_size + index * m->send_size;
}

static int post_receive(struct mailbox *m, uint64_t index, struct error *err)
{
    struct ibv_sge piece = {
        .addr = (uintptr_t)receive_buffer(m, index),
        .length = (uint32_t)m->receive_size,
        .lkey = m->mr->lkey,
    };
    struct ibv_recv_wr wr = {.wr_id = index, .sg_list = &piece, .num_sge = 1}, *bad;
    int result = ibv_post_recv(m->queue->id->qp, &wr, &bad);

    return result ? error_set_errno(err, result, "cannot post a receive") : 0;
}

int mailbox_open(struct mailbox *m, struct queue_pair *queue, const struct mailbox_config *config,
                 struct error *err)
{
    int result = 0;

    memset(m, 0, sizeof *m);
    m->queue = queue;
    m->registrar = config->registrar;
    m->size = mailbox_bytes(config);
    m->receives = config->receives;
    m->receive_size = config->receive_size;
    m->send_size = config->send_size;
    m->buffers = aligned_alloc(BUFFER_ALIGNMENT, (m->size + BUFFER_ALIGNMENT - 1) /
                                                     BUFFER_ALIGNMENT * BUFFER_ALIGNMENT);
    if (!m->buffers)
        return error_set(err, ENOMEM, "no memory for a lane's messages");
    m->mr = registrar_register(m->registrar, config->pd, m->buffers, m->size,
                               IBV_ACCESS_LOCAL_WRITE, err);
    if (!m->mr)
        return -err->code;
    for (unsigned i = 0; i < MAILBOX_SENDS; i++)
        m->free[m->free_count++] = (uint8_t)i;
    for (unsigned i = 0; i < m->receives && !result; i++)
        result = post_receive(m, i, err);
    return result;
}

void mailbox_close(struct mailbox *m)
{
    registrar_deregister(m->registrar, m->mr);
    free(m->buffers);
    memset(m, 0, sizeof *m);
}

void mailbox_set_credits(struct mailbox *m, unsigned receives)
{
    m->credits = m->peer_receives = receives;
}

static bool can_send(const struct mailbox *m, unsigned credits)
{
    return m->credits >= credits && m->free_count && queue_pair_room(m->queue);
}

bool mailbox_ready(const struct mailbox *m)
{
    return can_send(m, 2);
}

uint8_t *mailbox_payload(struct mailbox *m)
{
    return send_buffer(m, m->free[m->free_count - 1]) + RDMA_HEADER_SIZE;
}

int mailbox_send(struct mailbox *m, const struct rdma_message *message, unsigned count,
                 struct error *err)
{
    unsigned buffer = m->free[--m->free_count];
    uint8_t *bytes = send_buffer(m, buffer);
    struct rdma_message stamped = *message;
    struct ibv_send_wr wr = {.opcode = IBV_WR_SEND};
    struct work work = {.count = count, .buffer = (int)buffer};
    struct ibv_sge piece = {.addr = (uintptr_t)bytes, .lkey = m->mr->lkey};

    stamped.credits = (uint16_t)m->owed;
    m->owed = 0;
    m->credits--;
    piece.length = (uint32_t)rdma_message_encode(&stamped, bytes);
    if (message->type == RDMA_BLOB)
        piece.length += message->byte_count;
    if (message->type == RDMA_PUBLISH)
        piece.length += message->count * RDMA_RUN_SIZE;
    return queue_pair_add(m->queue, &wr, &piece, &work, err);
}

int mailbox_give_credit(struct mailbox *m, struct error *err)
{
    const struct rdma_message credit = {.type = RDMA_CREDIT};

    if (m->owed < m->receives / 2 || !can_send(m, 1))
        return 0;
    return mailbox_send(m, &credit, 0, err);
}

void mailbox_sent(struct mailbox *m, int buffer)
{
    m->free[m->free_count++] = (uint8_t)buffer;
}

int mailbox_take(struct mailbox *m, const struct ibv_wc *completion, struct rdma_message *message,
                 struct error *err)
{
    int result = rdma_message_decode(receive_buffer(m, completion->wr_id), completion->byte_len,
                                     message, err);

    if (result < 0)
        return result;
    if (message->credits > m->peer_receives - m->credits)
        return error_set(err, EPROTO, "the peer gave back more credits than it was owed");
    m->credits += message->credits;
    return 0;
}

int mailbox_done(struct mailbox *m, const struct ibv_wc *completion, struct error *err)
{
    m->owed++;
    return post_receive(m, completion->wr_id, err);
}
