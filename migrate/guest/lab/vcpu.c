#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "migrate/guest/lab/vm.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"
#include "transport/base/thread.h"

#define KICK_SIGNAL SIGRTMIN

enum {
    PAUSE_TIMEOUT_S = 2,
    THROTTLE_PERIOD_MS = 10,
    RETRY_NS = 1000000, /* KVM_RUN said EAGAIN */
};

static void on_kick(int signal)
{
    (void)signal; /* its arrival interrupts KVM_RUN: that is all */
}

static struct timespec timespec_of(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
}

/* Waits for a change or the deadline; false when the deadline has passed. Lock held. */
static bool wait_until(struct lab *lab, uint64_t deadline)
{
    struct timespec at = timespec_of(deadline);

    return pthread_cond_timedwait(&lab->changed, &lab->lock, &at) != ETIMEDOUT;
}

/* Makes every vCPU leave KVM_RUN and look at the flags. Lock held. */
static void kick_all(struct lab *lab)
{
    for (unsigned i = 0; i < lab->vcpu_threads; i++) {
        if (lab->vcpu[i].parked)
            continue;
        machine_set_immediate_exit(&lab->machine->vcpu[i], true);
        pthread_kill(lab->vcpu[i].thread, KICK_SIGNAL);
    }
    pthread_cond_broadcast(&lab->changed);
}

/* The guest cannot go on: says why and lets no vCPU run any more. */
static void fail(struct lab_vcpu *v, const char *what)
{
    struct lab *lab = v->lab;
    struct kvm_regs regs = {0};
    char text[LAB_FAILURE_SIZE];

    ioctl(lab->machine->vcpu[v->index].fd, KVM_GET_REGS, &regs);
    snprintf(text, sizeof text, "vCPU %u stopped at RIP %#llx: %s", v->index,
             (unsigned long long)regs.rip, what);
    log_line(LOG_ERROR, "guest %s: %s; the guest is paused", lab->name, text);
    devices_note(&lab->devices, text);
    pthread_mutex_lock(&lab->lock);
    if (!lab->failure[0])
        memcpy(lab->failure, text, sizeof text);
    lab->running = false;
    kick_all(lab);
    pthread_mutex_unlock(&lab->lock);
}

static void sleep_in_guest(struct lab_vcpu *v, uint32_t ns)
{
    struct lab *lab = v->lab;
    uint64_t started = clock_now();

    pthread_mutex_lock(&lab->lock);
    while (lab->running && !lab->quit && wait_until(lab, started + ns))
        continue;
    pthread_mutex_unlock(&lab->lock);
    devices_slept(&lab->devices, v->index, clock_now() - started);
}

static void handle_request(struct lab_vcpu *v, enum device_request request, uint32_t value)
{
    char text[64];

    if (request == DEVICE_SLEEP) {
        sleep_in_guest(v, value);
    } else if (request == DEVICE_EXIT) {
        snprintf(text, sizeof text, "it wrote %u to its exit port", value);
        fail(v, text);
    }
}

static void handle_io(struct lab_vcpu *v, struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    unsigned size = run->io.size;

    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        uint32_t value = 0;

        if (run->io.direction == KVM_EXIT_IO_IN) {
            value = devices_in(&v->lab->devices, v->index, run->io.port, size);
            memcpy(data, &value, size);
        } else {
            memcpy(&value, data, size);
            handle_request(v, devices_out(&v->lab->devices, v->index, run->io.port, size, value),
                           value);
        }
    }
}

static void handle_internal_error(struct lab_vcpu *v, const struct kvm_run *run)
{
    char text[160];
    int at = snprintf(text, sizeof text, "KVM could not execute it (internal error %u",
                      run->internal.suberror);

    for (unsigned i = 0; i < run->internal.ndata && i < 4; i++)
        at += snprintf(text + at, sizeof text - (size_t)at, " %#llx",
                       (unsigned long long)run->internal.data[i]);
    snprintf(text + at, sizeof text - (size_t)at, ")");
    fail(v, text);
}

static void handle_exit(struct lab_vcpu *v, struct kvm_run *run)
{
    char text[64];

    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        handle_io(v, run);
        return;
    case KVM_EXIT_MMIO:
        if (!run->mmio.is_write)
            memset(run->mmio.data, 0xff, sizeof run->mmio.data);
        return;
    case KVM_EXIT_DIRTY_RING_FULL:
        dirty_ring_relieve(v->lab, v->index, true);
        return;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return;
    case KVM_EXIT_SHUTDOWN:
        fail(v, "triple fault");
        return;
    case KVM_EXIT_INTERNAL_ERROR:
        handle_internal_error(v, run);
        return;
    default:
        snprintf(text, sizeof text, "KVM exit reason %u is not handled", run->exit_reason);
        fail(v, text);
    }
}

static void run_once(struct lab_vcpu *v)
{
    struct machine_vcpu *kvm = &v->lab->machine->vcpu[v->index];
    int ret = machine_run(kvm);
    char text[96];

    if (ret == 0) {
        handle_exit(v, kvm->run);
    } else if (ret == -EAGAIN) {
        clock_sleep_until(clock_now() + RETRY_NS);
    } else if (ret != -EINTR) {
        snprintf(text, sizeof text, "KVM_RUN failed: %s", strerror(-ret));
        fail(v, text);
    }
    if (kvm->ring)
        dirty_ring_relieve(v->lab, v->index, false);
}

/* A port read or write is part of the vCPU's state only once KVM has been entered again: until then
 * a saved RIP would point at an instruction half done. */
static void complete_io(struct lab_vcpu *v)
{
    struct machine_vcpu *kvm = &v->lab->machine->vcpu[v->index];

    machine_set_immediate_exit(kvm, true);
    while (machine_run(kvm) == 0)
        handle_exit(v, kvm->run);
}

static bool may_run(const struct lab *lab)
{
    return lab->running && !lab->resting;
}

/* Parks the vCPU while it may not run; false: the thread is to end. */
static bool wait_for_turn(struct lab_vcpu *v)
{
    struct lab *lab = v->lab;
    bool completed = false, go_on;

    pthread_mutex_lock(&lab->lock);
    while (!lab->quit && !may_run(lab)) {
        if (!completed && !v->parked) {
            pthread_mutex_unlock(&lab->lock);
            complete_io(v);
            completed = true;
            pthread_mutex_lock(&lab->lock);
            continue;
        }
        if (!v->parked) {
            v->parked = true;
            pthread_cond_broadcast(&lab->changed);
        }
        pthread_cond_wait(&lab->changed, &lab->lock);
    }
    go_on = !lab->quit;
    if (go_on) {
        v->parked = false;
        if (lab->resumed_at == 0)
            lab->resumed_at = clock_now();
        machine_set_immediate_exit(&lab->machine->vcpu[v->index], false);
    }
    pthread_mutex_unlock(&lab->lock);
    return go_on;
}

static void *vcpu_main(void *argument)
{
    struct lab_vcpu *v = argument;
    sigset_t kick;

    thread_set_name("vcpu", (int)v->index);
    sigemptyset(&kick);
    sigaddset(&kick, KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
    while (wait_for_turn(v))
        run_once(v);
    return NULL;
}

int lab_start_thread(pthread_t *thread, void *(*main)(void *), void *argument, struct error *err)
{
    int ret = thread_start(thread, main, argument);

    return ret == 0 ? 0 : error_set_errno(err, -ret, "starting a thread of the guest failed");
}

int lab_start_threads(struct lab *lab, struct error *err)
{
    struct sigaction action = {.sa_handler = on_kick};
    int ret = 0;

    if (sigaction(KICK_SIGNAL, &action, NULL) < 0)
        return error_set_errno(err, errno, "installing the vCPUs' signal failed");
    for (unsigned i = 0; i < lab->vcpus && ret == 0; i++) {
        lab->vcpu[i].lab = lab;
        lab->vcpu[i].index = i;
        lab->vcpu[i].parked = true;
        ret = lab_start_thread(&lab->vcpu[i].thread, vcpu_main, &lab->vcpu[i], err);
        if (ret == 0)
            lab->vcpu_threads++;
    }
    return ret;
}

void lab_stop_threads(struct lab *lab)
{
    pthread_mutex_lock(&lab->lock);
    lab->quit = true;
    lab->running = false;
    kick_all(lab);
    pthread_mutex_unlock(&lab->lock);
    for (unsigned i = 0; i < lab->vcpu_threads; i++)
        pthread_join(lab->vcpu[i].thread, NULL);
    if (lab->has_throttle_thread)
        pthread_join(lab->throttle_thread, NULL);
}

static bool all_parked(const struct lab *lab)
{
    for (unsigned i = 0; i < lab->vcpu_threads; i++)
        if (!lab->vcpu[i].parked)
            return false;
    return true;
}

int lab_pause(struct lab *lab, struct error *err)
{
    uint64_t deadline = clock_now() + PAUSE_TIMEOUT_S * NS_PER_S;
    bool was_running;
    int ret = 0;

    pthread_mutex_lock(&lab->lock);
    was_running = lab->running;
    lab->running = false;
    kick_all(lab);
    while (!all_parked(lab) && (wait_until(lab, deadline) || clock_now() < deadline))
        continue;
    if (!all_parked(lab)) {
        lab->running = was_running;
        pthread_cond_broadcast(&lab->changed);
        ret = error_set(err, ETIMEDOUT,
                        "pausing guest %s: a vCPU did not stop within %d s; the guest goes on",
                        lab->name, PAUSE_TIMEOUT_S);
    }
    pthread_mutex_unlock(&lab->lock);
    return ret;
}

int lab_resume(struct lab *lab, struct error *err)
{
    int ret = 0;

    pthread_mutex_lock(&lab->lock);
    if (lab->failure[0]) {
        ret = error_set(err, EIO, "guest %s cannot go on: %s", lab->name, lab->failure);
    } else if (!lab->running) {
        lab->running = true;
        lab->resumed_at = 0;
        pthread_cond_broadcast(&lab->changed);
    }
    pthread_mutex_unlock(&lab->lock);
    return ret;
}

uint64_t lab_resumed_at(struct lab *lab)
{
    pthread_mutex_lock(&lab->lock);
    uint64_t at = lab->resumed_at;
    pthread_mutex_unlock(&lab->lock);
    return at;
}

bool lab_paused(struct lab *lab)
{
    bool paused;

    pthread_mutex_lock(&lab->lock);
    paused = !lab->running && all_parked(lab);
    pthread_mutex_unlock(&lab->lock);
    return paused;
}

/* Sleeps to the deadline, or until there is nothing to throttle. Lock held. */
static void throttle_sleep(struct lab *lab, uint64_t deadline)
{
    while (!lab->quit && lab->throttle > 0 && clock_now() < deadline)
        wait_until(lab, deadline);
}

static void *throttle_main(void *argument)
{
    struct lab *lab = argument;

    thread_set_name("throttle", -1);
    pthread_mutex_lock(&lab->lock);
    while (!lab->quit && lab->throttle > 0) {
        uint64_t start = clock_now(), end = start + THROTTLE_PERIOD_MS * NS_PER_MS;
        uint64_t rest = end - THROTTLE_PERIOD_MS * NS_PER_MS * lab->throttle / 100;

        throttle_sleep(lab, rest);
        lab->resting = true;
        kick_all(lab);
        throttle_sleep(lab, end);
        lab->resting = false;
        pthread_cond_broadcast(&lab->changed);
    }
    pthread_mutex_unlock(&lab->lock);
    return NULL;
}

int lab_throttle(struct lab *lab, unsigned percent, struct error *err)
{
    bool ended;
    int ret = 0;

    if (percent > 99)
        return error_set(err, EINVAL, "a throttle of %u %% is not possible; 0 to 99 are", percent);
    pthread_mutex_lock(&lab->lock);
    lab->throttle = percent;
    ended = percent == 0 && lab->has_throttle_thread;
    pthread_cond_broadcast(&lab->changed);
    pthread_mutex_unlock(&lab->lock);
    if (ended) {
        pthread_join(lab->throttle_thread, NULL);
        lab->has_throttle_thread = false;
    } else if (percent > 0 && !lab->has_throttle_thread) {
        ret = lab_start_thread(&lab->throttle_thread, throttle_main, lab, err);
        lab->has_throttle_thread = ret == 0;
    }
    return ret;
}
