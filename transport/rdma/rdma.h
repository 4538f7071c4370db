/* The rdma transport: pages go by one-sided RDMA from registered source RAM to registered
 * destination RAM, through librdmacm and libibverbs, so over InfiniBand, RoCE and soft-RoCE alike.
 *
 *   rdma.c                the table of operations, start and end            both ends
 *   bind.c, bind_*.c      lanes find each other, by token and epoch         both ends
 *   lane.c                what both ends do with a lane                     both ends
 *   queue_pair.c          one connection's queues, completions, sleep       both ends
 *   mailbox.c             messages on a lane, with credits                  both ends
 *   message.c             what they look like                               pure
 *   supply.c              transfers get their pieces and go to lanes        source, engine's thread
 *   pieces.c              which ranges are registered, and which may go     source, pure
 *   piece_region.c, expected.c    the same of one region                    source, pure
 *   source.c              a lane's thread: outbox -> work requests          source
 *   inbox.c               what the source has had registered here           destination
 *   destination.c         a lane's thread: what the source asks for         destination
 *   registrar.c           threads that register and deregister              both ends
 *   device.c              names, limits and counters of a device            both ends
 *   status.c              why a work request failed, in words               pure
 *   check.c               what stands in the way, before anything moves     either
 */
#ifndef TRANSPORT_RDMA_RDMA_H
#define TRANSPORT_RDMA_RDMA_H

#include "transport/transport.h"

/* Makes one end, unconnected. -ENOMEM, -EINVAL (a pin limit that leaves no room for the transport's
 * own buffers). */
int rdma_transport_new(const struct transport_params *params, struct transport **out,
                       struct error *err);

#endif
