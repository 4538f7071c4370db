/* The policy run round by round on simulated guests. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdlib.h>
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

/* A guest that writes `rate` pages per second, each at random in a hot set: of a set of which d
 * pages are dirty, 1 - d/hot of the writes find a clean page, so that d(t) = hot - (hot - d(0))
 * exp(-rate t / hot). */
struct simulation {
    uint64_t present, hot; /* pages */
    double rate;           /* pages per second at full speed */
    uint64_t bandwidth;    /* bytes per second */
    uint64_t overhead_ns;  /* of a round */
    struct policy_input input;
    struct policy_round rounds[400];
};

static double dirty_after(const struct simulation *s, double dirty, uint64_t ns, unsigned throttle)
{
    double rate = s->rate * (1 - throttle / 100.0);

    return (double)s->hot -
           ((double)s->hot - dirty) * exp(-rate * ((double)ns / 1e9) / (double)s->hot);
}

static void run_round(struct simulation *s, unsigned throttle)
{
    size_t n = s->input.round_count;
    uint64_t pages = n ? s->rounds[n - 1].dirty_pages_after : s->present;
    uint64_t ns =
        (uint64_t)((double)pages * GUEST_PAGE_SIZE * 1e9 / (double)s->bandwidth) + s->overhead_ns;

    s->rounds[n] = (struct policy_round){
        .pages = pages,
        .bytes = pages * GUEST_PAGE_SIZE,
        .ns = ns,
        .dirty_pages_after = (uint64_t)dirty_after(s, 0, ns, throttle),
        .dirty_ns = ns,
        .throttle = throttle,
    };
    s->input.round_count = n + 1;
    s->input.elapsed_ns += ns;
}

/* Runs rounds until the policy ends them, or until there are 400: then the action is ANOTHER_ROUND.
 */
static struct policy_decision simulate(struct simulation *s, const struct policy_limits *limits)
{
    struct policy_decision d = {0};

    s->input.rounds = s->rounds;
    s->input.bandwidth = s->bandwidth;
    do {
        run_round(s, d.throttle);
        d = policy_decide(&s->input, limits);
    } while (d.action == POLICY_ANOTHER_ROUND &&
             s->input.round_count < sizeof(s->rounds) / sizeof(s->rounds[0]));
    return d;
}

/* What the last round really sends: what is dirty, and what gets dirty until the vCPUs stand still.
 */
static uint64_t last_round_bytes(const struct simulation *s)
{
    const struct policy_round *last = &s->rounds[s->input.round_count - 1];
    double dirty =
        dirty_after(s, (double)last->dirty_pages_after, s->input.pause_delay_ns, last->throttle);

    return (uint64_t)dirty * GUEST_PAGE_SIZE;
}

static double uniform(double low, double high)
{
    return low + (high - low) * drand48();
}

static struct simulation random_simulation(void)
{
    struct simulation s = {
        .present = PAGES(16) + (uint64_t)uniform(0, (double)PAGES(8192)),
        .bandwidth = (uint64_t)exp(uniform(log(20e6), log(10e9))),
        .overhead_ns = (uint64_t)uniform(50e3, 2e6),
        .input = {.state_bytes = (uint64_t)uniform(0, 1e6),
                  .fixed_ns = (uint64_t)uniform(0, 10e6),
                  .pause_delay_ns = (uint64_t)uniform(0, 5e6)},
    };

    s.hot = 1 + (uint64_t)(pow(drand48(), 3) * (double)s.present);
    s.rate = (double)s.bandwidth / GUEST_PAGE_SIZE * exp(uniform(log(0.01), log(100)));
    return s;
}

/* Whether a guest throttled by `throttle` can be moved: writing at no more than 0.9 of the
 * bandwidth it converges down to what it dirties in the overhead of a round, and that must fit with
 * the margins. */
static bool can_converge(const struct simulation *s, const struct policy_limits *limits,
                         unsigned throttle)
{
    double rate = s->rate * (1 - throttle / 100.0);
    double share = rate * GUEST_PAGE_SIZE / (double)s->bandwidth;
    double floor_pages = rate * (double)s->overhead_ns / 1e9 / (1 - share);
    double late_pages = 2 * rate * (double)s->input.pause_delay_ns / 1e9;
    uint64_t bytes = (uint64_t)(floor_pages + late_pages + 64) * GUEST_PAGE_SIZE;

    return share < 0.9 && policy_predict_downtime(&s->input, bytes) <= limits->downtime_ns;
}

static void expect_honest_end(const struct simulation *s, const struct policy_limits *limits,
                              const struct policy_decision *d, int seed)
{
    if (d->action != POLICY_SWITCH_OVER)
        return;
    cr_assert_leq(last_round_bytes(s), d->predicted_last_bytes,
                  "seed %d: predicted %llu bytes, the last round sends %llu", seed,
                  (unsigned long long)d->predicted_last_bytes,
                  (unsigned long long)last_round_bytes(s));
    cr_assert(d->forced || d->predicted_downtime_ns <= limits->downtime_ns,
              "seed %d: switched over, unforced, to %llu ns of a limit of %llu", seed,
              (unsigned long long)d->predicted_downtime_ns,
              (unsigned long long)limits->downtime_ns);
}

enum { SEEDS = 2000 };

Test(policy_simulated, converges_unthrottled_wherever_that_is_possible)
{
    int possible = 0;

    for (int seed = 0; seed < SEEDS; seed++) {
        srand48(seed);
        struct simulation s = random_simulation();
        struct policy_limits limits = {.downtime_ns = (uint64_t)uniform(15e6, 1e9)};
        struct policy_decision d = simulate(&s, &limits);

        expect_honest_end(&s, &limits, &d, seed);
        if (!can_converge(&s, &limits, 0))
            continue;
        possible++;
        cr_assert_eq(d.action, POLICY_SWITCH_OVER, "seed %d: %s after %zu rounds: %s", seed,
                     action_name(d.action), s.input.round_count, d.why);
    }
    cr_assert_gt(possible, SEEDS / 10, "only %d of %d seeds tried what this is about", possible,
                 SEEDS);
}

Test(policy_simulated, throttles_up_to_the_maximum_and_then_converges)
{
    int throttled = 0;

    for (int seed = 0; seed < SEEDS; seed++) {
        srand48(seed);
        struct simulation s = random_simulation();
        struct policy_limits limits = {.downtime_ns = (uint64_t)uniform(15e6, 1e9),
                                       .throttle_max = (unsigned)uniform(1, 100)};
        struct policy_decision d = simulate(&s, &limits);
        unsigned highest = 0;

        expect_honest_end(&s, &limits, &d, seed);
        for (size_t i = 0; i < s.input.round_count; i++) {
            cr_assert_geq(s.rounds[i].throttle, highest, "seed %d: round %zu lowers it", seed, i);
            highest = s.rounds[i].throttle;
        }
        cr_assert_leq(highest, limits.throttle_max, "seed %d: %u %% of at most %u", seed, highest,
                      limits.throttle_max);
        throttled += highest > 0;
        if (can_converge(&s, &limits, limits.throttle_max))
            cr_assert_eq(d.action, POLICY_SWITCH_OVER, "seed %d: %s after %zu rounds: %s", seed,
                         action_name(d.action), s.input.round_count, d.why);
    }
    cr_assert_gt(throttled, SEEDS / 10, "only %d of %d seeds were throttled", throttled, SEEDS);
}

Test(policy_simulated, ends_at_max_time_in_the_way_asked_for)
{
    int ended[2] = {0};

    for (int seed = 0; seed < SEEDS; seed++) {
        srand48(seed);
        struct simulation s = random_simulation();
        uint64_t longest_ns =
            (uint64_t)((double)s.present * GUEST_PAGE_SIZE * 1e9 / (double)s.bandwidth) +
            s.overhead_ns;
        struct policy_limits limits = {.downtime_ns = (uint64_t)uniform(15e6, 100e6),
                                       .max_time_ns = 20 * s.overhead_ns,
                                       .on_timeout =
                                           seed % 2 ? ON_TIMEOUT_FORCE : ON_TIMEOUT_CANCEL};
        struct policy_decision d = simulate(&s, &limits);

        expect_honest_end(&s, &limits, &d, seed);
        cr_assert_neq(d.action, POLICY_ANOTHER_ROUND, "seed %d: no end: %s", seed, d.why);
        cr_assert_leq(s.input.elapsed_ns, limits.max_time_ns + longest_ns,
                      "seed %d: ended %llu ns after max_time", seed,
                      (unsigned long long)(s.input.elapsed_ns - limits.max_time_ns));
        if (limits.on_timeout == ON_TIMEOUT_FORCE)
            cr_assert_eq(d.action, POLICY_SWITCH_OVER, "seed %d: %s", seed, d.why);
        else
            cr_assert_not(d.forced, "seed %d: forced, though it was to cancel", seed);
        ended[seed % 2] += d.forced || d.action == POLICY_GIVE_UP;
    }
    cr_assert(ended[0] > SEEDS / 20 && ended[1] > SEEDS / 20, "timed out: %d cancelled, %d forced",
              ended[0], ended[1]);
}

/* Decisions from the same figures are the same bytes, whatever was decided in between and wherever
 * they lie. */
Test(policy_simulated, depends_on_nothing_but_its_input)
{
    for (int seed = 0; seed < SEEDS; seed++) {
        srand48(seed);
        struct simulation s = random_simulation(), copy, other = random_simulation();
        struct policy_limits limits = {.downtime_ns = (uint64_t)uniform(15e6, 1e9),
                                       .throttle_max = 99};
        struct policy_decision d = simulate(&s, &limits), again;

        copy = s;
        copy.input.rounds = copy.rounds;
        simulate(&other, &limits);
        again = policy_decide(&copy.input, &limits);
        cr_assert(d.action == again.action && d.throttle == again.throttle &&
                      d.predicted_last_bytes == again.predicted_last_bytes &&
                      d.predicted_downtime_ns == again.predicted_downtime_ns &&
                      !strcmp(d.why, again.why),
                  "seed %d: first \"%s\", then \"%s\"", seed, d.why, again.why);
    }
}
