/* What is announced of a region in a file is made to exist, and nothing else is. */
#include <criterion/criterion.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/prefault.h"
#include "transport/base/clock.h"

enum { PAGES = 2048, WAIT_MS = 20000 };

struct fixture {
    int file;
    struct guest_region region;
};

static struct fixture make(enum guest_backing backing)
{
    struct fixture f = {.file = memfd_create("prefault", MFD_CLOEXEC)};

    f.region = (struct guest_region){.size = PAGES * GUEST_PAGE_SIZE, .backing = backing};
    cr_assert_eq(ftruncate(f.file, PAGES * GUEST_PAGE_SIZE), 0);
    f.region.host = mmap(NULL, f.region.size, PROT_READ | PROT_WRITE, MAP_SHARED, f.file, 0);
    cr_assert_neq(f.region.host, MAP_FAILED);
    return f;
}

static uint64_t pages_held(const struct fixture *f)
{
    struct stat st;

    cr_assert_eq(fstat(f->file, &st), 0);
    return (uint64_t)st.st_blocks * 512 / GUEST_PAGE_SIZE;
}

static void prepare(const struct fixture *f, const struct extent *extents, unsigned count,
                    uint64_t expected)
{
    uint64_t deadline = clock_now() + WAIT_MS * NS_PER_MS;
    struct prefault *p;
    struct error err = {0};

    cr_assert_eq(prefault_new(&f->region, 1, &p, &err), 0, "%s", err.text);
    for (unsigned i = 0; i < count; i++)
        prefault_add(p, 0, &extents[i]);
    prefault_add(p, 1, &extents[0]); /* a region that is not there */
    prefault_start(p);
    while (pages_held(f) < expected && clock_now() < deadline)
        clock_sleep_until(clock_now() + NS_PER_MS);
    prefault_stop(p);
}

static bool can_populate(const struct fixture *f)
{
    return madvise(f->region.host, GUEST_PAGE_SIZE, 23 /* MADV_POPULATE_WRITE */) == 0;
}

Test(prefault, makes_what_is_announced)
{
    static const struct extent extents[] = {{0, 3 * GUEST_PAGE_SIZE},
                                            {700 * GUEST_PAGE_SIZE, 900 * GUEST_PAGE_SIZE}};
    struct fixture f = make(GUEST_NAMED_FILE);

    if (!can_populate(&f))
        cr_skip_test("this kernel has no MADV_POPULATE_WRITE");
    prepare(&f, extents, 2, 903);
    cr_expect_eq(pages_held(&f), 903, "expected the 903 pages announced, got %llu",
                 (unsigned long long)pages_held(&f));
    cr_expect_eq(lseek(f.file, 3 * GUEST_PAGE_SIZE, SEEK_DATA), 700 * GUEST_PAGE_SIZE,
                 "expected a hole between the two");
}

Test(prefault, leaves_memory_without_a_file_alone)
{
    static const struct extent extents[] = {{0, 3 * GUEST_PAGE_SIZE}};
    struct fixture f = make(GUEST_ANONYMOUS);

    prepare(&f, extents, 1, 0);
    cr_expect_eq(pages_held(&f), 0, "expected no page, got %llu",
                 (unsigned long long)pages_held(&f));
}

Test(prefault, can_be_stopped_before_it_began)
{
    struct fixture f = make(GUEST_NAMED_FILE);
    struct prefault *p;
    struct error err = {0};

    prefault_stop(NULL);
    cr_assert_eq(prefault_new(&f.region, 1, &p, &err), 0, "%s", err.text);
    prefault_stop(p);
}
