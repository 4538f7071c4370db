/* Starts the other processors through the local APIC (Intel SDM vol. 3, 11.4.4 and 11.6). */
#include "console.h"
#include "cpu.h"
#include "layout.h"
#include "vcpu.h"

#define APIC             0xfee00000ull
#define APIC_SPURIOUS    0x0f0
#define APIC_COMMAND     0x300
#define APIC_ENABLED     0x1ff
#define INIT_ALL_OTHERS  0x000c4500u
#define START_ALL_OTHERS (0x000c4600u | TRAMPOLINE >> 12)
#define START_TIMEOUT_NS 5000000000ull

extern uint32_t vcpus_started, vcpus_wanted;
extern const char trampoline[], trampoline_end[];

static void apic_write(uint32_t offset, uint32_t value)
{
    *(volatile uint32_t *)(APIC + offset) = value;
}

static void place_trampoline(void)
{
    volatile char *to = (volatile char *)TRAMPOLINE;

    for (const char *from = trampoline; from < trampoline_end; from++)
        *to++ = *from;
}

static uint32_t started(void)
{
    return __atomic_load_n(&vcpus_started, __ATOMIC_SEQ_CST);
}

void start_processors(uint32_t count)
{
    uint64_t begin = guest.clock->now();

    place_trampoline();
    __atomic_store_n(&vcpus_wanted, count, __ATOMIC_SEQ_CST);
    apic_write(APIC_SPURIOUS, APIC_ENABLED);
    apic_write(APIC_COMMAND, INIT_ALL_OTHERS);
    apic_write(APIC_COMMAND, START_ALL_OTHERS);
    while (started() < count) {
        if (guest.clock->now() - begin > START_TIMEOUT_NS)
            panic_number("not all processors of vcpus= started", "started", started());
        spin_hint();
    }
}
