/* What the kernel knows about this process's mappings: present pages, and pages written since they were
 * write-protected (Documentation/admin-guide/mm/pagemap.rst). */
#ifndef MIGRATE_GUEST_PAGEMAP_H
#define MIGRATE_GUEST_PAGEMAP_H

#include "migrate/guest/guest.h"

/* Adds the extents of [base, base+size) that are present or swapped to `out`, offsets from base. Uses PAGEMAP_SCAN, or
 * reads /proc/self/pagemap where the kernel lacks it (before 6.7). Does not
 * allocate page tables for holes: 1 TiB with little in it takes milliseconds. */
int pagemap_present(const void *base, uint64_t size, struct extent_list *out, struct error *err);

#endif
