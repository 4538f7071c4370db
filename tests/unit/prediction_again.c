/* Later rounds send pages that the destination has already, which may be faster. */
#include <criterion/criterion.h>

#include "migrate/prediction.h"
#include "transport/base/clock.h"

enum { PAGES = 16384, HOT_BANDS = 16 };

/* A quarter of 64 MiB, written anew at any time. */
static struct dirty_profile hot_guest(void)
{
    struct dirty_profile p = {.window_count = 2};

    p.windows[0].ns = NS_PER_MS;
    p.windows[1].ns = NS_PER_S;
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        p.present[band] = PAGES / PROFILE_BANDS;
    for (unsigned band = 0; band < HOT_BANDS; band++)
        p.windows[0].pages[band] = p.windows[1].pages[band] = PAGES / PROFILE_BANDS;
    return p;
}

static double downtime_ms(uint64_t again_bandwidth, uint64_t max_bandwidth)
{
    struct dirty_profile guest = hot_guest();
    struct path_profile path = {
        .bandwidth = 64 << 20, .guest_share = 1, .again_bandwidth = again_bandwidth};
    struct fixed_costs costs = {.bandwidth_ratio = 1};
    struct policy_limits limits = {.downtime_ns = 10 * NS_PER_S};
    struct prediction p;

    prediction_make(&guest, &path, &costs, &limits, max_bandwidth, &p);
    cr_assert(p.converges, "%s", p.why);
    cr_expect(p.total_ns.expected > NS_PER_S, "the first round goes at the first bandwidth");
    return (double)p.downtime_ns.expected / 1e6;
}

Test(prediction_again, the_last_round_goes_at_the_rate_of_later_rounds)
{
    static const struct {
        uint64_t again, most;
        double ms;
    } cases[] = {
        {0, 0, 250},        {64 << 20, 0, 250},         {128 << 20, 0, 125},
        {32 << 20, 0, 500}, {128 << 20, 64 << 20, 250}, {128 << 20, 96 << 20, 1000.0 / 6},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        double ms = downtime_ms(cases[i].again, cases[i].most);
        cr_expect(ms > cases[i].ms * 0.98 && ms < cases[i].ms * 1.02,
                  "case %zu: expected %.0f ms, came %.1f", i, cases[i].ms, ms);
    }
}

/* 64 MiB at 64 MiB/s, then 32 MiB/s or 128 MiB/s: what the first round showed counts no more. */
Test(prediction_again, later_rounds_show_the_rate_themselves)
{
    static const struct {
        uint64_t second_mib, ms;
        double left_ms; /* for the 16 MiB that the newest round leaves */
    } cases[] = {{0, 0, 125}, {16, 500, 500}, {16, 125, 125}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct policy_round rounds[2] = {{PAGES, 64 << 20, NS_PER_S, 4096, NS_PER_S, 0},
                                         {cases[i].second_mib * 256, cases[i].second_mib << 20,
                                          cases[i].ms * NS_PER_MS, 4096, NS_PER_S, 0}};
        size_t count = cases[i].second_mib ? 2 : 1;
        struct path_profile path = {
            .bandwidth = 64 << 20, .guest_share = 1, .again_bandwidth = 128 << 20};
        struct fixed_costs costs = {.bandwidth_ratio = 1};
        struct policy_limits limits = {.downtime_ns = 10 * NS_PER_S};
        struct policy_input now = {.rounds = rounds,
                                   .round_count = count,
                                   .elapsed_ns = 2 * NS_PER_S,
                                   .bandwidth = policy_bandwidth(rounds, count)};
        struct prediction p;

        prediction_refine(NULL, &path, &costs, &limits, 0, &now, &p);
        double ms = (double)p.downtime_ns.expected / 1e6;
        cr_expect(p.converges && ms > cases[i].left_ms * 0.95 && ms < cases[i].left_ms * 1.05,
                  "case %zu: expected %.0f ms, came %.1f: %s", i, cases[i].left_ms, ms, p.why);
    }
}

/* 832 pages in one place, which are written one after the other in 832 ms, over a path that takes
 * 1000 pages/s: 384 are on their way when one is taken, so the first two quarters go at once and
 * the others 136 and 344 ms later, which leaves (832 + 832 + 696 + 488) / 4 of them dirty. Chunks
 * that are not full are on their way with fewer. */
Test(prediction_again, a_chunk_goes_when_the_path_has_room)
{
    static const struct {
        unsigned limit_ms, rounds;
        double downtime_ms;
    } cases[] = {{1000, 2, 832.5}, {800, 3, 712.5}, {700, 4, 609.5}};
    struct dirty_profile guest = {.window_count = 2};

    guest.windows[0].ns = 832 * NS_PER_MS;
    guest.windows[1].ns = 1664 * NS_PER_MS;
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        guest.present[band] = 208;
    for (unsigned band = 0; band < 4; band++)
        guest.windows[0].pages[band] = guest.windows[1].pages[band] = 208;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct path_profile path = {.bandwidth = 4096000, .guest_share = 1, .lanes = 2};
        struct fixed_costs costs = {.bandwidth_ratio = 1};
        struct policy_limits limits = {.downtime_ns = cases[i].limit_ms * NS_PER_MS};
        struct prediction p;

        prediction_make(&guest, &path, &costs, &limits, 0, &p);
        double ms = (double)p.downtime_ns.expected / 1e6;
        cr_expect(p.rounds == cases[i].rounds && ms > cases[i].downtime_ms - 2 &&
                      ms < cases[i].downtime_ms + 2,
                  "limit %u ms: expected %u rounds and %.1f ms, got %u and %.1f (%s)",
                  cases[i].limit_ms, cases[i].rounds, cases[i].downtime_ms, p.rounds, ms, p.why);
    }
}
