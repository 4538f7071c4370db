/* A counter that threads raise and one thread waits for: how a session's thread learns that
 * anything it cares about (a message, a cancel, a request to resolve) has happened, whoever it came
 * from. */
#ifndef MIGRATE_WAKEUP_H
#define MIGRATE_WAKEUP_H

#include <pthread.h>
#include <stdint.h>

struct wakeup {
    pthread_mutex_t lock;
    pthread_cond_t raised; /* CLOCK_MONOTONIC */
    uint64_t count;
};

void wakeup_init(struct wakeup *w);
void wakeup_destroy(struct wakeup *w);
void wakeup_raise(struct wakeup *w); /* any thread */
/* Waits until the count differs from *seen or `deadline` (clock_now; UINT64_MAX: none) passes;
 * updates *seen. Look at what you wait for after each call: read *seen first, then look, then wait.
 */
void wakeup_wait(struct wakeup *w, uint64_t *seen, uint64_t deadline);

#endif
