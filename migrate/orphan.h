/* A guest that outlived the wander process that was moving it, when that died between COMMITTING
 * and the end: what the record and the other end say decides, at the operator's word. */
#ifndef MIGRATE_ORPHAN_H
#define MIGRATE_ORPHAN_H

#include <stdbool.h>

#include "migrate/migration.h"

/* Settles the session `token` on this host without the process that ran it: lets the guest run
 * here, or ends the copy here. As migration_resolve it asks the other end first, and without its
 * word acts only with `force`. `text` gets what was done or why not. -ENOENT: no record of it here;
 * -EBUSY: its process lives, or the other end's word is against it; or the error of the guest's
 * monitor. Blocks up to half a minute. */
int orphan_resolve(const uint8_t token[TRANSPORT_TOKEN_SIZE], enum resolve_action action,
                   bool force, char *text, size_t size, struct error *err);

/* Whether the record on this host says that the guest was never handed over, and the session's
 * process is dead. */
bool orphan_was_kept(const uint8_t token[TRANSPORT_TOKEN_SIZE]);

/* Tells the destinations of sessions that died on this host before they handed over the guest at
 * `monitor` that it was kept: what waits there is given up, and the records here are removed. For
 * whoever is about to move that guest, which runs. Best effort; blocks up to a few seconds for
 * each. */
void orphan_forget(const struct guest_monitor *monitor);

#endif
