/* What is posted lands, all of it, where it was told to, and nothing else does. */
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/conformance/harness/harness.h"

enum { PAGE = 4096, MiB = 1 << 20 };

static void place_with_lanes(unsigned setup, unsigned lanes)
{
    static const uint32_t ids[] = {0, 7, 4000000000u};
    unsigned counters[3][16] = {0}, n = 0;
    struct transfer transfers[48];
    struct memory memory[3];
    struct ends e;

    ends_connected(&e, setup, lanes);
    for (unsigned r = 0; r < 3; r++) {
        memory_make(&memory[r], ids[r], (r + 1) * 2 * MiB + r);
        memory_open(&e, &memory[r]);
        for (unsigned i = 0; i < 16; i++)
            transfers[n++] = place(&memory[r], i * 96 * 1024, 64 * 1024, &counters[r][i]);
    }
    post_all(&e, transfers, n);
    settle(&e, 1);
    reap_until(&e, n);
    for (unsigned r = 0; r < 3; r++) {
        for (unsigned i = 0; i < 16; i++) {
            uint64_t missing = memory_missing(&memory[r], i * 96 * 1024, 64 * 1024);
            uint64_t touched = memory_touched(&memory[r], i * 96 * 1024 + 64 * 1024, 32 * 1024);

            expect(&e, !missing, "%u lanes, region %u, run %u: %llu bytes did not arrive", lanes,
                   ids[r], i, (unsigned long long)missing);
            expect(&e, !touched, "%u lanes, region %u: the hole behind run %u was written", lanes,
                   ids[r], i);
            expect(&e, counters[r][i] == 1, "%u lanes, region %u, run %u completed %u times", lanes,
                   ids[r], i, counters[r][i]);
        }
        expect(&e, !memory_touched(&memory[r], 16 * 96 * 1024, memory[r].size - 16 * 96 * 1024),
               "%u lanes, region %u: written behind the last run", lanes, ids[r]);
    }
    ends_close(&e);
    for (unsigned r = 0; r < 3; r++)
        memory_free(&memory[r]);
}

CONFORMS(placement, runs_with_holes_in_several_regions)
{
    static const unsigned lanes[] = {1, 2, 4, 8};

    for (unsigned i = 0; i < 4; i++)
        place_with_lanes(*setup, lanes[i]);
}

/* Every other page of 16 MiB, in an order that jumps about. */
static void scatter(struct transfer *transfers, const struct memory *m, unsigned *counters,
                    unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned page = (i * 1021u) % n;

        transfers[i] = place(m, (uint64_t)page * 2 * PAGE, PAGE, &counters[page]);
    }
}

CONFORMS(placement, many_small_scattered_pages)
{
    enum { PAGES = 2048 };
    struct transfer *transfers = calloc(PAGES, sizeof(*transfers));
    unsigned *counters = calloc(PAGES, sizeof(*counters)), once = 0;
    uint64_t missing = 0, touched = 0;
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 4);
    memory_make(&memory, 3, PAGES * 2 * PAGE);
    memory_open(&e, &memory);
    scatter(transfers, &memory, counters, PAGES);
    for (unsigned i = 0; i < PAGES; i += 100)
        post_all(&e, transfers + i, PAGES - i < 100 ? PAGES - i : 100);
    settle(&e, 1);
    reap_until(&e, PAGES);
    for (unsigned i = 0; i < PAGES; i++) {
        missing += memory_missing(&memory, (uint64_t)i * 2 * PAGE, PAGE);
        touched += memory_touched(&memory, ((uint64_t)i * 2 + 1) * PAGE, PAGE);
        once += counters[i] == 1;
    }
    expect(&e, !missing, "%llu bytes did not arrive", (unsigned long long)missing);
    expect(&e, !touched, "%llu bytes between the pages were written", (unsigned long long)touched);
    expect(&e, once == PAGES, "only %u of %u pages completed exactly once", once, PAGES);
    ends_close(&e);
    memory_free(&memory);
    free(transfers);
    free(counters);
}

CONFORMS(placement, any_length_at_any_offset)
{
    static const struct {
        uint64_t offset;
        size_t length;
    } cases[] = {
        {0, 1},
        {5, 4095},
        {PAGE * 2 - 1, 2},
        {65536 + 3, 65537},
        {200001, TRANSPORT_MAX_TRANSFER},
        {3 * MiB + 17 - 9, 9}, /* up to the very end */
    };
    enum { CASES = sizeof(cases) / sizeof(cases[0]) };
    unsigned counters[CASES] = {0};
    uint64_t end = 0;
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, 3 * MiB + 17);
    memory_open(&e, &memory);
    for (unsigned i = 0; i < CASES; i++) {
        struct transfer t = place(&memory, cases[i].offset, cases[i].length, &counters[i]);

        post_all(&e, &t, 1);
    }
    settle(&e, 1);
    reap_until(&e, CASES);
    for (unsigned i = 0; i < CASES; i++) {
        expect(&e, !memory_missing(&memory, cases[i].offset, cases[i].length),
               "%zu bytes at %llu did not arrive", cases[i].length,
               (unsigned long long)cases[i].offset);
        expect(&e, !memory_touched(&memory, end, cases[i].offset - end), "written before %llu",
               (unsigned long long)cases[i].offset);
        end = cases[i].offset + cases[i].length;
    }
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(placement, regions_opened_while_lanes_run)
{
    unsigned counter = 0;
    struct memory first, second;
    struct transfer t;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&first, 1, MiB);
    memory_open(&e, &first);
    t = place(&first, 0, MiB, &counter);
    post_all(&e, &t, 1);
    memory_make(&second, 2, MiB);
    memory_open(&e, &second);
    t = place(&second, 0, MiB, &counter);
    post_all(&e, &t, 1);
    settle(&e, 1);
    reap_until(&e, 2);
    expect(&e, !memory_missing(&first, 0, MiB), "the first region is incomplete");
    expect(&e, !memory_missing(&second, 0, MiB), "the second region is incomplete");
    ends_close(&e);
    memory_free(&first);
    memory_free(&second);
}

/* What a decoder saw. A blob is `size` bytes that all have the value of its first one. */
struct seen {
    atomic_uint blobs, bad, slow_ms;
    atomic_ulong bytes, values;
};

static int decode_and_count(void *context, const void *bytes, size_t size, struct error *err)
{
    struct seen *seen = context;
    const uint8_t *at = bytes;

    (void)err;
    if (seen->slow_ms)
        clock_sleep_until(clock_now() + seen->slow_ms * NS_PER_MS);
    for (size_t i = 0; i < size; i++)
        seen->bad += at[i] != at[0];
    seen->bytes += size;
    seen->values += at[0];
    seen->blobs++;
    return 0;
}

static struct transfer blob(const void *bytes, size_t length, unsigned *counter)
{
    return (struct transfer){
        .kind = TRANSFER_BLOB, .bytes = bytes, .length = length, .cookie = counter};
}

static void ends_with_decoder(struct ends *e, unsigned setup, unsigned lanes, struct seen *seen)
{
    struct transport_params source = params_default(lanes), destination = source;

    destination.decode = decode_and_count;
    destination.decode_context = seen;
    ends_make(e, setup, &source, &destination);
    ends_connect(e);
}

CONFORMS(placement, blobs_between_places)
{
    enum { PAIRS = 64 };
    static const size_t lengths[] = {1, 7, 4096, TRANSPORT_MAX_BLOB};
    static uint8_t contents[PAIRS][TRANSPORT_MAX_BLOB];
    struct transfer transfers[2 * PAIRS];
    unsigned counters[2 * PAIRS] = {0}, once = 0;
    unsigned long bytes = 0, values = 0;
    struct seen seen = {0};
    struct memory memory;
    struct ends e;

    ends_with_decoder(&e, *setup, 4, &seen);
    memory_make(&memory, 1, PAIRS * 3 * PAGE);
    memory_open(&e, &memory);
    for (unsigned i = 0; i < PAIRS; i++) {
        memset(contents[i], (int)i + 1, sizeof(contents[i]));
        transfers[2 * i] = place(&memory, i * 3 * PAGE, 2 * PAGE, &counters[2 * i]);
        transfers[2 * i + 1] = blob(contents[i], lengths[i % 4], &counters[2 * i + 1]);
        bytes += lengths[i % 4];
        values += i + 1;
    }
    post_all(&e, transfers, 2 * PAIRS);
    settle(&e, 1);
    reap_until(&e, 2 * PAIRS);
    expect(&e, seen.blobs == PAIRS, "%u blobs came of %u", seen.blobs, PAIRS);
    expect(&e, !seen.bad && seen.values == values, "blobs came with other content");
    expect(&e, seen.bytes == bytes, "%lu bytes of blobs came of %lu", seen.bytes, bytes);
    for (unsigned i = 0; i < 2 * PAIRS; i++)
        once += counters[i] == 1;
    expect(&e, once == 2 * PAIRS, "%u of %u completed exactly once", once, 2 * PAIRS);
    for (unsigned i = 0; i < PAIRS; i++) {
        expect(&e, !memory_missing(&memory, i * 3 * PAGE, 2 * PAGE), "run %u is incomplete", i);
        expect(&e, !memory_touched(&memory, (i * 3 + 2) * PAGE, PAGE), "hole %u was written", i);
    }
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(placement, a_fence_waits_for_the_decoder)
{
    enum { BLOBS = 12 };
    uint8_t contents[BLOBS][16];
    struct transfer transfers[BLOBS];
    unsigned counters[BLOBS] = {0};
    struct seen seen = {.slow_ms = 20};
    struct ends e;

    ends_with_decoder(&e, *setup, 3, &seen);
    for (unsigned i = 0; i < BLOBS; i++) {
        memset(contents[i], 1, sizeof(contents[i]));
        transfers[i] = blob(contents[i], sizeof(contents[i]), &counters[i]);
    }
    post_all(&e, transfers, BLOBS);
    settle(&e, 1);
    expect(&e, seen.blobs == BLOBS, "the fence completed with %u of %u blobs decoded", seen.blobs,
           BLOBS);
    ends_close(&e);
}

/* The source's bytes are the caller's again after completion: overwriting them changes nothing that
 * was sent. */
CONFORMS(placement, bytes_of_a_completed_blob_may_change)
{
    enum { BLOBS = 200 };
    uint8_t content[4096];
    unsigned counter = 0;
    struct seen seen = {0};
    struct ends e;

    ends_with_decoder(&e, *setup, 2, &seen);
    for (unsigned i = 0; i < BLOBS; i++) {
        struct transfer t = blob(content, sizeof(content), &counter);

        memset(content, 1, sizeof(content));
        post_all(&e, &t, 1);
        reap_until(&e, i + 1);
        memset(content, 99, sizeof(content));
    }
    settle(&e, 1);
    expect(&e, seen.blobs == BLOBS && seen.values == BLOBS && !seen.bad,
           "%u blobs came with sum %lu, expected %u with sum %u", seen.blobs, seen.values, BLOBS,
           BLOBS);
    ends_close(&e);
}

CONFORMS(placement, transfers_without_cookie_complete_silently)
{
    enum { PAGES = 64 };
    struct transfer transfers[PAGES];
    struct transport_stats stats;
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, PAGES * PAGE);
    memory_open(&e, &memory);
    for (unsigned i = 0; i < PAGES; i++)
        transfers[i] = place(&memory, i * PAGE, PAGE, NULL);
    post_all(&e, transfers, PAGES);
    settle(&e, 1);
    transport_stats(e.source, &stats);
    expect(&e, e.transfers_completed == 0, "%u completions came", e.transfers_completed);
    expect(&e, stats.completed == PAGES, "%llu of %u are counted as completed",
           (unsigned long long)stats.completed, PAGES);
    expect(&e, !memory_missing(&memory, 0, memory.size), "the region is incomplete");
    ends_close(&e);
    memory_free(&memory);
}
