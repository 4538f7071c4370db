/* The dirty map against a plain bitmap, under random operations. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/dirty_map.h"

Test(dirty_map, bits)
{
    static const struct {
        unsigned first, count;
    } cases[] = {{0, 0},    {0, 1},   {0, 64},  {63, 2},  {5, 100},
                 {64, 128}, {0, 256}, {255, 1}, {200, 56}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t bits[TRACKER_WORDS_PER_CHUNK] = {0};
        dirty_bits_set(bits, cases[i].first, cases[i].count);
        for (unsigned bit = 0; bit < GUEST_CHUNK_PAGES; bit++) {
            bool expected = bit >= cases[i].first && bit < cases[i].first + cases[i].count;
            cr_assert_eq(bits[bit / 64] >> bit % 64 & 1, expected, "[%u,+%u): bit %u is not %d",
                         cases[i].first, cases[i].count, bit, expected);
        }
    }
}

enum { PAGES = 40 * GUEST_CHUNK_PAGES };

static void expect_same(struct dirty_map *map, const bool *model)
{
    uint64_t page = 0, dirty = 0;

    for (uint64_t i = 0; i < PAGES; i++) {
        if (!model[i])
            continue;
        dirty++;
        cr_assert(dirty_map_next(map, &page), "page %zu is missing", (size_t)i);
        cr_assert_eq(page, i, "next gives page %zu, expected %zu", (size_t)page, (size_t)i);
        page++;
    }
    cr_assert_not(dirty_map_next(map, &page), "page %zu is too much", (size_t)page);
    cr_assert_eq(dirty_map_pages(map), dirty);
}

static void random_step(struct dirty_map *map, bool *model, unsigned *seed)
{
    uint64_t bits[TRACKER_WORDS_PER_CHUNK] = {0};
    uint64_t page = (uint64_t)rand_r(seed) % PAGES, chunk = page / GUEST_CHUNK_PAGES;
    uint64_t count = (uint64_t)rand_r(seed) % 600;

    count = count < PAGES - page ? count : PAGES - page;
    if (rand_r(seed) % 2) {
        cr_assert_eq(dirty_map_add(map, page, count), 0);
        memset(model + page, true, count);
        return;
    }
    dirty_map_take(map, chunk, bits);
    for (unsigned bit = 0; bit < GUEST_CHUNK_PAGES; bit++)
        cr_assert_eq(bits[bit / 64] >> bit % 64 & 1, model[chunk * GUEST_CHUNK_PAGES + bit],
                     "take chunk %zu, bit %u", (size_t)chunk, bit);
    memset(model + chunk * GUEST_CHUNK_PAGES, false, GUEST_CHUNK_PAGES);
}

Test(dirty_map, as_a_plain_bitmap)
{
    static bool model[PAGES], other_model[PAGES];
    struct dirty_map map = {0}, other = {0};
    unsigned seed = 1;

    for (int step = 0; step < 4000; step++) {
        random_step(&map, model, &seed);
        if (step % 50 == 0)
            expect_same(&map, model);
    }
    for (int step = 0; step < 20; step++)
        random_step(&other, other_model, &seed);
    cr_assert_eq(dirty_map_merge(&map, &other), 0);
    for (size_t i = 0; i < PAGES; i++)
        model[i] |= other_model[i];
    expect_same(&map, model);
    dirty_map_clear(&map);
    memset(model, 0, sizeof(model));
    expect_same(&map, model);
    dirty_map_free(&map);
    dirty_map_free(&other);
}

/* Finds need not go upwards. */
Test(dirty_map, finds_backwards_too)
{
    struct dirty_map map = {0};

    for (uint64_t chunk = 0; chunk < 100; chunk += 2)
        cr_assert_eq(dirty_map_add(&map, chunk * GUEST_CHUNK_PAGES, 1), 0);
    for (uint64_t chunk = 100; chunk-- > 0;) {
        uint64_t page = chunk * GUEST_CHUNK_PAGES;
        bool found = dirty_map_next(&map, &page);
        uint64_t expected = (chunk + 1) / 2 * 2 * GUEST_CHUNK_PAGES;
        cr_assert_eq(found, chunk < 99, "from chunk %zu", (size_t)chunk);
        cr_assert(!found || page == expected, "from chunk %zu: page %zu", (size_t)chunk,
                  (size_t)page);
    }
    dirty_map_free(&map);
}

static void fill(struct dirty_map *map, bool *model, unsigned *seed)
{
    for (uint64_t page = 0; page < PAGES; page++) {
        model[page] = rand_r(seed) % 3 == 0 && page / GUEST_CHUNK_PAGES % 3 != *seed % 3;
        if (model[page])
            cr_assert_eq(dirty_map_add(map, page, 1), 0);
    }
}

Test(dirty_map, merge_and_difference)
{
    static bool a_model[PAGES], b_model[PAGES], expected[PAGES];
    unsigned seed = 7;

    for (int round = 0; round < 50; round++) {
        struct dirty_map a = {0}, b = {0}, difference = {0};
        fill(&a, a_model, &seed);
        fill(&b, b_model, &seed);
        cr_assert_eq(dirty_map_add_difference(&difference, &a, &b), 0);
        for (size_t i = 0; i < PAGES; i++)
            expected[i] = a_model[i] && !b_model[i];
        expect_same(&difference, expected);
        cr_assert_eq(dirty_map_merge(&a, &b), 0);
        for (size_t i = 0; i < PAGES; i++)
            expected[i] = a_model[i] || b_model[i];
        expect_same(&a, expected);
        cr_assert_eq(dirty_map_merge(&a, &b), 0, "what is there already");
        expect_same(&a, expected);
        dirty_map_free(&a);
        dirty_map_free(&b);
        dirty_map_free(&difference);
    }
}

Test(dirty_map, words)
{
    static bool model[PAGES];
    struct dirty_map map = {0};

    for (uint64_t word = 0; word < PAGES / 64; word += 3) {
        cr_assert_eq(dirty_map_add_word(&map, word, 1ull << 63 | 1 << 5), 0);
        model[word * 64 + 63] = model[word * 64 + 5] = true;
    }
    expect_same(&map, model);
    dirty_map_free(&map);
}

Test(dirty_map, spans)
{
    static const struct {
        uint64_t page, end;
        bool there;
    } cases[] = {{0, 512, false},    {511, 512, false},        {512, 1024, true},
                 {1023, 1024, true}, {1024, 1280, false},      {1280, 1536, true},
                 {1300, 1536, true}, {1536, UINT64_MAX, false}};
    struct dirty_map map = {0};

    dirty_map_add(&map, 700, 200); /* chunks 2 and 3 */
    dirty_map_add(&map, 1535, 1);  /* chunk 5 */
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t end = 0;
        bool there = dirty_map_span(&map, cases[i].page, &end);
        cr_expect(there == cases[i].there && end == cases[i].end,
                  "page %zu: %d until %zu, expected %d until %zu", (size_t)cases[i].page, there,
                  (size_t)end, cases[i].there, (size_t)cases[i].end);
    }
    dirty_map_free(&map);
}
