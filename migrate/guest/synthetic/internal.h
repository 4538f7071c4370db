/* What the parts of the synthetic guest share.
 *
 * Its RAM is one region, "ram":
 *
 *   0                                      the sequence table: for each vCPU a piece of
 * `table_stride` bytes, whole pages, with a u32 for every hot page it owns, in order of their
 * places vcpus * table_stride = workload_at     the workload's area: bulk content in [0, touch),
 * the hot set at hot_at
 *
 * Each write adds one to the sequence of a page and stamps the page with it. The table is guest RAM
 * like any other: it migrates as such, and a lost page of it shows as stale stamps. Should a table
 * page and all its hot pages be lost together, the sum of the sequences no longer is the number of
 * writes, which travels with the state. */
#ifndef MIGRATE_GUEST_SYNTHETIC_INTERNAL_H
#define MIGRATE_GUEST_SYNTHETIC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "migrate/guest/guest.h"
#include "migrate/guest/stamp.h"
#include "migrate/guest/synthetic/synthetic.h"

struct synthetic;

/* A check of one vCPU's share under way, and its findings. */
struct share_check {
    uint64_t place; /* the next one to look at */
    uint64_t pages, bad;
    uint32_t sum; /* of the sequences */
    uint64_t bad_page;
    /* of bad_page, the first bad one; STAMP_GOOD: only the sum is wrong */
    enum stamp_result bad_result;
};

/* Fields belong to the vCPU's thread while it runs, to the session's thread while all are parked.
 */
struct vcpu {
    _Alignas(64) struct synthetic *guest;
    pthread_t thread;
    unsigned number;
    uint32_t *sequences;                /* its piece of the table */
    uint64_t share;                     /* hot pages it owns */
    _Atomic uint64_t written;           /* read by anyone */
    uint64_t paced_from, paced_written; /* the schedule counts from here: ns, writes */
    unsigned paced_throttle;            /* percent in force since then */
    uint64_t slice_from;                /* running since, for the duty cycle */
    struct share_check check;
    bool parked, checking; /* under the guest's lock */
};

struct synthetic {
    struct guest guest;
    char name[GUEST_NAME_SIZE];
    struct guest_region region;
    struct workload workload;
    uint64_t table_stride;
    uint8_t *hot; /* the hot set */
    unsigned vcpu_count, vcpus_started;
    struct vcpu *vcpus;

    atomic_uint attention; /* not 0: vCPUs come and look at what is under the lock */
    atomic_uint throttle;  /* percent */

    /* Under `lock`; `changed` is broadcast after every change. Nothing else is locked while it is
     * held. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool hold, ending;
    unsigned parked;
    uint64_t resumed_at;           /* when the first vCPU set out, since the newest resume; 0: none has */
    bool check_wanted;             /* start one as soon as none is running */
    unsigned checks_left;          /* vCPUs that have not finished the running one */
    struct share_check found;      /* of those that have */
    struct guest_workload account; /* but for pages_written */
    char console[256];

    /* As vCPU 0's own fields. The guest's clock is CLOCK_MONOTONIC of the host it was started on:
     * that of this host plus clock_delta. */
    int64_t clock_delta;
    uint64_t started_at, last_seen; /* guest clock, ns; 0: not run yet */
    bool gap_pending;               /* the first look at the clock after a move measures the gap */
    uint64_t sampled_at, sampled_written;
    bool ran; /* on this host */
};

static inline uint64_t synthetic_hot_pages(const struct workload *workload)
{
    return workload->hot / GUEST_PAGE_SIZE;
}

static inline uint64_t synthetic_written(const struct synthetic *s)
{
    uint64_t written = 0;

    for (unsigned i = 0; i < s->vcpu_count; i++)
        written += atomic_load_explicit(&s->vcpus[i].written, memory_order_relaxed);
    return written;
}

/* vcpu.c. A vCPU's thread: parks while the guest is on hold, ends when it is ending. */
void *vcpu_run(void *vcpu);
/* Under the lock: sets `attention` from what is there, and wakes everyone. */
void synthetic_changed(struct synthetic *s);

/* state.c. The platform part of a description: the workload. decode checks everything but sizes:
 * -EBADMSG. */
enum { SYNTHETIC_PLATFORM_SIZE = 64 };
void synthetic_platform_encode(const struct workload *workload,
                               uint8_t out[SYNTHETIC_PLATFORM_SIZE]);
int synthetic_platform_decode(const void *bytes, size_t size, struct workload *out,
                              struct error *err);
int synthetic_save(struct guest *g, struct guest_state *out, struct error *err);
int synthetic_load(struct guest *g, const void *bytes, size_t size,
                   const struct guest_load_context *context, struct error *err);

#endif
