/* Time, rest, and how the guest learns that it was moved. One table per source: our VMM's ports, or
 * the TSC where there are none (QEMU). */
#ifndef LAB_IMAGE_CLOCK_H
#define LAB_IMAGE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

struct clock {
    const char *name;  /* as the ready line says it */
    bool counts_moves; /* else it guesses them from gaps, which a busy host makes as well */

    void (*init)(void);
    /* Nanoseconds; any vCPU. */
    uint64_t (*now)(void);
    /* Rests for up to `ns`, or less. Any vCPU. */
    void (*sleep)(uint64_t ns);
    /* vCPU 0: rests from the look `from` until `until`, or less. Returns the newest time it knows
     * of that no gap came before. */
    uint64_t (*rest)(uint64_t from, uint64_t until);
    /* How many times the guest has been moved. Any vCPU. */
    uint32_t (*moves)(void);
    /* vCPU 0, at each look, before `moves`: the pause that this look has ended, if it has ended
     * one, as far as the clock tells. `ns` is how long the look before is ago. */
    uint64_t (*gap)(uint64_t now, uint64_t ns);
    /* vCPU 0: tells how many pages have been written, cheaply. NULL: only the console is there. */
    void (*written)(uint64_t pages);
};

bool clock_vmm_present(void);
extern const struct clock clock_vmm, clock_tsc;

#endif
