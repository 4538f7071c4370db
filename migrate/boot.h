/* Which boot of which host this is: two processes with the same id share CLOCK_MONOTONIC and the
 * page cache. */
#ifndef MIGRATE_BOOT_H
#define MIGRATE_BOOT_H

enum { BOOT_ID_SIZE = 40 };

/* The kernel's boot id (random(4)) as text, "" when it cannot be read. */
void boot_id_read(char out[BOOT_ID_SIZE]);

#endif
