/* CPU time by what it was spent for: the guest's vCPUs, the engine, the lanes. Threads tell their
 * role by their names (thread_set_name), as /proc shows them. */
#ifndef MIGRATE_CPU_ACCOUNT_H
#define MIGRATE_CPU_ACCOUNT_H

#include <sys/types.h>

#include "migrate/measurement.h"

enum cpu_role { CPU_OTHER, CPU_GUEST, CPU_ENGINE, CPU_LANES, CPU_ROLES };

/* The role that a thread's name tells. Pure. */
enum cpu_role cpu_role_of(const char *name);

enum { CPU_MAX_THREADS = 256 };

/* One process's threads, as they were last seen: those that have ended keep what they had then. */
struct cpu_account {
    pid_t process;
    unsigned count;
    struct cpu_thread {
        pid_t id;
        enum cpu_role role;
        uint64_t spent, before, now; /* ns; spent: by earlier threads of that number */
    } threads[CPU_MAX_THREADS];
};

/* CPU time spent from here on. One thread at a time, like all of these. */
void cpu_account_begin(struct cpu_account *a, pid_t process);
/* Looks at the threads again: before some of them end, and before asking. */
void cpu_account_look(struct cpu_account *a);
uint64_t cpu_account_spent(const struct cpu_account *a, enum cpu_role role);

/* One end of a migration: its own process, and the hypervisor's where that is another. */
struct cpu_watch {
    uint64_t process_before;
    struct cpu_account own, hypervisor;
};

void cpu_watch_begin(struct cpu_watch *w);
/* The guest runs in a process of its own; what it spent before counts too when `fresh`. */
void cpu_watch_hypervisor(struct cpu_watch *w, pid_t process, bool fresh);
void cpu_watch_look(struct cpu_watch *w);
/* Looks at the threads of this process that are known already: microseconds, for the downtime. */
void cpu_watch_glance(struct cpu_watch *w);
/* Looks, and fills in what was spent; *process_ns is the whole of this process. */
void cpu_watch_result(struct cpu_watch *w, uint64_t *process_ns, struct cpu_measurement *out);

#endif
