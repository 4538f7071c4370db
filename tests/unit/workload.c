/* The workload's specification text, its checks, its bulk content and its choice of pages. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/workload.h"
#include "transport/base/clock.h"

#define M (1ull << 20)

struct parse_case {
    const char *spec;
    struct workload expect;
};

#define DEFAULTS .content = CONTENT_INCOMPRESSIBLE, .rate = UINT64_MAX, .hot_share = 90, .seed = 1

static const struct parse_case good[] = {
    {NULL, {DEFAULTS}},
    {"", {DEFAULTS}},
    {"touch=64M", {DEFAULTS, .touch = 64 * M}},
    {"touch=0,hot=0,at=0", {DEFAULTS}},
    {"hot=32M,rate=5000",
     {.content = CONTENT_INCOMPRESSIBLE, .rate = 5000, .hot_share = 90, .seed = 1, .hot = 32 * M}},
    {"rate=20M/s", {.content = CONTENT_INCOMPRESSIBLE, .rate = 5120, .hot_share = 90, .seed = 1}},
    {"rate=20MiB/s", {.content = CONTENT_INCOMPRESSIBLE, .rate = 5120, .hot_share = 90, .seed = 1}},
    {"rate=max,seed=18446744073709551615",
     {.content = CONTENT_INCOMPRESSIBLE, .rate = UINT64_MAX, .hot_share = 90, .seed = UINT64_MAX}},
    {"content=zero,pattern=random",
     {.content = CONTENT_ZERO,
      .rate = UINT64_MAX,
      .hot_share = 90,
      .seed = 1,
      .pattern = WORKLOAD_RANDOM}},
    {"hot=10M,at=4K,pattern=window,window=1M,hot-share=50",
     {.content = CONTENT_INCOMPRESSIBLE,
      .rate = UINT64_MAX,
      .hot_share = 50,
      .seed = 1,
      .hot = 10 * M,
      .hot_at = 4096,
      .pattern = WORKLOAD_WINDOW,
      .window = M}},
};

/* Field by field: the padding of a struct says nothing. */
static bool same(const struct workload *a, const struct workload *b)
{
    return a->touch == b->touch && a->content == b->content && a->hot == b->hot &&
           a->hot_at == b->hot_at && a->rate == b->rate && a->pattern == b->pattern &&
           a->hot_share == b->hot_share && a->window == b->window && a->seed == b->seed;
}

Test(workload, parse_and_format)
{
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct workload parsed, again;
        struct error err = {0};
        char text[256], expected[256];
        const char *name = good[i].spec ? good[i].spec : "(null)";
        cr_assert_eq(workload_parse(good[i].spec, &parsed, &err), 0, "%s: %s", name, err.text);
        cr_assert(same(&parsed, &good[i].expect), "%s: expected %s, got %s", name,
                  workload_format(&good[i].expect, expected, sizeof(expected)),
                  workload_format(&parsed, text, sizeof(text)));
        workload_format(&parsed, text, sizeof(text));
        cr_assert_eq(workload_parse(text, &again, &err), 0, "%s: %s", text, err.text);
        cr_assert(same(&again, &parsed), "%s does not survive formatting as %s", name, text);
    }
}

struct refusal_case {
    const char *spec;
    int expect;
    const char *word; /* that the text must hold */
};

static const struct refusal_case bad[] = {
    {"tuch=1M", -EINVAL, "hot-share"},
    {"touch", -EINVAL, "touch"},
    {"touch=-1", -EINVAL, "touch"},
    {"touch=17E", -EINVAL, "touch"},
    {"touch=18446744073709551616", -ERANGE, "touch"},
    {"touch=5000", -EINVAL, "page size"},
    {"hot=100", -EINVAL, "page size"},
    {"hot=16T", -EINVAL, "16T"},
    {"content=random", -EINVAL, "incompressible"},
    {"pattern=zigzag", -EINVAL, "sequential"},
    {"rate=0", -EINVAL, "rate"},
    {"rate=100B/s", -EINVAL, "rate"},
    {"rate=fast", -EINVAL, "rate"},
    {"hot-share=101", -ERANGE, "hot-share"},
    {"hot=1M,pattern=window", -EINVAL, "window"},
    {"hot=1M,pattern=window,window=2M", -EINVAL, "window"},
    {"seed=x", -EINVAL, "seed"},
};

Test(workload, refusals)
{
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct workload parsed;
        struct error err = {0};
        int rc = workload_parse(bad[i].spec, &parsed, &err);
        cr_expect_eq(rc, bad[i].expect, "%s: returned %d, expected %d (%s)", bad[i].spec, rc,
                     bad[i].expect, err.text);
        cr_expect(strstr(err.text, bad[i].word), "%s: '%s' does not mention %s", bad[i].spec,
                  err.text, bad[i].word);
    }
}

struct fit_case {
    uint64_t touch, hot, at, available;
    int expect;
};

static const struct fit_case fits[] = {
    {64 * M, 64 * M, 0, 64 * M, 0},     {64 * M, 0, 0, 63 * M, -EINVAL},
    {0, 64 * M, 4096, 64 * M, -EINVAL}, {0, 4096, UINT64_MAX - 4095, 64 * M, -EINVAL},
    {0, 0, 65 * M, 64 * M, -EINVAL},    {0, 0, 0, 0, 0},
};

Test(workload, fits)
{
    for (size_t i = 0; i < sizeof(fits) / sizeof(fits[0]); i++) {
        struct workload w = {DEFAULTS, .touch = fits[i].touch, .hot = fits[i].hot,
                             .hot_at = fits[i].at};
        struct error err = {0};
        int rc = workload_check(&w, fits[i].available, &err);
        cr_expect_eq(rc, fits[i].expect, "case %zu: returned %d, expected %d (%s)", i, rc,
                     fits[i].expect, err.text);
    }
}

Test(workload, hostile_fields)
{
    struct workload w = {DEFAULTS};
    struct error err = {0};

    w.pattern = 17;
    cr_expect_eq(workload_check(&w, 64 * M, &err), -EINVAL);
    w = (struct workload){DEFAULTS};
    w.content = 17;
    cr_expect_eq(workload_check(&w, 64 * M, &err), -EINVAL);
    w = (struct workload){DEFAULTS};
    w.hot_share = 1000;
    cr_expect_eq(workload_check(&w, 64 * M, &err), -EINVAL);
}

static const enum workload_content contents[] = {CONTENT_ZERO, CONTENT_CONSTANT,
                                                 CONTENT_COMPRESSIBLE, CONTENT_INCOMPRESSIBLE};

/* The same bytes whether a page is filled alone or among others; other bytes for another seed or
 * page. */
Test(workload, fill_depends_on_page_and_seed)
{
    enum { PAGES = 64 };
    uint8_t *whole = aligned_alloc(4096, PAGES * 4096), *page = aligned_alloc(4096, 4096);

    for (size_t c = 0; c < 4; c++) {
        workload_fill(whole, 1000, PAGES * 4096, contents[c], 7);
        for (size_t i = 0; i < PAGES; i++) {
            workload_fill(page, 1000 + i, 4096, contents[c], 7);
            cr_assert_eq(memcmp(page, whole + i * 4096, 4096), 0, "content %zu, page %zu", c, i);
        }
        workload_fill(page, 1000, 4096, contents[c], 8);
        if (contents[c] >= CONTENT_COMPRESSIBLE) {
            cr_expect_neq(memcmp(page, whole, 4096), 0, "content %zu: the seed makes no difference",
                          c);
            cr_expect_neq(memcmp(whole + 4096, whole, 4096), 0,
                          "content %zu: the page makes no difference", c);
        }
    }
    free(whole);
    free(page);
}

static int compare_words(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* How many different 64-bit words there are among `count`; sorts them. */
static size_t distinct_words(uint64_t *words, size_t count)
{
    size_t distinct = 1;

    qsort(words, count, sizeof(*words), compare_words);
    for (size_t i = 1; i < count; i++)
        distinct += words[i] != words[i - 1];
    return distinct;
}

Test(workload, fill_is_as_compressible_as_it_says)
{
    enum { SIZE = 1 << 20, WORDS = SIZE / 8 };
    uint64_t *words = aligned_alloc(4096, SIZE);
    size_t counts[256] = {0};
    uint8_t *bytes = (uint8_t *)words;

    workload_fill(words, 0, SIZE, CONTENT_INCOMPRESSIBLE, 1);
    for (size_t i = 0; i < SIZE; i++)
        counts[bytes[i]]++;
    for (size_t i = 0; i < 256; i++)
        cr_expect(counts[i] > SIZE / 256 * 9 / 10 && counts[i] < SIZE / 256 * 11 / 10,
                  "incompressible: byte %zu occurs %zu times, expected about %d", i, counts[i],
                  SIZE / 256);
    cr_expect_eq(distinct_words(words, WORDS), WORDS, "incompressible: words repeat");

    workload_fill(words, 0, SIZE, CONTENT_COMPRESSIBLE, 1);
    size_t distinct = distinct_words(words, WORDS);
    cr_expect(distinct > WORDS / 4 && distinct < WORDS / 3, "compressible: %zu of %d words differ",
              distinct, WORDS);

    workload_fill(words, 5, 4096, CONTENT_CONSTANT, 1);
    cr_expect(bytes[0] != 0 && memcmp(bytes, bytes + 1, 4095) == 0, "constant: one byte, not zero");
    workload_fill(words, 5, 4096, CONTENT_ZERO, 1);
    cr_expect(bytes[0] == 0 && memcmp(bytes, bytes + 1, 4095) == 0, "zero");
    free(words);
}

Test(workload, pages_are_shared_out)
{
    static const char *const specs[] = {"hot=400K", "hot=400K,pattern=random",
                                        "hot=400K,pattern=hotcold",
                                        "hot=400K,pattern=window,window=40K"};

    for (size_t s = 0; s < 4; s++) {
        struct workload w;
        cr_assert_eq(workload_parse(specs[s], &w, NULL), 0);
        for (unsigned vcpu = 0; vcpu < 3; vcpu++) {
            for (uint64_t counter = 0; counter < 10000; counter++) {
                uint64_t page = workload_page(&w, counter, vcpu, 3, counter);
                cr_assert(page < 100 && page % 3 == vcpu, "%s: vcpu %u writes page %zu", specs[s],
                          vcpu, (size_t)page);
            }
        }
    }
}
