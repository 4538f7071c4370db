#include "migrate/guest/lab/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migrate/guest/lab/abi.h"

/* Three pages below 4 GiB that Intel's KVM needs for real mode; no RAM is there. */
#define TSS_ADDRESS          0xfffbd000ul
#define IDENTITY_MAP_ADDRESS 0xfffbc000ull

static const struct {
    int capability, minimum;
    const char *name;
} needed[] = {
    {KVM_CAP_IMMEDIATE_EXIT, 1, "KVM_CAP_IMMEDIATE_EXIT (Linux 4.13)"},
    {KVM_CAP_IRQCHIP, 1, "KVM_CAP_IRQCHIP (an in-kernel interrupt controller)"},
    {KVM_CAP_SREGS2, 1, "KVM_CAP_SREGS2 (Linux 5.14)"},
    {KVM_CAP_VCPU_EVENTS, 1, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_DEBUGREGS, 1, "KVM_CAP_DEBUGREGS"},
    {KVM_CAP_XCRS, 1, "KVM_CAP_XCRS"},
    {KVM_CAP_XSAVE, 1, "KVM_CAP_XSAVE"},
    {KVM_CAP_MP_STATE, 1, "KVM_CAP_MP_STATE"},
    {KVM_CAP_GET_TSC_KHZ, 1, "KVM_CAP_GET_TSC_KHZ"},
    {KVM_CAP_ADJUST_CLOCK, 1, "KVM_CAP_ADJUST_CLOCK"},
    {KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (Linux 5.2)"},
};

int machine_open_kvm(struct error *err)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int version;

    if (kvm < 0)
        return error_set(err, errno, "opening /dev/kvm failed: %s; %s, or use --accel synthetic",
                         strerror(errno),
                         errno == EACCES ? "join the group that owns it (kvm)"
                                         : "load kvm-intel or kvm-amd and enable virtualisation");
    version = ioctl(kvm, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION) {
        close(kvm);
        return error_set(err, ENOTSUP, "/dev/kvm speaks API version %d, %d is needed", version,
                         KVM_API_VERSION);
    }
    return kvm;
}

int machine_check_capabilities(int kvm, struct error *err)
{
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        if (ioctl(kvm, KVM_CHECK_EXTENSION, needed[i].capability) < needed[i].minimum)
            return error_set(err, ENOTSUP,
                             "KVM here lacks %s; use a newer kernel, or --accel synthetic",
                             needed[i].name);
    return 0;
}

static int enable(int vm, uint32_t capability, uint64_t argument, const char *what,
                  struct error *err)
{
    struct kvm_enable_cap cap = {.cap = capability, .args = {argument}};

    if (ioctl(vm, KVM_ENABLE_CAP, &cap) < 0)
        return error_set_errno(err, errno, "enabling KVM's %s failed", what);
    return 0;
}

static int enable_ring(struct machine *m, struct error *err)
{
    static const uint32_t capabilities[] = {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING};

    for (size_t i = 0; i < sizeof capabilities / sizeof capabilities[0]; i++) {
        int most = ioctl(m->vm, KVM_CHECK_EXTENSION, capabilities[i]);

        if (most <= 0)
            continue;
        m->ring_entries = MACHINE_RING_ENTRIES;
        while (m->ring_entries * sizeof(struct kvm_dirty_gfn) > (size_t)most)
            m->ring_entries /= 2;
        return enable(m->vm, capabilities[i], m->ring_entries * sizeof(struct kvm_dirty_gfn),
                      "dirty ring", err);
    }
    return error_set(
        err, ENOTSUP,
        "KVM here has no dirty ring (Linux 5.11 and newer have); use --tracker dirty-log");
}

static int enable_tracking(struct machine *m, struct error *err)
{
    if (m->tracking == MACHINE_DIRTY_RING)
        return enable_ring(m, err);
    return enable(m->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
                  "manual dirty log protection", err);
}

static int make_vm(struct machine *m, struct error *err)
{
    uint64_t identity = IDENTITY_MAP_ADDRESS;

    do
        m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
    while (m->vm < 0 && errno == EINTR);
    if (m->vm < 0)
        return error_set_errno(err, errno, "making a KVM virtual machine failed");
    if (ioctl(m->vm, KVM_SET_TSS_ADDR, TSS_ADDRESS) < 0 ||
        ioctl(m->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0)
        return error_set_errno(err, errno, "placing KVM's real-mode pages failed");
    if (ioctl(m->vm, KVM_CREATE_IRQCHIP, 0) < 0)
        return error_set_errno(err, errno, "making the interrupt controllers failed");
    return enable_tracking(m, err);
}

static int add_slots(struct machine *m, const struct machine_params *params, struct error *err)
{
    for (unsigned i = 0; i < params->region_count; i++) {
        struct kvm_userspace_memory_region *slot = &m->slots[i];

        *slot = (struct kvm_userspace_memory_region){
            .slot = i,
            .guest_phys_addr = i == 0 ? 0 : LAB_HIGH_RAM_START,
            .memory_size = params->regions[i].size,
            .userspace_addr = (uintptr_t)params->regions[i].host,
        };
        if (ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, slot) < 0)
            return error_set_errno(err, errno, "giving %s (%llu bytes) to KVM failed",
                                   params->regions[i].name, (unsigned long long)slot->memory_size);
        m->slot_count++;
    }
    return 0;
}

static int map_ring(struct machine *m, struct machine_vcpu *vcpu, struct error *err)
{
    size_t size = m->ring_entries * sizeof *vcpu->ring;
    void *ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd,
                      KVM_DIRTY_LOG_PAGE_OFFSET * sysconf(_SC_PAGESIZE));

    if (ring == MAP_FAILED)
        return error_set_errno(err, errno, "mapping a dirty ring of %zu bytes failed", size);
    vcpu->ring = ring;
    return 0;
}

static int add_vcpu(struct machine *m, const struct cpu_model *cpu, struct error *err)
{
    unsigned index = m->vcpus;
    struct machine_vcpu *vcpu = &m->vcpu[index];
    void *run;
    int ret;

    vcpu->fd = ioctl(m->vm, KVM_CREATE_VCPU, index);
    if (vcpu->fd < 0)
        return error_set_errno(err, errno, "making vCPU %u failed", index);
    m->vcpus++;
    run = mmap(NULL, m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED)
        return error_set_errno(err, errno, "mapping vCPU %u failed", index);
    vcpu->run = run;
    ret = cpu_model_apply(cpu, vcpu->fd, index, err);
    if (ret == 0 && m->tracking == MACHINE_DIRTY_RING)
        ret = map_ring(m, vcpu, err);
    return ret;
}

static uint32_t xsave_size(int vm)
{
    int size = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

    return size > (int)sizeof(struct kvm_xsave) ? (uint32_t)size : sizeof(struct kvm_xsave);
}

static int fill(struct machine *m, const struct machine_params *params, struct error *err)
{
    int ret = machine_open_kvm(err);

    if (ret < 0)
        return ret;
    m->kvm = ret;
    m->run_size = (size_t)ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if ((ret = make_vm(m, err)) < 0 || (ret = add_slots(m, params, err)) < 0)
        return ret;
    for (unsigned i = 0; i < params->vcpus; i++)
        if ((ret = add_vcpu(m, params->cpu, err)) < 0)
            return ret;
    m->xsave_size = xsave_size(m->vm);
    if (m->xsave_size > CPU_MAX_XSAVE)
        return error_set(err, ENOTSUP,
                         "KVM's XSAVE image has %u bytes here, at most %d are supported",
                         m->xsave_size, CPU_MAX_XSAVE);
    return 0;
}

int machine_new(const struct machine_params *params, struct machine **out, struct error *err)
{
    struct machine *m = calloc(1, sizeof *m);
    int ret;

    if (!m)
        return error_set(err, ENOMEM, "out of memory for a virtual machine");
    m->kvm = m->vm = -1;
    m->tracking = params->tracking;
    ret = fill(m, params, err);
    if (ret < 0) {
        machine_free(m);
        return ret;
    }
    *out = m;
    return 0;
}

static void free_vcpu(struct machine *m, struct machine_vcpu *vcpu)
{
    if (vcpu->ring)
        munmap(vcpu->ring, m->ring_entries * sizeof *vcpu->ring);
    if (vcpu->run)
        munmap(vcpu->run, m->run_size);
    close(vcpu->fd);
}

void machine_free(struct machine *m)
{
    if (!m)
        return;
    for (unsigned i = 0; i < m->vcpus; i++)
        free_vcpu(m, &m->vcpu[i]);
    if (m->vm >= 0)
        close(m->vm);
    if (m->kvm >= 0)
        close(m->kvm);
    free(m);
}

int machine_log_writes(struct machine *m, bool on, struct error *err)
{
    for (unsigned i = 0; i < m->slot_count; i++) {
        m->slots[i].flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0;
        if (ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &m->slots[i]) < 0)
            return error_set_errno(err, errno, "turning write logging of slot %u %s failed", i,
                                   on ? "on" : "off");
    }
    return 0;
}

int machine_run(struct machine_vcpu *vcpu)
{
    return ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
}

void machine_set_immediate_exit(struct machine_vcpu *vcpu, bool on)
{
    __atomic_store_n(&vcpu->run->immediate_exit, on, __ATOMIC_SEQ_CST);
}
