/* Between the windows of a profile straight lines; beyond the last one the guest as a whole goes on
 * as the end of its curve shows, and the pages go first to the bands that were growing, then to
 * whatever has room. The whole, because a band has too few pages to tell a bend from chance, and
 * because a guest that writes its memory in order fills one band after the other. */
#include "migrate/dirty_curve.h"

#include <math.h>
#include <string.h>

#include "migrate/numbers.h"
#include "transport/base/clock.h"

/* So much later than the one before is each point beyond the last window. */
static const double extra_step = 1.5;

enum { CHANCE_PAGES = 6, CHANCE_PERCENT = 2, ENOUGH_PAGES = 128, TAIL_STEPS = 8, FAR_OFF = 10 };

static const double most_power = 1.5;

static double last_ns(const struct dirty_profile *p)
{
    return (double)p->windows[p->window_count - 1].ns;
}

uint64_t dirty_profile_present(const struct dirty_profile *p)
{
    uint64_t pages = 0;

    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        pages += p->present[band];
    return pages;
}

/* Within the windows. */
static double interpolate(const struct dirty_profile *p, unsigned band, double ns)
{
    double before_ns = 0, before = 0;

    for (unsigned i = 0; i < p->window_count; i++) {
        double at_ns = (double)p->windows[i].ns, at = (double)p->windows[i].pages[band];
        if (ns <= at_ns)
            return before + (at - before) * (ns - before_ns) / larger(at_ns - before_ns, 1);
        before_ns = at_ns;
        before = at;
    }
    return before;
}

static double total_pages(const struct dirty_profile *p, double ns)
{
    double pages = 0;

    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        pages += interpolate(p, band, ns);
    return pages;
}

/* How the guest's curve as a whole goes on: it grows by `rate` at its end, and this falls off by
 * `decay` a ns. One hot set gives a decay that stays (an exponential curve); hot pages and cooler
 * ones give one that falls itself, with a power of the time. */
struct tail {
    double end_ns, rate;
    double decay, power;          /* decay * (t / end_ns) ^ -power; 0: straight */
    double growth[PROFILE_BANDS]; /* pages that each band got in the last third */
};

/* The guest's curve between two of its windows (or its beginning and one). */
struct piece {
    double middle_ns, ns, pages;
};

static struct piece piece_between(const struct dirty_profile *p, double begin_ns, double end_ns)
{
    return (struct piece){.middle_ns = (begin_ns + end_ns) / 2,
                          .ns = end_ns - begin_ns,
                          .pages = total_pages(p, end_ns) - total_pages(p, begin_ns)};
}

/* The window that is nearest to `ns`, of those below `limit_ns`; 0: there is none. */
static double nearest_ns(const struct dirty_profile *p, double ns, double limit_ns)
{
    double nearest = 0;

    for (unsigned i = 0; i < p->window_count && (double)p->windows[i].ns < limit_ns; i++)
        if (fabs((double)p->windows[i].ns - ns) <= fabs(nearest - ns))
            nearest = (double)p->windows[i].ns;
    return nearest;
}

/* The middle and the last third up to `end_ns`, as near as there are windows. */
static void find_pieces(const struct dirty_profile *p, double end_ns, struct piece pieces[2])
{
    double second = nearest_ns(p, end_ns * 2 / 3, end_ns);
    double first = nearest_ns(p, end_ns / 3, second);

    pieces[0] = piece_between(p, first, second);
    pieces[1] = piece_between(p, second, end_ns);
}

/* Pages that would have been new on a straight curve were written before: that takes some of them
 * not to be chance, and some percent not to be the guest's pace. */
static bool is_bent(const struct piece pieces[2])
{
    double straight = pieces[0].pages * pieces[1].ns / larger(pieces[0].ns, 1);

    return straight - pieces[1].pages > CHANCE_PAGES &&
           pieces[1].pages < straight * (1 - CHANCE_PERCENT / 100.0);
}

/* How fast the growth falls off between the middles of the pieces; 0: not so that it shows. */
static double find_decay(const struct piece pieces[2])
{
    double earlier = pieces[0].pages / larger(pieces[0].ns, 1);
    double later = larger(pieces[1].pages, 1) / larger(pieces[1].ns, 1);

    if (!is_bent(pieces))
        return 0;
    return larger(log(earlier / later), 0) / (pieces[1].middle_ns - pieces[0].middle_ns);
}

static double decay_at(const struct tail *tail, double ns)
{
    return tail->decay * pow(ns / tail->end_ns, -tail->power);
}

static struct tail find_tail(const struct dirty_profile *p)
{
    struct piece late[2], early[2];
    double end_ns = larger(last_ns(p), 1);

    find_pieces(p, end_ns, late);
    find_pieces(p, nearest_ns(p, end_ns / 2, end_ns), early);
    struct tail tail = {.end_ns = end_ns, .rate = late[1].pages / larger(late[1].ns, 1)};
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        tail.growth[band] = interpolate(p, band, end_ns) - interpolate(p, band, end_ns * 2 / 3);
    double decay = find_decay(late), before = find_decay(early);
    if (decay <= 0)
        return tail;
    double at_ns = (late[0].middle_ns + late[1].middle_ns) / 2;
    double before_ns = (early[0].middle_ns + early[1].middle_ns) / 2;
    tail.power = smaller(larger(log(before / decay) / log(at_ns / before_ns), 0), most_power);
    tail.decay = decay * pow(at_ns / end_ns, tail.power);
    tail.rate *=
        exp(-decay_at(&tail, (late[1].middle_ns + end_ns) / 2) * (end_ns - late[1].middle_ns));
    return tail;
}

/* The rate at a time after the end. */
static double tail_rate(const struct tail *tail, double ns)
{
    double flat = 1 - tail->power, part = ns / tail->end_ns;
    double fallen = fabs(flat) > 1e-3 ? (pow(part, flat) - 1) / flat : log(part);

    return tail->rate * exp(-tail->decay * tail->end_ns * fallen);
}

/* Pages that come from the end until `ns`. */
static double tail_pages(const struct tail *tail, double ns)
{
    double step = pow(ns / tail->end_ns, 1.0 / TAIL_STEPS), at = tail->end_ns, pages = 0;

    if (!(tail->decay > 0) || !(tail->rate > 0))
        return tail->rate * (ns - tail->end_ns);
    for (unsigned i = 0; i < TAIL_STEPS; i++) {
        double next = at * step, middle = (at + next) / 2;
        pages += (tail_rate(tail, at) + 4 * tail_rate(tail, middle) + tail_rate(tail, next)) / 6 *
                 (next - at);
        at = next;
    }
    return pages;
}

/* Gives `pages` to the bands in proportion to `weight`, up to their room. Returns what is left. */
static double pour(const struct dirty_profile *p, double pages, const double weight[PROFILE_BANDS],
                   double out[PROFILE_BANDS])
{
    double all = 0, left = pages;

    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        all += weight[band];
    for (unsigned band = 0; band < PROFILE_BANDS && all > 0; band++) {
        double room = (double)p->present[band] - out[band];
        double share = smaller(pages * weight[band] / all, room);
        out[band] += share;
        left -= share;
    }
    return left;
}

static void extrapolate(const struct dirty_profile *p, const struct tail *tail, double ns,
                        double out[PROFILE_BANDS])
{
    double room[PROFILE_BANDS], left = tail_pages(tail, ns);

    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        out[band] = (double)p->windows[p->window_count - 1].pages[band];
    left = pour(p, left, tail->growth, out);
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        room[band] = (double)p->present[band] - out[band];
    pour(p, left, room, out);
}

double dirty_profile_pages(const struct dirty_profile *p, double ns)
{
    if (p->window_count == 0 || !(ns > 0))
        return 0;
    if (ns <= last_ns(p))
        return total_pages(p, ns);
    struct tail tail = find_tail(p);
    return smaller(total_pages(p, last_ns(p)) + tail_pages(&tail, ns),
                   (double)dirty_profile_present(p));
}

double dirty_curve_band(const struct dirty_profile *p, unsigned band, double ns)
{
    double pages[PROFILE_BANDS];

    if (p->window_count == 0 || !(ns > 0))
        return 0;
    if (ns <= last_ns(p))
        return interpolate(p, band, ns);
    struct tail tail = find_tail(p);
    extrapolate(p, &tail, ns, pages);
    return pages[band];
}

/* From a window that is long enough for bursts not to count, and short for a hot set. */
double dirty_profile_rate(const struct dirty_profile *p)
{
    double all = p->window_count ? total_pages(p, last_ns(p)) : 0;
    double enough = larger(smaller(all / 8, ENOUGH_PAGES), ENOUGH_PAGES / 4);

    for (unsigned i = 0; i < p->window_count; i++) {
        double ns = (double)p->windows[i].ns, pages = total_pages(p, ns);
        if (pages >= enough || i + 1 == p->window_count)
            return pages * (double)NS_PER_S / larger(ns, 1);
    }
    return 0;
}

/* The end of the curve, drawn back to time 0, meets the hot pages: what grows on after them are
 * pages that are written once. */
uint64_t dirty_profile_hot_pages(const struct dirty_profile *p)
{
    if (p->window_count == 0)
        return 0;
    struct tail tail = find_tail(p);
    double all = total_pages(p, last_ns(p));
    double straight = dirty_profile_rate(p) * last_ns(p) / (double)NS_PER_S;

    if (tail.decay > 0)
        return (uint64_t)(all + tail_pages(&tail, last_ns(p) * FAR_OFF));
    if (all > straight * 0.9)
        return (uint64_t)all;
    return (uint64_t)larger(all - tail.rate * last_ns(p), 0);
}

static void add_point(struct dirty_curve *c, double ns, const double pages[PROFILE_BANDS])
{
    double *groups = c->pages[c->points];

    memset(groups, 0, sizeof(c->pages[0]));
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        groups[band * CURVE_GROUPS / PROFILE_BANDS] += pages[band];
    c->ns[c->points++] = ns;
}

static double window_pages(const struct dirty_window *w)
{
    uint64_t pages = 0;

    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        pages += w->pages[band];
    return (double)pages;
}

/* Where pages become more and chunks do not, all new pages lie in chunks that have some already;
 * where both grow by as much, each has a chunk of its own, or the guest goes from chunk to chunk.
 */
static double find_along(const struct dirty_profile *p, unsigned window)
{
    const struct dirty_window *end = &p->windows[window];
    static const struct dirty_window nothing = {0};
    const struct dirty_window *begin = window ? end - 1 : &nothing;
    double pages = window_pages(end), chunks = (double)end->chunks;
    double new_pages = pages - window_pages(begin), new_chunks = chunks - (double)begin->chunks;

    if (!(chunks > 0))
        return 0;
    return larger(1 - new_chunks / chunks / larger(new_pages / larger(pages, 1), 1e-6), 0);
}

void dirty_curve_make(const struct dirty_profile *profile, struct dirty_curve *out)
{
    double pages[PROFILE_BANDS];

    memset(out->present, 0, sizeof(out->present));
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        out->present[band * CURVE_GROUPS / PROFILE_BANDS] += (double)profile->present[band];
    out->points = 0;
    out->written = profile->window_count ? total_pages(profile, last_ns(profile)) : 0;
    for (unsigned i = 0; i < profile->window_count; i++) {
        for (unsigned band = 0; band < PROFILE_BANDS; band++)
            pages[band] = (double)profile->windows[i].pages[band];
        out->along[i] = find_along(profile, i);
        add_point(out, (double)profile->windows[i].ns, pages);
    }
    if (out->points == 0)
        return;
    struct tail tail = find_tail(profile);
    double ns = last_ns(profile);
    for (unsigned i = 0; i < CURVE_EXTRA_POINTS; i++) {
        ns *= extra_step;
        extrapolate(profile, &tail, ns, pages);
        out->along[out->points] = out->along[profile->window_count - 1];
        add_point(out, ns, pages);
    }
}

void dirty_curve_make_steady(double pages_per_s, double present, struct dirty_curve *out)
{
    *out = (struct dirty_curve){.points = 1, .ns = {0x1p62}, .present = {present}};
    out->pages[0][0] = pages_per_s * 0x1p62 / (double)NS_PER_S;
}

/* The first point at or after `ns`; `points` when there is none. */
static unsigned find_point(const struct dirty_curve *c, double ns)
{
    unsigned low = 0, high = c->points;

    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (c->ns[middle] < ns)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

double dirty_curve_pages(const struct dirty_curve *c, unsigned group, double ns)
{
    unsigned at = find_point(c, ns);

    if (at == c->points)
        return at ? c->pages[at - 1][group] : 0;
    double before_ns = at ? c->ns[at - 1] : 0, before = at ? c->pages[at - 1][group] : 0;
    return before + (c->pages[at][group] - before) * (ns - before_ns) / (c->ns[at] - before_ns);
}

double dirty_curve_along(const struct dirty_curve *c, double ns)
{
    unsigned at = find_point(c, ns);

    return c->points == 0 ? 0 : c->along[at < c->points ? at : at - 1];
}

double dirty_curve_ns(const struct dirty_curve *c, unsigned group, double pages)
{
    unsigned low = 0, high = c->points;

    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (c->pages[middle][group] < pages)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == c->points)
        return low ? c->ns[low - 1] : 0;
    double before_ns = low ? c->ns[low - 1] : 0, before = low ? c->pages[low - 1][group] : 0;
    double rise = c->pages[low][group] - before;
    return rise > 0 ? before_ns + (c->ns[low] - before_ns) * (pages - before) / rise : before_ns;
}

bool dirty_curve_is_idle(const struct dirty_curve *c, unsigned group)
{
    return c->points == 0 || c->pages[c->points - 1][group] <= 0;
}
