/* The files behind a QEMU guest's RAM: to whom they belong, and how they are emptied. */
#ifndef MIGRATE_GUEST_QEMU_MEMORY_FILES_H
#define MIGRATE_GUEST_QEMU_MEMORY_FILES_H

#include "migrate/guest/qemu/memory.h"

/* Makes the files of an incoming guest hold nothing (punches them): pages that are never sent must
 * read as zero, and a file that was used before still has what was in it then. -EBUSY when a
 * process other than `owner` and this one has one of them mapped: it may be another guest's memory.
 */
int qemu_memory_clear(const struct qemu_memory *m, pid_t owner, struct error *err);
/* Gives the memory of a guest that is gone back to the host; the empty files stay. Leaves files
 * alone that another process has mapped. */
void qemu_memory_discard(const struct qemu_memory *m);

#endif
