#include "migrate/guest/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* From Linux 6.7's <linux/fs.h>, under names of our own: older headers lack them, newer ones have
 * them. */
struct scan_argument {
    uint64_t size, flags, start, end, walk_end, runs, run_count, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

_Static_assert(sizeof(struct scan_argument) == 96, "struct pm_scan_arg");
_Static_assert(sizeof(struct pagemap_run) == 24, "struct page_region");

#define SCAN_IOCTL _IOWR('f', 16, struct scan_argument)

enum { SCAN_ARM = 1 << 0, SCAN_CHECK_ASYNC = 1 << 1 };
enum { IS_WRITTEN = 1 << 1, IS_PRESENT = 1 << 3, IS_SWAPPED = 1 << 4, IS_ZERO_PAGE = 1 << 5 };

/* Arming asks for present or swapped besides written: a mask of "written" alone would match holes,
 * and the kernel would fill them with markers, a page table for every 2 MiB.
 *
 * The zero page counts as written although it holds nothing: kernels may put it in place of a page
 * that was just filled with zeros, and those zeros must not be missed. */
static const struct scan_argument modes[] = {
    [PAGEMAP_WRITTEN] = {.flags = SCAN_CHECK_ASYNC,
                         .category_mask = IS_WRITTEN,
                         .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
                         .return_mask = IS_WRITTEN},
    [PAGEMAP_WRITTEN_ARM] = {.flags = SCAN_CHECK_ASYNC | SCAN_ARM,
                             .category_mask = IS_WRITTEN,
                             .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
                             .return_mask = IS_WRITTEN},
    [PAGEMAP_UNARMED] = {.flags = SCAN_CHECK_ASYNC,
                         .category_mask = IS_WRITTEN,
                         .return_mask = IS_WRITTEN | IS_PRESENT | IS_SWAPPED},
    [PAGEMAP_UNARMED_ARM] = {.flags = SCAN_CHECK_ASYNC | SCAN_ARM,
                             .category_mask = IS_WRITTEN,
                             .return_mask = IS_WRITTEN | IS_PRESENT | IS_SWAPPED},
    [PAGEMAP_POPULATED] = {.category_inverted = IS_ZERO_PAGE,
                           .category_mask = IS_ZERO_PAGE,
                           .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
                           .return_mask = IS_PRESENT | IS_SWAPPED},
};

bool pagemap_run_absent(const struct pagemap_run *run)
{
    return !(run->categories & (IS_PRESENT | IS_SWAPPED));
}

int pagemap_scan(int fd, uint64_t *at, uint64_t end, enum pagemap_mode mode,
                 struct pagemap_run *runs, unsigned max)
{
    struct scan_argument argument = modes[mode];
    int count;

    argument.size = sizeof(argument);
    argument.start = *at;
    argument.end = end;
    argument.runs = (uintptr_t)runs;
    argument.run_count = max;
    do {
        count = ioctl(fd, SCAN_IOCTL, &argument);
    } while (count < 0 && errno == EINTR);
    if (count < 0)
        return -errno;
    *at = argument.walk_end;
    return count;
}

static int pagemap_open(struct error *err)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    return fd < 0
               ? error_set_errno(err, errno, "cannot open /proc/self/pagemap (is /proc mounted?)")
               : fd;
}

static int add_runs(const struct pagemap_run *runs, int count, uint64_t origin,
                    struct extent_list *out)
{
    for (int i = 0; i < count; i++) {
        int rc = extent_list_add(out, runs[i].start - origin, runs[i].end - runs[i].start);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int pagemap_present_by_scan(const void *base, uint64_t size, struct extent_list *out,
                            struct error *err)
{
    struct pagemap_run runs[512];
    uint64_t at = (uintptr_t)base, end = at + size;
    int rc = 0, fd = pagemap_open(err);

    if (fd < 0)
        return fd;
    while (rc >= 0 && at < end) {
        rc = pagemap_scan(fd, &at, end, PAGEMAP_POPULATED, runs, 512);
        if (rc >= 0)
            rc = add_runs(runs, rc, (uintptr_t)base, out);
    }
    close(fd);
    return rc < 0
               ? error_set_errno(err, -rc, "cannot scan %" PRIu64 " bytes for touched pages", size)
               : 0;
}

enum { ENTRIES = 1 << 15 };

#define ENTRY_POPULATED (3ull << 62) /* present (63) or swapped (62) */

static int add_entries(const uint64_t *entries, size_t count, uint64_t offset,
                       struct extent_list *out)
{
    for (size_t i = 0; i < count; i++) {
        if (entries[i] & ENTRY_POPULATED) {
            int rc = extent_list_add(out, offset + i * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

static int read_entries(int fd, const void *base, uint64_t size, uint64_t *entries,
                        struct extent_list *out)
{
    uint64_t first = (uintptr_t)base / GUEST_PAGE_SIZE, pages = size / GUEST_PAGE_SIZE;
    int rc = 0;

    for (uint64_t page = 0; page < pages && rc == 0;) {
        uint64_t want = pages - page < ENTRIES ? pages - page : ENTRIES;
        ssize_t got = pread(fd, entries, want * 8, (off_t)((first + page) * 8));
        if (got < 8)
            return got < 0 ? -errno : -EIO;
        rc = add_entries(entries, (size_t)got / 8, page * GUEST_PAGE_SIZE, out);
        page += (uint64_t)got / 8;
    }
    return rc;
}

int pagemap_present_by_reading(const void *base, uint64_t size, struct extent_list *out,
                               struct error *err)
{
    int fd, rc = -ENOMEM;

    if (size > PAGEMAP_READ_MAX)
        return error_set(err, EFBIG,
                         "cannot find the touched pages of a region of %" PRIu64
                         " bytes: this kernel has no "
                         "PAGEMAP_SCAN; use Linux 6.7 or newer, or regions of at most %llu bytes",
                         size, PAGEMAP_READ_MAX);
    fd = pagemap_open(err);
    if (fd < 0)
        return fd;
    uint64_t *entries = malloc(ENTRIES * sizeof(*entries));
    if (entries)
        rc = read_entries(fd, base, size, entries, out);
    free(entries);
    close(fd);
    return rc < 0 ? error_set_errno(err, -rc, "cannot read /proc/self/pagemap") : 0;
}

int pagemap_present(const void *base, uint64_t size, struct extent_list *out, struct error *err)
{
    struct error scan = {0};
    int rc = pagemap_present_by_scan(base, size, out, &scan);

    if (rc == -ENOTTY)
        return pagemap_present_by_reading(base, size, out, err);
    return rc < 0 ? error_set(err, -rc, "%s", scan.text) : 0;
}
