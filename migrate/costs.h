/* What past migrations from this host cost besides their pages: learnt from each that completes,
 * kept in the state directory (costs.json beside the sessions, replaced as a whole under a lock),
 * and recalled for predictions. Losing or damaging the file costs accuracy, nothing else: what
 * cannot be read or believed counts as not known. */
#ifndef MIGRATE_COSTS_H
#define MIGRATE_COSTS_H

#include "migrate/measurement.h"
#include "migrate/migration.h"
#include "migrate/prediction.h"

/* How many of the newest migrations of one kind are kept, and how many kinds. */
enum { COSTS_SAMPLES = 16, COSTS_KINDS = 64 };

/* Migrations are of one kind when these agree. */
struct costs_key {
    char guest_kind[GUEST_KIND_SIZE], accel[GUEST_KIND_SIZE];
    unsigned vcpus;
    char transport[16];
    enum transport_operation operation;
    enum transport_registration registration;
    char host[256]; /* the destination's, without the port */
};

struct costs_key costs_key_of(const struct guest_description *guest,
                              const struct migration_options *options);
/* Medians of what is known for `key`, set-up and bandwidth only where several show them; without
 * the very kind, what those cost that differ in the host only, but for what the path makes of it;
 * else built-in estimates with samples 0. Where there are few samples, the downtime is that of a
 * quick move of such a guest over any path. Never fails. Blocks on the file system. */
void costs_recall(const struct costs_key *key, struct fixed_costs *out);
/* Adds a completed migration, but for what its verification took; others, and those that went
 * through a filter, teach nothing and return 0. `rehearsed`: the path it was foretold for; NULL: it
 * was not. Blocks on the file system, and at most 100 ms for others who learn. */
int costs_learn(const struct costs_key *key, const struct measurement *m,
                const struct path_profile *rehearsed, struct error *err);

#endif
