/* Why a work request, or a connection, failed: in words, with a remedy. Pure. */
#ifndef TRANSPORT_RDMA_STATUS_H
#define TRANSPORT_RDMA_STATUS_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "transport/base/error.h"

/* What a completion status means here ("the peer acknowledged nothing, after all retries") and what
 * to look at; the positive errno that fits it (ETIMEDOUT, EPROTO, EACCES, ECONNRESET for a flush
 * …). Never NULL. */
struct rdma_status {
    int code;
    const char *meaning, *remedy;
};
struct rdma_status rdma_status_of(enum ibv_wc_status status);

/* Sets err: "lane 2: RDMA WRITE on rxe0 (port down) failed: <meaning> (<name of the status>);
 * <remedy>" and returns -code. `operation`: "RDMA WRITE", "SEND of a message", … `port_state`:
 * "active" is not worth a word. */
int rdma_status_error(struct error *err, unsigned lane, const char *operation, const char *device,
                      const struct ibv_wc *completion, const char *port_state);

/* Sets err for an event other than the one that was waited for while connecting ("the destination's
 * address cannot be reached by RDMA: …; remedy") and returns -errno: ADDR_ERROR, ROUTE_ERROR,
 * CONNECT_ERROR, UNREACHABLE, REJECTED (8: nobody listens there …), DEVICE_REMOVAL, DISCONNECTED.
 */
int rdma_event_error(struct error *err, unsigned lane, const char *peer,
                     enum rdma_cm_event_type event, int status);

#endif
