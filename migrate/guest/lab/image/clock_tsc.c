/* The fallback under QEMU, which has no clock port: the TSC, calibrated against the real-time
 * clock.
 *
 * The TSC need not go on while the guest is paused: QEMU stops it under TCG, and a KVM guest that
 * migrates takes its TSC along as it was. The real-time clock's seconds do go on. So a pause shows
 * in one of two ways: the TSC jumps between two looks, or a second ends after too few ticks of the
 * TSC; what is missing is the pause. */
#include "clock.h"
#include "console.h"
#include "cpu.h"

enum { RTC_INDEX = 0x70, RTC_DATA = 0x71, RTC_SECONDS = 0x00, RTC_NMI_OFF = 0x80 };

#define SECOND_NS    1000000000ull
#define GAP_MIN_NS   20000000ull /* less is what a busy host does to a vCPU anyway */
#define RTC_WAIT_TSC (1ull << 36)
#define SPIN_NS      2500000ull /* by so much a gap may be measured too long */
#define RTC_LOOK_NS  500000ull

enum { CALIBRATION_TRIES = 10 };

static struct {
    uint64_t ns_per_tick; /* 32.32 fixed point */
    uint32_t moves;
    uint8_t second;   /* of the RTC, when it last changed */
    uint64_t changed; /* when that was */
    uint64_t looked;  /* at the RTC */
} tsc;

static uint8_t rtc_second(void)
{
    uint8_t bcd;

    out8(RTC_INDEX, RTC_NMI_OFF | RTC_SECONDS);
    bcd = in8(RTC_DATA);
    return (uint8_t)((bcd >> 4) * 10 + (bcd & 15));
}

static uint64_t next_second(void)
{
    uint64_t begin = read_tsc();
    uint8_t second = rtc_second();

    while (rtc_second() == second) {
        if (read_tsc() - begin > RTC_WAIT_TSC)
            panic("neither a clock port nor a real-time clock that ticks");
        spin_hint();
    }
    return read_tsc();
}

static uint64_t tsc_now(void)
{
    return (uint64_t)((unsigned __int128)read_tsc() * tsc.ns_per_tick >> 32);
}

/* Ticks a second. A second during which the host let the vCPU wait measures wrong: two in a row
 * must agree. */
static uint64_t calibrate(void)
{
    uint64_t begin = next_second(), previous = 0, hertz = 0;

    for (int tries = 0; tries < CALIBRATION_TRIES; tries++) {
        uint64_t end = next_second();

        hertz = end - begin;
        if (hertz > previous - previous / 128 && hertz < previous + previous / 128)
            break;
        previous = hertz;
        begin = end;
    }
    return hertz;
}

static void tsc_init(void)
{
    tsc.ns_per_tick = (SECOND_NS << 32) / calibrate();
    tsc.second = rtc_second();
    tsc.changed = tsc_now();
}

static void tsc_sleep(uint64_t ns)
{
    uint64_t begin = tsc_now();

    while (tsc_now() - begin < ns)
        spin_hint();
}

static uint64_t tsc_rest(uint64_t from, uint64_t until)
{
    tsc_sleep(until - from < SPIN_NS ? until - from : SPIN_NS);
    return from;
}

static uint32_t tsc_moves(void)
{
    return __atomic_load_n(&tsc.moves, __ATOMIC_SEQ_CST);
}

/* What the TSC has missed of the seconds that have ended since the last look. */
static uint64_t missed(uint64_t now)
{
    uint8_t second = rtc_second();
    uint64_t passed, seen = now - tsc.changed;

    tsc.looked = now;
    if (second == tsc.second)
        return 0;
    passed = (uint64_t)((second + 60 - tsc.second) % 60) * SECOND_NS;
    tsc.second = second;
    tsc.changed = now;
    return passed > seen ? passed - seen : 0;
}

static uint64_t tsc_gap(uint64_t now, uint64_t ns)
{
    uint64_t pause = now - tsc.looked >= RTC_LOOK_NS ? missed(now) : 0;

    if (pause < ns)
        pause = ns;
    if (pause > GAP_MIN_NS)
        __atomic_fetch_add(&tsc.moves, 1, __ATOMIC_SEQ_CST);
    return pause;
}

const struct clock clock_tsc = {
    .name = "tsc",
    .counts_moves = false,
    .init = tsc_init,
    .now = tsc_now,
    .sleep = tsc_sleep,
    .rest = tsc_rest,
    .moves = tsc_moves,
    .gap = tsc_gap,
};
