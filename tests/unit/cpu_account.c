/* CPU time by the roles of threads. */
#include <criterion/criterion.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "migrate/cpu_account.h"
#include "transport/base/clock.h"
#include "transport/base/thread.h"

Test(cpu_account, names_tell_roles)
{
    static const struct {
        const char *name;
        enum cpu_role role;
    } cases[] = {
        {"vcpu 0", CPU_GUEST},
        {"CPU 3/KVM\n", CPU_GUEST},
        {"CPU 0/TCG\n", CPU_GUEST},
        {"ALL CPUs/TCG", CPU_GUEST},
        {"lane 7\n", CPU_LANES},
        {"lane-register", CPU_LANES},
        {"migration\n", CPU_ENGINE},
        {"incoming", CPU_ENGINE},
        {"channel", CPU_ENGINE},
        {"session-port", CPU_ENGINE},
        {"wander\n", CPU_OTHER},
        {"vcpus", CPU_OTHER},
        {"", CPU_OTHER},
        {"xlane 0", CPU_OTHER},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        cr_expect_eq(cpu_role_of(cases[i].name), cases[i].role, "\"%s\": expected %d, got %d",
                     cases[i].name, cases[i].role, cpu_role_of(cases[i].name));
}

struct worker {
    const char *role;
    uint64_t ns; /* to spend */
    atomic_bool done, leave;
    pthread_t thread;
};

static uint64_t thread_cpu(void)
{
    struct timespec spent;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent);
    return (uint64_t)spent.tv_sec * NS_PER_S + (uint64_t)spent.tv_nsec;
}

static void *work(void *argument)
{
    struct worker *w = argument;

    thread_set_name(w->role, 0);
    while (thread_cpu() < w->ns)
        ;
    atomic_store(&w->done, true);
    while (!atomic_load(&w->leave))
        usleep(1000);
    return NULL;
}

static void start(struct worker *w)
{
    cr_assert_eq(thread_start(&w->thread, work, w), 0);
}

static void await_done(struct worker *w)
{
    while (!atomic_load(&w->done))
        usleep(1000);
}

static void end(struct worker *w)
{
    atomic_store(&w->leave, true);
    pthread_join(w->thread, NULL);
}

static void expect_spent(const struct cpu_account *a, enum cpu_role role, uint64_t least_ms,
                         uint64_t most_ms)
{
    uint64_t ns = cpu_account_spent(a, role);

    cr_expect(ns >= least_ms * NS_PER_MS && ns <= most_ms * NS_PER_MS,
              "role %d: expected %llu to %llu ms, got %.3f", role, (unsigned long long)least_ms,
              (unsigned long long)most_ms, (double)ns / 1e6);
}

/* What is spent is CPU time, which a busy machine does not stretch; the slack is for the waiting.
 */
Test(cpu_account, time_goes_to_the_role_that_spent_it)
{
    struct worker guest = {.role = "vcpu", .ns = 60 * NS_PER_MS};
    struct worker lane = {.role = "lane", .ns = 30 * NS_PER_MS};
    struct cpu_account a;

    cpu_account_begin(&a, getpid());
    start(&guest);
    start(&lane);
    await_done(&guest);
    await_done(&lane);
    cpu_account_look(&a);
    expect_spent(&a, CPU_GUEST, 60, 200);
    expect_spent(&a, CPU_LANES, 30, 200);
    expect_spent(&a, CPU_ENGINE, 0, 0);
    end(&guest);
    end(&lane);
    cpu_account_look(&a);
    expect_spent(&a, CPU_LANES, 30, 200); /* what was seen last stays */
}

Test(cpu_account, what_was_spent_before_does_not_count)
{
    struct worker guest = {.role = "vcpu", .ns = 300 * NS_PER_MS};
    struct cpu_account a;

    start(&guest);
    await_done(&guest);
    cpu_account_begin(&a, getpid());
    cpu_account_look(&a);
    expect_spent(&a, CPU_GUEST, 0, 150);
    end(&guest);
}

Test(cpu_account, a_number_used_again_is_another_thread)
{
    struct cpu_account a;

    cpu_account_begin(&a, getpid());
    cr_assert_eq(a.threads[0].id, getpid(), "the first thread is not the main one");
    a.threads[0].before = 1000 * NS_PER_S; /* as of one that had run for long, and then ended */
    a.threads[0].now = 1001 * NS_PER_S;
    cpu_account_look(&a);
    expect_spent(&a, CPU_OTHER, 1000, 11000);
}

Test(cpu_account, a_process_that_is_gone_spends_nothing)
{
    struct cpu_account a;

    cpu_account_begin(&a, 0x7ffffff0);
    cpu_account_look(&a);
    cr_expect_eq(a.count, 0u);
}

Test(cpu_account, roles_and_the_rest_make_up_the_process)
{
    struct worker guest = {.role = "vcpu", .ns = 50 * NS_PER_MS};
    struct cpu_watch *w = malloc(sizeof(*w));
    struct cpu_measurement got;
    uint64_t all;

    cpu_watch_begin(w);
    start(&guest);
    await_done(&guest);
    cpu_watch_result(w, &all, &got);
    cr_expect(got.known && got.guest_ns >= 50 * NS_PER_MS, "guest %.3f ms", got.guest_ns / 1e6);
    cr_expect_leq(got.guest_ns + got.engine_ns + got.lanes_ns, all);
    cr_expect_eq(got.guest_ns + got.engine_ns + got.lanes_ns + got.other_ns, all);
    end(&guest);
    free(w);
}

Test(cpu_account, a_hypervisor_without_names_is_not_known)
{
    struct cpu_watch *w = malloc(sizeof(*w));
    struct cpu_measurement got;
    uint64_t all;

    cpu_watch_begin(w);
    cpu_watch_hypervisor(w, getppid(), false);
    cpu_watch_result(w, &all, &got);
    cr_expect_eq(got.guest_ns, MEASUREMENT_UNKNOWN);
    free(w);
}
