/* How a migration under way is shown: one redrawn line on a terminal, lines on a pipe. Pure text.
 */
#ifndef TOOLS_PROGRESS_H
#define TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>

#include "migrate/migration.h"

/* One line without newline, at most `width` columns (and size-1 bytes); with a bar where one fits.
 * Returns `out`. */
char *progress_bar(const struct migration_status *status, unsigned width, char *out, size_t size);
/* The same for a pipe: no bar, as long as it takes. Returns `out`. */
char *progress_line(const struct migration_status *status, char *out, size_t size);

/* Fills in what the engine has not measured yet: the rate of the first round, and with it the time
 * that the rest of this round will take. Initialise with {0}; give it every status of one
 * migration, in order. */
struct progress_rate {
    bool begun;
    unsigned round;
    uint64_t start_ns, start_bytes; /* where the round was when it was first seen */
};

void progress_estimate(struct progress_rate *rate, struct migration_status *status);

/* When a pipe gets a line: at each change of round or phase, and every 2 s. Initialise with {0}. */
struct progress_pace {
    bool begun;
    enum migration_phase phase;
    unsigned round;
    uint64_t last_ns;
};

/* Says whether a line is due at `now` (clock_now) and remembers it. */
bool progress_due(struct progress_pace *pace, const struct migration_status *status, uint64_t now);

#endif
