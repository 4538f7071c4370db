/* The source's half. */
#ifndef TRANSPORT_RDMA_SOURCE_H
#define TRANSPORT_RDMA_SOURCE_H

#include "transport/rdma/lane.h"

/* supply.c: the engine's thread gives the lanes their transfers, and sees that the memory they need
 * is registered at both ends. */
/* `peer`: what the destination can register. */
int rdma_source_begin(struct rdma *r, const struct rdma_answer *peer, struct error *err);
void rdma_source_end(struct rdma *r); /* after the threads: frees pieces and registrations */
/* As the members of struct transport_ops with these names. */
int rdma_source_post(struct rdma *r, const struct transfer *transfers, unsigned n,
                     struct error *err);
int rdma_source_will_need(struct rdma *r, uint32_t region, uint64_t offset, uint64_t length,
                          struct error *err);
/* Any thread: one of the two ends has done what was asked of it for the piece. */
void rdma_source_answered(struct rdma_piece *piece);

/* source.c */
void *rdma_source_main(void *lane);

#endif
