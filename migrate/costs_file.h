/* The file of costs: what it holds in memory, and how it comes from and goes to the state
 * directory. Private to costs.c and its tests. */
#ifndef MIGRATE_COSTS_FILE_H
#define MIGRATE_COSTS_FILE_H

#include "migrate/costs.h"

/* What one migration taught. */
struct cost_sample {
    uint64_t setup_ns, downtime_ns, finish_ns;
    uint64_t bandwidth_millionths; /* measured over rehearsed; 0: not known */
};

struct cost_kind {
    struct costs_key key;
    unsigned count;
    struct cost_sample samples[COSTS_SAMPLES]; /* oldest first */
};

struct cost_book {
    unsigned count;
    struct cost_kind kinds[COSTS_KINDS]; /* least recently learnt first */
};

/* Opens the state directory, locked against whoever else learns; closing it unlocks. -ETIMEDOUT
 * when another keeps it, -errno. */
int costs_file_lock(struct error *err);
/* What the file holds, as far as it can be believed; an empty book otherwise. No lock is needed:
 * the file is only ever replaced as a whole. */
void costs_file_read(struct cost_book *out);
/* Replaces the file; `folder` from costs_file_lock. */
int costs_file_write(int folder, const struct cost_book *book, struct error *err);

#endif
