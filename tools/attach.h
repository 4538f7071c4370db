/* Guests that are called by their monitor, `qmp:PATH`, instead of by a name. */
#ifndef TOOLS_ATTACH_H
#define TOOLS_ATTACH_H

#include <stdbool.h>

#include "migrate/guest/guest.h"

/* A descriptor that `wander attach` is born with. Lines go out: "note TEXT" any number of times,
 * then "guest NAME" or "error TEXT". That it is closed at the other end says that nobody waits any
 * more. */
enum { ATTACH_LIFELINE = 3 };

/* Whether a guest is called so. */
bool attach_is_monitor(const char *guest);

/* The name of the guest process that has the QEMU at `qmp:PATH`. -ENOENT: none has. */
int attach_find(const char *guest, char name[GUEST_NAME_SIZE], struct error *err);

/* The same; starts a process that takes hold of the QEMU if none has it: it serves the guest for as
 * long as it is being moved, whatever becomes of this process, and a little longer than *lifeline
 * (the caller's to close; -1 when one had it) is open. -EPERM with all reasons when the guest
 * cannot be moved. Blocks for seconds. */
int attach_start(const char *guest, char name[GUEST_NAME_SIZE], int *lifeline, struct error *err);

#endif
