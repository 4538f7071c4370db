/* What every vCPU does, pass after pass: look at the clock, check if asked to, write what is due,
 * rest. */
#include "vcpu.h"

#include "layout.h"
#include "migrate/guest/workload_pattern.h"

#define PASS_NS      1000000ull /* from look to look while writing */
#define PACE_NS      2000000ull /* from pass to pass when a rate is to be held */
#define REST_NS      20000000ull
#define NOT_ASKED_NS 100000ull
enum { BATCH_MIN = 32, BATCH_START = 64, BATCH_MAX = 1 << 16 };

struct vcpu vcpu_table[MAX_VCPUS];
struct check_request check;

static bool unlimited(void)
{
    return guest.parameters.rate == 0;
}

/* This vCPU's part of the rate, which is shared by all that own pages. */
static uint64_t own_rate(const struct vcpu *v)
{
    uint64_t vcpu_count = guest.parameters.vcpus, pages = guest.hot.pages;
    uint64_t writers = pages < vcpu_count ? pages : vcpu_count, rate = guest.parameters.rate;

    return rate / writers + (v->number < rate % writers);
}

static void vcpu_init(struct vcpu *v, uint32_t number)
{
    v->number = number;
    v->sequence = 1;
    v->batch = BATCH_START;
    v->looked = guest.clock->now();
    if (number >= guest.hot.pages || (!unlimited() && !own_rate(v)))
        v->rest_until = UINT64_MAX;
    else
        schedule_init(&v->schedule, own_rate(v), v->looked);
}

/* Makes a full batch take about a pass. */
static void adapt_batch(struct vcpu *v, uint64_t ns)
{
    uint64_t fitting = v->batch * PASS_NS / (ns + 1);

    if (fitting > v->batch * 2)
        fitting = v->batch * 2;
    if (fitting < BATCH_MIN)
        fitting = BATCH_MIN;
    v->batch = fitting < BATCH_MAX ? fitting : BATCH_MAX;
}

static uint64_t look(struct vcpu *v)
{
    uint64_t now = guest.clock->now(), ns = now - v->looked, gap = 0;

    v->looked = now;
    if (v->wrote_batch)
        adapt_batch(v, ns);
    v->wrote_batch = false;
    if (v->number == 0)
        gap = guest.clock->gap(now, ns);
    v->moves = guest.clock->moves();
    if (v->number == 0)
        keeper_look(now, v->moves, gap);
    return now;
}

static void rest(struct vcpu *v, uint64_t now)
{
    uint64_t ns = v->rest_until - now;

    if (v->number == 0)
        v->looked = guest.clock->rest(now, v->rest_until);
    else
        guest.clock->sleep(ns < REST_NS ? ns : REST_NS);
}

/* Returns how many pages it has written. */
static uint64_t write_due(struct vcpu *v, uint64_t now)
{
    uint64_t due = unlimited() ? v->batch : schedule_due(&v->schedule, v->counter, now), next;

    if (due >= v->batch) {
        due = v->batch;
        v->wrote_batch = true;
    }
    write_pages(v, due, now);
    if (!unlimited()) {
        next = schedule_next(&v->schedule, v->counter);
        v->rest_until = next > now + PACE_NS ? next : now + PACE_NS;
    }
    return due;
}

/* A few pages take so little time that `now` still holds after them; after many the next pass looks
 * again first. */
static void work(struct vcpu *v, uint64_t now)
{
    if (now >= v->rest_until && write_due(v, now) > v->batch / 4)
        return;
    if (now < v->rest_until)
        rest(v, now);
}

/* After a move nothing is written before vCPU 0 has noted it. */
static void pass(struct vcpu *v)
{
    uint64_t now = look(v);
    bool asked = v->moves == __atomic_load_n(&check.moves, __ATOMIC_SEQ_CST);

    if (check_step(v))
        schedule_restart(&v->schedule, v->counter, now);
    else if (asked)
        work(v, now);
    else
        guest.clock->sleep(NOT_ASKED_NS);
}

_Noreturn void vcpu_main(uint32_t number)
{
    struct vcpu *v = &vcpu_table[number];

    vcpu_init(v, number);
    for (;;)
        pass(v);
}
