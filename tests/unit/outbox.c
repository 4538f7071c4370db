/* The source's half of a transport: how work is spread over lanes, and what comes out of it in
 * which order. The tests play the lanes themselves, in the same thread. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "transport/outbox.h"

enum { MEMORY = 64 << 20, PAGE = 4096 };

struct fixture {
    struct latch latch;
    struct regions regions;
    struct outbox outbox;
};

static struct fixture f;
static uint8_t *const memory = (uint8_t *)0x10000000; /* an address; the outbox reads no byte */

static void set_up(void)
{
    const struct transport_region region = {.id = 0, .base = memory, .size = MEMORY};
    struct error err = {0};

    latch_init(&f.latch);
    regions_init(&f.regions);
    cr_assert_eq(regions_open(&f.regions, &region, &err), 0);
    cr_assert_eq(outbox_init(&f.outbox, 2, OUTBOX_BYTES, &f.latch, &err), 0, "%s", err.text);
}

static void tear_down(void)
{
    outbox_destroy(&f.outbox);
    regions_destroy(&f.regions);
    latch_destroy(&f.latch);
}

TestSuite(outbox, .init = set_up, .fini = tear_down, .timeout = 60);

static struct transfer place(uint64_t offset, size_t length, void *cookie)
{
    return (struct transfer){
        .offset = offset, .bytes = memory + offset, .length = length, .cookie = cookie};
}

static int post(const struct transfer *transfers, unsigned n)
{
    struct error err = {0};
    int taken = outbox_post(&f.outbox, &f.regions, transfers, n, &err);

    cr_assert_geq(taken, 0, "%s", err.text);
    return taken;
}

static void post_one(uint64_t offset, size_t length, void *cookie)
{
    struct transfer transfer = place(offset, length, cookie);

    cr_assert_eq(post(&transfer, 1), 1, "there was no room");
}

static int reap(struct completion *completions, unsigned max)
{
    struct error err = {0};
    int n = outbox_reap(&f.outbox, completions, max, 0, &err);

    cr_assert_geq(n, 0, "%s", err.text);
    return n;
}

static void send_all(struct outbox_lane *lane)
{
    outbox_sent(&f.outbox, lane, outbox_pending(lane));
}

Test(outbox, work_goes_to_the_lane_with_most_room)
{
    post_one(0, 64 * PAGE, memory);
    post_one(64 * PAGE, PAGE, memory);
    post_one(65 * PAGE, PAGE, memory);
    cr_expect_eq(outbox_pending(&f.outbox.lanes[0]), 1);
    cr_expect_eq(outbox_pending(&f.outbox.lanes[1]), 2, "the emptier lane got %u of 2",
                 outbox_pending(&f.outbox.lanes[1]));
}

Test(outbox, a_lane_without_a_free_entry_is_passed_over)
{
    unsigned before;

    post_one(0, PAGE, memory);
    post_one(0, TRANSPORT_MAX_TRANSFER, memory);
    for (unsigned i = 1; i < OUTBOX_ENTRIES - OUTBOX_FENCES; i++)
        post_one(0, 1, memory);
    before = outbox_pending(&f.outbox.lanes[1]);
    post_one(0, 1, memory);
    cr_expect_eq(outbox_pending(&f.outbox.lanes[1]), before + 1,
                 "the lane with fewer bytes had no entry left");
}

Test(outbox, a_batch_stays_together_up_to_a_quantum)
{
    struct transfer batch[512];

    for (unsigned i = 0; i < 512; i++)
        batch[i] = place((uint64_t)i * PAGE, PAGE, memory);
    cr_assert_eq(post(batch, 512), 512);
    for (unsigned lane = 0; lane < 2; lane++) {
        cr_assert_eq(outbox_pending(&f.outbox.lanes[lane]), 256, "lane %u got %u of 512 pages",
                     lane, outbox_pending(&f.outbox.lanes[lane]));
        for (unsigned i = 0; i < 256; i++)
            cr_expect_eq(outbox_entry(&f.outbox.lanes[lane], i)->offset, (lane * 256 + i) * PAGE);
    }
}

Test(outbox, a_full_outbox_takes_nothing_and_loses_nothing)
{
    struct completion completions[64];
    struct transfer chunk = place(0, TRANSPORT_MAX_TRANSFER, memory);
    unsigned taken = 0;

    while (post(&chunk, 1))
        taken++;
    cr_expect_eq(taken, 2 * OUTBOX_BYTES / TRANSPORT_MAX_TRANSFER, "it took %u chunks", taken);
    send_all(&f.outbox.lanes[1]);
    cr_expect_eq(post(&chunk, 1), 1, "a lane is empty and there is no room");
    send_all(&f.outbox.lanes[0]);
    send_all(&f.outbox.lanes[1]);
    cr_expect_eq(reap(completions, 64), (int)taken + 1);
}

Test(outbox, bytes_outside_the_regions_are_refused)
{
    static const struct {
        uint64_t offset;
        size_t length;
        int expected;
    } cases[] = {
        {0, PAGE, 1},         {MEMORY - PAGE, PAGE, 1}, {MEMORY - PAGE, PAGE + 1, -EINVAL},
        {MEMORY, 1, -EINVAL}, {UINT64_MAX, 1, -EINVAL},
    };

    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct transfer transfer = place(cases[i].offset, cases[i].length, memory);
        struct error err = {0};
        int result = outbox_post(&f.outbox, &f.regions, &transfer, 1, &err);

        cr_expect_eq(result, cases[i].expected, "case %u: expected %d, got %d", i,
                     cases[i].expected, result);
    }
}

Test(outbox, a_fence_completes_with_the_last_lane_and_after_what_it_covers)
{
    struct completion completions[4];
    struct error err = {0};

    post_one(0, PAGE, memory);
    cr_assert_eq(outbox_fence(&f.outbox, 7, &err), 0, "%s", err.text);
    for (unsigned lane = 0; lane < 2; lane++) {
        send_all(&f.outbox.lanes[lane]);
        cr_expect(outbox_awaits(&f.outbox.lanes[lane]));
    }
    cr_assert_eq(outbox_acknowledge(&f.outbox, &f.outbox.lanes[1], 7, &err), 0, "%s", err.text);
    cr_expect_eq(reap(completions, 1), 1);
    cr_expect_eq(completions[0].kind, COMPLETION_TRANSFER);
    cr_expect_eq(reap(completions, 4), 0, "the fence came before lane 0 acknowledged it");
    cr_assert_eq(outbox_acknowledge(&f.outbox, &f.outbox.lanes[0], 7, &err), 0, "%s", err.text);
    cr_assert_eq(reap(completions, 4), 1);
    cr_expect(completions[0].kind == COMPLETION_FENCE && completions[0].fence == 7);
}

Test(outbox, a_full_array_holds_a_fence_back)
{
    struct completion completions[1];
    struct error err = {0};

    post_one(0, PAGE, memory);
    cr_assert_eq(outbox_fence(&f.outbox, 1, &err), 0);
    for (unsigned lane = 0; lane < 2; lane++) {
        send_all(&f.outbox.lanes[lane]);
        cr_assert_eq(outbox_acknowledge(&f.outbox, &f.outbox.lanes[lane], 1, &err), 0);
    }
    cr_assert_eq(reap(completions, 1), 1);
    cr_expect_eq(completions[0].kind, COMPLETION_TRANSFER,
                 "the fence overtook a transfer it covers");
    cr_assert_eq(reap(completions, 1), 1);
    cr_expect_eq(completions[0].kind, COMPLETION_FENCE);
}

Test(outbox, acknowledgements_of_other_fences_are_refused)
{
    struct outbox_lane *lane = &f.outbox.lanes[0];
    struct error err = {0};

    cr_expect_eq(outbox_acknowledge(&f.outbox, lane, 0, &err), -EPROTO,
                 "one that was never posted");
    cr_assert_eq(outbox_fence(&f.outbox, 1, &err), 0);
    cr_assert_eq(outbox_fence(&f.outbox, 2, &err), 0);
    cr_expect_eq(outbox_acknowledge(&f.outbox, lane, 1, &err), -EPROTO,
                 "one that was not sent yet");
    send_all(lane);
    cr_expect_eq(outbox_acknowledge(&f.outbox, lane, 2, &err), -EPROTO,
                 "the second before the first");
    cr_expect_eq(outbox_acknowledge(&f.outbox, lane, 1, &err), 0);
    cr_expect_eq(outbox_acknowledge(&f.outbox, lane, 1, &err), -EPROTO, "the same one twice");
}

Test(outbox, fences_have_room_when_transfers_have_none)
{
    struct transfer page = place(0, 1, NULL);
    struct error err = {0};
    int result;

    while (post(&page, 1))
        ;
    for (unsigned id = 1; id <= OUTBOX_FENCES; id++) {
        result = outbox_fence(&f.outbox, id, &err);
        cr_assert_eq(result, 0, "fence %u: %s", id, err.text);
    }
    result = outbox_fence(&f.outbox, OUTBOX_FENCES + 1, &err);
    cr_expect_eq(result, -EAGAIN, "one fence too many: expected %d, got %d", -EAGAIN, result);
    cr_expect_leq(f.outbox.lanes[0].posted - f.outbox.lanes[0].reaped, OUTBOX_ENTRIES,
                  "fences overwrote what was posted before");
}

Test(outbox, a_fence_id_must_grow)
{
    struct error err = {0};

    cr_assert_eq(outbox_fence(&f.outbox, 5, &err), 0);
    cr_expect_eq(outbox_fence(&f.outbox, 5, &err), -EINVAL);
}

Test(outbox, silent_transfers_are_counted_and_free_their_room)
{
    struct completion completions[4];
    struct transport_stats stats = {0};

    for (unsigned i = 0; i < 3 * OUTBOX_ENTRIES; i++) {
        post_one(0, PAGE, NULL);
        send_all(&f.outbox.lanes[0]);
        send_all(&f.outbox.lanes[1]);
        cr_assert_eq(reap(completions, 4), 0);
    }
    outbox_stats(&f.outbox, &stats);
    cr_expect_eq(stats.completed, 3 * OUTBOX_ENTRIES);
    cr_expect_eq(stats.outstanding, 0);
    cr_expect_eq(stats.posted_bytes, 3ull * OUTBOX_ENTRIES * PAGE);
}

Test(outbox, reap_comes_back_early_when_a_full_outbox_has_room_again)
{
    struct transfer page = place(0, 1, NULL);
    struct completion completions[4];
    struct error err = {0};

    while (post(&page, 1))
        ;
    send_all(&f.outbox.lanes[0]);
    cr_expect_eq(outbox_reap(&f.outbox, completions, 4, -1, &err), 0, "without a time limit: %s",
                 err.text);
    cr_expect_eq(post(&page, 1), 1);
}

Test(outbox, only_a_sleeping_lane_is_woken)
{
    struct outbox_lane *lane = &f.outbox.lanes[0];
    struct pollfd fd = {.fd = lane->wake_fd, .events = POLLIN};

    post_one(0, PAGE, memory);
    outbox_kick(&f.outbox);
    cr_expect_eq(poll(&fd, 1, 0), 0, "a lane that was awake was woken");
    cr_expect_not(outbox_fall_asleep(lane, 0), "it fell asleep over work");
    send_all(lane);
    cr_assert(outbox_fall_asleep(lane, 0));
    post_one(0, PAGE, memory);
    outbox_kick(&f.outbox);
    cr_expect_eq(poll(&fd, 1, 0), 1, "a sleeping lane was not woken");
    outbox_wake_up(lane);
    cr_expect_eq(poll(&fd, 1, 0), 0, "it would be woken again at once");
}

Test(outbox, the_first_error_stays)
{
    struct transfer page = place(0, PAGE, memory);
    struct completion completions[1];
    struct error first = {0}, second = {0}, err = {0};

    error_set(&first, ECONNRESET, "lane 1 closed by peer");
    error_set(&second, EPROTO, "nonsense");
    cr_expect(latch_fail(&f.latch, &first));
    cr_expect_not(latch_fail(&f.latch, &second));
    cr_expect_eq(outbox_reap(&f.outbox, completions, 1, -1, &err), -ECONNRESET);
    cr_expect_str_eq(err.text, first.text);
    error_clear(&err);
    latch_shutdown(&f.latch);
    cr_expect_eq(outbox_post(&f.outbox, &f.regions, &page, 1, &err), -ESHUTDOWN);
    cr_expect(strstr(err.text, first.text), "the cause is missing from \"%s\"", err.text);
}
