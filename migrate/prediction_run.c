/* The sending of a round re-arms group by group. `w` below are windows of the guest's own time: how
 * much of its work it got done.
 *
 *   collect        a group's turn: re-armed, sent              collect
 *   |<---- waiting ---->|<-------------- after ------------------>|
 *
 * Of a group's pages that were found dirty, those are dirty at the end of the round that were
 * written after their turn; of the others, those that were written at any time of it. If D(w) are
 * the distinct pages of a window, and `before` the window in which the found ones had become dirty,
 * these are together D(after) + D(before + waiting + after) - D(before + after): exactly so for
 * pages that are written independently of each other, and for such as are written in order. */
#include "migrate/prediction_run.h"

#include <string.h>

#include "migrate/numbers.h"
#include "transport/base/clock.h"

enum {
    RUN_HISTORY = 64,
    STEADY_ROUNDS = 4, /* that differ by so little that the next will, too: */
    SLICES = 4,        /* of a group */
    PAUSE_US = 500,    /* from the end of a round's collect until the vCPUs stand still */
};

static const double steady_difference = 0.003;

struct run {
    const struct run_setting *setting;
    struct policy_round rounds[RUN_HISTORY];
    struct policy_input input;
    double found[CURVE_GROUPS]; /* dirty at the newest collect */
    double elapsed_ns, bytes;
    unsigned round_count, throttle, steady_rounds;
};

static double send_ns(const struct run *r, double pages)
{
    double bandwidth = r->setting->bandwidth * (r->round_count ? r->setting->again : 1);

    return pages * GUEST_PAGE_SIZE * (double)NS_PER_S / bandwidth;
}

static double dirty_pages(const struct run *r)
{
    double pages = 0;

    for (unsigned g = 0; g < CURVE_GROUPS; g++)
        pages += r->found[g];
    return pages;
}

/* Of the pages that the guest was seen to write, how many were found: how full their chunks are. */
static double found_share(const struct run *r)
{
    double written = r->setting->curve->written;

    return written > 0 ? smaller(larger(dirty_pages(r) / written, 1.0 / GUEST_CHUNK_PAGES), 1) : 1;
}

/* On their way, in the mean, when a page is taken (rounds_send_dirty). A cap holds back posting:
 * what is taken has gone, or nearly. */
static double pages_ahead(const struct run *r)
{
    const struct path_profile *path = r->setting->path;
    double best = r->setting->bandwidth * larger(r->setting->again, 1);
    struct policy_pace pace = policy_pace(to_u64(best), path->round_trip_ns, path->lanes);

    if (r->setting->capped)
        return 0;
    return policy_pace_ahead(&pace, found_share(r) * GUEST_CHUNK_SIZE) / GUEST_PAGE_SIZE;
}

/* The guest's own time in `ns` during which pages are sent. */
static double work_ns(const struct run *r, double ns)
{
    double running = 1 - (r->throttle < 99 ? r->throttle : 99) / 100.0;

    return ns * r->setting->path->guest_share * running * r->setting->speed;
}

static void note_round(struct run *r, double pages, double sent, double ns, double dirty_ns)
{
    struct policy_round round = {
        .pages = to_u64(pages),
        .bytes = to_u64(sent * GUEST_PAGE_SIZE),
        .ns = to_u64(ns),
        .dirty_pages_after = to_u64(dirty_pages(r) + 0.5),
        .dirty_ns = to_u64(dirty_ns),
        .throttle = r->throttle,
    };

    if (r->input.round_count == RUN_HISTORY)
        memmove(r->rounds, r->rounds + 1, --r->input.round_count * sizeof(r->rounds[0]));
    r->rounds[r->input.round_count++] = round;
    r->round_count++;
    r->elapsed_ns += ns;
    r->bytes += sent * GUEST_PAGE_SIZE;
    r->input.elapsed_ns = to_u64(r->elapsed_ns);
    if (!r->setting->now)
        r->input.bandwidth = policy_bandwidth(r->rounds, r->input.round_count);
}

/* Every present page goes, and nothing is re-armed: what was written since tracking began, at the
 * end of the set-up, is dirty. */
static void first_round(struct run *r)
{
    const struct run_setting *s = r->setting;
    double sent = larger(s->present_pages - s->zero_pages, 0);
    double setup_ns = s->costs->setup_ns ? (double)s->costs->setup_ns : (double)s->path->setup_ns;
    double tracked_ns = smaller((double)s->path->tracked_ns, setup_ns);
    double ns = send_ns(r, sent) + (double)s->path->first_ns + (double)s->path->round_ns;

    if (s->path->zero_bandwidth)
        ns += s->zero_pages * GUEST_PAGE_SIZE * (double)NS_PER_S / (double)s->path->zero_bandwidth;
    for (unsigned g = 0; g < CURVE_GROUPS; g++) {
        double written_ns = tracked_ns * s->speed + work_ns(r, ns);
        r->found[g] = dirty_curve_pages(s->curve, g, written_ns);
    }
    r->elapsed_ns = setup_ns;
    note_round(r, s->present_pages, sent, ns, tracked_ns + ns);
}

/* The sending of a round, the same for all groups. */
struct sending {
    double all;   /* window of the whole round */
    double along; /* as in each turn */
    double ahead; /* pages on their way when one is taken */
};

/* What the turn of a part of a group does. */
struct turn {
    double waiting, after; /* windows */
    double along;          /* of what is written while it waits, how much is sent with the rest */
};

/* Pages that were not found and are written by the time the group's turn comes. */
static double written_meanwhile(const struct dirty_curve *c, unsigned g, double before,
                                double waiting)
{
    return larger(dirty_curve_pages(c, g, before + waiting) - dirty_curve_pages(c, g, before), 0);
}

static double dirty_again(const struct dirty_curve *c, unsigned g, double before,
                          const struct turn *turn)
{
    return dirty_curve_pages(c, g, turn->after) +
           (1 - turn->along) * written_meanwhile(c, g, before + turn->after, turn->waiting);
}

/* Sends what was found of a group, `sent` pages having been sent before, a slice after the other:
 * much of a large group goes when the path has room, the rest later. Returns the pages. */
static double send_group(struct run *r, unsigned g, double sent, const struct sending *s)
{
    const struct dirty_curve *c = r->setting->curve;
    double found = r->found[g], before = dirty_curve_ns(c, g, found), again = 0, more = 0;
    struct turn turn = {.along = s->along};

    for (unsigned i = 0; i < SLICES; i++) {
        double position = sent + found * (i + 0.5) / SLICES;
        turn.waiting = work_ns(r, send_ns(r, larger(position - s->ahead, 0)));
        turn.after = larger(s->all - turn.waiting, 0);
        again += dirty_again(c, g, before, &turn) / SLICES;
        if (turn.along > 0)
            more += turn.along * written_meanwhile(c, g, before, turn.waiting) / SLICES;
    }
    r->found[g] = smaller(again, c->present[g]);
    return found + more;
}

/* Sends what was found; returns the pages. */
static double send_groups(struct run *r, double expected_ns)
{
    struct sending s = {.all = work_ns(r, expected_ns), .ahead = pages_ahead(r)};
    double sent = 0;

    s.along = dirty_curve_along(r->setting->curve, s.all);
    for (unsigned g = 0; g < CURVE_GROUPS; g++)
        if (r->found[g] > 0 || !dirty_curve_is_idle(r->setting->curve, g))
            sent += send_group(r, g, sent, &s);
    return sent;
}

static void another_round(struct run *r)
{
    double before[CURVE_GROUPS], round_ns = (double)r->setting->path->round_ns;
    double pages = dirty_pages(r), sent;

    memcpy(before, r->found, sizeof(before));
    sent = send_groups(r, send_ns(r, pages) + round_ns);
    if (sent > pages) { /* it takes longer, and more gets dirty meanwhile */
        memcpy(r->found, before, sizeof(before));
        sent = send_groups(r, send_ns(r, sent) + round_ns);
    }
    double ns = send_ns(r, sent) + round_ns;
    note_round(r, sent, sent, ns, ns);
}

static void go_on_from(struct run *r, const struct policy_input *now)
{
    const struct policy_round *last = &now->rounds[now->round_count - 1];
    size_t count = now->round_count < RUN_HISTORY ? now->round_count : RUN_HISTORY;
    double all = 0;

    memcpy(r->rounds, now->rounds + now->round_count - count, count * sizeof(r->rounds[0]));
    r->input = *now;
    r->input.rounds = r->rounds;
    r->input.round_count = count;
    r->round_count = (unsigned)now->round_count;
    r->elapsed_ns = (double)now->elapsed_ns;
    r->throttle = last->throttle;
    for (size_t i = 0; i < now->round_count; i++)
        r->bytes += (double)now->rounds[i].bytes;
    for (unsigned g = 0; g < CURVE_GROUPS; g++) {
        r->found[g] = dirty_curve_pages(r->setting->curve, g, work_ns(r, (double)last->dirty_ns));
        all += r->found[g];
    }
    for (unsigned g = 0; g < CURVE_GROUPS; g++)
        r->found[g] = all > 0 ? r->found[g] * (double)last->dirty_pages_after / all
                              : (double)last->dirty_pages_after / CURVE_GROUPS;
}

static void begin(struct run *r)
{
    const struct run_setting *s = r->setting;

    if (s->now) {
        go_on_from(r, s->now);
        return;
    }
    r->input = (struct policy_input){
        .rounds = r->rounds,
        .state_bytes = s->costs->state_bytes,
        .fixed_ns =
            POLICY_FIRST_FIXED_MS * NS_PER_MS + DOWNTIME_ROUND_TRIPS * s->path->round_trip_ns,
        .pause_delay_ns = POLICY_FIRST_PAUSE_DELAY_MS * NS_PER_MS,
    };
    first_round(r);
}

static struct run_result end_run(const struct run *r, enum run_end end)
{
    return (struct run_result){.end = end,
                               .total_ns = r->elapsed_ns,
                               .bytes = r->bytes,
                               .rounds = r->round_count,
                               .throttle = r->throttle};
}

static struct run_result switch_over(const struct run *r, bool forced)
{
    const struct run_setting *s = r->setting;
    struct run_result result = end_run(r, forced ? RUN_FORCED : RUN_SWITCHED_OVER);
    double late_ns = work_ns(r, (double)s->look_ns + PAUSE_US * NS_PER_US), pages = 0;

    for (unsigned g = 0; g < CURVE_GROUPS; g++)
        pages += r->found[g] +
                 written_meanwhile(s->curve, g, dirty_curve_ns(s->curve, g, r->found[g]), late_ns);
    result.downtime_ns = (double)s->costs->downtime_ns + send_ns(r, pages) +
                         DOWNTIME_ROUND_TRIPS * (double)s->path->round_trip_ns;
    result.total_ns += result.downtime_ns + (double)s->costs->finish_ns;
    result.bytes += pages * GUEST_PAGE_SIZE;
    result.rounds++;
    return result;
}

/* Whether the rounds have come to be all the same. */
static bool is_steady(struct run *r, unsigned throttle)
{
    const struct policy_round *last = &r->rounds[r->input.round_count - 1];
    double now = (double)last->dirty_pages_after, then = (double)last->pages;
    double difference = now > then ? now - then : then - now;

    if (throttle != r->throttle || difference > 1 + steady_difference * then)
        r->steady_rounds = 0;
    else
        r->steady_rounds++;
    return r->steady_rounds >= STEADY_ROUNDS;
}

/* As many more of the same rounds as there is time for. */
static void run_out_of_time(struct run *r)
{
    const struct policy_round *last = &r->rounds[r->input.round_count - 1];
    double left = (double)r->setting->limits->max_time_ns - r->elapsed_ns;
    double round_ns = larger((double)last->ns, 1);
    double more = left > 0 ? left / round_ns + 1 : 0;

    more = (double)to_u64(more);
    r->elapsed_ns += more * round_ns;
    r->bytes += more * (double)last->bytes;
    r->round_count += more < 1e9 ? (unsigned)more : 1000000000u;
    r->input.elapsed_ns = to_u64(r->elapsed_ns);
    r->steady_rounds = 0;
}

struct run_result prediction_run(const struct run_setting *setting)
{
    struct run r;

    r.setting = setting;
    r.elapsed_ns = r.bytes = 0;
    r.round_count = r.throttle = r.steady_rounds = 0;
    begin(&r);
    for (unsigned i = 0; i < setting->most_rounds; i++) {
        struct policy_decision d = policy_choose(&r.input, setting->limits);

        if (d.action == POLICY_SWITCH_OVER)
            return switch_over(&r, d.forced);
        if (d.action == POLICY_GIVE_UP)
            return end_run(&r, RUN_GAVE_UP);
        if (is_steady(&r, d.throttle)) {
            if (!setting->limits->max_time_ns)
                break;
            run_out_of_time(&r);
            continue;
        }
        r.throttle = d.throttle;
        another_round(&r);
    }
    return end_run(&r, RUN_ENDLESS);
}
