/* The engine's thread at the source: transfers get the pieces they need, then go to the lanes. */
#include <errno.h>
#include <stddef.h>

#include "transport/rdma/source.h"

enum {
    BLOCK = 64,
    GRAIN_ALL = 64 << 20,
    GRAIN_CHUNK = 1 << 20,
};

void rdma_source_answered(struct rdma_piece *piece)
{
    struct rdma *r = piece->rdma;

    if (atomic_fetch_sub_explicit(&piece->awaited, 1, memory_order_seq_cst) != 1)
        return;
    /* A piece that is ready may go, one that is gone makes room: a post may have waited for either.
     */
    outbox_nudge(&r->outbox);
    for (unsigned i = 0; i < r->params.lanes; i++)
        if (atomic_load(&r->lanes[i].stuck))
            outbox_wake(&r->outbox.lanes[i]);
}

static void register_piece(struct registrar_job *job)
{
    struct rdma_piece *piece =
        (struct rdma_piece *)((char *)job - offsetof(struct rdma_piece, job));
    struct rdma *r = piece->rdma;
    bool pulled = r->params.operation == TRANSPORT_READ;
    struct error err = {0};
    struct ibv_mr *mr =
        registrar_register(&r->registrar, r->pd, (void *)(uintptr_t)piece->local_address,
                           piece->length, pulled ? IBV_ACCESS_REMOTE_READ : 0, &err);

    if (!mr) {
        rdma_fail(r, &err);
        return;
    }
    piece->registration = mr;
    piece->local_key = pulled ? mr->rkey : mr->lkey;
    rdma_source_answered(piece);
}

static void deregister_piece(struct registrar_job *job)
{
    struct rdma_piece *piece =
        (struct rdma_piece *)((char *)job - offsetof(struct rdma_piece, job));

    registrar_deregister(&piece->rdma->registrar, piece->registration);
    piece->registration = NULL;
    rdma_source_answered(piece);
}

/* Both ends are set to work: this one's registrar, and through a lane the other's. */
static void send_job(struct rdma *r, struct rdma_piece *piece,
                     void (*run)(struct registrar_job *job))
{
    unsigned index = piece->id % r->params.lanes;
    struct rdma_lane *lane = &r->lanes[index];

    piece->rdma = r;
    piece->job.run = run;
    piece->next_mail = NULL;
    registrar_add(&r->registrar, &piece->job);
    pthread_mutex_lock(&lane->lock);
    *lane->mail_last = piece;
    lane->mail_last = &piece->next_mail;
    pthread_mutex_unlock(&lane->lock);
    outbox_wake(&r->outbox.lanes[index]);
}

static void acquire(void *context, struct rdma_piece *piece)
{
    struct rdma *r = context;
    void *bytes = regions_resolve(&r->regions, piece->region, piece->offset, piece->length);

    piece->local_address = (uintptr_t)bytes;
    send_job(r, piece, register_piece);
}

static void release(void *context, struct rdma_piece *piece)
{
    send_job(context, piece, deregister_piece);
}

int rdma_source_begin(struct rdma *r, const struct rdma_answer *peer, struct error *err)
{
    bool all = r->params.registration == TRANSPORT_REGISTER_ALL;
    struct pieces_config config = {
        .grain = all ? GRAIN_ALL : GRAIN_CHUNK,
        .max_count = rdma_most_pieces(r),
        .eager = all,
        .owner = {acquire, release, r},
    };
    int result = rdma_piece_limit(&r->params, true, &config.limit, err);

    if (peer->most_pieces < config.max_count)
        config.max_count = peer->most_pieces;
    if (peer->piece_limit < config.limit)
        config.limit = peer->piece_limit;
    if (!result && config.limit < RDMA_LEAST_PIECES)
        result = error_set(err, EINVAL,
                           "the destination leaves %llu KiB for registered pages; %d KiB are "
                           "needed: raise its --rdma-pin-limit",
                           (unsigned long long)config.limit >> 10, RDMA_LEAST_PIECES >> 10);
    if (!result)
        result = pieces_new(&config, &r->pieces, err);
    return result < 0 ? result : registrar_start(&r->registrar, registrar_threads(), err);
}

static void forget_registration(void *context, struct rdma_piece *piece)
{
    struct rdma *r = context;

    registrar_deregister(&r->registrar, piece->registration);
}

void rdma_source_end(struct rdma *r)
{
    if (r->pieces)
        pieces_each(r->pieces, forget_registration, r);
    pieces_free(r->pieces);
    r->pieces = NULL;
}

static int check(const struct rdma *r, const struct transfer *t, struct error *err)
{
    int result = outbox_check(&r->regions, t, err);

    if (result < 0 || t->kind == TRANSFER_BLOB)
        return result;
    if (regions_resolve(&r->regions, t->region, t->offset, t->length) != t->bytes)
        return error_set(err, EINVAL,
                         "%zu bytes for region %u offset %llu are not those of that range at this "
                         "end",
                         t->length, t->region, (unsigned long long)t->offset);
    return 0;
}

static void give_back(const struct transfer *t, struct rdma_piece *first)
{
    if (first)
        pieces_unuse(first, t->offset, t->length);
}

/* How many of the n transfers got their pieces; -errno. */
static int use_pieces(struct rdma *r, const struct transfer *transfers, unsigned n, void **first,
                      struct error *err)
{
    for (unsigned i = 0; i < n; i++) {
        const struct transfer *t = &transfers[i];
        struct rdma_piece *piece = NULL;
        int result = t->kind == TRANSFER_PLACE
                         ? pieces_use(r->pieces, t->region, t->offset, t->length, &piece, err)
                         : 0;

        first[i] = piece;
        if (result == -EAGAIN) {
            error_clear(err);
            return (int)i;
        }
        if (result < 0) {
            while (i-- > 0)
                give_back(&transfers[i], first[i]);
            return result;
        }
    }
    return (int)n;
}

/* Returns how many were taken; fewer than n when there is no more room. */
static int post_block(struct rdma *r, const struct transfer *transfers, unsigned n,
                      struct error *err)
{
    void *first[BLOCK];
    int usable = use_pieces(r, transfers, n, first, err);
    unsigned taken;

    if (usable < 0)
        return usable;
    taken = outbox_put(&r->outbox, transfers, first, (unsigned)usable);
    for (unsigned i = taken; i < (unsigned)usable; i++)
        give_back(&transfers[i], first[i]);
    if (taken < n)
        outbox_starve(&r->outbox);
    return (int)taken;
}

int rdma_source_post(struct rdma *r, const struct transfer *transfers, unsigned n,
                     struct error *err)
{
    unsigned total = 0;
    int result = latch_check(&r->latch, err);

    for (unsigned i = 0; i < n && !result; i++)
        result = check(r, &transfers[i], err);
    if (!result)
        result = pieces_plan(r->pieces, err);
    while (!result && total < n) {
        unsigned block = n - total < BLOCK ? n - total : BLOCK;
        int taken = post_block(r, transfers + total, block, err);

        if (taken < 0 && !total)
            return taken;
        if (taken < 0) {
            error_clear(err); /* it comes again with the next post */
            break;
        }
        total += (unsigned)taken;
        if ((unsigned)taken < block)
            break;
    }
    return result < 0 ? result : (int)total;
}

int rdma_source_will_need(struct rdma *r, uint32_t region, uint64_t offset, uint64_t length,
                          struct error *err)
{
    if (!regions_resolve(&r->regions, region, offset, length))
        return 0;
    return pieces_expect(r->pieces, region, offset, length, err);
}
