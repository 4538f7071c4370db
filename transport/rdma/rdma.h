/* The rdma transport: pages go by one-sided RDMA from registered source RAM to registered
 * destination RAM, through librdmacm and libibverbs, so over InfiniBand, RoCE and soft-RoCE alike.
 *
 *   rdma.c         the table of operations, start and end           both ends
 *   bind.c         lanes find each other, by token and epoch        both ends
 *   queue_pair.c   one connection: its queues, sleep, completions   both ends
 *   mailbox.c      messages on a lane, with credits                 both ends
 *   message.c      what they look like                              pure
 *   pieces.c       which ranges are registered, and which may go    source, pure
 *   registrar.c    the thread that registers and deregisters        both ends
 *   source.c       a lane's thread: outbox -> work requests         source
 *   destination.c  a lane's thread: what the source asks for        destination
 *   device.c       names, limits and counters of a device           both ends
 *   status.c       why a work request failed, in words              pure
 *   check.c        what stands in the way, before anything moves    either
 */
#ifndef TRANSPORT_RDMA_RDMA_H
#define TRANSPORT_RDMA_RDMA_H

#include "transport/transport.h"

/* Makes one end, unconnected. -ENOMEM, -EINVAL (a pin limit that leaves no room for the transport's
 * own buffers). */
int rdma_transport_new(const struct transport_params *params, struct transport **out,
                       struct error *err);

#endif
