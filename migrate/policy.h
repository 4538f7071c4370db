/* When to send another round, when to switch over, when to throttle, when to give up: a pure
 * function of the rounds so far and the limits. No clock, no memory, no I/O. */
#ifndef MIGRATE_POLICY_H
#define MIGRATE_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What is reckoned with before anything was measured: pause, load and resume; until the vCPUs stand
 * still. */
enum { POLICY_FIRST_FIXED_MS = 8, POLICY_FIRST_PAUSE_DELAY_MS = 3 };

/* The same for the size of device state. */
static inline uint64_t policy_first_state_bytes(unsigned vcpus)
{
    return (uint64_t)vcpus * (16 << 10) + (32 << 10);
}

enum on_timeout { ON_TIMEOUT_CANCEL, ON_TIMEOUT_FORCE };

struct policy_limits {
    uint64_t downtime_ns; /* the longest pause that is welcome */
    uint64_t max_time_ns; /* of the whole migration; 0: no limit */
    enum on_timeout on_timeout;
    unsigned throttle_max; /* percent of vCPU time that may be taken away; 0: none */
};

/* One finished round. */
struct policy_round {
    uint64_t pages; /* handed out by the tracker (round 0: present pages) */
    uint64_t bytes; /* guest bytes that went over the lanes (zero pages and holes do not) */
    uint64_t ns;    /* from its beginning to its last fence */
    uint64_t dirty_pages_after; /* found dirty by the collect that followed it */
    uint64_t dirty_ns;          /* how long those had to become dirty: since the collect before */
    unsigned throttle;          /* percent in force while it ran */
};

struct policy_input {
    const struct policy_round *rounds;
    size_t round_count;   /* at least 1 */
    uint64_t elapsed_ns;  /* since the migration was accepted */
    uint64_t bandwidth;   /* bytes/s, measured over the recent rounds' busy time; never 0 */
    uint64_t state_bytes; /* of device state, as estimated */
    uint64_t fixed_ns;    /* pause + load + resume + round trips, measured or estimated */
    /* from this decision until the vCPUs stand still: they go on dirtying */
    uint64_t pause_delay_ns;
};

enum policy_action { POLICY_ANOTHER_ROUND, POLICY_SWITCH_OVER, POLICY_GIVE_UP };

struct policy_decision {
    enum policy_action action;
    unsigned throttle; /* percent to set before the next round; never lowered, 0 with GIVE_UP */
    bool forced;       /* switch over although the limit will not be met (on-timeout force) */
    uint64_t predicted_downtime_ns; /* if it switched over now */
    uint64_t predicted_last_bytes;  /* that the last round would send at most */
    char why[256];                  /* one sentence with the figures behind the decision */
};

/* Decides from the last three rounds (and whether there are so many). Any thread. Rounds go on
 * without end while only the guest's dirty rate is in the way, for that may fall: `why` and the ETA
 * then say that it never converges, and max_time_ns bounds it. A limit below what pause, state and
 * resume take without any page is given up after three rounds. predicted_last_bytes counts every
 * page as sent in full, and twice the pages that get dirty during pause_delay_ns. */
struct policy_decision policy_decide(const struct policy_input *input,
                                     const struct policy_limits *limits);

/* The same, but for `why`, which stays empty: for those who decide thousands of times. */
struct policy_decision policy_choose(const struct policy_input *input,
                                     const struct policy_limits *limits);

/* Bytes/s over the most recent rounds that were large enough for their latency not to count; before
 * there was any, an assumption. Never 0. */
uint64_t policy_bandwidth(const struct policy_round *rounds, size_t count);

/* How far a round with the guest running goes ahead of what has arrived. */
struct policy_pace {
    uint64_t fence_bytes; /* from one fence to the next, at most POLICY_FENCE_BYTES */
    uint64_t fences;      /* so many under way before more is taken; at least 2 */
};

enum { POLICY_FENCE_BYTES = 64 << 20 };

/* For a path of this bandwidth (bytes/s) and round trip: what it takes in two round trips and 100
 * ms, so that it does not run dry when a busy destination is late with a fence, and at least a
 * chunk for each of the lanes (0 count as one). More would only wait, and what waits gets dirty
 * again. */
struct policy_pace policy_pace(uint64_t bandwidth, uint64_t round_trip_ns, unsigned lanes);

/* Whether so much has been posted since the last fence that another is due: all but a quarter of a
 * chunk, for a chunk with some clean pages is to count as one. */
bool policy_fence_is_due(const struct policy_pace *pace, uint64_t unfenced_bytes);

/* Bytes on their way, in the mean, when a page is taken, where a chunk has `chunk_bytes` of pages
 * to send (more than 0). */
double policy_pace_ahead(const struct policy_pace *pace, double chunk_bytes);

/* The most that a path has shown: `before`, or this round's bytes/s if it was large enough to tell.
 * What a round shows that was paced by this is no more, so that it never falls. */
uint64_t policy_best_bandwidth(uint64_t before, const struct policy_round *round);

/* The downtime if `last_bytes` were still to be sent with the guest paused. */
uint64_t policy_predict_downtime(const struct policy_input *input, uint64_t last_bytes);

#endif
