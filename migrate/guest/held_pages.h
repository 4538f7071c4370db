/* The pages that a shared file holds, as far as they are known, for a tracker that sees them
 * through a process's page table. A page may leave the table and stay in the file (reclaim,
 * MADV_DONTNEED), come to the file and leave the table before anyone looked, or be punched out of
 * the file. Walking the file (SEEK_DATA) costs tens of milliseconds per GiB, too much for a pause.
 * So it is walked only when the file's number of pages (st_blocks) is not what the page table
 * explains, or when the host has looked for pages to swap out: else as many pages might have been
 * punched out as came and left the table before anyone looked. */
#ifndef MIGRATE_GUEST_HELD_PAGES_H
#define MIGRATE_GUEST_HELD_PAGES_H

#include "migrate/guest/dirty_map.h"

struct held_pages {
    int file; /* -1: none, the memory is private */
    uint64_t bytes;
    struct dirty_map pages, fresh, spare;
    /* When last walked: */
    int64_t unexplained; /* pages of the file, as it counts them, beyond `pages` */
    uint64_t reclaimed;  /* how often the host had looked for pages to swap out */
};

/* Walks the first `bytes` of the file. -errno. */
int held_pages_begin(struct held_pages *h, int file, uint64_t bytes);
/* The process has these mapped, so the file holds them. Counts after held_pages_settle. -ENOMEM. */
int held_pages_note(struct held_pages *h, uint64_t page, uint64_t count);
int held_pages_settle(struct held_pages *h);
/* Pages known to be held among [*page, end): the first run of them; false: none. */
bool held_pages_run(struct held_pages *h, uint64_t *page, uint64_t end, uint64_t *count);
/* Looks whether the file has pages that are not known, or has lost some, and adds both kinds to
 * `changed`. A page that comes during the call is found by the next one. -errno. */
int held_pages_update(struct held_pages *h, struct dirty_map *changed);
void held_pages_free(struct held_pages *h);

#endif
