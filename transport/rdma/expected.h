/* What of a region will be posted some time: extents, sorted and merged (none touches another). */
#ifndef TRANSPORT_RDMA_EXPECTED_H
#define TRANSPORT_RDMA_EXPECTED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct span {
    uint64_t from, to;
};

struct expected {
    struct span *extents; /* owned */
    size_t count, room;
};

/* Adds a span, which is not empty. 1: some of it is new, 0: all of it was expected, -ENOMEM. */
int expected_add(struct expected *e, struct span span);
/* The first extent that ends behind `at`; count when there is none. */
size_t expected_index(const struct expected *e, uint64_t at);
void expected_free(struct expected *e);

#endif
