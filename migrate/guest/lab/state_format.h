/* The encoding of a lab guest's state: a head, then sections.
 *
 *   head     u32 magic "WLS1", u32 version, u32 vcpus
 *   section  u16 id, u16 vcpu (0xffff: the whole machine), u32 length, then the bytes
 *
 * All numbers little-endian. Every section is there exactly once, in any order. The sections of
 * registers are KVM's own structures, whose layout is its ABI. */
#ifndef MIGRATE_GUEST_LAB_STATE_FORMAT_H
#define MIGRATE_GUEST_LAB_STATE_FORMAT_H

#include <stdint.h>

#include "migrate/guest/guest.h"

enum {
    STATE_MAGIC = 0x31534c57,
    STATE_VERSION = 2,
    STATE_WHOLE = 0xffff,
    STATE_HEAD_BYTES = 12,
    STATE_SECTION_BYTES = 8,
};

enum state_section {
    STATE_CLOCK = 1,
    STATE_PIC_MASTER,
    STATE_PIC_SLAVE,
    STATE_IOAPIC,
    STATE_DEVICES,
    STATE_REGS = 32,
    STATE_SREGS,
    STATE_XCRS,
    STATE_DEBUGREGS,
    STATE_LAPIC,
    STATE_EVENTS,
    STATE_MP_STATE,
    STATE_XSAVE,
    STATE_MSRS,
    STATE_TSC,
    STATE_ID_LIMIT = 64,
};

struct vm_state;

int state_encode(const struct vm_state *state, struct guest_state *out, struct error *err);
/* Bytes are hostile: -EBADMSG says what is wrong with them. `vcpus` is how many the guest must
 * have. On success *out is the caller's (vm_state_free). */
int state_decode(const void *bytes, size_t size, unsigned vcpus, struct vm_state **out,
                 struct error *err);

#endif
