#include <criterion/criterion.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migrate/page/page.h"
#include "transport/base/wire.h"

#include "tests/fuzz/page_blob.c"

/* Memory that ends where nothing may be read. */
static uint8_t *map_pages(size_t pages)
{
    uint8_t *base = mmap(NULL, (pages + 1) * GUEST_PAGE_SIZE, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    cr_assert_neq(base, MAP_FAILED, "mmap: %s", strerror(errno));
    cr_assert_eq(mprotect(base, pages * GUEST_PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
    return base;
}

static void unmap_pages(uint8_t *base, size_t pages)
{
    munmap(base, (pages + 1) * GUEST_PAGE_SIZE);
}

Test(page, zero_is_zero_to_the_last_bit)
{
    uint8_t *page = map_pages(1);

    cr_assert(page_is_zero(page), "a fresh page is not zero");
    for (unsigned bit = 0; bit < GUEST_PAGE_SIZE * 8; bit++) {
        page[bit / 8] = (uint8_t)(1 << bit % 8);
        cr_assert_not(page_is_zero(page), "bit %u of byte %u was not seen", bit % 8, bit / 8);
        page[bit / 8] = 0;
    }
    memset(page, 0xff, GUEST_PAGE_SIZE);
    cr_assert_not(page_is_zero(page), "a page of ones is zero");
    unmap_pages(page, 1);
}

enum { RAM_PAGES = 64, FILL = 0x5a };

static struct guest_region ram_region(uint8_t *ram)
{
    return (struct guest_region){.id = 0, .size = RAM_PAGES * GUEST_PAGE_SIZE, .host = ram};
}

static bool page_is(const uint8_t *page, uint8_t value)
{
    return page[0] == value && !memcmp(page, page + 1, GUEST_PAGE_SIZE - 1);
}

Test(page, a_blob_zeroes_its_runs_and_nothing_else)
{
    uint8_t *ram = map_pages(RAM_PAGES);
    struct guest_region region = ram_region(ram);
    struct page_target target = {&region, 1};
    struct page_blob blob;
    struct error err = {0};

    memset(ram, FILL, RAM_PAGES * GUEST_PAGE_SIZE);
    page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
    cr_assert(page_blob_add(&blob, 3, 1));
    cr_assert(page_blob_add(&blob, 5, 2));
    cr_assert(page_blob_add(&blob, RAM_PAGES - 1, 1));
    cr_assert_eq(blob.runs, 3u);
    cr_assert_eq(blob.size, 8u + 3 * 16u);
    cr_assert_eq(page_decode(&target, blob.bytes, blob.size, &err), 0, "%s", err.text);
    for (unsigned i = 0; i < RAM_PAGES; i++) {
        bool zeroed = i == 3 || i == 5 || i == 6 || i == RAM_PAGES - 1;
        cr_expect(page_is(ram + i * GUEST_PAGE_SIZE, zeroed ? 0 : FILL), "page %u: expected %s", i,
                  zeroed ? "zeros" : "what was there");
    }
    unmap_pages(ram, RAM_PAGES);
}

Test(page, adjacent_runs_join)
{
    struct page_blob blob;

    page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
    for (unsigned i = 0; i < 10000; i++)
        cr_assert(page_blob_add(&blob, 7 + i, 1), "page %u was not added", i);
    cr_assert_eq(blob.runs, 1u, "expected one run, got %u", blob.runs);
}

Test(page, a_run_never_counts_more_than_32_bits)
{
    struct page_blob blob;

    page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
    cr_assert(page_blob_add(&blob, 0, UINT32_MAX));
    cr_assert(page_blob_add(&blob, UINT32_MAX, 2));
    cr_assert_eq(blob.runs, 2u, "expected two runs, got %u", blob.runs);
}

Test(page, a_blob_takes_no_run_that_lies_before_its_last)
{
    struct page_blob blob;

    page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
    cr_assert(page_blob_add(&blob, 10, 2));
    cr_expect_not(page_blob_add(&blob, 11, 1), "an overlapping run was added");
    cr_expect_not(page_blob_add(&blob, 3, 1), "an earlier run was added");
    cr_expect_eq(blob.runs, 1u);
    page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
    cr_expect(page_blob_add(&blob, 3, 1), "an empty blob refused a run");
}

/* Pages of zeros here and there, through as many blobs as it takes, arrive all and alone. */
Test(page, full_blobs_lose_nothing)
{
    enum { PAGES = 2000 };
    uint8_t *ram = map_pages(PAGES);
    struct guest_region region = {.size = PAGES * GUEST_PAGE_SIZE, .host = ram};
    struct page_target target = {&region, 1};
    struct page_blob blob;
    struct error err = {0};
    unsigned blobs = 0;

    memset(ram, FILL, PAGES * GUEST_PAGE_SIZE);
    page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
    for (unsigned i = 0; i < PAGES; i += 2) {
        if (page_blob_add(&blob, i, 1))
            continue;
        cr_assert_eq(blob.size, (size_t)8 + 255 * 16, "refused at %zu bytes", blob.size);
        cr_assert_eq(page_decode(&target, blob.bytes, blob.size, &err), 0, "%s", err.text);
        blobs++;
        page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
        cr_assert(page_blob_add(&blob, i, 1), "an empty blob refused page %u", i);
    }
    cr_assert_eq(page_decode(&target, blob.bytes, blob.size, &err), 0, "%s", err.text);
    cr_assert_eq(blobs, 3u, "1000 runs, 255 to a blob: expected 3 full ones, got %u", blobs);
    for (unsigned i = 0; i < PAGES; i++)
        cr_assert(page_is(ram + i * GUEST_PAGE_SIZE, i % 2 ? FILL : 0), "page %u is wrong", i);
    unmap_pages(ram, PAGES);
}

struct hostile_run {
    uint64_t first;
    uint32_t pages, reserved;
};

struct hostile_case {
    const char *name;
    uint8_t encoding, flags;
    uint32_t region;
    int said_runs; /* more or fewer than there are */
    struct hostile_run runs[3];
    const char *want; /* a part of the text */
    int there;        /* runs; 0: those that have pages */
};

static const struct hostile_case hostile_cases[] = {
    {"no encoding", 0, 0, 0, 0, {{1, 1}}, "encoding 0"},
    {"an unknown encoding", 2, 0, 0, 0, {{1, 1}}, "encoding 2"},
    {"flags", 1, 1, 0, 0, {{1, 1}}, "flags 1"},
    {"no such region", 1, 0, 1, 0, {{1, 1}}, "region 1"},
    {"no such region by far", 1, 0, UINT32_MAX, 0, {{1, 1}}, "region 4294967295"},
    {"more runs than bytes", 1, 0, 0, 1, {{1, 1}}, "does not hold"},
    {"fewer runs than bytes", 1, 0, 0, -1, {{1, 1}, {3, 1}}, "does not hold"},
    {"no runs", 1, 0, 0, 0, {{0}}, "does not hold"},
    {"a run of nothing", 1, 0, 0, 0, {{1, 1}, {3, 0}}, "malformed", .there = 2},
    {"flags in a run", 1, 0, 0, 0, {{1, 1}, {3, 1, 1}}, "malformed"},
    {"the page after the last", 1, 0, 0, 0, {{1, 1}, {RAM_PAGES, 1}}, "region 0 has 64"},
    {"a run over the end", 1, 0, 0, 0, {{1, 1}, {RAM_PAGES - 1, 2}}, "region 0 has 64"},
    {"more pages than there are", 1, 0, 0, 0, {{0, RAM_PAGES + 1}}, "region 0 has 64"},
    {"32 bits of pages", 1, 0, 0, 0, {{1, UINT32_MAX}}, "region 0 has 64"},
    {"a sum that overflows", 1, 0, 0, 0, {{UINT64_MAX, 1}}, "region 0 has 64"},
    {"a sum that overflows into RAM", 1, 0, 0, 0, {{UINT64_MAX - 3, 8}}, "region 0 has 64"},
    {"a byte offset that overflows into RAM", 1, 0, 0, 0, {{1ull << 52, 1}}, "region 0 has 64"},
    {"the same page twice", 1, 0, 0, 0, {{5, 1}, {5, 1}}, "overlaps"},
    {"overlap", 1, 0, 0, 0, {{5, 3}, {7, 3}}, "overlaps"},
    {"backwards", 1, 0, 0, 0, {{5, 1}, {4, 1}}, "overlaps"},
    {"only the last run is bad", 1, 0, 0, 0, {{1, 1}, {3, 1}, {99, 1}}, "region 0 has 64"},
};

static size_t build_hostile(const struct hostile_case *c, uint8_t *out, size_t size)
{
    struct wire_writer w = wire_writer(out, size);
    int runs = c->there;

    while (!c->there && runs < 3 && c->runs[runs].pages)
        runs++;
    wire_put_u8(&w, c->encoding);
    wire_put_u8(&w, c->flags);
    wire_put_u16(&w, (uint16_t)(runs + c->said_runs));
    wire_put_u32(&w, c->region);
    for (int i = 0; i < runs; i++) {
        wire_put_u64(&w, c->runs[i].first);
        wire_put_u32(&w, c->runs[i].pages);
        wire_put_u32(&w, c->runs[i].reserved);
    }
    return (size_t)(w.at - out);
}

static void expect_refused(struct page_target *target, const void *bytes, size_t size,
                           const char *name, const char *want)
{
    struct error err = {0};
    const struct guest_region *region = &target->regions[0];
    int result = page_decode(target, bytes, size, &err);

    cr_expect_eq(result, -EPROTO, "%s: expected -EPROTO, got %d", name, result);
    cr_expect(strstr(err.text, want), "%s: expected \"%s\" in \"%s\"", name, want, err.text);
    for (unsigned i = 0; i < RAM_PAGES; i++)
        cr_expect(page_is((uint8_t *)region->host + i * GUEST_PAGE_SIZE, FILL),
                  "%s: wrote to page %u", name, i);
}

Test(page, hostile_blobs_are_refused_and_write_nothing)
{
    uint8_t *ram = map_pages(RAM_PAGES), bytes[128];
    struct guest_region region = ram_region(ram);
    struct page_target target = {&region, 1};

    memset(ram, FILL, RAM_PAGES * GUEST_PAGE_SIZE);
    for (size_t i = 0; i < sizeof(hostile_cases) / sizeof(hostile_cases[0]); i++) {
        const struct hostile_case *c = &hostile_cases[i];
        size_t size = build_hostile(c, bytes, sizeof(bytes));

        expect_refused(&target, bytes, size, c->name, c->want);
    }
    unmap_pages(ram, RAM_PAGES);
}

Test(page, every_truncation_and_every_surplus_is_refused)
{
    uint8_t *ram = map_pages(RAM_PAGES);
    struct guest_region region = ram_region(ram);
    struct page_target target = {&region, 1};
    struct page_blob blob;

    memset(ram, FILL, RAM_PAGES * GUEST_PAGE_SIZE);
    page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
    cr_assert(page_blob_add(&blob, 1, 1) && page_blob_add(&blob, 3, 1));
    for (size_t size = 0; size < blob.size + 40; size++) {
        uint8_t *bytes = calloc(1, size ? size : 1); /* of just that size, for AddressSanitizer */

        if (size == blob.size) {
            free(bytes);
            continue;
        }
        memcpy(bytes, blob.bytes, size < blob.size ? size : blob.size);
        expect_refused(&target, bytes, size, "cut or grown", "does not hold");
        free(bytes);
    }
    unmap_pages(ram, RAM_PAGES);
}

Test(page, a_blob_larger_than_a_blob_may_be_is_refused)
{
    enum { RUNS = PAGE_BLOB_SIZE / 16 + 1 };
    static uint8_t bytes[8 + 16 * RUNS];
    uint8_t *ram = map_pages(RAM_PAGES);
    struct guest_region region = ram_region(ram);
    struct page_target target = {&region, 1};
    struct wire_writer w = wire_writer(bytes, sizeof(bytes));

    memset(ram, FILL, RAM_PAGES * GUEST_PAGE_SIZE);
    region.size = 2ull * RUNS * GUEST_PAGE_SIZE; /* so that nothing but the size is wrong */
    wire_put_u8(&w, PAGE_ENCODING_ZERO);
    wire_put_u8(&w, 0);
    wire_put_u16(&w, RUNS);
    wire_put_u32(&w, 0);
    for (unsigned i = 0; i < RUNS; i++) {
        wire_put_u64(&w, i * 2);
        wire_put_u64(&w, 1);
    }
    expect_refused(&target, bytes, sizeof(bytes), "too large", "does not hold");
    unmap_pages(ram, RAM_PAGES);
}

Test(page, a_region_that_is_not_mapped_is_refused)
{
    struct guest_region region = {.size = RAM_PAGES * GUEST_PAGE_SIZE};
    struct page_target target = {&region, 1};
    struct page_blob blob;
    struct error err = {0};

    page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
    page_blob_add(&blob, 0, 1);
    cr_assert_eq(page_decode(&target, blob.bytes, blob.size, &err), -EPROTO);
}

static uint64_t anonymous_bytes(void)
{
    FILE *file = fopen("/proc/self/status", "r");
    char line[128];
    unsigned long long kib = 0;

    cr_assert(file, "/proc/self/status: %s", strerror(errno));
    while (fgets(line, sizeof(line), file) && sscanf(line, "RssAnon: %llu kB", &kib) != 1)
        ;
    fclose(file);
    return kib << 10;
}

Test(page, zeros_over_a_hole_leave_it_a_hole)
{
    const size_t size = 64 << 20;
    uint8_t *ram = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct guest_region region = {.size = size, .host = ram};
    struct page_target target = {&region, 1};
    struct page_blob blob;
    struct error err = {0};
    uint64_t before = anonymous_bytes(), after;

    cr_assert_neq(ram, MAP_FAILED);
    page_blob_begin(&blob, PAGE_ENCODING_ZERO, 0);
    page_blob_add(&blob, 0, (uint32_t)(size / GUEST_PAGE_SIZE));
    cr_assert_eq(page_decode(&target, blob.bytes, blob.size, &err), 0, "%s", err.text);
    after = anonymous_bytes();
    cr_assert_leq(after, before + (8 << 20), "64 MiB of zeros cost %llu MiB",
                  (unsigned long long)(after - before) >> 20);
    munmap(ram, size);
}

/* The fuzzer's driver: random bytes, and valid blobs with a few bytes changed. */
Test(page, survives_random_bytes)
{
    uint8_t bytes[256];

    for (unsigned seed = 0; seed < 20000; seed++) {
        struct page_blob blob;
        size_t size = 0;

        srand48(seed);
        page_blob_begin(&blob, PAGE_ENCODING_ZERO, (uint32_t)(lrand48() % 3));
        for (long page = 0; page < FUZZ_PAGES; page += 1 + lrand48() % 4)
            page_blob_add(&blob, (uint64_t)page, 1 + (uint32_t)(lrand48() % 2));
        if (seed % 4) {
            size = blob.size;
            memcpy(bytes, blob.bytes, size);
            for (long i = lrand48() % 4; i > 0; i--)
                bytes[(size_t)lrand48() % size] ^= (uint8_t)(1 << lrand48() % 8);
        } else {
            size = (size_t)lrand48() % sizeof(bytes);
            for (size_t i = 0; i < size; i++)
                bytes[i] = (uint8_t)lrand48();
        }
        LLVMFuzzerTestOneInput(bytes, size);
    }
}
