/* Dirty tracking of another process, a QEMU: its userfaultfd through the preloaded library, its
 * /proc/PID/pagemap, and the library's marks for what direct I/O wrote. */
#ifndef MIGRATE_GUEST_QEMU_TRACKING_H
#define MIGRATE_GUEST_QEMU_TRACKING_H

#include "migrate/guest/qemu/memory.h"
#include "migrate/guest/tracker.h"

/* Adds a reason with its remedy for each thing that keeps it from being done: library not loaded
 * (wander qemu-env), another session at work, kernel older than 6.7, seccomp, /proc/PID/pagemap not
 * readable, native AIO or io_uring seen by the library. */
void qemu_tracking_check(pid_t pid, const struct qemu_memory *memory, struct reasons *reasons);
/* `memory` outlives the tracker and is located (qemu_memory_locate). Its name is "userfaultfd".
 * Pages that come to a file, or are punched out of it, are found and dirty. collect fails once QEMU
 * is gone (-ECONNRESET) or uses what escapes the tracking (-EOPNOTSUPP). */
int qemu_tracker_new(pid_t pid, const struct qemu_memory *memory, struct tracker **out,
                     struct error *err);

#endif
