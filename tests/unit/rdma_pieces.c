/* Which registrations a transfer gets, when they go again, and who is told. The tests play both
 * ends, in the same thread. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "transport/rdma/pieces.h"

enum { PAGE = 4096, MAX_LOG = 64 };

struct fixture {
    struct rdma_pieces *pieces;
    struct rdma_piece *acquired[MAX_LOG], *released[MAX_LOG];
    unsigned acquired_count, released_count;
};

static struct fixture f;

static void log_acquire(void *context, struct rdma_piece *piece)
{
    cr_expect_eq(atomic_load(&piece->awaited), 2u, "a new piece awaits %u ends, not 2",
                 atomic_load(&piece->awaited));
    cr_expect_eq(atomic_load(&piece->users), 0u, "a new piece has %u users",
                 atomic_load(&piece->users));
    ((struct fixture *)context)->acquired[f.acquired_count++ % MAX_LOG] = piece;
}

static void log_release(void *context, struct rdma_piece *piece)
{
    cr_expect(piece->going && atomic_load(&piece->awaited) == 2, "going %d, awaited %u",
              piece->going, atomic_load(&piece->awaited));
    cr_expect_eq(atomic_load(&piece->users), 0u, "piece %u goes with %u users", piece->id,
                 atomic_load(&piece->users));
    ((struct fixture *)context)->released[f.released_count++ % MAX_LOG] = piece;
}

static void set_up(uint64_t grain_pages, uint64_t limit_pages, uint32_t max_count, bool eager)
{
    const struct pieces_config config = {
        .grain = grain_pages * PAGE,
        .limit = limit_pages ? limit_pages * PAGE : UINT64_MAX,
        .max_count = max_count,
        .eager = eager,
        .owner = {log_acquire, log_release, &f},
    };
    struct error err = {0};

    memset(&f, 0, sizeof f);
    cr_assert_eq(pieces_new(&config, &f.pieces, &err), 0, "%s", err.text);
}

static void tear_down(void)
{
    pieces_free(f.pieces);
}

TestSuite(rdma_pieces, .fini = tear_down, .timeout = 60);

static void expect_pages(uint32_t region, uint64_t page, uint64_t count)
{
    struct error err = {0};

    cr_assert_eq(pieces_expect(f.pieces, region, page * PAGE, count * PAGE, &err), 0, "%s",
                 err.text);
}

static int use_pages(uint64_t page, uint64_t count, struct rdma_piece **first)
{
    struct error err = {0};

    return pieces_use(f.pieces, 0, page * PAGE, count * PAGE, first, &err);
}

/* Uses pages, which has to succeed, and takes that back. */
static struct rdma_piece *touch(uint64_t page, uint64_t count)
{
    struct rdma_piece *first = NULL;
    int result = use_pages(page, count, &first);

    cr_assert_eq(result, 0, "pages %llu+%llu: expected 0, got %d", (unsigned long long)page,
                 (unsigned long long)count, result);
    pieces_unuse(first, page * PAGE, count * PAGE);
    return first;
}

/* Both ends have done whatever was asked of them. */
static void answer_all(void)
{
    struct rdma_piece *piece;

    for (uint32_t id = 0; (piece = pieces_find(f.pieces, id)); id++)
        atomic_store(&piece->awaited, 0);
}

/* "0+4 8+2": the pieces' first pages and lengths in pages. */
static void expect_shape(const char *what, struct rdma_piece *const *pieces, unsigned count,
                         const char *want)
{
    char got[1024] = "";
    size_t used = 0;

    for (unsigned i = 0; i < count; i++)
        used += (size_t)snprintf(got + used, sizeof got - used, "%s%llu+%llu", i ? " " : "",
                                 (unsigned long long)pieces[i]->offset / PAGE,
                                 (unsigned long long)pieces[i]->length / PAGE);
    cr_expect_str_eq(got, want, "%s: expected \"%s\", got \"%s\"", what, want, got);
}

struct pages {
    uint64_t first, count;
};

Test(rdma_pieces, a_transfer_gets_what_is_expected_of_its_grains)
{
    static const struct {
        const char *what;
        struct pages expected[4], uses[3];
        const char *want; /* made, in this order */
    } cases[] = {
        {"nothing is expected", {{0}}, {{3, 2}}, "3+2"},
        {"nothing is expected, over a grain's end", {{0}}, {{6, 4}}, "6+2 8+2"},
        {"a whole grain for a page", {{0, 64}}, {{3, 1}}, "0+8"},
        {"two grains", {{0, 64}}, {{7, 2}}, "0+8 8+8"},
        {"the extent is shorter than the grain", {{2, 3}}, {{3, 1}}, "2+3"},
        {"a hole stays a hole", {{0, 2}, {4, 2}}, {{0, 1}, {4, 1}}, "0+2 4+2"},
        {"extents that touch are one", {{2, 2}, {0, 2}, {4, 1}}, {{4, 1}}, "0+5"},
        {"extents that overlap are one", {{3, 3}, {0, 4}}, {{0, 1}}, "0+6"},
        {"an extent that joins others", {{0, 2}, {4, 2}, {1, 4}}, {{5, 1}}, "0+6"},
        {"from a hole into an extent", {{4, 4}}, {{2, 3}}, "2+2 4+4"},
        {"over a hole", {{0, 2}, {4, 2}}, {{0, 6}}, "0+2 2+2 4+2"},
        {"a piece is found again", {{0, 8}}, {{1, 1}, {2, 6}}, "0+8"},
        {"only what is missing is made", {{0}}, {{2, 1}, {4, 1}, {0, 8}}, "2+1 4+1 0+2 3+1 5+3"},
        {"around what was there before it was expected", {{0}}, {{3, 1}}, "3+1"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        set_up(8, 0, 1000, false);
        for (unsigned k = 0; k < 4 && cases[i].expected[k].count; k++)
            expect_pages(0, cases[i].expected[k].first, cases[i].expected[k].count);
        for (unsigned k = 0; k < 3 && cases[i].uses[k].count; k++)
            touch(cases[i].uses[k].first, cases[i].uses[k].count);
        expect_shape(cases[i].what, f.acquired, f.acquired_count, cases[i].want);
        cr_expect_eq(pieces_count(f.pieces), f.acquired_count);
        if (i + 1 < sizeof cases / sizeof *cases)
            tear_down();
    }
    expect_pages(0, 0, 16);
    touch(0, 8);
    expect_shape("what was expected later", f.acquired, f.acquired_count, "3+1 0+3 4+4");
}

Test(rdma_pieces, every_piece_of_a_range_has_a_user_and_leads_to_the_next)
{
    struct rdma_piece *first = NULL, *again = NULL;

    set_up(8, 0, 1000, false);
    touch(8, 8);
    cr_assert_eq(use_pages(2, 20, &first), 0);
    cr_assert_eq(use_pages(9, 1, &again), 0);
    cr_expect_eq(first->offset, 2u * PAGE);
    cr_assert(first->follower && first->follower->follower, "the chain ends early");
    cr_expect_eq(first->follower, again);
    cr_expect_eq(first->follower->follower->offset, 16u * PAGE);
    cr_expect(atomic_load(&first->users) == 1 && atomic_load(&again->users) == 2 &&
                  atomic_load(&again->follower->users) == 1,
              "users: expected 1 2 1, got %u %u %u", atomic_load(&first->users),
              atomic_load(&again->users), atomic_load(&again->follower->users));
    pieces_unuse(first, 2 * PAGE, 20 * PAGE);
    cr_expect(atomic_load(&first->users) == 0 && atomic_load(&again->users) == 1 &&
                  atomic_load(&again->follower->users) == 0,
              "users: expected 0 1 0, got %u %u %u", atomic_load(&first->users),
              atomic_load(&again->users), atomic_load(&again->follower->users));
}

Test(rdma_pieces, regions_have_nothing_to_do_with_each_other)
{
    struct rdma_piece *first = NULL;
    struct error err = {0};

    set_up(8, 0, 1000, false);
    for (uint32_t region = 7; region < 27; region++) {
        expect_pages(region, region, 1);
        cr_assert_eq(pieces_use(f.pieces, region, region * PAGE, 1, &first, &err), 0);
        cr_expect(first->region == region && first->offset == region * PAGE,
                  "region %u got a piece of region %u at %llu", region, first->region,
                  (unsigned long long)first->offset);
    }
    cr_expect_eq(pieces_count(f.pieces), 20u);
}

Test(rdma_pieces, without_room_the_least_recently_used_go)
{
    struct rdma_piece *a, *b, *c = NULL, *d = NULL;

    set_up(4, 12, 1000, false);
    expect_pages(0, 0, 100);
    a = touch(0, 1);
    b = touch(4, 1);
    cr_assert_eq(use_pages(8, 1, &c), 0);
    cr_expect_eq(f.released_count, 0u, "a piece went that is not registered yet");
    cr_expect_eq(use_pages(12, 1, &d), -EAGAIN, "more than the limit was given away");
    cr_expect_eq(f.released_count, 0u, "a piece went that is not registered yet");
    answer_all();
    touch(0, 1);
    cr_expect_eq(use_pages(12, 1, &d), -EAGAIN);
    cr_expect(f.released_count == 1 && f.released[0] == b, "not the least recently used one went");
    cr_expect_eq(use_pages(12, 1, &d), -EAGAIN, "its room was given away before it was gone");
    cr_expect_eq(f.released_count, 1u, "one was enough, %u went", f.released_count);
    cr_expect_eq(pieces_bytes(f.pieces), 12u * PAGE);
    answer_all();
    cr_expect_eq(use_pages(12, 1, &d), 0, "there is room again");
    cr_expect(f.released_count == 2 && f.released[1] == a, "none went ahead of need");
    cr_expect_eq(d->id, b->id, "the id of the piece that is gone was not used again");
    cr_expect(atomic_load(&c->users) == 1 && !c->going, "a piece in use went");
    answer_all();
    cr_expect(pieces_collect(f.pieces));
    cr_expect_not(pieces_collect(f.pieces), "it was collected twice");
    cr_expect(pieces_count(f.pieces) == 2 && pieces_bytes(f.pieces) == 8 * PAGE,
              "expected 2 pieces of 8 pages, got %u of %llu bytes", pieces_count(f.pieces),
              (unsigned long long)pieces_bytes(f.pieces));
}

Test(rdma_pieces, all_or_nothing)
{
    struct rdma_piece *a = NULL, *first = NULL;

    set_up(4, 12, 1000, false);
    expect_pages(0, 0, 100);
    cr_assert_eq(use_pages(0, 8, &a), 0);
    answer_all();
    cr_expect_eq(use_pages(4, 8, &first), 0, "12 pages are within the limit");
    pieces_unuse(first, 4 * PAGE, 8 * PAGE);
    cr_expect_eq(use_pages(4, 12, &first), -EAGAIN);
    cr_expect(atomic_load(&a->users) == 1 && atomic_load(&a->follower->users) == 1,
              "a transfer that found no room left users behind: %u %u, expected 1 1",
              atomic_load(&a->users), atomic_load(&a->follower->users));
    pieces_unuse(a, 0, 8 * PAGE);
    for (unsigned i = 0; i < 3; i++) {
        answer_all();
        if (use_pages(4, 12, &first) == 0)
            return;
    }
    cr_expect(false, "12 pages never fit into a limit of 12");
}

Test(rdma_pieces, what_never_fits_is_an_error)
{
    struct rdma_piece *first = NULL;
    struct error err = {0};
    int result;

    set_up(4, 4, 1000, false);
    expect_pages(0, 0, 100);
    result = pieces_use(f.pieces, 0, 3 * PAGE, 2 * PAGE, &first, &err);
    cr_expect(result == -EINVAL && strstr(err.text, "32768"), "expected %d and a text, got %d, %s",
              -EINVAL, result, err.text);
    tear_down();
    error_clear(&err);
    set_up(4, 0, 1, false);
    result = pieces_use(f.pieces, 0, 3 * PAGE, 2 * PAGE, &first, &err);
    cr_expect(result == -EINVAL && strstr(err.text, "1 registration"),
              "expected %d and a text, got %d, %s", -EINVAL, result, err.text);
}

Test(rdma_pieces, no_more_pieces_than_the_device_has)
{
    struct rdma_piece *first = NULL;

    set_up(4, 0, 3, false);
    for (unsigned i = 0; i < 3; i++)
        touch(i * 4, 1);
    answer_all();
    cr_expect_eq(use_pages(12, 1, &first), -EAGAIN);
    cr_expect(f.released_count == 1 && f.released[0] == f.acquired[0]);
    answer_all();
    cr_expect_eq(use_pages(12, 1, &first), 0);
    cr_expect_eq(pieces_count(f.pieces), 3u);
}

Test(rdma_pieces, cooled_pieces_go_first)
{
    struct rdma_piece *first = NULL;

    set_up(4, 16, 1000, false);
    expect_pages(0, 0, 100);
    for (unsigned i = 0; i < 4; i++)
        touch(i * 4, 1);
    answer_all();
    pieces_cool(f.pieces, 0, 10 * PAGE, 6 * PAGE);
    pieces_cool(f.pieces, 5, 0, 100 * PAGE);
    cr_expect_eq(use_pages(16, 1, &first), -EAGAIN);
    answer_all();
    cr_expect_eq(use_pages(16, 1, &first), 0);
    cr_expect(f.released_count == 2 && f.released[0] == f.acquired[3] &&
                  f.released[1] == f.acquired[2],
              "%u went, not the two that were cooled", f.released_count);
}

Test(rdma_pieces, plans)
{
    static const struct {
        const char *what;
        uint64_t limit;
        uint32_t max_count;
        bool lazy;
        struct pages use, expected[6];
        const char *want;
    } cases[] = {
        {"whole grains", 0, 9, false, {0}, {{12, 12}, {2, 2}}, "2+2 12+4 16+8"},
        {"without being eager", 0, 9, true, {0}, {{0, 16}}, ""},
        {"around what is there", 0, 9, false, {3, 1}, {{0, 8}}, "3+1 0+3 4+4"},
        {"as many as are possible", 0, 3, false, {0}, {{0, 1}, {2, 1}, {5, 1}}, "0+1 2+1 5+1"},
        {"holes of a page", 0, 2, false, {0}, {{0, 1}, {2, 1}, {5, 1}}, "0+3 5+1"},
        {"holes of two pages", 0, 1, false, {0}, {{0, 1}, {2, 1}, {5, 1}}, "0+6"},
        {"no larger holes than it takes", 0, 2, false, {0}, {{0, 1}, {3, 1}, {7, 1}}, "0+4 7+1"},
        {"holes within a grain", 0, 2, false, {0}, {{0, 1}, {7, 2}, {15, 1}}, "0+8 8+8"},
        {"never beyond a grain", 0, 2, false, {0}, {{7, 2}, {16, 1}}, "7+1 8+1"},
        {"no hole that a piece ends", 0, 3, false, {2, 1}, {{0, 1}, {4, 1}}, "2+1 0+1 4+1"},
        {"up to the limit", 20, 9, false, {0}, {{0, 64}}, "0+8 8+8"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = {0};

        if (i)
            tear_down();
        set_up(8, cases[i].limit, cases[i].max_count, !cases[i].lazy);
        if (cases[i].use.count)
            touch(cases[i].use.first, cases[i].use.count);
        for (unsigned k = 0; k < 6 && cases[i].expected[k].count; k++)
            expect_pages(0, cases[i].expected[k].first, cases[i].expected[k].count);
        cr_assert_eq(pieces_plan(f.pieces, &err), 0, "%s", err.text);
        expect_shape(cases[i].what, f.acquired, f.acquired_count, cases[i].want);
        cr_assert_eq(pieces_plan(f.pieces, &err), 0, "%s", err.text);
        expect_shape("the same plan again", f.acquired, f.acquired_count, cases[i].want);
    }
}

Test(rdma_pieces, a_later_plan_goes_on_where_the_extent_grew)
{
    struct error err = {0};

    set_up(8, 0, 9, true);
    expect_pages(0, 0, 3);
    cr_assert_eq(pieces_plan(f.pieces, &err), 0);
    expect_pages(0, 3, 8);
    expect_pages(1, 0, 1);
    cr_assert_eq(pieces_plan(f.pieces, &err), 0);
    expect_shape("a plan in two parts", f.acquired, f.acquired_count, "0+3 3+5 8+3 0+1");
    cr_expect_eq(f.acquired[0]->follower, f.acquired[1]);
}

Test(rdma_pieces, what_had_to_go_is_not_planned_again)
{
    struct rdma_piece *first = NULL;
    struct error err = {0};

    set_up(8, 0, 2, true);
    expect_pages(0, 0, 16);
    cr_assert_eq(pieces_plan(f.pieces, &err), 0);
    answer_all();
    cr_expect_eq(use_pages(16, 1, &first), -EAGAIN);
    answer_all();
    cr_expect(pieces_collect(f.pieces));
    cr_assert_eq(pieces_plan(f.pieces, &err), 0);
    cr_expect_eq(use_pages(16, 1, &first), 0, "a plan took the room that was made");
}

Test(rdma_pieces, a_forgotten_region_goes_once_it_can)
{
    struct rdma_piece *first = NULL;
    struct error err = {0};

    set_up(8, 0, 9, false);
    touch(0, 1);
    answer_all();
    touch(8, 1);
    cr_assert_eq(pieces_use(f.pieces, 1, 0, PAGE, &first, &err), 0);
    pieces_forget(f.pieces, 0);
    cr_expect(f.released_count == 1 && f.released[0]->offset == 0,
              "expected the one that is ready to go, %u went", f.released_count);
    cr_expect_not(pieces_collect(f.pieces));
    cr_expect_eq(pieces_count(f.pieces), 3u);
    answer_all();
    cr_expect(pieces_collect(f.pieces));
    cr_expect_eq(f.released_count, 2u, "the one that was waiting was not told to go");
    answer_all();
    cr_expect(pieces_collect(f.pieces));
    cr_expect_eq(pieces_count(f.pieces), 1u);
    pieces_forget(f.pieces, 0);
    pieces_forget(f.pieces, 1000);
    cr_expect_eq(touch(8, 1)->length, (uint64_t)PAGE);
}

static void count_visit(void *context, struct rdma_piece *piece)
{
    *(uint64_t *)context |= 1u << piece->id;
}

Test(rdma_pieces, each_visits_all_that_may_be_registered)
{
    uint64_t visited = 0;

    set_up(8, 0, 9, false);
    for (unsigned i = 0; i < 4; i++)
        touch(8 * i, 1);
    atomic_store(&f.acquired[1]->awaited, 0);
    atomic_store(&f.acquired[2]->awaited, 0);
    pieces_forget(f.pieces, 0);
    atomic_store(&f.acquired[2]->awaited, 0);
    cr_assert_eq(f.released_count, 2u);
    pieces_each(f.pieces, count_visit, &visited);
    cr_expect_eq(visited, 0xbu, "visited %#llx: 0 and 3 never answered, 1 is going, 2 is gone",
                 (unsigned long long)visited);
}

enum { SOUGHT = 5000 };

static void *seek(void *pieces)
{
    for (uint32_t id = 0; id < SOUGHT;) {
        struct rdma_piece *piece = pieces_find(pieces, id);

        if (!piece) {
            sched_yield();
            continue;
        }
        if (piece->id != id)
            return piece;
        id++;
    }
    return NULL;
}

Test(rdma_pieces, other_threads_find_pieces_while_more_are_made)
{
    struct rdma_piece *first = NULL;
    pthread_t thread;
    void *wrong = NULL;

    set_up(1, 0, SOUGHT, false);
    cr_expect_null(pieces_find(f.pieces, 0));
    cr_expect_null(pieces_find(f.pieces, UINT32_MAX));
    cr_assert_eq(pthread_create(&thread, NULL, seek, f.pieces), 0);
    for (unsigned i = 0; i < SOUGHT; i++)
        cr_assert_eq(use_pages(2 * i, 1, &first), 0);
    pthread_join(thread, &wrong);
    cr_expect_null(wrong, "a piece was found under another's id");
    cr_expect_null(pieces_find(f.pieces, SOUGHT));
}
