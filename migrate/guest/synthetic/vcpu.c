/* A vCPU of the synthetic guest: a thread that writes pages at a rate, checks them, parks. */
#include "migrate/guest/synthetic/internal.h"

#include <inttypes.h>
#include <stdio.h>

#include "transport/base/clock.h"
#include "transport/base/thread.h"

/* Guest RAM is read by the engine while it is written: a race by design, which re-arming before
 * reading makes good. */
#define UNRECORDED __attribute__((no_sanitize("thread")))

enum {
    BATCH = 32,              /* writes between two looks at the clock */
    CHECK_SLICE = 4096,      /* pages checked between two looks at `attention` */
    PACE_LIMIT = 1000000000, /* pages/s: more than any machine writes */
};

#define SLEEP_MIN (NS_PER_MS / 2)
#define SLEEP_MAX (100 * NS_PER_MS)
#define TICK      NS_PER_MS       /* vCPU 0 looks at the clock at least so often */
#define BACKLOG   (NS_PER_S / 10) /* writes that are late by more than this are dropped */
#define DUTY      (2 * NS_PER_MS) /* period of the duty cycle */

static uint64_t written(const struct vcpu *v)
{
    return atomic_load_explicit(&v->written, memory_order_relaxed);
}

static UNRECORDED void write_pages(struct vcpu *v, uint64_t count, uint64_t elapsed_ms)
{
    const struct synthetic *s = v->guest;
    uint64_t counter = written(v);

    for (uint64_t i = 0; i < count; i++) {
        uint64_t page =
            workload_page(&s->workload, counter + i, v->number, s->vcpu_count, elapsed_ms);
        volatile uint32_t *sequence = &v->sequences[page / s->vcpu_count];
        uint32_t next = *sequence + 1;
        *sequence = next;
        stamp_write(s->hot + page * GUEST_PAGE_SIZE, (uint32_t)page, next);
    }
    atomic_store_explicit(&v->written, counter + count, memory_order_relaxed);
}

/* A sequence of 0 is a page never stamped (or one after 2^32 writes, which is left out once). */
static UNRECORDED void check_pages(struct vcpu *v, uint64_t end)
{
    const struct synthetic *s = v->guest;
    struct share_check *c = &v->check;

    for (; c->place < end; c->place++) {
        uint64_t page = c->place * s->vcpu_count + v->number;
        uint32_t expected = ((volatile uint32_t *)v->sequences)[c->place];
        enum stamp_result result;
        c->sum += expected;
        if (expected == 0)
            continue;
        c->pages++;
        result = stamp_check(s->hot + page * GUEST_PAGE_SIZE, (uint32_t)page, expected);
        if (result != STAMP_GOOD && c->bad++ == 0) {
            c->bad_page = page;
            c->bad_result = result;
        }
    }
}

/* True when the share is checked through. */
static bool check_slice(struct vcpu *v)
{
    struct share_check *c = &v->check;

    check_pages(v, v->share - c->place < CHECK_SLICE ? v->share : c->place + CHECK_SLICE);
    if (c->place < v->share)
        return false;
    if (c->sum != (uint32_t)written(v))
        c->bad++;
    return true;
}

void synthetic_changed(struct synthetic *s)
{
    atomic_store_explicit(&s->attention, s->hold || s->ending || s->check_wanted || s->checks_left,
                          memory_order_relaxed);
    pthread_cond_broadcast(&s->changed);
}

static void begin_check(struct synthetic *s)
{
    s->check_wanted = false;
    s->checks_left = s->vcpu_count;
    s->found = (struct share_check){0};
    for (unsigned i = 0; i < s->vcpu_count; i++) {
        s->vcpus[i].checking = true;
        s->vcpus[i].check = (struct share_check){0};
    }
}

static void publish_check(struct synthetic *s)
{
    static const char *const results[] = {"sum", "misplaced", "torn", "stale", "corrupt"};
    struct guest_workload *a = &s->account;
    int used;

    a->checks++;
    a->check_moves = a->moves;
    a->checked_pages = s->found.pages;
    a->bad_pages += s->found.bad;
    used = snprintf(s->console, sizeof(s->console),
                    "wander-guest: check move=%" PRIu64 " pages=%" PRIu64 " bad=%" PRIu64, a->moves,
                    s->found.pages, s->found.bad);
    if (s->found.bad)
        snprintf(s->console + used, sizeof(s->console) - (size_t)used,
                 " page=%" PRIu64 " result=%s", s->found.bad_page, results[s->found.bad_result]);
}

static void report_share(struct vcpu *v)
{
    struct synthetic *s = v->guest;

    v->checking = false;
    s->found.pages += v->check.pages;
    if (s->found.bad_result == STAMP_GOOD) {
        s->found.bad_page = v->check.bad_page;
        s->found.bad_result = v->check.bad_result;
    }
    s->found.bad += v->check.bad;
    if (--s->checks_left == 0)
        publish_check(s);
    synthetic_changed(s);
}

/* The schedule begins anew: what was not written by now never will be. */
static void restart_schedule(struct vcpu *v, uint64_t now)
{
    v->paced_from = v->slice_from = now;
    v->paced_written = written(v);
    v->paced_throttle = atomic_load_explicit(&v->guest->throttle, memory_order_relaxed);
}

/* Under the lock. */
static void park(struct vcpu *v)
{
    struct synthetic *s = v->guest;

    v->parked = true;
    s->parked++;
    pthread_cond_broadcast(&s->changed);
    while (s->hold && !s->ending)
        pthread_cond_wait(&s->changed, &s->lock);
    s->parked--;
    v->parked = false;
    if (s->resumed_at == 0)
        s->resumed_at = clock_now();
    restart_schedule(v, clock_now());
    if (v->number == 0)
        s->sampled_at = 0;
}

/* Does what the lock's fields ask for. False: the thread ends. */
static bool attend(struct vcpu *v)
{
    struct synthetic *s = v->guest;
    bool checked = false;

    pthread_mutex_lock(&s->lock);
    while (!s->ending) {
        if (s->hold) {
            park(v);
            continue;
        }
        if (s->check_wanted && s->checks_left == 0)
            begin_check(s);
        if (!v->checking)
            break;
        pthread_mutex_unlock(&s->lock);
        checked = true;
        bool done = check_slice(v);
        pthread_mutex_lock(&s->lock);
        if (done)
            report_share(v);
    }
    bool go_on = !s->ending;
    pthread_mutex_unlock(&s->lock);
    if (checked)
        restart_schedule(v, clock_now());
    return go_on;
}

/* Under the lock. */
static bool has_to_attend(const struct vcpu *v)
{
    const struct synthetic *s = v->guest;

    return s->hold || s->ending || v->checking || (s->check_wanted && s->checks_left == 0);
}

/* Sleeps until `deadline` or until there is something to attend to. */
static void rest(struct vcpu *v, uint64_t deadline)
{
    struct synthetic *s = v->guest;
    struct timespec at = {.tv_sec = (time_t)(deadline / NS_PER_S),
                          .tv_nsec = (long)(deadline % NS_PER_S)};

    pthread_mutex_lock(&s->lock);
    while (!has_to_attend(v) && pthread_cond_timedwait(&s->changed, &s->lock, &at) == 0)
        ;
    pthread_mutex_unlock(&s->lock);
}

/* Writes that the schedule asks for after `ns` of it. Throttling stretches it, as if the pauses
 * between two writes were work. */
static uint64_t scheduled(const struct vcpu *v, uint64_t ns)
{
    const struct workload *w = &v->guest->workload;
    uint64_t rate = w->rate < PACE_LIMIT ? w->rate : PACE_LIMIT;
    uint64_t owners = synthetic_hot_pages(w) < v->guest->vcpu_count ? synthetic_hot_pages(w)
                                                                    : v->guest->vcpu_count;

    return (uint64_t)((unsigned __int128)ns * rate * (100 - v->paced_throttle) / 100 /
                      (owners * NS_PER_S));
}

/* How many pages to write now. */
static uint64_t due(struct vcpu *v, uint64_t now)
{
    unsigned throttle = atomic_load_explicit(&v->guest->throttle, memory_order_relaxed);

    if (v->share == 0)
        return 0;
    if (v->guest->workload.rate == UINT64_MAX)
        return BATCH;
    if (throttle != v->paced_throttle)
        restart_schedule(v, now);
    uint64_t target = scheduled(v, now - v->paced_from), done = written(v) - v->paced_written;
    if (target <= done)
        return 0;
    if (target - done > scheduled(v, BACKLOG) + BATCH) {
        restart_schedule(v, now);
        return BATCH;
    }
    return target - done < BATCH ? target - done : BATCH;
}

/* When to look again if nothing is due at `now`. */
static uint64_t next_look(const struct vcpu *v, uint64_t now)
{
    uint64_t per_second = v->share ? scheduled(v, NS_PER_S) : 0;
    uint64_t wait = per_second ? NS_PER_S / per_second : SLEEP_MAX;
    uint64_t longest = v->number == 0 ? TICK : SLEEP_MAX;

    wait = wait > SLEEP_MIN ? wait : SLEEP_MIN;
    return now + (wait < longest ? wait : longest);
}

/* Takes away its share of the time once the vCPU has run its part of a period. */
static void throttle(struct vcpu *v, uint64_t now)
{
    unsigned percent = atomic_load_explicit(&v->guest->throttle, memory_order_relaxed);
    uint64_t ran = now - v->slice_from;

    if (percent == 0) {
        v->slice_from = now;
        return;
    }
    if (ran < DUTY * (100 - percent) / 100)
        return;
    ran = ran < DUTY ? ran : DUTY; /* the host's scheduler may have taken some already */
    rest(v, now + ran * percent / (100 - percent));
    v->slice_from = clock_now();
}

static void measure_gap(struct synthetic *s, uint64_t guest_now)
{
    pthread_mutex_lock(&s->lock);
    s->gap_pending = false;
    s->account.gap_ns = guest_now > s->last_seen ? guest_now - s->last_seen : 0;
    snprintf(s->account.gap_clock, sizeof(s->account.gap_clock), "monotonic");
    s->check_wanted = true;
    synthetic_changed(s);
    pthread_mutex_unlock(&s->lock);
}

static void sample_rate(struct synthetic *s, uint64_t now)
{
    uint64_t pages = synthetic_written(s);

    if (s->sampled_at) {
        pthread_mutex_lock(&s->lock);
        s->account.rate =
            (uint64_t)((double)(pages - s->sampled_written) * 1e9 / (double)(now - s->sampled_at));
        pthread_mutex_unlock(&s->lock);
    }
    s->sampled_at = now;
    s->sampled_written = pages;
}

/* vCPU 0 keeps the guest's time. */
static void keep_time(struct synthetic *s, uint64_t now)
{
    uint64_t guest_now = now + (uint64_t)s->clock_delta;

    if (s->gap_pending)
        measure_gap(s, guest_now);
    s->last_seen = guest_now;
    if (s->sampled_at == 0 || now - s->sampled_at >= NS_PER_S)
        sample_rate(s, now);
}

void *vcpu_run(void *argument)
{
    struct vcpu *v = argument;
    struct synthetic *s = v->guest;

    thread_set_name("vcpu", (int)v->number);
    for (;;) {
        if (atomic_load_explicit(&s->attention, memory_order_relaxed) && !attend(v))
            return NULL;
        uint64_t now = clock_now();
        if (v->number == 0)
            keep_time(s, now);
        uint64_t count = due(v, now);
        if (count == 0) {
            rest(v, next_look(v, now));
            v->slice_from = clock_now();
            continue;
        }
        write_pages(v, count, (now + (uint64_t)s->clock_delta - s->started_at) / NS_PER_MS);
        throttle(v, clock_now());
    }
}
