/* Predictions whose figures can be reckoned by hand, and what they are made of as JSON. */
#include <criterion/criterion.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/prediction.h"
#include "transport/base/clock.h"

#define MS(n) ((n)*NS_PER_MS)

enum { PAGES = 25600 /* 100 MiB */, MIB_PAGES = 256 };

static const uint64_t mib_per_s = 1 << 20;

/* At 100 MiB/s the 100 MiB take a second. */
static struct path_profile plain_path(void)
{
    return (struct path_profile){.bandwidth = 100 * mib_per_s,
                                 .setup_ns = MS(50),
                                 .tracked_ns = MS(50),
                                 .round_trip_ns = 100000,
                                 .guest_share = 1};
}

static struct fixed_costs plain_costs(void)
{
    return (struct fixed_costs){.downtime_ns = MS(10), .finish_ns = MS(5), .bandwidth_ratio = 1};
}

/* `hot` pages, all over the memory, are written once every 10 ms; `cold` more a second. */
static struct dirty_profile guest_of(double hot, double cold)
{
    struct dirty_profile p = {0};

    for (unsigned i = 0; i < 12; i++) {
        double ms = 2000 * pow(2, (double)i - 11);
        p.windows[i].ns = (uint64_t)(ms * 1e6);
        for (unsigned band = 0; band < PROFILE_BANDS; band++) {
            double pages = (hot * fmin(ms / 10, 1) + cold * ms / 1000) / PROFILE_BANDS;
            p.windows[i].pages[band] = (uint64_t)fmin(pages, PAGES / PROFILE_BANDS);
        }
    }
    p.window_count = 12;
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        p.present[band] = PAGES / PROFILE_BANDS;
    return p;
}

static struct prediction predict(const struct dirty_profile *guest, const struct path_profile *path,
                                 const struct policy_limits *limits)
{
    struct fixed_costs costs = plain_costs();
    struct prediction p;

    prediction_make(guest, path, &costs, limits, 0, &p);
    return p;
}

static void expect_ms(const char *what, uint64_t ns, double ms, double tolerance)
{
    cr_expect_leq(fabs((double)ns / 1e6 - ms), tolerance, "%s: %.2f ms, not %.2f", what,
                  (double)ns / 1e6, ms);
}

/* --- Totals and downtimes */

struct make_case {
    const char *name;
    double hot, cold; /* pages; a second */
    double zero_share, ratio;
    uint64_t max_mib_per_s, zero_mib_per_s;
    double want_total_ms, want_downtime_ms;
    unsigned want_rounds;
};

/* clang-format off */
static const struct make_case make_cases[] = {
    {"an idle guest: set-up, a second of pages, the pause, the end", 0, 0, 0, 1, 0, 0, 1065, 10, 2},
    {"half the bandwidth", 0, 0, 0, 1, 50, 0, 2065, 10, 2},
    {"a limit above the bandwidth is none", 0, 0, 0, 1, 500, 0, 1065, 10, 2},
    {"the path gives half of what was rehearsed", 0, 0, 0, 0.5, 0, 0, 2065, 10, 2},
    {"zero pages are not sent", 0, 0, 0.5, 1, 0, 0, 565, 10, 2},
    {"but have to be found", 0, 0, 0.5, 1, 0, 500, 665, 10, 2},
    {"a hot set that fits the limit goes in the pause", 10 * MIB_PAGES, 0, 0, 1, 0, 0, 1165, 110, 2},
    {"cold pages go in rounds of their own", 0, 0.5 * 100 * MIB_PAGES, 0, 1, 0, 0, 1853, 273, 3},
};
/* clang-format on */

Test(prediction, foretells_what_can_be_reckoned)
{
    for (size_t i = 0; i < sizeof(make_cases) / sizeof(make_cases[0]); i++) {
        const struct make_case *c = &make_cases[i];
        struct dirty_profile guest = guest_of(c->hot, c->cold);
        struct path_profile path = plain_path();
        struct fixed_costs costs = plain_costs();
        struct policy_limits limits = {.downtime_ns = MS(300)};
        struct prediction p;

        guest.zero_pages = (uint64_t)(c->zero_share * PAGES);
        costs.bandwidth_ratio = c->ratio;
        path.zero_bandwidth = c->zero_mib_per_s * mib_per_s;
        prediction_make(&guest, &path, &costs, &limits, c->max_mib_per_s * mib_per_s, &p);
        cr_assert(p.converges, "%s: %s", c->name, p.why);
        expect_ms(c->name, p.total_ns.expected, c->want_total_ms, 4);
        expect_ms(c->name, p.downtime_ns.expected, c->want_downtime_ms, 0.05 * c->want_downtime_ms);
        cr_expect_eq(p.rounds, c->want_rounds, "%s: %u rounds, not %u", c->name, p.rounds,
                     c->want_rounds);
    }
}

Test(prediction, takes_learnt_costs_for_the_path_s)
{
    struct dirty_profile guest = guest_of(0, 0);
    struct path_profile path = plain_path();
    struct fixed_costs costs = plain_costs();
    struct policy_limits limits = {.downtime_ns = MS(300)};
    struct prediction p;

    costs.setup_ns = MS(500);
    prediction_make(&guest, &path, &costs, &limits, 0, &p);
    expect_ms("the total", p.total_ns.expected, 1515, 5);
}

/* 10 MiB a second: 10 of them in the first round, and those of the set-up that lanes take. */
Test(prediction, only_what_is_tracked_of_the_set_up_gets_dirty)
{
    struct dirty_profile guest = guest_of(0, 10 * MIB_PAGES);
    struct path_profile path = plain_path();
    struct policy_limits limits = {.downtime_ns = MS(1000)};
    struct prediction p;

    path.setup_ns = MS(1000);
    for (unsigned tracked_ms = 0; tracked_ms <= 1000; tracked_ms += 500) {
        path.tracked_ns = MS(tracked_ms);
        p = predict(&guest, &path, &limits);
        expect_ms("the total but for the downtime", p.total_ns.expected - p.downtime_ns.expected,
                  2005, 2);
        expect_ms("the downtime", p.downtime_ns.expected, 10 + 100 + 0.1 * tracked_ms, 3);
    }
}

/* 20 MiB more in the pause are 200 ms, and the policy knows it as it does in a migration. */
Test(prediction, a_large_device_state_counts_for_the_policy)
{
    struct dirty_profile guest = guest_of(0, 20 * MIB_PAGES);
    struct path_profile path = plain_path();
    struct fixed_costs costs = plain_costs();
    struct policy_limits limits = {.downtime_ns = MS(300)};
    struct prediction p;

    for (unsigned large = 0; large < 2; large++) {
        costs.state_bytes = large * 20 * mib_per_s;
        prediction_make(&guest, &path, &costs, &limits, 0, &p);
        cr_expect(p.converges && p.rounds == 2 + large, "%u MiB of state: %u rounds", large * 20,
                  p.rounds);
    }
}

/* --- What does not converge */

struct end_case {
    const char *name;
    double hot, cold;
    struct policy_limits limits;
    bool converges, forced, helps_bandwidth, helps_throttle;
    const char *why;
};

/* clang-format off */
static const struct end_case end_cases[] = {
    {"a hot set that is too large", 50 * MIB_PAGES, 0, {.downtime_ns = MS(300)}, 
     false, false, true, true, "will not converge: needs"},
    {"twice what the lanes send", 0, 200 * MIB_PAGES, {.downtime_ns = MS(50)},
     false, false, true, true, "will not converge: needs"},
    {"the same, throttled", 0, 200 * MIB_PAGES, {.downtime_ns = MS(300), .throttle_max = 99},
     true, false, false, false, "converges"},
    {"ended by force", 50 * MIB_PAGES, 0,
     {.downtime_ns = MS(300), .max_time_ns = MS(10000), .on_timeout = ON_TIMEOUT_FORCE},
     true, true, false, false, "by force"},
    {"cancelled", 50 * MIB_PAGES, 0, {.downtime_ns = MS(300), .max_time_ns = MS(10000)},
     false, false, true, true, "in time: needs"},
    {"a limit that nothing can keep", 1 * MIB_PAGES, 0, {.downtime_ns = MS(1)},
     false, false, false, false, "--downtime-limit"},
};
/* clang-format on */

Test(prediction, says_when_there_is_no_end_and_what_would_help)
{
    for (size_t i = 0; i < sizeof(end_cases) / sizeof(end_cases[0]); i++) {
        const struct end_case *c = &end_cases[i];
        struct dirty_profile guest = guest_of(c->hot, c->cold);
        struct path_profile path = plain_path();
        struct prediction p = predict(&guest, &path, &c->limits);

        cr_expect_eq(p.converges, c->converges, "%s: %s", c->name, p.why);
        cr_expect_eq(p.forced, c->forced, "%s: %s", c->name, p.why);
        cr_expect_eq(p.needed_bandwidth > 0, c->helps_bandwidth, "%s: %s", c->name, p.why);
        cr_expect_eq(p.needed_throttle > 0, c->helps_throttle, "%s: %s", c->name, p.why);
        cr_expect(strstr(p.why, c->why), "%s: \"%s\" lacks \"%s\"", c->name, p.why, c->why);
    }
}

Test(prediction, says_when_the_cap_is_in_the_way)
{
    struct dirty_profile guest = guest_of(0, 60 * MIB_PAGES);
    struct path_profile path = plain_path();
    struct fixed_costs costs = plain_costs();
    struct policy_limits limits = {.downtime_ns = MS(50)};
    struct prediction p;

    for (unsigned capped = 0; capped < 2; capped++) {
        path.bandwidth = (capped ? 100 : 50) * mib_per_s;
        prediction_make(&guest, &path, &costs, &limits, 50 * mib_per_s, &p);
        cr_assert(!p.converges && p.needed_bandwidth, "%s", p.why);
        cr_expect_eq(strstr(p.why, "--max-bandwidth") != NULL, capped, "%u MiB/s: \"%s\"",
                     capped ? 100 : 50, p.why);
    }
}

Test(prediction, a_forced_end_comes_at_the_time_set)
{
    struct dirty_profile guest = guest_of(50 * MIB_PAGES, 0);
    struct path_profile path = plain_path();
    struct policy_limits limits = {
        .downtime_ns = MS(300), .max_time_ns = MS(600000), .on_timeout = ON_TIMEOUT_FORCE};
    struct prediction p = predict(&guest, &path, &limits);

    cr_assert(p.converges && p.forced, "%s", p.why);
    expect_ms("the total", p.total_ns.expected, 600515, 600);
    expect_ms("the downtime", p.downtime_ns.expected, 510, 10);
    cr_expect_gt(p.rounds, 1000, "%u rounds of half a second in ten minutes", p.rounds);
}

/* With a little more than is said to be needed it ends, with less it does not. */
Test(prediction, needs_no_more_and_no_less_than_it_says)
{
    struct dirty_profile guest = guest_of(20 * MIB_PAGES, 150 * MIB_PAGES);
    struct path_profile path = plain_path(), more = path, less = path;
    struct policy_limits limits = {.downtime_ns = MS(150)};
    struct prediction p = predict(&guest, &path, &limits);

    cr_assert(!p.converges && p.needed_bandwidth && p.needed_throttle, "%s", p.why);
    more.bandwidth = p.needed_bandwidth;
    less.bandwidth = p.needed_bandwidth * 98 / 100;
    cr_expect(predict(&guest, &more, &limits).converges, "not even with %s", p.why);
    cr_expect_not(predict(&guest, &less, &limits).converges, "with less than that: %s", p.why);
    for (unsigned i = 0; i < 2; i++) {
        struct path_profile slower = path;
        slower.guest_share = 1 - (p.needed_throttle - i) / 100.0;
        slower.setup_ns = 0;
        cr_expect_eq(predict(&guest, &slower, &limits).converges, i == 0,
                     "%u %% throttling, where %u %% are needed", p.needed_throttle - i,
                     p.needed_throttle);
    }
}

/* --- Intervals */

Test(prediction, intervals_hold_the_expected_and_widen_with_what_is_not_known)
{
    struct dirty_profile guest = guest_of(5 * MIB_PAGES, 20 * MIB_PAGES);
    struct policy_limits limits = {.downtime_ns = MS(300)};
    double width = 0;

    for (double spread = 0.02; spread < 0.5; spread *= 2) {
        struct path_profile path = plain_path();
        path.bandwidth_spread = spread;
        struct prediction p = predict(&guest, &path, &limits);
        cr_assert(p.converges, "%s", p.why);
        cr_expect(p.total_ns.low <= p.total_ns.expected && p.total_ns.expected <= p.total_ns.high);
        cr_expect(p.downtime_ns.low <= p.downtime_ns.expected &&
                  p.downtime_ns.expected <= p.downtime_ns.high);
        double wide = (double)(p.total_ns.high - p.total_ns.low);
        cr_expect_gt(wide, width, "a spread of %g widens nothing", spread);
        cr_expect_geq(wide, 1.5 * spread * 1e9, "a spread of %g: only %g ms", spread, wide / 1e6);
        width = wide;
    }
}

/* --- From round to round */

static struct prediction refine(const struct dirty_profile *guest,
                                const struct policy_round *rounds, size_t count,
                                uint64_t elapsed_ns)
{
    struct path_profile path = plain_path();
    struct fixed_costs costs = plain_costs();
    struct policy_limits limits = {.downtime_ns = MS(100)};
    struct policy_input now = {.rounds = rounds,
                               .round_count = count,
                               .elapsed_ns = elapsed_ns,
                               .bandwidth = 100 * mib_per_s,
                               .fixed_ns = MS(8),
                               .pause_delay_ns = MS(3)};
    struct prediction p;

    prediction_refine(guest, &path, &costs, &limits, 0, &now, &p);
    return p;
}

Test(prediction, goes_on_from_what_was_measured)
{
    static const struct policy_round rounds[] = {
        {PAGES, PAGES * 4096ull, MS(1000), 80 * MIB_PAGES, MS(1000), 0},
        {80 * MIB_PAGES, 80ull << 20, MS(800), 64 * MIB_PAGES, MS(800), 0},
    };
    struct prediction p = refine(NULL, rounds, 2, MS(5000));

    /* rounds of 640, 512, … ms, each 0.8 of the one before, until less than 100 ms are left */
    double rest = 0, left = 640;
    while (left + 8 + 2 * 0.8 * 3 > 100) {
        rest += left;
        left *= 0.8;
    }
    cr_assert(p.converges, "%s", p.why);
    expect_ms("the total", p.total_ns.expected, 5000 + rest + left + 10 + 5, 15);
    cr_expect_geq(p.total_ns.low, MS(5000), "it may have ended before now");
    cr_expect_gt(p.bytes, (100ull + 80 + 64) << 20, "what was sent does not count");
}

Test(prediction, a_round_that_leaves_little_ends_it)
{
    static const struct policy_round rounds[] = {
        {PAGES, PAGES * 4096ull, MS(1000), 5 * MIB_PAGES, MS(1000), 0}};
    struct dirty_profile guest = guest_of(5 * MIB_PAGES, 0);

    for (int known = 0; known < 2; known++) {
        struct prediction p = refine(known ? &guest : NULL, rounds, 1, MS(1050));
        cr_assert(p.converges, "%s", p.why);
        expect_ms("the total", p.total_ns.expected, 1050 + 50 + 10 + 5, 10);
        cr_expect_eq(p.rounds, 2, "%u rounds", p.rounds);
    }
}

Test(prediction, a_guest_that_writes_faster_than_is_sent_has_no_end)
{
    static const struct policy_round rounds[] = {
        {PAGES, PAGES * 4096ull, MS(1000), PAGES, MS(1000), 0}};
    struct prediction p = refine(NULL, rounds, 1, MS(1050));

    cr_expect_not(p.converges, "%s", p.why);
    cr_expect_gt(p.needed_bandwidth, 100 * mib_per_s, "%s", p.why);
}

struct rest_case {
    const char *name;
    struct policy_round last;
    uint64_t elapsed_ms;
    struct policy_limits limits;
    bool converges;
    double rest_ms, tolerance_ms;
};

#define ROUND(mib, ms, dirty_mib)                                                                  \
    {                                                                                              \
        (mib) * MIB_PAGES, (mib)*1048576ull, MS(ms), (dirty_mib)*MIB_PAGES, MS(ms), 0              \
    }

/* clang-format off */
/* At 100 MiB/s, without a curve: as things go. Downtime 10 ms and what is left, end 5 ms. */
static const struct rest_case rest_cases[] = {
    {"fits", ROUND(100, 1000, 1), 1000, {.downtime_ns = MS(50)}, true, 25, 5},
    {"half each round", ROUND(100, 1000, 50), 1000, {.downtime_ns = MS(50)}, true, 1000, 60},
    {"never", ROUND(100, 1000, 100), 1000, {.downtime_ns = MS(50)}, false, 0, 0},
    {"by force", ROUND(100, 1000, 100), 1000,
     {.downtime_ns = MS(50), .max_time_ns = MS(5500), .on_timeout = ON_TIMEOUT_FORCE},
     true, 6015, 60},
    {"force is overdue", ROUND(100, 1000, 100), 6000,
     {.downtime_ns = MS(50), .max_time_ns = MS(5000), .on_timeout = ON_TIMEOUT_FORCE},
     true, 1020, 60},
    {"by force, writing faster than is sent, in all it has", ROUND(100, 1000, 200), 1000,
     {.downtime_ns = MS(50), .max_time_ns = MS(8500), .on_timeout = ON_TIMEOUT_FORCE},
     true, 2000 + 3 * 2000 + 2015, 60},
    {"out of time", ROUND(100, 1000, 100), 1000,
     {.downtime_ns = MS(50), .max_time_ns = MS(5000)}, false, 0, 0},
    {"throttled later: a round as now, then halves", ROUND(100, 1000, 100), 1000,
     {.downtime_ns = MS(50), .throttle_max = 99}, true, 2900, 400},
    {"throttled, but too little", ROUND(100, 1000, 400), 1000,
     {.downtime_ns = MS(50), .throttle_max = 10}, false, 0, 0},
};
/* clang-format on */

Test(prediction, goes_on_as_the_last_round_did)
{
    for (size_t i = 0; i < sizeof(rest_cases) / sizeof(rest_cases[0]); i++) {
        const struct rest_case *c = &rest_cases[i];
        struct path_profile path = plain_path();
        struct fixed_costs costs = plain_costs();
        struct policy_input now = {.rounds = &c->last,
                                   .round_count = 1,
                                   .elapsed_ns = MS(c->elapsed_ms),
                                   .bandwidth = 100 * mib_per_s};
        struct prediction p;

        prediction_refine(NULL, &path, &costs, &c->limits, 0, &now, &p);
        cr_expect_eq(p.converges, c->converges, "%s: %s", c->name, p.why);
        if (p.converges)
            expect_ms(c->name, p.total_ns.expected, (double)c->elapsed_ms + c->rest_ms,
                      c->tolerance_ms);
        uint64_t end_ns = prediction_end(NULL, &path, &costs, &c->limits, 0, &now);
        cr_expect_eq(end_ns, p.converges ? p.total_ns.expected : UINT64_MAX,
                     "%s: alone it ends after %.2f ms", c->name, (double)end_ns / 1e6);
    }
}

/* --- Whatever figures it is given */

static double any(double low, double high)
{
    return exp(log(low) + drand48() * (log(high) - log(low)));
}

Test(prediction, survives_any_figures)
{
    for (int seed = 0; seed < 300; seed++) {
        srand48(seed);
        struct dirty_profile guest = guest_of(any(1, 1e5), any(1, 1e7));
        struct path_profile path = {.bandwidth = (uint64_t)any(1, 1e15),
                                    .bandwidth_spread = any(1e-3, 10),
                                    .zero_bandwidth = (uint64_t)any(1, 1e15),
                                    .setup_ns = (uint64_t)any(1, 9e15),
                                    .round_ns = (uint64_t)any(1, 9e15),
                                    .round_trip_ns = (uint64_t)any(1, 2e15),
                                    .guest_share = seed % 5 ? drand48() : 0};
        struct fixed_costs costs = {.downtime_ns = (uint64_t)any(1, 9e15),
                                    .downtime_spread_ns = (uint64_t)any(1, 9e15),
                                    .bandwidth_ratio = seed % 3 ? any(1e-3, 1e3) : 0};
        struct policy_limits limits = {.downtime_ns = (uint64_t)any(1, 1e18),
                                       .max_time_ns = seed % 2 ? (uint64_t)any(1, 1e18) : 0,
                                       .on_timeout = (enum on_timeout)(seed / 2 % 2),
                                       .throttle_max = (unsigned)seed % 100};
        struct prediction p;

        if (seed % 7 == 0)
            guest.window_count = 0;
        prediction_make(&guest, &path, &costs, &limits, (uint64_t)any(1, 1e12), &p);
        cr_expect(p.total_ns.low <= p.total_ns.expected && p.total_ns.expected <= p.total_ns.high,
                  "seed %d", seed);
        cr_expect(p.why[0], "seed %d: no word", seed);
    }
}

/* --- JSON */

static cJSON *parse_again(cJSON *json)
{
    char *text = cJSON_PrintUnformatted(json);
    cJSON *again = cJSON_Parse(text);

    cr_assert(again, "no JSON: %s", text);
    cJSON_Delete(json);
    free(text);
    return again;
}

Test(prediction, becomes_json_with_times_only_where_there_is_an_end)
{
    static const char *const keys[] = {
        "total_ms",         "total_low_ms", "total_high_ms", "downtime_ms",      "downtime_low_ms",
        "downtime_high_ms", "rounds",       "bytes",         "throttle_percent", "forced"};
    struct prediction p = {.converges = true, .total_ns = {MS(2), MS(1), MS(3)}, .why = "so"};

    for (int converges = 0; converges < 2; converges++) {
        p.converges = converges;
        cJSON *json = parse_again(prediction_to_json(&p));
        cr_expect_eq(cJSON_IsTrue(cJSON_GetObjectItem(json, "converges")), converges);
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
            const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, keys[i]);
            cr_expect(item && cJSON_IsNull(item) == !converges, "%s, converges %d", keys[i],
                      converges);
        }
        if (converges)
            cr_expect_eq(cJSON_GetObjectItem(json, "total_high_ms")->valuedouble, 3);
        cr_expect_str_eq(cJSON_GetObjectItem(json, "why")->valuestring, "so");
        cJSON_Delete(json);
    }
}

Test(prediction, paths_and_costs_come_back_from_json)
{
    struct path_profile path_again, path = {.bandwidth = 123456789,
                                            .bandwidth_spread = 0.25,
                                            .zero_bandwidth = 987654321,
                                            .setup_ns = 11,
                                            .tracked_ns = 7,
                                            .round_ns = 22,
                                            .round_trip_ns = 33,
                                            .guest_share = 0.875};
    struct fixed_costs costs_again, costs = {.samples = 7,
                                             .setup_ns = 11,
                                             .downtime_ns = 22,
                                             .downtime_spread_ns = 33,
                                             .finish_ns = 44,
                                             .state_bytes = 55,
                                             .bandwidth_ratio = 0.75};
    struct error err = {0};
    cJSON *json = parse_again(path_profile_to_json(&path));

    cr_assert_eq(path_profile_from_json(json, &path_again, &err), 0, "%s", err.text);
    cr_expect_eq(path_again.bandwidth, path.bandwidth);
    cr_expect_eq(path_again.bandwidth_spread, path.bandwidth_spread);
    cr_expect_eq(path_again.zero_bandwidth, path.zero_bandwidth);
    cr_expect_eq(path_again.setup_ns, path.setup_ns);
    cr_expect_eq(path_again.tracked_ns, path.tracked_ns);
    cr_expect_eq(path_again.round_ns, path.round_ns);
    cr_expect_eq(path_again.round_trip_ns, path.round_trip_ns);
    cr_expect_eq(path_again.guest_share, path.guest_share);
    cJSON_Delete(json);
    json = parse_again(fixed_costs_to_json(&costs));
    cr_assert_eq(fixed_costs_from_json(json, &costs_again, &err), 0, "%s", err.text);
    cr_expect_eq(costs_again.samples, costs.samples);
    cr_expect_eq(costs_again.downtime_ns, costs.downtime_ns);
    cr_expect_eq(costs_again.downtime_spread_ns, costs.downtime_spread_ns);
    cr_expect_eq(costs_again.setup_ns, costs.setup_ns);
    cr_expect_eq(costs_again.finish_ns, costs.finish_ns);
    cr_expect_eq(costs_again.state_bytes, costs.state_bytes);
    cr_expect_eq(costs_again.bandwidth_ratio, costs.bandwidth_ratio);
    cJSON_Delete(json);
}

/* A key of what is good is replaced; NULL takes it away. */
static const struct {
    bool of_costs;
    const char *key, *value;
} hostile_cases[] = {
    {false, "bandwidth_bytes_per_s", NULL},
    {false, "bandwidth_bytes_per_s", "0"},
    {false, "bandwidth_bytes_per_s", "-5"},
    {false, "bandwidth_bytes_per_s", "1e40"},
    {false, "bandwidth_bytes_per_s", "\"fast\""},
    {false, "bandwidth_spread", "-0.1"},
    {false, "bandwidth_spread", "1e400"},
    {false, "bandwidth_spread", "null"},
    {false, "guest_share", "1.01"},
    {false, "guest_share", NULL},
    {false, "setup_ns", "1.5"},
    {false, "tracked_ns", "-1"},
    {false, "round_ns", "[]"},
    {false, "round_trip_ns", "true"},
    {true, "samples", "-1"},
    {true, "samples", "1e12"},
    {true, "downtime_ns", "-1"},
    {true, "downtime_ns", "1e17"},
    {true, "bandwidth_ratio", "0"},
    {true, "bandwidth_ratio", "1e9"},
    {true, "bandwidth_ratio", NULL},
    {true, "finish_ns", "{}"},
    {true, "state_bytes", "-1"},
};

Test(prediction, believes_no_json_that_cannot_be)
{
    for (size_t i = 0; i < sizeof(hostile_cases) / sizeof(hostile_cases[0]); i++) {
        const char *key = hostile_cases[i].key, *value = hostile_cases[i].value;
        struct path_profile path = plain_path();
        struct fixed_costs costs = plain_costs();
        struct error err = {0};
        cJSON *json = parse_again(hostile_cases[i].of_costs ? fixed_costs_to_json(&costs)
                                                            : path_profile_to_json(&path));

        cJSON_DeleteItemFromObjectCaseSensitive(json, key);
        if (value)
            cJSON_AddItemToObject(json, key, cJSON_Parse(value));
        int result = hostile_cases[i].of_costs ? fixed_costs_from_json(json, &costs, &err)
                                               : path_profile_from_json(json, &path, &err);
        cr_expect_eq(result, -EPROTO, "%s = %s is believed", key, value);
        cr_expect(strstr(err.text, key), "%s = %s: \"%s\" does not name it", key, value, err.text);
        cJSON_Delete(json);
    }
    struct path_profile path;
    struct fixed_costs costs;
    cr_expect_eq(path_profile_from_json(NULL, &path, NULL), -EPROTO);
    cr_expect_eq(fixed_costs_from_json(NULL, &costs, NULL), -EPROTO);
}
