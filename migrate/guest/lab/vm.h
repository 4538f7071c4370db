/* A lab guest as one object: what its files share. Lock order: tracker_lock before lock before
 * devices.lock. */
#ifndef MIGRATE_GUEST_LAB_VM_H
#define MIGRATE_GUEST_LAB_VM_H

#include <pthread.h>
#include <stdbool.h>

#include "migrate/guest/lab/devices.h"
#include "migrate/guest/lab/lab.h"
#include "migrate/guest/lab/machine.h"
#include "migrate/guest/tracker.h"

enum { LAB_MAX_REGIONS = 2, LAB_FAILURE_SIZE = 256 };

struct lab;
struct dirty_ring;

struct lab_vcpu {
    struct lab *lab;
    unsigned index;
    pthread_t thread;
    bool parked; /* guarded by lab.lock: executes nothing, has no I/O in flight */
};

struct lab {
    struct guest guest;
    /* Fixed after creation. */
    char name[GUEST_NAME_SIZE];
    uint64_t memory_bytes;
    unsigned vcpus;
    struct workload workload;
    struct cpu_model cpu;
    unsigned region_count;
    struct guest_region regions[LAB_MAX_REGIONS];

    struct devices devices;

    pthread_mutex_t lock;    /* guards what follows, up to tracker_lock */
    pthread_cond_t changed;  /* any of it changed; CLOCK_MONOTONIC */
    struct machine *machine; /* replaced only while every vCPU is parked */
    bool running;            /* vCPUs may execute */
    uint64_t resumed_at;     /* when the first of them did, since the newest resume; 0: none yet */
    bool resting;            /* the throttle's part of the time: they may not, for now */
    bool quit;
    char failure[LAB_FAILURE_SIZE]; /* why the guest cannot go on; "" when it can */
    unsigned throttle;              /* percent of the time taken away */
    bool has_throttle_thread;
    pthread_t throttle_thread;
    unsigned vcpu_threads; /* started so far */
    struct lab_vcpu vcpu[GUEST_MAX_VCPUS];

    pthread_mutex_t tracker_lock; /* guards the pointer and the harvesting of dirty rings */
    struct tracker *tracker;      /* the one that is open, or NULL */
    struct dirty_ring *ring;      /* the same, if it is a ring's */
};

/* vm.c: making and ending. RAM mapped, nothing in it; vCPU threads there, parked. */
int lab_new(const struct lab_config *config, const struct cpu_model *cpu, struct lab **out,
            struct error *err);
void lab_free(struct lab *lab);
/* Goes on in a new machine with the other kind of tracking, state carried over and compared. The
 * vCPUs rest for some milliseconds. On an error the old machine goes on. */
int lab_change_tracking(struct lab *lab, enum machine_tracking tracking, struct error *err);

/* vcpu.c: threads. */
int lab_start_threads(struct lab *lab, struct error *err);
void lab_stop_threads(struct lab *lab); /* ends and joins them */
int lab_pause(struct lab *lab, struct error *err);
int lab_resume(struct lab *lab, struct error *err);
/* When the first vCPU ran after the newest resume, clock_now; 0: none has. Any thread. */
uint64_t lab_resumed_at(struct lab *lab);
bool lab_paused(struct lab *lab);
int lab_throttle(struct lab *lab, unsigned percent, struct error *err);

/* boot.c: puts a PVH image, its boot information and vCPU 0's first registers in place. */
int lab_boot(struct lab *lab, const void *image, size_t size, struct error *err);
/* lab.c: as lab_guest_new, with an image of the caller's. */
int lab_guest_boot(const struct lab_config *config, const void *image, size_t size,
                   struct guest **out, struct error *err);
/* Host address of guest-physical [address, address+length), or NULL if that is not RAM. vm.c */
void *lab_memory(struct lab *lab, uint64_t address, uint64_t length);

/* Starts a thread that takes no signals but the vCPUs' kick: all others belong to the program.
 * vcpu.c */
int lab_start_thread(pthread_t *thread, void *(*main)(void *), void *argument, struct error *err);

int dirty_log_new(struct lab *lab, struct tracker **out, struct error *err);
int dirty_ring_new(struct lab *lab, struct tracker **out, struct error *err);
/* By a vCPU's thread after each exit: empties the rings when its own is filling; `full`: KVM says
 * that it is. */
void dirty_ring_relieve(struct lab *lab, unsigned vcpu, bool full);

#endif
