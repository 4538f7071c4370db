/* What the kernel knows about a process's mappings: present pages, and pages written since they
 * were write-protected (Documentation/admin-guide/mm/pagemap.rst). */
#ifndef MIGRATE_GUEST_PAGEMAP_H
#define MIGRATE_GUEST_PAGEMAP_H

#include "migrate/guest/guest.h"

/* Adds the extents of [base, base+size) that are present or swapped to `out`, offsets from base.
 * Uses PAGEMAP_SCAN, or reads /proc/self/pagemap where the kernel lacks it (before 6.7). Does not
 * allocate page tables for holes: 1 TiB with little in it takes milliseconds. */
int pagemap_present(const void *base, uint64_t size, struct extent_list *out, struct error *err);

/* The two ways, each by itself. By scan: -ENOTTY where the kernel lacks it; pages that are only the
 * shared zero page are left out, they hold what a hole holds. By reading: 8 bytes per page, holes
 * included (about 1 s for 1 TiB), so a size above PAGEMAP_READ_MAX is refused with -EFBIG. */
int pagemap_present_by_scan(const void *base, uint64_t size, struct extent_list *out,
                            struct error *err);
int pagemap_present_by_reading(const void *base, uint64_t size, struct extent_list *out,
                               struct error *err);

#define PAGEMAP_READ_MAX (256ull << 30)

/* A run of pages as the kernel reports it (struct page_region): addresses, and PAGE_IS_* bits. */
struct pagemap_run {
    uint64_t start, end, categories;
};

enum pagemap_mode {
    PAGEMAP_WRITTEN,     /* populated pages written since they were last armed; arms nothing */
    PAGEMAP_WRITTEN_ARM, /* the same, and arms them in the same step: no write falls in between */
    /* Pages not armed, populated or not: for shared memory, whose pages leave the page table
     * without leaving the file. Arming puts markers where nothing is mapped, and needs page tables
     * for them. */
    PAGEMAP_UNARMED,
    PAGEMAP_UNARMED_ARM,
    PAGEMAP_POPULATED, /* present or swapped, the shared zero page left out */
};

/* In the modes UNARMED: not mapped by the process. */
bool pagemap_run_absent(const struct pagemap_run *run);

/* One PAGEMAP_SCAN call on `fd` (/proc/PID/pagemap) over [*at, end): fills up to `max` runs, moves
 * *at to where it stopped and returns how many. Arming asks for a userfaultfd in WP_ASYNC mode on
 * the range (-EPERM without). Holes are passed over and never populated, but for what arming in
 * mode UNARMED_ARM says. -ENOTTY: the kernel has no PAGEMAP_SCAN. */
int pagemap_scan(int fd, uint64_t *at, uint64_t end, enum pagemap_mode mode,
                 struct pagemap_run *runs, unsigned max);

#endif
