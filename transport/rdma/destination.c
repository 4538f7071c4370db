/* The destination's end of a lane: registers what the source asks for, decodes, pulls what it
 * publishes, and acknowledges fences. Memory that the source's card writes it never sees. */
#include "transport/rdma/destination.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "transport/base/thread.h"

struct fence {
    uint64_t id, after; /* runs that must have been pulled */
};

struct destination {
    struct rdma_lane *lane;
    struct rdma *rdma;
    uint64_t published, pulled, told; /* runs, ever */
    uint64_t fences_set, fences_told;
    struct fence fences[OUTBOX_FENCES];
    /* The PUBLISH under way. */
    unsigned runs, next;
    uint32_t progress; /* bytes of the next run that are under way */
    uint8_t run_bytes[RDMA_MAX_RUNS * RDMA_RUN_SIZE];
};

static void on_work(void *context, const struct work *work)
{
    struct destination *d = context;

    if (work->buffer >= 0)
        mailbox_sent(&d->lane->mail, work->buffer);
    d->pulled += work->count;
}

static int completions(struct destination *d, struct error *err)
{
    struct ibv_wc failed;
    struct work work;
    int count = queue_pair_completed(&d->lane->queue, on_work, d, &failed, &work);

    return count < 0 ? rdma_lane_work_failed(d->lane, &failed,
                                             work.length ? "RDMA READ" : "sending a message", err)
                     : count;
}

static int decode(struct destination *d, const struct rdma_message *m, struct error *err)
{
    const struct transport_params *params = &d->rdma->params;
    int result;

    if (!params->decode)
        return error_set(err, EPROTO, "the peer sent a blob and there is no decoder");
    /* After the shutdown the guest may run, and nobody writes into it any more. */
    pthread_mutex_lock(&d->lane->applying);
    result = latch_check(&d->rdma->latch, err);
    if (!result)
        result = params->decode(params->decode_context, m->bytes, m->byte_count, err);
    pthread_mutex_unlock(&d->lane->applying);
    return result < 0 ? error_set(err, -result, "the decoder refused a blob") : 0;
}

static int set_fence(struct destination *d, uint64_t id, struct error *err)
{
    if (d->fences_set - d->fences_told == OUTBOX_FENCES)
        return error_set(err, EPROTO, "the source has set more than %d fences", OUTBOX_FENCES);
    d->fences[d->fences_set++ % OUTBOX_FENCES] = (struct fence){id, d->published};
    return 0;
}

static int begin_pull(struct destination *d, const struct rdma_message *m, struct error *err)
{
    if (d->rdma->params.operation != TRANSPORT_READ)
        return error_set(err, EPROTO, "the source published memory in a session that writes");
    memcpy(d->run_bytes, m->bytes, (size_t)m->count * RDMA_RUN_SIZE);
    d->runs = m->count;
    d->next = 0;
    d->published += m->count;
    return 0;
}

static int on_message(void *context, const struct rdma_message *m, struct error *err)
{
    struct destination *d = context;

    switch (m->type) {
    case RDMA_CREDIT:
        return 0;
    case RDMA_REGISTER:
        return inbox_register(d->lane, m, err);
    case RDMA_DEREGISTER:
        return inbox_deregister(d->lane, m, err);
    case RDMA_BLOB:
        return decode(d, m, err);
    case RDMA_FENCE:
        return set_fence(d, m->fence, err);
    case RDMA_PUBLISH:
        return begin_pull(d, m, err);
    default:
        return error_set(err, EPROTO, "the source sent a %s", rdma_message_name(m->type));
    }
}

/* One RDMA READ: of a run, or of as much of it as the device reads at once. */
static int pull(struct destination *d, struct error *err)
{
    struct queue_pair *queue = &d->lane->queue;
    struct ibv_send_wr wr = {.opcode = IBV_WR_RDMA_READ};
    struct work work = {.buffer = -1};
    struct ibv_sge bytes;
    struct rdma_run run;
    int result = rdma_run_decode(d->run_bytes + d->next * RDMA_RUN_SIZE, &run, err);

    if (!result)
        result = inbox_resolve(d->rdma, &run, &bytes.addr, &bytes.lkey, err);
    if (result < 0)
        return error_prefix(err, "lane %u", d->lane->index);
    bytes.length = run.length - d->progress;
    bytes.length = bytes.length < queue->max_message ? bytes.length : queue->max_message;
    bytes.addr += d->progress;
    wr.wr.rdma.remote_addr = run.address + d->progress;
    wr.wr.rdma.rkey = run.key;
    work.length = bytes.length;
    d->progress += bytes.length;
    if (d->progress == run.length) {
        work.count = 1;
        d->progress = 0;
        d->next++;
    }
    return queue_pair_add(queue, &wr, &bytes, &work, err);
}

static bool pulling(const struct destination *d)
{
    return d->next < d->runs;
}

static int pull_some(struct destination *d, struct error *err)
{
    int count = 0;

    for (; pulling(d) && queue_pair_room(&d->lane->queue); count++)
        if (pull(d, err) < 0)
            return -err->code;
    return count;
}

/* A PUBLISH is taken whole before what came behind it: so fences mean what they say. */
static int take_messages(struct destination *d, struct error *err)
{
    int total = 0, count = 1;

    while (count > 0) {
        count = pull_some(d, err);
        if (count >= 0 && !pulling(d)) {
            int heard = rdma_lane_hear(d->lane, 1, on_message, d, err);

            count = heard < 0 ? heard : count + heard;
        }
        total += count;
    }
    return count < 0 ? count : total;
}

static bool fence_due(const struct destination *d)
{
    return d->fences_told < d->fences_set &&
           d->fences[d->fences_told % OUTBOX_FENCES].after <= d->pulled;
}

/* What the source waits for: pulled runs before the fences behind them. */
static bool next_answer(struct destination *d, struct rdma_message *m)
{
    struct inbox_piece *piece;

    *m = (struct rdma_message){0};
    if (d->told < d->pulled) {
        m->type = RDMA_PULLED;
        m->count = (uint32_t)(d->pulled - d->told);
        d->told = d->pulled;
    } else if (fence_due(d)) {
        m->type = RDMA_FENCED;
        m->fence = d->fences[d->fences_told++ % OUTBOX_FENCES].id;
    } else if ((piece = inbox_next_reply(d->lane))) {
        bool gone = atomic_load(&piece->state) == INBOX_GONE;

        m->type = gone ? RDMA_DEREGISTERED : RDMA_REGISTERED;
        m->piece = piece->id;
        m->address = piece->address;
        m->key = piece->remote_key;
        atomic_store(&piece->state, gone ? INBOX_FREE : INBOX_READY);
    } else {
        return false;
    }
    return true;
}

static int answer(struct destination *d, struct error *err)
{
    struct mailbox *mail = &d->lane->mail;
    struct rdma_message m;
    int count = 0;

    for (; mailbox_ready(mail) && next_answer(d, &m); count++)
        if (mailbox_send(mail, &m, 0, err) < 0)
            return -err->code;
    return count;
}

static bool wanted(void *context)
{
    struct destination *d = context;

    return inbox_has_replies(d->lane) && mailbox_ready(&d->lane->mail);
}

static int step(struct destination *d, struct error *err)
{
    int found = completions(d, err), heard = 0, sent = 0;

    if (found >= 0)
        heard = take_messages(d, err);
    if (heard >= 0 && !err->code)
        sent = answer(d, err);
    if (err->code || mailbox_give_credit(&d->lane->mail, err) < 0 ||
        queue_pair_ring(&d->lane->queue, err) < 0)
        return -err->code;
    if (found + heard > 0)
        queue_pair_busy(&d->lane->queue);
    return found + heard + sent > 0 ? 0 : rdma_lane_rest(d->lane, 0, wanted, d, -1, err);
}

void *rdma_destination_main(void *context)
{
    struct rdma_lane *lane = context;
    struct destination *d = calloc(1, sizeof *d);
    struct error err = {0};

    thread_set_name("lane", (int)lane->index);
    if (!d) {
        error_set(&err, ENOMEM, "lane %u: no memory to receive", lane->index);
    } else {
        d->lane = lane;
        d->rdma = lane->rdma;
    }
    while (!err.code && !latch_ended(&lane->rdma->latch))
        step(d, &err);
    if (err.code)
        rdma_fail(lane->rdma, &err);
    rdma_disconnect(lane->id);
    free(d);
    return NULL;
}
