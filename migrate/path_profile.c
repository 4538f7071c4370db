#include "migrate/path_profile.h"

#include <math.h>

#include "migrate/numbers.h"
#include "migrate/trial.h"

enum {
    GROUPS = 8, /* of pieces, whose times show how steady the path is */
    FEWEST_GROUPS = 3,
};

static const double UNKNOWN_SPREAD = 0.1, WIDEST = 0.9;

static uint64_t median_fence(const struct trial_result *trial)
{
    double ns[TRIAL_MAX_FENCES];

    for (unsigned i = 0; i < trial->fence_count; i++)
        ns[i] = (double)trial->fence_ns[i];
    sort_doubles(ns, trial->fence_count);
    return to_u64(quantile(ns, trial->fence_count, 0.5));
}

/* What a byte took from the end of piece `from` to that of piece `to`. */
static double ns_per_byte(const struct trial_result *trial, unsigned from, unsigned to)
{
    uint64_t bytes = 0, ns = trial->pieces[to].at_ns - trial->pieces[from].at_ns;

    for (unsigned i = from + 1; i <= to; i++)
        bytes += trial->pieces[i].bytes;
    return (double)(ns ? ns : 1) / (double)bytes;
}

/* Half the width of where the middle 90 % lie, relative to `mean`; sorts them. */
static double spread_of(double *values, unsigned count, double mean)
{
    sort_doubles(values, count);
    double width = quantile(values, count, 0.95) - quantile(values, count, 0.05);
    return smaller(width / 2 / mean, WIDEST);
}

/* Without its fence, which counts for the round. */
static double again_ns_per_byte(const struct trial_result *trial, uint64_t fence)
{
    uint64_t ns = trial->again_ns;

    ns -= fence < ns / 2 ? fence : ns / 2;
    return trial->again_bytes ? (double)ns / (double)trial->again_bytes : 0;
}

/* The first piece has what happens once, too: windows that open, the first memory that is
 * registered. What came after it shows the bandwidth, unless the first was only told of late: then
 * the others look quicker than the same pages did the second time, which they never are. So that
 * time counts, unless something disturbed it: then it took longer than the whole trial. */
static double settled_ns_per_byte(const struct trial_result *trial, double again)
{
    unsigned last = trial->piece_count - 1;
    double later = ns_per_byte(trial, 0, last);
    double whole = (double)trial->pieces[last].at_ns / (double)trial->bytes;

    return larger(later, smaller(again, whole));
}

/* Spread is taken of times: fences that are seen together would make rates of no meaning. What
 * counts is by how much the mean of the trial and that of a move differ, each of so many pieces or
 * more. */
static double spread_of_pieces(const struct trial_result *trial, unsigned groups, double byte_ns)
{
    unsigned last = trial->piece_count - 1;
    double times[GROUPS];

    for (unsigned i = 0; i < groups; i++)
        times[i] = ns_per_byte(trial, i * last / groups, (i + 1) * last / groups);
    return spread_of(times, groups, byte_ns) * sqrt(2.0 / groups);
}

static uint64_t bandwidth_of(double byte_ns)
{
    return byte_ns < 1e9 ? (uint64_t)(1e9 / larger(byte_ns, 1e-6)) : 1;
}

void path_profile_weigh(const struct trial_result *trial, uint64_t collect_ns,
                        struct path_profile *path)
{
    unsigned last = trial->piece_count - 1, groups = last < GROUPS ? last : GROUPS;
    uint64_t fence = median_fence(trial);
    double byte_ns = (double)trial->ns / (double)trial->bytes;
    double again = again_ns_per_byte(trial, fence);

    path->bandwidth_spread = UNKNOWN_SPREAD;
    path->first_ns = 0;
    if (groups >= FEWEST_GROUPS) {
        byte_ns = settled_ns_per_byte(trial, again);
        double extra_ns = (double)trial->pieces[last].at_ns - byte_ns * (double)trial->bytes;
        path->first_ns = extra_ns > 0 ? (uint64_t)extra_ns : 0;
        path->bandwidth_spread = spread_of_pieces(trial, groups, byte_ns);
    }
    path->bandwidth = bandwidth_of(byte_ns);
    path->again_bandwidth = again > 0 ? bandwidth_of(smaller(again, byte_ns)) : 0;
    path->round_ns = fence + collect_ns;
}
