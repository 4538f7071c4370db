/* A page is dirty while it is populated and not write-protected. So a page that is populated for
 * the first time is dirty by nature, and holes need neither arming nor page tables. */
#include "migrate/guest/userfaultfd.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "migrate/guest/dirty_map.h"
#include "migrate/guest/pagemap.h"

#define FEATURE_WP_ASYNC (1ull << 15) /* newer than the headers of Debian 12 */

struct tracked_region {
    struct guest_region region;
    uint64_t address;           /* in the tracked process; while started */
    struct dirty_map collected; /* session's thread only */
    struct dirty_map marked;    /* by hand, not taken yet; under `lock` */
};

struct userfaultfd_tracker {
    struct tracker tracker;
    struct userfaultfd_source *source;
    int faults;                 /* the userfaultfd while started, else -1 */
    pthread_mutex_t lock;       /* over `marked` of all regions and `mark_failed` */
    int mark_failed;            /* -ENOMEM: a mark was lost; collect reports it */
    unsigned count, registered; /* the first ones are registered with `faults` */
    struct tracked_region regions[];
};

static struct userfaultfd_tracker *of(struct tracker *t)
{
    return (struct userfaultfd_tracker *)t;
}

int userfaultfd_enable(int fd, struct error *err)
{
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURE_WP_ASYNC};

    if (ioctl(fd, UFFDIO_API, &api) == 0)
        return 0;
    return error_set_errno(
        err, errno,
        "cannot track dirty pages: this kernel's userfaultfd has no asynchronous "
        "write-protection; use Linux 6.7 or newer with CONFIG_PTE_MARKER_UFFD_WP");
}

static int register_region(int fd, const struct tracked_region *r, struct error *err)
{
    struct uffdio_register range = {.range = {.start = r->address, .len = r->region.size},
                                    .mode = UFFDIO_REGISTER_MODE_WP};

    if (ioctl(fd, UFFDIO_REGISTER, &range) == 0)
        return 0;
    return error_set_errno(err, errno, "cannot track region %s (%s)", r->region.name,
                           errno == EBUSY ? "another tracker is at work on it" : "UFFDIO_REGISTER");
}

/* Goes over a whole region, `add`ing the written runs to `map` where there is one. Passes over
 * holes in no time. */
static int scan_region(int pagemap, const struct tracked_region *r, enum pagemap_mode mode,
                       struct dirty_map *map)
{
    struct pagemap_run runs[512];
    uint64_t origin = r->address, at = origin, end = origin + r->region.size;

    while (at < end) {
        int count = pagemap_scan(pagemap, &at, end, mode, runs, 512);
        if (count < 0)
            return count;
        for (int i = 0; map && i < count; i++) {
            int rc = dirty_map_add(map, (runs[i].start - origin) / GUEST_PAGE_SIZE,
                                   (runs[i].end - runs[i].start) / GUEST_PAGE_SIZE);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

static int scan_failed(const struct guest_region *region, int rc, struct error *err)
{
    return error_set_errno(err, -rc, "cannot scan region %s for written pages", region->name);
}

static void uffd_stop(struct tracker *t)
{
    struct userfaultfd_tracker *u = of(t);

    if (u->faults < 0)
        return;
    for (unsigned i = 0; i < u->count; i++) {
        struct uffdio_range range = {.start = u->regions[i].address,
                                     .len = u->regions[i].region.size};
        if (i < u->registered) /* or older kernels would end another tracker's registration */
            ioctl(u->faults, UFFDIO_UNREGISTER, &range);
        dirty_map_clear(&u->regions[i].collected);
        dirty_map_clear(&u->regions[i].marked);
    }
    close(u->faults);
    u->source->ops->close(u->source);
    u->faults = -1;
    u->registered = 0;
}

static int arm_region(struct userfaultfd_tracker *u, struct tracked_region *r, struct error *err)
{
    int rc = register_region(u->faults, r, err);

    if (rc < 0)
        return rc;
    u->registered++;
    rc = scan_region(u->source->pagemap, r, PAGEMAP_WRITTEN_ARM, NULL);
    return rc < 0 ? scan_failed(&r->region, rc, err) : 0;
}

/* Arms all that is populated: what is written from here on is dirty, what was written before is for
 * guest_ops.present to tell. */
static int uffd_start(struct tracker *t, struct error *err)
{
    struct userfaultfd_tracker *u = of(t);
    int rc;

    if (u->faults >= 0)
        return 0;
    u->faults = u->source->ops->open(u->source, err);
    if (u->faults < 0)
        return u->faults;
    u->mark_failed = 0;
    rc = userfaultfd_enable(u->faults, err);
    for (unsigned i = 0; i < u->count && rc == 0; i++) {
        u->regions[i].address = u->source->ops->address(u->source, &u->regions[i].region, i);
        rc = arm_region(u, &u->regions[i], err);
    }
    if (rc < 0)
        uffd_stop(t);
    return rc;
}

static int collect_region(struct userfaultfd_tracker *u, struct tracked_region *r)
{
    int rc;

    dirty_map_clear(&r->collected);
    rc = scan_region(u->source->pagemap, r, PAGEMAP_WRITTEN, &r->collected);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&u->lock);
    rc = u->mark_failed < 0 ? u->mark_failed : dirty_map_merge(&r->collected, &r->marked);
    pthread_mutex_unlock(&u->lock);
    return rc;
}

static int uffd_collect(struct tracker *t, uint64_t *pages, struct error *err)
{
    struct userfaultfd_tracker *u = of(t);

    *pages = 0;
    for (unsigned i = 0; i < u->count; i++) {
        int rc = collect_region(u, &u->regions[i]);
        if (rc < 0)
            return scan_failed(&u->regions[i].region, rc, err);
        *pages += dirty_map_pages(&u->regions[i].collected);
    }
    return 0;
}

static bool uffd_next(struct tracker *t, uint32_t region, uint64_t *page)
{
    struct userfaultfd_tracker *u = of(t);

    return region < u->count && dirty_map_next(&u->regions[region].collected, page);
}

/* The written pages of one chunk into `bits`, by a single system call: at most every other page
 * starts a run. */
static int scan_chunk(struct userfaultfd_tracker *u, uint32_t region, uint64_t chunk,
                      enum pagemap_mode mode, uint64_t bits[TRACKER_WORDS_PER_CHUNK],
                      struct error *err)
{
    struct pagemap_run runs[GUEST_CHUNK_PAGES / 2 + 1];
    const struct tracked_region *r;
    uint64_t start, end;

    memset(bits, 0, TRACKER_WORDS_PER_CHUNK * sizeof(bits[0]));
    if (region >= u->count ||
        chunk >= (u->regions[region].region.size + GUEST_CHUNK_SIZE - 1) / GUEST_CHUNK_SIZE)
        return error_set(err, EINVAL, "no chunk %llu in region %u", (unsigned long long)chunk,
                         region);
    r = &u->regions[region];
    start = r->address + chunk * GUEST_CHUNK_SIZE;
    end = r->address + r->region.size;
    end = end - start > GUEST_CHUNK_SIZE ? start + GUEST_CHUNK_SIZE : end;
    for (uint64_t at = start; at < end;) {
        int count =
            pagemap_scan(u->source->pagemap, &at, end, mode, runs, GUEST_CHUNK_PAGES / 2 + 1);
        if (count < 0)
            return scan_failed(&r->region, count, err);
        for (int i = 0; i < count; i++)
            dirty_bits_set(bits, (unsigned)((runs[i].start - start) / GUEST_PAGE_SIZE),
                           (unsigned)((runs[i].end - runs[i].start) / GUEST_PAGE_SIZE));
    }
    return 0;
}

static int uffd_take(struct tracker *t, uint32_t region, uint64_t chunk,
                     uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    struct userfaultfd_tracker *u = of(t);
    uint64_t handed_out[TRACKER_WORDS_PER_CHUNK] = {0};
    int rc = scan_chunk(u, region, chunk, PAGEMAP_WRITTEN_ARM, bits, err);

    if (rc < 0)
        return rc;
    dirty_map_take(&u->regions[region].collected, chunk, handed_out);
    pthread_mutex_lock(&u->lock);
    dirty_map_take(&u->regions[region].marked, chunk, bits);
    pthread_mutex_unlock(&u->lock);
    return 0;
}

static int uffd_peek(struct tracker *t, uint32_t region, uint64_t chunk,
                     uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    return scan_chunk(of(t), region, chunk, PAGEMAP_WRITTEN, bits, err);
}

static void uffd_mark(struct tracker *t, uint32_t region, uint64_t page, uint64_t count)
{
    struct userfaultfd_tracker *u = of(t);
    uint64_t pages;

    if (region >= u->count)
        return;
    pages = u->regions[region].region.size / GUEST_PAGE_SIZE;
    if (page >= pages)
        return;
    count = count < pages - page ? count : pages - page;
    pthread_mutex_lock(&u->lock);
    if (dirty_map_add(&u->regions[region].marked, page, count) < 0)
        u->mark_failed = -ENOMEM;
    pthread_mutex_unlock(&u->lock);
}

static void uffd_close(struct tracker *t)
{
    struct userfaultfd_tracker *u = of(t);

    uffd_stop(t);
    for (unsigned i = 0; i < u->count; i++) {
        dirty_map_free(&u->regions[i].collected);
        dirty_map_free(&u->regions[i].marked);
    }
    pthread_mutex_destroy(&u->lock);
    u->source->ops->free(u->source);
    free(u);
}

static const struct tracker_ops userfaultfd_ops = {
    .name = "userfaultfd",
    .start = uffd_start,
    .collect = uffd_collect,
    .next = uffd_next,
    .take = uffd_take,
    .peek = uffd_peek,
    .mark = uffd_mark,
    .stop = uffd_stop,
    .close = uffd_close,
};

int userfaultfd_tracker_over(struct userfaultfd_source *source, const struct guest_region *regions,
                             unsigned count, struct tracker **out, struct error *err)
{
    struct userfaultfd_tracker *u = calloc(1, sizeof(*u) + count * sizeof(u->regions[0]));

    if (!u)
        return error_set_errno(err, ENOMEM, "cannot make a tracker");
    u->tracker.ops = &userfaultfd_ops;
    u->source = source;
    u->faults = -1;
    u->count = count;
    for (unsigned i = 0; i < count; i++)
        u->regions[i].region = regions[i];
    pthread_mutex_init(&u->lock, NULL);
    *out = &u->tracker;
    return 0;
}
