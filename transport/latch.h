/* How a transport ends, once: the first error any of its threads met, or its shutdown. Also what
 * the engine's thread sleeps on while lanes work. Shared by the transports. */
#ifndef TRANSPORT_LATCH_H
#define TRANSPORT_LATCH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "transport/base/error.h"

struct latch {
    atomic_int code;      /* positive errno; 0 while all is well. Set under lock, read anywhere */
    atomic_uint sleepers; /* in latch_wait; wakers need the lock only when there are any */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct error first; /* under lock */
};

void latch_init(struct latch *l);
void latch_destroy(struct latch *l);

/* Keeps `cause` (code and text) unless the latch has ended before; wakes the sleeper. Any thread.
 * Returns true for the call that ended it. */
bool latch_fail(struct latch *l, const struct error *cause);
/* From now on latch_check says -ESHUTDOWN, whatever came before. Any thread, idempotent. */
void latch_shutdown(struct latch *l);
static inline bool latch_ended(struct latch *l)
{
    return atomic_load(&l->code) != 0;
}
/* 0 while all is well, else -errno with its text. Any thread. */
int latch_check(struct latch *l, struct error *err);

/* Sleeps until ready(context), the end, or timeout_ms (-1: no limit). `ready`
 * runs under the lock and must look at sequentially consistent atomics only; who changes them calls
 * latch_wake. */
void latch_wait(struct latch *l, bool (*ready)(void *context), void *context, int timeout_ms);
/* Sleeps until the end or timeout_ms (-1: no limit); then as latch_check. */
int latch_await_end(struct latch *l, int timeout_ms, struct error *err);
/* After a change `ready` may wait for. Costs one load when nobody sleeps. Any thread. */
void latch_wake(struct latch *l);

#endif
