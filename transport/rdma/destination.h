/* The destination's half. */
#ifndef TRANSPORT_RDMA_DESTINATION_H
#define TRANSPORT_RDMA_DESTINATION_H

#include "transport/rdma/inbox.h"
#include "transport/rdma/lane.h"

void *rdma_destination_main(void *lane);

#endif
