/* The patterns' arithmetic: each vCPU stays within its own pages, and the writes go where the
 * pattern says. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "migrate/guest/workload_pattern.h"

struct pattern_case {
    const char *name;
    uint32_t pattern;
    uint64_t hot_pages;
    uint32_t hot_share;
    uint64_t window_pages;
    unsigned vcpus;
};

static const struct pattern_case cases[] = {
    {"sequential", WORKLOAD_SEQUENTIAL, 1000, 0, 0, 1},
    {"sequential, shared", WORKLOAD_SEQUENTIAL, 1001, 0, 0, 4},
    {"sequential, more vCPUs than pages", WORKLOAD_SEQUENTIAL, 3, 0, 0, 64},
    {"random", WORKLOAD_RANDOM, 1000, 0, 0, 1},
    {"random, shared", WORKLOAD_RANDOM, 999, 0, 0, 4},
    {"random, one page", WORKLOAD_RANDOM, 1, 0, 0, 2},
    {"hotcold", WORKLOAD_HOTCOLD, 1000, 90, 0, 1},
    {"hotcold, shared", WORKLOAD_HOTCOLD, 1003, 50, 0, 3},
    {"hotcold, everything hot", WORKLOAD_HOTCOLD, 100, 100, 0, 4},
    {"hotcold, nothing hot", WORKLOAD_HOTCOLD, 100, 0, 0, 4},
    {"hotcold, a tenth of less than a page", WORKLOAD_HOTCOLD, 5, 90, 0, 4},
    {"window", WORKLOAD_WINDOW, 1000, 0, 100, 1},
    {"window, shared", WORKLOAD_WINDOW, 1003, 0, 101, 4},
    {"window, smaller than the vCPUs", WORKLOAD_WINDOW, 1000, 0, 2, 4},
    {"window, larger than the hot set", WORKLOAD_WINDOW, 10, 0, 1000, 3},
    {"window of nothing", WORKLOAD_WINDOW, 10, 0, 0, 3},
    {"a very large hot set", WORKLOAD_RANDOM, 1ull << 40, 0, 0, 2},
};

enum { WRITES = 5000 };

static uint64_t page_of(const struct pattern_case *c, uint64_t counter, unsigned vcpu,
                        uint64_t elapsed_ms)
{
    return workload_pattern_page(c->pattern, c->hot_pages, c->hot_share, c->window_pages, 1,
                                 counter, vcpu, c->vcpus, elapsed_ms);
}

Test(workload_pattern, every_page_has_one_writer)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct pattern_case *c = &cases[i];

        for (unsigned vcpu = 0; vcpu < c->vcpus; vcpu++)
            for (uint64_t counter = 0; counter < WRITES; counter += 1 + counter / 1000) {
                uint64_t page = page_of(c, counter, vcpu, counter * 3);
                bool good = vcpu < c->hot_pages ? page < c->hot_pages && page % c->vcpus == vcpu
                                                : page == WORKLOAD_NO_PAGE;

                cr_assert(good, "%s: vCPU %u of %u wrote page %lu of %lu as its %lu-th", c->name,
                          vcpu, c->vcpus, page, c->hot_pages, counter);
            }
    }
}

Test(workload_pattern, a_run_steps_through_neighbours)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct pattern_case *c = &cases[i];

        for (uint64_t counter = 0; counter < WRITES; counter += 7) {
            uint64_t first = page_of(c, counter, 0, counter);
            uint64_t run = workload_pattern_run(c->pattern, c->hot_pages, c->window_pages, counter,
                                                0, c->vcpus, counter);

            cr_assert_gt(run, 0, "%s: an empty run at %lu", c->name, counter);
            for (uint64_t j = 0; j < run; j++) {
                uint64_t page = page_of(c, counter + j, 0, counter);

                cr_assert_eq(page, first + j * c->vcpus,
                             "%s: write %lu of the run at %lu: page %lu, not %lu", c->name, j,
                             counter, page, first + j * c->vcpus);
            }
        }
        cr_expect_eq(workload_pattern_run(c->pattern, 0, c->window_pages, 0, 0, c->vcpus, 0), 0,
                     "%s: a run without pages", c->name);
    }
}

Test(workload_pattern, shares_add_up)
{
    for (uint64_t pages = 0; pages < 200; pages++)
        for (unsigned vcpus = 1; vcpus <= 64; vcpus++) {
            uint64_t sum = 0;

            for (unsigned vcpu = 0; vcpu < vcpus; vcpu++)
                sum += workload_pattern_share(pages, vcpu, vcpus);
            cr_assert_eq(sum, pages, "%u vCPUs own %lu of %lu pages", vcpus, sum, pages);
        }
}

/* How many of `count` writes hit pages below `limit`, and how many pages were hit at all. */
static uint64_t hits_below(const struct pattern_case *c, uint64_t limit, uint64_t count,
                           uint64_t *distinct)
{
    uint8_t *seen = calloc(c->hot_pages, 1);
    uint64_t hits = 0;

    *distinct = 0;
    for (uint64_t counter = 0; counter < count; counter++) {
        uint64_t page = page_of(c, counter, counter % c->vcpus, 0);

        hits += page < limit;
        *distinct += !seen[page];
        seen[page] = 1;
    }
    free(seen);
    return hits;
}

Test(workload_pattern, writes_go_where_the_pattern_says)
{
    static const struct {
        struct pattern_case pattern;
        uint64_t writes, least_hits, most_hits, least_distinct,
            most_distinct; /* hits: in the first tenth */
    } expected[] = {
        {{"sequential", WORKLOAD_SEQUENTIAL, 1000, 0, 0, 1}, 1000, 100, 100, 1000, 1000},
        /* 1000 draws with repetition hit 632 of 1000 pages, 63 of them in the first tenth */
        {{"random", WORKLOAD_RANDOM, 1000, 0, 0, 1}, 1000, 70, 130, 600, 665},
        {{"hotcold 90", WORKLOAD_HOTCOLD, 1000, 90, 0, 1}, 10000, 8850, 9150, 600, 800},
        {{"hotcold 90, shared", WORKLOAD_HOTCOLD, 1000, 90, 0, 4}, 10000, 8850, 9150, 600, 800},
        {{"hotcold 100", WORKLOAD_HOTCOLD, 1000, 100, 0, 1}, 10000, 10000, 10000, 100, 100},
        {{"hotcold 0", WORKLOAD_HOTCOLD, 1000, 0, 0, 1}, 10000, 0, 0, 880, 900},
        {{"window", WORKLOAD_WINDOW, 1000, 0, 200, 1}, 1000, 500, 500, 200, 200},
    };

    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        const struct pattern_case *c = &expected[i].pattern;
        uint64_t distinct, hits = hits_below(c, c->hot_pages / 10, expected[i].writes, &distinct);

        cr_expect(hits >= expected[i].least_hits && hits <= expected[i].most_hits,
                  "%s: %lu writes in the first tenth, expected %lu..%lu", c->name, hits,
                  expected[i].least_hits, expected[i].most_hits);
        cr_expect(distinct >= expected[i].least_distinct && distinct <= expected[i].most_distinct,
                  "%s: %lu distinct pages, expected %lu..%lu", c->name, distinct,
                  expected[i].least_distinct, expected[i].most_distinct);
    }
}

Test(workload_pattern, the_window_moves_once_a_second)
{
    struct pattern_case c = {"window", WORKLOAD_WINDOW, 1000, 0, 100, 1};

    cr_expect_eq(page_of(&c, 0, 0, 999), 0);
    cr_expect_eq(page_of(&c, 0, 0, 1000), 100);
    cr_expect_eq(page_of(&c, 199, 0, 9500), 999);
    cr_expect_eq(page_of(&c, 100, 0, 10000), 0, "expected the window to come round to the start");
}

Test(workload_pattern, the_seed_changes_what_is_drawn)
{
    unsigned same = 0;

    for (uint64_t counter = 0; counter < 1000; counter++)
        same += workload_pattern_page(WORKLOAD_RANDOM, 1000, 0, 0, 1, counter, 0, 1, 0) ==
                workload_pattern_page(WORKLOAD_RANDOM, 1000, 0, 0, 2, counter, 0, 1, 0);
    cr_expect_lt(same, 20, "%u of 1000 draws are the same with another seed", same);
}
