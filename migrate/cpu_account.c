#include "migrate/cpu_account.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "transport/base/clock.h"

/* How names begin. QEMU names vCPU threads where it was asked to (-name debug-threads=on). */
static const struct {
    const char *name;
    enum cpu_role role;
} roles[] = {
    {"vcpu ", CPU_GUEST},         {"CPU ", CPU_GUEST},       {"ALL CPUs/", CPU_GUEST},
    {"lane", CPU_LANES},          {"migration", CPU_ENGINE}, {"incoming", CPU_ENGINE},
    {"channel", CPU_ENGINE},      {"tracker", CPU_ENGINE},   {"prefault", CPU_ENGINE},
    {"session-port", CPU_ENGINE},
};

enum cpu_role cpu_role_of(const char *name)
{
    for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++)
        if (strncmp(name, roles[i].name, strlen(roles[i].name)) == 0)
            return roles[i].role;
    return CPU_OTHER;
}

/* Of one line; false when the thread is gone. */
static bool read_line(pid_t process, pid_t thread, const char *name, char *out, size_t size)
{
    char path[96];

    snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", process, thread, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = file < 0 ? -1 : read(file, out, size - 1);
    if (file >= 0)
        close(file);
    out[got > 0 ? got : 0] = '\0';
    return got > 0;
}

/* The clock of a thread of this process by its number, as clock_gettime(2) builds it for
 * pthread_getcpuclockid(3), which knows no threads by number. */
static bool own_thread_cpu(pid_t thread, uint64_t *ns)
{
    clockid_t clock = (clockid_t)(~(unsigned)thread << 3 | 6);
    struct timespec spent;

    if (clock_gettime(clock, &spent))
        return false;
    *ns = (uint64_t)spent.tv_sec * NS_PER_S + (uint64_t)spent.tv_nsec;
    return true;
}

/* The first field of schedstat: ns on a CPU. */
static bool thread_cpu(pid_t process, pid_t thread, uint64_t *ns)
{
    char line[96];

    if (process == getpid())
        return own_thread_cpu(thread, ns);
    return read_line(process, thread, "schedstat", line, sizeof(line)) &&
           sscanf(line, "%" SCNu64, ns) == 1;
}

static struct cpu_thread *find_thread(struct cpu_account *a, pid_t id)
{
    for (unsigned i = 0; i < a->count; i++)
        if (a->threads[i].id == id)
            return &a->threads[i];
    if (a->count == CPU_MAX_THREADS)
        return NULL;
    a->threads[a->count] = (struct cpu_thread){.id = id};
    return &a->threads[a->count++];
}

static void note(struct cpu_thread *thread, uint64_t ns)
{
    if (ns < thread->now) { /* another thread has got the number of one that ended */
        thread->spent += thread->now - thread->before;
        thread->before = 0;
    }
    thread->now = ns;
}

static void look_at(struct cpu_account *a, pid_t id)
{
    char name[32];
    uint64_t ns;

    if (!read_line(a->process, id, "comm", name, sizeof(name)) || !thread_cpu(a->process, id, &ns))
        return;
    struct cpu_thread *thread = find_thread(a, id);
    if (!thread)
        return;
    note(thread, ns);
    thread->role = cpu_role_of(name);
}

void cpu_account_look(struct cpu_account *a)
{
    char path[64];
    struct dirent *entry;

    snprintf(path, sizeof(path), "/proc/%d/task", a->process);
    DIR *tasks = a->process ? opendir(path) : NULL;
    while (tasks && (entry = readdir(tasks))) {
        pid_t id = atoi(entry->d_name);
        if (id > 0)
            look_at(a, id);
    }
    if (tasks)
        closedir(tasks);
}

void cpu_account_begin(struct cpu_account *a, pid_t process)
{
    a->process = process;
    a->count = 0;
    cpu_account_look(a);
    for (unsigned i = 0; i < a->count; i++)
        a->threads[i].before = a->threads[i].now;
}

uint64_t cpu_account_spent(const struct cpu_account *a, enum cpu_role role)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < a->count; i++) {
        const struct cpu_thread *thread = &a->threads[i];
        if (thread->role == role)
            sum += thread->spent + thread->now - thread->before;
    }
    return sum;
}

static bool has_role(const struct cpu_account *a, enum cpu_role role)
{
    for (unsigned i = 0; i < a->count; i++)
        if (a->threads[i].role == role)
            return true;
    return false;
}

void cpu_watch_begin(struct cpu_watch *w)
{
    w->hypervisor.process = 0;
    w->process_before = clock_process_cpu();
    cpu_account_begin(&w->own, getpid());
}

void cpu_watch_hypervisor(struct cpu_watch *w, pid_t process, bool fresh)
{
    if (!fresh)
        cpu_account_begin(&w->hypervisor, process);
    w->hypervisor.process = process;
}

void cpu_watch_look(struct cpu_watch *w)
{
    cpu_account_look(&w->own);
    cpu_account_look(&w->hypervisor);
}

void cpu_watch_glance(struct cpu_watch *w)
{
    uint64_t ns;

    for (unsigned i = 0; i < w->own.count; i++)
        if (own_thread_cpu(w->own.threads[i].id, &ns))
            note(&w->own.threads[i], ns);
}

static uint64_t guest_ns(const struct cpu_watch *w)
{
    if (!w->hypervisor.process)
        return cpu_account_spent(&w->own, CPU_GUEST);
    return has_role(&w->hypervisor, CPU_GUEST) ? cpu_account_spent(&w->hypervisor, CPU_GUEST)
                                               : MEASUREMENT_UNKNOWN;
}

void cpu_watch_result(struct cpu_watch *w, uint64_t *process_ns, struct cpu_measurement *out)
{
    cpu_watch_look(w);
    *process_ns = clock_process_cpu() - w->process_before;
    uint64_t engine = cpu_account_spent(&w->own, CPU_ENGINE);
    uint64_t lanes = cpu_account_spent(&w->own, CPU_LANES);
    uint64_t named = engine + lanes + cpu_account_spent(&w->own, CPU_GUEST);

    *out = (struct cpu_measurement){
        .known = true,
        .guest_ns = guest_ns(w),
        .engine_ns = engine,
        .lanes_ns = lanes,
        .other_ns = *process_ns > named ? *process_ns - named : 0,
    };
}
