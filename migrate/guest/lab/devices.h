/* The lab guest's devices: a serial port (16550, polled) with the console behind it, and the ports
 * of abi.h. */
#ifndef MIGRATE_GUEST_LAB_DEVICES_H
#define MIGRATE_GUEST_LAB_DEVICES_H

#include <pthread.h>
#include <stdint.h>

#include "migrate/guest/guest.h"

enum { DEVICES_LINE_SIZE = 256, DEVICES_CONSOLE_SIZE = 4096, DEVICES_RECEIVE_SIZE = 16 };

/* All that the devices remember: it moves with the guest. */
struct devices_state {
    int64_t clock_offset; /* the guest's clock minus CLOCK_MONOTONIC here, ns */
    uint32_t moves;
    uint32_t clock_latch[GUEST_MAX_VCPUS];
    uint32_t slept[GUEST_MAX_VCPUS]; /* ns, the latest rest */
    uint8_t interrupt_enable, line_control, modem_control, scratch, divisor[2];
    uint8_t receive[DEVICES_RECEIVE_SIZE];
    uint32_t receive_count;
    char line[DEVICES_LINE_SIZE]; /* the unfinished line, not terminated */
    uint32_t line_size;
    char console[DEVICES_CONSOLE_SIZE]; /* the newest text, oldest byte first, not terminated */
    uint32_t console_size;
    struct guest_workload account;
};

struct devices {
    pthread_mutex_t lock; /* guards state; a leaf: nothing else is taken under it */
    struct devices_state state;
};

enum device_request { DEVICE_DONE, DEVICE_SLEEP, DEVICE_EXIT };

void devices_init(struct devices *d);
void devices_destroy(struct devices *d);

/* One access of `size` (1, 2, 4) bytes by a vCPU, from its thread. Unknown ports read as all ones.
 */
uint32_t devices_in(struct devices *d, unsigned vcpu, uint16_t port, unsigned size);
/* What the VMM has to do because of the access: DEVICE_SLEEP: rest for `value` ns; DEVICE_EXIT:
 * stop for good. */
enum device_request devices_out(struct devices *d, unsigned vcpu, uint16_t port, unsigned size,
                                uint32_t value);

/* After DEVICE_SLEEP: the vCPU has rested for so many ns, or a pause has ended its rest. */
void devices_slept(struct devices *d, unsigned vcpu, uint64_t ns);

/* The remaining calls: any thread. */
int devices_receive(struct devices *d, char byte); /* -EAGAIN: the receiver is full */
/* Adds a line of the VMM's own to the console. */
void devices_note(struct devices *d, const char *text);
void devices_console(struct devices *d, char *out, size_t size);
void devices_account(struct devices *d, struct guest_workload *out);
void devices_save(struct devices *d, struct devices_state *out);
/* Takes a saved state over. With `moved` the guest is told that it was moved, and its clock follows
 * the offset between the hosts' clocks. */
void devices_load(struct devices *d, const struct devices_state *state, bool moved,
                  int64_t clock_offset_ns);

/* Updates the account by a console line (abi.h); other lines change nothing. Pure. */
void console_parse(const char *line, struct guest_workload *account);

#endif
