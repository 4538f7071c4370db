#include "transport/rdma/expected.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

size_t expected_index(const struct expected *e, uint64_t at)
{
    size_t low = 0, high = e->count;

    if (!high || e->extents[high - 1].to <= at)
        return high;
    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (e->extents[middle].to > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static int make_room(struct expected *e)
{
    size_t room = e->room ? e->room * 2 : 16;
    struct span *grown;

    if (e->count < e->room)
        return 0;
    grown = reallocarray(e->extents, room, sizeof *grown);
    if (!grown)
        return -ENOMEM;
    e->extents = grown;
    e->room = room;
    return 0;
}

int expected_add(struct expected *e, struct span span)
{
    /* One that ends where the span begins is merged with it too. */
    size_t first = expected_index(e, span.from ? span.from - 1 : 0), last;

    for (last = first; last < e->count && e->extents[last].from <= span.to; last++) {
        if (e->extents[last].from <= span.from && e->extents[last].to >= span.to)
            return 0;
    }
    if (make_room(e) < 0)
        return -ENOMEM;
    if (last > first) {
        if (e->extents[first].from < span.from)
            span.from = e->extents[first].from;
        if (e->extents[last - 1].to > span.to)
            span.to = e->extents[last - 1].to;
    }
    memmove(e->extents + first + 1, e->extents + last, (e->count - last) * sizeof span);
    e->extents[first] = span;
    e->count = e->count + 1 - (last - first);
    return 1;
}

void expected_free(struct expected *e)
{
    free(e->extents);
    *e = (struct expected){0};
}
