/* The synthetic guest: pacing, pausing, self-checks that find what is wrong, and moves within one
 * process. */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "migrate/guest/pagemap.h"
#include "migrate/guest/synthetic/synthetic.h"
#include "migrate/guest/tracker.h"
#include "transport/base/clock.h"
#include "transport/base/wire.h"

#define MIB        (1ull << 20)
#define UNRECORDED __attribute__((no_sanitize("thread"))) /* guest RAM is raced over by design */

static void sleep_ms(uint64_t ms)
{
    clock_sleep_until(clock_now() + ms * NS_PER_MS);
}

static struct guest *make_guest(uint64_t memory, unsigned vcpus, const char *spec)
{
    struct synthetic_config config = {.name = "test", .memory_bytes = memory, .vcpus = vcpus};
    struct error err = {0};
    struct guest *g;

    cr_assert_eq(workload_parse(spec, &config.workload, &err), 0, "%s", err.text);
    cr_assert_eq(synthetic_guest_new(&config, &g, &err), 0, "%s", err.text);
    return g;
}

static void pause_guest(struct guest *g)
{
    struct error err = {0};

    cr_assert_eq(g->ops->pause(g, &err), 0, "%s", err.text);
}

static void resume_guest(struct guest *g)
{
    struct error err = {0};

    cr_assert_eq(g->ops->resume(g, &err), 0, "%s", err.text);
}

static struct guest_workload account(struct guest *g)
{
    struct guest_workload w;

    g->ops->workload(g, &w);
    return w;
}

/* Waits for self-check number `checks`. */
static struct guest_workload await_checks(struct guest *g, uint64_t checks)
{
    uint64_t deadline = clock_now() + 20 * NS_PER_S;

    while (account(g).checks < checks && clock_now() < deadline)
        sleep_ms(1);
    cr_assert_geq(account(g).checks, checks, "no self-check within 20 s");
    return account(g);
}

static struct guest_workload check_now(struct guest *g)
{
    uint64_t checks = account(g).checks;
    struct error err = {0};

    cr_assert_eq(g->ops->request_check(g, &err), 0, "%s", err.text);
    return await_checks(g, checks + 1);
}

static uint8_t *ram_of(struct guest *g)
{
    const struct guest_region *regions;

    cr_assert_eq(g->ops->regions(g, &regions), 1);
    return regions[0].host;
}

Test(synthetic, starts_paused_and_pauses)
{
    struct guest *g = make_guest(64 * MIB, 4, "hot=16M,pattern=random");

    cr_expect(g->ops->paused(g));
    sleep_ms(20);
    cr_expect_eq(account(g).pages_written, 0);
    for (int i = 0; i < 200; i++) {
        resume_guest(g);
        if (i % 2)
            resume_guest(g);
        cr_expect_not(g->ops->paused(g));
        if (i % 10 == 0)
            sleep_ms(2);
        pause_guest(g);
        pause_guest(g);
        cr_expect(g->ops->paused(g));
        uint64_t written = account(g).pages_written;
        sleep_ms(1);
        cr_assert_eq(account(g).pages_written, written, "written while paused");
    }
    cr_expect_gt(account(g).pages_written, 1000);
    resume_guest(g);
    struct guest_workload w = check_now(g);
    cr_expect_eq(w.bad_pages, 0);
    cr_expect(w.checked_pages > 0 && w.checked_pages <= 4096, "%" PRIu64 " pages checked",
              w.checked_pages);
    g->ops->destroy(g);
}

struct pace_case {
    const char *spec;
    unsigned vcpus, throttle;
    uint64_t rate;
};

static const struct pace_case paces[] = {
    {"hot=16M,rate=50000", 1, 0, 50000},
    {"hot=16M,rate=50000,pattern=random", 4, 0, 50000},
    {"hot=16M,rate=700", 1, 0, 700},
    {"hot=16M,rate=30M/s,pattern=window,window=1M", 3, 0, 7680},
    {"hot=8K,rate=3000", 4, 0, 3000},
    {"hot=16M,rate=20000", 2, 50, 10000},
};

/* Time is short and the machine shared, so the bounds are wide here; the upper one holds by
 * construction. */
Test(synthetic, pace)
{
    for (size_t i = 0; i < sizeof(paces) / sizeof(paces[0]); i++) {
        struct guest *g = make_guest(64 * MIB, paces[i].vcpus, paces[i].spec);
        struct error err = {0};
        cr_assert_eq(g->ops->throttle(g, paces[i].throttle, &err), 0);
        uint64_t start = clock_now();
        resume_guest(g);
        sleep_ms(1000);
        pause_guest(g);
        double seconds = ns_to_ms(clock_now() - start) / 1000;
        double expected = (double)paces[i].rate * seconds, got = (double)account(g).pages_written;
        cr_log_info("%s: %.0f pages, expected %.0f", paces[i].spec, got, expected);
        cr_expect(got < expected * 1.02 + 64, "%s: %.0f pages in %.2f s, expected %.0f",
                  paces[i].spec, got, seconds, expected);
        cr_expect(got > expected * 0.1, "%s: %.0f pages in %.2f s, expected %.0f", paces[i].spec,
                  got, seconds, expected);
        g->ops->destroy(g);
    }
}

Test(synthetic, no_burst_after_a_pause)
{
    struct guest *g = make_guest(64 * MIB, 2, "hot=16M,rate=10000");

    resume_guest(g);
    sleep_ms(50);
    pause_guest(g);
    uint64_t before = account(g).pages_written;
    sleep_ms(500);
    uint64_t start = clock_now();
    resume_guest(g);
    sleep_ms(50);
    pause_guest(g);
    double expected = 10 * ns_to_ms(clock_now() - start);
    uint64_t after = account(g).pages_written - before;
    cr_expect((double)after < expected * 1.02 + 64, "%" PRIu64 " pages, expected %.0f", after,
              expected);
    g->ops->destroy(g);
}

/* In CPU time: how many pages that buys varies on a shared machine. */
Test(synthetic, throttle_takes_time_away)
{
    static const unsigned percents[] = {50, 90, 99, 0};
    struct guest *g = make_guest(64 * MIB, 1, "hot=16M,pattern=random");
    struct error err = {0};

    resume_guest(g);
    for (size_t i = 0; i < 4; i++) {
        cr_assert_eq(g->ops->throttle(g, percents[i], &err), 0, "%s", err.text);
        uint64_t before = account(g).pages_written, cpu = clock_process_cpu(), start = clock_now();
        sleep_ms(300);
        double share = ns_to_ms(clock_process_cpu() - cpu) / ns_to_ms(clock_now() - start);
        cr_log_info("throttle %u: %.1f %% of a CPU", percents[i], share * 100);
        cr_expect(share < (100 - percents[i]) / 100.0 * 1.2 + 0.05, "throttle %u: %.0f %% of a CPU",
                  percents[i], share * 100);
        cr_expect_gt(account(g).pages_written, before, "throttle %u stops it altogether",
                     percents[i]);
    }
    cr_expect_eq(g->ops->throttle(g, 100, &err), -EINVAL);
    g->ops->destroy(g);
}

Test(synthetic, idle_costs_little)
{
    struct guest *g = make_guest(64 * MIB, 8, "touch=1M");

    resume_guest(g);
    uint64_t cpu = clock_process_cpu();
    sleep_ms(500);
    double share = ns_to_ms(clock_process_cpu() - cpu) / 500;
    cr_log_info("idle: %.1f %% of a CPU", share * 100);
    cr_expect(share < 0.3, "an idle guest takes %.0f %% of a CPU", share * 100);
    cr_expect_eq(account(g).pages_written, 0);
    g->ops->destroy(g);
}

struct damage {
    const char *name, *word; /* what it is, and what the console calls it */
    void (*inflict)(uint8_t *ram);
};

/* With one vCPU and 4 MiB hot: one page of table, then the hot set. */
static void flip_check(uint8_t *ram)
{
    ram[4096 + 10 * 4096 + 8] ^= 1;
}

static void flip_tail(uint8_t *ram)
{
    ram[4096 + 11 * 4096 + 4095] ^= 1;
}

static void swap_pages(uint8_t *ram)
{
    memcpy(ram + 4096 + 12 * 4096, ram + 4096 + 13 * 4096, 4096);
}

static void older_page(uint8_t *ram)
{
    uint32_t *sequences = (uint32_t *)ram;

    sequences[14]++;
    sequences[15]--;
}

/* Consistent in itself: only the number of writes tells. */
static void lost_page_and_sequence(uint8_t *ram)
{
    memset(ram + 4, 0, 4);
    memset(ram + 4096 + 4096, 0, 4096);
}

static const struct damage damages[] = {
    {"check word", "corrupt", flip_check},
    {"tail word", "torn", flip_tail},
    {"another page", "misplaced", swap_pages},
    {"older page", "stale", older_page},
    {"page and sequence lost", "sum", lost_page_and_sequence},
};

/* Pace so slow that nothing is written between the damage and the check. */
Test(synthetic, self_check_finds_damage)
{
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        struct guest *g = make_guest(16 * MIB, 1, "hot=4M");
        char console[256];
        resume_guest(g);
        while (account(g).pages_written < 4000)
            sleep_ms(1);
        cr_expect_eq(check_now(g).bad_pages, 0, "%s: bad before", damages[i].name);
        pause_guest(g);
        damages[i].inflict(ram_of(g));
        cr_assert_eq(g->ops->request_check(g, NULL), 0);
        resume_guest(g);
        struct guest_workload w = await_checks(g, 2);
        g->ops->console(g, console, sizeof(console));
        cr_expect_gt(w.bad_pages, 0, "%s: not found", damages[i].name);
        cr_expect(strstr(console, damages[i].word), "%s: '%s' does not say %s", damages[i].name,
                  console, damages[i].word);
        g->ops->destroy(g);
    }
}

static UNRECORDED void copy_page(uint64_t *to, const uint64_t *from)
{
    for (size_t i = 0; i < 512; i++)
        to[i] = ((const volatile uint64_t *)from)[i];
}

static void copy_present(struct guest *from, struct guest *to)
{
    struct extent_list list = {0};
    struct error err = {0};

    cr_assert_eq(from->ops->present(from, 0, &list, &err), 0, "%s", err.text);
    for (size_t i = 0; i < list.count; i++) {
        for (uint64_t at = list.extents[i].offset;
             at < list.extents[i].offset + list.extents[i].length; at += 4096)
            copy_page((uint64_t *)(ram_of(to) + at), (const uint64_t *)(ram_of(from) + at));
    }
    extent_list_free(&list);
}

static uint64_t copy_dirty(struct guest *from, struct tracker *t, struct guest *to)
{
    uint64_t bits[TRACKER_WORDS_PER_CHUNK], page = 0, pages;
    struct error err = {0};

    cr_assert_eq(t->ops->collect(t, &pages, &err), 0, "%s", err.text);
    while (t->ops->next(t, 0, &page)) {
        uint64_t chunk = page / GUEST_CHUNK_PAGES;
        cr_assert_eq(t->ops->take(t, 0, chunk, bits, &err), 0, "%s", err.text);
        for (unsigned bit = 0; bit < GUEST_CHUNK_PAGES; bit++) {
            uint64_t at = (chunk * GUEST_CHUNK_PAGES + bit) * GUEST_PAGE_SIZE;
            if (bits[bit / 64] >> bit % 64 & 1)
                copy_page((uint64_t *)(ram_of(to) + at), (const uint64_t *)(ram_of(from) + at));
        }
        page = (chunk + 1) * GUEST_CHUNK_PAGES;
    }
    return pages;
}

static struct guest *incoming_of(struct guest *from)
{
    struct guest_description d;
    struct reasons reasons = {0};
    struct error err = {0};
    struct guest *to;

    cr_assert_eq(from->ops->describe(from, &d, &err), 0, "%s", err.text);
    synthetic_guest_kind.check(&(struct guest_host){0}, &d, &reasons);
    cr_assert_eq(reasons.count, 0, "%s", reasons.text);
    cr_assert_eq(synthetic_guest_kind.incoming(&(struct guest_host){0}, &d, &to, &err), 0, "%s",
                 err.text);
    guest_description_free(&d);
    return to;
}

/* A pre-copy migration without a wire. Returns the guest that runs now; *downtime in ns.
 * `skip_last` leaves the last round out, which is what the self-check is there to find. */
static struct guest *move(struct guest *from, bool skip_last, uint64_t *downtime)
{
    struct guest *to = incoming_of(from);
    struct guest_state state = {0};
    struct guest_load_context context = {0};
    struct error err = {0};
    struct tracker *t;

    cr_assert_eq(from->ops->tracker(from, NULL, &t, &err), 0, "%s", err.text);
    cr_assert_eq(t->ops->start(t, &err), 0, "%s", err.text);
    copy_present(from, to);
    for (int round = 0; round < 3; round++)
        copy_dirty(from, t, to);
    if (skip_last)
        sleep_ms(5);
    *downtime = clock_now();
    pause_guest(from);
    if (!skip_last)
        copy_dirty(from, t, to);
    cr_assert_eq(from->ops->save(from, &state, &err), 0, "%s", err.text);
    cr_assert_eq(to->ops->load(to, state.bytes, state.size, &context, &err), 0, "%s", err.text);
    resume_guest(to);
    *downtime = clock_now() - *downtime;
    guest_state_free(&state);
    t->ops->close(t);
    from->ops->destroy(from);
    return to;
}

static void require_tracking(void)
{
    struct error err = {0};

    if (synthetic_probe(&err) < 0)
        cr_skip_test("%s", err.text);
}

struct move_case {
    const char *spec;
    unsigned vcpus;
};

static const struct move_case move_cases[] = {
    {"touch=8M,hot=16M,pattern=random", 1},
    {"touch=8M,hot=16M,pattern=random", 4},
    {"touch=32M,hot=16M,at=4M,rate=20000,pattern=hotcold", 4},
    {"touch=1M,hot=12K", 4},
    {"touch=1M", 2},
};

Test(synthetic, moves)
{
    require_tracking();
    for (size_t i = 0; i < sizeof(move_cases) / sizeof(move_cases[0]); i++) {
        struct guest *g = make_guest(64 * MIB, move_cases[i].vcpus, move_cases[i].spec);
        uint64_t written = 0, downtime, began = clock_now();
        resume_guest(g);
        sleep_ms(20);
        for (uint64_t hop = 1; hop <= 5; hop++) {
            g = move(g, false, &downtime);
            struct guest_workload w = await_checks(g, hop);
            cr_expect_eq(w.bad_pages, 0, "%s, hop %" PRIu64 ": %" PRIu64 " bad pages",
                         move_cases[i].spec, hop, w.bad_pages);
            cr_expect(w.moves == hop && w.check_moves == hop, "%" PRIu64 " moves", w.moves);
            cr_expect_geq(w.pages_written, written);
            cr_expect_str_eq(w.gap_clock, "monotonic");
            cr_log_info("%s: gap %.2f ms, downtime %.2f ms", move_cases[i].spec, ns_to_ms(w.gap_ns),
                        ns_to_ms(downtime));
            cr_expect(w.gap_ns > 0 && w.gap_ns < clock_now() - began,
                      "gap %.2f ms, which is longer than the guest exists",
                      ns_to_ms(w.gap_ns));
            written = w.pages_written;
        }
        g->ops->destroy(g);
    }
}

Test(synthetic, a_lost_round_shows)
{
    uint64_t downtime;

    require_tracking();
    struct guest *g = make_guest(64 * MIB, 2, "hot=16M,pattern=random");
    resume_guest(g);
    sleep_ms(50);
    g = move(g, true, &downtime);
    cr_expect_gt(await_checks(g, 1).bad_pages, 0, "a whole round was left out and nobody noticed");
    g->ops->destroy(g);
}

/* The clock goes on as the source's, whatever the destination's shows. */
Test(synthetic, gap_across_clocks)
{
    struct guest *from = make_guest(16 * MIB, 1, "hot=1M"), *to = incoming_of(from);
    struct guest_load_context context = {.clock_offset_ns = -40 * (int64_t)NS_PER_MS};
    struct guest_state state = {0};
    struct error err = {0};

    resume_guest(from);
    sleep_ms(10);
    pause_guest(from);
    copy_present(from, to);
    cr_assert_eq(from->ops->save(from, &state, &err), 0, "%s", err.text);
    cr_assert_eq(to->ops->load(to, state.bytes, state.size, &context, &err), 0, "%s", err.text);
    resume_guest(to);
    struct guest_workload w = await_checks(to, 1);
    cr_expect(w.gap_ns >= 40 * NS_PER_MS && w.gap_ns < 2 * NS_PER_S, "gap %.2f ms",
              ns_to_ms(w.gap_ns));
    cr_expect_eq(w.bad_pages, 0);
    guest_state_free(&state);
    from->ops->destroy(from);
    to->ops->destroy(to);
}

Test(synthetic, present_follows_touched)
{
    struct guest *g = make_guest(64ull << 30, 2, "touch=3M,hot=1M,at=8M");
    struct extent_list list = {0};
    struct error err = {0};

    resume_guest(g);
    while (check_now(g).checked_pages < MIB / 4096)
        sleep_ms(1);
    pause_guest(g);
    cr_assert_eq(g->ops->present(g, 0, &list, &err), 0, "%s", err.text);
    cr_expect_eq(extent_list_bytes(&list), 3 * MIB + MIB + 2 * 4096, "%zu bytes present",
                 (size_t)extent_list_bytes(&list));
    cr_expect_eq(g->ops->present(g, 1, &list, &err), -EINVAL);
    extent_list_free(&list);
    g->ops->destroy(g);
}

/* What was touched beforehand holds the content the specification names. */
Test(synthetic, content)
{
    struct guest *g = make_guest(16 * MIB, 1, "touch=2M,content=compressible,seed=5");
    uint8_t *expected = malloc(2 * MIB);

    workload_fill(expected, 0, 2 * MIB, CONTENT_COMPRESSIBLE, 5);
    cr_expect_eq(memcmp(ram_of(g), expected, 2 * MIB), 0);
    free(expected);
    g->ops->destroy(g);
}
