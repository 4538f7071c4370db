#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migrate/guest/lab/lab.h"
#include "migrate/guest/lab/machine.h"

enum { PROBE_SIZE = 1 << 20, PROBE_CODE = 0x1000, PROBE_PORT = 0x10, PROBE_VALUE = 0x57 };

static int start_real_mode(struct machine *m, struct error *err)
{
    struct kvm_regs regs = {.rip = PROBE_CODE, .rflags = 2};
    struct kvm_sregs sregs;

    if (ioctl(m->vcpu[0].fd, KVM_GET_SREGS, &sregs) < 0)
        return error_set_errno(err, errno, "reading a vCPU's registers failed");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    if (ioctl(m->vcpu[0].fd, KVM_SET_SREGS, &sregs) < 0 ||
        ioctl(m->vcpu[0].fd, KVM_SET_REGS, &regs) < 0)
        return error_set_errno(err, errno, "setting a vCPU's registers failed");
    return 0;
}

/* Some machines have a /dev/kvm that makes virtual machines and runs nothing in them. */
static int execute(struct machine *m, struct error *err)
{
    const struct kvm_run *run = m->vcpu[0].run;
    int ret = start_real_mode(m, err);

    if (ret < 0)
        return ret;
    do
        ret = machine_run(&m->vcpu[0]);
    while (ret == -EINTR || ret == -EAGAIN);
    if (ret < 0)
        return error_set_errno(err, -ret,
                               "running a first instruction under KVM failed; use --accel "
                               "synthetic");
    if (run->exit_reason != KVM_EXIT_IO || run->io.port != PROBE_PORT ||
        *((const uint8_t *)run + run->io.data_offset) != PROBE_VALUE)
        return error_set(
            err, ENOTSUP,
            "KVM here does not execute guest code (exit reason %u); use --accel synthetic",
            run->exit_reason);
    return 0;
}

static int probe_machine(const struct cpu_model *cpu, struct error *err)
{
    static const uint8_t code[] = {0xb0, PROBE_VALUE, 0xe6, PROBE_PORT, 0xf4};
    void *memory =
        mmap(NULL, PROBE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct guest_region region = {.name = "probe", .size = PROBE_SIZE, .host = memory};
    struct machine_params params = {.vcpus = 1, .cpu = cpu, .regions = &region, .region_count = 1};
    struct machine *m;
    int ret;

    if (memory == MAP_FAILED)
        return error_set_errno(err, errno, "mapping memory for a probe of KVM failed");
    memcpy((uint8_t *)memory + PROBE_CODE, code, sizeof code);
    ret = machine_new(&params, &m, err);
    if (ret < 0)
        goto unmap_memory;
    ret = execute(m, err);
    machine_free(m);
unmap_memory:
    munmap(memory, PROBE_SIZE);
    return ret;
}

int lab_probe(struct error *err)
{
    struct cpu_model *cpu = calloc(1, sizeof *cpu);
    int ret;

    if (!cpu)
        return error_set(err, ENOMEM, "out of memory for a CPU model");
    ret = cpu_model_host(cpu, err);
    if (ret == 0)
        ret = probe_machine(cpu, err);
    free(cpu);
    return ret;
}
