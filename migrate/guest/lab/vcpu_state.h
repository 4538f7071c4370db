/* Everything KVM can save of one vCPU, as a value: read from a vCPU, put into another, compared
 * field by field. */
#ifndef MIGRATE_GUEST_LAB_VCPU_STATE_H
#define MIGRATE_GUEST_LAB_VCPU_STATE_H

#include "migrate/guest/lab/machine.h"

struct vcpu_state {
    struct kvm_regs regs;
    struct kvm_sregs2 sregs;
    struct kvm_debugregs debugregs;
    struct kvm_xcrs xcrs;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp_state;
    struct kvm_lapic_state lapic;
    uint64_t tsc;    /* at tsc_at, */
    uint64_t tsc_at; /* CLOCK_MONOTONIC of the host it was read on */
    uint32_t xsave_size;
    uint8_t xsave[CPU_MAX_XSAVE];
    uint32_t msr_count;
    struct kvm_msr_entry msrs[CPU_MAX_MSRS]; /* without the TSC */
};

/* All calls: while the vCPU does not run, from any thread. `msrs` of the model names the MSRs to
 * read. */
int vcpu_state_read(const struct machine *m, unsigned vcpu, const struct cpu_model *cpu,
                    struct vcpu_state *out, struct error *err);
/* Puts the state into a vCPU that has never run. The TSC goes on: it gets the value it has now,
 * with clock_offset_ns as in struct guest_load_context. vCPU 0 first: the others' TSCs are aligned
 * to it. */
int vcpu_state_write(const struct machine *m, unsigned vcpu, uint32_t tsc_khz,
                     const struct vcpu_state *state, int64_t clock_offset_ns, struct error *err);
/* Adds one line per register or MSR that differs. Left out is what time changes: the TSC
 * (vcpu_state_write has checked it), its deadline, the LAPIC's current count; and MSRs that are
 * optional. */
void vcpu_state_compare(unsigned vcpu, const struct vcpu_state *want, const struct vcpu_state *got,
                        struct reasons *differences);

/* The sections that a vCPU's state is kept in, apart from XSAVE and MSRs, which have lengths of
 * their own. */
struct vcpu_section {
    const char *name;
    uint16_t id;
    uint32_t offset, size; /* in struct vcpu_state */
};
const struct vcpu_section *vcpu_sections(size_t *count);

#endif
