#include "migrate/prediction.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "migrate/numbers.h"
#include "migrate/prediction_run.h"
#include "transport/base/clock.h"
#include "transport/base/options.h"

/* What the interval is made of, each as half a width that 90 % lie within, and taken together as
 * independent of each other. */
static const double dirtying_spread = 0.1;   /* of the guest's pace, from one time to another */
static const double model_spread = 0.02;     /* of the whole */
static const double last_round_spread = 0.1; /* of the downtime: one round, not the mean of many */
static const double least_bandwidth_spread = 0.02;
static const double capped_from = 0.9; /* of the cap: what rounds show of it once it is in force */

enum {
    MOST_BANDWIDTH = 1000, /* times what there is: what needs more is beyond help */
    SEARCH_STEPS = 10,
    RUN_ROUNDS = 1000,
    SEARCH_ROUNDS = 200, /* of one run among many */
    MOST_THROTTLE = 99,
    TELLING_BYTES = 1 << 20, /* fewer show no bandwidth */
};

static bool ends(const struct run_result *r)
{
    return r->end == RUN_SWITCHED_OVER || r->end == RUN_FORCED;
}

/* How far a prediction may be off, in ns. */
struct deviation {
    double total_below, total_above, downtime_below, downtime_above; /* squares, added up */
};

/* `other`: a run with one thing changed. One that does not end may take any time: twice is said. */
static void deviate(struct deviation *d, const struct run_result *expected,
                    const struct run_result *other)
{
    double total = ends(other) ? other->total_ns - expected->total_ns : expected->total_ns;
    double downtime = ends(other) ? other->downtime_ns - expected->downtime_ns : 0;

    *(total < 0 ? &d->total_below : &d->total_above) += total * total;
    *(downtime < 0 ? &d->downtime_below : &d->downtime_above) += downtime * downtime;
}

static void deviate_both(struct deviation *d, double total_ns, double downtime_ns)
{
    d->total_below += total_ns * total_ns;
    d->total_above += total_ns * total_ns;
    d->downtime_below += downtime_ns * downtime_ns;
    d->downtime_above += downtime_ns * downtime_ns;
}

static struct prediction_range range(double expected, double below, double above, double least)
{
    double low = larger(expected - sqrt(below), smaller(least, expected));

    return (struct prediction_range){
        .expected = to_u64(expected), .low = to_u64(low), .high = to_u64(expected + sqrt(above))};
}

/* The interval: the same run on a faster and a slower path, with a livelier and a quieter guest. */
static void say_intervals(const struct run_setting *setting, const struct run_result *expected,
                          struct prediction *out)
{
    const struct path_profile *path = setting->path;
    double spread = larger(smaller(path->bandwidth_spread, 0.9), least_bandwidth_spread);
    double changes[][2] = {
        {1 + spread, 1}, {1 - spread, 1}, {1, 1 + dirtying_spread}, {1, 1 - dirtying_spread}};
    double spent_ns = setting->now ? (double)setting->now->elapsed_ns : 0;
    double fixed_ns = (double)setting->costs->downtime_spread_ns;
    struct deviation d = {0};

    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        struct run_setting changed = *setting;
        changed.bandwidth *= changes[i][0];
        changed.speed *= changes[i][1];
        struct run_result other = prediction_run(&changed);
        deviate(&d, expected, &other);
    }
    deviate_both(&d, fixed_ns, fixed_ns);
    deviate_both(&d, model_spread * (expected->total_ns - spent_ns),
                 last_round_spread * expected->downtime_ns);
    out->total_ns = range(expected->total_ns, d.total_below, d.total_above, spent_ns);
    out->downtime_ns = range(expected->downtime_ns, d.downtime_below, d.downtime_above, 0);
}

static bool ends_with_bandwidth(struct run_setting setting, double bandwidth)
{
    setting.bandwidth = bandwidth;
    setting.most_rounds = SEARCH_ROUNDS;
    struct run_result r = prediction_run(&setting);
    return r.end == RUN_SWITCHED_OVER;
}

static uint64_t needed_bandwidth(const struct run_setting *setting)
{
    double low = setting->bandwidth, high = low * MOST_BANDWIDTH;

    if (!ends_with_bandwidth(*setting, high))
        return 0;
    for (int i = 0; i < SEARCH_STEPS; i++) {
        double middle = sqrt(low * high);
        if (ends_with_bandwidth(*setting, middle))
            high = middle;
        else
            low = middle;
    }
    return to_u64(ceil(high * setting->again));
}

/* The guest throttled from the first page on. */
static bool ends_with_throttle(struct run_setting setting, unsigned percent)
{
    setting.speed *= 1 - percent / 100.0;
    setting.most_rounds = SEARCH_ROUNDS;
    struct run_result r = prediction_run(&setting);
    return r.end == RUN_SWITCHED_OVER;
}

static unsigned needed_throttle(const struct run_setting *setting)
{
    unsigned low = 0, high = MOST_THROTTLE;

    if (!ends_with_throttle(*setting, high))
        return 0;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (ends_with_throttle(*setting, middle))
            high = middle;
        else
            low = middle;
    }
    return high;
}

/* "9.4 Gbit/s": what links are sold by. */
static char *format_bits(uint64_t bytes_per_s, char *out, size_t size)
{
    double bits = (double)bytes_per_s * 8;

    if (bits >= 1e9)
        snprintf(out, size, "%.3g Gbit/s", bits / 1e9);
    else
        snprintf(out, size, "%.3g Mbit/s", bits / 1e6);
    return out;
}

static void explain_end(const struct run_result *r, struct prediction *out)
{
    char total[16], downtime[16];

    format_time(out->total_ns.expected, total, sizeof(total));
    format_time(out->downtime_ns.expected, downtime, sizeof(downtime));
    snprintf(out->why, sizeof(out->why), "%s after %u rounds in about %s, with a downtime of %s",
             r->end == RUN_FORCED ? "ends by force" : "converges", r->rounds, total, downtime);
}

static void explain_no_end(const struct run_setting *setting, const struct run_result *r,
                           struct prediction *out)
{
    char bits[32], limit[16];
    const char *problem = r->end == RUN_GAVE_UP && setting->limits->max_time_ns
                              ? "will not converge in time"
                              : "will not converge";

    format_time(setting->limits->downtime_ns, limit, sizeof(limit));
    format_bits(out->needed_bandwidth, bits, sizeof(bits));
    const char *cap = setting->capped ? " (more than --max-bandwidth allows)" : "";
    if (out->needed_bandwidth && out->needed_throttle)
        snprintf(out->why, sizeof(out->why), "%s: needs %s%s or %u %% throttling (--throttle)",
                 problem, bits, cap, out->needed_throttle);
    else if (out->needed_bandwidth)
        snprintf(out->why, sizeof(out->why), "%s: needs %s%s", problem, bits, cap);
    else if (out->needed_throttle)
        snprintf(out->why, sizeof(out->why), "%s: needs %u %% throttling (--throttle)", problem,
                 out->needed_throttle);
    else
        snprintf(out->why, sizeof(out->why),
                 "%s: neither bandwidth nor throttling helps; needs a --downtime-limit well above "
                 "%s%s",
                 problem, limit, setting->limits->max_time_ns ? ", or more --max-time" : "");
}

static void predict(const struct run_setting *setting, struct prediction *out)
{
    struct run_result r = prediction_run(setting);

    *out = (struct prediction){.converges = ends(&r)};
    if (!out->converges) {
        out->needed_bandwidth = needed_bandwidth(setting);
        out->needed_throttle = needed_throttle(setting);
        explain_no_end(setting, &r, out);
        return;
    }
    out->rounds = r.rounds;
    out->bytes = to_u64(r.bytes);
    out->throttle = r.throttle;
    out->forced = r.end == RUN_FORCED;
    say_intervals(setting, &r, out);
    explain_end(&r, out);
}

static double path_bandwidth(const struct path_profile *path, const struct fixed_costs *costs,
                             uint64_t max_bandwidth)
{
    double ratio = costs->bandwidth_ratio > 0 ? costs->bandwidth_ratio : 1;
    double bandwidth = larger((double)path->bandwidth * ratio, 1);

    return max_bandwidth ? smaller(bandwidth, (double)max_bandwidth) : bandwidth;
}

/* How many times as fast pages go that the destination has already. */
static double path_again(const struct path_profile *path, double bandwidth, uint64_t max_bandwidth)
{
    double again = path->again_bandwidth && path->bandwidth
                       ? (double)path->again_bandwidth / (double)path->bandwidth
                       : 1;

    return max_bandwidth ? smaller(again, (double)max_bandwidth / bandwidth) : again;
}

void prediction_make(const struct dirty_profile *guest, const struct path_profile *path,
                     const struct fixed_costs *costs, const struct policy_limits *limits,
                     uint64_t max_bandwidth, struct prediction *out)
{
    struct dirty_curve curve;
    struct run_setting setting = {
        .curve = &curve,
        .path = path,
        .costs = costs,
        .limits = limits,
        .present_pages = (double)dirty_profile_present(guest),
        .zero_pages = (double)guest->zero_pages,
        .bandwidth = path_bandwidth(path, costs, max_bandwidth),
        .speed = 1,
        .look_ns = guest->collect_ns,
        .most_rounds = RUN_ROUNDS,
    };

    setting.capped = setting.bandwidth < path_bandwidth(path, costs, 0);
    setting.again = path_again(path, setting.bandwidth, max_bandwidth);
    dirty_curve_make(guest, &curve);
    predict(&setting, out);
}

/* The last round's rate at full speed, so that throttling can be told from it. */
static double last_rate(const struct path_profile *path, const struct policy_input *now)
{
    const struct policy_round *last = &now->rounds[now->round_count - 1];
    double running = 1 - smaller(last->throttle, MOST_THROTTLE) / 100.0;
    double share = larger(path->guest_share, 0.01);
    double s = larger((double)last->dirty_ns / (double)NS_PER_S, 1e-6);

    return (double)last->dirty_pages_after / s / running / share;
}

/* What the guest has, as far as the rounds tell: the first one sent all. */
static double most_pages(const struct policy_input *now)
{
    uint64_t most = 1;

    for (size_t i = 0; i < now->round_count; i++) {
        uint64_t pages = now->rounds[i].pages, dirty = now->rounds[i].dirty_pages_after;
        most = pages > most ? pages : most;
        most = dirty > most ? dirty : most;
    }
    return (double)most;
}

/* Of the rounds after the first, once they show one: those send what is there already. */
static double later_bandwidth(const struct policy_input *now)
{
    uint64_t bytes = 0;

    for (size_t i = 1; i < now->round_count; i++)
        bytes += now->rounds[i].bytes;
    return bytes < TELLING_BYTES ? 0
                                 : (double)policy_bandwidth(now->rounds + 1, now->round_count - 1);
}

static struct run_setting refined(const struct dirty_profile *guest,
                                  const struct path_profile *path, const struct fixed_costs *costs,
                                  const struct policy_limits *limits, uint64_t max_bandwidth,
                                  const struct policy_input *now, struct dirty_curve *curve)
{
    double later = later_bandwidth(now);
    double bandwidth = later > 0 ? later : larger((double)now->bandwidth, 1);

    if (guest && guest->window_count)
        dirty_curve_make(guest, curve);
    else
        dirty_curve_make_steady(last_rate(path, now), most_pages(now), curve);
    return (struct run_setting){
        .curve = curve,
        .path = path,
        .costs = costs,
        .limits = limits,
        .bandwidth = bandwidth,
        .capped = max_bandwidth && bandwidth > capped_from * (double)max_bandwidth,
        .again = later > 0 ? 1 : path_again(path, 1, 0),
        .speed = 1,
        .look_ns = guest ? guest->collect_ns : 0,
        .most_rounds = RUN_ROUNDS,
        .now = now,
    };
}

void prediction_refine(const struct dirty_profile *guest, const struct path_profile *path,
                       const struct fixed_costs *costs, const struct policy_limits *limits,
                       uint64_t max_bandwidth, const struct policy_input *now,
                       struct prediction *out)
{
    struct dirty_curve curve;
    struct run_setting setting = refined(guest, path, costs, limits, max_bandwidth, now, &curve);

    predict(&setting, out);
}

uint64_t prediction_end(const struct dirty_profile *guest, const struct path_profile *path,
                        const struct fixed_costs *costs, const struct policy_limits *limits,
                        uint64_t max_bandwidth, const struct policy_input *now)
{
    struct dirty_curve curve;
    struct run_setting setting = refined(guest, path, costs, limits, max_bandwidth, now, &curve);

    struct run_result r = prediction_run(&setting);

    return ends(&r) ? to_u64(r.total_ns) : UINT64_MAX;
}
