/* The source's end of a lane: makes work requests of what waits in the outbox, in order, as far as
 * its pieces are registered, and gives back what has been moved.
 *
 * With WRITE this card moves the bytes, and its completions say so; with READ the destination is
 * told of runs, pulls them, and its PULLED messages say so. Either way there is one queue of
 * flights. */
#include "transport/rdma/source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "transport/base/clock.h"
#include "transport/base/thread.h"

enum {
    FLIGHTS = OUTBOX_ENTRIES,
    LOOKS_FOR_DEATH = 8, /* in dead_after_ms */
};

/* Something posted, in order. Of a run of memory: which piece it uses, and for how many transfers;
 * a message uses none, and is complete once all before it is. */
struct flight {
    struct rdma_piece *piece;
    uint32_t length;
    uint16_t users;   /* transfers that need the piece no more with this one */
    uint16_t entries; /* of the outbox that end with it */
};

struct source {
    struct rdma_lane *lane;
    struct rdma *rdma;
    struct outbox_lane *queue;
    bool pulled; /* TRANSPORT_READ */

    unsigned taken;         /* entries that are in flights, behind those sent */
    uint64_t seen;          /* entries there were at the last look, ever */
    uint64_t progress;      /* bytes of the next entry that are in flights already */
    struct rdma_piece *at;  /* the piece its next byte is in; NULL: ask the entry */
    uint64_t flown, landed; /* flights, ever */
    unsigned runs_flying;   /* flights with a piece */
    struct flight flights[FLIGHTS];

    /* Fences the peer has acknowledged before the local completions before them were seen. */
    uint64_t fences_posted, fences_heard, fences_told;
    uint64_t heard[OUTBOX_FENCES];

    int asked; /* questions whose SEND is complete, minus answers */
    bool due;  /* at the last look, the peer owed an answer */
    bool heard_any;
    uint64_t heard_at; /* when it last said something, or began to owe */
};

/* A run of adjacent bytes inside one piece. */
struct run {
    struct rdma_piece *piece;
    uint64_t offset; /* in the region */
    uint32_t length;
    uint16_t users, entries;
};

static void land(struct source *s)
{
    struct flight *flight = &s->flights[s->landed++ % FLIGHTS];

    if (flight->piece) {
        atomic_fetch_sub_explicit(&flight->piece->users, flight->users, memory_order_release);
        s->runs_flying--;
        if (s->pulled)
            s->lane->queue.counts.served_bytes += flight->length;
    }
    if (flight->entries) {
        outbox_sent(&s->rdma->outbox, s->queue, flight->entries);
        s->taken -= flight->entries;
    }
}

static void land_messages(struct source *s)
{
    while (s->landed < s->flown && !s->flights[s->landed % FLIGHTS].piece)
        land(s);
}

/* The first `runs` flights that move memory have done so. */
static void land_runs(struct source *s, unsigned runs)
{
    land_messages(s);
    for (; runs; runs--) {
        land(s);
        land_messages(s);
    }
}

static void take_off(struct source *s, struct flight flight)
{
    s->flights[s->flown++ % FLIGHTS] = flight;
    s->taken += flight.entries;
    s->runs_flying += flight.piece != NULL;
}

static void run_takes_off(struct source *s, const struct run *run)
{
    take_off(s, (struct flight){run->piece, run->length, run->users, run->entries});
}

static void tell_fences(struct source *s, struct error *err)
{
    while (s->fences_told < s->fences_heard && outbox_awaits(s->queue)) {
        uint64_t id = s->heard[s->fences_told++ % OUTBOX_FENCES];

        if (outbox_acknowledge(&s->rdma->outbox, s->queue, id, err) < 0)
            return;
    }
}

static void on_work(void *context, const struct work *work)
{
    struct source *s = context;

    if (work->buffer >= 0)
        mailbox_sent(&s->lane->mail, work->buffer);
    if (work->length)
        land_runs(s, 1);
    else
        s->asked += (int)work->count;
}

static int completions(struct source *s, struct error *err)
{
    struct ibv_wc failed;
    struct work work;
    int count = queue_pair_completed(&s->lane->queue, on_work, s, &failed, &work);

    if (count < 0)
        return rdma_lane_work_failed(s->lane, &failed,
                                     work.length ? "RDMA WRITE" : "sending a message", err);
    tell_fences(s, err);
    return err->code ? -err->code : count;
}

static int on_answer(struct source *s, const struct rdma_message *m,
                     enum rdma_message_type question, struct error *err)
{
    struct rdma_piece *piece = pieces_find(s->rdma->pieces, m->piece);

    if (!piece || m->piece % s->rdma->params.lanes != s->lane->index || piece->asked != question)
        return error_set(err, EPROTO,
                         "the destination sent a %s for piece %u that nobody waits for",
                         rdma_message_name(m->type), m->piece);
    piece->asked = 0;
    s->asked--;
    if (m->type == RDMA_REGISTERED) {
        piece->remote_address = m->address;
        piece->remote_key = m->key;
    }
    rdma_source_answered(piece);
    return 0;
}

static int on_fenced(struct source *s, uint64_t id, struct error *err)
{
    if (s->fences_heard == s->fences_posted)
        return error_set(err, EPROTO, "the destination acknowledged fence %llu, which was not set",
                         (unsigned long long)id);
    s->heard[s->fences_heard++ % OUTBOX_FENCES] = id;
    tell_fences(s, err);
    return -err->code;
}

static int on_pulled(struct source *s, unsigned runs, struct error *err)
{
    if (!s->pulled || runs > s->runs_flying)
        return error_set(err, EPROTO, "the destination says it has pulled %u runs of %u", runs,
                         s->pulled ? s->runs_flying : 0);
    land_runs(s, runs);
    return 0;
}

static int on_message(void *context, const struct rdma_message *m, struct error *err)
{
    struct source *s = context;

    s->heard_at = clock_now();
    s->heard_any = true;
    switch (m->type) {
    case RDMA_CREDIT:
        return 0;
    case RDMA_REGISTERED:
        return on_answer(s, m, RDMA_REGISTER, err);
    case RDMA_DEREGISTERED:
        return on_answer(s, m, RDMA_DEREGISTER, err);
    case RDMA_FENCED:
        return on_fenced(s, m->fence, err);
    case RDMA_PULLED:
        return on_pulled(s, m->count, err);
    default:
        return error_set(err, EPROTO, "the destination sent a %s", rdma_message_name(m->type));
    }
}

/* The lane that asks for a piece is always the same, so that questions keep their order. */
static struct rdma_piece *next_question(struct rdma_lane *lane)
{
    struct rdma_piece *piece;

    pthread_mutex_lock(&lane->lock);
    piece = lane->mail_first;
    if (piece) {
        lane->mail_first = piece->next_mail;
        if (!lane->mail_first)
            lane->mail_last = &lane->mail_first;
    }
    pthread_mutex_unlock(&lane->lock);
    return piece;
}

static int ask(struct source *s, struct error *err)
{
    struct mailbox *mail = &s->lane->mail;
    struct rdma_piece *piece;
    int count = 0;

    while (mailbox_ready(mail) && (piece = next_question(s->lane))) {
        struct rdma_message question = {
            .type = piece->going ? RDMA_DEREGISTER : RDMA_REGISTER,
            .piece = piece->id,
            .region = piece->region,
            .offset = piece->offset,
            .length = piece->length,
        };

        piece->asked = question.type;
        if (mailbox_send(mail, &question, 1, err) < 0)
            return -err->code;
        count++;
    }
    return count;
}

/* The next entry, or NULL; behind what is in flights already. */
static const struct outbox_entry *next_entry(const struct source *s, unsigned pending)
{
    return s->taken < pending ? outbox_entry(s->queue, s->taken) : NULL;
}

/* Lengthens the run by what it can have of the entry; true when the entry ends with it. */
static bool extend(struct source *s, struct run *run, const struct outbox_entry *entry,
                   uint32_t max)
{
    uint64_t piece_end = run->piece->offset + run->piece->length;
    uint64_t in_piece = piece_end - (entry->offset + s->progress);
    uint64_t length = entry->length - s->progress;
    bool leaves_piece;

    length = length < in_piece ? length : in_piece;
    length = length < max - run->length ? length : max - run->length;
    run->length += (uint32_t)length;
    s->progress += length;
    leaves_piece = s->progress == entry->length || length == in_piece;
    run->users += leaves_piece;
    if (s->progress < entry->length) {
        s->at = leaves_piece ? run->piece->follower : run->piece;
        return false;
    }
    run->entries++;
    s->progress = 0;
    s->at = NULL;
    return true;
}

static bool continues(const struct run *run, const struct outbox_entry *entry)
{
    return entry->kind == OUTBOX_PLACE && entry->tag == run->piece &&
           entry->offset == run->offset + run->length;
}

/* The next run of memory of at most `max` bytes; false when its piece is not ready. The next entry
 * is a PLACE. */
static bool next_run(struct source *s, unsigned pending, uint32_t max, struct run *run)
{
    const struct outbox_entry *entry = next_entry(s, pending);
    unsigned ahead = s->taken;

    *run = (struct run){.piece = s->at ? s->at : entry->tag, .offset = entry->offset + s->progress};
    atomic_store(&s->lane->stuck, !piece_is_ready(run->piece));
    if (atomic_load(&s->lane->stuck))
        return false;
    while (extend(s, run, entry, max) && run->length < max && ++ahead < pending) {
        entry = outbox_entry(s->queue, ahead);
        if (!continues(run, entry))
            break;
    }
    return true;
}

static bool flights_left(const struct source *s)
{
    return s->flown - s->landed < FLIGHTS;
}

static int send_write(struct source *s, const struct run *run, struct error *err)
{
    uint64_t within = run->offset - run->piece->offset;
    struct ibv_send_wr wr = {
        .opcode = IBV_WR_RDMA_WRITE,
        .wr.rdma = {run->piece->remote_address + within, run->piece->remote_key},
    };
    struct ibv_sge bytes = {run->piece->local_address + within, run->length, run->piece->local_key};
    struct work work = {.length = run->length, .buffer = -1};

    run_takes_off(s, run);
    return queue_pair_add(&s->lane->queue, &wr, &bytes, &work, err);
}

static int send_writes(struct source *s, unsigned pending, struct error *err)
{
    const struct outbox_entry *entry;
    struct run run;
    int count = 0;

    while ((entry = next_entry(s, pending)) && entry->kind == OUTBOX_PLACE && flights_left(s) &&
           queue_pair_room(&s->lane->queue) &&
           next_run(s, pending, s->lane->queue.max_message, &run)) {
        if (send_write(s, &run, err) < 0)
            return -err->code;
        count++;
    }
    return count;
}

static void write_run(const struct run *run, uint8_t *out)
{
    uint64_t within = run->offset - run->piece->offset;

    rdma_run_encode(
        &(struct rdma_run){
            .piece = run->piece->id,
            .key = run->piece->local_key,
            .offset = within,
            .address = run->piece->local_address + within,
            .length = run->length,
        },
        out);
}

static int publish(struct source *s, unsigned pending, struct error *err)
{
    struct rdma_message message = {.type = RDMA_PUBLISH};
    const struct outbox_entry *entry;
    uint8_t *runs = mailbox_payload(&s->lane->mail);
    struct run run;

    while (message.count < RDMA_MAX_RUNS && (entry = next_entry(s, pending)) &&
           entry->kind == OUTBOX_PLACE && flights_left(s) &&
           next_run(s, pending, s->lane->queue.max_message, &run)) {
        write_run(&run, runs + message.count++ * RDMA_RUN_SIZE);
        run_takes_off(s, &run);
    }
    if (!message.count)
        return 0;
    return mailbox_send(&s->lane->mail, &message, 0, err) < 0 ? -err->code : 1;
}

static int send_message(struct source *s, const struct outbox_entry *entry, struct error *err)
{
    struct rdma_message message = {.type = RDMA_FENCE, .fence = entry->offset};

    if (entry->kind == OUTBOX_BLOB) {
        message = (struct rdma_message){.type = RDMA_BLOB, .byte_count = (uint32_t)entry->length};
        memcpy(mailbox_payload(&s->lane->mail), entry->bytes, entry->length);
    } else {
        s->fences_posted++;
    }
    take_off(s, (struct flight){.entries = 1});
    return mailbox_send(&s->lane->mail, &message, 0, err) < 0 ? -err->code : 1;
}

static int send_some(struct source *s, unsigned pending, struct error *err)
{
    const struct outbox_entry *entry = next_entry(s, pending);

    if (entry->kind == OUTBOX_PLACE && !s->pulled)
        return send_writes(s, pending, err);
    if (!mailbox_ready(&s->lane->mail) || !flights_left(s))
        return 0;
    return entry->kind == OUTBOX_PLACE ? publish(s, pending, err) : send_message(s, entry, err);
}

/* Sends as long as something goes. Entries may land meanwhile, so that all counts move. */
static int send_entries(struct source *s, struct error *err)
{
    int total = 0, count = 1;

    while (count > 0) {
        unsigned pending = outbox_pending(s->queue);

        s->seen = s->queue->sent + pending;
        count = s->taken < pending ? send_some(s, pending, err) : 0;
        total += count;
        land_messages(s);
    }
    return count < 0 ? count : total;
}

/* Whether something came between the last look and the sleep. */
static bool wanted(void *context)
{
    struct source *s = context;
    struct rdma_lane *lane = s->lane;
    const struct outbox_entry *entry = next_entry(s, outbox_pending(s->queue));
    bool question;

    pthread_mutex_lock(&lane->lock);
    question = lane->mail_first != NULL;
    pthread_mutex_unlock(&lane->lock);
    if (question && mailbox_ready(&lane->mail))
        return true;
    if (!atomic_load(&lane->stuck) || !entry || entry->kind != OUTBOX_PLACE ||
        !piece_is_ready(s->at ? s->at : entry->tag))
        return false;
    atomic_store(&lane->stuck, false);
    return true;
}

/* What the card is still moving, the card watches over itself; an answer that is due, nobody else
 * does: a stopped peer's card goes on taking bytes. */
static int check_alive(struct source *s, struct error *err)
{
    bool due = s->asked > 0 || outbox_awaits(s->queue) || (s->pulled && s->runs_flying);
    unsigned limit = s->rdma->params.dead_after_ms;
    uint64_t now = clock_now();

    if (!due || !s->due)
        s->heard_at = now;
    s->due = due;
    /* A destination whose connection manager missed the last word of ours begins later. */
    if (now - s->heard_at < (s->heard_any ? limit : 2 * limit) * NS_PER_MS)
        return 0;
    return error_set(err, ETIMEDOUT,
                     "lane %u: the peer acknowledged nothing for %u ms; it or the network is dead",
                     s->lane->index, limit);
}

static int rest(struct source *s, struct error *err)
{
    bool due = s->asked > 0 || s->flown != s->landed || s->fences_posted != s->fences_told;
    int timeout = due ? (int)(s->rdma->params.dead_after_ms / LOOKS_FOR_DEATH + 1) : -1;
    int result = check_alive(s, err);

    if (!result)
        result =
            rdma_lane_rest(s->lane, (unsigned)(s->seen - s->queue->sent), wanted, s, timeout, err);
    return result;
}

static int step(struct source *s, struct error *err)
{
    int found = completions(s, err), sent = 0;
    int heard = found < 0 ? found : rdma_lane_hear(s->lane, UINT32_MAX, on_message, s, err);

    if (heard < 0)
        return heard;
    sent = ask(s, err);
    if (sent >= 0)
        sent += send_entries(s, err);
    if (err->code || mailbox_give_credit(&s->lane->mail, err) < 0 ||
        queue_pair_ring(&s->lane->queue, err) < 0)
        return -err->code;
    if (found + heard > 0)
        queue_pair_busy(&s->lane->queue);
    return found + heard + sent > 0 ? 0 : rest(s, err);
}

void *rdma_source_main(void *context)
{
    struct rdma_lane *lane = context;
    struct rdma *r = lane->rdma;
    struct source *s = calloc(1, sizeof *s);
    struct error err = {0};

    thread_set_name("lane", (int)lane->index);
    if (!s) {
        error_set(&err, ENOMEM, "lane %u: no memory to send", lane->index);
    } else {
        s->lane = lane;
        s->rdma = r;
        s->queue = &r->outbox.lanes[lane->index];
        s->pulled = r->params.operation == TRANSPORT_READ;
        s->heard_at = clock_now();
    }
    while (!err.code && !latch_ended(&r->latch))
        step(s, &err);
    if (err.code)
        rdma_fail(r, &err);
    rdma_disconnect(lane->id);
    free(s);
    return NULL;
}
