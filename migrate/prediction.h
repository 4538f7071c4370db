/* What a migration will take: the engine's own policy, run round by round on what is known of the
 * guest (dirty_profile.h), the path (path_profile.h) and the fixed costs (costs.h). Pure: no clock,
 * no memory, no I/O. Any thread.
 *
 * A round sends the bands one after the other; each becomes dirty again from its own re-arming to
 * the end of the round, slowed down by what the guest loses while pages are sent and by throttling.
 */
#ifndef MIGRATE_PREDICTION_H
#define MIGRATE_PREDICTION_H

#include <stdbool.h>
#include <stdint.h>

#include "migrate/dirty_profile.h"
#include "migrate/path_profile.h"
#include "migrate/policy.h"

/* Of the control channel, in every downtime: the last fence, the load, the start. */
enum { DOWNTIME_ROUND_TRIPS = 3 };

/* What migrations like this one cost besides pages, learnt from earlier ones (costs.h). */
struct fixed_costs {
    unsigned samples;     /* migrations they were learnt from; 0: built-in estimates */
    uint64_t setup_ns;    /* 0: as the path says */
    uint64_t downtime_ns; /* all of the downtime but the last round's pages and round trips */
    uint64_t downtime_spread_ns; /* half the width of where 90 % of them lay */
    uint64_t finish_ns;          /* from the guest running there until the source is free */
    uint64_t state_bytes;        /* what the policy takes the device state for at first */
    double bandwidth_ratio;      /* measured over rehearsed, 1 when not known */
};

struct prediction_range {
    uint64_t expected, low, high; /* 90 % of migrations should lie between low and high */
};

struct prediction {
    bool converges; /* false: all but `needed_*` and `why` describes no end */
    struct prediction_range total_ns, downtime_ns;
    unsigned rounds;   /* the paused one included */
    uint64_t bytes;    /* over the lanes */
    unsigned throttle; /* percent at the end */
    bool forced;       /* ends by force at max_time */
    /* Does not converge: what would help, each alone. 0: does not help. */
    uint64_t needed_bandwidth; /* bytes/s over the lanes */
    unsigned needed_throttle;  /* percent */
    char why[256];             /* one sentence */
};

/* Before anything is sent. `max_bandwidth` 0: unlimited. */
void prediction_make(const struct dirty_profile *guest, const struct path_profile *path,
                     const struct fixed_costs *costs, const struct policy_limits *limits,
                     uint64_t max_bandwidth, struct prediction *out);

/* At the end of a round, from what was measured so far (`now`, as the policy sees it: its
 * bandwidth, its rounds); times count from the accepted command. `guest` NULL: its curve is what
 * the last round shows. */
void prediction_refine(const struct dirty_profile *guest, const struct path_profile *path,
                       const struct fixed_costs *costs, const struct policy_limits *limits,
                       uint64_t max_bandwidth, const struct policy_input *now,
                       struct prediction *out);
/* The expected total of the same, and nothing else: a fraction of the work. UINT64_MAX: no end. */
uint64_t prediction_end(const struct dirty_profile *guest, const struct path_profile *path,
                        const struct fixed_costs *costs, const struct policy_limits *limits,
                        uint64_t max_bandwidth, const struct policy_input *now);

/* {"converges", "total_ms", "total_low_ms", …}; times null when it does not converge. */
cJSON *prediction_to_json(const struct prediction *p);
cJSON *path_profile_to_json(const struct path_profile *p);
int path_profile_from_json(const cJSON *json, struct path_profile *out, struct error *err);
cJSON *fixed_costs_to_json(const struct fixed_costs *c);
int fixed_costs_from_json(const cJSON *json, struct fixed_costs *out, struct error *err);

#endif
