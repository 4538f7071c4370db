/* How progress looks. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tools/progress.h"
#include "transport/base/clock.h"

static const struct migration_status precopy = {
    .phase = MIGRATION_PRECOPY,
    .round = 2,
    .round_bytes = 100 << 20,
    .round_bytes_done = 25 << 20,
    .bandwidth = 1 << 30,
    .dirty_rate = 64 << 20,
    .predicted_downtime_ns = 45 * NS_PER_MS,
    .throttle = 20,
    .eta_ns = 3 * NS_PER_S,
};

Test(progress, bar_fits_the_width_and_says_all_that_fits)
{
    char text[512];

    for (unsigned width = 1; width <= 300; width++) {
        progress_bar(&precopy, width, text, sizeof(text));
        cr_assert_leq(strlen(text), width, "width %u: '%s' has %zu columns", width, text,
                      strlen(text));
    }
    cr_expect(strstr(text, "round 2") && strstr(text, "25%") && strstr(text, "ETA 3"), "'%s'",
              text);
    cr_expect(strstr(text, "[#######.......................]"),
              "expected a bar of 30, a quarter full: '%s'", text);
    cr_expect_not(strchr(progress_bar(&precopy, 40, text, sizeof(text)), '['),
                  "no room for a bar: '%s'", text);
}

Test(progress, bar_fits_a_small_buffer)
{
    char text[16];

    progress_bar(&precopy, 200, text, sizeof(text));
    cr_expect_eq(strlen(text), sizeof(text) - 1, "'%s'", text);
}

static const struct line_case {
    struct migration_status status;
    const char *mentions[4];
} lines[] = {
    {{.phase = MIGRATION_CONNECTING}, {"connecting"}},
    {{.phase = MIGRATION_PRECOPY, .round_bytes = 0}, {"round 0: 0%"}},
    {{.phase = MIGRATION_PRECOPY, .round = 3, .round_bytes = 4, .round_bytes_done = 9},
     {"round 3: 100%"}},
    {{.phase = MIGRATION_PRECOPY, .round_bytes = UINT64_MAX, .round_bytes_done = UINT64_MAX / 2},
     {"50%"}},
    {{.phase = MIGRATION_PRECOPY, .eta_ns = UINT64_MAX}, {"never"}},
    {{.phase = MIGRATION_PRECOPY, .throttle = 30}, {"throttled 30%"}},
    {{.phase = MIGRATION_SWITCHOVER, .message = "pausing"}, {"switching over: pausing"}},
    {{.phase = MIGRATION_STUCK}, {"stuck"}},
    {{.phase = MIGRATION_IN_DOUBT, .message = "silent"}, {"silent"}},
};

Test(progress, lines_say_what_is_known)
{
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        char text[1024];

        progress_line(&lines[i].status, text, sizeof(text));
        for (unsigned k = 0; k < 4 && lines[i].mentions[k]; k++)
            cr_expect(strstr(text, lines[i].mentions[k]), "expected '%s' in '%s'",
                      lines[i].mentions[k], text);
    }
}

Test(progress, a_pipe_gets_a_line_per_change_and_every_two_seconds)
{
    static const struct {
        enum migration_phase phase;
        unsigned round;
        uint64_t ms;
        bool due;
    } steps[] = {
        {MIGRATION_CONNECTING, 0, 0, true},    {MIGRATION_CONNECTING, 0, 1999, false},
        {MIGRATION_PRECOPY, 0, 1999, true},    {MIGRATION_PRECOPY, 0, 2500, false},
        {MIGRATION_PRECOPY, 0, 3999, true},    {MIGRATION_PRECOPY, 1, 4000, true},
        {MIGRATION_PRECOPY, 1, 5999, false},   {MIGRATION_PRECOPY, 1, 6000, true},
        {MIGRATION_SWITCHOVER, 1, 6001, true}, {MIGRATION_SWITCHOVER, 1, 6002, false},
    };
    struct progress_pace pace = {0};

    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        struct migration_status status = {
            .phase = steps[i].phase, .round = steps[i].round, .round_bytes = 1};
        bool due = progress_due(&pace, &status, 7 + steps[i].ms * NS_PER_MS);

        cr_expect_eq(due, steps[i].due, "step %zu: expected %d, got %d", i, steps[i].due, due);
    }
}

/* 100 bytes in a second, then 300 to go; the engine's own figures are left alone. */
Test(progress, estimates_what_the_engine_does_not_know_yet)
{
    struct progress_rate rate = {0};
    struct migration_status first = {.phase = MIGRATION_PRECOPY,
                                     .elapsed_ns = 5 * NS_PER_S,
                                     .round_bytes = 500,
                                     .round_bytes_done = 100};
    struct migration_status later = first, known = first;

    progress_estimate(&rate, &first);
    cr_expect_eq(first.bandwidth, 0, "nothing is known at first, got %lu", first.bandwidth);
    later.elapsed_ns += NS_PER_S;
    later.round_bytes_done += 100;
    known = later;
    known.bandwidth = 7;
    progress_estimate(&rate, &later);
    cr_expect_eq(later.bandwidth, 100, "expected 100 bytes/s, got %lu", later.bandwidth);
    cr_expect_eq(later.eta_ns, 3 * NS_PER_S, "expected 3 s, got %lu ns", later.eta_ns);
    progress_estimate(&rate, &known);
    cr_expect_eq(known.bandwidth, 7, "got %lu", known.bandwidth);
    later.bandwidth = 0;
    later.round = 1;
    progress_estimate(&rate, &later);
    cr_expect_eq(later.bandwidth, 0, "a new round begins anew, got %lu", later.bandwidth);
}
