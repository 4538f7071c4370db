#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

#include "migrate/guest/guest.h"
#include "migrate/policy.h"
#include "transport/base/clock.h"

#define MS(n)    ((n)*NS_PER_MS)
#define MIB(n)   ((uint64_t)(n) << 20)
#define PAGES(n) (MIB(n) / GUEST_PAGE_SIZE) /* in n MiB */

static const char *action_name(enum policy_action action)
{
    static const char *const names[] = {"another round", "switch over", "give up"};

    return names[action];
}

/* One decision. The rounds are given as MiB and ms; bandwidth is 1000 MiB/s, so that 1 MiB takes 1
 * ms. */
struct round_case {
    unsigned mib, ms, dirty_mib, throttle;
};

struct decision_case {
    const char *name;
    struct round_case rounds[4];
    uint64_t limit_ms, max_time_ms, elapsed_ms;
    enum on_timeout on_timeout;
    unsigned throttle_max;
    uint64_t state_bytes, fixed_ns, pause_delay_ns;
    struct {
        enum policy_action action;
        unsigned throttle;
        bool forced;
        const char *why; /* a part of it */
    } want;
};

/* clang-format off */
static const struct decision_case decision_cases[] = {
    {"a guest that is idle switches over after one round",
     .rounds = {{512, 512, 0}},
     .limit_ms = 300,
     .want = {POLICY_SWITCH_OVER, .why = "within the limit"}},
    {"what is left fits the limit",
     .rounds = {{512, 512, 290}},
     .limit_ms = 300,
     .want = {POLICY_SWITCH_OVER}},
    {"what is left does not fit",
     .rounds = {{512, 512, 301}},
     .limit_ms = 300,
     .want = {POLICY_ANOTHER_ROUND, .why = "left"}},
    {"a fixed cost counts",
     .rounds = {{512, 512, 290}},
     .limit_ms = 300,
     .fixed_ns = MS(11),
     .want = {POLICY_ANOTHER_ROUND}},
    {"device state counts",
     .rounds = {{512, 512, 290}},
     .limit_ms = 300,
     .state_bytes = MIB(11),
     .want = {POLICY_ANOTHER_ROUND}},
    {"pages written until the pause count, twice",
     .rounds = {{512, 290, 290}},
     .limit_ms = 300,
     .pause_delay_ns = MS(6),
     .want = {POLICY_ANOTHER_ROUND}},
    {"a short delay until the pause does no harm",
     .rounds = {{512, 290, 290}},
     .limit_ms = 300,
     .pause_delay_ns = MS(4),
     .want = {POLICY_SWITCH_OVER}},
    {"one bad round is not yet a reason to throttle",
     .rounds = {{1024, 1024, 900}},
     .limit_ms = 100,
     .throttle_max = 99,
     .want = {POLICY_ANOTHER_ROUND, 0}},
    {"two bad rounds: throttled to half of the bandwidth",
     .rounds = {{1000, 1000, 1000}, {1000, 1000, 1000}},
     .limit_ms = 100,
     .throttle_max = 99,
     .want = {POLICY_ANOTHER_ROUND, 51, .why = "throttling the guest by 51 %"}},
    {"dirtying at four times the bandwidth: throttled to an eighth",
     .rounds = {{1000, 1000, 4000}, {4000, 4000, 16000}},
     .limit_ms = 100,
     .throttle_max = 99,
     .want = {POLICY_ANOTHER_ROUND, 88}},
    {"long and short rounds by turns are no progress, after a short one",
     .rounds = {{266, 2660, 460}, {460, 4600, 266}},
     .limit_ms = 100,
     .throttle_max = 99,
     .want = {POLICY_ANOTHER_ROUND, 10, .why = "throttling"}},
    {"nor after a long one",
     .rounds = {{460, 4600, 266}, {266, 2660, 460}},
     .limit_ms = 100,
     .throttle_max = 99,
     .want = {POLICY_ANOTHER_ROUND, 10, .why = "throttling"}},
    {"never above the operator's maximum",
     .rounds = {{1000, 1000, 4000}, {4000, 4000, 16000}},
     .limit_ms = 100,
     .throttle_max = 30,
     .want = {POLICY_ANOTHER_ROUND, 30}},
    {"one bad round at a throttle is a reason for more",
     .rounds = {{2000, 2000, 1000}, {1000, 1000, 1000, 51}},
     .limit_ms = 100,
     .throttle_max = 99,
     .want = {POLICY_ANOTHER_ROUND, 76}},
    {"the step counts from the throttle in force",
     .rounds = {{800, 8000, 620, 20}, {620, 6200, 480, 20}},
     .limit_ms = 100,
     .throttle_max = 99,
     .want = {POLICY_ANOTHER_ROUND, 30}},
    {"progress at a throttle keeps it",
     .rounds = {{1000, 1000, 500, 51}, {500, 500, 250, 51}},
     .limit_ms = 100,
     .throttle_max = 99,
     .want = {POLICY_ANOTHER_ROUND, 51, .why = "left"}},
    {"at the maximum it goes on and says so",
     .rounds = {{1000, 1000, 1000, 30}, {1000, 1000, 1000, 30}},
     .limit_ms = 100,
     .throttle_max = 30,
     .want = {POLICY_ANOTHER_ROUND, 30, .why = "never converges"}},
    {"and gives no advice that was taken already",
     .rounds = {{1000, 1000, 1000, 30}, {1000, 1000, 1000, 30}},
     .limit_ms = 100,
     .throttle_max = 30,
     .want = {POLICY_ANOTHER_ROUND, 30, .why = "; use a larger --downtime-limit or --max-time"}},
    {"without throttling it goes on and names both rates",
     .rounds = {{1000, 1000, 1500}, {1500, 1500, 2250}},
     .limit_ms = 100,
     .want = {POLICY_ANOTHER_ROUND, .why = "the guest dirties 1.5 GiB/s, the lanes send 1000.0 MiB/s"}},
    {"and what to do",
     .rounds = {{1000, 1000, 1500}, {1500, 1500, 2250}},
     .limit_ms = 100,
     .want = {POLICY_ANOTHER_ROUND, .why = "use --throttle auto, a larger --downtime-limit or"}},
    {"slower than its pages are sent, though hardly, is slow and not never",
     .rounds = {{1000, 1000, 900}, {900, 900, 810}},
     .limit_ms = 100,
     .want = {POLICY_ANOTHER_ROUND, .why = "converges slowly"}},
    {"a hot set that fits needs no throttle, however fast it is written",
     .rounds = {{1000, 1000, 90}, {90, 90, 90}, {90, 90, 90}},
     .limit_ms = 100,
     .throttle_max = 99,
     .want = {POLICY_SWITCH_OVER, 0}},
    {"time is up: gives up at full speed",
     .rounds = {{1000, 1000, 1000, 20}},
     .limit_ms = 100,
     .max_time_ms = 1000,
     .elapsed_ms = 1000,
     .want = {POLICY_GIVE_UP, 0, .why = "does not converge in 1.0 s"}},
    {"time is not up",
     .rounds = {{1000, 1000, 1000}},
     .limit_ms = 100,
     .max_time_ms = 1000,
     .elapsed_ms = 999,
     .want = {POLICY_ANOTHER_ROUND}},
    {"time is up, by force",
     .rounds = {{1000, 1000, 1000, 20}},
     .limit_ms = 100,
     .max_time_ms = 1000,
     .elapsed_ms = 1000,
     .on_timeout = ON_TIMEOUT_FORCE,
     .want = {POLICY_SWITCH_OVER, 20, .forced = true, .why = "forced after 1.0 s"}},
    {"time is up and what is left fits: that is no force",
     .rounds = {{1000, 1000, 50}},
     .limit_ms = 100,
     .max_time_ms = 1000,
     .elapsed_ms = 5000,
     .on_timeout = ON_TIMEOUT_FORCE,
     .want = {POLICY_SWITCH_OVER}},
    {"a limit below the fixed cost gets three rounds",
     .rounds = {{100, 100, 1}, {1, 1, 0}},
     .limit_ms = 5,
     .fixed_ns = MS(6),
     .want = {POLICY_ANOTHER_ROUND}},
    {"and is then given up with what it would take",
     .rounds = {{100, 100, 1}, {1, 1, 0}, {0, 1, 0}},
     .limit_ms = 5,
     .fixed_ns = MS(6),
     .want = {POLICY_GIVE_UP, .why = "pause, device state and resume alone take 6.1 ms"}},
    {"unless an end by force is to come",
     .rounds = {{100, 100, 1}, {1, 1, 0}, {0, 1, 0}},
     .limit_ms = 5,
     .max_time_ms = 1000,
     .elapsed_ms = 500,
     .on_timeout = ON_TIMEOUT_FORCE,
     .fixed_ns = MS(6),
     .want = {POLICY_ANOTHER_ROUND}},
    {"a limit of 0 is given up",
     .rounds = {{100, 100, 0}, {0, 1, 0}, {0, 1, 0}},
     .limit_ms = 0,
     .want = {POLICY_GIVE_UP}},
    {"a clock that did not move is no division by zero",
     .rounds = {{1, 0, 1}},
     .limit_ms = 100,
     .pause_delay_ns = MS(1),
     .want = {POLICY_ANOTHER_ROUND}},
};
/* clang-format on */

static size_t fill_rounds(const struct round_case *cases, size_t max, struct policy_round *out)
{
    size_t n = 0;

    for (; n < max && (cases[n].mib || cases[n].ms); n++) {
        out[n] = (struct policy_round){
            .pages = PAGES(cases[n].mib),
            .bytes = MIB(cases[n].mib),
            .ns = MS(cases[n].ms),
            .dirty_pages_after = PAGES(cases[n].dirty_mib),
            .dirty_ns = MS(cases[n].ms),
            .throttle = cases[n].throttle,
        };
    }
    return n;
}

Test(policy, decides_by_the_table)
{
    for (size_t i = 0; i < sizeof(decision_cases) / sizeof(decision_cases[0]); i++) {
        const struct decision_case *c = &decision_cases[i];
        struct policy_round rounds[4];
        struct policy_input input = {
            .rounds = rounds,
            .round_count = fill_rounds(c->rounds, 4, rounds),
            .elapsed_ns = MS(c->elapsed_ms),
            .bandwidth = MIB(1000),
            .state_bytes = c->state_bytes,
            .fixed_ns = c->fixed_ns,
            .pause_delay_ns = c->pause_delay_ns,
        };
        struct policy_limits limits = {
            .downtime_ns = MS(c->limit_ms),
            .max_time_ns = MS(c->max_time_ms),
            .on_timeout = c->on_timeout,
            .throttle_max = c->throttle_max,
        };
        struct policy_decision d = policy_decide(&input, &limits);

        cr_expect_eq(d.action, c->want.action, "%s: expected %s, got %s (%s)", c->name,
                     action_name(c->want.action), action_name(d.action), d.why);
        cr_expect_eq(d.throttle, c->want.throttle, "%s: expected throttle %u, got %u (%s)", c->name,
                     c->want.throttle, d.throttle, d.why);
        cr_expect_eq(d.forced, c->want.forced, "%s: expected forced %d, got %d", c->name,
                     c->want.forced, d.forced);
        cr_expect(strstr(d.why, c->want.why ? c->want.why : ""), "%s: expected \"%s\" in \"%s\"",
                  c->name, c->want.why, d.why);
    }
}

Test(policy, predicts_downtime_in_nanoseconds)
{
    static const struct {
        uint64_t bandwidth, state_bytes, fixed_ns, last_bytes, want_ns;
    } cases[] = {
        {1000000000, 0, 0, 0, 0},
        {1000000000, 0, 0, 1, 1},
        {1000000000, 0, 0, 300000000, MS(300)},
        {1000, 0, 0, 1000, NS_PER_S},
        {1000000000, 5000000, MS(7), 3000000, MS(15)},
        {26000000, 600000, MS(10), 262144, 23076923 + 10082461 + MS(10)},
        {1, 0, 0, UINT64_MAX, UINT64_MAX},
        {1000, 0, UINT64_MAX, 1000, UINT64_MAX},
        {0, 0, 0, 1, NS_PER_S},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct policy_input input = {.bandwidth = cases[i].bandwidth,
                                     .state_bytes = cases[i].state_bytes,
                                     .fixed_ns = cases[i].fixed_ns};
        uint64_t ns = policy_predict_downtime(&input, cases[i].last_bytes);

        cr_expect_eq(ns, cases[i].want_ns, "case %zu: expected %llu ns, got %llu", i,
                     (unsigned long long)cases[i].want_ns, (unsigned long long)ns);
    }
}

Test(policy, sets_a_fence_for_a_chunk_with_some_clean_pages)
{
    static const struct {
        struct policy_pace pace;
        double chunk;        /* bytes that each chunk has */
        unsigned chunks;     /* until a fence is due */
        double ahead_chunks; /* in the mean */
    } cases[] = {
        {{1 << 20, 2}, 1 << 20, 1, 1.5},     {{1 << 20, 2}, 800 << 10, 1, 1.5},
        {{1 << 20, 2}, 760 << 10, 2, 2.266}, {{1 << 20, 2}, 4 << 10, 192, 288},
        {{2 << 20, 2}, 1 << 20, 2, 3},       {{64 << 20, 2}, 1 << 20, 64, 96},
        {{64 << 20, 19}, 1 << 20, 64, 1184}, {{100 << 10, 2}, 4 << 10, 1, 1.5},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsigned chunks = 1;

        while (!policy_fence_is_due(&cases[i].pace, (uint64_t)(chunks * cases[i].chunk)) &&
               chunks <= cases[i].chunks)
            chunks++;
        cr_expect_eq(chunks, cases[i].chunks, "case %zu: expected a fence after %u chunks, not %u",
                     i, cases[i].chunks, chunks);
        double ahead = policy_pace_ahead(&cases[i].pace, cases[i].chunk) / cases[i].chunk;
        cr_expect_float_eq(ahead, cases[i].ahead_chunks, 0.001,
                           "case %zu: expected %.1f chunks on their way, not %.3f", i,
                           cases[i].ahead_chunks, ahead);
    }
}

Test(policy, goes_as_far_ahead_as_a_path_takes_in_100_ms_and_two_round_trips)
{
    static const struct {
        uint64_t bandwidth, round_trip_ns;
        unsigned lanes;
        struct policy_pace want;
    } cases[] = {
        {100000000, 0, 2, {5000000, 2}},
        {100000000, MS(10), 2, {6000000, 2}},
        {1342177280, 0, 2, {64 << 20, 2}},       /* 128 MiB */
        {1342177290, 0, 2, {64 << 20, 3}},       /* one byte more */
        {12500000000, MS(1), 2, {64 << 20, 19}}, /* 1216 MiB */
        {1000000, 0, 8, {4 << 20, 2}},           /* a chunk for each lane */
        {1000000, 0, 1, {512 << 10, 2}},
        {0, 0, 0, {512 << 10, 2}}, /* of a profile that knows no lanes */
        {UINT64_MAX, UINT64_MAX, 1, {64 << 20, (uint64_t)INT64_MAX / (64 << 20) + 1}},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct policy_pace pace =
            policy_pace(cases[i].bandwidth, cases[i].round_trip_ns, cases[i].lanes);
        const struct policy_pace *want = &cases[i].want;

        cr_expect(pace.fence_bytes == want->fence_bytes && pace.fences == want->fences,
                  "case %zu: expected %llu fences of %llu bytes, got %llu of %llu", i,
                  (unsigned long long)want->fences, (unsigned long long)want->fence_bytes,
                  (unsigned long long)pace.fences, (unsigned long long)pace.fence_bytes);
    }
}

Test(policy, the_best_bandwidth_never_falls)
{
    static const struct {
        uint64_t mib, ms, want_mib;
    } rounds[] = {{0, 0, 0}, {100, 1000, 100}, {50, 1000, 100}, {20, 100, 200}, {0, 1, 200}};
    uint64_t best = 0;

    for (size_t i = 0; i < sizeof(rounds) / sizeof(rounds[0]); i++) {
        struct policy_round round = {.bytes = MIB(rounds[i].mib), .ns = MS(rounds[i].ms)};

        best = policy_best_bandwidth(best, &round);
        cr_expect_eq(best, MIB(rounds[i].want_mib), "round %zu: expected %llu MiB/s, got %llu", i,
                     (unsigned long long)rounds[i].want_mib, (unsigned long long)(best >> 20));
    }
}

/* Over the most recent rounds in which enough was sent, as the engine measures it. */
Test(policy, measures_bandwidth_over_settled_rounds)
{
    static const struct {
        const char *name;
        struct round_case rounds[4]; /* MiB sent, ms */
        uint64_t want_mib;
    } cases[] = {
        {"one round", {{100, 1000}}, 100},
        {"the last three of four", {{4000, 1000}, {100, 1000}, {200, 1000}, {300, 1000}}, 200},
        {"none that is large enough: an assumption", {{0, 1000}}, 1024},
        {"small ones do not count", {{100, 500}, {0, 1000}, {0, 1000}}, 200},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct policy_round rounds[4];
        size_t count = 0;
        for (; count < 4 && cases[i].rounds[count].ms; count++)
            rounds[count] = (struct policy_round){.bytes = MIB(cases[i].rounds[count].mib),
                                                  .ns = MS(cases[i].rounds[count].ms)};
        uint64_t got = policy_bandwidth(rounds, count);
        cr_expect_eq(got, MIB(cases[i].want_mib), "%s: %llu bytes/s, not %llu", cases[i].name,
                     (unsigned long long)got, (unsigned long long)MIB(cases[i].want_mib));
    }
}

/* Whoever decides without words decides the same. */
Test(policy, chooses_as_it_decides)
{
    for (size_t i = 0; i < sizeof(decision_cases) / sizeof(decision_cases[0]); i++) {
        const struct decision_case *c = &decision_cases[i];
        struct policy_round rounds[4];
        struct policy_input input = {.rounds = rounds,
                                     .round_count = fill_rounds(c->rounds, 4, rounds),
                                     .elapsed_ns = MS(c->elapsed_ms),
                                     .bandwidth = MIB(1000),
                                     .state_bytes = c->state_bytes,
                                     .fixed_ns = c->fixed_ns,
                                     .pause_delay_ns = c->pause_delay_ns};
        struct policy_limits limits = {.downtime_ns = MS(c->limit_ms),
                                       .max_time_ns = MS(c->max_time_ms),
                                       .on_timeout = c->on_timeout,
                                       .throttle_max = c->throttle_max};
        struct policy_decision with = policy_decide(&input, &limits);
        struct policy_decision without = policy_choose(&input, &limits);

        cr_expect(with.action == without.action && with.throttle == without.throttle &&
                      with.forced == without.forced &&
                      with.predicted_last_bytes == without.predicted_last_bytes,
                  "%s: %s, but %s", c->name, action_name(with.action), action_name(without.action));
    }
}

/* The longest sentences, with the longest figures, are whole. */
Test(policy, says_why_in_whole_sentences)
{
    struct policy_round round = {PAGES(1), MIB(1), MS(1), UINT64_MAX, 1, 98};
    struct policy_round rounds[3] = {round, round, round};
    struct policy_input input = {.rounds = rounds,
                                 .round_count = 3,
                                 .elapsed_ns = UINT64_MAX,
                                 .bandwidth = MIB(1023),
                                 .fixed_ns = UINT64_MAX / 2};
    struct policy_limits cancel = {.downtime_ns = UINT64_MAX / 4, .max_time_ns = 1};
    struct policy_limits futile = {.downtime_ns = UINT64_MAX / 4};

    struct policy_decision d = policy_decide(&input, &cancel);
    cr_expect_str_eq(d.why + strlen(d.why) - 5, "force", "cut: \"%s\"", d.why);
    d = policy_decide(&input, &futile);
    cr_expect_str_eq(d.why + strlen(d.why) - 4, "that", "cut: \"%s\"", d.why);
    input.fixed_ns = 0;
    d = policy_decide(&input, &futile);
    cr_expect_str_eq(d.why + strlen(d.why) - 10, "--max-time", "cut: \"%s\"", d.why);
}
