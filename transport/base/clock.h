/* Time. All intervals are nanoseconds of CLOCK_MONOTONIC in a uint64_t. */
#ifndef TRANSPORT_BASE_CLOCK_H
#define TRANSPORT_BASE_CLOCK_H

#include <stdint.h>

#define NS_PER_US 1000ull
#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

/* CLOCK_MONOTONIC now. Any thread; never fails. */
uint64_t clock_now(void);
/* CPU time of the calling process (all threads, user and system), ns. */
uint64_t clock_process_cpu(void);
/* Sleeps until CLOCK_MONOTONIC reaches `deadline`; returns at once when it has passed. */
void clock_sleep_until(uint64_t deadline);
/* Milliseconds until `deadline` for poll(2): rounded up, 0 when passed, never above INT_MAX. */
int clock_ms_until(uint64_t deadline);

static inline double ns_to_ms(uint64_t ns)
{
    return (double)ns / 1e6;
}

#endif
