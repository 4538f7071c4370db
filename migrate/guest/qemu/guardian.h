/* A small process that outlives this one, should it die, and then does what keeps the promise: at
 * the source it lets the guest go on (settings back, `cont`, announced), at the destination it ends
 * the QEMU that is only prepared. It holds the monitor's connection, a pidfd and a pipe whose other
 * end is ours: its end of file is our death.
 *
 * Words on the pipe, a byte each, the newest counts: */
#ifndef MIGRATE_GUEST_QEMU_GUARDIAN_H
#define MIGRATE_GUEST_QEMU_GUARDIAN_H

#include <sys/types.h>

#include "migrate/guest/qemu/qmp.h"

enum guardian_word {
    GUARDIAN_CONTINUE = 'c', /* should we die: make the guest run here, if it does not (the source
                                before COMMITTING) */
    GUARDIAN_KILL = 'k',     /* should we die: end QEMU (the destination before STARTING) */
    GUARDIAN_LEAVE =
        'l', /* should we die: touch nothing (in doubt, or the guest is safe by itself) */
    GUARDIAN_BYE = 'b', /* we are done: end */
};

struct guardian;

/* `q` NULL: for GUARDIAN_KILL, before there is a monitor.
 * Starts it: this program again, as `wander guardian`, in a session of its own, close to nothing
 * open. `undo` (taken, may be NULL) is a list of QMP commands to put settings back with before
 * `cont`. `first` counts until something else is said. */
int guardian_start(struct qmp *q, pid_t pid, cJSON *undo, enum guardian_word first,
                   struct guardian **out, struct error *err);
/* Never blocks. */
void guardian_say(struct guardian *g, enum guardian_word word);
/* Says BYE and waits for its end (a millisecond); frees. NULL is fine. */
void guardian_end(struct guardian *g);

/* The guardian's own life: what `wander guardian` runs, with the descriptors it was given (3: pipe,
 * 4: monitor, 5: pidfd, 6: memfd with `undo` as JSON). Returns the exit code. */
int guardian_main(void);

#endif
