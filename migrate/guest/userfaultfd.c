/* Private memory: a page is dirty while it is populated and not write-protected. So a page that is
 * populated for the first time is dirty by nature, and holes need neither arming nor page tables.
 *
 * A shared file: a page may leave the page table while the file keeps it, so in the chunks of which
 * the file holds anything, a page is dirty while it is not write-protected, populated or not (the
 * kernel leaves a marker in the page table for a protected page that goes, and none for a written
 * one). Everywhere else it is as with private memory. */
#include "migrate/guest/userfaultfd.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "migrate/guest/held_pages.h"
#include "migrate/guest/pagemap.h"

#define FEATURE_WP_ASYNC (1ull << 15) /* newer than the headers of Debian 12 */

struct tracked_region {
    struct guest_region region;
    struct userfaultfd_place place; /* while started */
    struct held_pages held;
    struct dirty_map collected, scratch; /* session's thread only */
    struct dirty_map marked;             /* by hand, not taken yet; under `lock` */
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

static const char *why_not_registered(const struct tracked_region *r, int code)
{
    if (code == EBUSY)
        return "another tracker is at work on it";
    if (code == EINVAL && r->place.file >= 0)
        return "its file has to be on tmpfs, such as /dev/shm";
    return "UFFDIO_REGISTER";
}

static int register_region(int fd, const struct tracked_region *r, struct error *err)
{
    struct uffdio_register range = {.range = {.start = r->place.address, .len = r->region.size},
                                    .mode = UFFDIO_REGISTER_MODE_WP};

    if (ioctl(fd, UFFDIO_REGISTER, &range) == 0)
        return 0;
    return error_set_errno(err, errno, "cannot track region %s (%s)", r->region.name,
                           why_not_registered(r, errno));
}

/* One look at a part of a region: what becomes of the written pages. */
struct scan {
    struct tracked_region *region;
    int pagemap;
    bool arm;
    int (*add)(void *to, uint64_t page, uint64_t count); /* NULL: nothing */
    void *to;
};

static int add_to_map(void *map, uint64_t page, uint64_t count)
{
    return dirty_map_add(map, page, count);
}

/* Of pages that the process does not have mapped only those count that the file holds, or held:
 * the others are holes beside them. */
static int add_absent(const struct scan *s, uint64_t page, uint64_t end)
{
    struct held_pages *held = &s->region->held;
    uint64_t count = 0;
    int rc = 0;

    for (; s->add && rc == 0 && held_pages_run(held, &page, end, &count); page += count)
        rc = s->add(s->to, page, count);
    return rc;
}

static int add_run(const struct scan *s, const struct pagemap_run *run, bool held)
{
    uint64_t page = (run->start - s->region->place.address) / GUEST_PAGE_SIZE;
    uint64_t count = (run->end - run->start) / GUEST_PAGE_SIZE;

    if (held && pagemap_run_absent(run))
        return add_absent(s, page, page + count);
    int rc = held_pages_note(&s->region->held, page, count);
    return rc == 0 && s->add ? s->add(s->to, page, count) : rc;
}

/* `held`: the file holds pages in each chunk of it. */
static int scan_span(const struct scan *s, uint64_t first, uint64_t last, bool held)
{
    static const enum pagemap_mode modes[2][2] = {{PAGEMAP_WRITTEN, PAGEMAP_WRITTEN_ARM},
                                                  {PAGEMAP_UNARMED, PAGEMAP_UNARMED_ARM}};
    struct pagemap_run runs[512];
    uint64_t at = s->region->place.address + first * GUEST_PAGE_SIZE;
    uint64_t end = s->region->place.address + last * GUEST_PAGE_SIZE;

    while (at < end) {
        int count = pagemap_scan(s->pagemap, &at, end, modes[held][s->arm], runs, 512);
        if (count < 0)
            return count;
        for (int i = 0; i < count; i++) {
            int rc = add_run(s, &runs[i], held);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

/* Goes over pages [first, last). Passes over holes in no time. */
static int scan_pages(const struct scan *s, uint64_t first, uint64_t last)
{
    struct held_pages *held = &s->region->held;
    int rc = 0;

    for (uint64_t end; rc == 0 && first < last; first = end) {
        bool is_held = dirty_map_span(&held->pages, first, &end);
        end = end < last ? end : last;
        rc = scan_span(s, first, end, is_held);
    }
    return rc < 0 ? rc : held_pages_settle(held);
}

static uint64_t pages_of(const struct tracked_region *r)
{
    return r->region.size / GUEST_PAGE_SIZE;
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
        struct uffdio_range range = {.start = u->regions[i].place.address,
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
    struct scan scan = {.region = r, .pagemap = u->source->pagemap, .arm = true};
    int rc = register_region(u->faults, r, err);

    if (rc < 0)
        return rc;
    u->registered++;
    rc = held_pages_begin(&r->held, r->place.file, r->region.size);
    if (rc == 0)
        rc = scan_pages(&scan, 0, pages_of(r));
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
        u->source->ops->place(u->source, &u->regions[i].region, i, &u->regions[i].place);
        rc = arm_region(u, &u->regions[i], err);
    }
    if (rc < 0)
        uffd_stop(t);
    return rc;
}

/* Bits beyond the region's end are not looked at: others can write the marks. */
static uint64_t word_mask(const struct tracked_region *r, uint64_t word)
{
    uint64_t left = pages_of(r) - word * 64;

    return left >= 64 ? UINT64_MAX : (1ull << left) - 1;
}

static int collect_marks(struct tracked_region *r)
{
    int rc = 0;

    dirty_map_clear(&r->scratch);
    for (uint64_t word = 0; r->place.marks && rc == 0 && word < (pages_of(r) + 63) / 64; word++) {
        uint64_t bits = atomic_load_explicit(&r->place.marks[word], memory_order_relaxed);
        if (bits)
            rc = dirty_map_add_word(&r->scratch, word, bits & word_mask(r, word));
    }
    return rc < 0 ? rc : dirty_map_merge(&r->collected, &r->scratch);
}

/* What the file gained or lost goes where marks by hand go: dirty until taken. A page that is new
 * in the file after the scan passed it is found by the next collect; the last one happens with the
 * guest stopped. */
static int collect_marked(struct userfaultfd_tracker *u, struct tracked_region *r)
{
    int rc;

    dirty_map_clear(&r->scratch);
    rc = held_pages_update(&r->held, &r->scratch);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&u->lock);
    rc = u->mark_failed;
    if (rc == 0)
        rc = dirty_map_merge(&r->marked, &r->scratch);
    if (rc == 0)
        rc = dirty_map_merge(&r->collected, &r->marked);
    pthread_mutex_unlock(&u->lock);
    return rc;
}

static int collect_region(struct userfaultfd_tracker *u, struct tracked_region *r)
{
    struct scan scan = {
        .region = r, .pagemap = u->source->pagemap, .add = add_to_map, .to = &r->collected};
    int rc;

    dirty_map_clear(&r->collected);
    rc = scan_pages(&scan, 0, pages_of(r));
    if (rc == 0)
        rc = collect_marks(r);
    return rc < 0 ? rc : collect_marked(u, r);
}

static int uffd_collect(struct tracker *t, uint64_t *pages, struct error *err)
{
    struct userfaultfd_tracker *u = of(t);
    int rc = u->source->ops->check ? u->source->ops->check(u->source, err) : 0;

    *pages = 0;
    for (unsigned i = 0; i < u->count && rc == 0; i++) {
        rc = collect_region(u, &u->regions[i]);
        if (rc < 0)
            return scan_failed(&u->regions[i].region, rc, err);
        *pages += dirty_map_pages(&u->regions[i].collected);
    }
    return rc;
}

static bool uffd_next(struct tracker *t, uint32_t region, uint64_t *page)
{
    struct userfaultfd_tracker *u = of(t);

    return region < u->count && dirty_map_next(&u->regions[region].collected, page);
}

struct chunk_bits {
    uint64_t first, *bits;
};

static int add_to_bits(void *to, uint64_t page, uint64_t count)
{
    const struct chunk_bits *chunk = to;

    dirty_bits_set(chunk->bits, (unsigned)(page - chunk->first), (unsigned)count);
    return 0;
}

/* The written pages of one chunk into `bits`, by a single system call: at most every other page
 * starts a run. */
static int scan_chunk(struct userfaultfd_tracker *u, uint32_t region, uint64_t chunk, bool arm,
                      uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    struct tracked_region *r = &u->regions[region];
    struct chunk_bits to = {.first = chunk * GUEST_CHUNK_PAGES, .bits = bits};
    struct scan scan = {
        .region = r, .pagemap = u->source->pagemap, .arm = arm, .add = add_to_bits, .to = &to};
    uint64_t last = to.first + GUEST_CHUNK_PAGES;
    int rc = scan_pages(&scan, to.first, last < pages_of(r) ? last : pages_of(r));

    return rc < 0 ? scan_failed(&r->region, rc, err) : 0;
}

/* Empties `bits` for a chunk that exists. */
static int begin_chunk(struct userfaultfd_tracker *u, uint32_t region, uint64_t chunk,
                       uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    memset(bits, 0, TRACKER_WORDS_PER_CHUNK * sizeof(bits[0]));
    if (region < u->count && chunk <= (pages_of(&u->regions[region]) - 1) / GUEST_CHUNK_PAGES)
        return 0;
    return error_set(err, EINVAL, "no chunk %llu in region %u", (unsigned long long)chunk, region);
}

static void take_marks(struct tracked_region *r, uint64_t chunk,
                       uint64_t bits[TRACKER_WORDS_PER_CHUNK])
{
    for (uint64_t i = 0; r->place.marks && i < TRACKER_WORDS_PER_CHUNK; i++) {
        uint64_t word = chunk * TRACKER_WORDS_PER_CHUNK + i;
        if (word * 64 < pages_of(r) &&
            atomic_load_explicit(&r->place.marks[word], memory_order_relaxed))
            bits[i] |= atomic_exchange(&r->place.marks[word], 0) & word_mask(r, word);
    }
}

/* The marks first: a transfer that completes after the exchange marks its pages again, and they
 * come with the next take. */
static int uffd_take(struct tracker *t, uint32_t region, uint64_t chunk,
                     uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    struct userfaultfd_tracker *u = of(t);
    uint64_t handed_out[TRACKER_WORDS_PER_CHUNK] = {0};
    int rc = begin_chunk(u, region, chunk, bits, err);

    if (rc < 0)
        return rc;
    take_marks(&u->regions[region], chunk, bits);
    rc = scan_chunk(u, region, chunk, true, bits, err);
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
    int rc = begin_chunk(of(t), region, chunk, bits, err);

    return rc < 0 ? rc : scan_chunk(of(t), region, chunk, false, bits, err);
}

static void uffd_mark(struct tracker *t, uint32_t region, uint64_t page, uint64_t count)
{
    struct userfaultfd_tracker *u = of(t);
    uint64_t pages;

    if (region >= u->count)
        return;
    pages = pages_of(&u->regions[region]);
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
        dirty_map_free(&u->regions[i].scratch);
        held_pages_free(&u->regions[i].held);
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
