/* The state of a whole lab guest but its RAM, as a value. */
#ifndef MIGRATE_GUEST_LAB_VM_STATE_H
#define MIGRATE_GUEST_LAB_VM_STATE_H

#include "migrate/guest/lab/devices.h"
#include "migrate/guest/lab/vcpu_state.h"

enum { VM_IRQCHIPS = 3 }; /* two PICs, one IOAPIC */

struct vm_state {
    uint64_t clock_ns; /* KVM's guest clock at clock_at, */
    uint64_t clock_at; /* CLOCK_MONOTONIC of the host it was read on */
    struct kvm_irqchip irqchips[VM_IRQCHIPS];
    struct devices_state devices;
    unsigned vcpus;
    struct vcpu_state vcpu[];
};

struct vm_state *vm_state_new(unsigned vcpus); /* NULL: out of memory */
void vm_state_free(struct vm_state *state);

/* Reads all that KVM holds (not `devices`), while no vCPU runs. */
int vm_state_read(const struct machine *m, const struct cpu_model *cpu, struct vm_state *out,
                  struct error *err);
/* Puts it into a machine that has never run, reads everything back and compares: an error names
 * each field, register and MSR that differs. */
int vm_state_write(const struct machine *m, const struct cpu_model *cpu,
                   const struct vm_state *state, int64_t clock_offset_ns, struct error *err);

#endif
