/* Makes an incoming guest's memory in a shared file exist before its pages come. A page that is
 * first touched by the copy into it costs a fault of its own; made a MiB at a time
 * (MADV_POPULATE_WRITE, Linux 5.14) it costs half. Runs ahead of the lanes in a thread of its own,
 * over the extents that the source has announced. */
#ifndef MIGRATE_PREFAULT_H
#define MIGRATE_PREFAULT_H

#include "migrate/guest/guest.h"

struct prefault;

/* `regions` outlive it. */
int prefault_new(const struct guest_region *regions, unsigned count, struct prefault **out,
                 struct error *err);
/* Announces a part of a region, in order; regions that are not in files are passed over. Before
 * prefault_start. Without memory it is passed over as well: the copy makes it then. */
void prefault_add(struct prefault *p, uint32_t region, const struct extent *extent);
void prefault_start(struct prefault *p);
/* Ends within a MiB's time and frees; NULL is fine. */
void prefault_stop(struct prefault *p);

#endif
