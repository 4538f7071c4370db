/* How a guest dirties its memory: distinct pages over growing windows of time, and where they are.
 *
 * Place matters because a round re-arms tracking chunk by chunk, just before it sends: what is sent
 * first has the whole round to become dirty again, what is sent last has none of it. So the present
 * pages, in the order in which a round sends them (by region, then by offset), are cut into bands
 * of equal size, and each has a curve of its own. Pages touched later count where they lie. */
#ifndef MIGRATE_DIRTY_PROFILE_H
#define MIGRATE_DIRTY_PROFILE_H

#include <cjson/cJSON.h>
#include <stdint.h>

#include "migrate/guest/guest.h"
#include "migrate/guest/tracker.h"

enum { PROFILE_BANDS = 64, PROFILE_WINDOWS = 24 };

/* Distinct pages found dirty `ns` after tracking was re-armed everywhere. */
struct dirty_window {
    uint64_t ns;
    uint64_t pages[PROFILE_BANDS];
    /* in which they lie, all bands together, of a tracker that hands out a chunk with all that has
     * been written in it since the collect; 0 of one that does not */
    uint64_t chunks;
};

struct dirty_profile {
    uint64_t present[PROFILE_BANDS]; /* pages of each band */
    uint64_t zero_pages;             /* present ones that hold zeros only, as estimated */
    unsigned window_count;           /* at least 1 of a profile that was sampled */
    struct dirty_window windows[PROFILE_WINDOWS]; /* ns grows; so do, or stay, the pages */
    uint64_t collect_ns;                          /* what one look at the tracker takes */
};

/* Watches the running guest for `duration_ns`, with a tracker that has been started and whose
 * earlier finds it takes; one whose collect re-arms (dirty-ring) slows the guest meanwhile, so that
 * less is found than it writes otherwise. `interrupted` as in struct rounds_config; may be NULL.
 * Blocks that long. The session's thread. -errno: the tracker's. */
int dirty_profile_sample(struct guest *guest, struct tracker *tracker, uint64_t duration_ns,
                         int (*interrupted)(void *context, struct error *err), void *context,
                         struct dirty_profile *out, struct error *err);
/* Re-arms tracking of everything that is dirty now; *pages (may be NULL) is how much that was. */
int dirty_profile_rearm(struct guest *guest, struct tracker *tracker, uint64_t *pages,
                        struct error *err);

uint64_t dirty_profile_present(const struct dirty_profile *p); /* pages of all bands */
/* Distinct pages that get dirty in `ns`, never more than there are: between the windows straight
 * lines, beyond the last as its end shows (a curve that had bent goes on bent). */
double dirty_profile_pages(const struct dirty_profile *p, double ns);
/* What the curve as a whole shows: pages written over and over (0: none found; equal to what was
 * seen when the curve did not bend yet), and pages a second that get dirty while none is. */
uint64_t dirty_profile_hot_pages(const struct dirty_profile *p);
double dirty_profile_rate(const struct dirty_profile *p);

/* As an object (curves of bands without any dirty page are left out), and back: -EPROTO. */
cJSON *dirty_profile_to_json(const struct dirty_profile *p);
int dirty_profile_from_json(const cJSON *json, struct dirty_profile *out, struct error *err);

#endif
