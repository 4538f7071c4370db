/* Small arithmetic that predictions, costs and the policy share. */
#ifndef MIGRATE_NUMBERS_H
#define MIGRATE_NUMBERS_H

#include <stdint.h>
#include <stdlib.h>

static inline double smaller(double a, double b)
{
    return a < b ? a : b;
}

static inline double larger(double a, double b)
{
    return a > b ? a : b;
}

/* INT64_MAX for what is larger: two of them add up, and UINT64_MAX goes on to mean "never". */
static inline uint64_t to_u64(double value)
{
    return value >= 0x1p63 ? INT64_MAX : value > 0 ? (uint64_t)value : 0;
}

static inline int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static inline void sort_doubles(double *values, unsigned count)
{
    qsort(values, count, sizeof(*values), compare_doubles);
}

/* Of sorted values, `share` from 0 to 1; between two of them a straight line; 0 of none. */
static inline double quantile(const double *sorted, unsigned count, double share)
{
    if (!count)
        return 0;
    double at = share * (count - 1);
    unsigned below = (unsigned)at, above = below + 1 < count ? below + 1 : below;
    double part = at - below;
    return sorted[below] * (1 - part) + sorted[above] * part;
}

#endif
