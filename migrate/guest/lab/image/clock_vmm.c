/* The clock of our own VMM: it goes on while the guest is paused, and a port counts the moves. */
#include "clock.h"
#include "cpu.h"
#include "migrate/guest/lab/abi.h"

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

static uint32_t vmm_moves(void)
{
    return in32(LAB_PORT_MOVES);
}

static uint64_t vmm_gap(uint64_t now, uint64_t ns)
{
    (void)now;
    return ns;
}

const struct clock clock_vmm = {
    .name = "vmm-port",
    .naps = 16,
    .init = vmm_init,
    .now = vmm_now,
    .sleep = vmm_sleep,
    .moves = vmm_moves,
    .gap = vmm_gap,
};
