/* The clock of our own VMM: it goes on while the guest is paused, and a port counts the moves. */
#include "clock.h"
#include "cpu.h"
#include "migrate/guest/lab/abi.h"

#define NAP_LATE_NS 1000000ull
#define IDLE_NAP_NS                                                                                \
    16000000ull /* of a guest that has nothing to write: it costs its host next to nothing */
enum { NAPS = 16 };

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

/* In naps, which are all that an idle guest costs, so nothing else is done between them. */
static uint64_t vmm_rest(uint64_t from, uint64_t until)
{
    uint64_t nap = until == UINT64_MAX ? IDLE_NAP_NS : NAP_NS;

    for (unsigned naps = NAPS; naps; naps--) {
        uint64_t ns = until - from, now;

        vmm_sleep(ns < nap ? ns : nap);
        if (ns <= nap)
            break;
        now = vmm_now();
        if (now - from > nap + NAP_LATE_NS || now >= until)
            break;
        from = now;
    }
    return from;
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
    .counts_moves = true,
    .init = vmm_init,
    .now = vmm_now,
    .sleep = vmm_sleep,
    .rest = vmm_rest,
    .moves = vmm_moves,
    .gap = vmm_gap,
};
