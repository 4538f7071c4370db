/* The transport interface: moves bytes of guest RAM into regions that the peer has opened.
 *
 * It is cut at placement, not at bytes: the engine posts "these bytes land at region R, offset O";
 * how they get there is the transport's business. A transport object is one end of one epoch of one
 * session: it owns its lanes, their threads and their sockets. The control channel is not its
 * concern.
 *
 *   source                                       destination
 *   new, open_region*, connect                   new, open_region*, listen, (tell the port), accept
 *   { post* kick reap* fence }*                  reap (only to learn of an error)
 *   shutdown, close                              shutdown, close
 *
 * The contract (each line has a conformance test, run against every transport and every filter
 * around it):
 *  1. post never blocks and says how many transfers it took. Bytes stay the caller's until reaped.
 *  2. A completed transfer frees the source bytes; it proves nothing about the destination. Only a
 * fence does: it completes once ALL lanes at the destination, the blob decoder included, have
 * applied everything posted before it. Several fences may be outstanding; they complete in order.
 *  3. A page may be posted again, or in another encoding, only after a fence covering it has
 * completed. So transfers need no affinity to a lane and lanes no order between them.
 *  4. Two-sided data is checked (region known, range inside it) before a byte is applied. Bad input
 * ends the transport with -EPROTO and a clear text and touches no memory.
 *  5. shutdown, from any thread, idempotent, wakes everyone: after it every call returns
 * -ESHUTDOWN, at the latest within a second. close joins all threads and frees; after it nothing
 * lands any more.
 *  6. A lane binds by token and epoch; one that presents others is turned away and disturbs
 * nothing.
 *  7. What differs between transports is said by capabilities; the engine has no other way to tell.
 *
 * Threads: post, kick, fence, reap, open_region, close_region, will_need, done_with from one thread
 * (the engine's); shutdown, stats and describe from any. A transport that has failed keeps
 * returning its first error. */
#ifndef TRANSPORT_TRANSPORT_H
#define TRANSPORT_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/base/address.h"
#include "transport/base/error.h"

enum {
    TRANSPORT_TOKEN_SIZE = 16,
    TRANSPORT_MAX_LANES = 64,
    TRANSPORT_MAX_REGIONS = 64,
    TRANSPORT_MAX_TRANSFER = 1 << 20, /* bytes in one PLACE: a chunk */
    TRANSPORT_MAX_BLOB = 64 << 10,    /* bytes in one BLOB */
    TRANSPORT_DEFAULT_PIN_LIMIT = 256 << 20,
    TRANSPORT_MAX_COUNTERS = 48,
};

enum transport_capability {
    TRANSPORT_ONE_SIDED = 1 << 0,    /* the destination's CPU does not see the pages land */
    TRANSPORT_PINS_MEMORY = 1 << 1,  /* regions get pinned while registered */
    TRANSPORT_HOLDS_SOURCE = 1 << 2, /* bytes are read after post returned, until the fence */
    TRANSPORT_ENCRYPTS = 1 << 3,
};

/* Receives one BLOB: `size` bytes, valid during the call only. Runs on a lane thread of the
 * destination, several at once. Returns 0 or -errno with a text; an error ends the transport. */
typedef int transport_decode_fn(void *context, const void *bytes, size_t size, struct error *err);

/* How one-sided transports move bytes, and when they register (pin) memory. The source's choice:
 * its lanes tell the destination when they bind. Transports without such a thing ignore these. */
enum transport_operation {
    TRANSPORT_WRITE, /* the source's card writes */
    TRANSPORT_READ,  /* the destination's card pulls: its host does the work */
};
enum transport_registration {
    TRANSPORT_REGISTER_ALL,   /* what will_need names, at once */
    TRANSPORT_REGISTER_CHUNK, /* a chunk at a time, ahead of need, at most pin_limit at once */
};

struct transport_params {
    uint8_t token[TRANSPORT_TOKEN_SIZE]; /* names the session */
    uint32_t epoch;              /* the connected stretch of it that these lanes belong to */
    unsigned lanes;              /* 1..TRANSPORT_MAX_LANES */
    transport_decode_fn *decode; /* destination only; NULL refuses BLOBs */
    void *decode_context;
    /* a lane whose peer acknowledges nothing for so long is dead; 0: 5000 */
    unsigned dead_after_ms;
    enum transport_operation operation;
    enum transport_registration registration;
    /* bytes that this end may have pinned at once, the transport's own buffers among them; the
     * smaller limit of the two ends counts, with TRANSPORT_REGISTER_CHUNK only. 0:
     * TRANSPORT_DEFAULT_PIN_LIMIT */
    uint64_t pin_limit;
    unsigned dscp; /* 0..63, of the lanes' packets; 0: as the system does */
};

/* A contiguous piece of guest RAM at this end. The memory is the guest's and outlives the
 * transport. */
struct transport_region {
    uint32_t id;
    void *base;
    uint64_t size;
};

enum transfer_kind { TRANSFER_PLACE, TRANSFER_BLOB };
enum transfer_class { TRANSFER_BULK, TRANSFER_URGENT }; /* urgent: reserved, for post-copy */

struct transfer {
    enum transfer_kind kind;
    uint8_t lane_class; /* enum transfer_class; only TRANSFER_BULK is accepted so far */
    bool notify; /* the destination learns that this one landed: reserved, must be false so far */
    uint32_t region; /* PLACE: where it lands */
    uint64_t offset;
    const void
        *bytes; /* PLACE: at most TRANSPORT_MAX_TRANSFER and inside an open region of this end */
    size_t length;
    void *cookie; /* comes back in its completion; NULL: completes silently */
};

enum completion_kind { COMPLETION_TRANSFER, COMPLETION_FENCE };

struct completion {
    enum completion_kind kind;
    void *cookie;   /* COMPLETION_TRANSFER */
    uint64_t fence; /* COMPLETION_FENCE */
};

/* Counted since the start, monotonic. Units: bytes, calls. */
struct transport_stats {
    uint64_t posted_bytes; /* taken by post: PLACE lengths plus BLOB lengths */
    uint64_t wire_bytes;   /* sent by this end on its lanes, headers included, both directions' own
                              share */
    /* transfers completed, silent ones included: the engine's sign of progress */
    uint64_t completed;
    uint64_t outstanding;  /* transfers taken and not completed, plus fences not completed */
    uint64_t frames;       /* units of work on the wire (frames, work requests) */
    uint64_t system_calls; /* made to move data, where it makes any */
};

/* An error counter of a device: when the lanes bound, and now (or when they ended). */
struct transport_counter {
    char name[48];
    uint64_t before, after;
};

/* The device below a transport that has one of its own, and what it was asked to do. Counted at
 * this end since the start. */
struct transport_device {
    char name[64], link_layer[16]; /* "rxe0", "Ethernet" */
    char gid[48], gid_type[16];    /* an address, "RoCE v2" */
    unsigned port, mtu;            /* mtu: of the path, payload bytes */
    uint64_t max_message;          /* bytes in one work request */
    uint64_t max_work_requests;    /* under way on one lane */
    uint64_t work_requests;        /* posted: transfers, messages */
    uint64_t data_work_requests;   /* those among them that move bytes of regions */
    uint64_t data_bytes;           /* that these moved */
    uint64_t signalled;            /* work requests that asked for a completion */
    uint64_t registrations;        /* of memory, the transport's own buffers among them */
    uint64_t registered_bytes;     /* all of them added up */
    uint64_t register_ns;          /* spent in registering, all threads added up */
    uint64_t pinned_bytes, pinned_peak_bytes; /* now; most at any time */
    enum transport_operation operation;
    enum transport_registration registration;
    unsigned counter_count;
    struct transport_counter counters[TRANSPORT_MAX_COUNTERS];
};

struct transport {
    const struct transport_ops *ops;
};

/* Every member is required. `err` is never NULL. */
struct transport_ops {
    const char *name;

    /* Union of transport_capability. */
    unsigned (*capabilities)(const struct transport *t);

    /* Destination: binds and listens at `at` (port 0: any; *port is what it became), does not
     * block. */
    int (*listen)(struct transport *t, const struct address *at, uint16_t *port, struct error *err);
    /* Destination: waits until all lanes have bound, at most timeout_ms (-ETIMEDOUT). Blocks. */
    int (*accept)(struct transport *t, int timeout_ms, struct error *err);
    /* Source: opens all lanes, at most timeout_ms. Blocks; shutdown wakes it. */
    int (*connect)(struct transport *t, const struct address *peer, int timeout_ms,
                   struct error *err);

    /* Makes a region known at this end; may be called before or after the lanes exist. -EEXIST,
     * -EINVAL. */
    int (*open_region)(struct transport *t, const struct transport_region *region,
                       struct error *err);
    /* Forgets it; nothing of it may be outstanding. */
    int (*close_region)(struct transport *t, uint32_t id, struct error *err);
    /* Hints: this range will be posted soon; will not be posted again soon. Never fail, never
     * block. */
    void (*will_need)(struct transport *t, uint32_t region, uint64_t offset, uint64_t length);
    void (*done_with)(struct transport *t, uint32_t region, uint64_t offset, uint64_t length);

    /* Source: takes the first k of n transfers, in order, and returns k: 0 when there is no room
     * (reap, then try again). The array itself is the caller's again at once. */
    int (*post)(struct transport *t, const struct transfer *transfers, unsigned n,
                struct error *err);
    /* Source: what was posted starts to move now. */
    int (*kick)(struct transport *t, struct error *err);
    /* Source: posts fence `id` (greater than all before) behind everything posted so far, on every
     * lane. -EAGAIN when too many are outstanding (1024 here; reap first), -EINVAL when `id` does
     * not grow. */
    int (*fence)(struct transport *t, uint64_t id, struct error *err);
    /* Source: up to `max` completions; waits at most timeout_ms for the first (0: does not wait,
     * -1: no limit). Returns how many, 0 when none came; early, too, when a post found no room and
     * there is room again. Destination: returns 0 after timeout_ms, or the error that ended the
     * transport, at once; a lane closed by the source is -ECONNRESET (whether that was expected is
     * for the session to know). */
    int (*reap)(struct transport *t, struct completion *completions, unsigned max, int timeout_ms,
                struct error *err);

    void (*stats)(const struct transport *t, struct transport_stats *stats);
    /* False for a transport without a device of its own, and before its lanes have bound. Any
     * thread. */
    bool (*describe)(const struct transport *t, struct transport_device *device);
    void (*shutdown)(struct transport *t);
    /* Shuts down if need be, joins, frees `t`. Blocks until every lane thread is gone. */
    void (*close)(struct transport *t);
};

/* Makes an unconnected transport for `scheme` ("tcp"). -EPROTONOSUPPORT names the schemes there
 * are. */
int transport_new(const char *scheme, const struct transport_params *params, struct transport **out,
                  struct error *err);
/* What one end of a transport would run over, and what is in its way, each with its remedy. */
enum { TRANSPORT_MAX_FINDINGS = 16, TRANSPORT_FINDING_SIZE = 400 };
struct transport_finding {
    bool fatal; /* lanes cannot work; else: they may be worse than they could */
    char text[TRANSPORT_FINDING_SIZE];
};
struct transport_findings {
    char device[64], link_layer[16], gid_type[16]; /* "": no such thing, or not found */
    char passage[48]; /* what the network between must let through: "UDP port 4791 (RoCE v2)" */
    unsigned port, mtu;
    unsigned count;
    struct transport_finding all[TRANSPORT_MAX_FINDINGS];
};

/* Looks at this end without moving anything: the destination, whose lanes would come in at the
 * address `at` (of its own), or the source, whose lanes would lead to it. `bytes`: guest memory
 * that would be sent. Blocks for at most 2 s. Any thread. */
enum transport_end { TRANSPORT_SOURCE, TRANSPORT_DESTINATION };
void transport_check(const char *scheme, const struct transport_params *params,
                     const struct address *at, enum transport_end end, uint64_t bytes,
                     struct transport_findings *out);
/* One more, for implementations; beyond TRANSPORT_MAX_FINDINGS it is dropped. */
void transport_findings_add(struct transport_findings *findings, bool fatal, const char *format,
                            ...) __attribute__((format(printf, 3, 4)));

/* Whether there is a transport for `scheme`: 0, or -EPROTONOSUPPORT with those there are. A build
 * may lack what it takes to make one; that is for transport_new to say. */
int transport_scheme_check(const char *scheme, struct error *err);
/* "write", "read"; "all", "chunk". */
const char *transport_operation_name(enum transport_operation operation);
const char *transport_registration_name(enum transport_registration registration);
/* Wraps *transport in the filters of `spec`, "rate=100M,delay=5ms,fault=cut@17", leftmost
 * outermost; takes ownership and replaces *transport. On error *transport is as before. Filters:
 * transport/filter/filter.h. */
int transport_wrap(const char *spec, struct transport **transport, struct error *err);
/* Checks a filter specification without building anything. */
int transport_wrap_check(const char *spec, struct error *err);

/* Checked, traced doors to the table; callers and filters use these and never the table itself.
 * They reject arguments that break the contract with -EINVAL before an implementation sees them. */
unsigned transport_capabilities(const struct transport *t);
int transport_listen(struct transport *t, const struct address *at, uint16_t *port,
                     struct error *err);
int transport_accept(struct transport *t, int timeout_ms, struct error *err);
int transport_connect(struct transport *t, const struct address *peer, int timeout_ms,
                      struct error *err);
int transport_open_region(struct transport *t, const struct transport_region *region,
                          struct error *err);
int transport_close_region(struct transport *t, uint32_t id, struct error *err);
void transport_will_need(struct transport *t, uint32_t region, uint64_t offset, uint64_t length);
void transport_done_with(struct transport *t, uint32_t region, uint64_t offset, uint64_t length);
int transport_post(struct transport *t, const struct transfer *transfers, unsigned n,
                   struct error *err);
int transport_kick(struct transport *t, struct error *err);
int transport_fence(struct transport *t, uint64_t id, struct error *err);
int transport_reap(struct transport *t, struct completion *completions, unsigned max,
                   int timeout_ms, struct error *err);
void transport_stats(const struct transport *t, struct transport_stats *stats);
bool transport_describe(const struct transport *t, struct transport_device *device);
void transport_shutdown(struct transport *t);
void transport_close(struct transport *t); /* NULL is fine */

#endif
