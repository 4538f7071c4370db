/* What a lane's stream may hold, and that nothing else gets through. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "tests/fuzz/tcp_frame.c"
#include "transport/base/wire.h"

static const uint32_t magic = 0x6d726657;

static void put_header(uint8_t *out, uint32_t word, uint16_t type, uint16_t zero, uint32_t count,
                       uint32_t bytes, uint64_t fence)
{
    struct wire_writer w = wire_writer(out, FRAME_HEADER_SIZE);

    wire_put_u32(&w, word);
    wire_put_u16(&w, type);
    wire_put_u16(&w, zero);
    wire_put_u32(&w, count);
    wire_put_u32(&w, bytes);
    wire_put_u64(&w, fence);
}

Test(tcp_frame, headers)
{
    static const struct {
        const char *what;
        uint32_t magic;
        uint16_t type, zero;
        uint32_t count, bytes;
        uint64_t fence;
        int expected;
    } cases[] = {
        {"a place of one byte", magic, FRAME_PLACE, 0, 1, 1, 0, 0},
        {"the largest place", magic, FRAME_PLACE, 0, FRAME_MAX_RUNS, FRAME_MAX_BYTES, 0, 0},
        {"a blob", magic, FRAME_BLOB, 0, 2, 100, 0, 0},
        {"a fence", magic, FRAME_FENCE, 0, 0, 0, UINT64_MAX, 0},
        {"an acknowledgement", magic, FRAME_ACKNOWLEDGE, 0, 0, 0, 5, 0},
        {"another magic", magic + 1, FRAME_PLACE, 0, 1, 1, 0, -EPROTO},
        {"type 0", magic, 0, 0, 1, 1, 0, -EPROTO},
        {"an unknown type", magic, FRAME_ACKNOWLEDGE + 1, 0, 0, 0, 0, -EPROTO},
        {"a reserved field in use", magic, FRAME_PLACE, 1, 1, 1, 0, -EPROTO},
        {"no run", magic, FRAME_PLACE, 0, 0, 0, 0, -EPROTO},
        {"too many runs", magic, FRAME_PLACE, 0, FRAME_MAX_RUNS + 1, 4096, 0, -EPROTO},
        {"2^32-1 runs", magic, FRAME_BLOB, 0, UINT32_MAX, UINT32_MAX, 0, -EPROTO},
        {"too many bytes", magic, FRAME_PLACE, 0, 1, FRAME_MAX_BYTES + 1, 0, -EPROTO},
        {"fewer bytes than runs", magic, FRAME_BLOB, 0, 3, 2, 0, -EPROTO},
        {"a place with a fence's id", magic, FRAME_PLACE, 0, 1, 1, 1, -EPROTO},
        {"a fence with runs", magic, FRAME_FENCE, 0, 1, 1, 1, -EPROTO},
        {"a fence with bytes", magic, FRAME_FENCE, 0, 0, 1, 1, -EPROTO},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t bytes[FRAME_HEADER_SIZE];
        struct frame_header header;
        struct error err = {0};
        int result;

        put_header(bytes, cases[i].magic, cases[i].type, cases[i].zero, cases[i].count,
                   cases[i].bytes, cases[i].fence);
        result = frame_header_decode(bytes, &header, &err);
        cr_expect_eq(result, cases[i].expected, "%s: expected %d, got %d (%s)", cases[i].what,
                     cases[i].expected, result, err.text);
        if (result == 0)
            cr_expect(header.count == cases[i].count && header.bytes == cases[i].bytes &&
                          header.fence == cases[i].fence && (uint16_t)header.type == cases[i].type,
                      "%s: decoded to other values", cases[i].what);
    }
}

Test(tcp_frame, a_header_decodes_to_what_was_encoded)
{
    const struct frame_header header = {FRAME_BLOB, 17, 0x54321, 0};
    uint8_t encoded[FRAME_HEADER_SIZE], expected[FRAME_HEADER_SIZE];

    frame_header_encode(&header, encoded);
    put_header(expected, magic, FRAME_BLOB, 0, 17, 0x54321, 0);
    cr_expect(!memcmp(encoded, expected, sizeof expected),
              "the header's bytes differ from the format");
}

enum { MAX_CASE_RUNS = 3 };

struct run_case {
    const char *what;
    enum frame_type type;
    uint32_t count, bytes;
    struct frame_run runs[MAX_CASE_RUNS];
    int expected; /* pieces (0 for blobs), or -errno */
};

static int parse(const struct run_case *c, struct regions *regions, struct iovec *pieces,
                 struct error *err)
{
    const struct frame_header header = {c->type, c->count, c->bytes, 0};
    uint8_t bytes[MAX_CASE_RUNS * FRAME_RUN_SIZE];
    struct frame_run runs[MAX_CASE_RUNS];
    int result;

    for (unsigned i = 0; i < c->count; i++)
        frame_run_encode(&c->runs[i], bytes + i * FRAME_RUN_SIZE);
    result = frame_runs_decode(&header, bytes, runs, err);
    if (result < 0 || c->type != FRAME_PLACE)
        return result;
    return frame_runs_resolve(runs, c->count, regions, pieces, err);
}

static const uint64_t small_size = FUZZ_REGION_SIZE / 2 + 4096;

Test(tcp_frame, runs)
{
    const struct run_case cases[] = {
        {"a page", FRAME_PLACE, 1, 4096, {{0, 4096, 0}}, 1},
        {"the last byte", FRAME_PLACE, 1, 1, {{7, 1, small_size - 1}}, 1},
        {"adjacent runs are one piece",
         FRAME_PLACE,
         2,
         12288,
         {{0, 4096, 8192}, {0, 8192, 12288}},
         1},
        {"a hole between runs", FRAME_PLACE, 2, 8192, {{0, 4096, 0}, {0, 4096, 8192}}, 2},
        {"backwards", FRAME_PLACE, 2, 8192, {{0, 4096, 4096}, {0, 4096, 0}}, 2},
        {"two regions", FRAME_PLACE, 3, 3, {{0, 1, 0}, {7, 1, 0}, {0, 1, 1}}, 3},
        {"an unknown region", FRAME_PLACE, 1, 4096, {{1, 4096, 0}}, -EPROTO},
        {"one byte too far", FRAME_PLACE, 1, 2, {{7, 2, small_size - 1}}, -EPROTO},
        {"an offset at the end", FRAME_PLACE, 1, 1, {{7, 1, small_size}}, -EPROTO},
        {"an offset that wraps", FRAME_PLACE, 1, 4096, {{0, 4096, UINT64_MAX - 4095}}, -EPROTO},
        {"the second run is bad",
         FRAME_PLACE,
         2,
         8192,
         {{0, 4096, 0}, {0, 4096, 1 << 21}},
         -EPROTO},
        {"an empty run", FRAME_PLACE, 2, 4096, {{0, 4096, 0}, {0, 0, 8192}}, -EPROTO},
        {"less than the header says", FRAME_PLACE, 1, 8192, {{0, 4096, 0}}, -EPROTO},
        {"more than the header says", FRAME_PLACE, 1, 4096, {{0, 8192, 0}}, -EPROTO},
        {"two blobs", FRAME_BLOB, 2, 65537, {{0, 65536, 0}, {0, 1, 0}}, 0},
        {"a blob too large", FRAME_BLOB, 1, 65537, {{0, 65537, 0}}, -EPROTO},
        {"an empty blob", FRAME_BLOB, 2, 2, {{0, 2, 0}, {0, 0, 0}}, -EPROTO},
        {"a blob with a region", FRAME_BLOB, 1, 1, {{1, 1, 0}}, -EPROTO},
        {"a blob with an offset", FRAME_BLOB, 1, 1, {{0, 1, 1}}, -EPROTO},
    };
    struct regions regions;
    struct error err = {0};

    regions_init(&regions);
    for (unsigned i = 0; i < FUZZ_REGIONS; i++)
        cr_assert_eq(regions_open(&regions, &fuzz_regions[i], &err), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct iovec pieces[MAX_CASE_RUNS];
        int result;

        error_clear(&err);
        result = parse(&cases[i], &regions, pieces, &err);
        cr_expect_eq(result, cases[i].expected, "%s: expected %d, got %d (%s)", cases[i].what,
                     cases[i].expected, result, err.text);
        if (result > 0)
            fuzz_check_pieces(pieces, (unsigned)result, cases[i].bytes);
    }
    regions_destroy(&regions);
}

Test(tcp_frame, a_sum_of_runs_does_not_wrap)
{
    static const struct frame_header header = {FRAME_PLACE, 2, 4096, 0};
    static const struct frame_run sent[] = {{0, UINT32_MAX, 0}, {0, 4097, 0}};
    uint8_t bytes[2 * FRAME_RUN_SIZE];
    struct frame_run runs[2];
    struct error err = {0};
    int result;

    for (unsigned i = 0; i < 2; i++)
        frame_run_encode(&sent[i], bytes + i * FRAME_RUN_SIZE);
    result = frame_runs_decode(&header, bytes, runs, &err);
    cr_expect_eq(result, -EPROTO, "4 GiB and 4 KiB passed for 4 KiB: expected %d, got %d", -EPROTO,
                 result);
}

Test(tcp_frame, prefaces)
{
    static const struct preface expected = {.count = 4, .epoch = 9, .token = "0123456789abcde"};
    static const struct {
        const char *what;
        struct preface preface;
        unsigned flip; /* a byte of it that is changed, PREFACE_SIZE: none */
        enum answer answer;
    } cases[] = {
        {"the first lane", {0, 4, 9, "0123456789abcde"}, PREFACE_SIZE, ANSWER_WELCOME},
        {"the last lane", {3, 4, 9, "0123456789abcde"}, PREFACE_SIZE, ANSWER_WELCOME},
        {"one lane too many", {4, 4, 9, "0123456789abcde"}, PREFACE_SIZE, ANSWER_LANES},
        {"another number of lanes", {0, 3, 9, "0123456789abcde"}, PREFACE_SIZE, ANSWER_LANES},
        {"an old epoch", {0, 4, 8, "0123456789abcde"}, PREFACE_SIZE, ANSWER_EPOCH},
        {"another token", {0, 4, 9, "0123456789abcdE"}, PREFACE_SIZE, ANSWER_SESSION},
        {"a magic changed", {0, 4, 9, "0123456789abcde"}, 0, ANSWER_FOREIGN},
        {"another version", {0, 4, 9, "0123456789abcde"}, 8, ANSWER_FOREIGN},
        {"a reserved field in use", {0, 4, 9, "0123456789abcde"}, 14, ANSWER_FOREIGN},
        {"another reserved field in use", {0, 4, 9, "0123456789abcde"}, 20, ANSWER_FOREIGN},
        {"the token's last byte", {0, 4, 9, "0123456789abcde"}, 39, ANSWER_SESSION},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t bytes[PREFACE_SIZE + 1];
        uint16_t index = UINT16_MAX;
        enum answer answer;

        preface_encode(&cases[i].preface, bytes);
        bytes[cases[i].flip] ^= 0x40;
        answer = preface_decode(bytes, &expected, &index);
        cr_expect_eq(answer, cases[i].answer, "%s: expected answer %d, got %d", cases[i].what,
                     (int)cases[i].answer, (int)answer);
        if (answer == ANSWER_WELCOME)
            cr_expect_eq(index, cases[i].preface.index, "%s: took it for lane %u", cases[i].what,
                         index);
    }
}

Test(tcp_frame, answers)
{
    for (unsigned answer = 0; answer <= ANSWER_COUNT; answer++) {
        int expected = answer == ANSWER_WELCOME ? 0
                       : answer < ANSWER_COUNT  ? -ECONNREFUSED
                                                : -EPROTO;
        uint8_t bytes[ANSWER_SIZE];
        struct error err = {0};
        int result;

        bind_answer_encode((enum answer)answer, bytes);
        result = bind_answer_decode(bytes, &err);
        cr_expect_eq(result, expected, "answer %u: expected %d, got %d", answer, expected, result);
    }
}

/* xorshift64*: the same input for the same seed everywhere. */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

/* Nearly valid frames: random bytes alone would hardly pass the magic. */
static size_t random_frame(uint64_t *state, uint8_t *out)
{
    uint32_t count = (uint32_t)(next_random(state) % 9), bytes = 0;

    for (uint32_t i = 0; i < count; i++) {
        struct frame_run run = {
            .region = next_random(state) % 4 ? 0 : (uint32_t)(next_random(state) % 9),
            .length = (uint32_t)(next_random(state) % 70000),
            .offset = next_random(state) % (FUZZ_REGION_SIZE + 4096),
        };

        frame_run_encode(&run, out + FRAME_HEADER_SIZE + i * FRAME_RUN_SIZE);
        bytes += run.length;
    }
    put_header(out, magic, (uint16_t)(1 + next_random(state) % 2), 0, count, bytes, 0);
    return FRAME_HEADER_SIZE + count * FRAME_RUN_SIZE;
}

Test(tcp_frame, random_input_never_gets_outside)
{
    enum { INPUTS = 200000 };
    uint64_t state = 0x77616e646572ull;
    uint8_t bytes[FRAME_HEADER_SIZE + 16 * FRAME_RUN_SIZE];

    for (unsigned i = 0; i < INPUTS; i++) {
        size_t size = random_frame(&state, bytes);
        unsigned flips = (unsigned)(next_random(&state) % 4);

        while (flips--)
            bytes[next_random(&state) % size] ^= (uint8_t)(1 << next_random(&state) % 8);
        LLVMFuzzerTestOneInput(bytes, size - next_random(&state) % 2);
    }
}
