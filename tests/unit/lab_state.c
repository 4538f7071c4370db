/* The lab guest's state: what is saved is what is loaded, and hostile bytes are refused. */
#include "tests/unit/lab_fixture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "migrate/guest/lab/state_format.h"
#include "migrate/guest/lab/vm_state.h"
#include "transport/base/clock.h"

static const struct guest_load_context same_host = {0};

static struct guest_state save(struct guest *guest)
{
    struct guest_state state = {0};
    struct error err = {0};

    cr_assert_eq(guest->ops->save(guest, &state, &err), 0, "save: %s", err.text);
    return state;
}

static void load(struct guest *guest, const struct guest_state *state,
                 const struct guest_load_context *context)
{
    struct error err = {0};

    cr_assert_eq(guest->ops->load(guest, state->bytes, state->size, context, &err), 0, "load: %s",
                 err.text);
}

static struct vm_state *decode(const struct guest_state *state, unsigned vcpus)
{
    struct vm_state *decoded = NULL;
    struct error err = {0};

    cr_assert_eq(state_decode(state->bytes, state->size, vcpus, &decoded, &err), 0, "decode: %s",
                 err.text);
    return decoded;
}

static void expect_equal(const struct vm_state *want, const struct vm_state *got)
{
    struct reasons differences = {0};

    for (unsigned i = 0; i < want->vcpus; i++)
        vcpu_state_compare(i, &want->vcpu[i], &got->vcpu[i], &differences);
    cr_expect_eq(differences.count, 0, "vCPU state, expected no difference, got: %s",
                 differences.text);
    cr_expect_eq(memcmp(want->irqchips, got->irqchips, sizeof want->irqchips), 0,
                 "interrupt controllers differ");
    cr_expect_eq(got->devices.moves, want->devices.moves + 1, "moves: %u after %u",
                 got->devices.moves, want->devices.moves);
    cr_expect_eq(memcmp(want->devices.console, got->devices.console, sizeof want->devices.console),
                 0, "the console differs");
    cr_expect_eq(
        memcmp(&want->devices.account, &got->devices.account, sizeof want->devices.account), 0,
        "the workload's account differs");
    reasons_free(&differences);
}

/* Two hops: what a load puts in place is what the next save finds, for every vCPU. */
static void hop(unsigned vcpus)
{
    struct guest *guests[3] = {new_guest(64, vcpus, "hot=4M,rate=max")};

    resume(guests[0]);
    wait_for_writes(guests[0], 1);
    pause_guest(guests[0]);
    for (int i = 0; i < 2; i++) {
        struct guest_state before = save(guests[i]), after;
        struct vm_state *want, *got;

        guests[i + 1] = new_incoming(guests[i]);
        load(guests[i + 1], &before, &same_host);
        after = save(guests[i + 1]);
        want = decode(&before, vcpus);
        got = decode(&after, vcpus);
        expect_equal(want, got);
        vm_state_free(want);
        vm_state_free(got);
        guest_state_free(&before);
        guest_state_free(&after);
    }
    for (int i = 0; i < 3; i++)
        guests[i]->ops->destroy(guests[i]);
}

Test(lab_state, survives_two_hops_with_one_vcpu)
{
    need_kvm();
    hop(1);
}

Test(lab_state, survives_two_hops_with_four_vcpus)
{
    need_kvm();
    hop(4);
}

/* After a move the guest checks every page it ever stamped. */
Test(lab_state, guest_runs_on_after_a_move)
{
    struct guest *source, *destination;
    struct guest_state state;
    struct guest_workload account = {0};

    need_kvm();
    source = new_guest(64, 2, "hot=4M,rate=max,pattern=random");
    resume(source);
    wait_for_writes(source, 1000);
    pause_guest(source);
    destination = new_incoming(source);
    copy_memory(destination, source);
    state = save(source);
    load(destination, &state, &same_host);
    resume(destination);
    for (int i = 0; i < 3000 && account.checks == 0; i++) {
        usleep(10000);
        destination->ops->workload(destination, &account);
    }
    cr_expect_eq(account.moves, 1, "moves: expected 1, got %llu",
                 (unsigned long long)account.moves);
    cr_expect_eq(account.check_moves, 1, "the check after the move: expected move 1, got %llu",
                 (unsigned long long)account.check_moves);
    cr_expect_gt(account.checked_pages, 0, "no page was checked");
    cr_expect_eq(account.bad_pages, 0, "bad pages: %llu", (unsigned long long)account.bad_pages);
    cr_expect_gt(account.gap_ns, 0, "the gap was not measured");
    guest_state_free(&state);
    source->ops->destroy(source);
    destination->ops->destroy(destination);
}

/* The state as it would be had the guest's TSC been lower: so that, seconds later, it is what it is
 * now. Some KVMs cannot set a TSC to anything else. */
static void lower_tsc(struct guest_state *state, uint64_t ticks)
{
    struct vm_state *decoded = decode(state, 1);
    struct error err = {0};

    decoded->vcpu[0].tsc -= ticks;
    guest_state_free(state);
    cr_assert_eq(state_encode(decoded, state, &err), 0, "encode: %s", err.text);
    vm_state_free(decoded);
}

/* The clock here is 10 s behind that of the source, so 10 s have passed, and a little. */
Test(lab_state, clocks_go_on)
{
    enum { PASSED_S = 10 };
    struct guest_load_context context = {.clock_offset_ns = -(int64_t)(PASSED_S * NS_PER_S)};
    struct guest *source, *destination;
    struct guest_state before, after;
    struct vm_state *want, *got;
    uint32_t khz;
    double seconds;

    need_kvm();
    source = new_guest(16, 1, "");
    khz = ((struct lab *)source)->cpu.tsc_khz;
    destination = new_incoming(source);
    before = save(source);
    lower_tsc(&before, PASSED_S * 1000ull * khz);
    load(destination, &before, &context);
    after = save(destination);
    want = decode(&before, 1);
    got = decode(&after, 1);
    seconds = (double)(got->vcpu[0].tsc - want->vcpu[0].tsc) / khz / 1000;
    cr_expect(seconds >= PASSED_S && seconds < PASSED_S + 5, "TSC: expected %d s later, got %f s",
              PASSED_S, seconds);
    seconds = (double)(got->clock_ns - want->clock_ns) / 1e9;
    cr_expect(seconds >= PASSED_S && seconds < PASSED_S + 5,
              "KVM's clock: expected %d s later, got %f s", PASSED_S, seconds);
    cr_expect_eq(got->devices.clock_offset - want->devices.clock_offset,
                 (int64_t)(PASSED_S * NS_PER_S), "the port's clock: offset %lld after %lld",
                 (long long)got->devices.clock_offset, (long long)want->devices.clock_offset);
    vm_state_free(want);
    vm_state_free(got);
    guest_state_free(&before);
    guest_state_free(&after);
    source->ops->destroy(source);
    destination->ops->destroy(destination);
}

static void refuse(struct guest *guest, const void *bytes, size_t size, const char *what)
{
    struct error err = {0};
    int ret = guest->ops->load(guest, bytes, size, &same_host, &err);

    cr_expect_eq(ret, -EBADMSG, "%s: expected -EBADMSG, got %d (%s)", what, ret, err.text);
    cr_expect(err.text[0], "%s: no text", what);
}

Test(lab_state, truncated_state_is_refused_at_every_length)
{
    struct guest *guest;
    struct guest_state state;
    char what[64];

    need_kvm();
    guest = new_guest(16, 1, "");
    state = save(guest);
    for (size_t size = 0; size < state.size; size++) {
        uint8_t *copy = malloc(size ? size : 1); /* exact, so that a sanitizer sees reads beyond */

        memcpy(copy, state.bytes, size);
        snprintf(what, sizeof what, "%zu of %zu bytes", size, state.size);
        refuse(guest, copy, size, what);
        free(copy);
    }
    guest_state_free(&state);
    guest->ops->destroy(guest);
}

Test(lab_state, state_of_another_shape_is_refused)
{
    struct guest *one, *two;
    struct guest_state state;

    need_kvm();
    one = new_guest(16, 1, "");
    two = new_guest(16, 2, "");
    state = save(one);
    refuse(two, state.bytes, state.size, "one vCPU's state for two");
    cr_assert_eq(
        guest_state_append(&state, state.bytes + STATE_HEAD_BYTES, STATE_SECTION_BYTES + 16), 0);
    refuse(one, state.bytes, state.size, "the clock twice");
    guest_state_free(&state);
    one->ops->destroy(one);
    two->ops->destroy(two);
}

/* A byte that is not what was saved either shows, or is just another value, which then is kept. */
Test(lab_state, altered_bytes_are_refused_or_kept)
{
    enum { STRIDE = 3 };
    struct guest *source, *destination;
    struct guest_state state;
    unsigned refused = 0, kept = 0, read_back = 0;

    need_kvm();
    source = new_guest(16, 1, "");
    destination = new_incoming(source);
    state = save(source);
    for (size_t at = 0; at < state.size; at += STRIDE) {
        struct error err = {0};
        int ret;

        state.bytes[at] ^= (uint8_t)(1u << at % 8);
        ret = destination->ops->load(destination, state.bytes, state.size, &same_host, &err);
        cr_expect(ret == 0 || err.text[0], "byte %zu: error %d without a text", at, ret);
        if (ret == 0)
            kept++;
        else
            refused++;
        if (strstr(err.text, "read back"))
            read_back++;
        state.bytes[at] ^= (uint8_t)(1u << at % 8);
    }
    cr_expect(refused > 0 && kept > 0, "%u refused, %u kept: expected some of both", refused, kept);
    cr_expect(read_back > 0, "KVM kept whatever it took: expected some of it to be dropped");
    guest_state_free(&state);
    source->ops->destroy(source);
    destination->ops->destroy(destination);
}

Test(lab_state, a_running_guest_is_neither_saved_nor_loaded)
{
    struct guest *guest;
    struct guest_state state = {0};
    struct error err = {0};

    need_kvm();
    guest = new_guest(16, 1, "");
    resume(guest);
    cr_expect_eq(guest->ops->save(guest, &state, &err), -EBUSY, "save: %s", err.text);
    error_clear(&err);
    cr_expect_eq(guest->ops->load(guest, "", 0, &same_host, &err), -EBUSY, "load: %s", err.text);
    guest_state_free(&state);
    guest->ops->destroy(guest);
}

/* Every register field: one altered bit, one difference, which names it. */
Test(lab_state, comparison_sees_every_field)
{
    static const struct {
        size_t offset;
        const char *name;
    } cases[] = {
        {offsetof(struct vcpu_state, regs.rax), "rax"},
        {offsetof(struct vcpu_state, regs.r15), "r15"},
        {offsetof(struct vcpu_state, regs.rip), "rip"},
        {offsetof(struct vcpu_state, regs.rflags), "rflags"},
        {offsetof(struct vcpu_state, sregs.cs.base), "cs.base"},
        {offsetof(struct vcpu_state, sregs.tr.selector), "tr.selector"},
        {offsetof(struct vcpu_state, sregs.gdt.limit), "gdt.limit"},
        {offsetof(struct vcpu_state, sregs.cr3), "cr3"},
        {offsetof(struct vcpu_state, sregs.efer), "efer"},
        {offsetof(struct vcpu_state, sregs.apic_base), "apic_base"},
        {offsetof(struct vcpu_state, xcrs.xcrs[0].value), "xcrs[0].value"},
        {offsetof(struct vcpu_state, debugregs.db[2]), "db[2]"},
        {offsetof(struct vcpu_state, debugregs.dr7), "dr7"},
        {offsetof(struct vcpu_state, lapic.regs[0x80]), "lapic[8]"},
        {offsetof(struct vcpu_state, lapic.regs[0x3e0]), "0x3a0)[4]"},
        {offsetof(struct vcpu_state, events.nmi.masked), "nmi.masked"},
        {offsetof(struct vcpu_state, events.interrupt.shadow), "interrupt.shadow"},
        {offsetof(struct vcpu_state, mp_state.mp_state), "mp_state"},
        {offsetof(struct vcpu_state, xsave[0]), "xsave[0]"},
        {offsetof(struct vcpu_state, xsave[4095]), "xsave[255]"},
        {offsetof(struct vcpu_state, msrs[0].data), "MSR 0x174"},
        {offsetof(struct vcpu_state, msrs[1].data), "MSR 0xc0000082"},
    };
    struct vcpu_state *states = calloc(2, sizeof *states);

    states[0].xsave_size = 4096;
    states[0].msr_count = 2;
    states[0].msrs[0].index = 0x174;
    states[0].msrs[1].index = 0xc0000082;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct reasons differences = {0};

        states[1] = states[0];
        ((uint8_t *)&states[1])[cases[i].offset] ^= 0x10;
        vcpu_state_compare(0, &states[0], &states[1], &differences);
        cr_expect_eq(differences.count, 1, "%s: expected 1 difference, got %u", cases[i].name,
                     differences.count);
        cr_expect(differences.text && strstr(differences.text, cases[i].name),
                  "expected \"%s\" to be named, got: %s", cases[i].name, differences.text);
        reasons_free(&differences);
    }
    free(states);
}

/* What time changes, and MSRs that tell of the host, are no differences. */
Test(lab_state, comparison_leaves_out_what_time_changes)
{
    struct vcpu_state *states = calloc(2, sizeof *states);
    struct reasons differences = {0};

    states[0].xsave_size = states[1].xsave_size = 4096;
    states[0].msr_count = states[1].msr_count = 2;
    states[0].msrs[0] = (struct kvm_msr_entry){.index = 0x6e0, .data = 1};
    states[1].msrs[0] = (struct kvm_msr_entry){.index = 0x6e0, .data = 2};
    states[0].msrs[1] = (struct kvm_msr_entry){.index = 0x8b, .data = 1};
    states[1].msrs[1] = (struct kvm_msr_entry){.index = 0x8b, .data = 2};
    states[1].tsc = 99;
    states[1].lapic.regs[0x390] = 7;
    vcpu_state_compare(0, &states[0], &states[1], &differences);
    cr_expect_eq(differences.count, 0, "expected no difference, got: %s", differences.text);
    free(states);
}
