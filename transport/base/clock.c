#include "transport/base/clock.h"

#include <errno.h>
#include <limits.h>
#include <time.h>

static uint64_t clock_read(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

uint64_t clock_now(void)
{
    return clock_read(CLOCK_MONOTONIC);
}

uint64_t clock_process_cpu(void)
{
    return clock_read(CLOCK_PROCESS_CPUTIME_ID);
}

void clock_sleep_until(uint64_t deadline)
{
    struct timespec at = {
        .tv_sec = (time_t)(deadline / NS_PER_S),
        .tv_nsec = (long)(deadline % NS_PER_S),
    };

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        ;
}

int clock_ms_until(uint64_t deadline)
{
    uint64_t now = clock_now(), ms;

    if (deadline <= now)
        return 0;
    ms = (deadline - now - 1) / NS_PER_MS + 1;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}
