#include "migrate/policy.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "migrate/guest/guest.h"
#include "migrate/numbers.h"
#include "transport/base/clock.h"
#include "transport/base/options.h"

/* How the decision falls, first match wins:
 *
 *   predicted downtime <= limit                            switch over
 *   max_time is over                                       give up, or switch over by force
 *   pause, load and state alone exceed the limit           give up after FUTILE_ROUNDS: none can
 * help no progress in STALLED_ROUNDS, or in a throttled one   more throttle, where allowed
 *   otherwise                                              another round
 *
 * A guest that dirties faster than its pages are sent is no reason to give up: its load may fall,
 * and the operator, whom `why` and the ETA tell that it will not end as things go, may cancel or
 * set a max_time. */
enum {
    MARGIN_PAGES = 16,     /* written at the pause itself: by the VMM, by the last instructions */
    MARGIN_FACTOR = 2,     /* on the pages that get dirty until the vCPUs stand still: bursts */
    STALLED_ROUNDS = 2,    /* without progress, before the guest is throttled at all */
    PROGRESS_PERCENT = 75, /* a round has made progress if at most so much of it is dirty again */
    FUTILE_ROUNDS = 3,
    THROTTLE_STEP = 10,
    THROTTLE_MAX = 99,
    SETTLED_ROUND_BYTES = 1 << 20,
    RECENT_ROUNDS = 3,
    ASSUMED_BANDWIDTH = 1 << 30,
    AHEAD_MS = 100, /* half of it each fence: a busy destination may be so late with one */
    FENCE_SLACK = GUEST_CHUNK_SIZE / 4,
};

/* A dirty set halves from round to round when pages get dirty at this share of the bandwidth. */
static const double throttle_target = 0.5;

/* Shorter than any real round; keeps a rate finite when a clock did not move. */
static const double shortest_dirty_s = 1e-6;

enum reason {
    REASON_FITS,
    REASON_FORCED,
    REASON_TIMEOUT,
    REASON_FUTILE, /* up to here the rounds end */
    REASON_THROTTLE,
    REASON_STALLED,
    REASON_SLOW,
    REASON_GOES_ON,
};

static const enum policy_action reason_action[] = {
    [REASON_FITS] = POLICY_SWITCH_OVER,       [REASON_FORCED] = POLICY_SWITCH_OVER,
    [REASON_TIMEOUT] = POLICY_GIVE_UP,        [REASON_FUTILE] = POLICY_GIVE_UP,
    [REASON_THROTTLE] = POLICY_ANOTHER_ROUND, [REASON_STALLED] = POLICY_ANOTHER_ROUND,
    [REASON_SLOW] = POLICY_ANOTHER_ROUND,     [REASON_GOES_ON] = POLICY_ANOTHER_ROUND,
};

static uint64_t saturating_add(uint64_t a, uint64_t b)
{
    uint64_t sum;

    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

static uint64_t pages_to_bytes(uint64_t pages)
{
    return pages > UINT64_MAX >> GUEST_PAGE_SHIFT ? UINT64_MAX : pages << GUEST_PAGE_SHIFT;
}

static uint64_t transfer_ns(uint64_t bytes, uint64_t bytes_per_s)
{
    unsigned __int128 ns = (unsigned __int128)bytes * NS_PER_S / (bytes_per_s ? bytes_per_s : 1);

    return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

static const struct policy_round *last_round(const struct policy_input *input)
{
    return &input->rounds[input->round_count - 1];
}

/* Distinct pages per second. With a hot set this falls as the time grows, so over the pause delay,
 * which comes on top of dirty_ns, it is an upper bound. */
static double dirty_pages_per_s(const struct policy_round *round)
{
    double s = (double)round->dirty_ns / (double)NS_PER_S;

    return (double)round->dirty_pages_after / larger(s, shortest_dirty_s);
}

static double dirty_bytes_per_s(const struct policy_round *round)
{
    return dirty_pages_per_s(round) * GUEST_PAGE_SIZE;
}

static uint64_t predict_last_bytes(const struct policy_input *input)
{
    const struct policy_round *last = last_round(input);
    double delay_s = (double)input->pause_delay_ns / (double)NS_PER_S;
    uint64_t late = to_u64(dirty_pages_per_s(last) * delay_s * MARGIN_FACTOR);
    uint64_t pages = saturating_add(last->dirty_pages_after, saturating_add(late, MARGIN_PAGES));

    return pages_to_bytes(pages);
}

uint64_t policy_predict_downtime(const struct policy_input *input, uint64_t last_bytes)
{
    uint64_t ns = transfer_ns(last_bytes, input->bandwidth);

    ns = saturating_add(ns, transfer_ns(input->state_bytes, input->bandwidth));
    return saturating_add(ns, input->fixed_ns);
}

static uint64_t shortest_downtime(const struct policy_input *input)
{
    return policy_predict_downtime(input, pages_to_bytes(MARGIN_PAGES));
}

/* A throttled round was measured at that throttle from end to end, so one says that it does not
 * suffice; to begin with throttling takes more, for it costs the guest. Progress is judged over all
 * of these rounds together: a guest that writes in step with the sender has long and short rounds
 * by turns, and every short one would look like progress. */
static bool is_stuck(const struct policy_input *input)
{
    const struct policy_round *last = last_round(input);
    size_t needed = last->throttle ? 1 : STALLED_ROUNDS;
    double progress = 1;

    if (input->round_count < needed)
        return false;
    for (size_t i = 0; i < needed; i++)
        progress *= PROGRESS_PERCENT / 100.0;
    return (double)last->dirty_pages_after > (double)(last - (needed - 1))->pages * progress;
}

/* The throttle at which pages get dirty at throttle_target of the bandwidth, if the dirty rate is
 * proportional to the vCPUs' time; at least a step more than now, because a hot set hides how fast
 * it is written. */
static unsigned raised_throttle(const struct policy_input *input, unsigned throttle_max)
{
    const struct policy_round *last = last_round(input);
    double running = 1 - smaller(last->throttle, THROTTLE_MAX) / 100.0;
    double wanted = throttle_target * (double)input->bandwidth / larger(dirty_bytes_per_s(last), 1);
    double needed = 100 * (1 - running * wanted) + 1;
    double step = last->throttle + THROTTLE_STEP;

    return (unsigned)smaller(larger(needed, step), smaller(throttle_max, THROTTLE_MAX));
}

/* No round can help; with a forced end to come, that is waited for. */
static bool is_futile(const struct policy_input *input, const struct policy_limits *limits)
{
    bool force_to_come = limits->max_time_ns && limits->on_timeout == ON_TIMEOUT_FORCE;

    return !force_to_come && input->round_count >= FUTILE_ROUNDS &&
           shortest_downtime(input) > limits->downtime_ns;
}

static bool may_throttle_more(const struct policy_input *input, const struct policy_limits *limits)
{
    unsigned now = last_round(input)->throttle;

    return now < limits->throttle_max && now < THROTTLE_MAX;
}

static enum reason find_reason(const struct policy_input *input, const struct policy_limits *limits,
                               uint64_t predicted_downtime_ns)
{
    const struct policy_round *last = last_round(input);

    if (predicted_downtime_ns <= limits->downtime_ns)
        return REASON_FITS;
    if (limits->max_time_ns && input->elapsed_ns >= limits->max_time_ns)
        return limits->on_timeout == ON_TIMEOUT_FORCE ? REASON_FORCED : REASON_TIMEOUT;
    if (is_futile(input, limits))
        return REASON_FUTILE;
    if (!is_stuck(input))
        return REASON_GOES_ON;
    if (may_throttle_more(input, limits))
        return REASON_THROTTLE;
    return last->dirty_pages_after < last->pages ? REASON_SLOW : REASON_STALLED;
}

/* All of the decision but its text. */
static struct policy_decision decide(const struct policy_input *input,
                                     const struct policy_limits *limits, enum reason *reason)
{
    struct policy_decision d = {.throttle = last_round(input)->throttle};

    d.predicted_last_bytes = predict_last_bytes(input);
    d.predicted_downtime_ns = policy_predict_downtime(input, d.predicted_last_bytes);
    *reason = find_reason(input, limits, d.predicted_downtime_ns);
    d.action = reason_action[*reason];
    d.forced = *reason == REASON_FORCED;
    if (*reason == REASON_THROTTLE)
        d.throttle = raised_throttle(input, limits->throttle_max);
    if (d.action == POLICY_GIVE_UP)
        d.throttle = 0;
    return d;
}

/* Short enough that the longest sentence below fits `why`. */
struct figures {
    const char *remedy;
    char predicted[16], limit[16], last[16], dirtied[16], sent[16], shortest[16], elapsed[16];
};

static void format_figures(const struct policy_input *input, const struct policy_limits *limits,
                           const struct policy_decision *d, struct figures *out)
{
    out->remedy = limits->throttle_max ? "a larger --downtime-limit"
                                       : "--throttle auto, a larger --downtime-limit";
    format_time(d->predicted_downtime_ns, out->predicted, sizeof(out->predicted));
    format_time(limits->downtime_ns, out->limit, sizeof(out->limit));
    format_size(d->predicted_last_bytes, out->last, sizeof(out->last));
    format_rate(dirty_bytes_per_s(last_round(input)), out->dirtied, sizeof(out->dirtied));
    format_rate((double)input->bandwidth, out->sent, sizeof(out->sent));
    format_time(shortest_downtime(input), out->shortest, sizeof(out->shortest));
    format_time(input->elapsed_ns, out->elapsed, sizeof(out->elapsed));
}

static void explain_end(enum reason reason, const struct figures *f, char *why, size_t size)
{
    if (reason == REASON_FITS)
        snprintf(why, size, "%s left, predicted downtime %s within the limit of %s", f->last,
                 f->predicted, f->limit);
    else if (reason == REASON_FORCED)
        snprintf(why, size,
                 "forced after %s: predicted downtime %s exceeds the limit of %s (the guest "
                 "dirties %s, the "
                 "lanes send %s)",
                 f->elapsed, f->predicted, f->limit, f->dirtied, f->sent);
    else if (reason == REASON_TIMEOUT)
        snprintf(why, size,
                 "does not converge in %s: the guest dirties %s, the lanes send %s, predicted "
                 "downtime %s "
                 "(limit %s); use %s or --on-timeout force",
                 f->elapsed, f->dirtied, f->sent, f->predicted, f->limit, f->remedy);
    else
        snprintf(why, size,
                 "pause, device state and resume alone take %s at %s, the limit is %s; use a "
                 "--downtime-limit well above that",
                 f->shortest, f->sent, f->limit);
}

static void explain_round(enum reason reason, const struct figures *f, unsigned throttle, char *why,
                          size_t size)
{
    if (reason == REASON_GOES_ON)
        snprintf(why, size, "%s left, predicted downtime %s (limit %s)", f->last, f->predicted,
                 f->limit);
    else if (reason == REASON_THROTTLE)
        snprintf(why, size,
                 "throttling the guest by %u %%: it dirties %s, the lanes send %s, predicted "
                 "downtime %s "
                 "(limit %s)",
                 throttle, f->dirtied, f->sent, f->predicted, f->limit);
    else
        snprintf(why, size,
                 "%s: the guest dirties %s, the lanes send %s, predicted downtime %s (limit %s); "
                 "use %s or --max-time",
                 reason == REASON_SLOW ? "converges slowly" : "as things go, never converges",
                 f->dirtied, f->sent, f->predicted, f->limit, f->remedy);
}

struct policy_decision policy_decide(const struct policy_input *input,
                                     const struct policy_limits *limits)
{
    enum reason reason;
    struct policy_decision d = decide(input, limits, &reason);
    struct figures figures;

    format_figures(input, limits, &d, &figures);
    if (reason < REASON_THROTTLE)
        explain_end(reason, &figures, d.why, sizeof(d.why));
    else
        explain_round(reason, &figures, d.throttle, d.why, sizeof(d.why));
    return d;
}

struct policy_decision policy_choose(const struct policy_input *input,
                                     const struct policy_limits *limits)
{
    enum reason reason;

    return decide(input, limits, &reason);
}

uint64_t policy_bandwidth(const struct policy_round *rounds, size_t count)
{
    uint64_t bytes = 0, ns = 0;
    unsigned used = 0;

    for (size_t i = count; i > 0 && used < RECENT_ROUNDS; i--) {
        if (rounds[i - 1].bytes < SETTLED_ROUND_BYTES)
            continue;
        bytes = saturating_add(bytes, rounds[i - 1].bytes);
        ns = saturating_add(ns, rounds[i - 1].ns);
        used++;
    }
    if (used == 0 || ns == 0)
        return ASSUMED_BANDWIDTH;
    uint64_t rate = to_u64((double)bytes * (double)NS_PER_S / (double)ns);
    return rate ? rate : 1;
}

struct policy_pace policy_pace(uint64_t bandwidth, uint64_t round_trip_ns, unsigned lanes)
{
    double s =
        (double)saturating_add(AHEAD_MS * NS_PER_MS, saturating_add(round_trip_ns, round_trip_ns)) /
        1e9;
    uint64_t ahead = to_u64((double)bandwidth * s),
             least = (uint64_t)GUEST_CHUNK_SIZE * (lanes ? lanes : 1);

    ahead = ahead > least ? ahead : least;
    uint64_t fences = ahead / POLICY_FENCE_BYTES + (ahead % POLICY_FENCE_BYTES != 0);
    if (fences <= 2)
        return (struct policy_pace){.fence_bytes = ahead / 2, .fences = 2};
    return (struct policy_pace){.fence_bytes = POLICY_FENCE_BYTES, .fences = fences};
}

bool policy_fence_is_due(const struct policy_pace *pace, uint64_t unfenced_bytes)
{
    return unfenced_bytes + FENCE_SLACK >= pace->fence_bytes;
}

double policy_pace_ahead(const struct policy_pace *pace, double chunk_bytes)
{
    double least = larger((double)pace->fence_bytes - FENCE_SLACK, 1);
    double alike =
        ceil(least / chunk_bytes) * chunk_bytes; /* each chunk has as much as the other */
    double unlike = least + chunk_bytes / 2;

    return ((double)pace->fences - 0.5) * larger(smaller(alike, unlike), chunk_bytes);
}

uint64_t policy_best_bandwidth(uint64_t before, const struct policy_round *round)
{
    uint64_t seen = round->bytes >= SETTLED_ROUND_BYTES ? policy_bandwidth(round, 1) : 0;

    return seen > before ? seen : before;
}
