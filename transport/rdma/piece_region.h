/* What is registered of one region, and what of it is expected: which ranges a new piece can have.
 * For pieces.c alone; the engine's thread. */
#ifndef TRANSPORT_RDMA_PIECE_REGION_H
#define TRANSPORT_RDMA_PIECE_REGION_H

#include "transport/rdma/expected.h"
#include "transport/rdma/pieces.h"

struct piece_region {
    uint32_t id;
    struct rdma_piece **pieces; /* sorted; not those that were told to go */
    size_t piece_count, piece_room;
    struct expected expected;
    struct span unplanned; /* all that was expected since the last plan lies in it */
};

static inline uint64_t piece_end(const struct rdma_piece *piece)
{
    return piece->offset + piece->length;
}

/* The first piece that ends behind `at`; piece_count when there is none. */
size_t region_index(const struct piece_region *r, uint64_t at);
/* Room for one more piece in the list. -ENOMEM. */
int region_reserve(struct piece_region *r, struct error *err);
/* Puts it among the region's pieces, for which room was reserved, and links its neighbours by
 * `follower`. */
void region_insert(struct piece_region *r, struct rdma_piece *piece);
void region_remove(struct piece_region *r, struct rdma_piece *piece);

/* The range of a new piece that holds `at`, where none is: inside its grain, the piece before and
 * the piece behind, what is expected there; behind it holes of up to `hole` bytes, and what is
 * expected behind those, are taken in. Where nothing is expected: from `at`, and no more than up to
 * `needed`. */
struct span region_new_range(const struct piece_region *r, uint64_t grain, uint64_t at,
                             uint64_t needed, uint64_t hole);
/* The first byte of the span that is expected and in no piece; false when there is none. */
bool region_next_missing(const struct piece_region *r, struct span within, uint64_t *at);
void region_free(struct piece_region *r); /* the lists; not the pieces */

#endif
