/* Throttling: what it takes from a thread, and that nothing of it stays behind. */
#include "qemu_fixture.h"

#include <sys/ptrace.h>

#include "migrate/guest/qemu/throttle.h"
#include "transport/base/clock.h"

static void rest_ms(uint64_t ms)
{
    clock_sleep_until(clock_now() + ms * NS_PER_MS);
}

/* A field of /proc/PID/task/TID/status: its text after the colon. */
static void status_of(const struct stand_in *s, pid_t thread, const char *field, char *out,
                      size_t size)
{
    char path[64], line[256];

    out[0] = 0;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/status", (int)s->pid, (int)thread);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof(line), status)) {
        if (!strncmp(line, field, strlen(field)))
            snprintf(out, size, "%s", line + strlen(field) + 2);
    }
    if (status)
        fclose(status);
}

static bool is_traced(const struct stand_in *s, pid_t thread)
{
    char tracer[64];

    status_of(s, thread, "TracerPid", tracer, sizeof(tracer));
    return atoi(tracer) != 0;
}

static void expect_untouched(const struct stand_in *s, pid_t thread)
{
    char tracer[64], state[64];

    status_of(s, thread, "TracerPid", tracer, sizeof(tracer));
    status_of(s, thread, "State", state, sizeof(state));
    cr_expect_eq(atoi(tracer), 0, "thread %d is still traced by %s", (int)thread, tracer);
    cr_expect(state[0] != 't' && state[0] != 'T', "thread %d is still stopped: %s", (int)thread,
              state);
}

static struct qemu_throttle *throttle(const pid_t *threads, unsigned count)
{
    struct qemu_throttle *t;
    struct error err = {0};

    cr_assert_eq(qemu_throttle_new(threads, count, &t, &err), 0, "%s", err.text);
    return t;
}

static void set(struct qemu_throttle *t, unsigned percent)
{
    struct error err = {0};

    cr_assert_eq(qemu_throttle_set(t, percent, &err), 0, "%u %%: %s", percent, err.text);
}

/* CPU time of a thread in clock ticks. */
static long cpu_ticks(const struct stand_in *s, pid_t thread)
{
    char path[64];
    unsigned long user = 0, system = 0;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", (int)s->pid, (int)thread);
    FILE *stat = fopen(path, "r");
    cr_assert(stat);
    cr_assert_eq(fscanf(stat, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
                        &user, &system),
                 2);
    fclose(stat);
    return (long)(user + system);
}

static long ticks_in_a_second(const struct stand_in *s, pid_t thread)
{
    long before = cpu_ticks(s, thread);

    rest_ms(1000);
    return cpu_ticks(s, thread) - before;
}

/* A busy machine takes more from the thread, or is late to stop it: then once more. */
Test(qemu_throttle, takes_time)
{
    static const struct {
        unsigned percent;
        long ticks; /* in 1 s: 100 */
    } cases[] = {{50, 75}, {90, 35}, {99, 20}};
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);
    pid_t thread = (pid_t)tell(&s, "counter", 0, 0);
    struct qemu_throttle *t = throttle(&thread, 1);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        set(t, cases[i].percent);
        long used = ticks_in_a_second(&s, thread);
        for (int again = 0; again < 20 && used > cases[i].ticks; again++)
            used = ticks_in_a_second(&s, thread);
        cr_expect_leq(used, cases[i].ticks, "%u %%: %ld ticks of 100, expected at most %ld",
                      cases[i].percent, used, cases[i].ticks);
        uint64_t count = (uint64_t)tell(&s, "count", 0, 0);
        for (int wait = 0; wait < 100 && (uint64_t)tell(&s, "count", 0, 0) == count; wait++)
            rest_ms(100);
        cr_expect_gt((uint64_t)tell(&s, "count", 0, 0), count, "%u %%: it stands still",
                     cases[i].percent);
    }
    set(t, 0);
    expect_untouched(&s, thread);
    qemu_throttle_free(t);
    stand_in_end(&s, SIGKILL);
}

Test(qemu_throttle, leaves_nothing_behind)
{
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);
    pid_t threads[3];

    for (int i = 0; i < 3; i++)
        threads[i] = (pid_t)tell(&s, "counter", 0, 0);
    struct qemu_throttle *t = throttle(threads, 3);
    for (unsigned round = 0; round < 60; round++) {
        set(t, 1 + round * 37 % 99);
        rest_ms(round % 13);
        set(t, 0);
        for (int i = 0; i < 3; i++)
            expect_untouched(&s, threads[i]);
    }
    qemu_throttle_free(t);
    cr_expect_eq(tell(&s, "stop", 0, 0), 0);
    stand_in_end(&s, 0);
}

/* A thread asleep in the kernel does not stop when told to: it is let go all the same. */
Test(qemu_throttle, a_stop_that_is_pending)
{
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);
    pid_t threads[2] = {(pid_t)tell(&s, "sleeper", 0, 0), (pid_t)tell(&s, "counter", 0, 0)};
    struct qemu_throttle *t = throttle(threads, 2);

    for (int round = 0; round < 5; round++) {
        set(t, 80);
        rest_ms(130);
        set(t, 0);
        expect_untouched(&s, threads[0]);
        expect_untouched(&s, threads[1]);
    }
    uint64_t before = (uint64_t)tell(&s, "count", 0, 0);
    for (int wait = 0; wait < 200 && (uint64_t)tell(&s, "count", 0, 0) == before; wait++)
        rest_ms(50);
    cr_expect_gt((uint64_t)tell(&s, "count", 0, 0), before, "the sleeper never woke again");
    qemu_throttle_free(t);
    stand_in_end(&s, SIGKILL);
}

Test(qemu_throttle, a_thread_that_ends)
{
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);
    pid_t threads[2] = {(pid_t)tell(&s, "counter", 0, 0), (pid_t)tell(&s, "counter", 0, 0)};
    struct qemu_throttle *t = throttle(threads, 2);

    set(t, 50);
    cr_expect_eq(tell(&s, "stop", 0, 0), 0);
    set(t, 60);
    rest_ms(50);
    set(t, 70);
    set(t, 0);
    qemu_throttle_free(t);
    stand_in_end(&s, 0);
}

/* Its parent has to see its end, although its threads are traced. */
Test(qemu_throttle, a_qemu_that_dies)
{
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);
    pid_t thread = (pid_t)tell(&s, "counter", 0, 0);
    struct qemu_throttle *t = throttle(&thread, 1);

    set(t, 99);
    stand_in_end(&s, SIGKILL);
    set(t, 99);
    set(t, 0);
    qemu_throttle_free(t);
}

/* The kernel lets go what a process had stopped that dies. */
Test(qemu_throttle, a_tracer_that_dies)
{
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);
    pid_t thread = (pid_t)tell(&s, "counter", 0, 0), child;

    for (int round = 0; round < 10; round++) {
        child = fork();
        if (child == 0) {
            set(throttle(&thread, 1), 90);
            rest_ms((uint64_t)round * 3);
            kill(getpid(), SIGKILL);
        }
        waitpid(child, NULL, 0);
        for (int wait = 0; wait < 1000 && is_traced(&s, thread); wait++)
            rest_ms(1);
        expect_untouched(&s, thread);
    }
    stand_in_end(&s, SIGKILL);
}

/* Signals to a throttled thread arrive, each once, and stop nothing for good. */
Test(qemu_throttle, signals_arrive)
{
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);
    pid_t thread = (pid_t)tell(&s, "counter", 0, 0);
    struct qemu_throttle *t = throttle(&thread, 1);
    long sent = tell(&s, "signals", 0, 0);

    set(t, 80);
    for (int i = 0; i < 200; i++) {
        sent++;
        cr_assert_eq(tell(&s, "signal", (uint64_t)thread, 0), sent, "signal %d did not arrive", i);
    }
    set(t, 0);
    qemu_throttle_free(t);
    stand_in_end(&s, SIGKILL);
}

Test(qemu_throttle, refusals)
{
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);
    pid_t thread = (pid_t)tell(&s, "counter", 0, 0), none = 1 << 30;
    struct qemu_throttle *t = NULL;
    struct error err = {0};

    cr_expect_eq(qemu_throttle_new(&none, 1, &t, &err), -ESRCH, "a thread that is not there: %s",
                 err.text);
    error_clear(&err);
    t = throttle(&thread, 1);
    cr_expect_eq(qemu_throttle_set(t, 100, &err), -EINVAL, "100 %%: '%s'", err.text);
    error_clear(&err);
    cr_assert_eq(ptrace(PTRACE_SEIZE, thread, NULL, NULL), 0, "%s", strerror(errno));
    cr_expect_eq(qemu_throttle_set(t, 50, &err), -EPERM, "another debugger: '%s'", err.text);
    cr_expect(strstr(err.text, "debugger"), "'%s' names no remedy", err.text);
    qemu_throttle_free(t);
    kill(s.pid, SIGKILL);
    cr_expect_eq(waitpid(thread, NULL, __WALL), thread); /* its debugger has to, or none can */
    stand_in_end(&s, 0);
}
