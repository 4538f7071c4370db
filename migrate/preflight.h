/* What can be found out about lanes before anything moves: by a migration at each end, and by
 * `wander check`. */
#ifndef MIGRATE_PREFLIGHT_H
#define MIGRATE_PREFLIGHT_H

#include "migrate/migration.h"
#include "migrate/proto.h"

enum { PREFLIGHT_TRIAL_BYTES = 1 << 20 }; /* of the region that a trial lane writes to */

/* Guest memory touched so far: what lanes would carry at first. The guest may run, untracked. */
int preflight_present_bytes(struct guest *guest, uint64_t *bytes, struct error *err);

/* What a transport at the source is made with; token and epoch are left to the caller. */
struct transport_params preflight_params(const struct migration_options *options);
/* The same of the destination, by the source's HELLO and its own limit (0: the default). */
struct transport_params preflight_destination_params(const struct hello *hello, uint64_t pin_limit);

/* The source's half of what HELLO says about its lanes. */
void preflight_hello(const struct migration_options *options, uint64_t present_bytes,
                     struct hello *hello);

/* All that is fatal as one error, with "; " between. -ENOTSUP, or 0 when nothing is. */
int preflight_verdict(const struct transport_findings *findings, struct error *err);

#endif
