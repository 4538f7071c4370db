/* The lab guest's devices, without a guest: serial port, console lines, clock, moves. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "migrate/guest/lab/abi.h"
#include "migrate/guest/lab/devices.h"
#include "transport/base/clock.h"

static void print(struct devices *d, const char *text)
{
    for (; *text; text++)
        devices_out(d, 0, LAB_PORT_SERIAL, 1, (uint8_t)*text);
}

Test(lab_devices, console_lines_make_the_account)
{
    static const struct {
        const char *line;
        struct guest_workload want;
    } cases[] = {
        {"", {0}},
        {"SeaBIOS written=5", {0}},
        {"wander-guest: ", {0}},
        {"wander-guest: stat", {0}},
        {"wander-guest: stat written=12 rate=34", {.pages_written = 12, .rate = 34}},
        {"wander-guest: stat rate=34 written=12", {.pages_written = 12, .rate = 34}},
        {"wander-guest: stat written=x rate=", {0}},
        {"wander-guest: stat written=-1", {0}},
        {"wander-guest: stats written=12", {0}},
        {"wander-guest: moved move=3 gap_ns=4500000", {.moves = 3, .gap_ns = 4500000}},
        {"wander-guest: check move=2 pages=100 bad=0",
         {.checks = 1, .check_moves = 2, .checked_pages = 100}},
        {"wander-guest: check move=2 pages=100 bad=7 page=5 result=torn",
         {.checks = 1, .check_moves = 2, .checked_pages = 100, .bad_pages = 7}},
        {"wander-guest: ready vcpus=1 memory=5 hot=6 clock=vmm-port", {.gap_clock = "vmm-port"}},
        {"wander-guest: ready clock=tsc vcpus=1", {.gap_clock = "tsc"}},
        {"wander-guest: ready clock=a-name-much-too-long-for-its-field",
         {.gap_clock = "a-name-much-too-long-fo"}},
        {"wander-guest: panic something", {0}},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct guest_workload got = {0};

        console_parse(cases[i].line, &got);
        cr_expect_eq(
            memcmp(&got, &cases[i].want, sizeof got), 0,
            "\"%s\": written %llu rate %llu moves %llu gap %llu %s checks %llu/%llu/%llu bad %llu",
            cases[i].line, (unsigned long long)got.pages_written, (unsigned long long)got.rate,
            (unsigned long long)got.moves, (unsigned long long)got.gap_ns, got.gap_clock,
            (unsigned long long)got.checks, (unsigned long long)got.check_moves,
            (unsigned long long)got.checked_pages, (unsigned long long)got.bad_pages);
    }
}

Test(lab_devices, bad_pages_add_up_over_checks)
{
    struct guest_workload account = {0};

    console_parse("wander-guest: check move=0 pages=10 bad=2", &account);
    console_parse("wander-guest: check move=1 pages=10 bad=0", &account);
    cr_expect_eq(account.bad_pages, 2, "bad: expected 2, got %llu",
                 (unsigned long long)account.bad_pages);
    cr_expect_eq(account.checks, 2, "checks: expected 2, got %llu",
                 (unsigned long long)account.checks);
}

Test(lab_devices, serial_bytes_become_lines)
{
    struct devices d;
    struct guest_workload account;
    char console[64];

    devices_init(&d);
    print(&d, "boot\r\nwander-guest: stat writ");
    devices_account(&d, &account);
    cr_expect_eq(account.pages_written, 0, "half a line counts");
    print(&d, "ten=5\nbell \a\033[2J\n");
    devices_account(&d, &account);
    cr_expect_eq(account.pages_written, 5, "written: expected 5, got %llu",
                 (unsigned long long)account.pages_written);
    devices_console(&d, console, sizeof console);
    cr_expect_str_eq(console, "boot\nwander-guest: stat written=5\nbell ??[2J\n");
    devices_console(&d, console, 6);
    cr_expect_str_eq(console, "?[2J\n", "the newest 5 bytes");
    devices_destroy(&d);
}

/* Endless text, with and without ends of lines, leaves the newest 4 KiB. */
Test(lab_devices, console_keeps_the_newest_text)
{
    struct devices d;
    char console[DEVICES_CONSOLE_SIZE + 100];

    devices_init(&d);
    for (int i = 0; i < 20000; i++)
        print(&d, i % 1000 == 999 ? "\n" : "x");
    print(&d, "end\n");
    devices_console(&d, console, sizeof console);
    cr_expect_eq(strlen(console), DEVICES_CONSOLE_SIZE, "length %zu", strlen(console));
    cr_expect_str_eq(console + DEVICES_CONSOLE_SIZE - 4, "end\n");
    devices_destroy(&d);
}

Test(lab_devices, the_receiver_hands_bytes_on_in_order)
{
    struct devices d;
    uint32_t status;

    devices_init(&d);
    status = devices_in(&d, 0, LAB_PORT_SERIAL + 5, 1);
    cr_expect_eq(status & 0x61, 0x60, "empty: line status %#x", status & 0xff);
    for (int i = 0; i < DEVICES_RECEIVE_SIZE; i++)
        cr_expect_eq(devices_receive(&d, (char)('a' + i)), 0, "byte %d was refused", i);
    cr_expect_eq(devices_receive(&d, 'z'), -EAGAIN, "one byte too many was taken");
    status = devices_in(&d, 0, LAB_PORT_SERIAL + 5, 1);
    cr_expect_eq(status & 0x61, 0x61, "full: line status %#x", status & 0xff);
    for (int i = 0; i < DEVICES_RECEIVE_SIZE; i++)
        cr_expect_eq((devices_in(&d, 0, LAB_PORT_SERIAL, 1) & 0xff), (uint32_t)('a' + i), "byte %d",
                     i);
    cr_expect_eq(devices_in(&d, 0, LAB_PORT_SERIAL + 5, 1) & 1, 0, "still data");
    devices_destroy(&d);
}

Test(lab_devices, the_divisor_is_not_sent_as_text)
{
    struct devices d;
    char console[16];

    devices_init(&d);
    devices_out(&d, 0, LAB_PORT_SERIAL + 3, 1, 0x80);
    devices_out(&d, 0, LAB_PORT_SERIAL, 1, '\n');
    devices_out(&d, 0, LAB_PORT_SERIAL + 1, 1, 7);
    cr_expect_eq(devices_in(&d, 0, LAB_PORT_SERIAL + 1, 1) & 0xff, 7, "divisor, high byte");
    devices_out(&d, 0, LAB_PORT_SERIAL + 3, 1, 3);
    cr_expect_eq(devices_in(&d, 0, LAB_PORT_SERIAL + 1, 1) & 0xff, 0, "interrupt enable");
    devices_console(&d, console, sizeof console);
    cr_expect_str_eq(console, "");
    devices_destroy(&d);
}

Test(lab_devices, ports_of_the_lab)
{
    struct devices d;
    uint64_t before, clock;

    devices_init(&d);
    cr_expect_eq(devices_in(&d, 0, LAB_PORT_MAGIC, 4), LAB_MAGIC);
    cr_expect_eq(devices_in(&d, 0, LAB_PORT_MAGIC, 2), UINT32_MAX, "magic in two bytes");
    cr_expect_eq(devices_in(&d, 0, 0x1234, 4), UINT32_MAX, "an unknown port");
    cr_expect_eq(devices_out(&d, 0, LAB_PORT_SLEEP, 4, 1), DEVICE_SLEEP);
    devices_slept(&d, 0, 1234567);
    devices_slept(&d, 1, 5ull << 32);
    cr_expect_eq(devices_in(&d, 0, LAB_PORT_SLEPT, 4), 1234567, "slept: each vCPU's own");
    cr_expect_eq(devices_in(&d, 1, LAB_PORT_SLEPT, 4), UINT32_MAX,
                 "slept: longer than 32 bits hold");
    cr_expect_eq(devices_out(&d, 0, LAB_PORT_EXIT, 4, 1), DEVICE_EXIT);
    cr_expect_eq(devices_out(&d, 0, LAB_PORT_EXIT, 1, 1), DEVICE_DONE, "exit in one byte");
    before = clock_now();
    clock = devices_in(&d, 3, LAB_PORT_CLOCK_LOW, 4);
    clock |= (uint64_t)devices_in(&d, 3, LAB_PORT_CLOCK_HIGH, 4) << 32;
    cr_expect(clock >= before && clock <= clock_now(), "clock %llu, CLOCK_MONOTONIC %llu",
              (unsigned long long)clock, (unsigned long long)before);
    devices_destroy(&d);
}

Test(lab_devices, the_count_of_pages_goes_on_beyond_32_bits)
{
    static const struct {
        uint32_t told;
        unsigned size;
        uint64_t want;
    } steps[] = {
        {5, 4, 5},
        {5, 4, 5},
        {9, 2, 5}, /* no access of this port */
        {0xfffffff0, 4, 0xfffffff0},
        {16, 4, (1ull << 32) + 16},
    };
    struct guest_workload account;
    struct devices d;

    devices_init(&d);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        cr_expect_eq(devices_out(&d, 0, LAB_PORT_WRITTEN, steps[i].size, steps[i].told),
                     DEVICE_DONE);
        devices_account(&d, &account);
        cr_expect_eq(account.pages_written, steps[i].want, "step %zu: expected %llu, got %llu", i,
                     (unsigned long long)steps[i].want, (unsigned long long)account.pages_written);
    }
    print(&d, "wander-guest: stat written=8589934592 rate=1\n");
    devices_out(&d, 0, LAB_PORT_WRITTEN, 4, 3);
    devices_account(&d, &account);
    cr_expect_eq(account.pages_written, (2ull << 32) + 3, "after a line: got %llu",
                 (unsigned long long)account.pages_written);
    devices_destroy(&d);
}

/* The latch belongs to its vCPU: another one's read between the halves does not disturb. */
Test(lab_devices, clock_halves_are_latched_per_vcpu)
{
    struct devices d;
    struct devices_state state;

    devices_init(&d);
    devices_save(&d, &state);
    state.clock_offset = 5ll << 32;
    devices_load(&d, &state, false, 0);
    devices_in(&d, 0, LAB_PORT_CLOCK_LOW, 4);
    state = d.state;
    state.clock_offset = 9ll << 32;
    devices_load(&d, &state, false, 0);
    devices_in(&d, 1, LAB_PORT_CLOCK_LOW, 4);
    cr_expect_eq(devices_in(&d, 1, LAB_PORT_CLOCK_HIGH, 4) -
                     devices_in(&d, 0, LAB_PORT_CLOCK_HIGH, 4),
                 4, "the high halves of two vCPUs");
    devices_destroy(&d);
}

Test(lab_devices, a_move_is_counted_and_the_clock_goes_on)
{
    struct devices source, destination;
    struct devices_state state;

    devices_init(&source);
    devices_init(&destination);
    devices_save(&source, &state);
    state.clock_offset = 1000;
    devices_load(&destination, &state, true, 300); /* the destination's clock is 300 ns ahead */
    cr_expect_eq(devices_in(&destination, 0, LAB_PORT_MOVES, 4), 1, "moves");
    cr_expect_eq(destination.state.clock_offset, 700, "clock offset: expected 700, got %lld",
                 (long long)destination.state.clock_offset);
    devices_destroy(&source);
    devices_destroy(&destination);
}
