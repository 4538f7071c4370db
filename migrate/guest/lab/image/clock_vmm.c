/* The clock of our own VMM: it goes on while the guest is paused, and a port counts the moves. */
#include "clock.h"
#include "cpu.h"
#include "migrate/guest/lab/abi.h"

#define REST_NS 40000000ull

bool clock_vmm_present(void)
{
    return in32(LAB_PORT_MAGIC) == LAB_MAGIC;
}

static void vmm_init(void)
{
}

static uint64_t vmm_now(void)
{
    uint32_t low = in32(LAB_PORT_CLOCK_LOW);

    return (uint64_t)in32(LAB_PORT_CLOCK_HIGH) << 32 | low;
}

static void vmm_sleep(uint64_t ns)
{
    out32(LAB_PORT_SLEEP, ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX);
}

/* The VMM tells how long the guest rested before a pause: what is left of the time that passed is
 * the gap. */
static uint64_t vmm_rest(uint64_t from, uint64_t until)
{
    vmm_sleep(until - from < REST_NS ? until - from : REST_NS);
    return from + in32(LAB_PORT_SLEPT);
}

static uint32_t vmm_moves(void)
{
    return in32(LAB_PORT_MOVES);
}

static uint64_t vmm_gap(uint64_t now, uint64_t ns)
{
    (void)now;
    return ns;
}

static void vmm_written(uint64_t pages)
{
    out32(LAB_PORT_WRITTEN, (uint32_t)pages);
}

const struct clock clock_vmm = {
    .name = "vmm-port",
    .counts_moves = true,
    .init = vmm_init,
    .now = vmm_now,
    .sleep = vmm_sleep,
    .rest = vmm_rest,
    .moves = vmm_moves,
    .gap = vmm_gap,
    .written = vmm_written,
};
