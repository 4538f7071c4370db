#include "transport/rdma/status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* What a lane never asks for: who sees it has a device or driver that mixes things up. */
#define MIXED_UP "update the device's driver and firmware, at both ends"
#define DEFECT   "that is a defect: report it, with the versions of both ends"

struct named_status {
    const char *name;
    struct rdma_status status;
};

#define STATUS(name, code, meaning, remedy) [name] = {#name, {code, meaning, remedy}}

static const struct named_status statuses[] = {
    STATUS(IBV_WC_SUCCESS, EIO, "it did not fail", DEFECT),
    STATUS(IBV_WC_LOC_LEN_ERR, EMSGSIZE,
           "there were more bytes than a buffer here, or one message of the device, can take",
           "use the same wander at both ends; if it is the same, " DEFECT),
    STATUS(IBV_WC_LOC_QP_OP_ERR, EIO, "the device here takes the work request for malformed",
           DEFECT ", and those of the device's driver and firmware"),
    STATUS(IBV_WC_LOC_EEC_OP_ERR, EIO,
           "the device here speaks of a datagram context, which a lane has not", MIXED_UP),
    STATUS(IBV_WC_LOC_PROT_ERR, EFAULT,
           "memory here that the work request names is not registered for it", DEFECT),
    STATUS(IBV_WC_WR_FLUSH_ERR, ECONNRESET,
           "the lane was closed before the work request was carried out",
           "look for the first error, in the log of this end and of the peer"),
    STATUS(IBV_WC_MW_BIND_ERR, EIO,
           "the device here speaks of a memory window, which a lane has not", MIXED_UP),
    STATUS(IBV_WC_BAD_RESP_ERR, EPROTO, "the peer's device answered with what fits no request",
           MIXED_UP),
    STATUS(IBV_WC_LOC_ACCESS_ERR, EACCES,
           "memory here is not registered for what the peer sent or did", DEFECT),
    STATUS(IBV_WC_REM_INV_REQ_ERR, EPROTO,
           "the peer's device refuses the request: too long for its buffer, or not allowed there",
           "use the same wander at both ends; if it is the same, " DEFECT),
    STATUS(IBV_WC_REM_ACCESS_ERR, EACCES,
           "the peer's device refuses access to its memory: the key has ended",
           "the peer has ended the migration or closed a region: see its log"),
    STATUS(IBV_WC_REM_OP_ERR, EREMOTEIO, "the peer's device could not carry out the request",
           "see the log of the peer, and its kernel log for the device"),
    STATUS(IBV_WC_RETRY_EXC_ERR, ETIMEDOUT, "the peer acknowledged nothing, after all retries",
           "see whether the peer is alive and the link is up at both ends, whether UDP port 4791 "
           "passes every firewall between them, and whether the path carries the device's MTU"),
    STATUS(IBV_WC_RNR_RETRY_EXC_ERR, EPROTO,
           "the peer had no buffer for a message that it had "
           "given credit for",
           "its flow control has a defect: report it, with the versions of both ends"),
    STATUS(IBV_WC_LOC_RDD_VIOL_ERR, EIO,
           "the device here speaks of a datagram domain, which a lane has not", MIXED_UP),
    STATUS(IBV_WC_REM_INV_RD_REQ_ERR, EIO,
           "the peer's device speaks of a reliable datagram, which a lane does not send", MIXED_UP),
    STATUS(IBV_WC_REM_ABORT_ERR, ECONNABORTED, "the peer's device gave the request up",
           "see the log of the peer, and its kernel log for the device"),
    STATUS(IBV_WC_INV_EECN_ERR, EIO,
           "the device here speaks of a datagram context, which a lane has not", MIXED_UP),
    STATUS(IBV_WC_INV_EEC_STATE_ERR, EIO,
           "the device here speaks of a datagram context's state, which a lane has not", MIXED_UP),
    STATUS(IBV_WC_FATAL_ERR, EIO, "the device here has failed for good",
           "see the kernel log here; reset the device or load its driver anew"),
    STATUS(IBV_WC_RESP_TIMEOUT_ERR, ETIMEDOUT, "the peer's device did not answer in time",
           "see whether the peer is alive and the link is up at both ends"),
    STATUS(IBV_WC_GENERAL_ERR, EIO, "the device here failed and does not say why",
           "see the kernel log here for the device and its driver"),
    STATUS(IBV_WC_TM_ERR, EIO, "the device here speaks of tag matching, which a lane does not use",
           MIXED_UP),
    STATUS(IBV_WC_TM_RNDV_INCOMPLETE, EIO,
           "the device here speaks of a rendezvous, which a lane does not use", MIXED_UP),
};

static struct named_status find_status(enum ibv_wc_status status)
{
    static const struct named_status unknown = {
        "a status that wander does not know",
        {EIO, "the device here failed in a way of its own", MIXED_UP},
    };

    return (unsigned)status < sizeof statuses / sizeof *statuses ? statuses[status] : unknown;
}

struct rdma_status rdma_status_of(enum ibv_wc_status status)
{
    return find_status(status).status;
}

int rdma_status_error(struct error *err, unsigned lane, const char *operation, const char *device,
                      const struct ibv_wc *completion, const char *port_state)
{
    struct named_status found = find_status(completion->status);
    bool active = !strcmp(port_state, "active");
    char vendor[40] = "";

    if (completion->vendor_err)
        snprintf(vendor, sizeof vendor, ", vendor's code %#x", completion->vendor_err);
    return error_set(err, found.status.code, "lane %u: %s on %s%s%s%s failed: %s (%s %u%s); %s",
                     lane, operation, device, active ? "" : " (port ", active ? "" : port_state,
                     active ? "" : ")", found.status.meaning, found.name,
                     (unsigned)completion->status, vendor, found.status.remedy);
}

#define REACHABLE                                                                                  \
    "see whether the peer is up and listens there with rdma://, whether its address belongs to "   \
    "an RDMA device, and whether UDP port 4791 passes every firewall between"
#define SAME_NETWORK                                                                               \
    "give an address that an RDMA device of the peer has, and that an RDMA device here has a "     \
    "route to (rdma link; ip route get)"

/* Of an event; status 0 stands for every status that has no line of its own. */
static const struct event_text {
    enum rdma_cm_event_type event;
    int status;
    struct rdma_status text;
} event_texts[] = {
    {RDMA_CM_EVENT_ADDR_ERROR,
     -ENODEV,
     {ENODEV, "the way to that address leads over no RDMA device", SAME_NETWORK}},
    {RDMA_CM_EVENT_ADDR_ERROR,
     -ETIMEDOUT,
     {ETIMEDOUT, "nobody answers to that address on the link (ARP, neighbour discovery)",
      "see whether the peer is up and the link is, at both ends"}},
    {RDMA_CM_EVENT_ADDR_ERROR,
     0,
     {EHOSTUNREACH, "that address cannot be reached by RDMA", SAME_NETWORK}},
    {RDMA_CM_EVENT_ROUTE_ERROR,
     0,
     {EHOSTUNREACH, "there is no RDMA path to that address",
      "see whether the link is up; on InfiniBand, whether a subnet manager runs"}},
    {RDMA_CM_EVENT_CONNECT_ERROR,
     0,
     {ECONNREFUSED, "the connection could not be made",
      "see the logs of both ends, and whether the devices have queue pairs left (rdma resource)"}},
    {RDMA_CM_EVENT_UNREACHABLE,
     0,
     {ETIMEDOUT, "nobody answers to a request to connect", REACHABLE}},
    {RDMA_CM_EVENT_REJECTED,
     3,
     {ECONNREFUSED, "the peer's device has no resources left",
      "see how many queue pairs it has in use (rdma resource), or use fewer lanes"}},
    {RDMA_CM_EVENT_REJECTED,
     4,
     {ETIMEDOUT, "the peer gave up waiting", "see the peer's log and load, and try again"}},
    {RDMA_CM_EVENT_REJECTED,
     8,
     {ECONNREFUSED, "nobody listens there with RDMA",
      "see whether the peer still waits for this migration, and whether that address and port "
      "are its own"}},
    {RDMA_CM_EVENT_REJECTED,
     10,
     {ECONNREFUSED, "the peer still knows a connection of that number from before",
      "try again in a minute"}},
    {RDMA_CM_EVENT_REJECTED,
     12,
     {ECONNREFUSED, "the peer's device does not know that address (GID)",
      "see the addresses of both devices' ports, and whether both speak the same RoCE version"}},
    {RDMA_CM_EVENT_REJECTED,
     26,
     {ECONNREFUSED, "the peer's device cannot take packets of that size",
      "set the same MTU at both ends"}},
    {RDMA_CM_EVENT_REJECTED,
     28,
     {ECONNREFUSED, "who listens there turned the lane away, and not in wander's words",
      "see whether the peer still waits for this migration, and at that address: its log says "
      "why"}},
    {RDMA_CM_EVENT_REJECTED,
     0,
     {ECONNREFUSED, "the peer's device refuses the connection",
      "see the peer's log, and the settings of both devices (rdma link, ibv_devinfo)"}},
    {RDMA_CM_EVENT_DISCONNECTED,
     0,
     {ECONNRESET, "the peer has closed the lane", "see the peer's log"}},
    {RDMA_CM_EVENT_DEVICE_REMOVAL,
     0,
     {ENODEV, "the RDMA device here was removed",
      "see the kernel log here; rdma link shows the devices there are"}},
    {RDMA_CM_EVENT_ADDR_CHANGE,
     0,
     {ENETDOWN, "the address here has moved to another device",
      "let the network settle (bonding, failover) and try again"}},
    {RDMA_CM_EVENT_TIMEWAIT_EXIT, 0, {ECONNRESET, "the lane was closed a while ago", DEFECT}},
};

static struct rdma_status find_event(enum rdma_cm_event_type event, int status)
{
    for (size_t i = 0; i < sizeof event_texts / sizeof *event_texts; i++)
        if (event_texts[i].event == event &&
            (!event_texts[i].status || event_texts[i].status == status))
            return event_texts[i].text;
    return (struct rdma_status){EPROTO, "that is not what comes next when a lane connects", DEFECT};
}

static const char *event_name(enum rdma_cm_event_type event)
{
    static const char *const names[] = {
        "ADDR_RESOLVED",   "ADDR_ERROR",       "ROUTE_RESOLVED", "ROUTE_ERROR",
        "CONNECT_REQUEST", "CONNECT_RESPONSE", "CONNECT_ERROR",  "UNREACHABLE",
        "REJECTED",        "ESTABLISHED",      "DISCONNECTED",   "DEVICE_REMOVAL",
        "MULTICAST_JOIN",  "MULTICAST_ERROR",  "ADDR_CHANGE",    "TIMEWAIT_EXIT",
    };

    return (unsigned)event < sizeof names / sizeof *names ? names[event] : "an unknown event";
}

int rdma_event_error(struct error *err, unsigned lane, const char *peer,
                     enum rdma_cm_event_type event, int status)
{
    struct rdma_status found = find_event(event, status);
    char reason[128], detail[160] = "";

    if (status < 0)
        snprintf(detail, sizeof detail, ", %s", strerror_r(-status, reason, sizeof reason));
    else if (status > 0)
        snprintf(detail, sizeof detail, ", reason %d", status);
    return error_set(err, found.code, "lane %u: the RDMA connection to %s failed: %s (%s%s); %s",
                     lane, peer, found.meaning, event_name(event), detail, found.remedy);
}
