#include "transport/latch.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "transport/base/clock.h"

void latch_init(struct latch *l)
{
    pthread_condattr_t attributes;

    memset(l, 0, sizeof *l);
    pthread_mutex_init(&l->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&l->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

void latch_destroy(struct latch *l)
{
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
}

bool latch_fail(struct latch *l, const struct error *cause)
{
    bool first;

    pthread_mutex_lock(&l->lock);
    first = !l->code;
    if (first) {
        l->first = *cause;
        l->code = cause->code;
    }
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    return first;
}

void latch_shutdown(struct latch *l)
{
    pthread_mutex_lock(&l->lock);
    if (!l->code)
        error_set(&l->first, ESHUTDOWN, "the transport was shut down");
    else if (l->code != ESHUTDOWN)
        error_prefix(&l->first, "the transport was shut down after a failure");
    l->code = ESHUTDOWN;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

int latch_check(struct latch *l, struct error *err)
{
    int code;

    if (!latch_ended(l))
        return 0;
    pthread_mutex_lock(&l->lock);
    code = l->code;
    error_set(err, code, "%s", l->first.text);
    pthread_mutex_unlock(&l->lock);
    return -code;
}

static struct timespec deadline_after(int timeout_ms)
{
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;

    return (struct timespec){.tv_sec = (time_t)(deadline / NS_PER_S),
                             .tv_nsec = (long)(deadline % NS_PER_S)};
}

void latch_wait(struct latch *l, bool (*ready)(void *context), void *context, int timeout_ms)
{
    struct timespec deadline = deadline_after(timeout_ms < 0 ? 0 : timeout_ms);
    int result = 0;

    if (timeout_ms == 0)
        return;
    pthread_mutex_lock(&l->lock);
    l->sleepers++;
    while (!result && !l->code && !ready(context))
        result = timeout_ms < 0 ? pthread_cond_wait(&l->changed, &l->lock)
                                : pthread_cond_timedwait(&l->changed, &l->lock, &deadline);
    l->sleepers--;
    pthread_mutex_unlock(&l->lock);
}

static bool never(void *context)
{
    (void)context;
    return false;
}

int latch_await_end(struct latch *l, int timeout_ms, struct error *err)
{
    latch_wait(l, never, NULL, timeout_ms);
    return latch_check(l, err);
}

void latch_wake(struct latch *l)
{
    if (!atomic_load(&l->sleepers))
        return;
    pthread_mutex_lock(&l->lock);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}
