/* The schedule that holds a dirty rate. A vCPU that was woken late catches up gently, since it
 * rests between passes and each writes at most the worth of one and a half times what has passed
 * since the one before. What is very late (a throttled vCPU, a stopped host) is not made up for. */
#include "vcpu.h"

#define BURST_MIN_NS 3000000ull
#define BURST_MAX_NS 20000000ull
#define LATE_NS      250000000ull
#define MAX_RATE     1000000000ull

static uint64_t pages_in(const struct schedule *s, uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * s->pages_per_ns >> 64);
}

static uint64_t burst(const struct schedule *s, uint64_t ns)
{
    ns += ns / 2;
    if (ns < BURST_MIN_NS)
        ns = BURST_MIN_NS;
    return pages_in(s, ns < BURST_MAX_NS ? ns : BURST_MAX_NS) + 1;
}

void schedule_restart(struct schedule *s, uint64_t written, uint64_t now)
{
    s->since = now;
    s->passed = now;
    s->written = written;
}

void schedule_init(struct schedule *s, uint64_t rate, uint64_t now)
{
    if (rate > MAX_RATE)
        rate = MAX_RATE;
    s->pages_per_ns = UINT64_MAX / MAX_RATE * rate;
    s->ns_per_page = rate ? (MAX_RATE << 32) / rate : 0;
    schedule_restart(s, 0, now);
}

uint64_t schedule_due(struct schedule *s, uint64_t written, uint64_t now)
{
    uint64_t next = schedule_next(s, written);
    uint64_t by_now, done, most;

    if (now < s->since || (now > next && now - next > LATE_NS))
        schedule_restart(s, written, now);
    most = burst(s, now - s->passed);
    s->passed = now;
    by_now = pages_in(s, now - s->since);
    done = written - s->written;
    if (by_now <= done)
        return 0;
    return by_now - done < most ? by_now - done : most;
}

uint64_t schedule_next(const struct schedule *s, uint64_t written)
{
    uint64_t pages = written - s->written + 1;

    return s->since + (uint64_t)((unsigned __int128)pages * s->ns_per_page >> 32);
}
