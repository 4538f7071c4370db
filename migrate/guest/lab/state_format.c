#include "migrate/guest/lab/state_format.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/lab/vm_state.h"
#include "transport/base/wire.h"

enum {
    CLOCK_BYTES = 16,
    TSC_BYTES = 16,
    MSR_BYTES = 12,
    DEVICES_BYTES = 8192, /* room: more than all fields take */
};

_Static_assert(sizeof(struct devices_state) < DEVICES_BYTES, "room for the devices' encoding");

static int put_section(struct guest_state *out, uint16_t id, uint16_t vcpu, const void *bytes,
                       size_t size)
{
    uint8_t head[STATE_SECTION_BYTES];
    struct wire_writer w = wire_writer(head, sizeof head);
    int ret;

    wire_put_u16(&w, id);
    wire_put_u16(&w, vcpu);
    wire_put_u32(&w, (uint32_t)size);
    ret = guest_state_append(out, head, sizeof head);
    return ret < 0 ? ret : guest_state_append(out, bytes, size);
}

static int put_clock(struct guest_state *out, const struct vm_state *state)
{
    uint8_t bytes[CLOCK_BYTES];
    struct wire_writer w = wire_writer(bytes, sizeof bytes);

    wire_put_u64(&w, state->clock_ns);
    wire_put_u64(&w, state->clock_at);
    return put_section(out, STATE_CLOCK, STATE_WHOLE, bytes, sizeof bytes);
}

static void put_account(struct wire_writer *w, const struct guest_workload *account)
{
    wire_put_u64(w, account->pages_written);
    wire_put_u64(w, account->moves);
    wire_put_u64(w, account->gap_ns);
    wire_put_text(w, account->gap_clock, sizeof account->gap_clock);
    wire_put_u64(w, account->checks);
    wire_put_u64(w, account->check_moves);
    wire_put_u64(w, account->checked_pages);
    wire_put_u64(w, account->bad_pages);
    wire_put_u64(w, account->rate);
}

static void get_account(struct wire_reader *r, struct guest_workload *account)
{
    account->pages_written = wire_get_u64(r);
    account->moves = wire_get_u64(r);
    account->gap_ns = wire_get_u64(r);
    wire_get_text(r, account->gap_clock, sizeof account->gap_clock);
    account->checks = wire_get_u64(r);
    account->check_moves = wire_get_u64(r);
    account->checked_pages = wire_get_u64(r);
    account->bad_pages = wire_get_u64(r);
    account->rate = wire_get_u64(r);
}

/* A field of variable length: u32 count, then the bytes. */
static void put_counted(struct wire_writer *w, const void *bytes, uint32_t count)
{
    wire_put_u32(w, count);
    wire_put_bytes(w, bytes, count);
}

static uint32_t get_counted(struct wire_reader *r, void *bytes, uint32_t most)
{
    uint32_t count = wire_get_u32(r);

    if (count > most)
        r->failed = true;
    if (r->failed)
        return 0;
    wire_get_bytes(r, bytes, count);
    return count;
}

/* As get_counted, for what the console may hold: printable characters and ends of lines. */
static uint32_t get_console_text(struct wire_reader *r, char *text, uint32_t most)
{
    uint32_t count = get_counted(r, text, most);

    for (uint32_t i = 0; i < count; i++)
        if (text[i] != '\n' && (text[i] < ' ' || text[i] > '~'))
            r->failed = true;
    return count;
}

static int put_devices(struct guest_state *out, const struct devices_state *d)
{
    uint8_t bytes[DEVICES_BYTES];
    struct wire_writer w = wire_writer(bytes, sizeof bytes);

    wire_put_u64(&w, (uint64_t)d->clock_offset);
    wire_put_u32(&w, d->moves);
    for (unsigned i = 0; i < GUEST_MAX_VCPUS; i++)
        wire_put_u32(&w, d->clock_latch[i]);
    for (unsigned i = 0; i < GUEST_MAX_VCPUS; i++)
        wire_put_u32(&w, d->slept[i]);
    wire_put_u8(&w, d->interrupt_enable);
    wire_put_u8(&w, d->line_control);
    wire_put_u8(&w, d->modem_control);
    wire_put_u8(&w, d->scratch);
    wire_put_bytes(&w, d->divisor, sizeof d->divisor);
    put_counted(&w, d->receive, d->receive_count);
    put_counted(&w, d->line, d->line_size);
    put_counted(&w, d->console, d->console_size);
    put_account(&w, &d->account);
    return put_section(out, STATE_DEVICES, STATE_WHOLE, bytes, (size_t)(w.at - bytes));
}

static void get_devices(struct wire_reader *r, struct devices_state *d)
{
    d->clock_offset = (int64_t)wire_get_u64(r);
    d->moves = wire_get_u32(r);
    for (unsigned i = 0; i < GUEST_MAX_VCPUS; i++)
        d->clock_latch[i] = wire_get_u32(r);
    for (unsigned i = 0; i < GUEST_MAX_VCPUS; i++)
        d->slept[i] = wire_get_u32(r);
    d->interrupt_enable = wire_get_u8(r);
    d->line_control = wire_get_u8(r);
    d->modem_control = wire_get_u8(r);
    d->scratch = wire_get_u8(r);
    wire_get_bytes(r, d->divisor, sizeof d->divisor);
    d->receive_count = get_counted(r, d->receive, sizeof d->receive);
    d->line_size = get_console_text(r, d->line, sizeof d->line - 1);
    d->console_size = get_console_text(r, d->console, sizeof d->console);
    get_account(r, &d->account);
}

static int put_msrs(struct guest_state *out, uint16_t vcpu, const struct vcpu_state *state)
{
    uint8_t bytes[CPU_MAX_MSRS * MSR_BYTES];
    struct wire_writer w = wire_writer(bytes, sizeof bytes);

    for (uint32_t i = 0; i < state->msr_count; i++) {
        wire_put_u32(&w, state->msrs[i].index);
        wire_put_u64(&w, state->msrs[i].data);
    }
    return put_section(out, STATE_MSRS, vcpu, bytes, (size_t)(w.at - bytes));
}

static int put_vcpu(struct guest_state *out, uint16_t vcpu, const struct vcpu_state *state)
{
    uint8_t tsc[TSC_BYTES];
    struct wire_writer w = wire_writer(tsc, sizeof tsc);
    size_t count;
    const struct vcpu_section *section = vcpu_sections(&count);
    int ret = 0;

    for (size_t i = 0; i < count && ret == 0; i++)
        ret = put_section(out, section[i].id, vcpu, (const uint8_t *)state + section[i].offset,
                          section[i].size);
    wire_put_u64(&w, state->tsc);
    wire_put_u64(&w, state->tsc_at);
    if (ret == 0)
        ret = put_section(out, STATE_TSC, vcpu, tsc, sizeof tsc);
    if (ret == 0)
        ret = put_section(out, STATE_XSAVE, vcpu, state->xsave, state->xsave_size);
    return ret < 0 ? ret : put_msrs(out, vcpu, state);
}

static int put_head(struct guest_state *out, unsigned vcpus)
{
    uint8_t bytes[STATE_HEAD_BYTES];
    struct wire_writer w = wire_writer(bytes, sizeof bytes);

    wire_put_u32(&w, STATE_MAGIC);
    wire_put_u32(&w, STATE_VERSION);
    wire_put_u32(&w, vcpus);
    return guest_state_append(out, bytes, sizeof bytes);
}

int state_encode(const struct vm_state *state, struct guest_state *out, struct error *err)
{
    int ret = put_head(out, state->vcpus);

    if (ret == 0)
        ret = put_clock(out, state);
    for (unsigned i = 0; i < VM_IRQCHIPS && ret == 0; i++)
        ret = put_section(out, (uint16_t)(STATE_PIC_MASTER + i), STATE_WHOLE,
                          &state->irqchips[i].chip, sizeof state->irqchips[i].chip);
    if (ret == 0)
        ret = put_devices(out, &state->devices);
    for (unsigned i = 0; i < state->vcpus && ret == 0; i++)
        ret = put_vcpu(out, (uint16_t)i, &state->vcpu[i]);
    return ret < 0 ? error_set_errno(err, -ret, "gathering the guest's state failed") : 0;
}

static void get_clock(struct wire_reader *r, struct vm_state *state)
{
    state->clock_ns = wire_get_u64(r);
    state->clock_at = wire_get_u64(r);
}

static void get_chip(struct wire_reader *r, unsigned index, struct vm_state *state)
{
    struct kvm_irqchip *chip = &state->irqchips[index];

    chip->chip_id = index;
    wire_get_bytes(r, &chip->chip, sizeof chip->chip);
}

static void get_whole(struct wire_reader *r, uint16_t id, struct vm_state *state)
{
    if (id == STATE_CLOCK)
        get_clock(r, state);
    else if (id == STATE_DEVICES)
        get_devices(r, &state->devices);
    else if (id >= STATE_PIC_MASTER && id <= STATE_IOAPIC)
        get_chip(r, id - STATE_PIC_MASTER, state);
    else
        r->failed = true;
}

static void get_xsave(struct wire_reader *r, struct vcpu_state *state)
{
    size_t size = wire_reader_left(r);

    if (size < sizeof(struct kvm_xsave) || size > sizeof state->xsave || size % 16 != 0) {
        r->failed = true;
        return;
    }
    state->xsave_size = (uint32_t)size;
    wire_get_bytes(r, state->xsave, size);
}

static void get_msrs(struct wire_reader *r, struct vcpu_state *state)
{
    size_t size = wire_reader_left(r);

    if (size % MSR_BYTES != 0 || size / MSR_BYTES > CPU_MAX_MSRS) {
        r->failed = true;
        return;
    }
    state->msr_count = (uint32_t)(size / MSR_BYTES);
    for (uint32_t i = 0; i < state->msr_count; i++) {
        state->msrs[i].index = wire_get_u32(r);
        state->msrs[i].data = wire_get_u64(r);
    }
}

static void get_vcpu(struct wire_reader *r, uint16_t id, struct vcpu_state *state)
{
    size_t count;
    const struct vcpu_section *section = vcpu_sections(&count);

    for (size_t i = 0; i < count; i++)
        if (section[i].id == id) {
            wire_get_bytes(r, (uint8_t *)state + section[i].offset, section[i].size);
            return;
        }
    if (id == STATE_XSAVE) {
        get_xsave(r, state);
    } else if (id == STATE_MSRS) {
        get_msrs(r, state);
    } else if (id == STATE_TSC) {
        state->tsc = wire_get_u64(r);
        state->tsc_at = wire_get_u64(r);
    } else {
        r->failed = true;
    }
}

/* Every section once: a set of bits per vCPU, and one for the machine at [vcpus]. */
static uint64_t expected_sections(bool whole)
{
    uint64_t bits = 0;

    for (unsigned id = whole ? STATE_CLOCK : STATE_REGS; id <= (whole ? STATE_DEVICES : STATE_TSC);
         id++)
        bits |= 1ull << id;
    return bits;
}

static int get_section(struct wire_reader *r, struct vm_state *state, uint64_t *seen,
                       struct error *err)
{
    uint16_t id = wire_get_u16(r), vcpu = wire_get_u16(r);
    uint32_t length = wire_get_u32(r);
    const void *bytes = wire_get_view(r, length);
    struct wire_reader section = wire_reader(bytes, length);
    unsigned slot = vcpu == STATE_WHOLE ? state->vcpus : vcpu;

    if (r->failed)
        return error_set(err, EBADMSG, "the guest's state ends within section %u", id);
    if (id >= STATE_ID_LIMIT || slot > state->vcpus ||
        (slot == state->vcpus && vcpu != STATE_WHOLE))
        return error_set(err, EBADMSG, "the guest's state has an unknown section %u of vCPU %u", id,
                         vcpu);
    if (seen[slot] >> id & 1)
        return error_set(err, EBADMSG, "the guest's state has section %u of vCPU %u twice", id,
                         vcpu);
    seen[slot] |= 1ull << id;
    if (vcpu == STATE_WHOLE)
        get_whole(&section, id, state);
    else
        get_vcpu(&section, id, &state->vcpu[vcpu]);
    if (!wire_reader_done(&section))
        return error_set(err, EBADMSG,
                         "section %u of vCPU %u of the guest's state is damaged (%u bytes)", id,
                         vcpu, length);
    return 0;
}

static int get_sections(struct wire_reader *r, struct vm_state *state, struct error *err)
{
    uint64_t seen[GUEST_MAX_VCPUS + 1] = {0};

    while (wire_reader_left(r) > 0) {
        int ret = get_section(r, state, seen, err);

        if (ret < 0)
            return ret;
    }
    for (unsigned i = 0; i <= state->vcpus; i++)
        if (seen[i] != expected_sections(i == state->vcpus))
            return error_set(err, EBADMSG, "the guest's state lacks sections (vCPU %u: %#llx)", i,
                             (unsigned long long)seen[i]);
    return 0;
}

int state_decode(const void *bytes, size_t size, unsigned vcpus, struct vm_state **out,
                 struct error *err)
{
    struct wire_reader r = wire_reader(bytes, size);
    uint32_t magic = wire_get_u32(&r), version = wire_get_u32(&r), count = wire_get_u32(&r);
    struct vm_state *state;
    int ret;

    if (r.failed || magic != STATE_MAGIC || version != STATE_VERSION)
        return error_set(
            err, EBADMSG,
            "these %zu bytes are no lab guest's state of version %d; use the same version of "
            "wander on both hosts",
            size, STATE_VERSION);
    if (count != vcpus)
        return error_set(err, EBADMSG, "the state is one of %u vCPUs, the guest has %u", count,
                         vcpus);
    state = vm_state_new(vcpus);
    if (!state)
        return error_set(err, ENOMEM, "out of memory for the guest's state");
    ret = get_sections(&r, state, err);
    if (ret < 0) {
        vm_state_free(state);
        return ret;
    }
    *out = state;
    return 0;
}
