/* What the wrappers and the listener share: the session that tracks this process, if there is one,
 * and what was seen that would escape it. Any thread. */
#ifndef MIGRATE_GUEST_QEMU_PRELOAD_SESSION_H
#define MIGRATE_GUEST_QEMU_PRELOAD_SESSION_H

#include <stddef.h>
#include <stdint.h>

#include "migrate/guest/qemu/preload/protocol.h"

struct session {
    int socket;
    unsigned count;
    struct preload_range ranges[PRELOAD_MAX_RANGES];
    _Atomic uint64_t *marks; /* mapped, `bytes` long */
    size_t bytes;
};

/* From here on reads into its ranges leave marks. `s` stays where it is until it is withdrawn. */
void session_publish(struct session *s);
/* When it returns nobody looks at the session any more. */
void session_withdraw(void);
/* In a child after fork(2), where no other thread is left. */
void session_forget(void);

/* Marks the pages of [base, base+bytes) that a session tracks. Without one: a load and a branch.
 * Leaves errno alone. */
void session_mark(const void *base, size_t bytes);

/* PRELOAD_SAW_...: remembered for good, told to the session. Leaves errno alone. */
void session_note(uint32_t flag);
uint32_t session_flags(void);

#endif
