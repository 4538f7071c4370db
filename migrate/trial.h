/* A trial of lanes: sends memory that is nobody's to region 0 of an end that throws it away, and
 * times it. The way of the bytes is that of a round. */
#ifndef MIGRATE_TRIAL_H
#define MIGRATE_TRIAL_H

#include "transport/transport.h"

enum { TRIAL_MAX_PIECES = 64, TRIAL_MAX_FENCES = 16 };

struct trial_config {
    const struct address *peer;            /* where its lanes bind */
    const struct transport_params *params; /* token and epoch included */
    const char *filter;                    /* "": none */
    uint64_t max_bandwidth;                /* bytes/s, 0: unlimited */
    void *memory;                          /* page aligned */
    uint64_t size;                         /* at most that of the region there */
    uint64_t piece_bytes;                  /* how often a fence goes in between */
    uint64_t least_bytes, enough_ns;       /* once both are reached no more is sent */
    uint64_t limit_ns;                     /* for all of the sending: no more is sent then either */
    uint64_t again_ns; /* for so long it is sent once more, to where it is already; 0: not at all */
    unsigned fences;   /* empty ones, afterwards, at most TRIAL_MAX_FENCES */
    /* Just before the first bytes, and as soon as the last ones have arrived; either may be NULL.
     * -errno ends the trial. */
    int (*before)(void *context, struct error *err);
    int (*after)(void *context, struct error *err);
    /* Asked again and again while it waits: -errno ends the trial. NULL: nobody. */
    int (*interrupted)(void *context, struct error *err);
    void *context;
};

/* What went between two fences; times from the first post to each fence. */
struct trial_piece {
    uint64_t bytes, at_ns;
};

struct trial_result {
    uint64_t connect_ns; /* from nothing to open lanes */
    uint64_t bytes, ns;  /* ns: from the first post to the last fence */
    unsigned piece_count;
    struct trial_piece pieces[TRIAL_MAX_PIECES];
    uint64_t again_bytes, again_ns; /* of the second time, its fences included; 0: not known */
    unsigned fence_count;
    uint64_t fence_ns[TRIAL_MAX_FENCES]; /* what each empty fence took */
};

/* Blocks for connect_ms, limit_ns and some seconds at most. -ETIMEDOUT, and whatever lanes may
 * fail with. */
int trial_run(const struct trial_config *config, int connect_ms, struct trial_result *out,
              struct error *err);

#endif
