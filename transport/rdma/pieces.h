/* Which pieces of guest RAM are registered at both ends, on the source's engine thread: a transfer
 * can go once every piece it touches is ready; pieces that nobody uses go when room is needed.
 *
 * A piece is a range of one region, registered as a whole at both ends. It is made for a transfer
 * that no piece covers yet, or ahead for what was expected. It lies inside one grain (aligned), and
 * covers of that grain what belongs to the same expected extent: a hole, never touched, is not
 * registered, for that would allocate it. Pieces never overlap.
 *
 *   (made) --acquire--> waiting --both ends answered--> ready --release--> going --both--> (gone)
 *
 * The engine's thread alone calls the functions here, except where it says otherwise. `awaited`,
 * `users` and what the registrations gave are the only things that other threads change. */
#ifndef TRANSPORT_RDMA_PIECES_H
#define TRANSPORT_RDMA_PIECES_H

#include <stdatomic.h>

#include "transport/rdma/message.h"
#include "transport/rdma/registrar.h"

struct rdma;

struct rdma_piece {
    uint32_t id; /* below RDMA_MAX_PIECES; names it to the peer; used again once it is gone */
    uint32_t region;
    uint64_t offset, length;
    atomic_uint awaited; /* ends that have yet to (de)register it. Release/acquire */
    atomic_uint users;   /* transfers posted that touch it and are not complete */
    bool going;
    struct rdma_piece *follower; /* the piece that begins where this one ends, in the same region */
    struct rdma_piece *older, *newer; /* by use */
    struct rdma_piece *next;          /* in `gone_soon` */

    /* Set before `awaited` falls to 0, constant while there are users. */
    void *registration; /* this end's: a struct ibv_mr * */
    uint32_t local_key, remote_key;
    uint64_t local_address; /* of its first byte */
    uint64_t remote_address;

    /* For whoever carries out acquire and release: not looked at here. */
    struct registrar_job job;
    struct rdma_piece *next_mail;
    struct rdma *rdma;
    enum rdma_message_type
        asked; /* of the peer, by the lane that has not heard the answer yet; or 0 */
};

/* Told of each piece that is made (users 0, awaited 2) and of each that shall go (awaited 2 again).
 * Both ends then do what is to be done and count `awaited` down, in any thread. */
struct pieces_owner {
    void (*acquire)(void *context, struct rdma_piece *piece);
    void (*release)(void *context, struct rdma_piece *piece);
    void *context;
};

struct pieces_config {
    uint64_t grain; /* a power of two, 4 KiB or more */
    uint64_t
        limit; /* bytes that all pieces together may have; UINT64_MAX: none. At least a grain */
    uint32_t max_count; /* of pieces: what the device can register. At least 1 */
    bool eager;         /* pieces are made for what is expected, without waiting for transfers */
    struct pieces_owner owner;
};

struct rdma_pieces; /* opaque: allocated by pieces_new */

int pieces_new(const struct pieces_config *config, struct rdma_pieces **out, struct error *err);
/* Frees the table and all pieces. Registrations are the owner's affair: see pieces_each. */
void pieces_free(struct rdma_pieces *p); /* NULL is fine */

/* This range of the region will be posted some time. Ranges may come in any order, overlap and
 * touch; they are kept merged. With `eager`, pieces_plan makes pieces for them. -ENOMEM. */
int pieces_expect(struct rdma_pieces *p, uint32_t region, uint64_t offset, uint64_t length,
                  struct error *err);
/* With `eager`: makes pieces for what was expected and has none, in ascending order; without: does
 * nothing. When they would be more than max_count, holes of growing size (doubling from 4 KiB) are
 * registered with their neighbours until they fit: never beyond a grain. Stops quietly at
 * max_count or `limit`: what is left is made when a transfer needs it. -ENOMEM. */
int pieces_plan(struct rdma_pieces *p, struct error *err);

/* Finds the piece that holds the first byte of the range, and makes those that are missing in it;
 * the range lies inside its region. On success every piece that the range touches has one more
 * user, they are linked by `follower`, and *first is the first of them (it need not be ready).
 * -EAGAIN, without any change of users: there is no room for a new piece; the least recently used
 * ones without users have been told to go, try again when some are gone (or when users left).
 * -EINVAL with a text: its pieces alone would be more than the limits allow (a range that crosses
 * one grain's end may need two grains). -ENOMEM. Only -EAGAIN sets no text. */
int pieces_use(struct rdma_pieces *p, uint32_t region, uint64_t offset, uint64_t length,
               struct rdma_piece **first, struct error *err);
/* Takes back what pieces_use did for the very same range, unless its transfer was posted. */
void pieces_unuse(struct rdma_piece *first, uint64_t offset, uint64_t length);
/* This range will not be posted soon: its pieces are the first to go. */
void pieces_cool(struct rdma_pieces *p, uint32_t region, uint64_t offset, uint64_t length);
/* Forgets all pieces and expectations of a region: they are told to go. No users may be left. */
void pieces_forget(struct rdma_pieces *p, uint32_t region);
/* True when pieces that were told to go are gone meanwhile (their room and ids are free again).
 * Called by pieces_use itself. */
bool pieces_collect(struct rdma_pieces *p);

/* Any thread: the piece with that id, NULL when there never was one. It may be gone or another one
 * by now; who asks for the peer checks `awaited`. */
struct rdma_piece *pieces_find(const struct rdma_pieces *p, uint32_t id);
/* After all other threads have ended: calls `visit` for each piece that is not gone. */
void pieces_each(struct rdma_pieces *p, void (*visit)(void *context, struct rdma_piece *piece),
                 void *context);

uint32_t pieces_count(const struct rdma_pieces *p); /* those not gone */
uint64_t pieces_bytes(const struct rdma_pieces *p); /* of those */

static inline bool piece_is_ready(struct rdma_piece *piece)
{
    return atomic_load_explicit(&piece->awaited, memory_order_acquire) == 0;
}

#endif
