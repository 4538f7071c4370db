/* The tracker "userfaultfd": write-protection that the kernel itself lifts at the first write
 * (UFFD_FEATURE_WP_ASYNC), read and set again by PAGEMAP_SCAN. Sees every write by this process, by
 * the kernel for it (recv into guest RAM), and by KVM; not DMA through pages that were pinned
 * before. Linux 6.7 and newer. */
#ifndef MIGRATE_GUEST_SYNTHETIC_USERFAULTFD_H
#define MIGRATE_GUEST_SYNTHETIC_USERFAULTFD_H

#include "migrate/guest/guest.h"
#include "migrate/guest/tracker.h"

/* 0 when this kernel and this user can do it; else -errno and what is missing. */
int userfaultfd_probe(struct error *err);

/* A tracker over private anonymous mappings of this process. The grain is 4 KiB: the kernel splits
 * an armed huge page at its first write. (A huge page that comes anew while tracking is dirty as a
 * whole; MADV_NOHUGEPAGE avoids that.) The regions outlive the tracker. tracker_ops.start fails
 * with -EBUSY while another one tracks them. */
int userfaultfd_tracker_new(const struct guest_region *regions, unsigned count,
                            struct tracker **out, struct error *err);

#endif
