/* Who owns the guest, at every instant: a state, its legal moves, and the rule that a move is
 * recorded before it takes effect. The promise that rests on this: never two running copies. */
#ifndef MIGRATE_OWNERSHIP_H
#define MIGRATE_OWNERSHIP_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "transport/base/error.h"

struct record;

enum ownership_state {
    OWNERSHIP_NONE = 0,
    /* at the source */
    OWNERSHIP_OWNER = 1,
    OWNERSHIP_COMMITTING = 2,
    OWNERSHIP_RELEASED = 3,
    /* at the destination */
    OWNERSHIP_RECEIVING = 4,
    OWNERSHIP_PREPARED = 5,
    OWNERSHIP_STARTED = 6,
    OWNERSHIP_ABORTED = 7,
    /* only in answers */
    OWNERSHIP_STARTED_DEAD = 8, /* it ran here, and its process is gone */
    OWNERSHIP_UNKNOWN = 9,      /* no record of such a session, or one that cannot be trusted */
    /* at the destination, between PREPARED and STARTED: it may run, or prove unable to */
    OWNERSHIP_STARTING = 10,
    OWNERSHIP_STATES
};

/* "owner", "committing", … as records and messages spell it. */
const char *ownership_name(enum ownership_state state);
/* The reverse; OWNERSHIP_NONE for a text that names none. */
enum ownership_state ownership_from_name(const char *name);

/* Thread-safe. */
struct ownership {
    pthread_mutex_t lock;
    enum ownership_state state; /* under lock */
    struct record *record;      /* not owned; NULL: not recorded yet */
};

void ownership_init(struct ownership *o, enum ownership_state state);
void ownership_destroy(struct ownership *o);
enum ownership_state ownership_get(struct ownership *o);
/* From now on moves are written to `record` first. */
void ownership_attach(struct ownership *o, struct record *record);
/* The compare-and-swap: from -> to, recorded before it takes effect. -ESTALE when the state is not
 * `from` (the text says what it is), -EINVAL for a move that is not in the table, or the error of
 * the record, and then nothing has changed. */
int ownership_move(struct ownership *o, enum ownership_state from, enum ownership_state to,
                   struct error *err);

#endif
