/* When things complete, how long calls wait, and what is counted. */
#include <stdatomic.h>
#include <stdlib.h>

#include "tests/conformance/harness/harness.h"

enum { PAGE = 4096, MiB = 1 << 20 };

CONFORMS(order, a_fence_with_nothing_before_it)
{
    struct ends e;

    ends_connected(&e, *setup, 4);
    settle(&e, 1);
    settle(&e, 17);
    settle(&e, UINT64_MAX);
    expect(&e, e.fences_completed == 3, "%u fences completed of 3", e.fences_completed);
    ends_close(&e);
}

/* At the completion of fence k, the k pages posted before it have landed. */
static void check_landed(struct ends *e, const struct memory *m, uint64_t *checked)
{
    while (*checked < e->last_fence) {
        expect(e, !memory_missing(m, *checked * PAGE, PAGE),
               "fence %llu completed before page %llu landed", (unsigned long long)e->last_fence,
               (unsigned long long)*checked);
        ++*checked;
    }
}

CONFORMS(order, many_fences_complete_in_order)
{
    enum { FENCES = 300 };
    unsigned *counters = calloc(FENCES, sizeof(*counters));
    uint64_t checked = 0, deadline;
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 4);
    memory_make(&memory, 1, FENCES * PAGE);
    memory_open(&e, &memory);
    for (unsigned i = 0; i < FENCES; i++) {
        struct transfer t = place(&memory, i * PAGE, PAGE, &counters[i]);

        post_all(&e, &t, 1);
        expect_result(&e, transport_fence(e.source, i + 1, &e.err), 0);
    }
    deadline = clock_now() + PATIENCE_MS * NS_PER_MS;
    while (e.fences_completed < FENCES && clock_now() < deadline) {
        reap_some(&e, 5, 1000);
        check_landed(&e, &memory, &checked);
    }
    expect(&e, e.fences_completed == FENCES, "%u fences completed of %u", e.fences_completed,
           FENCES);
    expect(&e, e.fences_in_order, "fences completed out of order");
    reap_until(&e, FENCES);
    ends_close(&e);
    memory_free(&memory);
    free(counters);
}

/* A decoder that waits until it is let go. */
static int decode_when_allowed(void *context, const void *bytes, size_t size, struct error *err)
{
    atomic_int *gate = context;

    (void)bytes, (void)size, (void)err;
    while (!*gate)
        clock_sleep_until(clock_now() + NS_PER_MS);
    return 0;
}

/* Posts blobs of 64 KiB until there is no room, without ever reaping. */
static unsigned post_until_full(struct ends *e, const uint8_t *bytes, unsigned *counter,
                                unsigned limit)
{
    struct transfer t = {
        .kind = TRANSFER_BLOB, .bytes = bytes, .length = TRANSPORT_MAX_BLOB, .cookie = counter};
    unsigned posted = 0;
    int taken = 1;

    while (taken > 0 && posted < limit) {
        taken = transport_post(e->source, &t, 1, &e->err);
        require(e, taken >= 0, "post: %s", e->err.text);
        posted += (unsigned)taken;
    }
    require(e, posted < limit, "the transport took %u MiB that nobody decoded", limit / 16);
    return posted;
}

CONFORMS(order, post_never_blocks_and_loses_nothing)
{
    static uint8_t bytes[TRANSPORT_MAX_BLOB];
    struct transport_params source = params_default(2), destination = source;
    unsigned counter = 0, posted;
    uint64_t start;
    atomic_int gate = 0;
    struct ends e;

    destination.decode = decode_when_allowed;
    destination.decode_context = &gate;
    ends_make(&e, *setup, &source, &destination);
    ends_connect(&e);
    start = clock_now();
    posted = post_until_full(&e, bytes, &counter, 16384);
    expect(&e, clock_now() - start < PATIENCE_MS * NS_PER_MS, "post blocked");
    expect(&e, posted > 0, "an empty transport has no room");
    gate = 1;
    settle(&e, 1);
    reap_until(&e, posted);
    expect(&e, counter == posted, "%u of %u completed", counter, posted);
    ends_close(&e);
}

CONFORMS(order, a_full_transport_tells_when_there_is_room)
{
    enum { CHUNKS = 64 };
    unsigned counter = 0;
    struct transfer transfers[CHUNKS];
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 1);
    memory_make(&memory, 1, CHUNKS * MiB / 2);
    memory_open(&e, &memory);
    for (unsigned i = 0; i < CHUNKS; i++)
        transfers[i] = place(&memory, i * MiB / 2, MiB / 2, NULL);
    transfers[CHUNKS - 1].cookie = &counter;
    for (unsigned posted = 0; posted < CHUNKS;) {
        int taken = transport_post(e.source, transfers + posted, CHUNKS - posted, &e.err);

        require(&e, taken >= 0, "post: %s", e.err.text);
        posted += (unsigned)taken;
        /* No completion will come for silent transfers: only word of room ends this wait. */
        if (posted < CHUNKS)
            reap_some(&e, 64, -1);
    }
    settle(&e, 1);
    reap_until(&e, 1);
    expect(&e, !memory_missing(&memory, 0, memory.size), "the region is incomplete");
    ends_close(&e);
    memory_free(&memory);
}

static uint64_t idle_reap(struct ends *e, struct transport *t, int timeout_ms)
{
    struct completion completion;
    uint64_t start = clock_now();

    expect_result(e, transport_reap(t, &completion, 1, timeout_ms, &e->err), 0);
    return clock_now() - start;
}

CONFORMS(order, reap_keeps_its_time_limit)
{
    struct transport *both[2];
    struct ends e;

    ends_connected(&e, *setup, 2);
    both[0] = e.source;
    both[1] = e.destination;
    for (unsigned i = 0; i < 2; i++) {
        const char *end = i ? "destination" : "source";
        uint64_t at_once = idle_reap(&e, both[i], 0), later = idle_reap(&e, both[i], 150);

        expect(&e, at_once < 5 * NS_PER_S, "%s: reap(0) waited", end);
        expect(&e, later >= 149 * NS_PER_MS, "%s: reap(150) came back after %.1f ms", end,
               ns_to_ms(later));
        expect(&e, later < 10 * NS_PER_S, "%s: reap(150) took %.1f ms", end, ns_to_ms(later));
    }
    ends_close(&e);
}

CONFORMS(order, a_blocked_reap_wakes_for_a_completion)
{
    unsigned counter = 0;
    struct transfer t;
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, MiB);
    memory_open(&e, &memory);
    t = place(&memory, 0, MiB, &counter);
    post_all(&e, &t, 1);
    expect_result(&e, transport_fence(e.source, 1, &e.err), 0);
    while (!e.fences_completed || !counter)
        reap_some(&e, 1, -1);
    expect(&e, counter == 1 && e.fences_completed == 1, "%u transfers and %u fences completed",
           counter, e.fences_completed);
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(order, completions_come_in_small_helpings)
{
    enum { PAGES = 40 };
    struct transfer transfers[PAGES];
    unsigned counters[PAGES] = {0}, once = 0;
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 3);
    memory_make(&memory, 1, PAGES * PAGE);
    memory_open(&e, &memory);
    for (unsigned i = 0; i < PAGES; i++)
        transfers[i] = place(&memory, i * PAGE, PAGE, &counters[i]);
    post_all(&e, transfers, PAGES);
    expect_result(&e, transport_fence(e.source, 1, &e.err), 0);
    while (e.transfers_completed + e.fences_completed < PAGES + 1) {
        int n = reap_some(&e, 1, PATIENCE_MS);

        require(&e, n == 1, "reap of one gave %d", n);
    }
    for (unsigned i = 0; i < PAGES; i++)
        once += counters[i] == 1;
    expect(&e, once == PAGES, "%u of %u completed exactly once", once, PAGES);
    ends_close(&e);
    memory_free(&memory);
}

static bool grew(const struct transport_stats *before, const struct transport_stats *now)
{
    return now->posted_bytes >= before->posted_bytes && now->wire_bytes >= before->wire_bytes &&
           now->completed >= before->completed && now->frames >= before->frames &&
           now->system_calls >= before->system_calls;
}

struct watch {
    struct transport *t;
    atomic_bool stop;
    bool shrank;
};

static void *watch_stats(void *context)
{
    struct watch *w = context;
    struct transport_stats before = {0}, now;

    while (!w->stop) {
        transport_stats(w->t, &now);
        w->shrank = w->shrank || !grew(&before, &now);
        before = now;
        clock_sleep_until(clock_now() + 100 * NS_PER_US);
    }
    return NULL;
}

/* Without a fence behind them: nothing but their own number makes them complete. */
CONFORMS(order, a_batch_of_any_size_completes)
{
    enum { MOST = 256 };
    static const unsigned sizes[] = {1, 16, 33, 63, 64, 64, 64, 65, 128, 129, MOST, MOST, MOST};
    struct transfer transfers[MOST];
    unsigned counters[MOST] = {0}, posted = 0;
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 1);
    memory_make(&memory, 1, MOST * 2 * PAGE);
    memory_open(&e, &memory);
    for (unsigned i = 0; i < MOST; i++)
        transfers[i] = place(&memory, (uint64_t)i * 2 * PAGE, PAGE, &counters[i]);
    post_all(&e, transfers, MOST);
    settle(&e, 1);
    posted = MOST;
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        post_all(&e, transfers, sizes[i]);
        posted += sizes[i];
        /* And as many again behind them, while they are under way. */
        post_all(&e, transfers, sizes[i]);
        posted += sizes[i];
        reap_until(&e, posted);
        settle(&e, i + 2);
    }
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(order, stats_are_exact_and_never_shrink)
{
    enum { CHUNKS = 24, ROUNDS = 3 };
    struct transfer transfers[CHUNKS];
    unsigned counters[CHUNKS] = {0};
    struct transport_stats stats;
    struct watch watch;
    pthread_t watcher;
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, CHUNKS * (MiB / 4));
    memory_open(&e, &memory);
    for (unsigned i = 0; i < CHUNKS; i++)
        transfers[i] = place(&memory, i * (MiB / 4), MiB / 4 - i, &counters[i]);
    watch = (struct watch){.t = e.source};
    cr_assert_eq(pthread_create(&watcher, NULL, watch_stats, &watch), 0);
    for (unsigned round = 1; round <= ROUNDS; round++) {
        post_all(&e, transfers, CHUNKS);
        settle(&e, round);
        reap_until(&e, round * CHUNKS);
    }
    watch.stop = true;
    pthread_join(watcher, NULL);
    transport_stats(e.source, &stats);
    expect(&e, !watch.shrank, "a counter went back");
    expect(&e, stats.posted_bytes == ROUNDS * (CHUNKS * (MiB / 4) - CHUNKS * (CHUNKS - 1) / 2),
           "%llu bytes counted", (unsigned long long)stats.posted_bytes);
    expect(&e, stats.completed == ROUNDS * CHUNKS, "%llu completions counted",
           (unsigned long long)stats.completed);
    expect(&e, stats.outstanding == 0, "%llu still outstanding",
           (unsigned long long)stats.outstanding);
    expect(&e, stats.wire_bytes >= stats.posted_bytes, "fewer bytes on the wire than posted");
    expect(&e, stats.wire_bytes < stats.posted_bytes + stats.posted_bytes / 10 + 65536,
           "%llu bytes on the wire for %llu", (unsigned long long)stats.wire_bytes,
           (unsigned long long)stats.posted_bytes);
    expect(&e, stats.frames > 0, "no frames counted");
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(order, what_waits_is_outstanding)
{
    static uint8_t bytes[64];
    struct transport_params source = params_default(1), destination = source;
    struct transfer t = {.kind = TRANSFER_BLOB, .bytes = bytes, .length = sizeof(bytes)};
    struct transport_stats stats;
    atomic_int gate = 0;
    struct ends e;

    destination.decode = decode_when_allowed;
    destination.decode_context = &gate;
    ends_make(&e, *setup, &source, &destination);
    ends_connect(&e);
    transport_stats(e.source, &stats);
    expect(&e, stats.outstanding == 0 && stats.completed == 0 && stats.posted_bytes == 0,
           "something is counted before anything was posted");
    post_all(&e, &t, 1);
    expect_result(&e, transport_fence(e.source, 1, &e.err), 0);
    reap_some(&e, 1, 50);
    transport_stats(e.source, &stats);
    expect(&e, stats.outstanding >= 1, "a fence that waits for the decoder is not outstanding");
    expect(&e, e.fences_completed == 0, "the fence did not wait for the decoder");
    gate = 1;
    while (!e.fences_completed)
        reap_some(&e, 1, -1);
    transport_stats(e.source, &stats);
    expect(&e, stats.outstanding == 0, "%llu still outstanding",
           (unsigned long long)stats.outstanding);
    ends_close(&e);
}
