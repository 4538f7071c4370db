/* The processor that a lab guest sees: fixed by the host it was started on, carried along by every
 * move, checked against each host it comes to. */
#ifndef MIGRATE_GUEST_LAB_CPU_MODEL_H
#define MIGRATE_GUEST_LAB_CPU_MODEL_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "migrate/guest/guest.h"
#include "migrate/guest/workload.h"

enum { CPU_MAX_CPUID = 256, CPU_MAX_MSRS = 512, CPU_MAX_XSAVE = 16384 };

struct cpu_model {
    uint32_t tsc_khz;
    bool tsc_scaling;    /* a host: can run a guest at another TSC frequency than its own */
    uint64_t xcr0;       /* extended states that may be enabled (CPUID leaf 0xd) */
    uint32_t xsave_size; /* bytes of KVM's XSAVE image */
    uint32_t cpuid_count;
    struct kvm_cpuid_entry2 cpuid[CPU_MAX_CPUID];
    uint32_t msr_count;
    uint32_t msrs[CPU_MAX_MSRS]; /* those KVM lists: KVM_GET_MSR_INDEX_LIST */
};

/* What this host offers. Makes a virtual machine for a moment. */
int cpu_model_host(struct cpu_model *out, struct error *err);

/* Adds a reason, with the remedy, for everything `guest` has and `host` lacks. */
void cpu_model_check(const struct cpu_model *guest, const struct cpu_model *host,
                     struct reasons *reasons);

/* Sets the model for vCPU `index`: CPUID with its own APIC id, and the TSC frequency where it can
 * be set. */
int cpu_model_apply(const struct cpu_model *model, int vcpu_fd, unsigned index, struct error *err);

/* The platform part of a description: model and workload, versioned, little-endian. *bytes is the
 * caller's. */
int cpu_model_encode(const struct cpu_model *model, const struct workload *workload,
                     uint8_t **bytes, uint32_t *size, struct error *err);
/* -EBADMSG for bytes that are no platform part of this version. */
int cpu_model_decode(const void *bytes, size_t size, struct cpu_model *model,
                     struct workload *workload, struct error *err);

/* True for the few MSRs that a host may refuse to set: they tell of the host's hardware, no guest
 * depends on them: the microcode revision and the count of SMIs. */
bool cpu_model_msr_optional(uint32_t index);

#endif
