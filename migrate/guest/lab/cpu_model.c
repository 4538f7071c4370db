#include "migrate/guest/lab/cpu_model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "migrate/guest/lab/machine.h"
#include "transport/base/wire.h"

enum {
    PLATFORM_VERSION = 1,
    PLATFORM_FIXED_BYTES = 128, /* more than all fields but the lists take */
    CPUID_BYTES = 7 * 4,
    TSC_TOLERANCE_PPM = 250, /* what KVM itself takes as the same frequency */
};

enum cpuid_register { EAX, EBX, ECX, EDX };

static const char *const register_names[] = {"EAX", "EBX", "ECX", "EDX"};

/* Where CPUID holds feature bits: what a guest has seen there must exist wherever it goes. `ignore`
 * are bits that tell of the machine's state or that KVM provides whether it lists them or not. */
static const struct {
    uint32_t function, index;
    enum cpuid_register reg;
    uint32_t ignore;
} features[] = {
    {0x1, 0, ECX,
     1u << 27 | 1u << 21 | 1u << 24 | 1u << 31}, /* OSXSAVE, x2APIC, deadline, hypervisor */
    {0x1, 0, EDX, 1u << 9 | 1u << 28},           /* APIC, HTT */
    {0x6, 0, EAX, 0},
    {0x7, 0, EBX, 0},
    {0x7, 0, ECX, 1u << 4}, /* OSPKE */
    {0x7, 0, EDX, 0},
    {0x7, 1, EAX, 0},
    {0x7, 1, EBX, 0},
    {0x7, 1, EDX, 0},
    {0x7, 2, EDX, 0},
    {0xd, 1, EAX, 0},
    {0x40000001, 0, EAX, 0},
    {0x80000001, 0, ECX, 0},
    {0x80000001, 0, EDX, 1u << 9},
    {0x80000007, 0, EDX, 0},
    {0x80000008, 0, EBX, 0},
    {0x80000021, 0, EAX, 0},
};

bool cpu_model_msr_optional(uint32_t index)
{
    return index == 0x8b || index == 0x34;
}

static const struct kvm_cpuid_entry2 *find(const struct cpu_model *model, uint32_t function,
                                           uint32_t index)
{
    for (uint32_t i = 0; i < model->cpuid_count; i++) {
        const struct kvm_cpuid_entry2 *entry = &model->cpuid[i];
        bool indexed = entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

        if (entry->function == function && (indexed ? entry->index == index : index == 0))
            return entry;
    }
    return NULL;
}

static uint32_t word(const struct cpu_model *model, uint32_t function, uint32_t index,
                     enum cpuid_register reg)
{
    const struct kvm_cpuid_entry2 *entry = find(model, function, index);
    uint32_t words[4] = {0};

    if (entry)
        memcpy(words, (uint32_t[4]){entry->eax, entry->ebx, entry->ecx, entry->edx}, sizeof words);
    return words[reg];
}

static int read_cpuid(int kvm, struct cpu_model *out, struct error *err)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + sizeof out->cpuid);
    int ret = 0;

    if (!cpuid)
        return error_set(err, ENOMEM, "out of memory for CPUID");
    cpuid->nent = CPU_MAX_CPUID;
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) {
        ret = error_set_errno(err, errno, "asking KVM for its CPUID failed");
    } else {
        out->cpuid_count = cpuid->nent;
        memcpy(out->cpuid, cpuid->entries, cpuid->nent * sizeof out->cpuid[0]);
    }
    free(cpuid);
    return ret;
}

static int read_msr_list(int kvm, struct cpu_model *out, struct error *err)
{
    struct kvm_msr_list *list = calloc(1, sizeof *list + sizeof out->msrs);
    int ret = 0;

    if (!list)
        return error_set(err, ENOMEM, "out of memory for the list of MSRs");
    list->nmsrs = CPU_MAX_MSRS;
    if (ioctl(kvm, KVM_GET_MSR_INDEX_LIST, list) < 0) {
        ret = error_set_errno(err, errno, "asking KVM for its list of MSRs failed");
    } else {
        out->msr_count = list->nmsrs;
        memcpy(out->msrs, list->indices, list->nmsrs * sizeof out->msrs[0]);
    }
    free(list);
    return ret;
}

static void read_frequency(const struct machine *m, struct cpu_model *out)
{
    int khz = ioctl(m->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);

    out->tsc_khz = khz > 0 ? (uint32_t)khz : 0;
    out->tsc_scaling = ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0;
    out->xsave_size = m->xsave_size;
    out->xcr0 = word(out, 0xd, 0, EAX) | (uint64_t)word(out, 0xd, 0, EDX) << 32;
}

int cpu_model_host(struct cpu_model *out, struct error *err)
{
    struct machine_params params = {.vcpus = 1, .cpu = out};
    struct machine *m;
    int kvm = machine_open_kvm(err);
    int ret;

    if (kvm < 0)
        return kvm;
    memset(out, 0, sizeof *out);
    if ((ret = machine_check_capabilities(kvm, err)) < 0 || (ret = read_cpuid(kvm, out, err)) < 0 ||
        (ret = read_msr_list(kvm, out, err)) < 0 || (ret = machine_new(&params, &m, err)) < 0)
        goto close_kvm;
    read_frequency(m, out);
    machine_free(m);
close_kvm:
    close(kvm);
    return ret;
}

static void check_features(const struct cpu_model *guest, const struct cpu_model *host,
                           struct reasons *reasons)
{
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
        uint32_t has = word(guest, features[i].function, features[i].index, features[i].reg);
        uint32_t here = word(host, features[i].function, features[i].index, features[i].reg);
        uint32_t missing = has & ~here & ~features[i].ignore;

        if (missing)
            reasons_add(
                reasons,
                "the guest uses processor features that this host lacks: CPUID %#x.%u %s bits "
                "%#x; start the guest on the older processor, or move it to a newer one",
                features[i].function, features[i].index, register_names[features[i].reg], missing);
    }
}

static void check_vendor(const struct cpu_model *guest, const struct cpu_model *host,
                         struct reasons *reasons)
{
    const struct kvm_cpuid_entry2 *a = find(guest, 0, 0), *b = find(host, 0, 0);

    if (!a || !b || a->ebx != b->ebx || a->ecx != b->ecx || a->edx != b->edx)
        reasons_add(reasons,
                    "the guest was started on a processor of another vendor; move it between "
                    "hosts of one vendor");
}

static void check_xsave(const struct cpu_model *guest, const struct cpu_model *host,
                        struct reasons *reasons)
{
    if (guest->xcr0 & ~host->xcr0)
        reasons_add(reasons,
                    "the guest may enable extended states that this host lacks: XCR0 %#llx against "
                    "%#llx; start the guest on the older processor",
                    (unsigned long long)guest->xcr0, (unsigned long long)host->xcr0);
    if (guest->xsave_size > host->xsave_size)
        reasons_add(
            reasons,
            "the guest's XSAVE image has %u bytes, this host's at most %u; use the same kernel "
            "and processor generation on both hosts",
            guest->xsave_size, host->xsave_size);
    for (uint32_t state = 2; state < 63; state++) {
        const struct kvm_cpuid_entry2 *a = find(guest, 0xd, state), *b = find(host, 0xd, state);

        if (guest->xcr0 >> state & 1 && a && b && (a->eax != b->eax || a->ebx != b->ebx))
            reasons_add(
                reasons,
                "extended state %u lies at %u+%u in the guest's XSAVE image and at %u+%u on this "
                "host; use the same processor generation on both hosts",
                state, a->ebx, a->eax, b->ebx, b->eax);
    }
}

static void check_tsc(const struct cpu_model *guest, const struct cpu_model *host,
                      struct reasons *reasons)
{
    uint64_t slack = (uint64_t)host->tsc_khz * TSC_TOLERANCE_PPM / 1000000;
    uint64_t low = host->tsc_khz - slack, high = host->tsc_khz + slack;

    if (guest->tsc_khz == 0)
        reasons_add(reasons, "the guest's TSC frequency is unknown");
    else if (!host->tsc_scaling && (guest->tsc_khz < low || guest->tsc_khz > high))
        reasons_add(
            reasons,
            "the guest's TSC runs at %u kHz, this host's at %u kHz, and this processor cannot "
            "scale it; use a host with TSC scaling or of the same frequency",
            guest->tsc_khz, host->tsc_khz);
}

static bool has_msr(const struct cpu_model *model, uint32_t index)
{
    for (uint32_t i = 0; i < model->msr_count; i++)
        if (model->msrs[i] == index)
            return true;
    return false;
}

static void check_msrs(const struct cpu_model *guest, const struct cpu_model *host,
                       struct reasons *reasons)
{
    for (uint32_t i = 0; i < guest->msr_count; i++)
        if (!has_msr(host, guest->msrs[i]) && !cpu_model_msr_optional(guest->msrs[i]))
            reasons_add(
                reasons,
                "the guest has MSR %#x, which KVM on this host does not know; use the same or a "
                "newer kernel here",
                guest->msrs[i]);
}

void cpu_model_check(const struct cpu_model *guest, const struct cpu_model *host,
                     struct reasons *reasons)
{
    check_vendor(guest, host, reasons);
    check_features(guest, host, reasons);
    check_xsave(guest, host, reasons);
    check_tsc(guest, host, reasons);
    check_msrs(guest, host, reasons);
}

static void set_apic_id(struct kvm_cpuid_entry2 *entry, unsigned index)
{
    if (entry->function == 0x1)
        entry->ebx = (entry->ebx & 0x00ffffff) | index << 24;
    if (entry->function == 0xb || entry->function == 0x1f)
        entry->edx = index;
}

static int set_frequency(const struct cpu_model *model, int vcpu_fd, struct error *err)
{
    int khz = ioctl(vcpu_fd, KVM_GET_TSC_KHZ, 0);

    if (model->tsc_khz == 0 || khz == (int)model->tsc_khz)
        return 0;
    if (ioctl(vcpu_fd, KVM_SET_TSC_KHZ, (unsigned long)model->tsc_khz) < 0)
        return error_set_errno(err, errno,
                               "setting the guest's TSC to %u kHz on a host with %d kHz failed",
                               model->tsc_khz, khz);
    return 0;
}

int cpu_model_apply(const struct cpu_model *model, int vcpu_fd, unsigned index, struct error *err)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + sizeof model->cpuid);
    int ret = 0;

    if (!cpuid)
        return error_set(err, ENOMEM, "out of memory for CPUID");
    cpuid->nent = model->cpuid_count;
    memcpy(cpuid->entries, model->cpuid, model->cpuid_count * sizeof model->cpuid[0]);
    for (uint32_t i = 0; i < cpuid->nent; i++)
        set_apic_id(&cpuid->entries[i], index);
    if (ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid) < 0)
        ret = error_set_errno(err, errno, "setting CPUID of vCPU %u failed", index);
    free(cpuid);
    return ret < 0 ? ret : set_frequency(model, vcpu_fd, err);
}

static void put_workload(struct wire_writer *w, const struct workload *workload)
{
    wire_put_u64(w, workload->touch);
    wire_put_u32(w, workload->content);
    wire_put_u64(w, workload->hot);
    wire_put_u64(w, workload->hot_at);
    wire_put_u64(w, workload->rate);
    wire_put_u32(w, workload->pattern);
    wire_put_u32(w, workload->hot_share);
    wire_put_u64(w, workload->window);
    wire_put_u64(w, workload->seed);
}

static void get_workload(struct wire_reader *r, struct workload *workload)
{
    workload->touch = wire_get_u64(r);
    workload->content = wire_get_u32(r);
    workload->hot = wire_get_u64(r);
    workload->hot_at = wire_get_u64(r);
    workload->rate = wire_get_u64(r);
    workload->pattern = wire_get_u32(r);
    workload->hot_share = wire_get_u32(r);
    workload->window = wire_get_u64(r);
    workload->seed = wire_get_u64(r);
    if ((unsigned)workload->content > CONTENT_INCOMPRESSIBLE ||
        (unsigned)workload->pattern > WORKLOAD_WINDOW || workload->hot_share > 100)
        r->failed = true;
}

static void put_cpuid(struct wire_writer *w, const struct kvm_cpuid_entry2 *entry)
{
    const uint32_t words[] = {entry->function, entry->index, entry->flags, entry->eax,
                              entry->ebx,      entry->ecx,   entry->edx};

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        wire_put_u32(w, words[i]);
}

static void get_cpuid(struct wire_reader *r, struct kvm_cpuid_entry2 *entry)
{
    uint32_t *const words[] = {&entry->function, &entry->index, &entry->flags, &entry->eax,
                               &entry->ebx,      &entry->ecx,   &entry->edx};

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        *words[i] = wire_get_u32(r);
}

int cpu_model_encode(const struct cpu_model *model, const struct workload *workload,
                     uint8_t **bytes, uint32_t *size, struct error *err)
{
    size_t room = PLATFORM_FIXED_BYTES + model->cpuid_count * CPUID_BYTES + model->msr_count * 4;
    uint8_t *buffer = malloc(room);
    struct wire_writer w = wire_writer(buffer, room);

    if (!buffer)
        return error_set(err, ENOMEM, "out of memory for the guest's description");
    wire_put_u32(&w, PLATFORM_VERSION);
    wire_put_u32(&w, model->tsc_khz);
    wire_put_u8(&w, model->tsc_scaling);
    wire_put_u64(&w, model->xcr0);
    wire_put_u32(&w, model->xsave_size);
    put_workload(&w, workload);
    wire_put_u32(&w, model->cpuid_count);
    for (uint32_t i = 0; i < model->cpuid_count; i++)
        put_cpuid(&w, &model->cpuid[i]);
    wire_put_u32(&w, model->msr_count);
    for (uint32_t i = 0; i < model->msr_count; i++)
        wire_put_u32(&w, model->msrs[i]);
    *bytes = buffer;
    *size = (uint32_t)(w.at - buffer);
    return 0;
}

static uint32_t get_count(struct wire_reader *r, uint32_t most)
{
    uint32_t count = wire_get_u32(r);

    if (count > most)
        r->failed = true;
    return r->failed ? 0 : count;
}

int cpu_model_decode(const void *bytes, size_t size, struct cpu_model *model,
                     struct workload *workload, struct error *err)
{
    struct wire_reader r = wire_reader(bytes, size);
    uint32_t version = wire_get_u32(&r);

    memset(model, 0, sizeof *model);
    if (version != PLATFORM_VERSION)
        return error_set(
            err, EBADMSG,
            "the guest's platform description has version %u, %d is known here; use the same "
            "version of wander on both hosts",
            version, PLATFORM_VERSION);
    model->tsc_khz = wire_get_u32(&r);
    model->tsc_scaling = wire_get_u8(&r) != 0;
    model->xcr0 = wire_get_u64(&r);
    model->xsave_size = wire_get_u32(&r);
    get_workload(&r, workload);
    model->cpuid_count = get_count(&r, CPU_MAX_CPUID);
    for (uint32_t i = 0; i < model->cpuid_count; i++)
        get_cpuid(&r, &model->cpuid[i]);
    model->msr_count = get_count(&r, CPU_MAX_MSRS);
    for (uint32_t i = 0; i < model->msr_count; i++)
        model->msrs[i] = wire_get_u32(&r);
    if (!wire_reader_done(&r))
        return error_set(err, EBADMSG, "the guest's platform description of %zu bytes is damaged",
                         size);
    return 0;
}
