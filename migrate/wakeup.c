#include "migrate/wakeup.h"

#include <time.h>

#include "transport/base/clock.h"

void wakeup_init(struct wakeup *w)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->raised, &attributes);
    pthread_condattr_destroy(&attributes);
    w->count = 0;
}

void wakeup_destroy(struct wakeup *w)
{
    pthread_cond_destroy(&w->raised);
    pthread_mutex_destroy(&w->lock);
}

void wakeup_raise(struct wakeup *w)
{
    pthread_mutex_lock(&w->lock);
    w->count++;
    pthread_cond_broadcast(&w->raised);
    pthread_mutex_unlock(&w->lock);
}

void wakeup_wait(struct wakeup *w, uint64_t *seen, uint64_t deadline)
{
    struct timespec until = {
        .tv_sec = (time_t)(deadline / NS_PER_S),
        .tv_nsec = (long)(deadline % NS_PER_S),
    };

    pthread_mutex_lock(&w->lock);
    while (w->count == *seen) {
        if (deadline == UINT64_MAX)
            pthread_cond_wait(&w->raised, &w->lock);
        else if (pthread_cond_timedwait(&w->raised, &w->lock, &until))
            break;
    }
    *seen = w->count;
    pthread_mutex_unlock(&w->lock);
}
