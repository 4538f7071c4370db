/* One vCPU's part of the workload, and what all share. */
#ifndef LAB_IMAGE_VCPU_H
#define LAB_IMAGE_VCPU_H

#include <stdbool.h>
#include <stdint.h>

#include "clock.h"
#include "memory.h"
#include "migrate/guest/stamp.h"

/* Set once by vCPU 0 before the others start; constant from then on. */
struct workload_guest {
    const struct clock *clock;
    struct parameters parameters;
    struct hot_set hot;
    uint64_t started; /* clock */
};

/* Which check is due: vCPU 0 asks, the others answer in their own struct. `request` is written
 * before `moves`, and read after it, so that whoever sees the newest move sees its check too. */
struct check_request {
    uint32_t request; /* goes up by one a check */
    uint32_t moves;   /* the newest move that vCPU 0 has noted */
};

/* The rate as a schedule: `written` pages at `since`, then one after another at its time. */
struct schedule {
    uint64_t since, written;
    uint64_t passed;       /* when pages were last asked for */
    uint64_t pages_per_ns; /* 0.64 fixed point; 0: as fast as it can */
    uint64_t ns_per_page;  /* 32.32 fixed point */
};

/* Written by its own vCPU only; vCPU 0 reads the fields marked "shared". A cache line of its own
 * each. */
struct vcpu {
    uint32_t number;
    uint32_t sequence; /* of the next stamp, never 0 */
    uint64_t counter;  /* shared: writes so far */
    struct schedule schedule;
    uint64_t batch;      /* pages written between two looks at the clock at most */
    bool wrote_batch;    /* since the newest look */
    uint64_t looked;     /* clock, at the newest look */
    uint32_t moves;      /* at the newest look */
    uint64_t rest_until; /* clock; UINT64_MAX: nothing to write, ever */

    uint32_t check_request; /* the check under way or done */
    uint64_t check_place;   /* the next page to check */
    uint64_t check_pages;   /* shared: checked in this one */
    uint64_t check_found;   /* shared: bad ones in this one */
    uint64_t check_bad;     /* shared: bad ones in all checks together */
    uint64_t bad_page;      /* shared: the first bad one */
    enum stamp_result bad_result;
    uint32_t check_done; /* shared: the newest check finished, written last */
} __attribute__((aligned(64)));

extern struct workload_guest guest;
extern struct check_request check;
extern struct vcpu vcpu_table[];

/* vcpu.c: one vCPU's life. */
_Noreturn void vcpu_main(uint32_t number);

/* writer.c: writes the next `count` pages of the pattern. */
void write_pages(struct vcpu *v, uint64_t count, uint64_t now);

/* self_check.c: checks some pages if a check is due; true if it was. A vCPU that checks does not
 * write. */
bool check_step(struct vcpu *v);

/* pace.c: `rate` in pages per second. */
void schedule_init(struct schedule *s, uint64_t rate, uint64_t now);
/* From now on, with nothing to make up for. */
void schedule_restart(struct schedule *s, uint64_t written, uint64_t now);
/* How many pages to write now. */
uint64_t schedule_due(struct schedule *s, uint64_t written, uint64_t now);
/* When the next page is due. */
uint64_t schedule_next(const struct schedule *s, uint64_t written);

/* keeper.c, for vCPU 0: reports, moves, requests. `gap` is the pause before, if `moves` is new. */
void keeper_init(uint64_t now);
void keeper_look(uint64_t now, uint32_t moves, uint64_t gap);

/* smp.c: starts processors until `count` run vcpu_main; panics when some do not. */
void start_processors(uint32_t count);

#endif
