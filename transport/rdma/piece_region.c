#include "transport/rdma/piece_region.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

size_t region_index(const struct piece_region *r, uint64_t at)
{
    size_t low = 0, high = r->piece_count;

    if (!high || piece_end(r->pieces[high - 1]) <= at)
        return high;
    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (piece_end(r->pieces[middle]) > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

int region_reserve(struct piece_region *r, struct error *err)
{
    size_t room = r->piece_room ? r->piece_room * 2 : 16;
    struct rdma_piece **grown;

    if (r->piece_count < r->piece_room)
        return 0;
    grown = reallocarray(r->pieces, room, sizeof *grown);
    if (!grown)
        return error_set(err, ENOMEM, "no memory for a list of %zu registrations", room);
    r->pieces = grown;
    r->piece_room = room;
    return 0;
}

/* Threads that walk over pieces they use never read a `follower` that changes here: what is between
 * two pieces in use is there already. */
void region_insert(struct piece_region *r, struct rdma_piece *piece)
{
    size_t i = region_index(r, piece->offset);

    memmove(r->pieces + i + 1, r->pieces + i, (r->piece_count - i) * sizeof piece);
    r->pieces[i] = piece;
    r->piece_count++;
    if (i && piece_end(r->pieces[i - 1]) == piece->offset)
        r->pieces[i - 1]->follower = piece;
    if (i + 1 < r->piece_count && r->pieces[i + 1]->offset == piece_end(piece))
        piece->follower = r->pieces[i + 1];
}

void region_remove(struct piece_region *r, struct rdma_piece *piece)
{
    size_t i = region_index(r, piece->offset);

    if (i && r->pieces[i - 1]->follower == piece)
        r->pieces[i - 1]->follower = NULL;
    r->piece_count--;
    memmove(r->pieces + i, r->pieces + i + 1, (r->piece_count - i) * sizeof piece);
}

struct span region_new_range(const struct piece_region *r, uint64_t grain, uint64_t at,
                             uint64_t needed, uint64_t hole)
{
    uint64_t low = at & ~(grain - 1), high = low + grain;
    size_t behind = region_index(r, at), e = expected_index(&r->expected, at);
    const struct span *extent = r->expected.extents + e;
    const struct span *end = r->expected.extents + r->expected.count;

    if (behind && piece_end(r->pieces[behind - 1]) > low)
        low = piece_end(r->pieces[behind - 1]);
    if (behind < r->piece_count && r->pieces[behind]->offset < high)
        high = r->pieces[behind]->offset;
    if (extent == end || extent->from > at) {
        if (extent < end && extent->from < high)
            high = extent->from;
        return (struct span){at, needed < high ? needed : high};
    }
    if (extent->from > low)
        low = extent->from;
    while (end - extent > 1 && extent[1].from < high && extent[1].from - extent->to <= hole)
        extent++;
    return (struct span){low, extent->to < high ? extent->to : high};
}

bool region_next_missing(const struct piece_region *r, struct span within, uint64_t *at)
{
    while (within.from < within.to) {
        size_t e = expected_index(&r->expected, within.from), i;

        if (e == r->expected.count || r->expected.extents[e].from >= within.to)
            return false;
        if (r->expected.extents[e].from > within.from)
            within.from = r->expected.extents[e].from;
        i = region_index(r, within.from);
        if (i == r->piece_count || r->pieces[i]->offset > within.from) {
            *at = within.from;
            return true;
        }
        within.from = piece_end(r->pieces[i]);
    }
    return false;
}

void region_free(struct piece_region *r)
{
    free(r->pieces);
    expected_free(&r->expected);
}
