/* One migration, simulated round by round with the engine's own policy. Private to the prediction.
 */
#ifndef MIGRATE_PREDICTION_RUN_H
#define MIGRATE_PREDICTION_RUN_H

#include "migrate/dirty_curve.h"
#include "migrate/prediction.h"

enum run_end {
    RUN_SWITCHED_OVER,
    RUN_FORCED,
    RUN_GAVE_UP, /* the policy did: no time left, or the limit is below what a pause takes */
    RUN_ENDLESS,
};

/* What a run is made with. */
struct run_setting {
    const struct dirty_curve *curve;
    const struct path_profile *path;
    const struct fixed_costs *costs;
    const struct policy_limits *limits;
    double present_pages, zero_pages; /* of the first round */
    double bandwidth;                 /* bytes/s that go over the lanes */
    bool capped;                      /* by --max-bandwidth; the path has more */
    double again;                     /* how many times as much after the first round */
    double speed;                     /* of the guest: 1 as it was seen */
    uint64_t look_ns;                 /* what a look at the tracker takes */
    unsigned most_rounds;             /* what takes more is endless */
    const struct policy_input *now;   /* goes on from there; NULL: from the beginning */
};

struct run_result {
    enum run_end end;
    double total_ns, downtime_ns; /* the total without the downtime's fixed part being uncertain */
    double bytes;
    unsigned rounds, throttle;
};

struct run_result prediction_run(const struct run_setting *setting);

#endif
