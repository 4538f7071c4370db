/* The lab guest's trackers: no write is lost, whatever is taken while the guest writes. */
#include "tests/unit/lab_fixture.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>

#include "migrate/guest/lab/abi.h"
#include "transport/base/clock.h"

static const char *const tracker_names[] = {"dirty-log", "dirty-ring"};

/* The place a migration would copy to. */
struct mirror {
    unsigned count;
    const struct guest_region *regions;
    uint8_t *copies[LAB_MAX_REGIONS];
};

static struct mirror new_mirror(struct guest *guest)
{
    struct mirror mirror = {0};

    mirror.count = guest->ops->regions(guest, &mirror.regions);
    for (unsigned i = 0; i < mirror.count; i++) {
        mirror.copies[i] = mmap(NULL, mirror.regions[i].size, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        cr_assert_neq(mirror.copies[i], MAP_FAILED);
    }
    return mirror;
}

static void free_mirror(struct mirror *mirror)
{
    for (unsigned i = 0; i < mirror->count; i++)
        munmap(mirror->copies[i], mirror->regions[i].size);
}

/* Guest RAM is written while it is read here: that is the point. */
__attribute__((no_sanitize("thread", "address"))) static void
copy_bytes(struct mirror *mirror, unsigned region, uint64_t offset, uint64_t length)
{
    const volatile uint64_t *from =
        (const void *)((uint8_t *)mirror->regions[region].host + offset);
    uint64_t *to = (void *)(mirror->copies[region] + offset);

    for (uint64_t i = 0; i < length / sizeof *to; i++)
        to[i] = from[i];
}

static void copy_present(struct guest *guest, struct mirror *mirror)
{
    struct error err = {0};

    for (unsigned i = 0; i < mirror->count; i++) {
        struct extent_list extents = {0};

        cr_assert_eq(guest->ops->present(guest, i, &extents, &err), 0, "present: %s", err.text);
        for (size_t j = 0; j < extents.count; j++)
            copy_bytes(mirror, i, extents.extents[j].offset, extents.extents[j].length);
        extent_list_free(&extents);
    }
}

static uint64_t collect(struct tracker *tracker)
{
    struct error err = {0};
    uint64_t pages = 0;

    cr_assert_eq(tracker->ops->collect(tracker, &pages, &err), 0, "collect: %s", err.text);
    return pages;
}

static uint64_t take_chunk(struct tracker *tracker, struct mirror *mirror, unsigned region,
                           uint64_t chunk)
{
    uint64_t bits[TRACKER_WORDS_PER_CHUNK], taken = 0;
    struct error err = {0};

    cr_assert_eq(tracker->ops->take(tracker, region, chunk, bits, &err), 0, "take: %s", err.text);
    for (unsigned i = 0; i < GUEST_CHUNK_PAGES; i++) {
        if (!(bits[i / 64] >> i % 64 & 1))
            continue;
        taken++;
        if (mirror)
            copy_bytes(mirror, region, (chunk * GUEST_CHUNK_PAGES + i) * GUEST_PAGE_SIZE,
                       GUEST_PAGE_SIZE);
    }
    return taken;
}

static uint64_t take_all(struct tracker *tracker, struct mirror *mirror, unsigned regions)
{
    uint64_t taken = 0;

    for (unsigned i = 0; i < regions; i++)
        for (uint64_t page = 0; tracker->ops->next(tracker, i, &page);) {
            uint64_t chunk = page / GUEST_CHUNK_PAGES, some = take_chunk(tracker, mirror, i, chunk);

            cr_assert_gt(some, 0, "next said page %llu, take gave none", (unsigned long long)page);
            taken += some;
            page = (chunk + 1) * GUEST_CHUNK_PAGES;
        }
    return taken;
}

static struct tracker *start_tracker(struct guest *guest, const char *name)
{
    struct tracker *tracker = NULL;
    struct error err = {0};

    cr_assert_eq(guest->ops->tracker(guest, name, &tracker, &err), 0, "tracker: %s", err.text);
    cr_assert_str_eq(tracker->ops->name, name);
    cr_assert_eq(tracker->ops->start(tracker, &err), 0, "start: %s", err.text);
    return tracker;
}

static void expect_same_extent(const struct mirror *mirror, unsigned region,
                               const struct extent *extent, const char *what)
{
    const uint8_t *memory = mirror->regions[region].host;

    for (uint64_t at = extent->offset; at < extent->offset + extent->length; at += GUEST_PAGE_SIZE)
        cr_assert_eq(memcmp(memory + at, mirror->copies[region] + at, GUEST_PAGE_SIZE), 0,
                     "%s: page %llu of region %u was lost", what,
                     (unsigned long long)(at / GUEST_PAGE_SIZE), region);
}

/* What the guest has never touched is zero on both sides. */
static void expect_same(struct guest *guest, const struct mirror *mirror, const char *what)
{
    struct error err = {0};

    for (unsigned i = 0; i < mirror->count; i++) {
        struct extent_list extents = {0};

        cr_assert_eq(guest->ops->present(guest, i, &extents, &err), 0, "present: %s", err.text);
        for (size_t j = 0; j < extents.count; j++)
            expect_same_extent(mirror, i, &extents.extents[j], what);
        extent_list_free(&extents);
    }
}

/* A migration in small: `rounds` rounds while the guest writes, `rest_us` apart, the last one
 * paused. */
static void migrate(const char *name, unsigned vcpus, uint64_t mebibytes, const char *workload,
                    int rounds, useconds_t rest_us)
{
    struct guest *guest = new_guest(mebibytes, vcpus, workload);
    struct mirror mirror = new_mirror(guest);
    struct tracker *tracker;
    uint64_t found, taken, total = 0;

    resume(guest);
    wait_for_writes(guest, 1);
    tracker = start_tracker(guest, name);
    copy_present(guest, &mirror);
    for (int i = 0; i < rounds; i++) {
        usleep(rest_us);
        found = collect(tracker);
        taken = take_all(tracker, &mirror, mirror.count);
        cr_assert_geq(taken, found, "%s: collect found %llu, %llu were taken", name,
                      (unsigned long long)found, (unsigned long long)taken);
        total += taken;
    }
    pause_guest(guest);
    cr_expect_gt(total, 0, "%s: a writing guest dirtied nothing", name);
    collect(tracker);
    take_all(tracker, &mirror, mirror.count);
    expect_same(guest, &mirror, name);
    cr_expect_eq(collect(tracker), 0, "%s: a paused guest dirties pages", name);
    tracker->ops->stop(tracker);
    tracker->ops->close(tracker);
    free_mirror(&mirror);
    guest->ops->destroy(guest);
}

Test(lab_trackers, dirty_log_loses_no_write_of_one_vcpu)
{
    need_kvm();
    migrate("dirty-log", 1, 64, "hot=8M,rate=max,pattern=random", 60, 3000);
}

Test(lab_trackers, dirty_log_loses_no_write_of_four_vcpus)
{
    need_kvm();
    migrate("dirty-log", 4, 64, "hot=8M,rate=max,pattern=random", 60, 3000);
}

Test(lab_trackers, dirty_ring_loses_no_write_of_one_vcpu)
{
    need_kvm();
    migrate("dirty-ring", 1, 64, "hot=8M,rate=max,pattern=random", 60, 3000);
}

Test(lab_trackers, dirty_ring_loses_no_write_of_four_vcpus)
{
    need_kvm();
    migrate("dirty-ring", 4, 64, "hot=8M,rate=max,pattern=random", 60, 3000);
}

/* Both sides of the hole below 4 GiB: little of 3.1 GiB is ever touched. */
Test(lab_trackers, memory_above_the_hole_is_tracked)
{
    need_kvm();
    migrate("dirty-log", 1, 3200, "hot=8M,at=3052M,rate=max", 5, 50000);
    migrate("dirty-ring", 1, 3200, "hot=8M,at=3052M,rate=max", 5, 50000);
}

/* More pages than a ring has entries are written between two collects: the vCPU empties its ring
 * itself. */
Test(lab_trackers, a_full_ring_loses_no_write, .timeout = 120)
{
    struct guest *guest;
    struct mirror mirror;
    struct tracker *tracker;
    uint64_t pages;

    need_kvm();
    guest = new_guest(320, 1, "hot=288M,rate=max");
    mirror = new_mirror(guest);
    tracker = start_tracker(guest, "dirty-ring");
    copy_present(guest, &mirror);
    resume(guest);
    wait_for_writes(guest, MACHINE_RING_ENTRIES + 4096);
    pause_guest(guest);
    pages = collect(tracker);
    cr_expect_gt(pages, MACHINE_RING_ENTRIES, "%llu dirty pages do not overfill a ring of %d",
                 (unsigned long long)pages, MACHINE_RING_ENTRIES);
    take_all(tracker, &mirror, mirror.count);
    expect_same(guest, &mirror, "full ring");
    tracker->ops->close(tracker);
    free_mirror(&mirror);
    guest->ops->destroy(guest);
}

static void on_alarm(int signal)
{
    (void)signal;
}

/* A pending signal makes KVM give up arming pages, and it tells only by a smaller count. */
Test(lab_trackers, signals_leave_no_page_of_a_ring_unarmed)
{
    struct itimerval often = {{0, 50}, {0, 50}}, never = {0};
    struct guest *guest;
    struct tracker *tracker;

    need_kvm();
    guest = new_guest(64, 1, "hot=32M,rate=max");
    resume(guest);
    wait_for_writes(guest, 1);
    tracker = start_tracker(guest, "dirty-ring");
    signal(SIGALRM, on_alarm);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 40; i++) {
        clock_sleep_until(clock_now() + 30 * NS_PER_MS);
        collect(tracker); /* it fails when fewer pages were armed than found */
        take_all(tracker, NULL, 1);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    tracker->ops->close(tracker);
    guest->ops->destroy(guest);
}

static void mark_by_hand(const char *name)
{
    struct guest *guest = new_guest(16, 1, "");
    struct tracker *tracker = start_tracker(guest, name);
    uint64_t page = 0;

    collect(tracker);
    take_all(tracker, NULL, 1);
    tracker->ops->mark(tracker, 0, 1000, 3);
    tracker->ops->mark(tracker, 0, 4090, 1000); /* all but 6 lie behind the end */
    tracker->ops->mark(tracker, 7, 0, 1);       /* no such region */
    cr_expect_not(tracker->ops->next(tracker, 0, &page), "%s: a mark shows before collect", name);
    cr_expect_eq(collect(tracker), 9, "%s: pages marked", name);
    cr_expect_eq(collect(tracker), 9, "%s: marked, collected, not taken, collected again", name);
    page = 0;
    cr_expect(tracker->ops->next(tracker, 0, &page) && page == 1000,
              "%s: next: expected 1000, got %llu", name, (unsigned long long)page);
    page = 1003;
    cr_expect(tracker->ops->next(tracker, 0, &page) && page == 4090,
              "%s: next: expected 4090, got %llu", name, (unsigned long long)page);
    cr_expect_eq(take_all(tracker, NULL, 1), 9, "%s: pages taken", name);
    cr_expect_eq(collect(tracker), 0, "%s: after all was taken", name);
    tracker->ops->close(tracker);
    guest->ops->destroy(guest);
}

Test(lab_trackers, pages_marked_by_hand_come_with_the_next_collect)
{
    need_kvm();
    for (size_t i = 0; i < 2; i++)
        mark_by_hand(tracker_names[i]);
}

/* Collected and not taken is not lost, however often collect is called. */
Test(lab_trackers, untaken_pages_stay)
{
    need_kvm();
    for (size_t i = 0; i < 2; i++) {
        struct guest *guest = new_guest(32, 1, "hot=4M,rate=max");
        struct tracker *tracker = start_tracker(guest, tracker_names[i]);
        uint64_t first;

        resume(guest);
        wait_for_writes(guest, 1024);
        pause_guest(guest);
        first = collect(tracker);
        cr_expect_geq(first, 1024, "%s: dirty pages", tracker_names[i]);
        cr_expect_eq(collect(tracker), first, "%s: second collect", tracker_names[i]);
        cr_expect_eq(take_all(tracker, NULL, 1), first, "%s: taken", tracker_names[i]);
        cr_expect_eq(collect(tracker), 0, "%s: after all was taken", tracker_names[i]);
        tracker->ops->close(tracker);
        guest->ops->destroy(guest);
    }
}

/* What peek shows comes with the next collect. */
Test(lab_trackers, ring_peek_shows_what_is_dirty_again)
{
    enum { CHUNK = LAB_WORKLOAD_START / GUEST_CHUNK_SIZE };
    uint64_t again[TRACKER_WORDS_PER_CHUNK], bits[TRACKER_WORDS_PER_CHUNK], any = 0;
    struct error err = {0};
    struct guest *guest;
    struct tracker *tracker;

    need_kvm();
    guest = new_guest(32, 1, "hot=1M,rate=max");
    tracker = start_tracker(guest, "dirty-ring");
    resume(guest);
    wait_for_writes(guest, 256);
    collect(tracker);
    cr_expect_gt(take_chunk(tracker, NULL, 0, CHUNK), 0, "the hot chunk is not dirty");
    for (int i = 0; i < 1000 && !any; i++) {
        usleep(10000);
        cr_assert_eq(tracker->ops->peek(tracker, 0, CHUNK, again, &err), 0, "peek: %s", err.text);
        any = again[0];
    }
    cr_expect_neq(any, 0, "a chunk written all the time never shows as dirty again");
    pause_guest(guest);
    collect(tracker);
    cr_assert_eq(tracker->ops->take(tracker, 0, CHUNK, bits, &err), 0, "take: %s", err.text);
    for (int i = 0; i < TRACKER_WORDS_PER_CHUNK; i++)
        cr_expect_eq(again[i] & ~bits[i], 0, "word %d: peek showed %#llx, collect brought %#llx", i,
                     (unsigned long long)again[i], (unsigned long long)bits[i]);
    cr_expect_eq(tracker->ops->peek(tracker, 0, 1 << 20, again, &err), -EINVAL,
                 "peek beyond the end");
    tracker->ops->close(tracker);
    guest->ops->destroy(guest);
}

/* One guest, one tracker after the other, running all the while. */
Test(lab_trackers, the_tracker_can_change_under_a_running_guest)
{
    struct guest *guest;
    struct guest_workload account = {0};
    struct error err = {0};

    need_kvm();
    guest = new_guest(32, 2, "hot=4M,rate=max");
    resume(guest);
    for (int i = 0; i < 6; i++) {
        struct tracker *tracker = start_tracker(guest, tracker_names[i % 2]);

        guest->ops->workload(guest, &account);
        wait_for_writes(guest, account.pages_written + 1);
        cr_expect_gt(collect(tracker), 0, "%s: a writing guest dirties nothing",
                     tracker_names[i % 2]);
        tracker->ops->stop(tracker);
        tracker->ops->close(tracker);
    }
    cr_assert_eq(guest->ops->request_check(guest, &err), 0, "request_check: %s", err.text);
    for (int i = 0; i < 3000 && account.checks == 0; i++) {
        usleep(10000);
        guest->ops->workload(guest, &account);
    }
    cr_expect_eq(account.moves, 0, "a change of tracker is no move, got %llu",
                 (unsigned long long)account.moves);
    cr_expect_gt(account.checked_pages, 0, "no page was checked");
    cr_expect_eq(account.bad_pages, 0, "bad pages: %llu", (unsigned long long)account.bad_pages);
    guest->ops->destroy(guest);
}

Test(lab_trackers, refusals_name_the_reason)
{
    struct tracker *tracker, *second = NULL;
    uint64_t bits[TRACKER_WORDS_PER_CHUNK];
    struct error err = {0};
    struct guest *guest;

    need_kvm();
    guest = new_guest(16, 1, "");
    cr_expect_eq(guest->ops->tracker(guest, "soft-dirty", &second, &err), -EINVAL);
    cr_expect(strstr(err.text, "dirty-log") && strstr(err.text, "dirty-ring"),
              "expected both trackers to be named, got: %s", err.text);
    tracker = start_tracker(guest, "dirty-log");
    error_clear(&err);
    cr_expect_eq(guest->ops->tracker(guest, NULL, &second, &err), -EBUSY, "a second tracker");
    error_clear(&err);
    cr_expect_eq(tracker->ops->take(tracker, 0, 16, bits, &err), -EINVAL, "take beyond the end");
    error_clear(&err);
    cr_expect_eq(tracker->ops->take(tracker, 1, 0, bits, &err), -EINVAL, "take of no region");
    tracker->ops->close(tracker);
    guest->ops->destroy(guest);
}
