/* Present extents of real mappings, both ways, and what looking for them costs. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/guest/pagemap.h"
#include "transport/base/clock.h"

#define MIB (1ull << 20)

typedef int present_fn(const void *base, uint64_t size, struct extent_list *out, struct error *err);

struct way {
    const char *name;
    present_fn *present;
};

static const struct way ways[] = {{"scan", pagemap_present_by_scan},
                                  {"reading", pagemap_present_by_reading},
                                  {"either", pagemap_present}};

static uint8_t *map_sparse(uint64_t size)
{
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    cr_assert_neq(base, MAP_FAILED, "cannot map %zu bytes", (size_t)size);
    cr_assert_eq(madvise(base, size, MADV_NOHUGEPAGE), 0);
    return base;
}

/* False where the kernel lacks PAGEMAP_SCAN: then only reading can be tried. */
static bool present(const struct way *way, const void *base, uint64_t size, struct extent_list *out)
{
    struct error err = {0};
    int rc = way->present(base, size, out, &err);

    if (rc == -ENOTTY)
        return false;
    cr_assert_eq(rc, 0, "%s: %s", way->name, err.text);
    return true;
}

Test(pagemap, holes)
{
    static const struct extent expected[] = {
        {0, 4096}, {3 * 4096, 2 * 4096}, {5 * MIB, 3 * MIB}, {63 * MIB + 255 * 4096, 4096}};
    uint8_t *base = map_sparse(64 * MIB);

    for (size_t i = 0; i < 4; i++)
        memset(base + expected[i].offset, 1, expected[i].length);
    for (size_t w = 0; w < 3; w++) {
        struct extent_list list = {0};
        if (!present(&ways[w], base, 64 * MIB, &list))
            continue;
        cr_assert_eq(list.count, 4, "%s: %zu extents, expected 4", ways[w].name, list.count);
        for (size_t i = 0; i < 4; i++)
            cr_expect(list.extents[i].offset == expected[i].offset &&
                          list.extents[i].length == expected[i].length,
                      "%s: extent %zu is [%zu,+%zu), expected [%zu,+%zu)", ways[w].name, i,
                      (size_t)list.extents[i].offset, (size_t)list.extents[i].length,
                      (size_t)expected[i].offset, (size_t)expected[i].length);
        extent_list_free(&list);
    }
    munmap(base, 64 * MIB);
}

Test(pagemap, alternate_pages)
{
    enum { PAGES = 1 << 16 };
    uint8_t *base = map_sparse(PAGES * 4096ull);

    for (size_t i = 0; i < PAGES; i += 2)
        base[i * 4096] = 1;
    for (size_t w = 0; w < 3; w++) {
        struct extent_list list = {0};
        if (!present(&ways[w], base, PAGES * 4096ull, &list))
            continue;
        cr_assert_eq(list.count, PAGES / 2, "%s: %zu extents", ways[w].name, list.count);
        for (size_t i = 0; i < list.count; i++)
            cr_assert(list.extents[i].offset == i * 8192 && list.extents[i].length == 4096,
                      "%s: extent %zu", ways[w].name, i);
        extent_list_free(&list);
    }
    munmap(base, PAGES * 4096ull);
}

/* A page that was only read is the shared zero page: a hole in all but name. */
Test(pagemap, zero_page_is_a_hole)
{
    uint8_t *base = map_sparse(16 * MIB);
    struct extent_list list = {0};

    cr_assert_eq(*(volatile uint8_t *)(base + MIB), 0);
    base[2 * MIB] = 1;
    if (present(&ways[0], base, 16 * MIB, &list)) {
        cr_assert_eq(list.count, 1, "%zu extents, expected only the page that was written",
                     list.count);
        cr_assert_eq(list.extents[0].offset, 2 * MIB);
    }
    extent_list_free(&list);
    munmap(base, 16 * MIB);
}

Test(pagemap, huge_page)
{
    uint8_t *base = map_sparse(64 * MIB);
    uint8_t *aligned = (uint8_t *)(((uintptr_t)base + 2 * MIB - 1) & ~(2 * MIB - 1));
    uint64_t offset = (uint64_t)(aligned - base);

    madvise(base, 64 * MIB, MADV_HUGEPAGE);
    memset(aligned + 4 * MIB, 1, 2 * MIB);
    for (size_t w = 0; w < 3; w++) {
        struct extent_list list = {0};
        if (!present(&ways[w], base, 64 * MIB, &list))
            continue;
        cr_assert_eq(list.count, 1, "%s: %zu extents", ways[w].name, list.count);
        cr_assert(list.extents[0].offset == offset + 4 * MIB && list.extents[0].length == 2 * MIB,
                  "%s", ways[w].name);
        extent_list_free(&list);
    }
    munmap(base, 64 * MIB);
}

static uint64_t page_table_kib(void)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *status = fopen("/proc/self/status", "r");

    cr_assert(status, "/proc/self/status");
    while (fgets(line, sizeof(line), status)) {
        if (sscanf(line, "VmPTE: %llu kB", &kib) == 1)
            break;
    }
    fclose(status);
    return kib;
}

Test(pagemap, a_tebibyte_of_holes)
{
    uint64_t size = 1ull << 40;
    uint8_t *base = map_sparse(size);
    struct extent_list list = {0};
    struct error err = {0};

    memset(base, 1, MIB);
    memset(base + size / 2, 1, MIB);
    memset(base + size - MIB, 1, MIB);
    uint64_t tables = page_table_kib(), start = clock_now();
    if (!present(&ways[0], base, size, &list))
        cr_skip_test("this kernel has no PAGEMAP_SCAN (Linux 6.7)");
    double ms = ns_to_ms(clock_now() - start);
    cr_expect_eq(list.count, 3, "%zu extents, expected 3", list.count);
    cr_expect_eq(extent_list_bytes(&list), 3 * MIB);
    cr_expect(ms < 1000, "%.1f ms", ms);
    cr_expect(page_table_kib() - tables < 64, "page tables grew by %zu KiB",
              (size_t)(page_table_kib() - tables));
    extent_list_free(&list);

    cr_expect_eq(pagemap_present_by_reading(base, size, &list, &err), -EFBIG);
    cr_expect(strstr(err.text, "6.7"), "'%s' names no remedy", err.text);
    munmap(base, size);
}
