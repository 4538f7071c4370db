/* Threads that register and deregister memory, so that no lane has to wait for it: pinning 64 MiB
 * can take as long as sending it. */
#ifndef TRANSPORT_RDMA_REGISTRAR_H
#define TRANSPORT_RDMA_REGISTRAR_H

#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "transport/base/error.h"

enum { REGISTRAR_MAX_THREADS = 4 };

/* One thing to do; embedded in what it is about. Carried out once, in order of adding (with several
 * threads: begun in that order). */
struct registrar_job {
    struct registrar_job *next;
    void (*run)(struct registrar_job *job);
};

struct registrar {
    pthread_mutex_t lock;
    pthread_cond_t added;
    struct registrar_job *first, **last;
    bool stopping;
    unsigned running;
    pthread_t threads[REGISTRAR_MAX_THREADS];
    /* of all registrations through registrar_register */
    atomic_uint_fast64_t registrations, registered_bytes, register_ns, pinned_bytes, pinned_peak;
};

void registrar_init(struct registrar *r);
int registrar_start(struct registrar *r, unsigned threads, struct error *err);
unsigned registrar_threads(void); /* as many as are worth it on this machine */
void registrar_add(struct registrar *r, struct registrar_job *job); /* any thread */
/* Waits for the job under way and joins; jobs not begun are forgotten. Idempotent. */
void registrar_stop(struct registrar *r);
void registrar_destroy(struct registrar *r);

/* ibv_reg_mr and ibv_dereg_mr, counted. Any thread. `access`: enum ibv_access_flags. NULL with a
 * text that names the limit on locked memory when that is what stands in the way. */
struct ibv_mr *registrar_register(struct registrar *r, struct ibv_pd *pd, void *bytes,
                                  size_t length, int access, struct error *err);
void registrar_deregister(struct registrar *r, struct ibv_mr *mr); /* NULL is fine */

#endif
