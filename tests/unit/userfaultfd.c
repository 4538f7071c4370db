/* The userfaultfd tracker over real memory: what counts as dirty, and that no write is ever lost.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migrate/guest/pagemap.h"
#include "migrate/guest/userfaultfd.h"
#include "transport/base/clock.h"

#define MIB        (1ull << 20)
#define UNRECORDED __attribute__((no_sanitize("thread"))) /* guest RAM is raced over by design */

struct fixture {
    struct guest_region region;
    uint8_t *base;
    struct tracker *tracker;
};

static void require_userfaultfd(void)
{
    struct error err = {0};

    if (userfaultfd_probe(&err) < 0)
        cr_skip_test("%s", err.text);
}

static struct fixture set_up(uint64_t size)
{
    struct fixture f = {.region = {.name = "ram", .size = size}};
    struct error err = {0};

    require_userfaultfd();
    f.base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                  -1, 0);
    cr_assert_neq(f.base, MAP_FAILED);
    madvise(f.base, size, MADV_NOHUGEPAGE);
    f.region.host = f.base;
    cr_assert_eq(userfaultfd_tracker_new(&f.region, 1, &f.tracker, &err), 0, "%s", err.text);
    return f;
}

static void tear_down(struct fixture *f)
{
    f->tracker->ops->close(f->tracker);
    munmap(f->base, f->region.size);
}

static void start(struct fixture *f)
{
    struct error err = {0};

    cr_assert_eq(f->tracker->ops->start(f->tracker, &err), 0, "%s", err.text);
}

static uint64_t collect(struct fixture *f)
{
    struct error err = {0};
    uint64_t pages = 0;

    cr_assert_eq(f->tracker->ops->collect(f->tracker, &pages, &err), 0, "%s", err.text);
    return pages;
}

static unsigned take(struct fixture *f, uint64_t chunk, uint64_t bits[TRACKER_WORDS_PER_CHUNK])
{
    struct error err = {0};
    unsigned pages = 0;

    cr_assert_eq(f->tracker->ops->take(f->tracker, 0, chunk, bits, &err), 0, "%s", err.text);
    for (size_t i = 0; i < TRACKER_WORDS_PER_CHUNK; i++)
        pages += (unsigned)__builtin_popcountll(bits[i]);
    return pages;
}

static void expect_next(struct fixture *f, uint64_t from, int64_t expected)
{
    uint64_t page = from;
    bool found = f->tracker->ops->next(f->tracker, 0, &page);

    cr_expect_eq(found ? (int64_t)page : -1, expected, "next after %zu: %lld, expected %lld",
                 (size_t)from, found ? (long long)page : -1ll, (long long)expected);
}

Test(userfaultfd, round)
{
    struct fixture f = set_up(64 * MIB);
    uint64_t bits[TRACKER_WORDS_PER_CHUNK];

    memset(f.base, 1, 4 * MIB);
    start(&f);
    cr_expect_eq(collect(&f), 0, "what was written before start is not dirty");
    f.base[5 * 4096] = 2;
    f.base[2 * MIB] = 2;
    f.base[40 * MIB + 4096] = 2; /* a hole until now */
    cr_expect_eq(*(volatile uint8_t *)(f.base + MIB), 1);
    cr_expect_eq(collect(&f), 3);
    expect_next(&f, 0, 5);
    expect_next(&f, 6, 512);
    expect_next(&f, 513, 40 * 256 + 1);
    expect_next(&f, 40 * 256 + 2, -1);
    cr_expect_eq(take(&f, 0, bits), 1);
    cr_expect_eq(bits[0], 1ull << 5);
    expect_next(&f, 0, 512);
    f.base[6 * 4096] = 3;
    cr_expect_eq(take(&f, 0, bits), 1, "take hands out what was dirtied since collect");
    cr_expect_eq(bits[0], 1ull << 6);
    cr_expect_eq(take(&f, 2, bits), 1);
    cr_expect_eq(take(&f, 40, bits), 1);
    cr_expect_eq(take(&f, 41, bits), 0, "a hole");
    expect_next(&f, 0, -1);
    cr_expect_eq(collect(&f), 0);
    tear_down(&f);
}

Test(userfaultfd, peek_and_mark)
{
    struct fixture f = set_up(10 * MIB + 4096); /* the last chunk has one page */
    uint64_t bits[TRACKER_WORDS_PER_CHUNK];
    struct error err = {0};

    memset(f.base, 1, f.region.size);
    start(&f);
    f.base[0] = 2;
    cr_expect_eq(take(&f, 0, bits), 1);
    f.base[4096] = 2;
    cr_assert_eq(f.tracker->ops->peek(f.tracker, 0, 0, bits, &err), 0, "%s", err.text);
    cr_expect_eq(bits[0], 2, "peek says %#zx", (size_t)bits[0]);
    cr_expect_eq(collect(&f), 1, "peek takes nothing");

    f.tracker->ops->mark(f.tracker, 0, 10 * 256, 1000);
    f.tracker->ops->mark(f.tracker, 0, UINT64_MAX - 1, UINT64_MAX);
    f.tracker->ops->mark(f.tracker, 7, 0, 1);
    cr_expect_eq(collect(&f), 2, "a mark ends where the region ends");
    expect_next(&f, 2, 10 * 256);
    cr_expect_eq(collect(&f), 2, "a mark stays until it is taken");
    cr_expect_eq(take(&f, 10, bits), 1);
    cr_expect_eq(bits[0], 1);
    cr_expect_eq(collect(&f), 1);
    cr_expect_eq(f.tracker->ops->take(f.tracker, 0, 11, bits, &err), -EINVAL);
    tear_down(&f);
}

/* One write to an armed huge page makes 4 KiB dirty, not 2 MiB. */
Test(userfaultfd, grain_in_huge_pages)
{
    struct fixture f = set_up(16 * MIB);
    uint64_t bits[TRACKER_WORDS_PER_CHUNK];

    madvise(f.base, f.region.size, MADV_HUGEPAGE);
    memset(f.base, 1, f.region.size);
    madvise(f.base, f.region.size, MADV_NOHUGEPAGE);
    start(&f);
    f.base[5 * MIB] = 2;
    f.base[9 * MIB + 4096] = 2;
    cr_expect_eq(collect(&f), 2);
    cr_expect_eq(take(&f, 5, bits), 1);
    cr_expect_eq(take(&f, 9, bits), 1);
    cr_expect_eq(bits[0], 2);
    tear_down(&f);
}

/* The kernel writing for us, as recv into guest RAM does. */
Test(userfaultfd, sees_system_calls)
{
    struct fixture f = set_up(4 * MIB);
    int pipes[2];

    memset(f.base, 1, f.region.size);
    start(&f);
    cr_assert_eq(pipe(pipes), 0);
    cr_assert_eq(write(pipes[1], "x", 1), 1);
    cr_assert_eq(read(pipes[0], f.base + 7 * 4096, 1), 1);
    cr_expect_eq(collect(&f), 1);
    expect_next(&f, 0, 7);
    close(pipes[0]);
    close(pipes[1]);
    tear_down(&f);
}

Test(userfaultfd, one_at_a_time)
{
    struct fixture f = set_up(4 * MIB);
    struct error err = {0};
    struct tracker *second;

    start(&f);
    cr_assert_eq(userfaultfd_tracker_new(&f.region, 1, &second, &err), 0, "%s", err.text);
    cr_expect_eq(second->ops->start(second, &err), -EBUSY, "%s", err.text);
    f.base[0] = 1;
    cr_expect_eq(collect(&f), 1, "a second tracker's attempt disturbs the first");
    f.tracker->ops->stop(f.tracker);
    error_clear(&err);
    cr_expect_eq(second->ops->start(second, &err), 0, "%s", err.text);
    f.base[0] = 2;
    uint64_t pages = 0;
    cr_expect_eq(second->ops->collect(second, &pages, &err), 0, "%s", err.text);
    cr_expect_eq(pages, 1);
    second->ops->close(second);
    tear_down(&f);
}

/* Starting over forgets what the tracking before had armed and marked. */
Test(userfaultfd, again)
{
    struct fixture f = set_up(4 * MIB);

    memset(f.base, 1, MIB);
    for (int i = 0; i < 3; i++) {
        start(&f);
        cr_expect_eq(collect(&f), 0, "start %d", i);
        f.base[i * 4096] = 2;
        f.tracker->ops->mark(f.tracker, 0, 100, 1);
        cr_expect_eq(collect(&f), 2, "start %d", i);
        f.tracker->ops->stop(f.tracker);
    }
    tear_down(&f);
}

struct writer {
    pthread_t thread;
    uint64_t *words;
    uint64_t pages;
    unsigned number;
    atomic_bool *stop;
    uint64_t written;
};

/* Writes a word somewhere in a random page, holes included, as fast as it can. */
static UNRECORDED void *write_at_random(void *argument)
{
    struct writer *w = argument;
    uint64_t x = w->number * 0x9e3779b97f4a7c15ull + 1;

    while (!atomic_load_explicit(w->stop, memory_order_relaxed)) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        ((volatile uint64_t *)w->words)[(x >> 20) % w->pages * 512 + x % 512] = x;
        w->written++;
    }
    return NULL;
}

static UNRECORDED void copy_page(uint64_t *to, const uint64_t *from)
{
    for (size_t i = 0; i < 512; i++)
        to[i] = ((const volatile uint64_t *)from)[i];
}

/* One round as the engine does it: re-armed first, then read. */
static uint64_t copy_round(struct fixture *f, uint8_t *copy)
{
    uint64_t bits[TRACKER_WORDS_PER_CHUNK], page = 0, copied = 0;

    collect(f);
    while (f->tracker->ops->next(f->tracker, 0, &page)) {
        uint64_t chunk = page / GUEST_CHUNK_PAGES;
        copied += take(f, chunk, bits);
        for (unsigned bit = 0; bit < GUEST_CHUNK_PAGES; bit++) {
            uint64_t offset = (chunk * GUEST_CHUNK_PAGES + bit) * GUEST_PAGE_SIZE;
            if (bits[bit / 64] >> bit % 64 & 1)
                copy_page((uint64_t *)(copy + offset), (const uint64_t *)(f->base + offset));
        }
        page = (chunk + 1) * GUEST_CHUNK_PAGES;
    }
    return copied;
}

static void stress(unsigned writers, uint64_t size, unsigned rounds, bool huge)
{
    struct fixture f = set_up(size);
    uint8_t *copy = mmap(NULL, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct writer w[4] = {0};
    atomic_bool stop = false;
    uint64_t copied = 0, written = 0;

    cr_assert_neq(copy, MAP_FAILED);
    if (huge) {
        madvise(f.base, size, MADV_HUGEPAGE);
        memset(f.base, 1, size);
        memset(copy, 1, size);
    }
    start(&f);
    for (unsigned i = 0; i < writers; i++) {
        w[i] = (struct writer){
            .words = (uint64_t *)f.base, .pages = size / 4096, .number = i + 1, .stop = &stop};
        cr_assert_eq(pthread_create(&w[i].thread, NULL, write_at_random, &w[i]), 0);
    }
    for (unsigned round = 0; round < rounds;) {
        uint64_t pages = copy_round(&f, copy);
        copied += pages;
        round += pages > 0;
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < writers; i++) {
        pthread_join(w[i].thread, NULL);
        written += w[i].written;
    }
    copied += copy_round(&f, copy);
    cr_log_info("%u writers: %zu writes, %zu pages copied in %u rounds", writers, (size_t)written,
                (size_t)copied, rounds + 1);
    cr_expect(written > 10000 && copied > 1000, "hardly anything happened: %zu writes, %zu copies",
              (size_t)written, (size_t)copied);
    for (uint64_t page = 0; page < size / 4096; page++)
        cr_assert_eq(memcmp(copy + page * 4096, f.base + page * 4096, 4096), 0,
                     "page %zu lost a write", (size_t)page);
    munmap(copy, size);
    tear_down(&f);
}

Test(userfaultfd, no_write_is_lost_by_one_writer)
{
    stress(1, 64 * MIB, 60, false);
}

Test(userfaultfd, no_write_is_lost_by_four_writers)
{
    stress(4, 64 * MIB, 60, false);
}

/* Few pages, so that nearly every copy meets a write. */
Test(userfaultfd, no_write_is_lost_in_a_tight_place)
{
    stress(4, MIB, 3000, false);
}

Test(userfaultfd, no_write_is_lost_in_huge_pages)
{
    stress(2, 64 * MIB, 60, true);
}
