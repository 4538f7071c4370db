/* What every vCPU does, pass after pass: look at the clock, check if asked to, write what is due, rest. */
#include "vcpu.h"

#include "layout.h"
#include "migrate/guest/workload_pattern.h"

#define PASS_NS           1000000ull /* a look at the clock at least this often while writing */
#define REST_KEEPER_NS    2000000ull /* vCPU 0 measures gaps: by so much the measured one may exceed the real one */
#define REST_NS           20000000ull
#define UNCHECKED_MOVE_NS 100000ull
enum { BATCH_MIN = 32, BATCH_START = 64, BATCH_MAX = 4096 };

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

/* Keeps a full batch between half a pass and a whole one. */
static void adapt_batch(struct vcpu *v, uint64_t ns)
{
    if (ns > PASS_NS && v->batch > BATCH_MIN)
        v->batch /= 2;
    else if (ns < PASS_NS / 2 && v->batch < BATCH_MAX)
        v->batch *= 2;
}

static uint64_t look(struct vcpu *v)
{
    uint64_t now = guest.clock->now(), ns = now - v->looked;

    v->looked = now;
    if (v->wrote_batch)
        adapt_batch(v, ns);
    v->wrote_batch = false;
    if (v->number == 0)
        keeper_look(now, ns);
    return now;
}

static void rest(const struct vcpu *v, uint64_t now)
{
    uint64_t ns = v->rest_until - now, most = v->number == 0 ? REST_KEEPER_NS : REST_NS;

    guest.clock->sleep(ns < most ? ns : most);
}

static void write_due(struct vcpu *v, uint64_t now)
{
    uint64_t due = unlimited() ? v->batch : schedule_due(&v->schedule, v->counter, now), next;

    if (due >= v->batch) {
        due = v->batch;
        v->wrote_batch = true;
    }
    write_pages(v, due, now);
    if (unlimited())
        return;
    next = schedule_next(&v->schedule, v->counter);
    v->rest_until = next > now + PASS_NS ? next : now + PASS_NS;
}

static void pass(struct vcpu *v)
{
    uint64_t now = look(v);
    uint32_t checked_moves = __atomic_load_n(&check.moves, __ATOMIC_SEQ_CST);

    if (check_step(v))
        return;
    if (guest.clock->moves() != checked_moves)
        guest.clock->sleep(UNCHECKED_MOVE_NS);
    else if (now < v->rest_until)
        rest(v, now);
    else
        write_due(v, now);
}

_Noreturn void vcpu_main(uint32_t number)
{
    struct vcpu *v = &vcpu_table[number];

    vcpu_init(v, number);
    for (;;)
        pass(v);
}
