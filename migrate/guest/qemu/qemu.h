/* A QEMU guest: RAM in named shared files moved by us, device state by QEMU itself, driven over
 * QMP. */
#ifndef MIGRATE_GUEST_QEMU_QEMU_H
#define MIGRATE_GUEST_QEMU_QEMU_H

#include "migrate/guest/guest.h"

/* Takes hold of a QEMU that is there, by its QMP socket, without disturbing it. Whatever keeps it
 * from being moved is said all at once: -EPERM. It is called as QEMU calls it (-name), or else as
 * the socket: its file name without the ending. What ought to be known but keeps nobody from moving
 * it goes to `notes`. */
int qemu_guest_attach(const char *socket, struct guest **out, struct reasons *notes,
                      struct error *err);

#endif
