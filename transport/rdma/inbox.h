/* What the destination has registered because the source asked for it. Whatever a source asks, it
 * gets no more than the regions that are open here, and no more memory pinned than allowed. */
#ifndef TRANSPORT_RDMA_INBOX_H
#define TRANSPORT_RDMA_INBOX_H

#include "transport/rdma/lane.h"

enum inbox_state {
    INBOX_FREE,
    INBOX_REGISTERING,
    INBOX_REGISTERED, /* READY once the source is told */
    INBOX_READY,
    INBOX_DEREGISTERING,
    INBOX_GONE, /* deregistered; FREE once the source has been told */
};

/* One piece, by the source's number. Its lane's thread starts what is to be done, a registrar's
 * thread does it; the lane's thread then answers. */
struct inbox_piece {
    atomic_int state; /* enum inbox_state */
    uint32_t id, region;
    uint64_t offset, length;
    uint64_t address; /* of its first byte here */
    uint32_t local_key, remote_key;
    struct ibv_mr *registration; /* under the inbox's lock */
    struct registrar_job job;
    struct rdma *rdma;
    struct inbox_piece *next_reply;
};

int inbox_open(struct rdma *r, struct error *err);
void inbox_close(struct rdma *r); /* after all threads; deregisters what is left */

/* The lane's thread. Both begin the work; its result comes with inbox_next_reply, or ends the
 * transport. -EPROTO: a number in use, or of another lane, a range that is not open here or not as
 * large, more than the source may have. -ENOMEM. */
int inbox_register(struct rdma_lane *lane, const struct rdma_message *m, struct error *err);
int inbox_deregister(struct rdma_lane *lane, const struct rdma_message *m, struct error *err);
/* A piece of this lane that has been registered (state REGISTERED) or deregistered (GONE) since;
 * NULL when there is none. */
struct inbox_piece *inbox_next_reply(struct rdma_lane *lane);
bool inbox_has_replies(struct rdma_lane *lane);
/* Any lane's thread: where a run of a PUBLISH lands. -EPROTO when its piece is not registered or
 * not as large. */
int inbox_resolve(struct rdma *r, const struct rdma_run *run, uint64_t *address, uint32_t *key,
                  struct error *err);
/* The engine's thread, after regions_close: ends the peer's access to it at once. */
void inbox_close_region(struct rdma *r, uint32_t region);

#endif
