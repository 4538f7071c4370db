/* A rehearsal: finds out what moving a guest would take, without moving it. Its dirtying is watched
 * (dirty_profile.h), and a sample of its touched pages is sent over real lanes to the destination,
 * which throws it away. The guest runs on all the time. */
#ifndef MIGRATE_REHEARSAL_H
#define MIGRATE_REHEARSAL_H

#include "migrate/migration.h"
#include "migrate/prediction.h"

enum {
    REHEARSAL_MAX_PATHS = 4,
    REHEARSAL_BYTES = 256 << 20, /* at most, over each transport; what the destination gives room */
    /* How long the guest is watched unless told otherwise; once more, and longer, when its first
     * round would take longer and it writes. */
    REHEARSAL_SAMPLE_MS = 2000,
    REHEARSAL_LONGEST_MS = 10000,
};

/* One transport: what was found, or why it cannot be used. */
struct rehearsal_path {
    char scheme[16];
    bool usable;
    char error[ERROR_TEXT_SIZE]; /* when not usable */
    struct path_profile profile;
    struct fixed_costs costs;
    struct prediction prediction;
};

struct rehearsal {
    uint64_t made_at;                 /* clock_now() when it was finished */
    struct migration_options options; /* it was made with */
    struct dirty_profile guest;
    unsigned path_count; /* the first is the one that was asked for */
    struct rehearsal_path paths[REHEARSAL_MAX_PATHS];
};

struct rehearsal_wish {
    uint64_t sample_ns; /* how long the guest is watched; 0: as above */
    bool only;          /* the transport of the destination's URI is tried, and no other */
};

/* Watches and tries: over the transport of options->destination, and over the others that this
 * build has (options->filter wraps each). The guest must be free: nothing else may track it
 * meanwhile. Blocks for as long as the guest is watched and a few seconds a transport.
 * -errno when the guest cannot be watched or the destination not be reached; a transport that does
 * not work is no error. -ECANCELED soon after `cancel_fd` (or -1) has become readable. Not for a
 * thread that must not block. */
int migration_rehearse(struct guest *guest, const struct migration_options *options,
                       const struct rehearsal_wish *wish, int cancel_fd, struct rehearsal *out,
                       struct error *err);

/* The path that `options` take, or NULL when it was not tried just so, or is not usable. Limits may
 * differ: a path knows nothing of them. */
const struct rehearsal_path *rehearsal_path(const struct rehearsal *r,
                                            const struct migration_options *options);
/* {"schema", "guest": profile, "paths": [{"transport", "path", "costs", "prediction"}…]}; the
 * caller deletes it. NULL without memory. */
cJSON *rehearsal_to_json(const struct rehearsal *r);

#endif
