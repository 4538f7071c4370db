/* The curves of a dirty profile, made ready for a simulation that looks at them thousands of times:
 * in fewer places than the profile has bands, and already gone on with beyond its windows. Private
 * to the profile and the prediction. */
#ifndef MIGRATE_DIRTY_CURVE_H
#define MIGRATE_DIRTY_CURVE_H

#include "migrate/dirty_profile.h"

enum {
    CURVE_GROUPS = 16,       /* PROFILE_BANDS is a multiple */
    CURVE_EXTRA_POINTS = 24, /* beyond the last window */
    CURVE_POINTS = PROFILE_WINDOWS + CURVE_EXTRA_POINTS,
};

struct dirty_curve {
    unsigned points;
    double ns[CURVE_POINTS]; /* growing */
    double pages[CURVE_POINTS][CURVE_GROUPS];
    double present[CURVE_GROUPS];
    double written; /* pages in all, in the last window that was watched; 0: not known */
    /* how much of what is written around that time comes along when the chunks are taken in which
     * something had been found: 0..1 */
    double along[CURVE_POINTS];
};

/* What dirty_profile_pages tells of all bands, of one. */
double dirty_curve_band(const struct dirty_profile *p, unsigned band, double ns);
void dirty_curve_make(const struct dirty_profile *profile, struct dirty_curve *out);
/* A guest of `present` pages whose curve rises by `pages_per_s` without an end. */
void dirty_curve_make_steady(double pages_per_s, double present, struct dirty_curve *out);
/* Distinct pages of a group that get dirty in `ns`. */
double dirty_curve_pages(const struct dirty_curve *c, unsigned group, double ns);
/* Whether none ever does. */
bool dirty_curve_is_idle(const struct dirty_curve *c, unsigned group);
double dirty_curve_along(const struct dirty_curve *c, double ns);
/* The shortest time in which so many get dirty; the longest known where they never do. */
double dirty_curve_ns(const struct dirty_curve *c, unsigned group, double pages);

#endif
