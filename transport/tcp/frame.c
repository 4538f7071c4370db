#include "transport/tcp/frame.h"

#include <errno.h>

#include "transport/base/wire.h"

static const uint32_t frame_magic = 0x6d726657;              /* "Wfrm" */
static const uint32_t answer_magic = 0x736e6157;             /* "Wans" */
static const uint64_t preface_magic = 0x656e616c72646e77ull; /* "wndrlane" */
static const uint16_t preface_version = 1;

void frame_header_encode(const struct frame_header *header, uint8_t out[FRAME_HEADER_SIZE])
{
    struct wire_writer w = wire_writer(out, FRAME_HEADER_SIZE);

    wire_put_u32(&w, frame_magic);
    wire_put_u16(&w, (uint16_t)header->type);
    wire_put_u16(&w, 0);
    wire_put_u32(&w, header->count);
    wire_put_u32(&w, header->bytes);
    wire_put_u64(&w, header->fence);
}

static bool header_carries_runs(const struct frame_header *h)
{
    return h->count >= 1 && h->count <= FRAME_MAX_RUNS && h->bytes >= h->count &&
           h->bytes <= FRAME_MAX_BYTES && h->fence == 0;
}

static bool header_is_valid(const struct frame_header *h)
{
    switch (h->type) {
    case FRAME_PLACE:
    case FRAME_BLOB:
        return header_carries_runs(h);
    case FRAME_FENCE:
    case FRAME_ACKNOWLEDGE:
        return h->count == 0 && h->bytes == 0;
    }
    return false;
}

int frame_header_decode(const uint8_t bytes[FRAME_HEADER_SIZE], struct frame_header *out,
                        struct error *err)
{
    struct wire_reader r = wire_reader(bytes, FRAME_HEADER_SIZE);
    uint32_t magic = wire_get_u32(&r);
    uint16_t type = wire_get_u16(&r), zero = wire_get_u16(&r);
    uint32_t count = wire_get_u32(&r), length = wire_get_u32(&r);

    *out = (struct frame_header){type, count, length, wire_get_u64(&r)};
    if (magic != frame_magic)
        return error_set(err, EPROTO, "the peer sent what is no frame (magic %#x)", magic);
    if (zero || !header_is_valid(out))
        return error_set(err, EPROTO,
                         "the peer sent an invalid frame (type %u, reserved %u, %u runs, %u bytes, "
                         "fence %llu)",
                         type, zero, count, length, (unsigned long long)out->fence);
    return 0;
}

void frame_run_encode(const struct frame_run *run, uint8_t out[FRAME_RUN_SIZE])
{
    struct wire_writer w = wire_writer(out, FRAME_RUN_SIZE);

    wire_put_u32(&w, run->region);
    wire_put_u32(&w, run->length);
    wire_put_u64(&w, run->offset);
}

static bool run_is_valid(const struct frame_run *run, enum frame_type type)
{
    if (run->length == 0)
        return false;
    return type == FRAME_PLACE ||
           (run->length <= TRANSPORT_MAX_BLOB && run->region == 0 && run->offset == 0);
}

int frame_runs_decode(const struct frame_header *header, const uint8_t *bytes,
                      struct frame_run *out, struct error *err)
{
    struct wire_reader r = wire_reader(bytes, (size_t)header->count * FRAME_RUN_SIZE);
    uint64_t total = 0;

    for (unsigned i = 0; i < header->count; i++) {
        uint32_t region = wire_get_u32(&r), length = wire_get_u32(&r);

        out[i] = (struct frame_run){region, length, wire_get_u64(&r)};
        if (!run_is_valid(&out[i], header->type))
            return error_set(err, EPROTO,
                             "the peer sent an invalid run (region %u offset %llu length %u)",
                             region, (unsigned long long)out[i].offset, length);
        total += length;
    }
    if (total != header->bytes)
        return error_set(err, EPROTO, "the peer sent runs of %llu bytes in a frame of %u",
                         (unsigned long long)total, header->bytes);
    return 0;
}

static int outside(const struct frame_run *run, struct error *err)
{
    return error_set(
        err, EPROTO,
        "the peer sent %u bytes for region %u offset %llu, which is not open here or not "
        "as large",
        run->length, run->region, (unsigned long long)run->offset);
}

int frame_runs_resolve(const struct frame_run *runs, unsigned count, struct regions *regions,
                       struct iovec *out, struct error *err)
{
    int result = 0, n = 0;

    regions_lock(regions);
    for (unsigned i = 0; i < count && !result; i++) {
        void *at = regions_resolve(regions, runs[i].region, runs[i].offset, runs[i].length);

        if (!at)
            result = outside(&runs[i], err);
        else if (n && (uint8_t *)out[n - 1].iov_base + out[n - 1].iov_len == at)
            out[n - 1].iov_len += runs[i].length;
        else
            out[n++] = (struct iovec){at, runs[i].length};
    }
    regions_unlock(regions);
    return result < 0 ? result : n;
}

void preface_encode(const struct preface *preface, uint8_t out[PREFACE_SIZE])
{
    struct wire_writer w = wire_writer(out, PREFACE_SIZE);

    wire_put_u64(&w, preface_magic);
    wire_put_u16(&w, preface_version);
    wire_put_u16(&w, preface->index);
    wire_put_u16(&w, preface->count);
    wire_put_u16(&w, 0);
    wire_put_u32(&w, preface->epoch);
    wire_put_u32(&w, 0);
    wire_put_bytes(&w, preface->token, sizeof preface->token);
}

static bool tokens_equal(const uint8_t *a, const uint8_t *b)
{
    uint8_t difference = 0;

    for (unsigned i = 0; i < TRANSPORT_TOKEN_SIZE; i++)
        difference |= a[i] ^ b[i];
    return difference == 0;
}

enum answer preface_decode(const uint8_t bytes[PREFACE_SIZE], const struct preface *expected,
                           uint16_t *index)
{
    struct wire_reader r = wire_reader(bytes, PREFACE_SIZE);
    uint64_t magic = wire_get_u64(&r);
    uint16_t version = wire_get_u16(&r), at = wire_get_u16(&r), count = wire_get_u16(&r);
    uint16_t zero = wire_get_u16(&r);
    uint32_t epoch = wire_get_u32(&r), zeros = wire_get_u32(&r);
    uint8_t token[TRANSPORT_TOKEN_SIZE];

    wire_get_bytes(&r, token, sizeof token);
    if (magic != preface_magic || version != preface_version || zero || zeros)
        return ANSWER_FOREIGN;
    if (!tokens_equal(token, expected->token))
        return ANSWER_SESSION;
    if (epoch != expected->epoch)
        return ANSWER_EPOCH;
    if (count != expected->count || at >= count)
        return ANSWER_LANES;
    *index = at;
    return ANSWER_WELCOME;
}

void bind_answer_encode(enum answer answer, uint8_t out[ANSWER_SIZE])
{
    struct wire_writer w = wire_writer(out, ANSWER_SIZE);

    wire_put_u32(&w, answer_magic);
    wire_put_u32(&w, (uint32_t)answer);
}

int bind_answer_decode(const uint8_t bytes[ANSWER_SIZE], struct error *err)
{
    static const char *const reasons[ANSWER_COUNT] = {
        [ANSWER_FOREIGN] = "the peer speaks another version of the lane protocol",
        [ANSWER_SESSION] = "the peer serves another session",
        [ANSWER_EPOCH] = "the peer has moved on to another epoch of the session",
        [ANSWER_LANES] = "the peer expects another number of lanes",
        [ANSWER_OCCUPIED] = "the peer has this lane already",
    };
    struct wire_reader r = wire_reader(bytes, ANSWER_SIZE);
    uint32_t magic = wire_get_u32(&r), answer = wire_get_u32(&r);

    if (magic != answer_magic || answer >= ANSWER_COUNT)
        return error_set(err, EPROTO, "what listens there is no wander lane");
    if (answer != ANSWER_WELCOME)
        return error_set(err, ECONNREFUSED, "turned away: %s", reasons[answer]);
    return 0;
}
