/* Dirty tracking of another process, a QEMU: its userfaultfd through the preloaded library, its
 * /proc/PID/pagemap, and the library's marks for what direct I/O wrote. */
#ifndef MIGRATE_GUEST_QEMU_TRACKING_H
#define MIGRATE_GUEST_QEMU_TRACKING_H

#include "migrate/guest/qemu/memory.h"
#include "migrate/guest/tracker.h"

/* 0 when it can be done: the library answers, userfaultfd and PAGEMAP_SCAN work. Else a reason with
 * its remedy is added for each thing missing: library not loaded (wander qemu-env), another session
 * at work, kernel older than 6.7, seccomp, /proc/PID/pagemap not readable, native AIO or io_uring
 * seen by the library. */
void qemu_tracking_check(pid_t pid, const struct qemu_memory *memory, struct reasons *reasons);
/* `memory` outlives the tracker. Its name is "userfaultfd". Pages whose file has them but QEMU has
 * not mapped count as written once (their first arming marks them); new pages of the file are found
 * by its st_blocks. */
int qemu_tracker_new(pid_t pid, const struct qemu_memory *memory, struct tracker **out,
                     struct error *err);

#endif
