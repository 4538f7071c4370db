/* Time: how it is read, kept to, and watched. */
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "workload.h"

#define MS      1000000ull
#define LATE_NS (100 * MS)

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t ns)
{
    struct timespec at = {(time_t)(ns / 1000000000ull), (long)(ns % 1000000000ull)};

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

void pace_keep(struct pace *p, uint64_t more)
{
    uint64_t now, due;

    if (!p->rate)
        return;
    now = now_ns();
    due = p->began_ns + p->done * 1000000000ull / p->rate;
    if (!p->began_ns || now > due + LATE_NS) {
        p->began_ns = due = now;
        p->done = 0;
    }
    p->done += more;
    if (due > now)
        sleep_until(due);
}

void rest_while_told(struct rest *r)
{
    while (atomic_load(&r->resting))
        sleep_until(now_ns() + 10 * MS);
}

static void *tick(void *argument)
{
    struct ticker *t = argument;
    struct sched_param before_all = {.sched_priority = 50};
    uint64_t last = now_ns();

    pthread_setschedparam(pthread_self(), SCHED_FIFO, &before_all);
    while (true) {
        uint64_t now, gap;

        sleep_until(last + t->interval_ns);
        now = now_ns();
        gap = now - last;
        last = now;
        atomic_fetch_add(&t->ticks, 1);
        for (uint64_t longest = atomic_load(&t->gap_ns); gap > longest;)
            if (atomic_compare_exchange_weak(&t->gap_ns, &longest, gap))
                break;
    }
    return NULL;
}

void ticker_start(struct ticker *t, uint64_t interval_ms)
{
    t->interval_ns = interval_ms * MS;
    start_thread(tick, t);
}

uint64_t ticker_gap(struct ticker *t)
{
    return atomic_exchange(&t->gap_ns, 0);
}
