/* In every period each thread is seized, interrupted, left standing for its share, and detached:
 * while a thread runs it is not traced, so its signals (QEMU kicks vCPUs with one) reach it as
 * ever.
 *
 * ptrace(2) belongs to one thread of the tracer, the worker here; its end detaches what it has
 * seized, even a thread that sleeps in the kernel and has not stopped yet. */
#include "migrate/guest/qemu/throttle.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "transport/base/clock.h"
#include "transport/base/log.h"
#include "transport/base/thread.h"

enum { PERIOD_US = 10000, POLL_US = 100, END_POLLS = 20000 };

enum state {
    FREE,    /* not traced */
    PENDING, /* seized and asked to stop */
    STOPPED,
    GONE, /* has ended */
};

struct victim {
    pid_t thread;
    enum state state;
    int signal; /* it stopped while this was delivered: goes to it when it goes on */
};

struct qemu_throttle {
    pid_t process;
    pthread_t worker;
    bool running; /* the worker is there */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* under `lock` */
    unsigned percent; /* 0: the worker is to end */
    pid_t worker_id;
    bool tried;
    int failure; /* -errno: why no thread can be stopped any more */
    /* the worker's */
    unsigned count;
    struct victim victims[];
};

/* Not a thread that got the number of one that has ended. */
static bool is_there(const struct qemu_throttle *t, const struct victim *v)
{
    return syscall(SYS_tgkill, t->process, v->thread, 0) == 0 || errno != ESRCH;
}

static int seize(const struct qemu_throttle *t, struct victim *v)
{
    if (v->state != FREE)
        return 0;
    if (!is_there(t, v)) {
        v->state = GONE;
        return 0;
    }
    if (ptrace(PTRACE_SEIZE, v->thread, NULL, NULL) < 0) {
        /* EPERM also says: on its way out */
        v->state = errno == ESRCH || !is_there(t, v) ? GONE : FREE;
        return v->state == GONE ? 0 : -errno;
    }
    v->state = PENDING;
    ptrace(PTRACE_INTERRUPT, v->thread, NULL, NULL);
    return 0;
}

/* Looks whether it has stopped or ended. The stop's status stays with the kernel (WNOWAIT): a
 * signal that is being delivered is not lost should this process die now. */
static void look(struct victim *v)
{
    siginfo_t info = {0};
    int rc;

    if (v->state != PENDING && v->state != STOPPED)
        return;
    rc = waitid(P_PID, (id_t)v->thread, &info,
                WEXITED | WSTOPPED | WNOHANG | WNOWAIT | __WALL | __WNOTHREAD);
    if (rc < 0) {
        v->state = GONE;
        return;
    }
    if (info.si_pid == 0)
        return;
    if (info.si_code == CLD_TRAPPED || info.si_code == CLD_STOPPED) {
        v->state = STOPPED;
        v->signal = info.si_status >> 8 == PTRACE_EVENT_STOP ? 0 : info.si_status & 0x7f;
        return;
    }
    waitid(P_PID, (id_t)v->thread, &info, WEXITED | WNOHANG | __WALL | __WNOTHREAD);
    v->state = GONE;
}

static void look_at_all(struct qemu_throttle *t)
{
    for (unsigned i = 0; i < t->count; i++)
        look(&t->victims[i]);
}

/* Lets go on what has stopped. */
static void detach_all(struct qemu_throttle *t)
{
    look_at_all(t);
    for (unsigned i = 0; i < t->count; i++) {
        struct victim *v = &t->victims[i];
        if (v->state == STOPPED &&
            ptrace(PTRACE_DETACH, v->thread, NULL, (void *)(long)v->signal) == 0)
            v->state = FREE;
    }
}

static bool all_have_stopped(const struct qemu_throttle *t)
{
    for (unsigned i = 0; i < t->count; i++) {
        if (t->victims[i].state == PENDING)
            return false;
    }
    return true;
}

/* Until `deadline`, or until it is to end: false. */
static bool rest_until(struct qemu_throttle *t, uint64_t deadline)
{
    struct timespec until = {.tv_sec = (time_t)(deadline / NS_PER_S),
                             .tv_nsec = (long)(deadline % NS_PER_S)};

    pthread_mutex_lock(&t->lock);
    while (t->percent > 0 && pthread_cond_timedwait(&t->changed, &t->lock, &until) == 0)
        ;
    bool goes_on = t->percent > 0;
    pthread_mutex_unlock(&t->lock);
    return goes_on;
}

/* Tells qemu_throttle_set what came of the first attempt, and it or the log of a later one. */
static void report(struct qemu_throttle *t, int rc)
{
    pthread_mutex_lock(&t->lock);
    if (rc < 0 && t->tried && t->failure == 0)
        log_line(LOG_WARNING, "cannot throttle QEMU any more: %s", strerror(-rc));
    t->failure = rc;
    t->tried = true;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

static void seize_all(struct qemu_throttle *t)
{
    int rc = 0;

    for (unsigned i = 0; i < t->count; i++) {
        int one = seize(t, &t->victims[i]);
        rc = rc < 0 ? rc : one;
    }
    report(t, rc);
}

static unsigned wanted(struct qemu_throttle *t)
{
    pthread_mutex_lock(&t->lock);
    unsigned percent = t->percent;
    pthread_mutex_unlock(&t->lock);
    return percent;
}

/* The share of a period that the threads stand, from when they have stopped. A thread that is in
 * the kernel for longer stops later, and is let go on then. */
static bool stand(struct qemu_throttle *t, uint64_t share)
{
    uint64_t deadline = clock_now() + share;
    bool goes_on = true;

    while (goes_on && !all_have_stopped(t) && clock_now() < deadline) {
        goes_on = rest_until(t, clock_now() + POLL_US * NS_PER_US);
        look_at_all(t);
    }
    return goes_on && rest_until(t, deadline);
}

static void *work(void *argument)
{
    struct qemu_throttle *t = argument;
    bool goes_on = true;

    pthread_mutex_lock(&t->lock);
    t->worker_id = gettid();
    pthread_mutex_unlock(&t->lock);
    while (goes_on) {
        uint64_t share = (uint64_t)wanted(t) * PERIOD_US / 100 * NS_PER_US;
        seize_all(t);
        goes_on = stand(t, share);
        detach_all(t);
        goes_on = goes_on && rest_until(t, clock_now() + PERIOD_US * NS_PER_US - share);
    }
    detach_all(t);
    return NULL;
}

/* The process that `thread` belongs to. */
static int process_of(pid_t thread, pid_t *process)
{
    char path[64], line[128];
    int found = 0;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)thread);
    FILE *status = fopen(path, "re");
    if (!status)
        return -ESRCH;
    while (!found && fgets(line, sizeof(line), status))
        found = sscanf(line, "Tgid: %d", process) == 1;
    fclose(status);
    return found ? 0 : -ESRCH;
}

int qemu_throttle_new(const pid_t *threads, unsigned count, struct qemu_throttle **out,
                      struct error *err)
{
    struct qemu_throttle *t = calloc(1, sizeof(*t) + count * sizeof(t->victims[0]));
    pthread_condattr_t attributes;

    if (!t)
        return error_set_errno(err, ENOMEM, "cannot make a throttle");
    if (count == 0 || process_of(threads[0], &t->process) < 0) {
        free(t);
        return error_set(err, ESRCH, "cannot throttle QEMU: its vCPU threads are not there");
    }
    t->count = count;
    for (unsigned i = 0; i < count; i++)
        t->victims[i].thread = threads[i];
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    *out = t;
    return 0;
}

/* The kernel detaches what is still seized when the thread has gone, which is a little after it can
 * be joined. */
static void stop_worker(struct qemu_throttle *t)
{
    if (!t->running)
        return;
    pthread_mutex_lock(&t->lock);
    t->percent = 0;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->worker, NULL);
    for (int i = 0; i < END_POLLS && syscall(SYS_tgkill, getpid(), t->worker_id, 0) == 0; i++)
        clock_sleep_until(clock_now() + POLL_US * NS_PER_US);
    t->running = false;
    for (unsigned i = 0; i < t->count; i++)
        t->victims[i].state = FREE;
}

static int start_worker(struct qemu_throttle *t, unsigned percent, struct error *err)
{
    int rc;

    t->percent = percent;
    t->tried = false;
    t->failure = 0;
    rc = thread_start(&t->worker, work, t);
    if (rc < 0)
        return error_set_errno(err, -rc, "cannot start a thread that throttles QEMU");
    t->running = true;
    return 0;
}

/* What came of the newest attempt; waits for the first. */
static int outcome(struct qemu_throttle *t, unsigned percent)
{
    pthread_mutex_lock(&t->lock);
    t->percent = percent;
    while (!t->tried)
        pthread_cond_wait(&t->changed, &t->lock);
    int rc = t->failure;
    pthread_mutex_unlock(&t->lock);
    return rc;
}

int qemu_throttle_set(struct qemu_throttle *t, unsigned percent, struct error *err)
{
    int rc;

    if (percent > 99)
        return error_set(err, EINVAL, "cannot throttle by %u percent: 0 to 99", percent);
    if (percent == 0) {
        stop_worker(t);
        return 0;
    }
    rc = t->running ? 0 : start_worker(t, percent, err);
    if (rc < 0)
        return rc;
    rc = outcome(t, percent);
    if (rc == 0)
        return 0;
    stop_worker(t);
    return error_set_errno(err, -rc,
                           "cannot throttle QEMU's vCPU threads (process %d) by ptrace: end a "
                           "debugger that is attached to it; run wander as the user that runs "
                           "QEMU, or as root; in a container allow ptrace (CAP_SYS_PTRACE); where "
                           "kernel.yama.ptrace_scope is 2 or 3, root or nobody may",
                           (int)t->process);
}

void qemu_throttle_free(struct qemu_throttle *t)
{
    if (!t)
        return;
    stop_worker(t);
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    free(t);
}
