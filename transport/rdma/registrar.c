#include "transport/rdma/registrar.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "transport/base/clock.h"
#include "transport/base/options.h"
#include "transport/base/thread.h"

void registrar_init(struct registrar *r)
{
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->added, NULL);
    r->last = &r->first;
}

void registrar_destroy(struct registrar *r)
{
    registrar_stop(r);
    pthread_cond_destroy(&r->added);
    pthread_mutex_destroy(&r->lock);
}

static struct registrar_job *next_job(struct registrar *r)
{
    struct registrar_job *job;

    pthread_mutex_lock(&r->lock);
    while (!r->first && !r->stopping)
        pthread_cond_wait(&r->added, &r->lock);
    job = r->stopping ? NULL : r->first;
    if (job) {
        r->first = job->next;
        if (!r->first)
            r->last = &r->first;
    }
    pthread_mutex_unlock(&r->lock);
    return job;
}

static void *registrar_main(void *context)
{
    struct registrar *r = context;
    struct registrar_job *job;

    thread_set_name("lane-register", -1);
    while ((job = next_job(r)))
        job->run(job);
    return NULL;
}

unsigned registrar_threads(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    return cpus < 1 ? 1 : cpus < REGISTRAR_MAX_THREADS ? (unsigned)cpus : REGISTRAR_MAX_THREADS;
}

int registrar_start(struct registrar *r, unsigned threads, struct error *err)
{
    int result = 0;

    while (!result && r->running < threads) {
        result = thread_start(&r->threads[r->running], registrar_main, r);
        r->running += !result;
    }
    return result ? error_set_errno(err, -result, "cannot start a thread to register memory") : 0;
}

void registrar_add(struct registrar *r, struct registrar_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&r->lock);
    *r->last = job;
    r->last = &job->next;
    pthread_cond_signal(&r->added);
    pthread_mutex_unlock(&r->lock);
}

void registrar_stop(struct registrar *r)
{
    pthread_mutex_lock(&r->lock);
    r->stopping = true;
    pthread_cond_broadcast(&r->added);
    pthread_mutex_unlock(&r->lock);
    while (r->running)
        pthread_join(r->threads[--r->running], NULL);
}

static void count_pinned(struct registrar *r, uint64_t bytes)
{
    uint64_t pinned = atomic_fetch_add(&r->pinned_bytes, bytes) + bytes;
    uint64_t peak = atomic_load(&r->pinned_peak);

    while (pinned > peak && !atomic_compare_exchange_weak(&r->pinned_peak, &peak, pinned))
        ;
}

static int refuse(int code, size_t length, struct ibv_pd *pd, struct error *err)
{
    const char *device = ibv_get_device_name(pd->context->device);
    struct rlimit limit = {0};
    char size[32], locked[32];

    format_size(length, size, sizeof size);
    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (code != ENOMEM || limit.rlim_cur == RLIM_INFINITY)
        return error_set_errno(err, code, "cannot register %s of memory on %s", size, device);
    format_size(limit.rlim_cur, locked, sizeof locked);
    return error_set(err, ENOMEM,
                     "cannot register %s of memory on %s: this process may lock %s; raise that "
                     "(ulimit -l unlimited, LimitMEMLOCK=infinity in a unit), or use "
                     "--rdma-register chunk with a smaller --rdma-pin-limit",
                     size, device, locked);
}

struct ibv_mr *registrar_register(struct registrar *r, struct ibv_pd *pd, void *bytes,
                                  size_t length, int access, struct error *err)
{
    uint64_t begun = clock_now();
    struct ibv_mr *mr = ibv_reg_mr(pd, bytes, length, access);

    if (!mr) {
        refuse(errno ? errno : ENOMEM, length, pd, err);
        return NULL;
    }
    r->register_ns += clock_now() - begun;
    r->registrations++;
    r->registered_bytes += length;
    count_pinned(r, length);
    return mr;
}

void registrar_deregister(struct registrar *r, struct ibv_mr *mr)
{
    size_t length;

    if (!mr)
        return;
    length = mr->length;
    if (ibv_dereg_mr(mr) == 0)
        atomic_fetch_sub(&r->pinned_bytes, length);
}
