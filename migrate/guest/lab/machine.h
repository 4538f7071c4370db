/* The KVM side of a lab guest: the virtual machine, its memory slots, its vCPUs and, if it has
 * them, their dirty rings (Documentation/virt/kvm/api.rst). It holds no threads and no device
 * models, so a guest can be carried over from one machine to another within the process. */
#ifndef MIGRATE_GUEST_LAB_MACHINE_H
#define MIGRATE_GUEST_LAB_MACHINE_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "migrate/guest/guest.h"
#include "migrate/guest/lab/cpu_model.h"

/* KVM offers the dirty log or the dirty ring, never both in one virtual machine. */
enum machine_tracking { MACHINE_DIRTY_LOG, MACHINE_DIRTY_RING };

enum { MACHINE_RING_ENTRIES = 65536, MACHINE_MAX_SLOTS = 2 };

struct machine_params {
    unsigned vcpus;
    enum machine_tracking tracking;
    const struct cpu_model *cpu;
    const struct guest_region *regions; /* 0: from address 0, 1: from LAB_HIGH_RAM_START */
    unsigned region_count;
};

struct machine_vcpu {
    int fd;
    struct kvm_run *run;
    struct kvm_dirty_gfn *ring; /* NULL without MACHINE_DIRTY_RING */
    /* Counts of entries harvested and of those armed again; written under the tracker's lock. */
    uint32_t ring_harvested, ring_reset;
};

struct machine {
    int kvm, vm;
    size_t run_size;
    enum machine_tracking tracking;
    uint32_t ring_entries; /* a power of two */
    uint32_t xsave_size;   /* bytes that KVM_GET_XSAVE2 fills */
    unsigned slot_count;
    struct kvm_userspace_memory_region slots[MACHINE_MAX_SLOTS];
    unsigned vcpus;
    struct machine_vcpu vcpu[GUEST_MAX_VCPUS];
};

/* Opens /dev/kvm and checks the API version. Returns the descriptor or -errno with a remedy. */
int machine_open_kvm(struct error *err);
/* -ENOTSUP naming the first capability that this host lacks and the guest needs. */
int machine_check_capabilities(int kvm, struct error *err);

/* Makes the machine with in-kernel interrupt controllers, its RAM in slots and its vCPUs with the
 * CPU model set. vCPU 0 is runnable, the others wait for a SIPI. Nothing runs yet. */
int machine_new(const struct machine_params *params, struct machine **out, struct error *err);
void machine_free(struct machine *m);

/* Turns write logging for all slots on or off. */
int machine_log_writes(struct machine *m, bool on, struct error *err);

/* KVM_RUN of one vCPU: 0 after an exit, -EINTR when kicked, else -errno. */
int machine_run(struct machine_vcpu *vcpu);
/* Makes the next or current KVM_RUN return, once a signal has come as well. Any thread. */
void machine_set_immediate_exit(struct machine_vcpu *vcpu, bool on);

#endif
