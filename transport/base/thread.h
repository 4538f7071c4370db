/* Threads that work for the program and take none of its signals. */
#ifndef TRANSPORT_BASE_THREAD_H
#define TRANSPORT_BASE_THREAD_H

#include <pthread.h>

/* As pthread_create, with all signals blocked in the new thread: they are for the program's own
 * threads (splice(2) to a closed socket, for one, raises one that nobody needs). Returns 0, or
 * -errno without a text. */
int thread_start(pthread_t *thread, void *(*main)(void *), void *argument);

/* Names the calling thread for whoever looks at /proc: `role`, and `number` unless that is -1. At
 * most 15 characters are kept. Reports tell CPU time by these names. */
void thread_set_name(const char *role, int number);

#endif
