/* The guest interface: where RAM, dirty pages and device state come from and go to. The engine
 * knows guests only through these tables.
 *
 * A guest runs its vCPUs in threads (or processes) of its own. Calls come from one thread at a
 * time, the session's, except where a member says "any thread". */
#ifndef MIGRATE_GUEST_GUEST_H
#define MIGRATE_GUEST_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/base/error.h"

enum {
    GUEST_PAGE_SIZE = 4096,
    GUEST_PAGE_SHIFT = 12,
    GUEST_CHUNK_SIZE = 1 << 20,
    GUEST_CHUNK_PAGES = GUEST_CHUNK_SIZE / GUEST_PAGE_SIZE,
    GUEST_MAX_REGIONS = 16,
    GUEST_NAME_SIZE = 64,
    GUEST_KIND_SIZE = 16,
    GUEST_MONITOR_SIZE = 108, /* sun_path of unix(7) */
    GUEST_MAX_VCPUS = 64,
    GUEST_MAX_STATE = 16 << 20, /* bytes: more is a sign that RAM slipped into it */
};

struct guest;
struct tracker;

enum guest_backing { GUEST_ANONYMOUS, GUEST_NAMED_FILE };

/* A contiguous piece of guest RAM; size is a multiple of the page size, ids are 0..n-1. */
struct guest_region {
    uint32_t id;
    char name[32];
    uint64_t size;
    void *host; /* mapped readable and writable in this process; NULL in a description */
    enum guest_backing backing;
};

/* A touched part of a region: bytes, page aligned. Lists are sorted and without overlap. */
struct extent {
    uint64_t offset, length;
};

struct extent_list {
    struct extent *extents; /* owned by the list */
    size_t count, capacity;
};

/* Behind all that are there; merges with the last where they touch. -ENOMEM. */
int extent_list_add(struct extent_list *list, uint64_t offset, uint64_t length);
uint64_t extent_list_bytes(const struct extent_list *list);
void extent_list_free(struct extent_list *list); /* leaves an empty list */

/* A growing byte buffer for state. */
struct guest_state {
    uint8_t *bytes; /* owned */
    size_t size, capacity;
};

/* -ENOMEM, -EFBIG */
int guest_state_append(struct guest_state *state, const void *bytes, size_t size);
void guest_state_free(struct guest_state *state);

/* What a destination must know to accept a guest. `platform` belongs to the kind: an encoding of
 * its own with its own version number first (CPUID, XCR0, XSAVE size, TSC, MSRs, devices,
 * workload). */
struct guest_description {
    char kind[GUEST_KIND_SIZE]; /* "lab", "synthetic" */
    char name[GUEST_NAME_SIZE];
    char accel[GUEST_KIND_SIZE]; /* "kvm", "none" */
    uint32_t vcpus;
    uint64_t memory_bytes;
    uint32_t region_count;
    struct guest_region regions[GUEST_MAX_REGIONS];
    uint8_t *platform; /* owned by the description */
    uint32_t platform_size;
};

enum { GUEST_MAX_PLATFORM = 256 << 10 };

void guest_description_free(struct guest_description *description);

/* Reasons why a guest cannot come: all at once, one sentence each, with the remedy. */
struct reasons {
    char *text; /* owned; lines separated by '\n', NULL when there are none */
    unsigned count;
};

void reasons_add(struct reasons *reasons, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void reasons_free(struct reasons *reasons);

/* The workload's own account, as far as the guest keeps one. */
struct guest_workload {
    uint64_t pages_written; /* since the guest was first started */
    uint64_t moves;         /* migrations this guest has seen */
    /* the pause that spans the newest move, measured by the guest; 0: not known yet */
    uint64_t gap_ns;
    char gap_clock[24];     /* which clock measured it: "vmm-port", "tsc", "monotonic" */
    uint64_t checks;        /* self-checks completed */
    uint64_t check_moves;   /* value of `moves` at the newest self-check */
    uint64_t checked_pages; /* in the newest self-check */
    uint64_t bad_pages;     /* in all self-checks together: 0 or memory was corrupted */
    uint64_t rate;          /* pages written per second over the last second or so */
};

/* How the guest's clocks must be set when it goes on: CLOCK_MONOTONIC of the destination minus that
 * of the source, ns, measured over the control channel; 0 on one host. */
struct guest_load_context {
    int64_t clock_offset_ns;
};

struct guest {
    const struct guest_ops *ops;
};

/* A guest in a process of its own, as another process finds it: whoever listens at the path later
 * is another guest. */
struct guest_monitor {
    char path[GUEST_MONITOR_SIZE]; /* absolute, of its QMP socket */
    int32_t pid;
    int32_t listener; /* whose socket it is: QEMU's, or of what started it */
    uint64_t born;    /* field 22 of /proc/PID/stat: clock ticks since boot */
};

/* Who has the guest, as this end may assume. */
enum guest_holder {
    GUEST_HELD_HERE,     /* it runs here, or would if nobody were moving it */
    GUEST_HELD_IN_DOUBT, /* the other end may have it */
    GUEST_HELD_THERE,    /* the other end has it: what is here is a copy that must not run */
};

/* Every member is required unless it says "may be NULL". */
struct guest_ops {
    const char *kind;

    /* Fills `out` (owned by the caller, guest_description_free). -ENOMEM. */
    int (*describe)(struct guest *g, struct guest_description *out, struct error *err);
    /* The regions, valid as long as the guest. Any thread. */
    unsigned (*regions)(struct guest *g, const struct guest_region **out);
    /* Adds the touched extents of a region to `out`. Only after tracker start, so that a page
     * touched later is reported as dirty instead. Cost follows touched memory, not size. May run
     * while vCPUs run. */
    int (*present)(struct guest *g, uint32_t region, struct extent_list *out, struct error *err);
    /* A tracker by name, or the guest's default for NULL. -EINVAL names those there are. One at a
     * time. */
    int (*tracker)(struct guest *g, const char *name, struct tracker **out, struct error *err);

    /* Stops all vCPUs; returns when not one instruction can run any more. Idempotent. Blocks for
     * milliseconds, -ETIMEDOUT after some seconds (then resume has to follow). */
    int (*pause)(struct guest *g, struct error *err);
    /* Lets them run. Idempotent. On an incoming guest: the first instruction on this host;
     * -EINPROGRESS when it cannot be told whether it runs (it may be asked again). Any other error
     * is certain: not one instruction ran, nor will it. */
    int (*resume)(struct guest *g, struct error *err);
    bool (*paused)(struct guest *g); /* any thread */
    /* CLOCK_MONOTONIC, ns, of the moment the first vCPU set out after the newest resume; 0 while
     * none has. Any thread. */
    uint64_t (*resumed_at)(struct guest *g);

    /* Device and vCPU state; only while paused. save appends. load on an incoming guest checks all
     * it can check without running: it reads the state back and compares, and the error names each
     * register, MSR or field that differs. -EBADMSG for bytes that are no state of this version. */
    int (*save)(struct guest *g, struct guest_state *out, struct error *err);
    bool save_costs; /* milliseconds, and disks and network with it: only when nothing speaks
                        against the switchover any more */
    int (*load)(struct guest *g, const void *bytes, size_t size,
                const struct guest_load_context *context, struct error *err);

    /* Takes `percent` (0..99) of the vCPUs' time away; 0 restores full speed. */
    int (*throttle)(struct guest *g, unsigned percent, struct error *err);

    /* The workload's account. Any thread, never blocks. May be NULL: the guest keeps none. */
    void (*workload)(struct guest *g, struct guest_workload *out);
    /* Asks the running guest to check all its stamps now; the result shows in `workload`. Any
     * thread, never blocks. May be NULL. */
    int (*request_check)(struct guest *g, struct error *err);
    /* The newest text the guest wrote on its console, zero-terminated into `out`. Any thread. May
     * be NULL. */
    void (*console)(struct guest *g, char *out, size_t size);

    /* Before a migration touches the running guest: sets up what tracking, throttling and saving
     * need. May be NULL. */
    int (*prepare)(struct guest *g, struct error *err);
    /* The migration has ended and the guest stays (or, at the destination, has come): puts back
     * whatever was changed for it. After resume and throttle 0. May be NULL. */
    void (*restore)(struct guest *g);

    /* Who holds the guest from here on, told before it takes effect: what is to become of it should
     * this process die. Never blocks. May be NULL: the guest ends with its process. */
    void (*entrust)(struct guest *g, enum guest_holder holder);

    /* Where to find the guest when this process is gone. Lives as long as the guest. May be NULL:
     * it ends with its process. Any thread. */
    const struct guest_monitor *(*monitor)(struct guest *g);
    /* A descriptor that becomes readable once the guest has ended by itself; the guest's own. May
     * be NULL: it ends with its process. */
    int (*end_event)(struct guest *g);
    /* Makes certain that not one instruction runs here any more, nor will; only destroy may follow.
     * May be NULL: a paused guest stays so. -ETIMEDOUT: it is not certain. */
    int (*kill)(struct guest *g, struct error *err);
    /* Frees `g` and leaves the guest to itself as it is. May be NULL: it lives in this process. */
    void (*detach)(struct guest *g);
    /* Ends and frees the guest, RAM included. Blocks (seconds for large guests). */
    void (*destroy)(struct guest *g);
};

/* Guests in processes of their own may end without us. */
bool guest_ended(struct guest *guest);

/* What a destination makes guests with. */
struct guest_host {
    char *const *command; /* qemu: program and arguments, as the operator gave them; NULL: none */
    char runtime[256];    /* directory for sockets */
    struct guest *ready;  /* what `check` had to make for its answer, for `incoming` to take; or
                             NULL. Whoever has the host destroys it in the end */
};

/* A kind of guest, as a destination sees it. */
struct guest_kind {
    const char *kind;
    /* Adds a reason for everything that keeps this host from running the guest described. The
     * description comes from a peer: hostile until checked. Blocks briefly (opens /dev/kvm; starts
     * a QEMU). */
    void (*check)(struct guest_host *host, const struct guest_description *description,
                  struct reasons *reasons);
    /* Whether a guest runs at a monitor although the process that brought it is dead. NULL: guests
     * of this kind end with their process. */
    bool (*runs)(const struct guest_monitor *monitor);
    /* A guest whose process died while it was handed over, found by its monitor: makes it run, or
     * ends it. -ENOENT, -ECONNREFUSED: it is gone. NULL: guests of this kind end with their
     * process. */
    int (*settle)(const struct guest_monitor *monitor, bool run, struct error *err);
    /* Makes an incoming guest: RAM allocated (untouched), vCPUs there and paused. */
    int (*incoming)(struct guest_host *host, const struct guest_description *description,
                    struct guest **out, struct error *err);
};

extern const struct guest_kind lab_guest_kind;
extern const struct guest_kind synthetic_guest_kind;
extern const struct guest_kind qemu_guest_kind;

/* The kind called `name`, or NULL. */
const struct guest_kind *guest_kind_find(const char *name);

#endif
