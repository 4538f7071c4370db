/* A QEMU guest's RAM: backends in named, shared files, found through QMP, mapped here once. */
#ifndef MIGRATE_GUEST_QEMU_MEMORY_H
#define MIGRATE_GUEST_QEMU_MEMORY_H

#include "migrate/guest/guest.h"
#include "migrate/guest/qemu/qmp.h"

struct qemu_memory {
    unsigned count;
    struct guest_region
        regions[GUEST_MAX_REGIONS];      /* named as the backends; `host` is our mapping */
    uint64_t address[GUEST_MAX_REGIONS]; /* where QEMU has it mapped; 0 before qemu_memory_locate */
    int file[GUEST_MAX_REGIONS];         /* each holds its region from its beginning */
    char path[GUEST_MAX_REGIONS][256];
    uint64_t bytes; /* all regions together */
};

/* Asks QEMU for its backends (query-memdev, qom-get), sorted by name, opens and maps their files.
 * Adds a reason, with the remedy, for everything that keeps them from being moved: none at all, not
 * shared, no named file (memfd, anonymous) or not from its beginning, hugetlbfs (tracking would
 * have its grain of a huge page: named with its size), RAM that no backend holds
 * (query-memory-size-summary), too many. 0 with or without reasons; -errno when QEMU does not
 * answer. */
int qemu_memory_open(struct qmp *q, struct qemu_memory *out, struct reasons *reasons,
                     struct error *err);
/* Finds the QEMU process: `hint` (or 0) if it maps the files, else whichever does, and where it has
 * them (/proc/PID/maps). -ESRCH when none does, -EACCES when this user may not look. */
int qemu_memory_locate(struct qemu_memory *m, pid_t hint, pid_t *pid, struct error *err);
/* The parts of a region that its file holds (SEEK_DATA), appended to `out`. */
int qemu_memory_present(const struct qemu_memory *m, uint32_t region, struct extent_list *out,
                        struct error *err);
/* Backends there are now, as "name=bytes ..." sorted: differs once RAM was plugged in or taken
 * away. `out` has `size` bytes. */
int qemu_memory_list(struct qmp *q, char *out, size_t size, struct error *err);
/* The same of what was opened. */
int qemu_memory_opened(const struct qemu_memory *m, char *out, size_t size, struct error *err);
void qemu_memory_close(struct qemu_memory *m);

#endif
