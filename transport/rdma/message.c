#include "transport/rdma/message.h"

#include <errno.h>

#include "transport/base/wire.h"

static const uint64_t binding_magic = 0x656e616c72646e77ull; /* "wndrlane" */
static const uint32_t answer_magic = 0x736e6157;             /* "Wans" */

/* What follows the header of each type; bytes of one element where there are several. */
static const struct message_format {
    const char *name;
    uint32_t size, max_count;
} formats[] = {
    [RDMA_CREDIT] = {"CREDIT", 0, 1},
    [RDMA_REGISTER] = {"REGISTER", 24, 1},
    [RDMA_REGISTERED] = {"REGISTERED", 16, 1},
    [RDMA_DEREGISTER] = {"DEREGISTER", 4, 1},
    [RDMA_DEREGISTERED] = {"DEREGISTERED", 4, 1},
    [RDMA_PUBLISH] = {"PUBLISH", RDMA_RUN_SIZE, RDMA_MAX_RUNS},
    [RDMA_PULLED] = {"PULLED", 4, 1},
    [RDMA_BLOB] = {"BLOB", 1, TRANSPORT_MAX_BLOB},
    [RDMA_FENCE] = {"FENCE", 8, 1},
    [RDMA_FENCED] = {"FENCED", 8, 1},
};

/* NULL for an unknown type. */
static const struct message_format *format_of(unsigned type)
{
    return type < sizeof formats / sizeof *formats && formats[type].name ? &formats[type] : NULL;
}

const char *rdma_message_name(enum rdma_message_type type)
{
    const struct message_format *format = format_of((unsigned)type);

    return format ? format->name : "?";
}

static uint32_t payload_length(const struct rdma_message *m)
{
    if (m->type == RDMA_BLOB)
        return m->byte_count;
    return formats[m->type].size * (m->type == RDMA_PUBLISH ? m->count : 1);
}

size_t rdma_message_encode(const struct rdma_message *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, RDMA_TO_SOURCE_SIZE);

    wire_put_u8(&w, (uint8_t)m->type);
    wire_put_u8(&w, 0);
    wire_put_u16(&w, m->credits);
    wire_put_u32(&w, payload_length(m));
    switch (m->type) {
    case RDMA_REGISTER:
        wire_put_u32(&w, m->piece);
        wire_put_u32(&w, m->region);
        wire_put_u64(&w, m->offset);
        wire_put_u64(&w, m->length);
        break;
    case RDMA_REGISTERED:
        wire_put_u32(&w, m->piece);
        wire_put_u32(&w, m->key);
        wire_put_u64(&w, m->address);
        break;
    case RDMA_DEREGISTER:
    case RDMA_DEREGISTERED:
        wire_put_u32(&w, m->piece);
        break;
    case RDMA_PULLED:
        wire_put_u32(&w, m->count);
        break;
    case RDMA_FENCE:
    case RDMA_FENCED:
        wire_put_u64(&w, m->fence);
        break;
    case RDMA_CREDIT:
    case RDMA_PUBLISH:
    case RDMA_BLOB:
        break;
    }
    return (size_t)(w.at - out);
}

/* Header and payload fit each other and what was received. */
static int decode_header(struct wire_reader *r, struct rdma_message *m, uint32_t *length,
                         struct error *err)
{
    unsigned size = (unsigned)wire_reader_left(r), type = wire_get_u8(r), zero = wire_get_u8(r);
    const struct message_format *format = format_of(type);

    m->credits = wire_get_u16(r);
    *length = wire_get_u32(r);
    if (r->failed)
        return error_set(err, EPROTO, "the peer sent %u bytes on a lane, which is no message",
                         size);
    if (!format || zero)
        return error_set(err, EPROTO, "the peer sent an unknown message (type %u, reserved %u)",
                         type, zero);
    m->type = (enum rdma_message_type)type;
    if (*length != wire_reader_left(r))
        return error_set(err, EPROTO, "the peer sent a %s of %u bytes that says it has %u",
                         format->name, size, *length);
    if (format->max_count == 1
            ? *length != format->size
            : !*length || *length % format->size || *length / format->size > format->max_count)
        return error_set(err, EPROTO, "the peer sent a %s with %u bytes behind its header",
                         format->name, *length);
    return 0;
}

static bool has_piece(enum rdma_message_type type)
{
    return type == RDMA_REGISTER || type == RDMA_REGISTERED || type == RDMA_DEREGISTER ||
           type == RDMA_DEREGISTERED;
}

static int check_values(const struct rdma_message *m, struct error *err)
{
    if (has_piece(m->type) && m->piece >= RDMA_MAX_PIECES)
        return error_set(err, EPROTO, "the peer sent a %s of piece %u; %u are possible",
                         rdma_message_name(m->type), m->piece, RDMA_MAX_PIECES);
    if (m->type == RDMA_REGISTER && (!m->length || m->offset > UINT64_MAX - m->length))
        return error_set(err, EPROTO, "the peer sent a REGISTER of %llu bytes at offset %llu",
                         (unsigned long long)m->length, (unsigned long long)m->offset);
    if (m->type == RDMA_PULLED && !m->count)
        return error_set(err, EPROTO, "the peer sent a PULLED of no runs");
    return 0;
}

int rdma_message_decode(const uint8_t *in, size_t size, struct rdma_message *m, struct error *err)
{
    struct wire_reader r = wire_reader(in, size);
    uint32_t length;
    int result;

    *m = (struct rdma_message){0};
    result = decode_header(&r, m, &length, err);
    if (result < 0)
        return result;
    switch (m->type) {
    case RDMA_REGISTER:
        m->piece = wire_get_u32(&r);
        m->region = wire_get_u32(&r);
        m->offset = wire_get_u64(&r);
        m->length = wire_get_u64(&r);
        break;
    case RDMA_REGISTERED:
        m->piece = wire_get_u32(&r);
        m->key = wire_get_u32(&r);
        m->address = wire_get_u64(&r);
        break;
    case RDMA_DEREGISTER:
    case RDMA_DEREGISTERED:
        m->piece = wire_get_u32(&r);
        break;
    case RDMA_PULLED:
        m->count = wire_get_u32(&r);
        break;
    case RDMA_FENCE:
    case RDMA_FENCED:
        m->fence = wire_get_u64(&r);
        break;
    case RDMA_PUBLISH:
        m->count = length / RDMA_RUN_SIZE;
        m->bytes = wire_get_view(&r, length);
        break;
    case RDMA_BLOB:
        m->byte_count = length;
        m->bytes = wire_get_view(&r, length);
        break;
    case RDMA_CREDIT:
        break;
    }
    return check_values(m, err);
}

void rdma_run_encode(const struct rdma_run *run, uint8_t out[RDMA_RUN_SIZE])
{
    struct wire_writer w = wire_writer(out, RDMA_RUN_SIZE);

    wire_put_u32(&w, run->piece);
    wire_put_u32(&w, run->key);
    wire_put_u64(&w, run->offset);
    wire_put_u64(&w, run->address);
    wire_put_u32(&w, run->length);
    wire_put_u32(&w, 0);
}

int rdma_run_decode(const uint8_t in[RDMA_RUN_SIZE], struct rdma_run *run, struct error *err)
{
    struct wire_reader r = wire_reader(in, RDMA_RUN_SIZE);
    uint32_t zero;

    run->piece = wire_get_u32(&r);
    run->key = wire_get_u32(&r);
    run->offset = wire_get_u64(&r);
    run->address = wire_get_u64(&r);
    run->length = wire_get_u32(&r);
    zero = wire_get_u32(&r);
    if (!zero && run->piece < RDMA_MAX_PIECES && run->length &&
        run->length <= TRANSPORT_MAX_TRANSFER && run->offset <= UINT64_MAX - run->length &&
        run->address <= UINT64_MAX - run->length)
        return 0;
    return error_set(err, EPROTO,
                     "the peer published an invalid run (piece %u offset %llu, address %#llx, %u "
                     "bytes, reserved %u)",
                     run->piece, (unsigned long long)run->offset, (unsigned long long)run->address,
                     run->length, zero);
}

void rdma_binding_encode(const struct rdma_binding *b, uint8_t out[RDMA_BINDING_SIZE])
{
    struct wire_writer w = wire_writer(out, RDMA_BINDING_SIZE);

    wire_put_u64(&w, binding_magic);
    wire_put_u16(&w, RDMA_VERSION);
    wire_put_u8(&w, b->lane);
    wire_put_u8(&w, b->lanes);
    wire_put_u32(&w, b->epoch);
    wire_put_bytes(&w, b->token, sizeof b->token);
    wire_put_u16(&w, b->receives);
    wire_put_u8(&w, (uint8_t)b->operation);
    wire_put_u8(&w, (uint8_t)b->registration);
    wire_put_u32(&w, 0);
}

enum rdma_refusal rdma_binding_decode(const void *in, size_t size, struct rdma_binding *b)
{
    struct wire_reader r = wire_reader(in, size);
    uint64_t magic = wire_get_u64(&r);
    uint16_t version = wire_get_u16(&r);
    unsigned operation, registration;
    uint32_t zero;

    *b = (struct rdma_binding){0};
    if (r.failed || magic != binding_magic)
        return RDMA_REFUSED_STRANGER;
    if (version != RDMA_VERSION)
        return RDMA_REFUSED_VERSION;
    b->lane = wire_get_u8(&r);
    b->lanes = wire_get_u8(&r);
    b->epoch = wire_get_u32(&r);
    wire_get_bytes(&r, b->token, sizeof b->token);
    b->receives = wire_get_u16(&r);
    operation = wire_get_u8(&r);
    registration = wire_get_u8(&r);
    zero = wire_get_u32(&r);
    if (r.failed || zero || b->lane >= b->lanes || b->lanes > TRANSPORT_MAX_LANES ||
        b->receives < 2 || operation > TRANSPORT_READ || registration > TRANSPORT_REGISTER_CHUNK)
        return RDMA_REFUSED_STRANGER;
    b->operation = (enum transport_operation)operation;
    b->registration = (enum transport_registration)registration;
    return RDMA_ACCEPTED;
}

/* Up to the refusal the same in every version, so that a refusal for the version is understood. */
void rdma_answer_encode(const struct rdma_answer *a, uint8_t out[RDMA_ANSWER_SIZE])
{
    struct wire_writer w = wire_writer(out, RDMA_ANSWER_SIZE);

    wire_put_u32(&w, answer_magic);
    wire_put_u16(&w, RDMA_VERSION);
    wire_put_u16(&w, (uint16_t)a->refusal);
    wire_put_u16(&w, a->receives);
    wire_put_u16(&w, 0);
    wire_put_u32(&w, a->most_pieces);
    wire_put_u64(&w, a->piece_limit);
}

int rdma_answer_decode(const void *in, size_t size, struct rdma_answer *a, struct error *err)
{
    struct wire_reader r = wire_reader(in, size);
    uint32_t magic = wire_get_u32(&r);
    uint16_t version = wire_get_u16(&r), refusal = wire_get_u16(&r), zero;

    *a = (struct rdma_answer){.refusal = RDMA_REFUSED_VERSION};
    if (r.failed || magic != answer_magic)
        return error_set(err, EPROTO, "what answers there is no wander");
    if (version != RDMA_VERSION)
        return 0;
    a->receives = wire_get_u16(&r);
    zero = wire_get_u16(&r);
    a->most_pieces = wire_get_u32(&r);
    a->piece_limit = wire_get_u64(&r);
    if (r.failed || zero || refusal > RDMA_REFUSED_TROUBLE ||
        (refusal == RDMA_ACCEPTED && (a->receives < 2 || !a->most_pieces)))
        return error_set(err, EPROTO,
                         "the peer sent an invalid answer (%zu bytes, refusal %u, %u receives)",
                         size, refusal, a->receives);
    a->refusal = (enum rdma_refusal)refusal;
    return 0;
}

const char *rdma_refusal_text(enum rdma_refusal refusal)
{
    static const char *const texts[] = {
        [RDMA_ACCEPTED] = "accepted",
        [RDMA_REFUSED_VERSION] = "the destination speaks another version of the lane protocol; "
                                 "use the same wander at both ends",
        [RDMA_REFUSED_STRANGER] = "the destination serves another session, or another epoch of it",
        [RDMA_REFUSED_LANE] = "the destination has no such lane, or has it already",
        [RDMA_REFUSED_MISMATCH] = "the destination expects another number of lanes, or other "
                                  "settings than this lane has",
        [RDMA_REFUSED_TROUBLE] = "the destination could not make the lane; its own log says why",
    };

    return (unsigned)refusal < sizeof texts / sizeof *texts ? texts[refusal]
                                                            : "refused for an unknown reason";
}
