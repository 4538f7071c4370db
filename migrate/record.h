/* Records: what must be known of a session after the process that ran it is gone. One small file
 * per session and role in the state directory ($XDG_STATE_HOME/wander, for root /var/lib/wander
 * when that is unset, else ~/.local/state/wander): sessions/<token>.<source|destination>, one line
 * of JSON padded to a fixed size, overwritten in place.
 *
 * A write without fsync survives the death of the process; only an fsync survives the death of the
 * host. So a record carries the boot id: on the same boot its state is the truth, after another
 * boot only what was made durable is, and record_make_durable says pessimistically "from here on it
 * may have gone further" before the guest is paused.
 *
 * The process that runs the session holds a lock on the file: no lock, no process. */
#ifndef MIGRATE_RECORD_H
#define MIGRATE_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "migrate/boot.h"
#include "migrate/guest/guest.h"
#include "migrate/ownership.h"
#include "transport/base/address.h"
#include "transport/transport.h"

enum record_role { RECORD_SOURCE, RECORD_DESTINATION };

struct record_content {
    uint8_t token[TRANSPORT_TOKEN_SIZE];
    enum record_role role;
    char guest_name[GUEST_NAME_SIZE];
    char guest_kind[GUEST_KIND_SIZE];
    struct guest_monitor monitor; /* path "": it ends with its process */
    struct address peer;          /* where the other side answers: session port */
    struct address peer_main;     /* the listener at the destination; empty host: none */
    enum ownership_state state;
    bool uncertain; /* durable: the guest may have been committed or started after this */
    char boot_id[BOOT_ID_SIZE];
};

struct record;

/* The state directory of this user, made if need be: what else outlives processes is kept there. */
int record_state_folder(char *out, size_t size, struct error *err);

/* Creates the record, locked. -EEXIST when the session has one. Blocks on the file system. */
int record_create(const struct record_content *content, struct record **out, struct error *err);
/* Overwrites the state in place, no fsync: microseconds. Any thread, one at a time. */
int record_set_state(struct record *r, enum ownership_state state, struct error *err);
/* Marks it uncertain and makes that durable (fsync of file and directory): milliseconds, before the
 * pause. */
int record_make_durable(struct record *r, struct error *err);
/* Removes the file and frees `r`. NULL is fine. */
void record_remove(struct record *r);
/* Frees `r` and the lock but keeps the file. */
void record_release(struct record *r);
/* Frees `r` but keeps file and lock for as long as this process lives. NULL is fine. */
void record_keep(struct record *r);

/* Calls `each` for every record of `role` on this host whose process is dead, adopted as by
 * record_adopt: `each` removes or releases it. */
void record_adopt_all(enum record_role role,
                      void (*each)(void *context, struct record *record,
                                   const struct record_content *content),
                      void *context);
/* Takes over, locked, the record of a session whose process is dead. -ENOENT: there is none, or
 * none of this boot; -EBUSY: the process lives (ask it). */
int record_adopt(const uint8_t token[TRANSPORT_TOKEN_SIZE], enum record_role role,
                 struct record **out, struct record_content *content, struct error *err);

/* What became of a session according to the record of `role` on this host: the state; STARTING or
 * STARTED of a dead process is OWNERSHIP_STARTED_DEAD, unless the guest still runs and says so; a
 * RECEIVING or PREPARED one whose process is dead and cannot have started it is recorded as ABORTED
 * here and now; no record, or one that another boot makes untrustworthy, is OWNERSHIP_UNKNOWN. */
enum ownership_state record_consult(const uint8_t token[TRANSPORT_TOKEN_SIZE],
                                    enum record_role role);

#endif
