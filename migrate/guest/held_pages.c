#include "migrate/guest/held_pages.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

/* In pages; st_blocks counts 512 bytes. */
static int file_pages(int file, int64_t *pages)
{
    struct stat status;

    if (fstat(file, &status) < 0)
        return -errno;
    *pages = status.st_blocks / (GUEST_PAGE_SIZE / 512);
    return 0;
}

static int walk(int file, uint64_t bytes, struct dirty_map *map)
{
    off_t end = 0;

    dirty_map_clear(map);
    while ((uint64_t)end < bytes) {
        off_t data = lseek(file, end, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? 0 : -errno;
        if ((uint64_t)data >= bytes)
            return 0;
        end = lseek(file, data, SEEK_HOLE);
        if (end < 0)
            return errno == ENXIO ? 0 : -errno;
        uint64_t first = (uint64_t)data / GUEST_PAGE_SIZE;
        uint64_t last = ((uint64_t)end < bytes ? (uint64_t)end : bytes) + GUEST_PAGE_SIZE - 1;
        int rc = dirty_map_add(map, first, last / GUEST_PAGE_SIZE - first);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Grows whenever the kernel looks for pages to swap out, of shared files among them (pgscan_anon);
 * 0 on a host without swap. UINT64_MAX: not known. */
static uint64_t reclaim_events(void)
{
    unsigned long long events = UINT64_MAX;
    struct sysinfo info;
    char line[128];

    if (sysinfo(&info) == 0 && info.totalswap == 0)
        return 0;
    FILE *counters = fopen("/proc/vmstat", "re");
    if (!counters)
        return UINT64_MAX;
    while (fgets(line, sizeof(line), counters)) {
        if (sscanf(line, "pgscan_anon %llu", &events) == 1)
            break;
    }
    fclose(counters);
    return events;
}

/* Counts before it walks: a page that comes or goes in between is missed by one of the two, and the
 * next comparison tells. */
static int walk_again(struct held_pages *h)
{
    struct dirty_map known = h->pages;
    uint64_t reclaimed = reclaim_events();
    int64_t total;
    int rc = file_pages(h->file, &total);

    if (rc < 0 || (rc = walk(h->file, h->bytes, &h->spare)) < 0)
        return rc;
    h->pages = h->spare;
    h->spare = known;
    h->reclaimed = reclaimed;
    h->unexplained = total - (int64_t)dirty_map_pages(&h->pages);
    return 0;
}

int held_pages_begin(struct held_pages *h, int file, uint64_t bytes)
{
    h->file = file;
    h->bytes = bytes;
    dirty_map_clear(&h->pages);
    dirty_map_clear(&h->fresh);
    return file < 0 ? 0 : walk_again(h);
}

int held_pages_note(struct held_pages *h, uint64_t page, uint64_t count)
{
    return h->file < 0 ? 0 : dirty_map_add(&h->fresh, page, count);
}

int held_pages_settle(struct held_pages *h)
{
    int rc = dirty_map_merge(&h->pages, &h->fresh);

    dirty_map_clear(&h->fresh);
    return rc;
}

bool held_pages_run(struct held_pages *h, uint64_t *page, uint64_t end, uint64_t *count)
{
    uint64_t next;

    if (!dirty_map_next(&h->pages, page) || *page >= end)
        return false;
    *count = 1;
    for (next = *page + 1; next < end; next++) {
        uint64_t found = next;
        if (!dirty_map_next(&h->pages, &found) || found != next)
            break;
        ++*count;
    }
    return true;
}

static int changed_since(struct held_pages *h, bool *changed)
{
    uint64_t reclaimed = reclaim_events();
    int64_t total = 0;
    int rc = file_pages(h->file, &total);

    *changed = total - (int64_t)dirty_map_pages(&h->pages) != h->unexplained ||
               reclaimed != h->reclaimed || reclaimed == UINT64_MAX;
    return rc;
}

int held_pages_update(struct held_pages *h, struct dirty_map *changed)
{
    bool walk_it;
    int rc;

    if (h->file < 0)
        return 0;
    rc = changed_since(h, &walk_it);
    if (rc < 0 || !walk_it)
        return rc;
    rc = walk_again(h);
    if (rc == 0)
        rc = dirty_map_add_difference(changed, &h->pages, &h->spare);
    return rc < 0 ? rc : dirty_map_add_difference(changed, &h->spare, &h->pages);
}

void held_pages_free(struct held_pages *h)
{
    dirty_map_free(&h->pages);
    dirty_map_free(&h->fresh);
    dirty_map_free(&h->spare);
}
