/* A guest that outlived the wander process that was moving it, when that died between COMMITTING
 * and the end: what the record and the other end say decides, at the operator's word. */
#ifndef MIGRATE_ORPHAN_H
#define MIGRATE_ORPHAN_H

#include "migrate/migration.h"

/* Settles the session `token` on this host without the process that ran it: lets the guest run
 * here, or ends the copy here. As migration_resolve it asks the other end first, and without its
 * word acts only with `force`. `text` gets what was done or why not. -ENOENT: no record of it here;
 * -EBUSY: its process lives, or the other end's word is against it; or the error of the guest's
 * monitor. Blocks up to half a minute. */
int orphan_resolve(const uint8_t token[TRANSPORT_TOKEN_SIZE], enum resolve_action action,
                   bool force, char *text, size_t size, struct error *err);

#endif
