/* What must not be posted, and what must not be believed. */
#include <stdlib.h>

#include "tests/conformance/harness/harness.h"

enum { PAGE = 4096, MiB = 1 << 20 };

CONFORMS(hostile, transfers_that_break_the_contract_are_refused)
{
    static uint8_t elsewhere[PAGE];
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, 2 * MiB);
    memory_open(&e, &memory);
    {
        const struct transfer good = place(&memory, 0, PAGE, NULL);
        struct transfer cases[] = {good, good, good, good, good, good, good, good, good};

        cases[0].length = 0;
        cases[1].length = TRANSPORT_MAX_TRANSFER + 1;
        cases[2].bytes = NULL;
        cases[3].bytes = elsewhere;
        cases[4].bytes = memory.source + memory.size - PAGE + 1;
        cases[5].lane_class = TRANSFER_URGENT;
        cases[6].notify = true;
        cases[7].kind = (enum transfer_kind)7;
        cases[8].offset = UINT64_MAX - 100;
        for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            struct transfer batch[2] = {good, cases[i]};
            int result = transport_post(e.source, batch + 1, 1, &e.err);

            expect(&e, result == -EINVAL, "case %u: expected -EINVAL, got %d", i, result);
            expect(&e, e.err.text[0], "case %u: no text", i);
            error_clear(&e.err);
        }
        settle(&e, 1);
        expect(&e, !memory_touched(&memory, 0, memory.size), "a refused transfer landed");
        post_all(&e, &good, 1);
    }
    settle(&e, 2);
    expect(&e, !memory_missing(&memory, 0, PAGE), "a refused transfer ended the transport");
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(hostile, fences_count_upwards)
{
    struct ends e;

    ends_connected(&e, *setup, 2);
    settle(&e, 5);
    expect_result(&e, transport_fence(e.source, 5, &e.err), -EINVAL);
    expect_result(&e, transport_fence(e.source, 4, &e.err), -EINVAL);
    settle(&e, 6);
    ends_close(&e);
}

CONFORMS(hostile, regions_are_checked)
{
    struct transport_region region;
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 1);
    memory_make(&memory, 1, MiB);
    memory_open(&e, &memory);
    region = (struct transport_region){.id = 1, .base = memory.source, .size = memory.size};
    expect_result(&e, transport_open_region(e.source, &region, &e.err), -EEXIST);
    region.id = 2;
    region.size = 0;
    expect_result(&e, transport_open_region(e.source, &region, &e.err), -EINVAL);
    region.size = UINT64_MAX;
    expect_result(&e, transport_open_region(e.source, &region, &e.err), -EINVAL);
    region.size = PAGE;
    region.base = NULL;
    expect_result(&e, transport_open_region(e.source, &region, &e.err), -EINVAL);
    expect(&e, transport_close_region(e.source, 2, &e.err) < 0, "closed what was never open");
    error_clear(&e.err);
    expect_result(&e, transport_close_region(e.source, 1, &e.err), 0);
    {
        struct transfer t = place(&memory, 0, PAGE, NULL);

        expect_result(&e, transport_post(e.source, &t, 1, &e.err), -EINVAL);
    }
    region = (struct transport_region){.id = 1, .base = memory.source, .size = memory.size};
    expect_result(&e, transport_open_region(e.source, &region, &e.err), 0);
    ends_close(&e);
    memory_free(&memory);
}

/* The source believes in more memory than the destination has: `here` and `there` are regions of
 * one id. */
static void expect_refused(struct ends *e, struct memory *m, uint32_t region, uint64_t offset)
{
    struct transfer t = place(m, offset, 2 * PAGE, NULL);
    struct error err = {0};
    int result;

    t.region = region;
    expect(e, transport_post(e->source, &t, 1, &e->err) == 1, "post: %s", e->err.text);
    transport_fence(e->source, 1, &e->err);
    transport_kick(e->source, &e->err);
    result = wait_for_error(e->destination, &err);
    expect(e, result == -EPROTO, "expected -EPROTO, got %d (%s)", result, err.text);
    expect(e, strstr(err.text, "region"), "the text does not name the region: %s", err.text);
    result = wait_for_error(e->source, &err);
    expect(e, result < 0, "the source goes on as if nothing were wrong");
    expect(e, !e->fences_completed, "the fence completed");
}

static void open_one_end(struct transport *t, uint32_t id, void *base, uint64_t size)
{
    struct transport_region region = {.id = id, .base = base, .size = size};
    struct error err = {0};

    cr_assert_eq(transport_open_region(t, &region, &err), 0, "open_region: %s", err.text);
}

CONFORMS(hostile, a_range_beyond_the_end_touches_nothing)
{
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, MiB);
    open_one_end(e.source, 1, memory.source, MiB);
    open_one_end(e.destination, 1, memory.destination, MiB / 2);
    expect_refused(&e, &memory, 1, MiB / 2 - PAGE);
    expect(&e, !memory_touched(&memory, 0, MiB), "memory was touched");
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(hostile, an_unknown_region_touches_nothing)
{
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, MiB);
    open_one_end(e.source, 2, memory.source, MiB);
    open_one_end(e.destination, 1, memory.destination, MiB);
    expect_refused(&e, &memory, 2, 0);
    expect(&e, !memory_touched(&memory, 0, MiB), "memory was touched");
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(hostile, a_closed_region_touches_nothing)
{
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, MiB);
    memory_open(&e, &memory);
    expect_result(&e, transport_close_region(e.destination, 1, &e.err), 0);
    expect_refused(&e, &memory, 1, 0);
    expect(&e, !memory_touched(&memory, 0, MiB), "memory was touched");
    ends_close(&e);
    memory_free(&memory);
}

static int post_one_blob(struct ends *e)
{
    static const uint8_t bytes[100] = {1};
    struct transfer t = {.kind = TRANSFER_BLOB, .bytes = bytes, .length = sizeof(bytes)};
    int result = transport_post(e->source, &t, 1, &e->err);

    transport_kick(e->source, &e->err);
    return result;
}

CONFORMS(hostile, a_blob_without_a_decoder)
{
    struct error err = {0};
    struct ends e;
    int result;

    ends_connected(&e, *setup, 2);
    expect_result(&e, post_one_blob(&e), 1);
    result = wait_for_error(e.destination, &err);
    expect(&e, result == -EPROTO, "expected -EPROTO, got %d (%s)", result, err.text);
    expect(&e, err.text[0], "no text");
    ends_close(&e);
}

static int decode_nothing(void *context, const void *bytes, size_t size, struct error *err)
{
    (void)context, (void)bytes;
    return error_set(err, EBADMSG, "%zu bytes of nonsense", size);
}

CONFORMS(hostile, a_decoder_that_fails_ends_the_transport)
{
    struct transport_params source = params_default(2), destination = source;
    struct error err = {0};
    struct ends e;
    int result;

    destination.decode = decode_nothing;
    ends_make(&e, *setup, &source, &destination);
    ends_connect(&e);
    expect_result(&e, post_one_blob(&e), 1);
    transport_fence(e.source, 1, &e.err);
    result = wait_for_error(e.destination, &err);
    expect(&e, result == -EBADMSG, "expected -EBADMSG, got %d (%s)", result, err.text);
    expect(&e, strstr(err.text, "100 bytes of nonsense"), "the decoder's text is lost: %s",
           err.text);
    result = wait_for_error(e.source, &err);
    expect(&e, result < 0, "the source goes on as if nothing were wrong");
    expect(&e, !e.fences_completed, "the fence completed");
    ends_close(&e);
}

CONFORMS(hostile, capabilities_do_not_change)
{
    struct ends e;
    unsigned before;

    ends_connected(&e, *setup, 1);
    before = transport_capabilities(e.source);
    expect(&e,
           !(before & ~(TRANSPORT_ONE_SIDED | TRANSPORT_PINS_MEMORY | TRANSPORT_HOLDS_SOURCE |
                        TRANSPORT_ENCRYPTS)),
           "unknown capabilities %#x", before);
    transport_shutdown(e.source);
    expect(&e, transport_capabilities(e.source) == before, "they changed with shutdown");
    ends_close(&e);
}
