/* Starts a program that outlives us: a session of its own, no signal blocked or ignored, and no
 * descriptor of ours but those given. */
#ifndef MIGRATE_GUEST_QEMU_SPAWN_H
#define MIGRATE_GUEST_QEMU_SPAWN_H

#include <sys/types.h>

enum { SPAWN_MAX_FILES = 8 };

struct spawn {
    const char *program; /* looked for in PATH when it has no '/' */
    char *const *arguments, *const *environment;
    int files[SPAWN_MAX_FILES]; /* files[i] becomes descriptor i; they stay the caller's */
    unsigned file_count;
};

/* Fills *pid and *handle, a pidfd (close-on-exec, the caller's). -errno without a text. */
int spawn_start(const struct spawn *how, pid_t *pid, int *handle);
/* Waits for a process to end, and reaps it when it is our child: then *status is as waitpid(2)'s,
 * else -1. 0 or -ETIMEDOUT. */
int spawn_await_end(int handle, int timeout_ms, int *status);

#endif
