/* What stands in the way of lanes over RDMA at this end, found out without moving anything. */
#ifndef TRANSPORT_RDMA_CHECK_H
#define TRANSPORT_RDMA_CHECK_H

#include "transport/transport.h"

/* As transport_check. Opens the device that `at` leads to and asks it; makes no connection. */
void rdma_check(const struct transport_params *params, const struct address *at,
                enum transport_end end, uint64_t bytes, struct transport_findings *out);

#endif
