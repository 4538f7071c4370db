/* Samples of a guest's pages, whose memory is made so that each page says which one it is. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/page_sample.h"

enum { PAGES = 64 * GUEST_CHUNK_PAGES };

struct puppet {
    struct guest guest;
    struct guest_region region;
    struct extent present[2];
    int fails_with;
};

static unsigned puppet_regions(struct guest *g, const struct guest_region **out)
{
    *out = &((struct puppet *)g)->region;
    return 1;
}

static int puppet_present(struct guest *g, uint32_t region, struct extent_list *out,
                          struct error *err)
{
    struct puppet *p = (struct puppet *)g;

    (void)region;
    for (int i = 0; i < 2; i++)
        if (p->present[i].length)
            extent_list_add(out, p->present[i].offset, p->present[i].length);
    return p->fails_with ? error_set(err, p->fails_with, "as told") : 0;
}

static const struct guest_ops ops = {
    .kind = "puppet", .regions = puppet_regions, .present = puppet_present};

static struct puppet make_guest(void)
{
    size_t size = (size_t)PAGES * GUEST_PAGE_SIZE;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    cr_assert(memory != MAP_FAILED);
    return (struct puppet){.guest = {&ops}, .region = {.host = memory, .size = size}};
}

static void write_pages(struct puppet *p, uint64_t from, uint64_t to, unsigned every)
{
    for (uint64_t page = from; page < to; page += every)
        *(uint64_t *)((char *)p->region.host + page * GUEST_PAGE_SIZE) = page + 1;
}

static uint64_t mark_of(const struct page_sample *sample, uint64_t i)
{
    return *(const uint64_t *)((const char *)sample->memory + i * GUEST_PAGE_SIZE);
}

static void present(struct puppet *p, int i, uint64_t first_page, uint64_t pages)
{
    p->present[i] = (struct extent){first_page * GUEST_PAGE_SIZE, pages * GUEST_PAGE_SIZE};
}

/* Every eighth of the guest has an eighth of the sample, more or less. */
Test(page_sample, is_spread_evenly_and_takes_no_page_twice)
{
    struct puppet p = make_guest();
    struct page_sample sample;
    struct error err = {0};
    unsigned per_eighth[8] = {0};
    static bool seen[PAGES];

    write_pages(&p, 0, PAGES, 1);
    present(&p, 0, 0, PAGES);
    cr_assert_eq(page_sample_take(&p.guest, 16 << 20, &sample, &err), 0, "%s", err.text);
    cr_assert_eq(sample.size, 16 << 20, "came %llu bytes", (unsigned long long)sample.size);
    for (uint64_t i = 0; i < sample.size / GUEST_PAGE_SIZE; i++) {
        uint64_t page = mark_of(&sample, i) - 1;
        cr_assert(page < PAGES && !seen[page], "page %llu came twice, or is none",
                  (unsigned long long)page);
        seen[page] = true;
        per_eighth[page / (PAGES / 8)]++;
    }
    for (int i = 0; i < 8; i++)
        cr_expect(per_eighth[i] >= GUEST_CHUNK_PAGES && per_eighth[i] <= 3 * GUEST_CHUNK_PAGES,
                  "eighth %d: expected about 512 pages, came %u", i, per_eighth[i]);
    cr_expect_eq(sample.zero_bandwidth, 0, "without a zero page there is nothing to tell");
    page_sample_free(&sample);
}

Test(page_sample, leaves_zero_pages_out_and_times_them)
{
    struct puppet p = make_guest();
    struct page_sample sample;
    struct error err = {0};

    write_pages(&p, 0, PAGES, 4);
    present(&p, 0, 0, PAGES);
    cr_assert_eq(page_sample_take(&p.guest, 64 << 20, &sample, &err), 0, "%s", err.text);
    cr_assert_eq(sample.size, 16 << 20, "expected a quarter of 64 MiB, came %llu bytes",
                 (unsigned long long)sample.size);
    for (uint64_t i = 0; i < sample.size / GUEST_PAGE_SIZE; i++)
        cr_assert(mark_of(&sample, i), "page %llu of the sample is zero", (unsigned long long)i);
    cr_expect(sample.zero_bandwidth > 0, "expected a rate of sifting");
    page_sample_free(&sample);
}

Test(page_sample, reads_nothing_that_is_not_present)
{
    struct puppet p = make_guest();
    struct page_sample sample;
    struct error err = {0};

    write_pages(&p, 0, PAGES, 1);
    present(&p, 0, 300, 3000);
    present(&p, 1, 9000, 1);
    cr_assert_eq(page_sample_take(&p.guest, 64 << 20, &sample, &err), 0, "%s", err.text);
    cr_assert_eq(sample.size, 3001 * GUEST_PAGE_SIZE, "came %llu pages",
                 (unsigned long long)sample.size / GUEST_PAGE_SIZE);
    for (uint64_t i = 0; i < 3001; i++) {
        uint64_t page = mark_of(&sample, i) - 1;
        cr_assert((page >= 300 && page < 3300) || page == 9000, "page %llu is not present",
                  (unsigned long long)page);
    }
    page_sample_free(&sample);
}

Test(page_sample, small_and_empty_guests_fill_the_least)
{
    for (uint64_t pages = 0; pages < 4; pages++) {
        struct puppet p = make_guest();
        struct page_sample sample;
        struct error err = {0};

        write_pages(&p, 0, pages, 1);
        present(&p, 0, 0, 3);
        cr_assert_eq(page_sample_take(&p.guest, 64 << 20, &sample, &err), 0, "%s", err.text);
        cr_expect_eq(sample.size, PAGE_SAMPLE_LEAST, "%llu pages: came %llu bytes",
                     (unsigned long long)pages, (unsigned long long)sample.size);
        for (uint64_t i = 0; i < sample.size / GUEST_PAGE_SIZE; i++)
            cr_assert(mark_of(&sample, i), "%llu pages: page %llu is zero",
                      (unsigned long long)pages, (unsigned long long)i);
        page_sample_free(&sample);
        munmap(p.region.host, p.region.size);
    }
}

Test(page_sample, passes_on_that_the_guest_cannot_be_read)
{
    struct puppet p = make_guest();
    struct page_sample sample;
    struct error err = {0};

    p.fails_with = EIO;
    present(&p, 0, 0, 1);
    cr_expect_eq(page_sample_take(&p.guest, 64 << 20, &sample, &err), -EIO);
    cr_expect_str_eq(err.text, "as told");
    page_sample_free(&sample);
}
