/* Device and vCPU state of a QEMU guest: QEMU's own migration, through a pipe or socket pair,
 * without the RAM in named shared files (capability x-ignore-shared). */
#ifndef MIGRATE_GUEST_QEMU_DEVICE_STATE_H
#define MIGRATE_GUEST_QEMU_DEVICE_STATE_H

#include "migrate/guest/guest.h"
#include "migrate/guest/qemu/qmp.h"

/* QEMU's migration settings as they were before we changed them. */
struct qemu_settings;

/* Sets what saving (or, with `incoming`, loading) needs: capabilities x-ignore-shared, events on,
 * late-block-activate on (destination), everything that would change the stream off (multifd,
 * postcopy, xbzrle, compress ...); max-bandwidth out of the way, announce-rounds 0, downtime-limit
 * large. What was there before is kept in *out for qemu_settings_restore. -EREMOTEIO: QEMU lacks
 * something, named with the version that has it. */
int qemu_settings_apply(struct qmp *q, bool incoming, struct qemu_settings **out,
                        struct error *err);
/* Puts everything back; frees. NULL is fine. Best effort: logs what fails. The JSON of what would
 * be set back, for a process that has to do it when this one is dead, is qemu_settings_commands: a
 * list of {"execute","arguments"} objects, the caller's. */
void qemu_settings_restore(struct qmp *q, struct qemu_settings *s);
cJSON *qemu_settings_commands(const struct qemu_settings *s);
/* Runs such a list: best effort, logs what fails. */
void qemu_settings_replay(struct qmp *q, const cJSON *commands);

/* Only while stopped. Appends QEMU's stream to *out; -EFBIG beyond GUEST_MAX_STATE (RAM has slipped
 * in: the text says so). Afterwards QEMU is in the state "postmigrate" and has let its disks go.
 * Blocks for tens of milliseconds; at most 10 s (-ETIMEDOUT, after migrate_cancel). On failure QEMU
 * is stopped and has, or can take back, its disks. */
int qemu_state_save(struct qmp *q, struct guest_state *out, struct error *err);
/* On a QEMU started with -incoming defer, RAM in place: loads, returns when its query-migrate says
 * completed and its status is paused with no disk activated. Errors carry what QEMU said (its
 * stderr is not seen here). */
int qemu_state_load(struct qmp *q, const void *bytes, size_t size, struct error *err);
/* Whether a migration of QEMU's own is under way; ends it (migrate_cancel) and waits, up to 5 s. */
int qemu_state_abandon(struct qmp *q, struct error *err);

#endif
