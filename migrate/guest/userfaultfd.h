/* The tracker "userfaultfd": write-protection that the kernel itself lifts at the first write
 * (UFFD_FEATURE_WP_ASYNC), read and set again by PAGEMAP_SCAN. Sees every write by the process, by
 * the kernel for it (recv into guest RAM), and by KVM; not DMA through pages that were pinned
 * before: whoever starts that sets marks. Linux 6.7 and newer. */
#ifndef MIGRATE_GUEST_USERFAULTFD_H
#define MIGRATE_GUEST_USERFAULTFD_H

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

/* Whose memory it is. Calls come from the tracker's thread. */
struct userfaultfd_source {
    const struct userfaultfd_source_ops *ops;
    int pagemap; /* of the process */
};

struct userfaultfd_place {
    uint64_t address; /* in the tracked process */
    int file;         /* the shared file that is mapped there, from its beginning; -1: private
                         anonymous memory */
    /* A bit a page, set by others when a page was written past the page table; NULL: nobody does */
    _Atomic uint64_t *marks;
};

struct userfaultfd_source_ops {
    /* At the start: a userfaultfd of the process on which UFFDIO_API has not been called yet. The
     * caller's, to be closed. */
    int (*open)(struct userfaultfd_source *s, struct error *err);
    /* Where a region is; after open. */
    void (*place)(const struct userfaultfd_source *s, const struct guest_region *region,
                  unsigned index, struct userfaultfd_place *out);
    /* Once per collect: whether all writes since open were seen. -errno. May be NULL. */
    int (*check)(struct userfaultfd_source *s, struct error *err);
    /* Undoes open, after the userfaultfd was closed. */
    void (*close)(struct userfaultfd_source *s);
    void (*free)(struct userfaultfd_source *s);
};

/* A tracker of the memory that `source` tells of. Takes the source when it succeeds. */
int userfaultfd_tracker_over(struct userfaultfd_source *source, const struct guest_region *regions,
                             unsigned count, struct tracker **out, struct error *err);
/* Asks a new userfaultfd for asynchronous write-protection: -EINVAL where there is none. */
int userfaultfd_enable(int fd, struct error *err);

#endif
