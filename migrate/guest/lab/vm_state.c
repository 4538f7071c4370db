#include "migrate/guest/lab/vm_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "transport/base/clock.h"

static const char *const irqchip_names[VM_IRQCHIPS] = {"PIC (master)", "PIC (slave)", "IOAPIC"};

struct vm_state *vm_state_new(unsigned vcpus)
{
    struct vm_state *state = calloc(1, sizeof *state + vcpus * sizeof state->vcpu[0]);

    if (state)
        state->vcpus = vcpus;
    return state;
}

void vm_state_free(struct vm_state *state)
{
    free(state);
}

int vm_state_read(const struct machine *m, const struct cpu_model *cpu, struct vm_state *out,
                  struct error *err)
{
    struct kvm_clock_data clock = {0};
    int ret = 0;

    for (unsigned i = 0; i < VM_IRQCHIPS; i++) {
        out->irqchips[i].chip_id = i;
        if (ioctl(m->vm, KVM_GET_IRQCHIP, &out->irqchips[i]) < 0)
            return error_set_errno(err, errno, "reading the %s failed", irqchip_names[i]);
    }
    if (ioctl(m->vm, KVM_GET_CLOCK, &clock) < 0)
        return error_set_errno(err, errno, "reading KVM's clock failed");
    out->clock_ns = clock.clock;
    out->clock_at = clock_now();
    for (unsigned i = 0; i < m->vcpus && ret == 0; i++)
        ret = vcpu_state_read(m, i, cpu, &out->vcpu[i], err);
    return ret;
}

static int write_clock(const struct machine *m, const struct vm_state *state,
                       int64_t clock_offset_ns, struct error *err)
{
    uint64_t now = clock_now() - (uint64_t)clock_offset_ns;
    uint64_t elapsed = now > state->clock_at ? now - state->clock_at : 0;
    struct kvm_clock_data clock = {.clock = state->clock_ns + elapsed};

    if (ioctl(m->vm, KVM_SET_CLOCK, &clock) < 0)
        return error_set_errno(err, errno, "setting KVM's clock failed");
    return 0;
}

static int write_chips(const struct machine *m, const struct vm_state *state, struct error *err)
{
    for (unsigned i = 0; i < VM_IRQCHIPS; i++)
        if (ioctl(m->vm, KVM_SET_IRQCHIP, &state->irqchips[i]) < 0)
            return error_set_errno(err, errno, "KVM refused the saved %s", irqchip_names[i]);
    return 0;
}

static void compare_chips(const struct vm_state *want, const struct vm_state *got,
                          struct reasons *differences)
{
    for (unsigned i = 0; i < VM_IRQCHIPS; i++)
        for (size_t at = 0; at < sizeof want->irqchips[i].chip; at++) {
            uint8_t a = (uint8_t)want->irqchips[i].chip.dummy[at];
            uint8_t b = (uint8_t)got->irqchips[i].chip.dummy[at];

            if (a != b)
                reasons_add(differences, "%s byte %zu: saved %#x, read back %#x", irqchip_names[i],
                            at, a, b);
        }
}

/* Reads everything back: what KVM took without a word and did not keep shows here, before the guest
 * runs. */
static int verify(const struct machine *m, const struct cpu_model *cpu, const struct vm_state *want,
                  struct error *err)
{
    struct vm_state *got = vm_state_new(want->vcpus);
    struct reasons differences = {0};
    int ret;

    if (!got)
        return error_set(err, ENOMEM, "out of memory for reading the state back");
    ret = vm_state_read(m, cpu, got, err);
    if (ret < 0)
        goto free_state;
    compare_chips(want, got, &differences);
    for (unsigned i = 0; i < want->vcpus; i++)
        vcpu_state_compare(i, &want->vcpu[i], &got->vcpu[i], &differences);
    if (differences.count > 0)
        ret = error_set(err, EINVAL, "%u parts of the state were not kept by KVM: %s",
                        differences.count, differences.text ? differences.text : "");
    reasons_free(&differences);
free_state:
    vm_state_free(got);
    return ret;
}

int vm_state_write(const struct machine *m, const struct cpu_model *cpu,
                   const struct vm_state *state, int64_t clock_offset_ns, struct error *err)
{
    int ret = write_chips(m, state, err);

    for (unsigned i = 0; i < m->vcpus && ret == 0; i++)
        ret = vcpu_state_write(m, i, cpu->tsc_khz, &state->vcpu[i], clock_offset_ns, err);
    if (ret == 0)
        ret = write_clock(m, state, clock_offset_ns, err);
    return ret < 0 ? ret : verify(m, cpu, state, err);
}
