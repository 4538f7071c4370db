/* What each filter does beyond passing on, around the loop transport; what passes on is for the
 * conformance tests. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/base/clock.h"
#include "transport/filter/filter.h"
#include "transport/loop/loop.h"

enum { PAGE = 4096, MiB = 1 << 20, MEMORY = 8 * MiB };

struct link {
    struct transport *source, *destination;
    uint8_t *from, *to;
    struct error err;
};

static void *accept_main(void *context)
{
    struct error err = {0};

    return transport_accept(context, 10000, &err) ? "accept failed" : NULL;
}

static void link_connect(struct link *l)
{
    struct address at = {.scheme = "tcp"};
    pthread_t thread;
    void *failed;
    uint16_t port;

    cr_assert_eq(transport_listen(l->destination, &at, &port, &l->err), 0, "%s", l->err.text);
    cr_assert_eq(pthread_create(&thread, NULL, accept_main, l->destination), 0);
    cr_assert_eq(transport_connect(l->source, &at, 10000, &l->err), 0, "%s", l->err.text);
    pthread_join(thread, &failed);
    cr_assert_null(failed, "accept failed");
}

/* Both ends connected, the source wrapped in `spec`, one region with id 1. */
static void link_make(struct link *l, const char *spec)
{
    struct transport_params params = {.lanes = 2};
    struct transport_region here = {.id = 1, .size = MEMORY}, there = here;

    *l = (struct link){.from = malloc(MEMORY), .to = calloc(1, MEMORY)};
    memset(l->from, 0x55, MEMORY);
    here.base = l->from;
    there.base = l->to;
    cr_assert_eq(loop_pair_new(&params, &params, &l->source, &l->destination, &l->err), 0);
    cr_assert_eq(transport_wrap(spec, &l->source, &l->err), 0, "%s", l->err.text);
    link_connect(l);
    cr_assert_eq(transport_open_region(l->source, &here, &l->err), 0);
    cr_assert_eq(transport_open_region(l->destination, &there, &l->err), 0);
}

static void link_free(struct link *l)
{
    transport_close(l->source);
    transport_close(l->destination);
    free(l->from);
    free(l->to);
}

static struct transfer place(struct link *l, uint64_t offset, size_t length, void *cookie)
{
    return (struct transfer){.kind = TRANSFER_PLACE,
                             .region = 1,
                             .offset = offset,
                             .bytes = l->from + offset,
                             .length = length,
                             .cookie = cookie};
}

static void expect_text(const struct error *err, const char *part)
{
    cr_expect(strstr(err->text, part), "expected a text with \"%s\", got \"%s\"", part, err->text);
}

Test(filter, specifications)
{
    static const struct {
        const char *spec;
        int result;
        const char *text;
    } cases[] = {
        {"", 0, ""},
        {"rate=100M", 0, ""},
        {"rate=10Gbit/s,delay=5ms,fault=cut@17", 0, ""},
        {"rate=1M,rate=2M", 0, ""},
        {"fault=fail@1", 0, ""},
        {"fault=stall@1", 0, ""},
        {"fault=skip@18446744073709551615", 0, ""},
        {"rate", -EINVAL, "key=value"},
        {"rate=", -EINVAL, "key=value"},
        {"rate=0", -EINVAL, "filter rate: \"0\""},
        {"rate=fast", -EINVAL, "\"fast\""},
        {"delay=-1", -EINVAL, "filter delay: \"-1\""},
        {"fault=cut", -EINVAL, "cut@N"},
        {"fault=cut@0", -ERANGE, "filter fault"},
        {"fault=cut@", -EINVAL, "filter fault"},
        {"fault=cut@x", -EINVAL, "filter fault"},
        {"fault=cu@1", -EINVAL, "cut@N"},
        {"fault=@1", -EINVAL, "cut@N"},
        {"loss=1", -EINVAL, "there are: rate, delay, fault"},
        {"rate=1M,", -EINVAL, "comma"},
        {"rate=1M,rate=1M,rate=1M,rate=1M,rate=1M,rate=1M,rate=1M,rate=1M,rate=1M,rate=1M,rate=1M,"
         "rate=1M,rate=1M,rate=1M,rate=1M,rate=1M,rate=1M",
         -E2BIG, "more than 16"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct error err = {0};
        int result = transport_wrap_check(cases[i].spec, &err);

        cr_expect_eq(result, cases[i].result, "\"%s\": expected %d, got %d (%s)", cases[i].spec,
                     cases[i].result, result, err.text);
        cr_expect(strstr(err.text, cases[i].text), "\"%s\": got \"%s\"", cases[i].spec, err.text);
    }
}

Test(filter, the_leftmost_is_the_outermost)
{
    struct link l;

    link_make(&l, "rate=1G,delay=1ms");
    cr_expect_str_eq(l.source->ops->name, "rate", "the outermost is %s", l.source->ops->name);
    link_free(&l);
}

Test(filter, a_bad_specification_leaves_the_transport_alone)
{
    struct link l;
    struct transport *before;

    link_make(&l, "");
    before = l.source;
    cr_expect_eq(transport_wrap("delay=1ms,rate=0", &l.source, &l.err), -EINVAL);
    cr_expect_eq(l.source, before, "the transport was replaced");
    link_free(&l);
}

Test(filter, zero_is_refused_by_the_makers)
{
    struct link l;
    struct transport *out = NULL;

    link_make(&l, "");
    cr_expect_eq(rate_filter_new(l.source, 0, &out, &l.err), -EINVAL);
    error_clear(&l.err);
    cr_expect_eq(fault_filter_new(l.source, FAULT_CUT, 0, &out, &l.err), -EINVAL);
    cr_expect_null(out);
    link_free(&l);
}

/* Posts `n` transfers of `length` bytes, waiting for room; returns how long that took. */
static uint64_t time_to_post(struct link *l, unsigned n, size_t length)
{
    uint64_t start = clock_now();
    struct completion completion;

    for (unsigned i = 0; i < n;) {
        struct transfer t = place(l, i * length, length, NULL);
        int taken = transport_post(l->source, &t, 1, &l->err);

        cr_assert_geq(taken, 0, "%s", l->err.text);
        i += (unsigned)taken;
        if (!taken)
            cr_assert_eq(transport_reap(l->source, &completion, 1, -1, &l->err), 0, "%s",
                         l->err.text);
    }
    return clock_now() - start;
}

/* The first 10 ms worth of bytes are free; after them 8 MiB at 32 MiB/s take 240 ms. */
Test(filter, rate_is_never_exceeded)
{
    struct link l;
    uint64_t took;

    link_make(&l, "rate=32M");
    took = time_to_post(&l, 2048, PAGE);
    cr_expect(took >= 239 * NS_PER_MS, "8 MiB took %.1f ms, expected at least 239", ns_to_ms(took));
    cr_expect(took < 20 * NS_PER_S, "8 MiB took %.1f ms, expected 240", ns_to_ms(took));
    link_free(&l);
}

/* Each is ten times what the bucket holds: one goes at once, each other one leaves when the debt is
 * paid. */
Test(filter, rate_lets_large_transfers_make_progress)
{
    struct link l;
    uint64_t took;

    link_make(&l, "rate=10M");
    took = time_to_post(&l, 4, MiB);
    cr_expect(took >= 289 * NS_PER_MS, "took %.1f ms, expected at least 289", ns_to_ms(took));
    cr_expect(took < 20 * NS_PER_S, "took %.1f ms, expected 300", ns_to_ms(took));
    link_free(&l);
}

/* At 1 KiB/s a mebibyte takes 17 minutes to pay for; it goes all the same once the bucket is full.
 */
Test(filter, rate_lets_any_transfer_go_when_the_bucket_is_full)
{
    struct transfer t;
    struct link l;

    link_make(&l, "rate=1K");
    t = place(&l, 0, 1, NULL);
    cr_expect_eq(transport_post(l.source, &t, 1, &l.err), 1);
    clock_sleep_until(clock_now() + 20 * NS_PER_MS);
    t = place(&l, MiB, MiB, NULL);
    cr_expect_eq(transport_post(l.source, &t, 1, &l.err), 1, "a full bucket let nothing go");
    t = place(&l, 2 * MiB, 1, NULL);
    cr_expect_eq(transport_post(l.source, &t, 1, &l.err), 0, "the debt was forgotten");
    link_free(&l);
}

Test(filter, rate_tells_of_room_once)
{
    struct transfer t[2];
    struct completion completion;
    struct link l;
    uint64_t start;

    link_make(&l, "rate=10M");
    t[0] = place(&l, 0, MiB / 2, NULL);
    t[1] = t[0];
    cr_expect_eq(transport_post(l.source, t, 2, &l.err), 1, "the debt was not kept");
    start = clock_now();
    cr_expect_eq(transport_reap(l.source, &completion, 1, -1, &l.err), 0);
    cr_expect(clock_now() - start < 10 * NS_PER_S, "room came late");
    start = clock_now();
    cr_expect_eq(transport_reap(l.source, &completion, 1, 100, &l.err), 0);
    cr_expect(clock_now() - start >= 99 * NS_PER_MS, "the second reap did not wait");
    cr_expect_eq(transport_post(l.source, t, 1, &l.err), 1, "there was no room after all");
    link_free(&l);
}

Test(filter, delay_holds_completions_back)
{
    struct completion completions[2];
    struct transport_stats stats;
    unsigned cookie;
    struct transfer t;
    struct link l;
    uint64_t start;

    link_make(&l, "delay=150ms");
    t = place(&l, 0, PAGE, &cookie);
    start = clock_now();
    cr_expect_eq(transport_post(l.source, &t, 1, &l.err), 1);
    cr_expect_eq(transport_fence(l.source, 1, &l.err), 0);
    cr_expect_eq(transport_reap(l.source, completions, 2, 20, &l.err), 0,
                 "a completion came early");
    transport_stats(l.source, &stats);
    cr_expect_gt(stats.outstanding, 0, "what is held back is not outstanding");
    for (int n = 0; n < 2;)
        n += transport_reap(l.source, completions + n, (unsigned)(2 - n), -1, &l.err);
    cr_expect(clock_now() - start >= 150 * NS_PER_MS, "they came after %.1f ms",
              ns_to_ms(clock_now() - start));
    cr_expect(clock_now() - start < 10 * NS_PER_S, "they came late");
    cr_expect(completions[0].kind == COMPLETION_TRANSFER && completions[0].cookie == &cookie);
    cr_expect(completions[1].kind == COMPLETION_FENCE && completions[1].fence == 1);
    transport_stats(l.source, &stats);
    cr_expect_eq(stats.outstanding, 0);
    link_free(&l);
}

/* More completions than the filter holds. */
Test(filter, delay_runs_full_and_loses_nothing)
{
    enum { TOTAL = 150000 };
    static struct completion completions[256];
    unsigned posted = 0, reaped = 0;
    uint64_t sum = 0;
    struct link l;

    link_make(&l, "delay=400ms");
    while (reaped < TOTAL) {
        struct transfer t = place(&l, posted % TOTAL * 8, 8, (void *)(uintptr_t)(posted + 1));
        int taken = posted < TOTAL ? transport_post(l.source, &t, 1, &l.err) : 0, n;

        cr_assert_geq(taken, 0, "%s", l.err.text);
        posted += (unsigned)taken;
        if (taken && posted < TOTAL && posted % 64)
            continue;
        n = transport_reap(l.source, completions, 256, taken ? 0 : 1000, &l.err);
        cr_assert_geq(n, 0, "%s", l.err.text);
        reaped += (unsigned)n;
        for (int i = 0; i < n; i++)
            sum += (uintptr_t)completions[i].cookie;
    }
    cr_expect_eq(sum, (uint64_t)TOTAL * (TOTAL + 1) / 2, "some completed twice, others never");
    link_free(&l);
}

static void *shutdown_soon(void *transport)
{
    clock_sleep_until(clock_now() + 50 * NS_PER_MS);
    transport_shutdown(transport);
    return NULL;
}

static void expect_shutdown_wakes_reap(struct link *l)
{
    struct completion completion;
    uint64_t start = clock_now();
    pthread_t thread;
    int result;

    cr_assert_eq(pthread_create(&thread, NULL, shutdown_soon, l->source), 0);
    do {
        result = transport_reap(l->source, &completion, 1, -1, &l->err);
    } while (result >= 0);
    pthread_join(thread, NULL);
    cr_expect_eq(result, -ESHUTDOWN, "expected -ESHUTDOWN, got %d (%s)", result, l->err.text);
    cr_expect(clock_now() - start < 3 * NS_PER_S, "woke late");
}

Test(filter, shutdown_does_not_wait_for_what_is_held)
{
    unsigned cookie;
    struct transfer t;
    struct link l;

    link_make(&l, "delay=1h");
    t = place(&l, 0, PAGE, &cookie);
    cr_expect_eq(transport_post(l.source, &t, 1, &l.err), 1);
    expect_shutdown_wakes_reap(&l);
    link_free(&l);
}

/* post, kick, fence, reap, post, kick, ...; returns the first result below 0, and in *at which
 * operation gave it. */
static int run_script(struct link *l, unsigned operations, unsigned *at)
{
    struct completion completion;
    int result = 0;

    for (*at = 0; result >= 0 && *at < operations; ++*at) {
        struct transfer t = place(l, *at * PAGE, PAGE, NULL);

        switch (*at % 4) {
        case 0:
            result = transport_post(l->source, &t, 1, &l->err);
            break;
        case 1:
            result = transport_kick(l->source, &l->err);
            break;
        case 2:
            result = transport_fence(l->source, *at, &l->err);
            break;
        default:
            result = transport_reap(l->source, &completion, 1, 0, &l->err);
        }
    }
    return result;
}

static void expect_ended(struct link *l, int expected)
{
    struct transfer t = place(l, 0, PAGE, NULL);
    struct completion completion;
    struct error err = {0};

    cr_expect_eq(transport_post(l->source, &t, 1, &err), expected);
    cr_expect_eq(transport_kick(l->source, &err), expected);
    cr_expect_eq(transport_fence(l->source, 1000, &err), expected);
    cr_expect_eq(transport_reap(l->source, &completion, 1, -1, &err), expected);
    expect_text(&err, "injected fault");
}

Test(filter, fail_strikes_at_its_operation_and_stays)
{
    for (unsigned n = 1; n <= 9; n++) {
        struct completion completion;
        struct error err = {0};
        char spec[32], operation[32];
        struct link l;
        unsigned at;
        int result;

        snprintf(spec, sizeof(spec), "fault=fail@%u", n);
        snprintf(operation, sizeof(operation), "operation %u,", n);
        link_make(&l, spec);
        result = run_script(&l, 20, &at);
        cr_expect(result == -EIO && at == n, "%s: got %d at operation %u", spec, result, at);
        expect_text(&l.err, operation);
        expect_ended(&l, -EIO);
        cr_expect_eq(transport_reap(l.destination, &completion, 1, 20, &err), 0,
                     "the lanes did not stay up: %s", err.text);
        link_free(&l);
    }
}

Test(filter, cut_takes_the_lanes_down)
{
    for (unsigned n = 1; n <= 9; n++) {
        struct completion completion;
        struct error err = {0};
        char spec[32];
        struct link l;
        unsigned at;
        int result;

        snprintf(spec, sizeof(spec), "fault=cut@%u", n);
        link_make(&l, spec);
        result = run_script(&l, 20, &at);
        cr_expect(result == -ECONNRESET && at == n, "%s: got %d at operation %u", spec, result, at);
        expect_ended(&l, -ECONNRESET);
        result = transport_reap(l.destination, &completion, 1, 10000, &err);
        cr_expect_eq(result, -ECONNRESET, "%s: the peer got %d (%s)", spec, result, err.text);
        transport_shutdown(l.source);
        error_clear(&err);
        cr_expect_eq(transport_reap(l.source, &completion, 1, 0, &err), -ESHUTDOWN);
        link_free(&l);
    }
}

Test(filter, cut_at_the_destination)
{
    struct completion completion;
    struct link l;
    int result;

    link_make(&l, "");
    cr_assert_eq(transport_wrap("fault=cut@2", &l.destination, &l.err), 0, "%s", l.err.text);
    cr_expect_eq(transport_reap(l.destination, &completion, 1, 0, &l.err), 0);
    cr_expect_eq(transport_reap(l.destination, &completion, 1, 0, &l.err), -ECONNRESET);
    expect_text(&l.err, "injected fault: the link was cut at operation 2, a reap");
    error_clear(&l.err);
    result = transport_reap(l.source, &completion, 1, 10000, &l.err);
    cr_expect_eq(result, -ECONNRESET, "the peer got %d", result);
    link_free(&l);
}

Test(filter, stall_moves_nothing_and_says_nothing)
{
    struct completion completion;
    struct transfer t;
    unsigned cookie;
    uint64_t start;
    struct link l;

    link_make(&l, "fault=stall@2");
    t = place(&l, 0, PAGE, &cookie);
    cr_expect_eq(transport_post(l.source, &t, 1, &l.err), 1);
    t = place(&l, PAGE, PAGE, &cookie);
    cr_expect_eq(transport_post(l.source, &t, 1, &l.err), 0, "post took something");
    cr_expect_eq(transport_kick(l.source, &l.err), 0);
    cr_expect_eq(transport_fence(l.source, 1, &l.err), 0);
    start = clock_now();
    cr_expect_eq(transport_reap(l.source, &completion, 1, 100, &l.err), 0, "something completed");
    cr_expect(clock_now() - start >= 99 * NS_PER_MS, "reap did not keep its time");
    cr_expect_eq(l.to[PAGE], 0, "something moved");
    expect_shutdown_wakes_reap(&l);
    link_free(&l);
}

Test(filter, skip_loses_one_transfer_and_hides_it)
{
    struct completion completions[8];
    struct transport_stats stats;
    unsigned cookies[4], seen[4] = {0};
    struct transfer t[4];
    struct link l;
    bool fenced = false;

    link_make(&l, "fault=skip@2");
    for (unsigned i = 0; i < 4; i++)
        t[i] = place(&l, i * PAGE, PAGE, &cookies[i]);
    cr_expect_eq(transport_post(l.source, t, 1, &l.err), 1);
    cr_expect_eq(transport_post(l.source, t + 1, 3, &l.err), 3);
    cr_expect_eq(transport_fence(l.source, 1, &l.err), 0);
    while (!fenced || seen[0] + seen[1] + seen[2] + seen[3] < 4) {
        int n = transport_reap(l.source, completions, 8, 10000, &l.err);

        cr_assert_gt(n, 0, "nothing came: %s", l.err.text);
        for (int i = 0; i < n; i++)
            if (completions[i].kind == COMPLETION_FENCE)
                fenced = true;
            else
                seen[(unsigned *)completions[i].cookie - cookies]++;
    }
    for (unsigned i = 0; i < 4; i++) {
        cr_expect_eq(seen[i], 1, "transfer %u completed %u times", i, seen[i]);
        cr_expect_eq(l.to[i * PAGE], i == 1 ? 0 : 0x55, "transfer %u: got %#x", i, l.to[i * PAGE]);
    }
    transport_stats(l.source, &stats);
    cr_expect_eq(stats.posted_bytes, 4 * PAGE, "the count gives it away");
    cr_expect_eq(stats.completed, 4, "the count gives it away");
    link_free(&l);
}
