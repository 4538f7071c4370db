/* What a trial of lanes (trial.h) tells of the path between two hosts. Pure; any thread. */
#ifndef MIGRATE_PATH_PROFILE_H
#define MIGRATE_PATH_PROFILE_H

#include <stdint.h>

struct trial_result;

/* What pages cost between two hosts over one transport. */
struct path_profile {
    uint64_t bandwidth;      /* bytes/s of guest memory over the lanes; never 0 */
    double bandwidth_spread; /* half the width of where 90 % of moves lie by its pieces, relative */
    uint64_t zero_bandwidth; /* bytes/s at which zero pages are sifted out; 0: costs nothing */
    uint64_t setup_ns;       /* from the accepted command to the first round */
    uint64_t tracked_ns;     /* of that, what the guest's writing is tracked in: lanes open */
    uint64_t first_ns; /* of the first round beyond its pages: windows open, memory registers */
    uint64_t round_ns; /* what a round takes beyond its pages: its fence, its collect */
    uint64_t round_trip_ns; /* of the control channel */
    double guest_share; /* of its dirtying that the guest gets done while pages are sent: 0..1 */
    /* As bandwidth, from the second round on: those pages are there already. 0: the same. */
    uint64_t again_bandwidth;
    unsigned lanes; /* that pages go over */
};

/* Sets the bandwidths, the spread, first_ns and round_ns from a trial that sent at least one piece;
 * `collect_ns`: of a look at the guest's tracker. Leaves the rest as it is. */
void path_profile_weigh(const struct trial_result *trial, uint64_t collect_ns,
                        struct path_profile *path);

#endif
