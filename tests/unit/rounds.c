/* Rounds over the loop transport, with a guest and a tracker that do exactly as told. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/page/page.h"
#include "migrate/rounds.h"
#include "transport/base/clock.h"
#include "transport/loop/loop.h"

enum { PAGES = 3 * GUEST_CHUNK_PAGES + 7 };

struct puppet {
    struct guest guest;
    struct tracker tracker;
    struct guest_region region, copy;
    bool present[PAGES], dirty[PAGES], again[PAGES];
    struct page_target target;
    struct transport *source, *destination;
    struct rounds *rounds;
    int interrupt_with;
    uint64_t interrupt_at;                            /* not before */
    uint64_t taken_at[PAGES / GUEST_CHUNK_PAGES + 1]; /* each chunk, the last time */
};

static unsigned puppet_regions(struct guest *g, const struct guest_region **out)
{
    *out = &((struct puppet *)g)->region;
    return 1;
}

static int puppet_present(struct guest *g, uint32_t region, struct extent_list *out,
                          struct error *err)
{
    struct puppet *p = (struct puppet *)g;

    (void)region;
    (void)err;
    for (uint64_t i = 0; i < PAGES; i++)
        if (p->present[i] && extent_list_add(out, i * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE))
            return -ENOMEM;
    return 0;
}

static struct puppet *of_tracker(struct tracker *t)
{
    return (struct puppet *)((char *)t - offsetof(struct puppet, tracker));
}

static bool puppet_next(struct tracker *t, uint32_t region, uint64_t *page)
{
    (void)region;
    for (; *page < PAGES; ++*page)
        if (of_tracker(t)->dirty[*page])
            return true;
    return false;
}

static int puppet_take(struct tracker *t, uint32_t region, uint64_t chunk,
                       uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    (void)region;
    (void)err;
    of_tracker(t)->taken_at[chunk] = clock_now();
    for (uint64_t i = 0; i < GUEST_CHUNK_PAGES && chunk * GUEST_CHUNK_PAGES + i < PAGES; i++) {
        bool *dirty = &of_tracker(t)->dirty[chunk * GUEST_CHUNK_PAGES + i];
        bits[i / 64] |= (uint64_t)*dirty << (i % 64);
        *dirty = false;
    }
    return 0;
}

static int puppet_peek(struct tracker *t, uint32_t region, uint64_t chunk,
                       uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    (void)region;
    (void)err;
    for (uint64_t i = 0; i < GUEST_CHUNK_PAGES && chunk * GUEST_CHUNK_PAGES + i < PAGES; i++)
        bits[i / 64] |= (uint64_t)of_tracker(t)->again[chunk * GUEST_CHUNK_PAGES + i] << (i % 64);
    return 0;
}

static const struct guest_ops guest_ops = {
    .kind = "puppet", .regions = puppet_regions, .present = puppet_present};
static const struct tracker_ops tracker_ops = {
    .name = "puppet", .next = puppet_next, .take = puppet_take, .peek = puppet_peek};

static int interrupted(void *context, struct error *err)
{
    struct puppet *p = context;

    return p->interrupt_with && clock_now() >= p->interrupt_at
               ? error_set(err, p->interrupt_with, "as told")
               : 0;
}

static void progress(void *context)
{
    (void)context;
}

static void *map(void)
{
    void *memory = mmap(NULL, PAGES * GUEST_PAGE_SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    cr_assert(memory != MAP_FAILED);
    return memory;
}

static void *connect_source(void *puppet)
{
    struct address anywhere = {.scheme = "tcp", .host = "127.0.0.1"};

    transport_connect(((struct puppet *)puppet)->source, &anywhere, 5000, &(struct error){0});
    return NULL;
}

static void open_puppet(struct puppet *p)
{
    struct transport_params from = {.epoch = 1, .lanes = 2}, to = from;
    struct address anywhere = {.scheme = "tcp", .host = "127.0.0.1"};
    struct error err = {0};
    pthread_t connecting;
    uint16_t port;

    *p = (struct puppet){.guest.ops = &guest_ops, .tracker.ops = &tracker_ops};
    p->region =
        (struct guest_region){.name = "ram", .size = PAGES * GUEST_PAGE_SIZE, .host = map()};
    p->copy = p->region;
    p->copy.host = map();
    p->target = (struct page_target){&p->copy, 1};
    to.decode = page_decode;
    to.decode_context = &p->target;
    cr_assert_eq(loop_pair_new(&from, &to, &p->source, &p->destination, &err), 0, "%s", err.text);
    cr_assert_eq(
        transport_open_region(p->source,
                              &(struct transport_region){0, p->region.host, p->region.size}, &err),
        0);
    cr_assert_eq(transport_open_region(p->destination,
                                       &(struct transport_region){0, p->copy.host, p->copy.size},
                                       &err),
                 0);
    cr_assert_eq(transport_listen(p->destination, &anywhere, &port, &err), 0, "%s", err.text);
    pthread_create(&connecting, NULL, connect_source, p);
    cr_assert_eq(transport_accept(p->destination, 5000, &err), 0, "%s", err.text);
    pthread_join(connecting, NULL);
}

static void open_rounds(struct puppet *p)
{
    struct rounds_config config = {.guest = &p->guest,
                                   .tracker = &p->tracker,
                                   .transport = p->source,
                                   .interrupted = interrupted,
                                   .progress = progress,
                                   .context = p};
    struct error err = {0};

    cr_assert_eq(rounds_new(&config, &p->rounds, &err), 0, "%s", err.text);
}

static void close_puppet(struct puppet *p)
{
    transport_close(p->source);
    transport_close(p->destination);
    rounds_free(p->rounds);
    munmap(p->region.host, p->region.size);
    munmap(p->copy.host, p->copy.size);
}

static void write_page(struct puppet *p, uint64_t page, int value)
{
    memset((char *)p->region.host + page * GUEST_PAGE_SIZE, value, GUEST_PAGE_SIZE);
}

static void expect_equal(struct puppet *p, const char *when)
{
    for (uint64_t i = 0; i < PAGES; i++)
        cr_expect_eq(memcmp((char *)p->region.host + i * GUEST_PAGE_SIZE,
                            (char *)p->copy.host + i * GUEST_PAGE_SIZE, GUEST_PAGE_SIZE),
                     0, "%s: page %llu differs", when, (unsigned long long)i);
}

static void send_dirty(struct puppet *p, bool paused)
{
    struct error err = {0};

    int result =
        paused ? rounds_send_last(p->rounds, &err) : rounds_send_dirty(p->rounds, NULL, &err);
    cr_assert_eq(result, 0, "%s", err.text);
}

/* The loop's table with hints that are written down. */
static struct transport_ops recording;
static struct {
    uint64_t posts; /* when the hint came */
    uint64_t offset, length;
} needed[PAGES], done[PAGES];
static size_t needed_count, done_count;

static void record_need(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    struct transport_stats stats;

    cr_expect_eq(region, 0);
    transport_stats(t, &stats);
    needed[needed_count].posts = stats.posted_bytes;
    needed[needed_count].offset = offset;
    needed[needed_count++].length = length;
}

static void record_done(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    struct transport_stats stats;

    cr_expect_eq(region, 0);
    transport_stats(t, &stats);
    done[done_count].posts = stats.posted_bytes;
    done[done_count].offset = offset;
    done[done_count++].length = length;
}

static void record_hints(struct puppet *p)
{
    recording = *p->source->ops;
    recording.will_need = record_need;
    recording.done_with = record_done;
    p->source->ops = &recording;
}

Test(rounds, hints_cover_what_is_present_and_nothing_else)
{
    static const struct {
        uint64_t first, count;
    } extents[] = {{0, 3}, {250, 10}, {PAGES - 9, 9}};
    struct puppet p;
    struct error err = {0};

    open_puppet(&p);
    record_hints(&p);
    for (size_t i = 0; i < 3; i++)
        for (uint64_t page = extents[i].first; page < extents[i].first + extents[i].count; page++) {
            p.present[page] = true;
            write_page(&p, page, 1);
        }
    open_rounds(&p);
    cr_assert_eq(rounds_send_present(p.rounds, &err), 0, "%s", err.text);
    cr_expect_eq(needed_count, 3, "expected a hint for each of 3 extents, came %zu", needed_count);
    for (size_t i = 0; i < 3 && i < needed_count; i++) {
        cr_expect_eq(needed[i].offset, extents[i].first * GUEST_PAGE_SIZE, "extent %zu", i);
        cr_expect_eq(needed[i].length, extents[i].count * GUEST_PAGE_SIZE, "extent %zu", i);
        cr_expect_eq(needed[i].posts, 0, "extent %zu was announced after a post", i);
    }
    /* Chunks 0, 1, 2 (the last extent reaches into it) and 3, which the region's end cuts. */
    cr_expect_eq(done_count, 4, "expected word of 4 chunks, came %zu", done_count);
    for (size_t i = 0; i < 4 && i < done_count; i++) {
        uint64_t length = i < 3 ? GUEST_CHUNK_SIZE : 7 * GUEST_PAGE_SIZE;

        cr_expect_eq(done[i].offset, i * GUEST_CHUNK_SIZE, "chunk %zu", i);
        cr_expect_eq(done[i].length, length, "chunk %zu: expected %llu bytes, came %llu", i,
                     (unsigned long long)length, (unsigned long long)done[i].length);
        cr_expect_gt(done[i].posts, i ? done[i - 1].posts : 0, "chunk %zu was not posted yet", i);
    }
    write_page(&p, 1, 2);
    p.dirty[1] = true;
    send_dirty(&p, false);
    cr_expect_eq(needed_count, 3, "a later round announced what is present again");
    cr_expect_eq(done_count, 5, "expected word of the chunk sent again, came %zu", done_count);
    close_puppet(&p);
}

Test(rounds, present_pages_arrive_and_zeros_cost_nothing)
{
    static const uint64_t pages[] = {0, 1, 2, 63, 64, 65, 255, 256, 300, 511, 512, PAGES - 1};
    struct puppet p;
    struct error err = {0};

    open_puppet(&p);
    for (size_t i = 0; i < sizeof(pages) / sizeof(*pages); i++) {
        p.present[pages[i]] = true;
        write_page(&p, pages[i], (int)i + 1);
    }
    p.present[100] = true; /* touched, but zero */
    open_rounds(&p);
    cr_assert_eq(rounds_send_present(p.rounds, &err), 0, "%s", err.text);
    expect_equal(&p, "first round");
    const struct round_counts *counts = rounds_counts(p.rounds);
    cr_expect_eq(counts->pages, 13, "%llu pages", (unsigned long long)counts->pages);
    cr_expect_eq(counts->zero_pages, 1);
    cr_expect_eq(counts->bytes, 12 * GUEST_PAGE_SIZE, "%llu bytes",
                 (unsigned long long)counts->bytes);
    close_puppet(&p);
}

Test(rounds, a_page_that_becomes_zero_becomes_zero_there)
{
    struct puppet p;
    struct error err = {0};

    open_puppet(&p);
    for (uint64_t i = 0; i < PAGES; i++) {
        p.present[i] = true;
        write_page(&p, i, 7);
    }
    open_rounds(&p);
    cr_assert_eq(rounds_send_present(p.rounds, &err), 0, "%s", err.text);
    for (uint64_t i = 0; i < PAGES; i += 2) { /* more runs than one blob holds */
        write_page(&p, i, 0);
        p.dirty[i] = true;
    }
    send_dirty(&p, false);
    cr_expect_eq(rounds_counts(p.rounds)->bytes, 0, "zeros went as pages");
    cr_expect_eq(rounds_counts(p.rounds)->zero_pages, (PAGES + 1) / 2);
    expect_equal(&p, "zeros");
    for (uint64_t i = 0; i < PAGES; i += 4) {
        write_page(&p, i, 9);
        p.dirty[i] = true;
    }
    send_dirty(&p, true);
    expect_equal(&p, "and back");
    close_puppet(&p);
}

Test(rounds, pages_dirty_again_wait_unless_the_guest_is_paused)
{
    struct puppet p;
    struct error err = {0};

    open_puppet(&p);
    open_rounds(&p);
    cr_assert_eq(rounds_send_present(p.rounds, &err), 0, "%s", err.text);
    for (uint64_t i = 10; i < 20; i++) {
        write_page(&p, i, 3);
        p.dirty[i] = true;
        p.again[i] = i < 15;
    }
    send_dirty(&p, false);
    cr_expect_eq(rounds_counts(p.rounds)->skipped_pages, 5);
    cr_expect_eq(rounds_counts(p.rounds)->bytes, 5 * GUEST_PAGE_SIZE);
    for (uint64_t i = 10; i < 15; i++)
        p.dirty[i] = true;
    send_dirty(&p, true);
    cr_expect_eq(rounds_counts(p.rounds)->skipped_pages, 0,
                 "a page was left out with the guest paused");
    expect_equal(&p, "paused");
    close_puppet(&p);
}

/* All chunks dirty but for a few pages of each, over a path through `filter`. */
static void open_busy(struct puppet *p, const char *filter)
{
    struct error err = {0};

    open_puppet(p);
    cr_assert_eq(transport_wrap(filter, &p->source, &err), 0, "%s", err.text);
    open_rounds(p);
    for (uint64_t i = 0; i < PAGES; i++) {
        p->dirty[i] = i % 8 != 7;
        write_page(p, i, p->dirty[i] ? 5 : 0);
    }
}

/* Fences are seen to complete DELAY_MS late: as long lasts what a chunk was posted with. */
Test(rounds, a_chunk_is_not_taken_before_it_can_go)
{
    enum { DELAY_MS = 30 };
    const struct policy_pace pace = {.fence_bytes = GUEST_CHUNK_SIZE, .fences = 2};
    struct puppet p;
    struct error err = {0};

    open_busy(&p, "delay=30ms");
    cr_assert_eq(rounds_send_dirty(p.rounds, &pace, &err), 0, "%s", err.text);
    for (size_t i = 2; i <= PAGES / GUEST_CHUNK_PAGES; i++) {
        uint64_t waited = p.taken_at[i] - p.taken_at[i - 2];
        cr_expect_geq(waited, DELAY_MS * NS_PER_MS,
                      "chunk %zu was taken %.1f ms after the last but one, with a fence a chunk, "
                      "two at a time, that take %d ms",
                      i, (double)waited / 1e6, DELAY_MS);
    }
    expect_equal(&p, "paced");
    close_puppet(&p);
}

Test(rounds, an_interruption_ends_the_wait_for_room_and_leaves_the_rest_dirty)
{
    const struct policy_pace pace = {.fence_bytes = GUEST_CHUNK_SIZE, .fences = 2};
    struct puppet p;
    struct error err = {0};

    open_busy(&p, "delay=10s");
    p.interrupt_with = ECANCELED;
    p.interrupt_at = clock_now() + 100 * NS_PER_MS;
    cr_expect_eq(rounds_send_dirty(p.rounds, &pace, &err), -ECANCELED, "%s", err.text);
    cr_expect(p.dirty[2 * GUEST_CHUNK_PAGES], "a chunk was taken that there was no room for");
    close_puppet(&p);
}

Test(rounds, random_histories)
{
    struct puppet p;
    struct error err = {0};

    srand(11);
    open_puppet(&p);
    for (uint64_t i = 0; i < PAGES; i++) {
        p.present[i] = rand() % 3 == 0;
        if (p.present[i])
            write_page(&p, i, rand() % 4);
    }
    open_rounds(&p);
    cr_assert_eq(rounds_send_present(p.rounds, &err), 0, "%s", err.text);
    expect_equal(&p, "first round");
    for (int round = 0; round < 200; round++) {
        for (int n = rand() % 200; n > 0; n--) {
            uint64_t page = (uint64_t)rand() % PAGES;
            write_page(&p, page, rand() % 3);
            p.dirty[page] = true;
        }
        send_dirty(&p, round % 2);
        expect_equal(&p, "random");
    }
    close_puppet(&p);
}

Test(rounds, an_interruption_ends_the_round)
{
    struct puppet p;
    struct error err = {0};

    open_puppet(&p);
    p.present[1] = true;
    write_page(&p, 1, 1);
    open_rounds(&p);
    p.interrupt_with = ECANCELED;
    cr_expect_eq(rounds_send_present(p.rounds, &err), -ECANCELED, "%s", err.text);
    close_puppet(&p);
}

Test(rounds, a_lost_transport_ends_the_round)
{
    struct puppet p;
    struct error err = {0};

    open_puppet(&p);
    p.present[1] = true;
    write_page(&p, 1, 1);
    open_rounds(&p);
    transport_shutdown(p.source);
    cr_expect_eq(rounds_send_present(p.rounds, &err), -ESHUTDOWN, "%s", err.text);
    close_puppet(&p);
}
