/* What is made of the times of a trial's pieces. */
#include <criterion/criterion.h>

#include "migrate/path_profile.h"
#include "migrate/trial.h"
#include "transport/base/clock.h"

enum { MIB = 1 << 20, PIECE_MIB = 4 };

/* Pieces of 4 MiB; `at_ms`: when each had arrived, up to the first 0. `again_ms`: what 4 MiB took
 * the second time, without their fence; 0: there was no second time. */
struct trial_case {
    const char *name;
    double at_ms[16], again_ms;
    double mib_per_s, first_ms, again_mib_per_s; /* expected */
};

static struct trial_result trial_of(const struct trial_case *c)
{
    struct trial_result trial = {.fence_count = 1, .fence_ns = {NS_PER_MS}};

    for (; c->at_ms[trial.piece_count] > 0; trial.piece_count++) {
        trial.ns = (uint64_t)(c->at_ms[trial.piece_count] * NS_PER_MS);
        trial.bytes += PIECE_MIB * MIB;
        trial.pieces[trial.piece_count] = (struct trial_piece){PIECE_MIB * MIB, trial.ns};
    }
    if (c->again_ms > 0) {
        trial.again_bytes = PIECE_MIB * MIB;
        trial.again_ns = (uint64_t)(c->again_ms * NS_PER_MS) + trial.fence_ns[0];
    }
    return trial;
}

Test(path_profile, tells_bandwidth_from_what_happens_once)
{
    static const struct trial_case cases[] = {
        {"one piece", {100}, 0, 40, 0, 0},
        {"too few pieces: as a whole", {200, 300, 400}, 100, 30, 0, 40},
        {"steady", {100, 200, 300, 400, 500}, 100, 40, 0, 40},
        {"nothing sent again", {100, 200, 300, 400, 500}, 0, 40, 0, 0},
        {"a slow start", {250, 350, 450, 550, 650}, 100, 40, 150, 40},
        {"a slow start, nothing sent again", {250, 350, 450, 550, 650}, 0, 40, 150, 0},
        {"a quick start", {50, 150, 250, 350, 450}, 100, 40, 0, 40},
        {"pages that are there go quicker", {100, 200, 300, 400, 500}, 50, 40, 0, 80},
        {"the first told of late", {200, 275, 350, 425, 500}, 100, 40, 0, 40},
        {"told of late after a slow start", {300, 375, 450, 525, 600}, 100, 40, 100, 40},
        {"the second time disturbed", {100, 200, 300, 400, 500}, 400, 40, 0, 40},
        {"both", {200, 275, 350, 425, 500}, 400, 40, 0, 40},
        {"all told of at once", {500, 500, 500, 500, 500}, 100, 40, 0, 40},
        {"many pieces", {150, 250, 350, 450, 550, 650, 750, 850, 950, 1050, 1150}, 100, 40, 50, 40},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const struct trial_case *c = &cases[i];
        struct trial_result trial = trial_of(c);
        struct path_profile path = {0};

        path_profile_weigh(&trial, 3 * NS_PER_MS, &path);
        cr_expect_float_eq((double)path.bandwidth / MIB, c->mib_per_s, 0.01,
                           "%s: expected %.2f MiB/s, got %.2f", c->name, c->mib_per_s,
                           (double)path.bandwidth / MIB);
        cr_expect_float_eq(ns_to_ms(path.first_ns), c->first_ms, 0.01,
                           "%s: expected %.2f ms more for the first, got %.2f", c->name,
                           c->first_ms, ns_to_ms(path.first_ns));
        cr_expect_float_eq((double)path.again_bandwidth / MIB, c->again_mib_per_s, 0.01,
                           "%s: expected %.2f MiB/s the second time, got %.2f", c->name,
                           c->again_mib_per_s, (double)path.again_bandwidth / MIB);
        cr_expect_eq(path.round_ns, 4 * NS_PER_MS, "%s: expected a round's 4 ms, got %.2f ms",
                     c->name, ns_to_ms(path.round_ns));
    }
}

Test(path_profile, tells_how_steady_a_path_is)
{
    static const struct {
        const char *name;
        struct trial_case trial;
        double least, most;
    } cases[] = {
        {"steady", {.at_ms = {100, 200, 300, 400, 500}}, 0, 0.001},
        {"one slow piece of four", {.at_ms = {100, 200, 350, 450, 550}}, 0.1, 0.3},
        {"not known of few", {.at_ms = {100, 200}}, 0.099, 0.101},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct trial_result trial = trial_of(&cases[i].trial);
        struct path_profile path = {0};

        path_profile_weigh(&trial, 0, &path);
        cr_expect(path.bandwidth_spread >= cases[i].least && path.bandwidth_spread <= cases[i].most,
                  "%s: expected a spread from %.3f to %.3f, got %.3f", cases[i].name,
                  cases[i].least, cases[i].most, path.bandwidth_spread);
    }
}
