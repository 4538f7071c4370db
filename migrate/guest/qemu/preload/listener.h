/* The thread that waits for wander. */
#ifndef MIGRATE_GUEST_QEMU_PRELOAD_LISTENER_H
#define MIGRATE_GUEST_QEMU_PRELOAD_LISTENER_H

#include <pthread.h>

typedef int pthread_create_fn(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

/* Starts the thread, with the C library's own pthread_create, unless this process has it already.
 * Only in a program whose name begins with "qemu", or with WANDER_QEMU=1 in the environment.
 * Without success the program runs on, and cannot be tracked. Any thread. */
void listener_ensure(pthread_create_fn *create);

#endif
