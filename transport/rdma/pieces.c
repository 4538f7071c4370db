#include "transport/rdma/pieces.h"

#include <errno.h>
#include <stdlib.h>

#include "transport/rdma/piece_region.h"

enum { PIECES_PER_BLOCK = 1024, SMALLEST_HOLE = 4096 };

/* Pieces that were told to go have room and id until they are gone, but are in no region any more:
 * their range can be registered anew at once. */
struct rdma_pieces {
    struct pieces_config config;
    struct piece_region *regions;
    size_t region_count, region_room;
    uint32_t count; /* not gone, */
    uint64_t bytes;
    uint32_t going_count; /* and of these the ones on their way */
    uint64_t going_bytes;
    struct rdma_piece *oldest, *newest; /* by use */
    struct rdma_piece *gone_soon;
    struct rdma_piece *spare; /* gone: ids to be used again, linked by `next` */
    /* Ids from 0 to it were given out. Its release also publishes the blocks below, which stay. */
    atomic_uint made;
    struct rdma_piece *blocks[RDMA_MAX_PIECES / PIECES_PER_BLOCK];
};

static struct rdma_piece *piece_at(const struct rdma_pieces *p, uint32_t id)
{
    return &p->blocks[id / PIECES_PER_BLOCK][id % PIECES_PER_BLOCK];
}

int pieces_new(const struct pieces_config *config, struct rdma_pieces **out, struct error *err)
{
    struct rdma_pieces *p = calloc(1, sizeof *p);

    if (!p)
        return error_set(err, ENOMEM, "no memory for a table of registrations");
    p->config = *config;
    if (p->config.max_count > RDMA_MAX_PIECES)
        p->config.max_count = RDMA_MAX_PIECES;
    *out = p;
    return 0;
}

void pieces_free(struct rdma_pieces *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->region_count; i++)
        region_free(&p->regions[i]);
    for (unsigned i = 0; i < RDMA_MAX_PIECES / PIECES_PER_BLOCK; i++)
        free(p->blocks[i]);
    free(p->regions);
    free(p);
}

static struct piece_region *region_find(const struct rdma_pieces *p, uint32_t id)
{
    for (size_t i = 0; i < p->region_count; i++)
        if (p->regions[i].id == id)
            return &p->regions[i];
    return NULL;
}

/* Finds it or makes it; NULL without memory. */
static struct piece_region *region_get(struct rdma_pieces *p, uint32_t id, struct error *err)
{
    struct piece_region *r = region_find(p, id), *grown;
    size_t room = p->region_room ? p->region_room * 2 : 16;

    if (r)
        return r;
    if (p->region_count == p->region_room) {
        grown = reallocarray(p->regions, room, sizeof *grown);
        if (!grown) {
            error_set(err, ENOMEM, "no memory for a list of %zu regions", room);
            return NULL;
        }
        p->regions = grown;
        p->region_room = room;
    }
    r = &p->regions[p->region_count++];
    *r = (struct piece_region){.id = id};
    return r;
}

int pieces_expect(struct rdma_pieces *p, uint32_t region, uint64_t offset, uint64_t length,
                  struct error *err)
{
    struct piece_region *r = region_get(p, region, err);
    struct span span = {offset, offset + length};
    int result;

    if (!r)
        return -ENOMEM;
    result = length ? expected_add(&r->expected, span) : 0;
    if (result < 0)
        return error_set(err, ENOMEM, "no memory for a list of %zu extents", r->expected.count);
    if (!result)
        return 0;
    if (!r->unplanned.to)
        r->unplanned = span;
    if (span.from < r->unplanned.from)
        r->unplanned.from = span.from;
    if (span.to > r->unplanned.to)
        r->unplanned.to = span.to;
    return 0;
}

static void use_unlink(struct rdma_pieces *p, struct rdma_piece *piece)
{
    *(piece->older ? &piece->older->newer : &p->oldest) = piece->newer;
    *(piece->newer ? &piece->newer->older : &p->newest) = piece->older;
}

static void use_append(struct rdma_pieces *p, struct rdma_piece *piece)
{
    piece->older = p->newest;
    piece->newer = NULL;
    *(p->newest ? &p->newest->newer : &p->oldest) = piece;
    p->newest = piece;
}

static void use_prepend(struct rdma_pieces *p, struct rdma_piece *piece)
{
    piece->older = NULL;
    piece->newer = p->oldest;
    *(p->oldest ? &p->oldest->older : &p->newest) = piece;
    p->oldest = piece;
}

/* A piece without range: one that is gone, or the next that never was. NULL without memory. */
static struct rdma_piece *piece_take(struct rdma_pieces *p)
{
    uint32_t id = atomic_load_explicit(&p->made, memory_order_relaxed);
    struct rdma_piece **block, *piece = p->spare;

    if (piece) {
        p->spare = piece->next;
        return piece;
    }
    block = &p->blocks[id / PIECES_PER_BLOCK];
    if (!*block)
        *block = calloc(PIECES_PER_BLOCK, sizeof **block);
    if (!*block)
        return NULL;
    piece = piece_at(p, id);
    piece->id = id;
    atomic_store_explicit(&p->made, id + 1, memory_order_release);
    return piece;
}

/* There has to be room for it. */
static int make(struct rdma_pieces *p, struct piece_region *r, struct span range,
                struct rdma_piece **out, struct error *err)
{
    struct rdma_piece *piece;

    if (region_reserve(r, err) < 0)
        return -ENOMEM;
    piece = piece_take(p);
    if (!piece)
        return error_set(err, ENOMEM, "no memory for more than %u registrations", p->count);
    piece->region = r->id;
    piece->offset = range.from;
    piece->length = range.to - range.from;
    piece->going = false;
    piece->follower = piece->next = NULL;
    piece->registration = NULL;
    piece->local_key = piece->remote_key = 0;
    piece->local_address = piece->remote_address = 0;
    atomic_store_explicit(&piece->users, 0, memory_order_relaxed);
    atomic_store_explicit(&piece->awaited, 2, memory_order_release);
    region_insert(r, piece);
    use_append(p, piece);
    p->count++;
    p->bytes += piece->length;
    p->config.owner.acquire(p->config.owner.context, piece);
    *out = piece;
    return 0;
}

static void tell_to_go(struct rdma_pieces *p, struct rdma_piece *piece)
{
    piece->going = true;
    atomic_store_explicit(&piece->awaited, 2, memory_order_release);
    p->config.owner.release(p->config.owner.context, piece);
}

/* Takes one that is in no region any more out of use. Who still waits for its registration cannot
 * be told yet: pieces_collect does it then. */
static void retire(struct rdma_pieces *p, struct rdma_piece *piece)
{
    use_unlink(p, piece);
    p->going_count++;
    p->going_bytes += piece->length;
    piece->next = p->gone_soon;
    p->gone_soon = piece;
    if (piece_is_ready(piece))
        tell_to_go(p, piece);
}

static bool piece_is_idle(struct rdma_piece *piece)
{
    return piece_is_ready(piece) && atomic_load_explicit(&piece->users, memory_order_acquire) == 0;
}

/* Tells the least recently used idle pieces to go, until those that stay are few and small enough.
 */
static void shrink(struct rdma_pieces *p, uint64_t bytes, uint32_t count)
{
    struct rdma_piece *piece = p->oldest, *newer;

    for (; piece && (p->bytes - p->going_bytes > bytes || p->count - p->going_count > count);
         piece = newer) {
        newer = piece->newer;
        if (!piece_is_idle(piece))
            continue;
        region_remove(region_find(p, piece->region), piece);
        retire(p, piece);
    }
}

static bool has_room(const struct rdma_pieces *p, uint64_t length)
{
    return p->count < p->config.max_count && p->bytes <= p->config.limit &&
           length <= p->config.limit - p->bytes;
}

/* What the pieces of a range have together. */
struct held {
    uint64_t bytes;
    uint32_t count;
};

/* Gives each of them `users` more, or takes them back. */
static struct held hold(const struct piece_region *r, struct span range, int users)
{
    struct held held = {0, 0};

    for (size_t i = region_index(r, range.from);
         i < r->piece_count && r->pieces[i]->offset < range.to; i++) {
        atomic_fetch_add_explicit(&r->pieces[i]->users, (unsigned)users, memory_order_relaxed);
        held.bytes += r->pieces[i]->length;
        held.count++;
    }
    return held;
}

/* For one more piece of a range; those that it has already do not go for it. */
static int make_room(struct rdma_pieces *p, struct piece_region *r, struct span range,
                     uint64_t length, struct error *err)
{
    uint64_t limit = p->config.limit;
    struct held held;

    if (has_room(p, length))
        return 0;
    pieces_collect(p);
    if (has_room(p, length))
        return 0;
    held = hold(r, range, 1);
    if (held.bytes <= limit && length <= limit - held.bytes && held.count < p->config.max_count)
        shrink(p, limit - length, p->config.max_count - 1);
    hold(r, range, -1);
    if (length > limit || held.bytes > limit - length)
        return error_set(err, EINVAL,
                         "a transfer needs %llu bytes registered at once, and the limit is %llu: "
                         "allow more pinned memory",
                         (unsigned long long)(held.bytes + length), (unsigned long long)limit);
    if (held.count >= p->config.max_count)
        return error_set(err, EINVAL,
                         "a transfer needs more than %u registrations at once, which is all that "
                         "the device has",
                         held.count);
    pieces_collect(p);
    return has_room(p, length) ? 0 : -EAGAIN;
}

/* How many pieces a plan would make, as far as `enough`. */
static uint32_t count_planned(const struct rdma_pieces *p, uint64_t hole, uint32_t enough)
{
    uint32_t count = 0;

    for (size_t i = 0; i < p->region_count; i++) {
        struct span left = p->regions[i].unplanned;
        uint64_t at;

        while (count < enough && region_next_missing(&p->regions[i], left, &at)) {
            left.from = region_new_range(&p->regions[i], p->config.grain, at, at, hole).to;
            count++;
        }
    }
    return count;
}

static int plan_region(struct rdma_pieces *p, struct piece_region *r, uint64_t hole,
                       struct error *err)
{
    struct span left = r->unplanned;
    struct rdma_piece *piece;
    uint64_t at;

    while (region_next_missing(r, left, &at)) {
        struct span range = region_new_range(r, p->config.grain, at, at, hole);

        if (!has_room(p, range.to - range.from))
            return 0;
        if (make(p, r, range, &piece, err) < 0)
            return -ENOMEM;
        left.from = range.to;
    }
    return 0;
}

int pieces_plan(struct rdma_pieces *p, struct error *err)
{
    uint32_t room = p->config.max_count - p->count;
    uint64_t hole = 0;
    int result = 0;

    if (!p->config.eager)
        return 0;
    while (hole < p->config.grain && count_planned(p, hole, room + 1) > room)
        hole = hole ? hole * 2 : SMALLEST_HOLE;
    for (size_t i = 0; i < p->region_count && !result; i++) {
        result = plan_region(p, &p->regions[i], hole, err);
        p->regions[i].unplanned = (struct span){0, 0};
    }
    return result;
}

/* The piece of a range that holds `at`. 0: found, 1: made, or -errno. */
static int get(struct rdma_pieces *p, struct piece_region *r, struct span range, uint64_t at,
               struct rdma_piece **out, struct error *err)
{
    size_t i = region_index(r, at);
    struct span missing;
    int result;

    if (i < r->piece_count && r->pieces[i]->offset <= at) {
        *out = r->pieces[i];
        return 0;
    }
    missing = region_new_range(r, p->config.grain, at, range.to, 0);
    result = make_room(p, r, range, missing.to - missing.from, err);
    if (!result)
        result = make(p, r, missing, out, err);
    return result < 0 ? result : 1;
}

int pieces_use(struct rdma_pieces *p, uint32_t region, uint64_t offset, uint64_t length,
               struct rdma_piece **first, struct error *err)
{
    struct piece_region *r = region_get(p, region, err);
    const struct span range = {offset, offset + length};
    struct rdma_piece *piece = NULL;
    uint64_t at = offset;
    bool made = false;

    if (!r)
        return -ENOMEM;
    do {
        struct rdma_piece *next = piece ? piece->follower : NULL;
        int result = next ? 0 : get(p, r, range, at, &next, err);

        if (result < 0) {
            if (piece)
                pieces_unuse(*first, offset, at - offset);
            return result;
        }
        made |= result > 0;
        if (!piece)
            *first = next;
        piece = next;
        atomic_fetch_add_explicit(&piece->users, 1, memory_order_relaxed);
        use_unlink(p, piece);
        use_append(p, piece);
        at = piece_end(piece);
    } while (at < range.to);
    /* Ahead of need, so that the next one finds room without waiting; not before all of this range
     * have their user, and not in a plan: neither makes pieces only to let them go. */
    if (made)
        shrink(p, p->config.limit - p->config.limit / 4, UINT32_MAX);
    return 0;
}

void pieces_unuse(struct rdma_piece *first, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;

    for (struct rdma_piece *piece = first, *next; piece; piece = next) {
        /* Without its user it may change. */
        next = piece_end(piece) < end ? piece->follower : NULL;
        atomic_fetch_sub_explicit(&piece->users, 1, memory_order_release);
    }
}

void pieces_cool(struct rdma_pieces *p, uint32_t region, uint64_t offset, uint64_t length)
{
    struct piece_region *r = region_find(p, region);

    if (!r || !length)
        return;
    for (size_t i = region_index(r, offset);
         i < r->piece_count && r->pieces[i]->offset < offset + length; i++) {
        use_unlink(p, r->pieces[i]);
        use_prepend(p, r->pieces[i]);
    }
}

void pieces_forget(struct rdma_pieces *p, uint32_t region)
{
    struct piece_region *r = region_find(p, region), forgotten;

    if (!r)
        return;
    forgotten = *r;
    *r = p->regions[--p->region_count];
    for (size_t i = 0; i < forgotten.piece_count; i++) {
        forgotten.pieces[i]->follower = NULL;
        retire(p, forgotten.pieces[i]);
    }
    region_free(&forgotten);
}

bool pieces_collect(struct rdma_pieces *p)
{
    struct rdma_piece **at = &p->gone_soon, *piece;
    bool any = false;

    while ((piece = *at)) {
        if (piece_is_ready(piece) && !piece->going)
            tell_to_go(p, piece);
        if (!piece_is_ready(piece)) {
            at = &piece->next;
            continue;
        }
        *at = piece->next;
        p->count--;
        p->bytes -= piece->length;
        p->going_count--;
        p->going_bytes -= piece->length;
        piece->length = 0;
        piece->next = p->spare;
        p->spare = piece;
        any = true;
    }
    return any;
}

struct rdma_piece *pieces_find(const struct rdma_pieces *p, uint32_t id)
{
    return id < atomic_load_explicit(&p->made, memory_order_acquire) ? piece_at(p, id) : NULL;
}

void pieces_each(struct rdma_pieces *p, void (*visit)(void *context, struct rdma_piece *piece),
                 void *context)
{
    uint32_t made = atomic_load_explicit(&p->made, memory_order_relaxed);

    for (uint32_t id = 0; id < made; id++) {
        struct rdma_piece *piece = piece_at(p, id);

        if (piece->length && !(piece->going && piece_is_ready(piece)))
            visit(context, piece);
    }
}

uint32_t pieces_count(const struct rdma_pieces *p)
{
    return p->count;
}

uint64_t pieces_bytes(const struct rdma_pieces *p)
{
    return p->bytes;
}
