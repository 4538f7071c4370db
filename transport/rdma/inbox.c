#include "transport/rdma/inbox.h"

#include <errno.h>
#include <stdlib.h>

enum { BLOCK = 1024, BLOCKS = RDMA_MAX_PIECES / BLOCK };

struct rdma_inbox {
    pthread_mutex_t lock; /* of registrations, and of making blocks */
    uint64_t limit;
    uint32_t most_pieces;
    atomic_uint_fast64_t bytes; /* registered, or about to be */
    atomic_uint pieces;         /* not free */
    _Atomic(struct inbox_piece *) blocks[BLOCKS];
};

int inbox_open(struct rdma *r, struct error *err)
{
    struct rdma_inbox *inbox = calloc(1, sizeof *inbox);
    int result;

    if (!inbox)
        return error_set(err, ENOMEM, "no memory for a table of registered memory");
    result = rdma_piece_limit(&r->params, false, &inbox->limit, err);
    if (result < 0) {
        free(inbox);
        return result;
    }
    inbox->most_pieces = rdma_most_pieces(r);
    pthread_mutex_init(&inbox->lock, NULL);
    r->inbox = inbox;
    return 0;
}

static void close_block(struct rdma *r, struct inbox_piece *block)
{
    for (unsigned i = 0; block && i < BLOCK; i++)
        registrar_deregister(&r->registrar, block[i].registration);
    free(block);
}

void inbox_close(struct rdma *r)
{
    struct rdma_inbox *inbox = r->inbox;

    if (!inbox)
        return;
    for (unsigned i = 0; i < BLOCKS; i++)
        close_block(r, inbox->blocks[i]);
    pthread_mutex_destroy(&inbox->lock);
    free(inbox);
    r->inbox = NULL;
}

static struct inbox_piece *find(struct rdma_inbox *inbox, uint32_t id)
{
    struct inbox_piece *block = inbox->blocks[id / BLOCK];

    return block ? &block[id % BLOCK] : NULL;
}

static struct inbox_piece *find_or_make(struct rdma_inbox *inbox, uint32_t id)
{
    pthread_mutex_lock(&inbox->lock);
    if (!inbox->blocks[id / BLOCK])
        inbox->blocks[id / BLOCK] = calloc(BLOCK, sizeof(struct inbox_piece));
    pthread_mutex_unlock(&inbox->lock);
    return find(inbox, id);
}

/* Without a limit: twice what the regions have, because a source may register a range anew while
 * its former piece of it is still going. */
static uint64_t most_bytes(struct rdma *r)
{
    uint64_t bytes = 0;

    if (r->inbox->limit != UINT64_MAX)
        return r->inbox->limit;

    regions_lock(&r->regions);
    for (unsigned i = 0; i < r->regions.count; i++)
        bytes += r->regions.all[i].size;
    regions_unlock(&r->regions);
    return 2 * bytes;
}

static void reply(struct inbox_piece *piece, enum inbox_state state)
{
    struct rdma *r = piece->rdma;
    unsigned index = piece->id % r->params.lanes;
    struct rdma_lane *lane = &r->lanes[index];

    atomic_store(&piece->state, (int)state);
    pthread_mutex_lock(&lane->lock);
    piece->next_reply = lane->replies;
    lane->replies = piece;
    pthread_mutex_unlock(&lane->lock);
    outbox_wake(&r->outbox.lanes[index]);
}

static struct inbox_piece *piece_of(struct registrar_job *job)
{
    return (struct inbox_piece *)((char *)job - offsetof(struct inbox_piece, job));
}

static int not_open(const struct inbox_piece *piece, struct error *err)
{
    return error_set(err, EPROTO,
                     "the source asks for %llu bytes of region %u at offset %llu, which is not "
                     "open here or not as large",
                     (unsigned long long)piece->length, piece->region,
                     (unsigned long long)piece->offset);
}

/* Under the regions' lock, so that the region cannot be closed meanwhile. */
static int register_locked(struct inbox_piece *piece, struct error *err)
{
    struct rdma *r = piece->rdma;
    bool pulled = r->params.operation == TRANSPORT_READ;
    int access = IBV_ACCESS_LOCAL_WRITE | (pulled ? 0 : IBV_ACCESS_REMOTE_WRITE);
    void *bytes = regions_resolve(&r->regions, piece->region, piece->offset, piece->length);
    struct ibv_mr *mr;

    if (!bytes)
        return not_open(piece, err);
    mr = registrar_register(&r->registrar, r->pd, bytes, piece->length, access, err);
    if (!mr)
        return -err->code;
    piece->address = (uintptr_t)bytes;
    piece->local_key = mr->lkey;
    piece->remote_key = mr->rkey;
    pthread_mutex_lock(&r->inbox->lock);
    piece->registration = mr;
    pthread_mutex_unlock(&r->inbox->lock);
    return 0;
}

static void register_piece(struct registrar_job *job)
{
    struct inbox_piece *piece = piece_of(job);
    struct rdma *r = piece->rdma;
    struct error err = {0};
    int result;

    regions_lock(&r->regions);
    result = register_locked(piece, &err);
    regions_unlock(&r->regions);
    if (result < 0)
        rdma_fail(r, &err);
    else
        reply(piece, INBOX_REGISTERED);
}

static void drop_registration(struct inbox_piece *piece)
{
    struct rdma *r = piece->rdma;
    struct ibv_mr *mr;

    pthread_mutex_lock(&r->inbox->lock);
    mr = piece->registration;
    piece->registration = NULL;
    pthread_mutex_unlock(&r->inbox->lock);
    registrar_deregister(&r->registrar, mr);
}

static void deregister_piece(struct registrar_job *job)
{
    struct inbox_piece *piece = piece_of(job);

    drop_registration(piece);
    atomic_fetch_sub(&piece->rdma->inbox->bytes, piece->length);
    atomic_fetch_sub(&piece->rdma->inbox->pieces, 1);
    reply(piece, INBOX_GONE);
}

int inbox_register(struct rdma_lane *lane, const struct rdma_message *m, struct error *err)
{
    struct rdma *r = lane->rdma;
    struct inbox_piece *piece = find_or_make(r->inbox, m->piece);
    uint64_t before;

    if (!piece)
        return error_set(err, ENOMEM, "no memory for a table of registered memory");
    if (m->piece % r->params.lanes != lane->index || atomic_load(&piece->state) != INBOX_FREE)
        return error_set(err, EPROTO, "the source uses the number %u for two pieces", m->piece);
    before = atomic_fetch_add(&r->inbox->bytes, m->length);
    if (m->length > most_bytes(r) || before > most_bytes(r) - m->length)
        return error_set(err, EPROTO,
                         "the source asks for %llu bytes of region %u at offset %llu on top of "
                         "%llu, more than is open here or may be pinned",
                         (unsigned long long)m->length, m->region, (unsigned long long)m->offset,
                         (unsigned long long)before);
    if (atomic_fetch_add(&r->inbox->pieces, 1) >= r->inbox->most_pieces)
        return error_set(err, EPROTO, "the source asks for more than %u pieces",
                         r->inbox->most_pieces);
    piece->id = m->piece;
    piece->region = m->region;
    piece->offset = m->offset;
    piece->length = m->length;
    piece->job.run = register_piece;
    piece->rdma = r;
    atomic_store(&piece->state, INBOX_REGISTERING);
    registrar_add(&r->registrar, &piece->job);
    return 0;
}

int inbox_deregister(struct rdma_lane *lane, const struct rdma_message *m, struct error *err)
{
    struct rdma *r = lane->rdma;
    struct inbox_piece *piece = find(r->inbox, m->piece);

    if (!piece || m->piece % r->params.lanes != lane->index ||
        atomic_load(&piece->state) != INBOX_READY)
        return error_set(err, EPROTO, "the source gives up piece %u, which it does not have",
                         m->piece);
    atomic_store(&piece->state, INBOX_DEREGISTERING);
    piece->job.run = deregister_piece;
    registrar_add(&r->registrar, &piece->job);
    return 0;
}

struct inbox_piece *inbox_next_reply(struct rdma_lane *lane)
{
    struct inbox_piece *piece;

    pthread_mutex_lock(&lane->lock);
    piece = lane->replies;
    if (piece)
        lane->replies = piece->next_reply;
    pthread_mutex_unlock(&lane->lock);
    return piece;
}

bool inbox_has_replies(struct rdma_lane *lane)
{
    bool any;

    pthread_mutex_lock(&lane->lock);
    any = lane->replies != NULL;
    pthread_mutex_unlock(&lane->lock);
    return any;
}

int inbox_resolve(struct rdma *r, const struct rdma_run *run, uint64_t *address, uint32_t *key,
                  struct error *err)
{
    struct inbox_piece *piece = find(r->inbox, run->piece);

    if (!piece || atomic_load(&piece->state) != INBOX_READY || run->offset > piece->length ||
        run->length > piece->length - run->offset)
        return error_set(err, EPROTO,
                         "the source published %u bytes for piece %u at %llu, which is not "
                         "registered here or not as large",
                         run->length, run->piece, (unsigned long long)run->offset);
    *address = piece->address + run->offset;
    *key = piece->local_key;
    return 0;
}

void inbox_close_region(struct rdma *r, uint32_t region)
{
    for (uint32_t i = 0; i < BLOCKS; i++) {
        struct inbox_piece *block = r->inbox->blocks[i];

        for (unsigned k = 0; block && k < BLOCK; k++)
            if (block[k].region == region)
                drop_registration(&block[k]);
    }
}
