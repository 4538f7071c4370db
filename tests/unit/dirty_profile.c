/* How a guest's dirtying is watched, gone on with beyond what was seen, written down and read. */
#include <criterion/criterion.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/dirty_curve.h"
#include "migrate/dirty_profile.h"
#include "transport/base/clock.h"

#define MS(n) ((n)*NS_PER_MS)

enum {
    REGIONS = 2,
    REGION_PAGES = 2048,
    CHUNKS = REGION_PAGES / GUEST_CHUNK_PAGES,
    /* of each region, pages from HOLE on are there, but for the very last chunk */
    HOLE = 256,
    PRESENT = REGION_PAGES - HOLE - GUEST_CHUNK_PAGES,
    INTERVALS = 8,
};

/* --- A guest whose every page is known: what it writes after each re-arming is in a table. */

struct fake {
    struct guest guest;
    struct tracker tracker;
    struct guest_region regions[REGIONS];
    bool writes[INTERVALS + 2][REGIONS][REGION_PAGES]; /* after so many re-armings */
    bool dirty[REGIONS][REGION_PAGES], found[REGIONS][REGION_PAGES];
    unsigned rearmed; /* how often */
    bool taken, written;
    bool hands_out_more; /* than it has collected: the next page, too */
    int collect_error, take_error, present_error, asked, interrupt_after;
};

static struct fake fake;

static unsigned fake_regions(struct guest *g, const struct guest_region **out)
{
    *out = fake.regions;
    (void)g;
    return REGIONS;
}

static int fake_present(struct guest *g, uint32_t region, struct extent_list *out,
                        struct error *err)
{
    uint64_t half = PRESENT / 2 * GUEST_PAGE_SIZE, begin = HOLE * GUEST_PAGE_SIZE;

    (void)g;
    (void)region;
    if (fake.present_error)
        return error_set(err, fake.present_error, "present fails");
    extent_list_add(out, begin, half);
    return extent_list_add(out, begin + half, half);
}

static const struct guest_ops fake_guest_ops = {
    .kind = "fake", .regions = fake_regions, .present = fake_present};

/* The first collect after a re-arming finds what was written since. */
static int fake_collect(struct tracker *t, uint64_t *pages, struct error *err)
{
    (void)t;
    if (fake.collect_error)
        return error_set(err, fake.collect_error, "collect fails");
    if (fake.taken) {
        fake.rearmed++;
        fake.taken = fake.written = false;
    }
    *pages = 0;
    for (unsigned r = 0; r < REGIONS; r++)
        for (unsigned i = 0; i < REGION_PAGES; i++) {
            fake.dirty[r][i] |= !fake.written && fake.writes[fake.rearmed][r][i];
            fake.found[r][i] = fake.dirty[r][i];
            *pages += fake.found[r][i];
        }
    fake.written = true;
    return 0;
}

static bool fake_next(struct tracker *t, uint32_t region, uint64_t *page)
{
    (void)t;
    while (*page < REGION_PAGES && !fake.found[region][*page])
        ++*page;
    return *page < REGION_PAGES;
}

static int fake_take(struct tracker *t, uint32_t region, uint64_t chunk,
                     uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    (void)t;
    if (fake.take_error)
        return error_set(err, fake.take_error, "take fails");
    fake.taken = true;
    for (unsigned i = 0; i < GUEST_CHUNK_PAGES; i++) {
        unsigned page = (unsigned)chunk * GUEST_CHUNK_PAGES + i;
        bool more = fake.hands_out_more && i && fake.found[region][page - 1];
        if (fake.found[region][page] || more)
            bits[i / 64] |= 1ull << i % 64;
    }
    for (unsigned i = 0; i < GUEST_CHUNK_PAGES; i++) {
        unsigned page = (unsigned)chunk * GUEST_CHUNK_PAGES + i;
        fake.dirty[region][page] = fake.found[region][page] = false;
    }
    return 0;
}

static const struct tracker_ops fake_tracker_ops = {
    .name = "fake", .collect = fake_collect, .next = fake_next, .take = fake_take};

/* Of the present pages every fourth one holds something. What is not present cannot be read. */
static void *make_memory(void)
{
    size_t size = (size_t)REGION_PAGES * GUEST_PAGE_SIZE, begin = (size_t)HOLE * GUEST_PAGE_SIZE;
    char *host = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    cr_assert_neq(host, MAP_FAILED);
    mprotect(host + begin, (size_t)PRESENT * GUEST_PAGE_SIZE, PROT_READ | PROT_WRITE);
    for (size_t i = 0; i < PRESENT; i += 4)
        host[begin + i * GUEST_PAGE_SIZE + 4000] = 1;
    return host;
}

static void make_fake(void)
{
    fake = (struct fake){
        .guest = {&fake_guest_ops}, .tracker = {&fake_tracker_ops}, .interrupt_after = INT32_MAX};
    for (uint32_t r = 0; r < REGIONS; r++)
        fake.regions[r] = (struct guest_region){
            .id = r, .name = "ram", .size = REGION_PAGES * GUEST_PAGE_SIZE, .host = make_memory()};
}

static int may_go_on(void *context, struct error *err)
{
    if (++*(int *)context > fake.interrupt_after)
        return error_set(err, ECANCELED, "cancelled");
    return 0;
}

static int sample(struct dirty_profile *out, struct error *err)
{
    return dirty_profile_sample(&fake.guest, &fake.tracker, MS(80), may_go_on, &fake.asked, out,
                                err);
}

/* --- Watching */

static unsigned band_of(unsigned region, unsigned page)
{
    unsigned index = region * PRESENT + (page < HOLE ? 0 : page - HOLE);

    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        if (index < (band + 1) * REGIONS * PRESENT / PROFILE_BANDS)
            return band;
    return PROFILE_BANDS - 1;
}

/* Distinct pages of a window of `length` intervals, averaged over all there are. */
static void count_by_hand(unsigned length, double pages[PROFILE_BANDS])
{
    unsigned windows = INTERVALS - length + 1;

    memset(pages, 0, sizeof(pages[0]) * PROFILE_BANDS);
    for (unsigned first = 1; first <= windows; first++)
        for (unsigned r = 0; r < REGIONS; r++)
            for (unsigned page = 0; page < REGION_PAGES; page++) {
                bool any = false;
                for (unsigned i = first; i < first + length; i++)
                    any |= fake.writes[i][r][page];
                pages[band_of(r, page)] += any / (double)windows;
            }
}

static void write_at_random(double share)
{
    for (unsigned i = 0; i < INTERVALS + 2; i++)
        for (unsigned r = 0; r < REGIONS; r++)
            for (unsigned page = HOLE; page < HOLE + PRESENT; page++)
                fake.writes[i][r][page] = drand48() < share;
}

Test(dirty_profile, counts_distinct_pages_over_windows_that_begin_anywhere)
{
    static const double shares[] = {0.001, 0.02, 0.3, 1};

    for (size_t n = 0; n < sizeof(shares) / sizeof(shares[0]); n++) {
        struct dirty_profile p;
        struct error err = {0};

        srand48(n + 1);
        make_fake();
        write_at_random(shares[n]);
        cr_assert_eq(sample(&p, &err), 0, "%s", err.text);
        cr_assert_geq(p.window_count, INTERVALS);
        for (unsigned length = 1; length <= INTERVALS; length++) {
            const struct dirty_window *w = &p.windows[p.window_count - INTERVALS + length - 1];
            double want[PROFILE_BANDS];
            count_by_hand(length, want);
            for (unsigned band = 0; band < PROFILE_BANDS; band++) {
                /* looks that were skipped leave an average of other intervals, and curves rise */
                double least = w > p.windows ? (double)w[-1].pages[band] : 0;
                cr_assert_lt(fabs((double)w->pages[band] - fmax(want[band], least)), 1,
                             "share %g, %u intervals, band %u: %llu pages, not %.2f", shares[n],
                             length, band, (unsigned long long)w->pages[band], want[band]);
            }
        }
    }
}

Test(dirty_profile, keeps_what_readers_rely_on)
{
    struct dirty_profile p;
    struct error err = {0};
    uint64_t before[PROFILE_BANDS] = {0}, before_ns = 0;

    make_fake();
    srand48(5);
    write_at_random(0.1);
    cr_assert_eq(sample(&p, &err), 0, "%s", err.text);
    cr_assert_eq(dirty_profile_present(&p), REGIONS * PRESENT);
    for (unsigned i = 0; i < p.window_count; i++) {
        cr_assert_gt(p.windows[i].ns, before_ns, "window %u is no longer than the one before", i);
        cr_assert_eq(p.windows[i].chunks, 0, "it says that chunks come as a whole");
        before_ns = p.windows[i].ns;
        for (unsigned band = 0; band < PROFILE_BANDS; band++) {
            cr_assert_geq(p.windows[i].pages[band], before[band], "band %u falls", band);
            cr_assert_leq(p.windows[i].pages[band], p.present[band], "band %u overflows", band);
            before[band] = p.windows[i].pages[band];
        }
    }
}

Test(dirty_profile, reads_a_sample_of_present_pages_for_zeros)
{
    struct dirty_profile p;
    struct error err = {0};

    make_fake();
    cr_assert_eq(sample(&p, &err), 0, "%s", err.text);
    double share = (double)p.zero_pages / (REGIONS * PRESENT);
    cr_assert(share > 0.65 && share < 0.85, "%.2f of the pages are said to be zero, not 0.75",
              share);
}

Test(dirty_profile, notices_a_tracker_that_takes_chunks_as_they_are)
{
    struct dirty_profile p;
    struct error err = {0};

    make_fake();
    fake.hands_out_more = true;
    for (unsigned i = 0; i < INTERVALS + 2; i++) /* two chunks each time, three in all */
        fake.writes[i][0][300] = fake.writes[i][i % 2][600] = true;
    cr_assert_eq(sample(&p, &err), 0, "%s", err.text);
    const struct dirty_window *w = &p.windows[p.window_count - INTERVALS];
    cr_assert_eq(w[0].chunks, 2, "%llu chunks in an interval", (unsigned long long)w[0].chunks);
    cr_assert_eq(w[1].chunks, 3, "%llu chunks in two", (unsigned long long)w[1].chunks);
}

Test(dirty_profile, counts_what_it_rearms)
{
    struct error err = {0};
    uint64_t pages = 0;

    make_fake();
    for (unsigned i = 0; i < 10; i++)
        fake.writes[0][1][500 + i * 100] = true;
    cr_assert_eq(dirty_profile_rearm(&fake.guest, &fake.tracker, &pages, &err), 0, "%s", err.text);
    cr_assert_eq(pages, 10, "%llu pages, not 10", (unsigned long long)pages);
    cr_assert_eq(dirty_profile_rearm(&fake.guest, &fake.tracker, NULL, &err), 0, "%s", err.text);
}

static void expect_failure(const char *what, int want, const char *text)
{
    struct dirty_profile p;
    struct error err = {0};
    int result = sample(&p, &err);

    cr_expect_eq(result, -want, "%s: %d, not %d", what, result, -want);
    cr_expect(strstr(err.text, text), "%s: \"%s\" lacks \"%s\"", what, err.text, text);
}

Test(dirty_profile, passes_errors_on)
{
    make_fake();
    write_at_random(0.1);
    fake.collect_error = EIO;
    expect_failure("collect", EIO, "collect fails");
    make_fake();
    write_at_random(0.1);
    fake.take_error = EBADF;
    expect_failure("take", EBADF, "take fails");
    make_fake();
    fake.present_error = ENOMEM;
    expect_failure("present", ENOMEM, "present fails");
    make_fake();
    fake.interrupt_after = 2;
    expect_failure("interrupted", ECANCELED, "cancelled");
    cr_expect_eq(fake.asked, 3, "asked %d times after it was told to stop", fake.asked - 3);
}

/* --- Going on with a curve */

enum { BAND_PAGES = 1000 };

/* `hot` pages in band 3, written at random; band 5 gets `cold` a second, each once. */
static struct dirty_profile curve_of(double hot, double writes_per_s, double cold)
{
    struct dirty_profile p = {0};

    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        p.present[band] = BAND_PAGES;
    for (unsigned i = 0; i < 12; i++) {
        double s = 2 * pow(2, (double)i - 11);
        struct dirty_window *w = &p.windows[p.window_count++];
        w->ns = (uint64_t)(s * 1e9);
        w->pages[3] = hot > 0 ? (uint64_t)(hot * (1 - exp(-writes_per_s * s / hot)) + 0.5) : 0;
        w->pages[5] = (uint64_t)(cold * s + 0.5);
    }
    return p;
}

struct curve_case {
    const char *name;
    double hot, writes_per_s, cold;
    unsigned band;
    double s, want, tolerance; /* relative, and a page and a half */
};

/* clang-format off */
static const struct curve_case curve_cases[] = {
    {"nothing at no time", 500, 1000, 0, 3, 0, 0, 0},
    {"nothing in a band that is not written", 500, 1000, 0, 4, 2, 0, 0},
    {"half of the first window", 500, 100000, 0, 3, 0.00048828, 48.8, 0.2},
    {"a window as it was seen", 500, 1000, 0, 3, 1, 432.3, 0},
    {"between two windows", 0, 0, 100, 5, 1.5, 150, 0},
    {"a hot set goes on bending", 500, 100, 0, 3, 6, 349.4, 0.04},
    {"and is full in the end", 500, 100, 0, 3, 60, 500, 0.06},
    {"a full hot set stays as it is", 500, 10000, 0, 3, 1000, 500, 0},
    {"a straight curve goes straight on", 0, 0, 100, 5, 8, 800, 0.01},
    {"up to what the band has", 0, 0, 100, 5, 20, BAND_PAGES, 0},
    {"a hot set beside a straight curve stays", 300, 10000, 100, 3, 6, 300, 0.01},
    {"and the straight curve goes on", 300, 10000, 100, 5, 6, 600, 0.02},
    {"few pages are no bend", 0, 0, 3, 5, 100, 300, 0.1},
};
/* clang-format on */

Test(dirty_profile, goes_on_as_the_curve_shows)
{
    for (size_t i = 0; i < sizeof(curve_cases) / sizeof(curve_cases[0]); i++) {
        const struct curve_case *c = &curve_cases[i];
        struct dirty_profile p = curve_of(c->hot, c->writes_per_s, c->cold);
        double got = dirty_curve_band(&p, c->band, c->s * 1e9);

        cr_expect_lt(fabs(got - c->want), c->want * c->tolerance + 1.5, "%s: %.1f pages, not %.1f",
                     c->name, got, c->want);
        double all = 0, together = dirty_profile_pages(&p, c->s * 1e9);
        for (unsigned band = 0; band < PROFILE_BANDS; band++)
            all += dirty_curve_band(&p, band, c->s * 1e9);
        cr_expect_lt(fabs(all - together), 0.01 + all * 1e-6, "%s: all %.2f pages, together %.2f",
                     c->name, all, together);
    }
}

Test(dirty_profile, never_falls_nor_overflows)
{
    for (int seed = 0; seed < 200; seed++) {
        srand48(seed);
        struct dirty_profile p =
            curve_of(1 + 999 * drand48(), exp(12 * drand48()), 500 * drand48());
        for (unsigned band = 3; band < 8; band++) {
            double before = 0;
            for (double s = 1e-4; s < 1e6; s *= 1.3) {
                double pages = dirty_curve_band(&p, band, s * 1e9);
                cr_assert_geq(pages, before - 1e-6, "seed %d, band %u, %g s: falls", seed, band, s);
                cr_assert_leq(pages, BAND_PAGES + 1e-6, "seed %d, band %u, %g s: %g pages", seed,
                              band, s, pages);
                before = pages;
            }
        }
    }
}

Test(dirty_profile, fills_what_has_room_when_the_growing_bands_are_full)
{
    struct dirty_profile p = curve_of(0, 0, 400);
    double pages = 0;

    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        pages += dirty_curve_band(&p, band, 10e9);
    cr_assert_lt(fabs(pages - 4000), 40, "%.0f pages after 10 s at 400 a second", pages);
    cr_assert_lt(fabs(dirty_curve_band(&p, 5, 10e9) - BAND_PAGES), 1);
}

Test(dirty_profile, says_what_is_hot_and_at_which_rate)
{
    static const struct {
        double hot, writes_per_s, cold, want_hot, want_rate;
    } cases[] = {
        {500, 10000, 0, 500, 9000}, {500, 200, 0, 500, 190}, {300, 20000, 100, 300, 19000},
        {0, 0, 400, 800, 400},      {0, 0, 0, 0, 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct dirty_profile p = curve_of(cases[i].hot, cases[i].writes_per_s, cases[i].cold);
        double hot = (double)dirty_profile_hot_pages(&p), rate = dirty_profile_rate(&p);

        cr_expect_leq(fabs(hot - cases[i].want_hot), 0.1 * cases[i].want_hot,
                      "case %zu: %.0f hot pages, not %.0f", i, hot, cases[i].want_hot);
        cr_expect_leq(fabs(rate - cases[i].want_rate), 0.15 * cases[i].want_rate,
                      "case %zu: %.0f pages/s, not %.0f", i, rate, cases[i].want_rate);
    }
}

/* --- JSON */

Test(dirty_profile, comes_back_from_json_as_it_was)
{
    struct dirty_profile p = curve_of(300, 10000, 100), again;
    struct error err = {0};

    p.zero_pages = 1234;
    p.collect_ns = 56789;
    for (unsigned i = 0; i < p.window_count; i++)
        p.windows[i].chunks = i;
    cJSON *json = dirty_profile_to_json(&p);
    char *text = cJSON_Print(json);
    cJSON *parsed = cJSON_Parse(text);
    cr_assert_eq(dirty_profile_from_json(parsed, &again, &err), 0, "%s", err.text);
    cr_assert_eq(memcmp(&p, &again, sizeof(p)), 0, "it changed on the way: %s", text);
    cJSON_Delete(json);
    cJSON_Delete(parsed);
    free(text);
}

/* A key of a good profile is replaced by `value`; NULL takes it away. */
struct hostile_case {
    const char *key, *value, *want; /* a part of the error; NULL: it is fine */
};

static const struct hostile_case hostile_cases[] = {
    {"zero_pages", "0", NULL},
    {"zero_pages", NULL, "zero_pages is missing"},
    {"zero_pages", "-1", "zero_pages"},
    {"zero_pages", "1.5", "zero_pages"},
    {"zero_pages", "1e300", "zero_pages"},
    {"zero_pages", "64001", "more than are present"},
    {"zero_pages", "\"many\"", "zero_pages"},
    {"collect_ns", "null", "collect_ns"},
    {"present_pages", NULL, "present_pages"},
    {"present_pages", "{}", "present_pages"},
    {"present_pages", "[1,2]", "64 to 64"},
    {"windows_ns", NULL, "windows_ns"},
    {"windows_ns", "[]", "1 to 24"},
    {"windows_ns", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25]",
     "1 to 24"},
    {"windows_ns", "[1,2,3,4,5,6,7,8,9,10,11,11]", "do not grow"},
    {"windows_ns", "[0,2,3,4,5,6,7,8,9,10,11,12]", "do not grow"},
    {"windows_ns", "[1,2,3,4,5,6,7,8,9,10,11,1e30]", "windows_ns"},
    {"windows_ns", "[1,2,3,4,5,6,7,8,9,10,11,\"12\"]", "windows_ns holds"},
    {"dirty_pages", NULL, "dirty_pages"},
    {"dirty_pages", "[]", "dirty_pages is no object"},
    {"dirty_pages", "{\"3\":[1,2]}", "12 to 12"},
    {"dirty_pages", "{\"64\":[0,0,0,0,0,0,0,0,0,0,0,0]}", "no band"},
    {"dirty_pages", "{\"-1\":[0,0,0,0,0,0,0,0,0,0,0,0]}", "no band"},
    {"dirty_pages", "{\"03\":[0,0,0,0,0,0,0,0,0,0,0,0]}", "no band"},
    {"dirty_pages", "{\"3\":[0,0,0,0,0,0,0,0,0,0,0,1001]}", "from 0 to 1000"},
    {"dirty_pages", "{\"3\":[0,0,0,0,0,0,0,0,0,0,5,4]}", "fall"},
    {"dirty_pages", "{\"3\":[0,0,0,0,0,0,0,0,0,0,-5,4]}", "from 0"},
    {"dirty_pages", "{\"3\":[0,0,0,0,0,0,0,0,0,0,5,5]}", NULL},
    {"dirty_chunks", NULL, NULL},
    {"dirty_chunks", "[1]", "12 to 12"},
    {"dirty_chunks", "[1,1,1,1,1,1,1,1,1,1,2,1]", "fall"},
    {"dirty_chunks", "[1,1,1,1,1,1,1,1,1,1,2,1e99]", "dirty_chunks"},
};

static cJSON *good_json(const struct dirty_profile *p)
{
    cJSON *json = dirty_profile_to_json(p);
    char *text = cJSON_PrintUnformatted(json);
    cJSON *parsed = cJSON_Parse(text);

    cJSON_Delete(json);
    free(text);
    return parsed;
}

static void put(cJSON *json, const char *key, const char *value)
{
    cJSON_DeleteItemFromObjectCaseSensitive(json, key);
    if (value)
        cJSON_AddItemToObject(json, key, cJSON_Parse(value));
}

Test(dirty_profile, believes_no_json_that_cannot_be)
{
    struct dirty_profile p = curve_of(300, 10000, 100), out;

    for (size_t i = 0; i < sizeof(hostile_cases) / sizeof(hostile_cases[0]); i++) {
        const struct hostile_case *c = &hostile_cases[i];
        cJSON *json = good_json(&p);
        struct error err = {0};

        put(json, c->key, c->value);
        int result = dirty_profile_from_json(json, &out, &err);
        cr_expect_eq(result, c->want ? -EPROTO : 0, "%s = %s: %d, \"%s\"", c->key, c->value, result,
                     err.text);
        cr_expect(!c->want || strstr(err.text, c->want), "%s = %s: \"%s\" lacks \"%s\"", c->key,
                  c->value, err.text, c->want);
        cJSON_Delete(json);
    }
    struct error err = {0};
    cr_expect_eq(dirty_profile_from_json(NULL, &out, &err), -EPROTO);
}
