/* Takes time from a QEMU's vCPU threads: one tracer thread stops each of them (PTRACE_SEIZE,
 * PTRACE_INTERRUPT) for its share of every 10 ms. No privilege beyond that of tracing: same user,
 * and the preloaded library says PR_SET_PTRACER for us where Yama asks for it. When this process
 * dies the kernel ends the tracing and the threads run on. */
#ifndef MIGRATE_GUEST_QEMU_THROTTLE_H
#define MIGRATE_GUEST_QEMU_THROTTLE_H

#include <sys/types.h>

#include "transport/base/error.h"

struct qemu_throttle;

/* `threads`: kernel thread ids of the vCPUs (query-cpus-fast), copied. Touches nothing yet. */
int qemu_throttle_new(const pid_t *threads, unsigned count, struct qemu_throttle **out,
                      struct error *err);
/* 0..99 percent; 0 detaches: when it returns every thread runs untraced. -EPERM with the remedy
 * (another debugger, Yama, container without ptrace). */
int qemu_throttle_set(struct qemu_throttle *t, unsigned percent, struct error *err);
void qemu_throttle_free(struct qemu_throttle *t); /* sets 0 first; NULL is fine */

#endif
