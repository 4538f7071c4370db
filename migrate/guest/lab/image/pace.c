/* The schedule that holds a dirty rate. A vCPU that falls behind catches up gently: at most twice the rate, since
 * passes are a millisecond apart and each writes 2 ms' worth; and what is more than 20 ms late (a migration, a throttled
 * vCPU) is not made up for. */
#include "vcpu.h"

#define BURST_NS 2000000ull
#define LATE_NS  20000000ull
#define MAX_RATE 1000000000ull

static uint64_t pages_in(const struct schedule *s, uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * s->pages_per_ns >> 64);
}

static void restart(struct schedule *s, uint64_t written, uint64_t now)
{
    s->since = now;
    s->written = written;
}

void schedule_init(struct schedule *s, uint64_t rate, uint64_t now)
{
    if (rate > MAX_RATE)
        rate = MAX_RATE;
    s->pages_per_ns = UINT64_MAX / MAX_RATE * rate;
    s->ns_per_page = rate ? (MAX_RATE << 32) / rate : 0;
    restart(s, 0, now);
}

uint64_t schedule_due(struct schedule *s, uint64_t written, uint64_t now)
{
    uint64_t next = schedule_next(s, written);
    uint64_t burst = pages_in(s, BURST_NS) + 1, by_now, done;

    if (now < s->since || (now > next && now - next > LATE_NS))
        restart(s, written, now);
    by_now = pages_in(s, now - s->since);
    done = written - s->written;
    if (by_now <= done)
        return 0;
    return by_now - done < burst ? by_now - done : burst;
}

uint64_t schedule_next(const struct schedule *s, uint64_t written)
{
    uint64_t pages = written - s->written + 1;

    return s->since + (uint64_t)((unsigned __int128)pages * s->ns_per_page >> 32);
}
