/* What a lane's messages may hold, that nothing else gets through, and who may bind. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "transport/base/wire.h"
#include "transport/rdma/message.h"

TestSuite(rdma_message, .timeout = 60);

static const struct rdma_message samples[] = {
    {.type = RDMA_CREDIT, .credits = 8},
    {.type = RDMA_CREDIT, .credits = UINT16_MAX},
    {.type = RDMA_REGISTER,
     .credits = 1,
     .piece = 7,
     .region = 3,
     .offset = 1 << 20,
     .length = 1ull << 36},
    {.type = RDMA_REGISTER,
     .piece = RDMA_MAX_PIECES - 1,
     .region = UINT32_MAX,
     .offset = UINT64_MAX - 1,
     .length = 1},
    {.type = RDMA_REGISTERED, .piece = 9, .address = UINT64_MAX, .key = UINT32_MAX},
    {.type = RDMA_DEREGISTER, .credits = 2, .piece = 0},
    {.type = RDMA_DEREGISTERED, .piece = RDMA_MAX_PIECES - 1},
    {.type = RDMA_PUBLISH, .count = 1},
    {.type = RDMA_PUBLISH, .credits = 3, .count = RDMA_MAX_RUNS},
    {.type = RDMA_PULLED, .count = 1},
    {.type = RDMA_PULLED, .count = UINT32_MAX},
    {.type = RDMA_BLOB, .byte_count = 1},
    {.type = RDMA_BLOB, .credits = 4, .byte_count = TRANSPORT_MAX_BLOB},
    {.type = RDMA_FENCE, .fence = UINT64_MAX},
    {.type = RDMA_FENCED, .fence = 0},
};

static const struct rdma_run sample_run = {5, 0xabcdef01, 1ull << 40, 0x7f0000001000, 12288};

/* As a mailbox would have it: header and payload. Returns the size of both. */
static size_t encode(const struct rdma_message *m, uint8_t *out)
{
    size_t size = rdma_message_encode(m, out);

    cr_expect_leq(size, (size_t)RDMA_TO_SOURCE_SIZE);
    if (m->type == RDMA_PUBLISH) {
        for (uint32_t i = 0; i < m->count; i++)
            rdma_run_encode(&sample_run, out + size + (size_t)i * RDMA_RUN_SIZE);
        return size + (size_t)m->count * RDMA_RUN_SIZE;
    }
    if (m->type != RDMA_BLOB)
        return size;
    memset(out + size, 0x5a, m->byte_count);
    return size + m->byte_count;
}

static void expect_same(const struct rdma_message *want, const struct rdma_message *got,
                        const uint8_t *in)
{
    const char *name = rdma_message_name(want->type);

    cr_expect(got->type == want->type && got->credits == want->credits &&
                  got->piece == want->piece && got->region == want->region &&
                  got->offset == want->offset && got->length == want->length &&
                  got->address == want->address && got->key == want->key &&
                  got->fence == want->fence && got->count == want->count &&
                  got->byte_count == want->byte_count,
              "%s decodes to other values: type %d credits %u piece %u region %u offset %llu "
              "length %llu address %llu key %u fence %llu count %u bytes %u",
              name, (int)got->type, got->credits, got->piece, got->region,
              (unsigned long long)got->offset, (unsigned long long)got->length,
              (unsigned long long)got->address, got->key, (unsigned long long)got->fence,
              got->count, got->byte_count);
    if (want->type == RDMA_BLOB || want->type == RDMA_PUBLISH)
        cr_expect_eq(got->bytes, in + RDMA_HEADER_SIZE, "%s: its payload is elsewhere", name);
    else
        cr_expect_null(got->bytes, "%s has a payload", name);
}

Test(rdma_message, messages_decode_to_what_was_encoded)
{
    static uint8_t bytes[RDMA_TO_DESTINATION_SIZE];

    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        struct rdma_message got;
        struct error err = {0};
        size_t size = encode(&samples[i], bytes);
        int result = rdma_message_decode(bytes, size, &got, &err);

        cr_assert_eq(result, 0, "%s: expected 0, got %d (%s)", rdma_message_name(samples[i].type),
                     result, err.text);
        expect_same(&samples[i], &got, bytes);
    }
}

Test(rdma_message, the_format_stays)
{
    static const uint8_t registers[] = {2,    0, 5, 1, 24, 0, 0, 0, 7,    0, 0, 0, 3, 0, 0, 0,
                                        0x10, 0, 0, 0, 0,  0, 0, 1, 0x20, 0, 0, 0, 0, 0, 0, 2};
    static const uint8_t blob[] = {8, 0, 1, 0, 0x34, 0x12, 0, 0};
    const struct rdma_message m = {.type = RDMA_REGISTER,
                                   .credits = 0x105,
                                   .piece = 7,
                                   .region = 3,
                                   .offset = 0x0100000000000010,
                                   .length = 0x0200000000000020};
    const struct rdma_message b = {.type = RDMA_BLOB, .credits = 1, .byte_count = 0x1234};
    uint8_t bytes[RDMA_TO_SOURCE_SIZE];

    cr_assert_eq(rdma_message_encode(&m, bytes), sizeof registers);
    cr_expect_arr_eq(bytes, registers, sizeof registers);
    cr_assert_eq(rdma_message_encode(&b, bytes), sizeof blob);
    cr_expect_arr_eq(bytes, blob, sizeof blob);
}

Test(rdma_message, names)
{
    cr_expect_str_eq(rdma_message_name(RDMA_CREDIT), "CREDIT");
    cr_expect_str_eq(rdma_message_name(RDMA_FENCED), "FENCED");
    cr_expect_str_eq(rdma_message_name((enum rdma_message_type)0), "?");
    cr_expect_str_eq(rdma_message_name((enum rdma_message_type)(RDMA_FENCED + 1)), "?");
}

/* Exactly `size` bytes on the heap, so that a sanitizer sees a read beyond them. */
static int decode_exact(const uint8_t *bytes, size_t size, struct rdma_message *m,
                        struct error *err)
{
    uint8_t *copy = malloc(size ? size : 1);
    int result;

    memcpy(copy, bytes, size);
    result = rdma_message_decode(copy, size, m, err);
    for (uint32_t i = 0; !result && m->type == RDMA_PUBLISH && i < m->count; i++) {
        const uint8_t *at = (const uint8_t *)m->bytes + (size_t)i * RDMA_RUN_SIZE;
        struct rdma_run run;
        struct error run_error = {0};

        cr_assert(at + RDMA_RUN_SIZE <= copy + size, "run %u lies outside", i);
        rdma_run_decode(at, &run, &run_error);
    }
    if (!result && m->type == RDMA_BLOB)
        cr_assert((const uint8_t *)m->bytes + m->byte_count == copy + size, "a blob lies outside");
    free(copy);
    return result;
}

/* 0 with values that may be, or -EPROTO with a text. */
static void expect_sound(const char *what, size_t at, int result, const struct rdma_message *m,
                         const struct error *err)
{
    if (result) {
        cr_expect(result == -EPROTO && err->text[0], "%s, byte %zu: expected 0 or %d, got %d (%s)",
                  what, at, -EPROTO, result, err->text);
        return;
    }
    cr_expect(m->type >= RDMA_CREDIT && m->type <= RDMA_FENCED && m->piece < RDMA_MAX_PIECES &&
                  m->offset <= UINT64_MAX - m->length && m->byte_count <= TRANSPORT_MAX_BLOB,
              "%s, byte %zu: decoded to type %d piece %u bytes %u", what, at, (int)m->type,
              m->piece, m->byte_count);
    cr_expect(m->type != RDMA_REGISTER || m->length);
    cr_expect(m->type != RDMA_PULLED || m->count);
    cr_expect(m->type != RDMA_PUBLISH || (m->count && m->count <= RDMA_MAX_RUNS));
    cr_expect(m->type != RDMA_BLOB || m->byte_count);
}

Test(rdma_message, no_changed_byte_does_harm)
{
    static uint8_t bytes[RDMA_TO_DESTINATION_SIZE];

    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        size_t size = encode(&samples[i], bytes), end = size < 200 ? size : 200;

        for (size_t at = 0; at < end; at++) {
            for (unsigned value = 1; value < 256; value++) {
                struct rdma_message m;
                struct error err = {0};
                int result;

                bytes[at] ^= (uint8_t)value;
                result = decode_exact(bytes, size, &m, &err);
                expect_sound(rdma_message_name(samples[i].type), at, result, &m, &err);
                bytes[at] ^= (uint8_t)value;
            }
        }
    }
}

Test(rdma_message, nothing_shorter_or_longer_gets_through)
{
    static uint8_t bytes[RDMA_TO_DESTINATION_SIZE + 1];

    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        size_t size = encode(&samples[i], bytes);

        for (size_t cut = 0; cut <= size + 1; cut += cut < 300 || cut + 300 > size ? 1 : 97) {
            struct rdma_message m;
            struct error err = {0};
            int result = decode_exact(bytes, cut, &m, &err);

            if (cut != size)
                cr_expect(result == -EPROTO && err.text[0],
                          "%s of %zu bytes cut to %zu: expected %d, got %d (%s)",
                          rdma_message_name(samples[i].type), size, cut, -EPROTO, result, err.text);
        }
    }
}

/* By hand, for what the encoder would never write. */
static size_t put(uint8_t *out, uint8_t type, uint8_t zero, uint32_t length, const uint64_t *words,
                  unsigned count)
{
    struct wire_writer w = wire_writer(out, RDMA_TO_DESTINATION_SIZE + RDMA_RUN_SIZE);

    wire_put_u8(&w, type);
    wire_put_u8(&w, zero);
    wire_put_u16(&w, 0);
    wire_put_u32(&w, length);
    for (unsigned i = 0; i < count; i++)
        wire_put_u64(&w, words[i]);
    memset(w.at, 0, (size_t)(w.end - w.at));
    return RDMA_HEADER_SIZE + (size_t)length;
}

Test(rdma_message, what_no_wander_sends)
{
    static const struct {
        const char *what;
        uint8_t type, zero;
        uint32_t length;
        uint64_t words[3];
        int expected;
    } cases[] = {
        {"a register", RDMA_REGISTER, 0, 24, {1, 0, 1}, 0},
        {"type 0", 0, 0, 0, {0}, -EPROTO},
        {"an unknown type", RDMA_FENCED + 1, 0, 8, {0}, -EPROTO},
        {"type 255", 255, 0, 8, {0}, -EPROTO},
        {"a reserved field in use", RDMA_FENCE, 1, 8, {0}, -EPROTO},
        {"a credit with a payload", RDMA_CREDIT, 0, 1, {0}, -EPROTO},
        {"a register of nothing", RDMA_REGISTER, 0, 24, {1, 0, 0}, -EPROTO},
        {"a register that overflows", RDMA_REGISTER, 0, 24, {1, UINT64_MAX, 1}, -EPROTO},
        {"a register just below", RDMA_REGISTER, 0, 24, {1, UINT64_MAX, 0}, -EPROTO},
        {"a piece too high", RDMA_REGISTER, 0, 24, {RDMA_MAX_PIECES, 0, 1}, -EPROTO},
        {"the same, registered", RDMA_REGISTERED, 0, 16, {RDMA_MAX_PIECES, 0}, -EPROTO},
        {"the same, to deregister", RDMA_DEREGISTER, 0, 4, {RDMA_MAX_PIECES}, -EPROTO},
        {"the same, deregistered", RDMA_DEREGISTERED, 0, 4, {UINT32_MAX}, -EPROTO},
        {"no runs", RDMA_PUBLISH, 0, 0, {0}, -EPROTO},
        {"half a run", RDMA_PUBLISH, 0, 48, {0}, -EPROTO},
        {"most runs", RDMA_PUBLISH, 0, RDMA_MAX_RUNS * RDMA_RUN_SIZE, {0}, 0},
        {"too many runs", RDMA_PUBLISH, 0, (RDMA_MAX_RUNS + 1) * RDMA_RUN_SIZE, {0}, -EPROTO},
        {"nothing pulled", RDMA_PULLED, 0, 4, {0}, -EPROTO},
        {"an empty blob", RDMA_BLOB, 0, 0, {0}, -EPROTO},
        {"a blob too large", RDMA_BLOB, 0, TRANSPORT_MAX_BLOB + 1, {0}, -EPROTO},
        {"a fence with more", RDMA_FENCE, 0, 16, {0}, -EPROTO},
    };
    static uint8_t bytes[RDMA_TO_DESTINATION_SIZE + RDMA_RUN_SIZE];

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t size = put(bytes, cases[i].type, cases[i].zero, cases[i].length, cases[i].words, 3);
        struct rdma_message m;
        struct error err = {0};
        int result = decode_exact(bytes, size, &m, &err);

        cr_expect_eq(result, cases[i].expected, "%s: expected %d, got %d (%s)", cases[i].what,
                     cases[i].expected, result, err.text);
        cr_expect_eq(!err.text[0], !result, "%s: \"%s\"", cases[i].what, err.text);
    }
}

Test(rdma_message, runs)
{
    static const struct {
        const char *what;
        struct rdma_run run;
        int expected;
    } cases[] = {
        {"a page", {0, 1, 0, 4096, 4096}, 0},
        {"the longest", {RDMA_MAX_PIECES - 1, 0, 0, 0, TRANSPORT_MAX_TRANSFER}, 0},
        {"the highest", {0, UINT32_MAX, UINT64_MAX - 1, UINT64_MAX - 1, 1}, 0},
        {"no bytes", {0, 1, 0, 4096, 0}, -EPROTO},
        {"too many bytes", {0, 1, 0, 4096, TRANSPORT_MAX_TRANSFER + 1}, -EPROTO},
        {"a piece too high", {RDMA_MAX_PIECES, 1, 0, 4096, 4096}, -EPROTO},
        {"an offset that overflows", {0, 1, UINT64_MAX, 0, 1}, -EPROTO},
        {"an address that overflows", {0, 1, 0, UINT64_MAX - 4094, 4096}, -EPROTO},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t bytes[RDMA_RUN_SIZE];
        struct rdma_run run;
        struct error err = {0};
        int result;

        rdma_run_encode(&cases[i].run, bytes);
        result = rdma_run_decode(bytes, &run, &err);
        cr_expect_eq(result, cases[i].expected, "%s: expected %d, got %d (%s)", cases[i].what,
                     cases[i].expected, result, err.text);
        cr_expect(run.piece == cases[i].run.piece && run.key == cases[i].run.key &&
                      run.offset == cases[i].run.offset && run.address == cases[i].run.address &&
                      run.length == cases[i].run.length,
                  "%s: decoded to other values", cases[i].what);
        bytes[RDMA_RUN_SIZE - 1] = 1;
        cr_expect_eq(rdma_run_decode(bytes, &run, &err), -EPROTO, "%s: a reserved field in use",
                     cases[i].what);
    }
}

static const struct rdma_binding binding = {.token = "0123456789abcde",
                                            .epoch = 9,
                                            .lane = 3,
                                            .lanes = 4,
                                            .operation = TRANSPORT_READ,
                                            .registration = TRANSPORT_REGISTER_CHUNK,
                                            .receives = 16};

static bool bindings_equal(const struct rdma_binding *a, const struct rdma_binding *b)
{
    return !memcmp(a->token, b->token, sizeof a->token) && a->epoch == b->epoch &&
           a->lane == b->lane && a->lanes == b->lanes && a->operation == b->operation &&
           a->registration == b->registration && a->receives == b->receives;
}

Test(rdma_message, a_binding_survives_padding_and_nothing_shorter)
{
    uint8_t bytes[56] = {0};
    struct rdma_binding got;

    rdma_binding_encode(&binding, bytes);
    for (size_t size = 0; size <= sizeof bytes; size++) {
        uint8_t *copy = malloc(size ? size : 1);
        enum rdma_refusal want = size < RDMA_BINDING_SIZE ? RDMA_REFUSED_STRANGER : RDMA_ACCEPTED;
        enum rdma_refusal refusal;

        memcpy(copy, bytes, size);
        refusal = rdma_binding_decode(copy, size, &got);
        cr_expect_eq(refusal, want, "%zu bytes: expected %d, got %d", size, (int)want,
                     (int)refusal);
        cr_expect(refusal || bindings_equal(&got, &binding), "%zu bytes: other values", size);
        free(copy);
    }
    cr_expect_eq(rdma_binding_decode(NULL, 0, &got), RDMA_REFUSED_STRANGER);
}

Test(rdma_message, a_binding_with_a_byte_changed_is_refused_or_another)
{
    uint8_t bytes[RDMA_BINDING_SIZE];

    rdma_binding_encode(&binding, bytes);
    for (size_t at = 0; at < sizeof bytes; at++) {
        for (unsigned value = 1; value < 256; value++) {
            struct rdma_binding got;
            enum rdma_refusal refusal;

            bytes[at] ^= (uint8_t)value;
            refusal = rdma_binding_decode(bytes, sizeof bytes, &got);
            cr_expect(refusal == RDMA_ACCEPTED || refusal == RDMA_REFUSED_STRANGER ||
                          refusal == RDMA_REFUSED_VERSION,
                      "byte %zu: %d", at, (int)refusal);
            cr_expect((at < 8) <= (refusal == RDMA_REFUSED_STRANGER), "the magic, byte %zu", at);
            cr_expect((at / 2 == 4) == (refusal == RDMA_REFUSED_VERSION), "the version, byte %zu",
                      at);
            if (refusal == RDMA_ACCEPTED)
                cr_expect(!bindings_equal(&got, &binding) && got.lane < got.lanes &&
                              got.lanes <= TRANSPORT_MAX_LANES && got.receives &&
                              got.operation <= TRANSPORT_READ &&
                              got.registration <= TRANSPORT_REGISTER_CHUNK,
                          "byte %zu changed by %#x: accepted with values that cannot be", at,
                          value);
            bytes[at] ^= (uint8_t)value;
        }
    }
}

Test(rdma_message, answers)
{
    static const struct {
        const char *what;
        struct rdma_answer answer;
        int flip; /* a byte of it that is changed, -1: none */
        int expected;
        enum rdma_refusal refusal;
    } cases[] = {
        {"accepted", {RDMA_ACCEPTED, 16, 7, 1ull << 33}, -1, 0, RDMA_ACCEPTED},
        {"accepted, too few receives", {RDMA_ACCEPTED, 1, 7, 0}, -1, -EPROTO, RDMA_ACCEPTED},
        {"accepted, no pieces", {RDMA_ACCEPTED, 16, 0, 0}, -1, -EPROTO, RDMA_ACCEPTED},
        {"another version", {RDMA_REFUSED_VERSION, 0, 0, 0}, -1, 0, RDMA_REFUSED_VERSION},
        {"a stranger", {RDMA_REFUSED_STRANGER, 0, 0, 0}, -1, 0, RDMA_REFUSED_STRANGER},
        {"a lane", {RDMA_REFUSED_LANE, 0, 0, 0}, -1, 0, RDMA_REFUSED_LANE},
        {"a mismatch", {RDMA_REFUSED_MISMATCH, 0, 0, 0}, -1, 0, RDMA_REFUSED_MISMATCH},
        {"trouble", {RDMA_REFUSED_TROUBLE, 0, 0, 0}, -1, 0, RDMA_REFUSED_TROUBLE},
        {"unknown", {RDMA_REFUSED_TROUBLE + 1, 0, 0, 0}, -1, -EPROTO, RDMA_ACCEPTED},
        {"another magic", {RDMA_ACCEPTED, 16, 7, 0}, 0, -EPROTO, RDMA_ACCEPTED},
        {"a later one accepts", {RDMA_ACCEPTED, 16, 7, 0}, 4, 0, RDMA_REFUSED_VERSION},
        {"a later one refuses", {RDMA_REFUSED_LANE, 0, 0, 0}, 5, 0, RDMA_REFUSED_VERSION},
        {"a reserved field in use", {RDMA_ACCEPTED, 16, 7, 0}, 11, -EPROTO, RDMA_ACCEPTED},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t bytes[RDMA_ANSWER_SIZE + 1];
        struct rdma_answer got;
        struct error err = {0};
        int result;

        rdma_answer_encode(&cases[i].answer, bytes);
        bytes[cases[i].flip < 0 ? RDMA_ANSWER_SIZE : cases[i].flip] ^= 0x40;
        result = rdma_answer_decode(bytes, RDMA_ANSWER_SIZE, &got, &err);
        cr_expect_eq(result, cases[i].expected, "%s: expected %d, got %d (%s)", cases[i].what,
                     cases[i].expected, result, err.text);
        if (result)
            continue;
        cr_expect_eq(got.refusal, cases[i].refusal, "%s: expected %d, got %d", cases[i].what,
                     (int)cases[i].refusal, (int)got.refusal);
        if (cases[i].flip < 0)
            cr_expect(got.receives == cases[i].answer.receives &&
                          got.most_pieces == cases[i].answer.most_pieces &&
                          got.piece_limit == cases[i].answer.piece_limit,
                      "%s: decoded to other values", cases[i].what);
    }
}

Test(rdma_message, cut_answers)
{
    const struct rdma_answer answer = {RDMA_ACCEPTED, 16, 7, 5};
    uint8_t bytes[RDMA_ANSWER_SIZE];
    struct rdma_answer got;

    rdma_answer_encode(&answer, bytes);
    for (size_t size = 0; size < sizeof bytes; size++) {
        uint8_t *copy = malloc(size ? size : 1);
        struct error err = {0};
        int result;

        memcpy(copy, bytes, size);
        result = rdma_answer_decode(copy, size, &got, &err);
        cr_expect_eq(result, -EPROTO, "%zu bytes: expected %d, got %d", size, -EPROTO, result);
        free(copy);
    }
}

Test(rdma_message, every_refusal_has_words)
{
    for (unsigned i = 0; i <= RDMA_REFUSED_TROUBLE + 1; i++)
        cr_expect_gt(strlen(rdma_refusal_text((enum rdma_refusal)i)), 7u, "refusal %u: \"%s\"", i,
                     rdma_refusal_text((enum rdma_refusal)i));
}
