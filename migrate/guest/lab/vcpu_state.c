#include "migrate/guest/lab/vcpu_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "migrate/guest/lab/state_format.h"
#include "transport/base/clock.h"

#define MSR_TSC               0x10u
#define MSR_TSC_DEADLINE      0x6e0u
#define MSR_HYPERV_RUNTIME    0x40000010u
#define MSR_HYPERV_TIME_COUNT 0x40000020u

enum {
    LAPIC_CURRENT_COUNT = 0x390,
    TSC_TRIES = 8,
    TSC_SLACK_MS = 20,
};

/* A field to compare and name; `count` of them in a row. */
struct field {
    const char *name;
    uint16_t offset, size, count;
};

#define FIELD(type, member)                                                                        \
    {                                                                                              \
#member, offsetof(type, member), sizeof(((type *)0)->member), 1                            \
    }
#define ARRAY(type, member, element, n)                                                            \
    {                                                                                              \
#member, offsetof(type, member), sizeof(element), n                                        \
    }
#define SEGMENT(member)                                                                            \
    FIELD(struct kvm_sregs2, member.base), FIELD(struct kvm_sregs2, member.limit),                 \
        FIELD(struct kvm_sregs2, member.selector), FIELD(struct kvm_sregs2, member.type),          \
        FIELD(struct kvm_sregs2, member.present), FIELD(struct kvm_sregs2, member.dpl),            \
        FIELD(struct kvm_sregs2, member.db), FIELD(struct kvm_sregs2, member.s),                   \
        FIELD(struct kvm_sregs2, member.l), FIELD(struct kvm_sregs2, member.g),                    \
        FIELD(struct kvm_sregs2, member.avl), FIELD(struct kvm_sregs2, member.unusable)

static const struct field regs_fields[] = {
    FIELD(struct kvm_regs, rax),
    FIELD(struct kvm_regs, rbx),
    FIELD(struct kvm_regs, rcx),
    FIELD(struct kvm_regs, rdx),
    FIELD(struct kvm_regs, rsi),
    FIELD(struct kvm_regs, rdi),
    FIELD(struct kvm_regs, rsp),
    FIELD(struct kvm_regs, rbp),
    FIELD(struct kvm_regs, r8),
    FIELD(struct kvm_regs, r9),
    FIELD(struct kvm_regs, r10),
    FIELD(struct kvm_regs, r11),
    FIELD(struct kvm_regs, r12),
    FIELD(struct kvm_regs, r13),
    FIELD(struct kvm_regs, r14),
    FIELD(struct kvm_regs, r15),
    FIELD(struct kvm_regs, rip),
    FIELD(struct kvm_regs, rflags),
    {0},
};

static const struct field sregs_fields[] = {
    SEGMENT(cs),
    SEGMENT(ds),
    SEGMENT(es),
    SEGMENT(fs),
    SEGMENT(gs),
    SEGMENT(ss),
    SEGMENT(tr),
    SEGMENT(ldt),
    FIELD(struct kvm_sregs2, gdt.base),
    FIELD(struct kvm_sregs2, gdt.limit),
    FIELD(struct kvm_sregs2, idt.base),
    FIELD(struct kvm_sregs2, idt.limit),
    FIELD(struct kvm_sregs2, cr0),
    FIELD(struct kvm_sregs2, cr2),
    FIELD(struct kvm_sregs2, cr3),
    FIELD(struct kvm_sregs2, cr4),
    FIELD(struct kvm_sregs2, cr8),
    FIELD(struct kvm_sregs2, efer),
    FIELD(struct kvm_sregs2, apic_base),
    FIELD(struct kvm_sregs2, flags),
    ARRAY(struct kvm_sregs2, pdptrs, uint64_t, 4),
    {0},
};

static const struct field debugregs_fields[] = {
    ARRAY(struct kvm_debugregs, db, uint64_t, 4),
    FIELD(struct kvm_debugregs, dr6),
    FIELD(struct kvm_debugregs, dr7),
    {0},
};

static const struct field xcrs_fields[] = {
    FIELD(struct kvm_xcrs, nr_xcrs),
    FIELD(struct kvm_xcrs, xcrs[0].xcr),
    FIELD(struct kvm_xcrs, xcrs[0].value),
    {0},
};

static const struct field events_fields[] = {
    FIELD(struct kvm_vcpu_events, exception.injected),
    FIELD(struct kvm_vcpu_events, exception.nr),
    FIELD(struct kvm_vcpu_events, exception.has_error_code),
    FIELD(struct kvm_vcpu_events, exception.pending),
    FIELD(struct kvm_vcpu_events, exception.error_code),
    FIELD(struct kvm_vcpu_events, interrupt.injected),
    FIELD(struct kvm_vcpu_events, interrupt.nr),
    FIELD(struct kvm_vcpu_events, interrupt.soft),
    FIELD(struct kvm_vcpu_events, interrupt.shadow),
    FIELD(struct kvm_vcpu_events, nmi.injected),
    FIELD(struct kvm_vcpu_events, nmi.pending),
    FIELD(struct kvm_vcpu_events, nmi.masked),
    FIELD(struct kvm_vcpu_events, smi.smm),
    FIELD(struct kvm_vcpu_events, smi.pending),
    FIELD(struct kvm_vcpu_events, smi.smm_inside_nmi),
    FIELD(struct kvm_vcpu_events, smi.latched_init),
    {0},
};

static const struct field mp_state_fields[] = {FIELD(struct kvm_mp_state, mp_state), {0}};

static const struct field lapic_fields[] = {
    {"lapic", 0, 16, LAPIC_CURRENT_COUNT / 16},
    {"lapic (from 0x3a0)", LAPIC_CURRENT_COUNT + 16, 16,
     (KVM_APIC_REG_SIZE - LAPIC_CURRENT_COUNT) / 16 - 1},
    {0},
};

/* How each section is read, written and compared. */
struct access {
    unsigned long get, set;
    const struct field *fields;
};

#define SECTION(ident, member)                                                                     \
    {                                                                                              \
#member, ident, offsetof(struct vcpu_state, member),                                       \
            sizeof(((struct vcpu_state *)0)->member)                                               \
    }

enum { REGS, SREGS, XCRS, DEBUGREGS, LAPIC, EVENTS, MP_STATE, SECTION_COUNT };

static const struct vcpu_section sections[SECTION_COUNT] = {
    [REGS] = SECTION(STATE_REGS, regs),
    [SREGS] = SECTION(STATE_SREGS, sregs),
    [XCRS] = SECTION(STATE_XCRS, xcrs),
    [DEBUGREGS] = SECTION(STATE_DEBUGREGS, debugregs),
    [LAPIC] = SECTION(STATE_LAPIC, lapic),
    [EVENTS] = SECTION(STATE_EVENTS, events),
    [MP_STATE] = SECTION(STATE_MP_STATE, mp_state),
};

static const struct access accesses[SECTION_COUNT] = {
    [REGS] = {KVM_GET_REGS, KVM_SET_REGS, regs_fields},
    [SREGS] = {KVM_GET_SREGS2, KVM_SET_SREGS2, sregs_fields},
    [XCRS] = {KVM_GET_XCRS, KVM_SET_XCRS, xcrs_fields},
    [DEBUGREGS] = {KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, debugregs_fields},
    [LAPIC] = {KVM_GET_LAPIC, KVM_SET_LAPIC, lapic_fields},
    [EVENTS] = {KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, events_fields},
    [MP_STATE] = {KVM_GET_MP_STATE, KVM_SET_MP_STATE, mp_state_fields},
};

const struct vcpu_section *vcpu_sections(size_t *count)
{
    *count = SECTION_COUNT;
    return sections;
}

static int read_msr(int fd, uint32_t index, uint64_t *value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msr = {.head.nmsrs = 1, .entry.index = index};

    if (ioctl(fd, KVM_GET_MSRS, &msr) != 1)
        return -EINVAL;
    *value = msr.entry.data;
    return 0;
}

static int write_msr(int fd, uint32_t index, uint64_t value)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } msr = {.head.nmsrs = 1, .entry = {.index = index, .data = value}};

    return ioctl(fd, KVM_SET_MSRS, &msr) == 1 ? 0 : -EINVAL;
}

/* KVM lists MSRs that it then cannot read for this CPU model: those have no state. */
static int read_msrs(int fd, const struct cpu_model *cpu, struct vcpu_state *out, struct error *err)
{
    out->msr_count = 0;
    for (uint32_t i = 0; i < cpu->msr_count; i++) {
        struct kvm_msr_entry *msr = &out->msrs[out->msr_count];
        uint64_t value;

        if (cpu->msrs[i] == MSR_TSC || read_msr(fd, cpu->msrs[i], &value) < 0)
            continue;
        *msr = (struct kvm_msr_entry){.index = cpu->msrs[i], .data = value};
        out->msr_count++;
    }
    if (read_msr(fd, MSR_TSC, &out->tsc) < 0)
        return error_set(err, EIO, "reading the TSC failed");
    out->tsc_at = clock_now();
    return 0;
}

static int read_xsave(const struct machine *m, int fd, struct vcpu_state *out, struct error *err)
{
    bool large = m->xsave_size > sizeof(struct kvm_xsave);

    memset(out->xsave, 0, sizeof out->xsave);
    out->xsave_size = m->xsave_size;
    if (ioctl(fd, large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, out->xsave) < 0)
        return error_set_errno(err, errno, "reading the XSAVE image failed");
    return 0;
}

int vcpu_state_read(const struct machine *m, unsigned vcpu, const struct cpu_model *cpu,
                    struct vcpu_state *out, struct error *err)
{
    int fd = m->vcpu[vcpu].fd;
    int ret = 0;

    /* MP state first: reading it delivers a SIPI that is on its way, which changes the registers.
     */
    for (int i = SECTION_COUNT - 1; i >= 0 && ret == 0; i--)
        if (ioctl(fd, accesses[i].get, (uint8_t *)out + sections[i].offset) < 0)
            ret = error_set_errno(err, errno, "reading %s failed", sections[i].name);
    if (ret == 0)
        ret = read_xsave(m, fd, out, err);
    if (ret == 0)
        ret = read_msrs(fd, cpu, out, err);
    return ret < 0 ? error_prefix(err, "vCPU %u", vcpu) : 0;
}

static int write_section(int fd, int section, const struct vcpu_state *state, struct error *err)
{
    if (ioctl(fd, accesses[section].set, (const uint8_t *)state + sections[section].offset) < 0)
        return error_set_errno(err, errno, "KVM refused the saved %s", sections[section].name);
    return 0;
}

static int write_msrs(int fd, const struct vcpu_state *state, struct error *err)
{
    for (uint32_t i = 0; i < state->msr_count; i++) {
        const struct kvm_msr_entry *msr = &state->msrs[i];

        if (write_msr(fd, msr->index, msr->data) < 0 && !cpu_model_msr_optional(msr->index))
            return error_set(
                err, EINVAL,
                "KVM refused to set MSR %#x to %#llx; use the same kernel and processor "
                "generation on both hosts",
                msr->index, (unsigned long long)msr->data);
    }
    return 0;
}

static uint64_t tsc_now(const struct vcpu_state *state, uint32_t khz, uint64_t source_now)
{
    uint64_t elapsed = source_now > state->tsc_at ? source_now - state->tsc_at : 0;

    return state->tsc + (uint64_t)((unsigned __int128)elapsed * khz / 1000000);
}

/* KVM takes a TSC written within a second of the VM's last one for an attempt to set the same, and
 * makes it so. Right for vCPUs 1..n; vCPU 0 must get its own value, so it is first set to one far
 * away. */
static int write_tsc(int fd, unsigned vcpu, uint32_t khz, const struct vcpu_state *state,
                     int64_t clock_offset_ns, struct error *err)
{
    uint64_t slack = (uint64_t)khz * TSC_SLACK_MS, want = 0, got = 0, after = 0;

    for (int try = 0; try < TSC_TRIES; try++) {
        uint64_t start = clock_now() - (uint64_t)clock_offset_ns;

        want = tsc_now(state, khz, start);
        if (vcpu == 0 && write_msr(fd, MSR_TSC, want + 3600000ull * khz) < 0)
            break;
        if (write_msr(fd, MSR_TSC, want) < 0 || read_msr(fd, MSR_TSC, &got) < 0)
            break;
        after = tsc_now(state, khz, clock_now() - (uint64_t)clock_offset_ns);
        if (after - want < khz / 2) /* half a millisecond: not preempted in between */
            break;
    }
    if (got + slack < want || got > after + slack)
        return error_set(
            err, EINVAL,
            "tsc: set to %#llx, KVM made it %#llx; a KVM that cannot set a guest's TSC takes "
            "guests from its own host only",
            (unsigned long long)want, (unsigned long long)got);
    return 0;
}

static int write_deadline(int fd, const struct vcpu_state *state, struct error *err)
{
    for (uint32_t i = 0; i < state->msr_count; i++)
        if (state->msrs[i].index == MSR_TSC_DEADLINE &&
            write_msr(fd, MSR_TSC_DEADLINE, state->msrs[i].data) < 0)
            return error_set(err, EINVAL, "KVM refused the TSC deadline");
    return 0;
}

static int write_xsave(const struct machine *m, int fd, const struct vcpu_state *state,
                       struct error *err)
{
    if (state->xsave_size > m->xsave_size)
        return error_set(err, EINVAL, "its XSAVE image has %u bytes, KVM here takes %u",
                         state->xsave_size, m->xsave_size);
    if (ioctl(fd, KVM_SET_XSAVE, state->xsave) < 0)
        return error_set_errno(err, errno, "KVM refused the saved XSAVE image");
    return 0;
}

/* The order matters to KVM: system registers place the LAPIC; XCR0 before the image that uses it;
 * the LAPIC before the deadline of its timer and the TSC before that; pending events last, since
 * setting registers drops them. */
int vcpu_state_write(const struct machine *m, unsigned vcpu, uint32_t tsc_khz,
                     const struct vcpu_state *state, int64_t clock_offset_ns, struct error *err)
{
    int fd = m->vcpu[vcpu].fd;
    int ret;

    if ((ret = write_section(fd, SREGS, state, err)) < 0 ||
        (ret = write_section(fd, REGS, state, err)) < 0 ||
        (ret = write_section(fd, XCRS, state, err)) < 0 ||
        (ret = write_xsave(m, fd, state, err)) < 0 ||
        (ret = write_section(fd, DEBUGREGS, state, err)) < 0 ||
        (ret = write_section(fd, LAPIC, state, err)) < 0 ||
        (ret = write_msrs(fd, state, err)) < 0 ||
        (ret = write_tsc(fd, vcpu, tsc_khz, state, clock_offset_ns, err)) < 0 ||
        (ret = write_deadline(fd, state, err)) < 0 ||
        (ret = write_section(fd, EVENTS, state, err)) < 0 ||
        (ret = write_section(fd, MP_STATE, state, err)) < 0)
        return error_prefix(err, "vCPU %u", vcpu);
    return 0;
}

static void compare_field(unsigned vcpu, const struct field *field, const void *want,
                          const void *got, struct reasons *differences)
{
    for (unsigned i = 0; i < field->count; i++) {
        size_t at = field->offset + (size_t)i * field->size;
        size_t bytes = field->size < 8 ? field->size : 8;
        uint64_t a = 0, b = 0;

        if (memcmp((const uint8_t *)want + at, (const uint8_t *)got + at, field->size) == 0)
            continue;
        memcpy(&a, (const uint8_t *)want + at, bytes);
        memcpy(&b, (const uint8_t *)got + at, bytes);
        reasons_add(differences, "vCPU %u %s[%u]: saved %#llx, read back %#llx", vcpu, field->name,
                    i, (unsigned long long)a, (unsigned long long)b);
    }
}

/* Those that go on by themselves: what is read back is later than what was written. */
static bool msr_counts_time(uint32_t index)
{
    return index == MSR_TSC_DEADLINE || index == MSR_HYPERV_RUNTIME ||
           index == MSR_HYPERV_TIME_COUNT;
}

static void compare_msrs(unsigned vcpu, const struct vcpu_state *want, const struct vcpu_state *got,
                         struct reasons *differences)
{
    for (uint32_t i = 0; i < want->msr_count; i++) {
        uint32_t index = want->msrs[i].index, j = 0;

        if (msr_counts_time(index) || cpu_model_msr_optional(index))
            continue;
        while (j < got->msr_count && got->msrs[j].index != index)
            j++;
        if (j == got->msr_count)
            reasons_add(differences, "vCPU %u MSR %#x: cannot be read back", vcpu, index);
        else if (got->msrs[j].data != want->msrs[i].data)
            reasons_add(differences, "vCPU %u MSR %#x: saved %#llx, read back %#llx", vcpu, index,
                        (unsigned long long)want->msrs[i].data,
                        (unsigned long long)got->msrs[j].data);
    }
}

void vcpu_state_compare(unsigned vcpu, const struct vcpu_state *want, const struct vcpu_state *got,
                        struct reasons *differences)
{
    const struct field xsave = {"xsave", 0, 16, (uint16_t)(want->xsave_size / 16)};

    for (int i = 0; i < SECTION_COUNT; i++)
        for (const struct field *field = accesses[i].fields; field->name; field++)
            compare_field(vcpu, field, (const uint8_t *)want + sections[i].offset,
                          (const uint8_t *)got + sections[i].offset, differences);
    compare_field(vcpu, &xsave, want->xsave, got->xsave, differences);
    compare_msrs(vcpu, want, got, differences);
}
