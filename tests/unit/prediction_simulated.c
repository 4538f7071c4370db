/* Predictions against migrations that are simulated page by page, write by write. */
#include <criterion/criterion.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/workload_pattern.h"
#include "migrate/prediction.h"
#include "transport/base/clock.h"

enum {
    PAGES = 16384,
    MAX_ROUNDS = 300,
    INTERVALS = 8, /* of the sample; in each, windows that halve: */
    LOOKS = 8,
    COUNTS = PROFILE_BANDS + 1, /* of pages by band, and behind them of chunks: */
    CHUNKS = PROFILE_BANDS,
};

/* What a tracker hands out when a chunk is taken. */
enum taking {
    TAKES_FOUND,   /* what the collect found, as KVM's log does */
    TAKES_WRITTEN, /* all of a chunk in which the collect found something, as userfaultfd does */
    TAKES_KINDS,
};

struct machine {
    uint32_t pattern, hot_share;
    uint64_t hot_pages, window_pages, seed;
    double rate;      /* writes a second of its own time */
    double bandwidth; /* bytes/s */
    double share;     /* of its time that the guest gets while pages are sent */
    enum taking taking;

    double now_s, work_s; /* time, and the guest's own */
    uint64_t writes;
    unsigned throttle;
    bool dirty[PAGES], found[PAGES];
};

static double uniform(double low, double high)
{
    return low + (high - low) * drand48();
}

static double uniform_log(double low, double high)
{
    return exp(uniform(log(low), log(high)));
}

/* --- The guest */

static void write_until(struct machine *m, double work_s)
{
    m->work_s = work_s;
    for (uint64_t end = (uint64_t)(work_s * m->rate); m->writes < end; m->writes++) {
        uint64_t ms = (uint64_t)((double)m->writes / m->rate * 1000);
        m->dirty[workload_pattern_page(m->pattern, m->hot_pages, m->hot_share, m->window_pages,
                                       m->seed, m->writes, 0, 1, ms)] = true;
    }
}

static void run_for(struct machine *m, double s, double share)
{
    m->now_s += s;
    write_until(m, m->work_s + s * share * (1 - m->throttle / 100.0));
}

static uint64_t count(const bool *pages, unsigned first, unsigned end)
{
    uint64_t n = 0;

    for (unsigned i = first; i < end; i++)
        n += pages[i];
    return n;
}

/* --- Its profile, as dirty_profile_sample takes it, from a copy that goes another way in time */

static void add_window(struct dirty_profile *p, double s, const double sums[COUNTS], double samples)
{
    struct dirty_window *w = &p->windows[p->window_count++];

    w->ns = (uint64_t)(s * 1e9);
    for (unsigned band = 0; band < PROFILE_BANDS; band++) {
        uint64_t before = p->window_count > 1 ? w[-1].pages[band] : 0;
        w->pages[band] = (uint64_t)(sums[band] / samples + 0.5);
        w->pages[band] = w->pages[band] > before ? w->pages[band] : before;
    }
    w->chunks = (uint64_t)(sums[CHUNKS] / samples + 0.5);
}

static void add_counts(const bool *pages, double sums[COUNTS])
{
    for (unsigned first = 0; first < PAGES; first += GUEST_CHUNK_PAGES)
        sums[CHUNKS] += count(pages, first, first + GUEST_CHUNK_PAGES) > 0;
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        sums[band] +=
            (double)count(pages, band * PAGES / PROFILE_BANDS, (band + 1) * PAGES / PROFILE_BANDS);
}

static void profile(const struct machine *machine, double duration_s, struct dirty_profile *out)
{
    static bool written[INTERVALS][PAGES], all[PAGES];
    static struct machine m;
    double looks[LOOKS][COUNTS] = {0}, interval_s = duration_s / INTERVALS;

    m = *machine;
    *out = (struct dirty_profile){.collect_ns = 100000};
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        out->present[band] = PAGES / PROFILE_BANDS;
    for (unsigned i = 0; i < INTERVALS; i++) {
        double began = m.work_s;
        memset(m.dirty, 0, sizeof(m.dirty));
        for (unsigned n = 0; n < LOOKS; n++) {
            write_until(&m, began + interval_s / (1 << (LOOKS - n)));
            add_counts(m.dirty, looks[n]);
        }
        write_until(&m, began + interval_s);
        memcpy(written[i], m.dirty, sizeof(m.dirty));
    }
    for (unsigned n = 0; n < LOOKS; n++)
        add_window(out, interval_s / (1 << (LOOKS - n)), looks[n], INTERVALS);
    for (unsigned length = 1; length <= INTERVALS; length++) {
        double sums[COUNTS] = {0};
        for (unsigned first = 0; first + length <= INTERVALS; first++) {
            memset(all, 0, sizeof(all));
            for (unsigned i = first; i < first + length; i++)
                for (unsigned page = 0; page < PAGES; page++)
                    all[page] |= written[i][page];
            add_counts(all, sums);
        }
        add_window(out, interval_s * length, sums, INTERVALS - length + 1);
    }
    for (unsigned i = 0; i < out->window_count && m.taking == TAKES_FOUND; i++)
        out->windows[i].chunks = 0;
}

/* --- Its migration */

struct move {
    bool converges, forced;
    double total_s, downtime_s;
    unsigned rounds;
};

struct plan {
    struct path_profile path;
    struct fixed_costs costs;
    struct policy_limits limits;
};

static double send_s(const struct machine *m, uint64_t pages)
{
    return (double)pages * GUEST_PAGE_SIZE / m->bandwidth;
}

static void collect(struct machine *m)
{
    memcpy(m->found, m->dirty, sizeof(m->found));
}

static uint64_t take(struct machine *m, unsigned first)
{
    uint64_t found = count(m->found, first, first + GUEST_CHUNK_PAGES), taken = 0;

    for (unsigned i = first; i < first + GUEST_CHUNK_PAGES && found; i++) {
        bool takes = m->taking == TAKES_FOUND ? m->found[i] : m->dirty[i];
        taken += takes;
        if (takes)
            m->dirty[i] = false;
    }
    return taken;
}

static void run_until(struct machine *m, double s)
{
    if (s > m->now_s)
        run_for(m, s - m->now_s, m->share);
}

/* As the rounds do: a chunk is taken once less than so many fences are under way. */
static uint64_t send_dirty(struct machine *m, const struct path_profile *path)
{
    struct policy_pace pace = policy_pace((uint64_t)m->bandwidth, path->round_trip_ns, path->lanes);
    uint64_t sent = 0, unfenced = 0, fences = 0;
    static double fence_s[PAGES / GUEST_CHUNK_PAGES];
    double idle_s = m->now_s; /* when the path has sent all that was posted */

    for (unsigned first = 0; first < PAGES; first += GUEST_CHUNK_PAGES) {
        if (fences >= pace.fences)
            run_until(m, fence_s[fences - pace.fences]);
        uint64_t pages = take(m, first);
        idle_s = (idle_s > m->now_s ? idle_s : m->now_s) + send_s(m, pages);
        sent += pages;
        unfenced += pages;
        if (!policy_fence_is_due(&pace, unfenced * GUEST_PAGE_SIZE))
            continue;
        fence_s[fences++] = idle_s;
        unfenced = 0;
    }
    run_until(m, idle_s);
    return sent;
}

static struct policy_round run_round(struct machine *m, const struct plan *plan, bool first)
{
    double began = m->now_s;
    uint64_t sent = PAGES;

    if (first)
        run_for(m, send_s(m, PAGES), m->share);
    else
        sent = send_dirty(m, &plan->path);
    run_for(m, (double)plan->path.round_ns / 1e9, m->share);
    collect(m);
    double s = m->now_s - began + (first ? (double)plan->path.setup_ns / 1e9 : 0);
    return (struct policy_round){
        .pages = sent,
        .bytes = sent * GUEST_PAGE_SIZE,
        .ns = (uint64_t)((m->now_s - began) * 1e9),
        .dirty_pages_after = count(m->found, 0, PAGES),
        .dirty_ns = (uint64_t)(s * 1e9),
        .throttle = m->throttle,
    };
}

/* The engine's look at what was collected with the guest paused: false sends it on its way again.
 */
static bool fits(const struct policy_input *input, const struct policy_decision *d,
                 const struct policy_limits *limits, uint64_t pages)
{
    uint64_t bytes = pages * GUEST_PAGE_SIZE;

    return d->forced || (bytes <= d->predicted_last_bytes &&
                         policy_predict_downtime(input, bytes) <= limits->downtime_ns);
}

/* What the policy saw when it said that the guest be switched over. */
struct recorded {
    struct policy_round rounds[MAX_ROUNDS];
    struct policy_input input;
};

static struct move migrate_and_record(struct machine *m, const struct plan *plan,
                                      struct recorded *out)
{
    struct policy_round *rounds = out->rounds;
    struct policy_input input = {
        .rounds = rounds,
        .state_bytes = plan->costs.state_bytes,
        .fixed_ns = POLICY_FIRST_FIXED_MS * NS_PER_MS + 3 * plan->path.round_trip_ns,
        .pause_delay_ns = POLICY_FIRST_PAUSE_DELAY_MS * NS_PER_MS,
    };
    struct move move = {0};

    m->now_s = 0;
    memset(m->dirty, 0, sizeof(m->dirty));
    run_for(m, (double)plan->path.setup_ns / 1e9, 1);
    while (input.round_count < MAX_ROUNDS) {
        rounds[input.round_count] = run_round(m, plan, input.round_count == 0);
        input.round_count++;
        input.elapsed_ns = (uint64_t)(m->now_s * 1e9);
        input.bandwidth = policy_bandwidth(rounds, input.round_count);
        struct policy_decision d = policy_choose(&input, &plan->limits);
        if (d.action == POLICY_GIVE_UP)
            break;
        m->throttle = d.throttle;
        if (d.action == POLICY_ANOTHER_ROUND)
            continue;
        run_for(m, 0.5e-3, m->share);
        collect(m);
        uint64_t pages = count(m->found, 0, PAGES);
        if (!fits(&input, &d, &plan->limits, pages))
            continue;
        move.converges = true;
        move.forced = d.forced;
        move.downtime_s = send_s(m, pages) + (double)plan->costs.downtime_ns / 1e9;
        break;
    }
    move.total_s = m->now_s + move.downtime_s + (double)plan->costs.finish_ns / 1e9;
    move.rounds = (unsigned)input.round_count + 1;
    out->input = input;
    return move;
}

static struct move migrate(struct machine *m, const struct plan *plan)
{
    static struct recorded recorded;

    return migrate_and_record(m, plan, &recorded);
}

/* --- Random cases */

static void random_case(struct machine *m, struct plan *plan)
{
    *m = (struct machine){
        .pattern = (uint32_t)uniform(0, 4),
        .hot_share = (uint32_t)uniform(60, 99),
        .hot_pages = (uint64_t)(PAGES * uniform_log(0.05, 1)),
        .seed = (uint64_t)lrand48(),
        .bandwidth = uniform_log(PAGES * GUEST_PAGE_SIZE / 10.0, PAGES * GUEST_PAGE_SIZE / 1.0),
        .share = uniform(0.7, 1),
        .taking = drand48() < 0.5 ? TAKES_FOUND : TAKES_WRITTEN,
    };
    m->window_pages = (uint64_t)((double)m->hot_pages * uniform(0.05, 0.5)) + 1;
    m->rate = m->bandwidth / GUEST_PAGE_SIZE * uniform_log(0.02, 4);
    *plan = (struct plan){
        .path = {.bandwidth = (uint64_t)m->bandwidth,
                 .bandwidth_spread = 0.05,
                 .setup_ns = (uint64_t)uniform(10e6, 200e6),
                 .round_ns = (uint64_t)uniform(0.2e6, 3e6),
                 .round_trip_ns = (uint64_t)uniform(50e3, 1e6),
                 .guest_share = m->share},
        .costs = {.downtime_ns = (uint64_t)uniform(3e6, 30e6),
                  .downtime_spread_ns = 2000000,
                  .finish_ns = (uint64_t)uniform(1e6, 50e6),
                  .state_bytes = 48 << 10,
                  .bandwidth_ratio = 1},
        .limits = {.downtime_ns = (uint64_t)uniform_log(50e6, 1000e6),
                   .throttle_max = drand48() < 0.3 ? 99 : 0},
    };
    plan->path.tracked_ns = plan->path.setup_ns;
    write_until(m, uniform(1, 5));
    plan->path.lanes = 1 + (unsigned)lrand48() % 4;
}

/* --- What came of them */

enum { SEEDS = 400 };

static const char *const pattern_names[] = {"sequential", "random", "hotcold", "window"};

/* How far off a prediction was. */
struct score {
    int seed;
    bool verdict_wrong, verdict_close;  /* the other one 15 % of bandwidth away */
    bool total_inside, downtime_inside; /* the interval */
    double total;                       /* relative */
    double downtime; /* over what is allowed: max(25 %, 10 ms); 1 is just allowed */
    char text[200];
};

static bool converges_at(const struct dirty_profile *guest, const struct plan *plan, double factor)
{
    struct path_profile path = plan->path;
    struct prediction p;

    path.bandwidth = (uint64_t)((double)path.bandwidth * factor);
    prediction_make(guest, &path, &plan->costs, &plan->limits, 0, &p);
    return p.converges;
}

static bool is_inside(double s, const struct prediction_range *range)
{
    return s * 1e9 >= (double)range->low && s * 1e9 <= (double)range->high;
}

static struct score judge(int seed, const struct machine *m, const struct plan *plan,
                          const struct dirty_profile *guest, const struct move *move)
{
    struct score score = {.seed = seed};
    struct prediction p;

    prediction_make(guest, &plan->path, &plan->costs, &plan->limits, 0, &p);
    double total_s = (double)p.total_ns.expected / 1e9;
    double downtime_s = (double)p.downtime_ns.expected / 1e9;
    score.verdict_wrong = p.converges != move->converges;
    score.verdict_close = converges_at(guest, plan, 1.15) == move->converges ||
                          converges_at(guest, plan, 1 / 1.15) == move->converges;
    if (p.converges && move->converges) {
        score.total = fabs(total_s / move->total_s - 1);
        score.downtime = fabs(downtime_s - move->downtime_s) / fmax(0.25 * move->downtime_s, 0.01);
        score.total_inside = is_inside(move->total_s, &p.total_ns);
        score.downtime_inside = is_inside(move->downtime_s, &p.downtime_ns);
    }
    snprintf(score.text, sizeof(score.text),
             "seed %d (%s, %s): total %.3f s, predicted %.3f; downtime %.1f ms, predicted %.1f; "
             "rounds %u, %u; converges %d, %d",
             seed, pattern_names[m->pattern], m->taking == TAKES_FOUND ? "found" : "written",
             move->total_s, total_s, move->downtime_s * 1e3, downtime_s * 1e3, move->rounds,
             p.rounds, move->converges, p.converges);
    return score;
}

/* Plays `seed`; false when its pattern is none of `patterns`, a bit for each. */
static bool play(int seed, unsigned patterns, struct score *score)
{
    static struct machine m, copy;
    struct dirty_profile guest;
    struct plan plan;

    srand48(seed);
    random_case(&m, &plan);
    if (!(patterns >> m.pattern & 1))
        return false;
    profile(&m, 2, &guest);
    copy = m;
    struct move move = migrate(&copy, &plan);
    *score = judge(seed, &m, &plan, &guest, &move);
    return true;
}

static int by_total(const void *a, const void *b)
{
    double x = ((const struct score *)a)->total, y = ((const struct score *)b)->total;

    return (x > y) - (x < y);
}

/* What is asked of many predictions together. */
struct demand {
    unsigned patterns;
    double median, most_95; /* relative errors of the total */
    double downtimes;       /* share of those within max(25 %, 10 ms) */
    double inside;          /* share of the totals within their interval */
    double downtimes_inside;
    double verdicts; /* share of wrong ones that are not close, at most */
};

static void expect(const struct demand *want)
{
    static struct score scores[SEEDS];
    unsigned count_all = 0, count = 0, wrong = 0, downtimes = 0, inside = 0;
    unsigned downtimes_inside = 0;

    for (int seed = 0; seed < SEEDS; seed++) {
        struct score *score = &scores[count];
        if (!play(seed, want->patterns, score))
            continue;
        count_all++;
        if (score->verdict_wrong) {
            wrong += !score->verdict_close;
            if (!score->verdict_close)
                cr_log_info("wrong verdict: %s", score->text);
            continue;
        }
        downtimes += score->downtime <= 1;
        inside += score->total_inside || score->total == 0;
        downtimes_inside += score->downtime_inside || score->total == 0;
        count++;
    }
    cr_assert_gt(count, SEEDS / 8, "only %u cases of %d are of this kind", count, SEEDS);
    qsort(scores, count, sizeof(scores[0]), by_total);
    const struct score *middle = &scores[count / 2], *late = &scores[count * 95 / 100];
    cr_expect_leq(middle->total, want->median, "half are off by more than %.2f %%: %s",
                  100 * want->median, middle->text);
    cr_expect_leq(late->total, want->most_95, "5 %% are off by more than %.1f %%: %s",
                  100 * want->most_95, late->text);
    cr_expect_geq(downtimes, want->downtimes * count, "%u of %u downtimes are near enough",
                  downtimes, count);
    cr_expect_geq(inside, want->inside * count, "%u of %u totals lie within their interval", inside,
                  count);
    cr_expect_geq(downtimes_inside, want->downtimes_inside * count,
                  "%u of %u downtimes lie within their interval", downtimes_inside, count);
    cr_expect_leq(wrong, want->verdicts * count_all,
                  "%u of %u verdicts are wrong, and not for being close (see --verbose)", wrong,
                  count_all);
}

/* Pages written independently of each other: what a curve says of them holds at any time. */
Test(prediction_simulated, foretells_guests_that_write_at_random)
{
    expect(&(struct demand){.patterns = 1u << WORKLOAD_RANDOM,
                            .median = 0.005,
                            .most_95 = 0.03,
                            .downtimes = 0.95,
                            .inside = 0.95,
                            .downtimes_inside = 0.93,
                            .verdicts = 0.01});
}

Test(prediction_simulated, foretells_guests_with_a_hot_set)
{
    expect(&(struct demand){.patterns = 1u << WORKLOAD_HOTCOLD,
                            .median = 0.005,
                            .most_95 = 0.04,
                            .downtimes = 0.9,
                            .inside = 0.95,
                            .downtimes_inside = 0.82,
                            .verdicts = 0.02});
}

/* Guests that go from place to place: a sample of 2 s has seen a part of the way only, and what it
 * has not seen it cannot tell. */
Test(prediction_simulated, foretells_guests_that_wander)
{
    expect(&(struct demand){.patterns = 1u << WORKLOAD_SEQUENTIAL | 1u << WORKLOAD_WINDOW,
                            .median = 0.02,
                            .most_95 = 0.4,
                            .downtimes = 0.65,
                            .inside = 0.8,
                            .downtimes_inside = 0.65,
                            .verdicts = 0.03});
}

/* The prediction at the end of each round, as the engine makes it: it comes to be right. */
Test(prediction_simulated, is_refined_from_round_to_round)
{
    static struct machine m, copy;
    static struct recorded recorded;
    unsigned tried = 0, near = 0;

    for (int seed = 0; seed < SEEDS; seed++) {
        struct dirty_profile guest;
        struct plan plan;
        struct prediction p;

        srand48(seed);
        random_case(&m, &plan);
        profile(&m, 2, &guest);
        copy = m;
        struct move move = migrate_and_record(&copy, &plan, &recorded);
        if (!move.converges || recorded.input.round_count < 2)
            continue;
        prediction_refine(&guest, &plan.path, &plan.costs, &plan.limits, 0, &recorded.input, &p);
        double error = fabs((double)p.total_ns.expected / 1e9 / move.total_s - 1);
        tried++;
        near += p.converges && error < 0.03;
        cr_expect(!p.converges || p.total_ns.expected >= recorded.input.elapsed_ns,
                  "seed %d: foretells an end before now", seed);
    }
    cr_assert_gt(tried, SEEDS / 8, "only %u cases of %d have several rounds", tried, SEEDS);
    cr_expect_geq(near, tried * 9 / 10, "before the switchover %u of %u totals are within 3 %%",
                  near, tried);
}
