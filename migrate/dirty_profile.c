/* The time is cut into INTERVALS of equal length. Tracking is re-armed at the beginning of each; in
 * each, looks that re-arm nothing count what has become dirty after short windows that double. What
 * is taken at the end of the intervals gives the long windows: a page is missing from those windows
 * of k intervals that lie wholly between two intervals in which it was found, so from the lengths
 * of these gaps follow the distinct pages of a window of k intervals, averaged over all places
 * where such a window could begin. So guests that write in bursts, or one place after the other,
 * are seen at all their phases, and a page is re-armed, which costs the guest a fault, INTERVALS
 * times at most.
 *
 * Not so with KVM's dirty rings, whose collect re-arms: each look costs the guest faults, and its
 * pages are armed again earlier than a round would. Its dirty rate is understated. */
#include "migrate/dirty_profile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/page/page.h"
#include "transport/base/clock.h"

enum {
    COUNTS = PROFILE_BANDS + 1, /* of pages by band, and behind them of chunks: */
    CHUNKS = PROFILE_BANDS,
    INTERVALS = 8,
    LOOKS = PROFILE_WINDOWS - INTERVALS, /* in each interval, at most */
    LOOK_COST = 4,       /* a window is looked at if it is that many times as long as a look */
    SHORTEST_US = 500,   /* window */
    ASK_MS = 100,        /* between two questions whether to go on */
    ZERO_SAMPLES = 1024, /* pages */
};

/* A page in the order of a round. */
struct place {
    uint32_t region;
    uint64_t page;
};

struct sampler {
    struct guest *guest;
    struct tracker *tracker;
    int (*interrupted)(void *context, struct error *err);
    void *context;

    const struct guest_region *regions;
    unsigned region_count;
    struct extent_list present[GUEST_MAX_REGIONS];
    struct place band_end[PROFILE_BANDS];
    /* of each page, and behind them of each chunk: 1 + the newest interval it was found in; mapped
     * lazily */
    uint8_t *newest[GUEST_MAX_REGIONS];

    uint64_t interval_ns;
    uint64_t rearmed_at[INTERVALS + 1];
    uint64_t gaps[COUNTS][INTERVALS];         /* of so many intervals, before a page was found */
    uint64_t newest_count[COUNTS][INTERVALS]; /* pages by where they were found last */
    uint64_t look_pages[LOOKS][COUNTS], look_ns[LOOKS], looks[LOOKS]; /* sums */
    bool hands_out_more;               /* of a chunk, than was collected */
    uint64_t look_cost_ns, collect_ns; /* of the newest look; of all */
};

/* A walk through the dirty pages in order, which knows the band it is in. */
struct walk {
    const struct sampler *sampler;
    unsigned band;
};

static unsigned walk_to(struct walk *w, uint32_t region, uint64_t page)
{
    const struct place *end = &w->sampler->band_end[w->band];

    while (w->band < PROFILE_BANDS - 1 &&
           (end->region < region || (end->region == region && end->page <= page))) {
        w->band++;
        end++;
    }
    return w->band;
}

/* --- What is present, and its bands */

static uint64_t region_pages(const struct sampler *s, unsigned region)
{
    return s->regions[region].size / GUEST_PAGE_SIZE;
}

static size_t newest_size(const struct sampler *s, unsigned region)
{
    return region_pages(s, region) + region_pages(s, region) / GUEST_CHUNK_PAGES + 1;
}

static int map_newest(struct sampler *s, unsigned region, struct error *err)
{
    void *map = mmap(NULL, newest_size(s, region), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (map == MAP_FAILED)
        return error_set_errno(err, errno, "no memory to watch the pages of region %s",
                               s->regions[region].name);
    s->newest[region] = map;
    return 0;
}

static uint64_t present_pages(const struct sampler *s)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < s->region_count; i++)
        bytes += extent_list_bytes(&s->present[i]);
    return bytes / GUEST_PAGE_SIZE;
}

/* The place of the present page `index`, or of the end of all memory. */
static struct place find_place(const struct sampler *s, uint64_t index)
{
    for (unsigned i = 0; i < s->region_count; i++) {
        for (size_t k = 0; k < s->present[i].count; k++) {
            const struct extent *e = &s->present[i].extents[k];
            uint64_t pages = e->length / GUEST_PAGE_SIZE;
            if (index < pages)
                return (struct place){i, e->offset / GUEST_PAGE_SIZE + index};
            index -= pages;
        }
    }
    return (struct place){s->region_count, 0};
}

static void cut_bands(struct sampler *s, struct dirty_profile *out)
{
    uint64_t pages = present_pages(s), before = 0;

    for (unsigned band = 0; band < PROFILE_BANDS; band++) {
        uint64_t end = pages * (band + 1) / PROFILE_BANDS;
        s->band_end[band] = find_place(s, end);
        out->present[band] = end - before;
        before = end;
    }
}

/* Present pages to look at, in order, by their number among them. */
struct zero_walk {
    uint64_t next, stride, dice, samples, zero;
};

/* On by `stride` pages on average: equal steps could be in step with how memory is laid out. */
static void step_on(struct zero_walk *w)
{
    w->dice = w->dice * 6364136223846793005ull + 1442695040888963407ull;
    w->next += 1 + (w->dice >> 33) % (2 * w->stride - 1);
}

static void count_zero(struct zero_walk *w, const char *base, uint64_t before, uint64_t pages)
{
    while (w->next < before + pages) {
        w->zero += page_is_zero(base + (w->next - before) * GUEST_PAGE_SIZE);
        w->samples++;
        step_on(w);
    }
}

static void estimate_zero_pages(const struct sampler *s, struct dirty_profile *out)
{
    uint64_t pages = present_pages(s), before = 0;
    struct zero_walk walk = {.stride = pages / ZERO_SAMPLES + 1};

    for (unsigned i = 0; i < s->region_count; i++) {
        const char *host = s->regions[i].host;
        for (size_t k = 0; k < s->present[i].count; k++) {
            const struct extent *e = &s->present[i].extents[k];
            count_zero(&walk, host + e->offset, before, e->length / GUEST_PAGE_SIZE);
            before += e->length / GUEST_PAGE_SIZE;
        }
    }
    if (walk.samples)
        out->zero_pages = (uint64_t)((double)pages * (double)walk.zero / (double)walk.samples);
}

/* --- Taking and looking */

/* Counts the page as found in `interval`. */
static void note_found(struct sampler *s, unsigned band, uint8_t *newest, unsigned interval)
{
    if (*newest > interval)
        return;
    s->gaps[band][interval - *newest]++;
    if (*newest)
        s->newest_count[band][*newest - 1]--;
    s->newest_count[band][interval]++;
    *newest = (uint8_t)(interval + 1);
}

static void note_chunk(struct walk *w, struct sampler *s, uint32_t region, uint64_t chunk,
                       const uint64_t bits[TRACKER_WORDS_PER_CHUNK], unsigned interval)
{
    uint64_t pages = region_pages(s, region);

    note_found(s, CHUNKS, &s->newest[region][pages + chunk], interval);
    for (unsigned i = 0; i < TRACKER_WORDS_PER_CHUNK; i++) {
        for (uint64_t word = bits[i]; word; word &= word - 1) {
            uint64_t page = chunk * GUEST_CHUNK_PAGES + i * 64 + (unsigned)__builtin_ctzll(word);
            if (page < pages)
                note_found(s, walk_to(w, region, page), &s->newest[region][page], interval);
        }
    }
}

static uint64_t count_bits(const uint64_t bits[TRACKER_WORDS_PER_CHUNK])
{
    uint64_t count = 0;

    for (unsigned i = 0; i < TRACKER_WORDS_PER_CHUNK; i++)
        count += (unsigned)__builtin_popcountll(bits[i]);
    return count;
}

/* Takes all that the last collect found; `s` NULL: without noting it. */
static int take_all(struct guest *guest, struct tracker *tracker, struct sampler *s,
                    unsigned interval, uint64_t *pages, struct error *err)
{
    const struct guest_region *regions;
    unsigned count = guest->ops->regions(guest, &regions);
    struct walk walk = {.sampler = s};

    for (unsigned region = 0; region < count; region++) {
        uint64_t page = 0;
        while (tracker->ops->next(tracker, region, &page)) {
            uint64_t bits[TRACKER_WORDS_PER_CHUNK] = {0}, chunk = page / GUEST_CHUNK_PAGES;
            int result = tracker->ops->take(tracker, region, chunk, bits, err);
            if (result)
                return result;
            *pages += count_bits(bits);
            if (s)
                note_chunk(&walk, s, region, chunk, bits, interval);
            page = (chunk + 1) * GUEST_CHUNK_PAGES;
        }
    }
    return 0;
}

int dirty_profile_rearm(struct guest *guest, struct tracker *tracker, uint64_t *pages,
                        struct error *err)
{
    uint64_t found, taken = 0;
    int result = tracker->ops->collect(tracker, &found, err);

    if (!result)
        result = take_all(guest, tracker, NULL, 0, &taken, err);
    if (pages)
        *pages = taken;
    return result;
}

/* Halfway through: some pages are seen, or re-armed, before it, some after. */
static uint64_t middle_of(uint64_t began)
{
    return began + (clock_now() - began) / 2;
}

/* Counts what is dirty by now, and leaves it so. */
static int look(struct sampler *s, unsigned interval, unsigned n, struct error *err)
{
    const struct tracker_ops *ops = s->tracker->ops;
    struct walk walk = {.sampler = s};
    uint64_t began = clock_now(), pages;
    int result = ops->collect(s->tracker, &pages, err);
    uint64_t seen_at = middle_of(began);

    s->collect_ns += clock_now() - began;
    for (unsigned region = 0; !result && region < s->region_count; region++) {
        uint64_t chunk = UINT64_MAX;
        for (uint64_t page = 0; ops->next(s->tracker, region, &page); page++) {
            s->look_pages[n][walk_to(&walk, region, page)]++;
            s->look_pages[n][CHUNKS] += page / GUEST_CHUNK_PAGES != chunk;
            chunk = page / GUEST_CHUNK_PAGES;
        }
    }
    s->look_cost_ns = clock_now() - began;
    s->look_ns[n] += seen_at - s->rearmed_at[interval];
    s->looks[n]++;
    return result;
}

static int sleep_until(const struct sampler *s, uint64_t deadline, struct error *err)
{
    while (clock_now() < deadline) {
        int result = s->interrupted ? s->interrupted(s->context, err) : 0;
        if (result)
            return result;
        uint64_t slice = clock_now() + ASK_MS * NS_PER_MS;
        clock_sleep_until(slice < deadline ? slice : deadline);
    }
    return 0;
}

/* Of LOOKS windows that halve, the longest is number 0: half an interval. */
static bool is_worth(const struct sampler *s, uint64_t window_ns, uint64_t deadline)
{
    return window_ns >= SHORTEST_US * NS_PER_US && window_ns >= LOOK_COST * s->look_cost_ns &&
           clock_now() <= deadline;
}

static int watch_interval(struct sampler *s, unsigned interval, struct error *err)
{
    uint64_t began = s->rearmed_at[interval], found = 0, taken = 0;
    int result = 0;

    for (unsigned n = LOOKS; n-- > 0 && !result;) {
        uint64_t window_ns = s->interval_ns >> (n + 1);
        if (!is_worth(s, window_ns, began + window_ns))
            continue;
        result = sleep_until(s, began + window_ns, err);
        if (!result)
            result = look(s, interval, n, err);
    }
    if (!result)
        result = sleep_until(s, began + s->interval_ns, err);
    uint64_t ended = clock_now();
    if (!result)
        result = s->tracker->ops->collect(s->tracker, &found, err);
    if (!result)
        result = take_all(s->guest, s->tracker, s, interval, &taken, err);
    s->hands_out_more = s->hands_out_more || taken > found;
    s->rearmed_at[interval + 1] = middle_of(ended);
    return result;
}

/* --- The windows */

/* Behind the last one, if it is longer; the curves never fall. */
static void add_window(struct dirty_profile *p, uint64_t ns, const uint64_t counts[COUNTS])
{
    const struct dirty_window *last = p->window_count ? &p->windows[p->window_count - 1] : NULL;
    struct dirty_window *window = &p->windows[p->window_count];

    if (ns == 0 || (last && ns <= last->ns))
        return;
    window->ns = ns;
    for (unsigned band = 0; band < PROFILE_BANDS; band++) {
        uint64_t most = p->present[band], least = last ? last->pages[band] : 0;
        uint64_t found = counts[band] > least ? counts[band] : least;
        window->pages[band] = found < most ? found : most;
    }
    window->chunks = last && last->chunks > counts[CHUNKS] ? last->chunks : counts[CHUNKS];
    p->window_count++;
}

static void add_looks(const struct sampler *s, unsigned n, struct dirty_profile *out)
{
    uint64_t counts[COUNTS];

    if (s->looks[n] == 0)
        return;
    for (unsigned i = 0; i < COUNTS; i++)
        counts[i] = (s->look_pages[n][i] + s->looks[n] / 2) / s->looks[n];
    add_window(out, s->look_ns[n] / s->looks[n], counts);
}

/* In how many windows of `length` intervals the pages of a band, or the chunks, were found, all
 * together. */
static uint64_t count_found(const struct sampler *s, unsigned count, unsigned length)
{
    uint64_t windows = INTERVALS - length + 1, pages = 0, missed = 0;

    for (unsigned i = 0; i < INTERVALS; i++) {
        unsigned behind = INTERVALS - 1 - i; /* a gap, too */
        pages += s->newest_count[count][i];
        if (i >= length)
            missed += s->gaps[count][i] * (i - length + 1);
        if (behind >= length)
            missed += s->newest_count[count][i] * (behind - length + 1);
    }
    return pages * windows - missed;
}

static void add_intervals(const struct sampler *s, unsigned length, struct dirty_profile *out)
{
    uint64_t counts[COUNTS], windows = INTERVALS - length + 1, ns = 0;

    for (unsigned i = 0; i < windows; i++)
        ns += s->rearmed_at[i + length] - s->rearmed_at[i];
    for (unsigned i = 0; i < COUNTS; i++)
        counts[i] = (count_found(s, i, length) + windows / 2) / windows;
    add_window(out, ns / windows, counts);
}

static void say_profile(const struct sampler *s, struct dirty_profile *out)
{
    uint64_t looks = 0;

    for (unsigned n = LOOKS; n-- > 0;) {
        looks += s->looks[n];
        add_looks(s, n, out);
    }
    for (unsigned length = 1; length <= INTERVALS; length++)
        add_intervals(s, length, out);
    for (unsigned i = 0; i < out->window_count && !s->hands_out_more; i++)
        out->windows[i].chunks = 0;
    out->collect_ns = looks ? s->collect_ns / looks : 0;
}

static int begin(struct sampler *s, struct dirty_profile *out, struct error *err)
{
    int result = 0;

    s->region_count = s->guest->ops->regions(s->guest, &s->regions);
    for (unsigned i = 0; i < s->region_count && !result; i++) {
        result = map_newest(s, i, err);
        if (!result)
            result = s->guest->ops->present(s->guest, s->regions[i].id, &s->present[i], err);
    }
    if (result)
        return result;
    cut_bands(s, out);
    estimate_zero_pages(s, out);
    uint64_t began = clock_now();
    result = dirty_profile_rearm(s->guest, s->tracker, NULL, err);
    s->rearmed_at[0] = middle_of(began);
    return result;
}

static void end(struct sampler *s)
{
    for (unsigned i = 0; i < s->region_count; i++) {
        extent_list_free(&s->present[i]);
        if (s->newest[i])
            munmap(s->newest[i], newest_size(s, i));
    }
    free(s);
}

int dirty_profile_sample(struct guest *guest, struct tracker *tracker, uint64_t duration_ns,
                         int (*interrupted)(void *context, struct error *err), void *context,
                         struct dirty_profile *out, struct error *err)
{
    struct sampler *s = calloc(1, sizeof(*s));

    if (!s)
        return error_set(err, ENOMEM, "no memory to watch the guest");
    memset(out, 0, sizeof(*out));
    s->guest = guest;
    s->tracker = tracker;
    s->interrupted = interrupted;
    s->context = context;
    s->interval_ns = duration_ns / INTERVALS;
    int result = begin(s, out, err);
    for (unsigned i = 0; i < INTERVALS && !result; i++)
        result = watch_interval(s, i, err);
    if (!result)
        say_profile(s, out);
    end(s);
    return result;
}
