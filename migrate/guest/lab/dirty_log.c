/* KVM's dirty log with manual protection. KVM keeps the bits until they are cleared: a collect is a
 * snapshot that changes nothing, and a take clears just the pages it hands out, which
 * write-protects them again. So what is collected and never taken shows up in the next snapshot by
 * itself. */
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "migrate/guest/lab/dirty_bitmap.h"
#include "migrate/guest/lab/vm.h"
#include "transport/base/log.h"

struct dirty_log {
    struct tracker tracker;
    struct lab *lab;
    bool started;
    struct dirty_bitmap maps[LAB_MAX_REGIONS];
};

static struct dirty_log *of(struct tracker *t)
{
    return (struct dirty_log *)t;
}

static int log_start(struct tracker *t, struct error *err)
{
    struct dirty_log *log = of(t);

    for (unsigned i = 0; i < log->lab->region_count; i++)
        dirty_bitmap_clear(&log->maps[i]);
    log->started = true; /* even if one slot refuses: another may log by then */
    return machine_log_writes(log->lab->machine, true, err);
}

/* The snapshot replaces `found`: of what was found before, KVM still has the bits. Marks by hand
 * KVM never knew, so they are put back first. */
static int snapshot(struct dirty_log *log, unsigned region, uint64_t *pages, struct error *err)
{
    struct dirty_bitmap *map = &log->maps[region];
    struct kvm_dirty_log request = {.slot = region, .dirty_bitmap = map->found};

    if (ioctl(log->lab->machine->vm, KVM_GET_DIRTY_LOG, &request) < 0)
        return error_set_errno(err, errno, "reading KVM's dirty log of %s failed",
                               log->lab->regions[region].name);
    *pages += dirty_bitmap_publish(map);
    return 0;
}

/* Pages marked by hand live only in `found` once published; they must outlive the next snapshot. */
static void keep_untaken(struct dirty_bitmap *map)
{
    for (uint64_t page = 0; dirty_bitmap_next(map, &page); page += 64) {
        page -= page % 64;
        __atomic_fetch_or(&map->marks[page / 64], map->found[page / 64], __ATOMIC_RELEASE);
    }
}

static int log_collect(struct tracker *t, uint64_t *pages, struct error *err)
{
    struct dirty_log *log = of(t);
    int ret = 0;

    *pages = 0;
    for (unsigned i = 0; i < log->lab->region_count && ret == 0; i++) {
        keep_untaken(&log->maps[i]);
        ret = snapshot(log, i, pages, err);
    }
    return ret;
}

static bool log_next(struct tracker *t, uint32_t region, uint64_t *page)
{
    return region < of(t)->lab->region_count && dirty_bitmap_next(&of(t)->maps[region], page);
}

static int rearm(struct dirty_log *log, uint32_t region, uint64_t chunk, uint64_t *bits,
                 struct error *err)
{
    const struct dirty_bitmap *map = &log->maps[region];
    uint64_t first = chunk * GUEST_CHUNK_PAGES;
    uint64_t left = map->pages - first;
    struct kvm_clear_dirty_log request = {
        .slot = region,
        .first_page = first,
        .num_pages = left < GUEST_CHUNK_PAGES ? (uint32_t)left : GUEST_CHUNK_PAGES,
        .dirty_bitmap = bits,
    };

    if (ioctl(log->lab->machine->vm, KVM_CLEAR_DIRTY_LOG, &request) < 0)
        return error_set_errno(err, errno, "re-arming pages %llu.. of %s in KVM's dirty log failed",
                               (unsigned long long)first, log->lab->regions[region].name);
    return 0;
}

static int log_take(struct tracker *t, uint32_t region, uint64_t chunk,
                    uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    struct dirty_log *log = of(t);

    if (region >= log->lab->region_count || chunk >= dirty_bitmap_chunks(&log->maps[region]))
        return error_set(err, EINVAL, "chunk %llu of region %u is not in the guest's RAM",
                         (unsigned long long)chunk, region);
    if (!dirty_bitmap_take(&log->maps[region], chunk, bits))
        return 0;
    return rearm(log, region, chunk, bits, err);
}

static void log_mark(struct tracker *t, uint32_t region, uint64_t page, uint64_t count)
{
    if (region < of(t)->lab->region_count)
        dirty_bitmap_mark(&of(t)->maps[region], page, count);
}

static void log_stop(struct tracker *t)
{
    struct dirty_log *log = of(t);
    struct error err = {0};

    if (log->started && machine_log_writes(log->lab->machine, false, &err) < 0)
        log_line(LOG_WARNING, "%s", err.text);
    log->started = false;
}

static void log_close(struct tracker *t)
{
    struct dirty_log *log = of(t);
    struct lab *lab = log->lab;

    log_stop(t);
    pthread_mutex_lock(&lab->tracker_lock);
    lab->tracker = NULL;
    pthread_mutex_unlock(&lab->tracker_lock);
    for (unsigned i = 0; i < LAB_MAX_REGIONS; i++)
        dirty_bitmap_free(&log->maps[i]);
    free(log);
}

static const struct tracker_ops dirty_log_ops = {
    .name = "dirty-log",
    .start = log_start,
    .collect = log_collect,
    .next = log_next,
    .take = log_take,
    .mark = log_mark,
    .stop = log_stop,
    .close = log_close,
};

int dirty_log_new(struct lab *lab, struct tracker **out, struct error *err)
{
    struct dirty_log *log = calloc(1, sizeof *log);
    int ret = 0;

    if (!log)
        return error_set(err, ENOMEM, "out of memory for a tracker");
    log->tracker.ops = &dirty_log_ops;
    log->lab = lab;
    for (unsigned i = 0; i < lab->region_count && ret == 0; i++)
        ret = dirty_bitmap_init(&log->maps[i], lab->regions[i].size, err);
    if (ret < 0) {
        log_close(&log->tracker);
        return ret;
    }
    *out = &log->tracker;
    return 0;
}
