/* What a device says of itself: names, limits, error counters. */
#ifndef TRANSPORT_RDMA_DEVICE_H
#define TRANSPORT_RDMA_DEVICE_H

#include <rdma/rdma_cma.h>

#include "transport/transport.h"

/* Fills name, port, link_layer, gid, gid_type, mtu and max_message of the device that a bound or
 * resolved id leads to; with a connected queue pair, mtu is the path's, else the port's. What
 * cannot be learned stays empty or 0. */
void device_read(struct rdma_cm_id *id, struct transport_device *out);
/* The port's error counters, those the driver has: `before` (first time) or `after` of each. */
void device_read_counters(struct transport_device *device, bool first);
/* "down", "active" …: for messages. "?" when it cannot be asked. */
const char *device_port_state(struct ibv_context *verbs, unsigned port);
unsigned device_mtu_bytes(enum ibv_mtu mtu); /* 256..4096 */

#endif
