#include "migrate/proto.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/base/wire.h"

enum {
    HELLO_1_SIZE = 48, /* of version 1: still read, so that it can be refused in words */
    HELLO_SIZE = HELLO_1_SIZE + 24,
    FOUND_FIXED_SIZE = 2 + 2 + 4 + 4 + 64 + 16 + 16 + 48,
    FOUND_MAX_SIZE = FOUND_FIXED_SIZE + TRANSPORT_MAX_FINDINGS * (4 + TRANSPORT_FINDING_SIZE) + 8,
    PROBE_SIZE = 16,
    WELCOME_SIZE = 8 + BOOT_ID_SIZE,
    GUEST_FIXED_SIZE = GUEST_KIND_SIZE * 2 + GUEST_NAME_SIZE + 4 + 8 + 4 + 4,
    GUEST_REGION_SIZE = 4 + 4 + 8 + 32,
    GUEST_MAX_SIZE = GUEST_FIXED_SIZE + GUEST_REGION_SIZE * GUEST_MAX_REGIONS + GUEST_MAX_PLATFORM,
};

static const struct {
    const char *name;
    uint32_t min, max; /* body sizes */
} messages[MESSAGE_TYPES] = {
    [MESSAGE_HELLO] = {"HELLO", HELLO_1_SIZE, HELLO_SIZE},
    [MESSAGE_WELCOME] = {"WELCOME", WELCOME_SIZE, WELCOME_SIZE},
    [MESSAGE_REFUSE] = {"REFUSE", 1, PROTO_MAX_TEXT},
    [MESSAGE_GUEST] = {"GUEST", GUEST_FIXED_SIZE, GUEST_MAX_SIZE},
    [MESSAGE_ACCEPT] = {"ACCEPT", 4, 4},
    [MESSAGE_EXTENTS] = {"EXTENTS", 16, 16 + 16 * PROTO_MAX_EXTENTS},
    [MESSAGE_ROUND] = {"ROUND", 16, 16},
    [MESSAGE_PREPARE] = {"PREPARE", 0, 0},
    [MESSAGE_READY] = {"READY", 0, 0},
    [MESSAGE_STATE] = {"STATE", 8, 8 + GUEST_MAX_STATE},
    [MESSAGE_LOAD] = {"LOAD", 0, 0},
    [MESSAGE_PREPARED] = {"PREPARED", 8, 8},
    [MESSAGE_VERIFY] = {"VERIFY", 24, 24},
    [MESSAGE_HASHES] = {"HASHES", 8, 8 * PROTO_MAX_HASHES},
    [MESSAGE_COMMIT] = {"COMMIT", 0, 0},
    [MESSAGE_RUNNING] = {"RUNNING", 8, 8},
    [MESSAGE_ABORT] = {"ABORT", 1, PROTO_MAX_TEXT},
    [MESSAGE_ABORTED] = {"ABORTED", 1, PROTO_MAX_TEXT},
    [MESSAGE_RELEASE] = {"RELEASE", 0, 0},
    [MESSAGE_REPORT] = {"REPORT", 1, PROTO_MAX_TEXT},
    [MESSAGE_ANSWER] = {"ANSWER", 8, 8},
    [MESSAGE_ERROR] = {"ERROR", 1, PROTO_MAX_TEXT},
    [MESSAGE_PING] = {"PING", 8, 8},
    [MESSAGE_PONG] = {"PONG", 16, 16},
    [MESSAGE_PROBE] = {"PROBE", 0, PROBE_SIZE},
    [MESSAGE_FOUND] = {"FOUND", FOUND_FIXED_SIZE, FOUND_MAX_SIZE},
};

void message_free(struct message *message)
{
    free(message->body);
    *message = (struct message){0};
}

const char *message_name(enum message_type type)
{
    return type > 0 && type < MESSAGE_TYPES ? messages[type].name : "nothing";
}

void message_header_encode(enum message_type type, uint32_t size, uint8_t out[PROTO_HEADER_SIZE])
{
    struct wire_writer w = wire_writer(out, PROTO_HEADER_SIZE);

    wire_put_u32(&w, PROTO_MAGIC);
    wire_put_u16(&w, (uint16_t)type);
    wire_put_u16(&w, 0);
    wire_put_u32(&w, size);
    wire_put_u32(&w, 0);
}

int message_header_decode(const uint8_t in[PROTO_HEADER_SIZE], enum message_type *type,
                          uint32_t *size, struct error *err)
{
    struct wire_reader r = wire_reader(in, PROTO_HEADER_SIZE);
    uint32_t magic = wire_get_u32(&r);
    uint16_t kind = wire_get_u16(&r);

    wire_get_u16(&r);
    *size = wire_get_u32(&r);
    wire_get_u32(&r);
    if (magic != PROTO_MAGIC)
        return error_set(
            err, EPROTO,
            "the peer does not speak wander's protocol (its first bytes are %02x %02x %02x %02x); "
            "is that a `wander receive`?",
            in[0], in[1], in[2], in[3]);
    if (kind == 0 || kind >= MESSAGE_TYPES)
        return error_set(err, EPROTO, "the peer sent a message of the unknown type %u", kind);
    if (*size < messages[kind].min || *size > messages[kind].max)
        return error_set(err, EPROTO, "the peer sent a %s of %u bytes (%u to %u are possible)",
                         messages[kind].name, *size, messages[kind].min, messages[kind].max);
    *type = (enum message_type)kind;
    return 0;
}

static int malformed(const struct message *from, struct error *err)
{
    return error_set(err, EPROTO, "the peer sent a malformed %s", message_name(from->type));
}

size_t hello_encode(const struct hello *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, HELLO_SIZE);

    wire_put_u16(&w, m->version_min);
    wire_put_u16(&w, m->version_max);
    wire_put_u32(&w, m->epoch);
    wire_put_bytes(&w, m->token, sizeof(m->token));
    wire_put_u8(&w, m->intent);
    wire_put_u8(&w, 0);
    wire_put_u16(&w, m->session_port);
    wire_put_u32(&w, m->lanes);
    wire_put_text(&w, m->scheme, 16);
    wire_put_u8(&w, m->operation);
    wire_put_u8(&w, m->registration);
    wire_put_u16(&w, 0);
    wire_put_u32(&w, 0);
    wire_put_u64(&w, m->pin_limit);
    wire_put_u64(&w, m->present_bytes);
    return HELLO_SIZE;
}

static void hello_decode_2(struct wire_reader *r, struct hello *m)
{
    m->operation = wire_get_u8(r);
    m->registration = wire_get_u8(r);
    wire_get_u16(r);
    wire_get_u32(r);
    m->pin_limit = wire_get_u64(r);
    m->present_bytes = wire_get_u64(r);
    if (m->operation > TRANSPORT_READ || m->registration > TRANSPORT_REGISTER_CHUNK)
        r->failed = true;
}

int hello_decode(const struct message *from, struct hello *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);
    char scheme[16];

    *m = (struct hello){0};
    m->version_min = wire_get_u16(&r);
    m->version_max = wire_get_u16(&r);
    m->epoch = wire_get_u32(&r);
    wire_get_bytes(&r, m->token, sizeof(m->token));
    m->intent = wire_get_u8(&r);
    wire_get_u8(&r);
    m->session_port = wire_get_u16(&r);
    m->lanes = wire_get_u32(&r);
    wire_get_text(&r, scheme, sizeof(scheme));
    if (m->version_max > 1)
        hello_decode_2(&r, m);
    if (!wire_reader_done(&r) || m->version_min > m->version_max || m->intent < HELLO_NEW ||
        m->intent > HELLO_QUERY || m->lanes > TRANSPORT_MAX_LANES ||
        strlen(scheme) >= sizeof(m->scheme))
        return malformed(from, err);
    memcpy(m->scheme, scheme, sizeof(m->scheme));
    return 0;
}

size_t welcome_encode(const struct welcome *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, WELCOME_SIZE);

    wire_put_u16(&w, m->version);
    wire_put_u16(&w, 0);
    wire_put_u32(&w, m->epoch);
    wire_put_text(&w, m->boot_id, sizeof(m->boot_id));
    return WELCOME_SIZE;
}

int welcome_decode(const struct message *from, struct welcome *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    m->version = wire_get_u16(&r);
    wire_get_u16(&r);
    m->epoch = wire_get_u32(&r);
    wire_get_text(&r, m->boot_id, sizeof(m->boot_id));
    return wire_reader_done(&r) ? 0 : malformed(from, err);
}

size_t accept_encode(const struct accept_reply *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, 4);

    wire_put_u16(&w, m->lane_port);
    wire_put_u16(&w, m->session_port);
    return 4;
}

int accept_decode(const struct message *from, struct accept_reply *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    m->lane_port = wire_get_u16(&r);
    m->session_port = wire_get_u16(&r);
    return wire_reader_done(&r) ? 0 : malformed(from, err);
}

size_t probe_encode(const struct probe_message *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, PROBE_SIZE);

    if (m->room == 0)
        return 0;
    wire_put_u64(&w, m->room);
    wire_put_u32(&w, m->backing);
    wire_put_u32(&w, 0);
    return PROBE_SIZE;
}

int probe_decode(const struct message *from, struct probe_message *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    *m = (struct probe_message){0};
    if (from->size == 0)
        return 0;
    m->room = wire_get_u64(&r);
    uint32_t backing = wire_get_u32(&r);
    wire_get_u32(&r);
    m->backing = backing;
    return wire_reader_done(&r) && m->room && backing <= GUEST_NAMED_FILE ? 0
                                                                          : malformed(from, err);
}

/* Each finding: u8 fatal, u8 zero, u16 length, the text. Behind them u64 room, if it was asked for.
 */
size_t found_encode(const struct found_message *m, uint8_t *out)
{
    const struct transport_findings *f = &m->findings;
    struct wire_writer w = wire_writer(out, FOUND_MAX_SIZE);

    wire_put_u16(&w, m->lane_port);
    wire_put_u16(&w, (uint16_t)f->count);
    wire_put_u32(&w, f->port);
    wire_put_u32(&w, f->mtu);
    wire_put_text(&w, f->device, sizeof(f->device));
    wire_put_text(&w, f->link_layer, sizeof(f->link_layer));
    wire_put_text(&w, f->gid_type, sizeof(f->gid_type));
    wire_put_text(&w, f->passage, sizeof(f->passage));
    for (unsigned i = 0; i < f->count; i++) {
        uint16_t length = (uint16_t)strlen(f->all[i].text);
        wire_put_u8(&w, f->all[i].fatal);
        wire_put_u8(&w, 0);
        wire_put_u16(&w, length);
        wire_put_bytes(&w, f->all[i].text, length);
    }
    if (m->room)
        wire_put_u64(&w, m->room);
    return (size_t)(w.at - out);
}

static void finding_decode(struct wire_reader *r, struct transport_finding *finding)
{
    finding->fatal = wire_get_u8(r);
    wire_get_u8(r);
    uint16_t length = wire_get_u16(r);
    const char *text = length < sizeof(finding->text) ? wire_get_view(r, length) : NULL;

    r->failed |= !text;
    for (uint16_t i = 0; text && i < length; i++)
        finding->text[i] = isprint((unsigned char)text[i]) ? text[i] : '?';
}

int found_decode(const struct message *from, struct found_message *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);
    struct transport_findings *f = &m->findings;

    *m = (struct found_message){.lane_port = wire_get_u16(&r)};
    f->count = wire_get_u16(&r);
    f->port = wire_get_u32(&r);
    f->mtu = wire_get_u32(&r);
    wire_get_text(&r, f->device, sizeof(f->device));
    wire_get_text(&r, f->link_layer, sizeof(f->link_layer));
    wire_get_text(&r, f->gid_type, sizeof(f->gid_type));
    wire_get_text(&r, f->passage, sizeof(f->passage));
    if (f->count > TRANSPORT_MAX_FINDINGS)
        return malformed(from, err);
    for (unsigned i = 0; i < f->count && !r.failed; i++)
        finding_decode(&r, &f->all[i]);
    if (!r.failed && wire_reader_left(&r))
        m->room = wire_get_u64(&r);
    return wire_reader_done(&r) ? 0 : malformed(from, err);
}

size_t extents_encode(const struct extents_message *m, uint8_t *out)
{
    size_t size = 16 + 16 * (size_t)m->count;
    struct wire_writer w = wire_writer(out, size);

    wire_put_u32(&w, m->region);
    wire_put_u32(&w, m->last);
    wire_put_u32(&w, m->count);
    wire_put_u32(&w, 0);
    for (uint32_t i = 0; i < m->count; i++) {
        wire_put_u64(&w, m->extents[i].offset);
        wire_put_u64(&w, m->extents[i].length);
    }
    return size;
}

int extents_decode(const struct message *from, struct extents_message *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    m->region = wire_get_u32(&r);
    m->last = wire_get_u32(&r);
    m->count = wire_get_u32(&r);
    wire_get_u32(&r);
    if (m->count > PROTO_MAX_EXTENTS)
        return malformed(from, err);
    for (uint32_t i = 0; i < m->count; i++) {
        m->extents[i].offset = wire_get_u64(&r);
        m->extents[i].length = wire_get_u64(&r);
    }
    return wire_reader_done(&r) ? 0 : malformed(from, err);
}

size_t round_encode(const struct round_message *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, 16);

    wire_put_u32(&w, m->number);
    wire_put_u32(&w, m->paused);
    wire_put_u64(&w, m->pages);
    return 16;
}

int round_decode(const struct message *from, struct round_message *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    m->number = wire_get_u32(&r);
    m->paused = wire_get_u32(&r);
    m->pages = wire_get_u64(&r);
    return wire_reader_done(&r) ? 0 : malformed(from, err);
}

size_t verify_encode(const struct verify_message *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, 24);

    wire_put_u32(&w, m->region);
    wire_put_u32(&w, m->unit);
    wire_put_u64(&w, m->first);
    wire_put_u32(&w, m->count);
    wire_put_u32(&w, 0);
    return 24;
}

int verify_decode(const struct message *from, struct verify_message *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    m->region = wire_get_u32(&r);
    m->unit = wire_get_u32(&r);
    m->first = wire_get_u64(&r);
    m->count = wire_get_u32(&r);
    wire_get_u32(&r);
    if (!wire_reader_done(&r) || (m->unit != GUEST_CHUNK_SIZE && m->unit != GUEST_PAGE_SIZE) ||
        m->count == 0 || m->count > PROTO_MAX_HASHES || m->first > UINT64_MAX / m->unit - m->count)
        return malformed(from, err);
    return 0;
}

size_t timing_encode(const struct timing_message *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, 8);

    wire_put_u64(&w, m->ns);
    return 8;
}

int timing_decode(const struct message *from, struct timing_message *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    m->ns = wire_get_u64(&r);
    return wire_reader_done(&r) ? 0 : malformed(from, err);
}

size_t answer_encode(const struct answer *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, 8);

    wire_put_u32(&w, m->state);
    wire_put_u32(&w, m->epoch);
    return 8;
}

int answer_decode(const struct message *from, struct answer *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    m->state = wire_get_u32(&r);
    m->epoch = wire_get_u32(&r);
    if (!wire_reader_done(&r) || m->state == OWNERSHIP_NONE || m->state >= OWNERSHIP_STATES)
        return malformed(from, err);
    return 0;
}

size_t ping_encode(const struct ping *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, 8);

    wire_put_u64(&w, m->sent_at);
    return 8;
}

int ping_decode(const struct message *from, struct ping *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    m->sent_at = wire_get_u64(&r);
    return wire_reader_done(&r) ? 0 : malformed(from, err);
}

size_t pong_encode(const struct pong *m, uint8_t *out)
{
    struct wire_writer w = wire_writer(out, 16);

    wire_put_u64(&w, m->ping_sent_at);
    wire_put_u64(&w, m->now);
    return 16;
}

int pong_decode(const struct message *from, struct pong *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    m->ping_sent_at = wire_get_u64(&r);
    m->now = wire_get_u64(&r);
    return wire_reader_done(&r) ? 0 : malformed(from, err);
}

int guest_encode(const struct guest_description *m, uint8_t **out, size_t *size, struct error *err)
{
    *size = GUEST_FIXED_SIZE + (size_t)GUEST_REGION_SIZE * m->region_count + m->platform_size;
    *out = malloc(*size);
    if (!*out)
        return error_set(err, ENOMEM, "no memory for the description of the guest");
    struct wire_writer w = wire_writer(*out, *size);
    wire_put_text(&w, m->kind, GUEST_KIND_SIZE);
    wire_put_text(&w, m->name, GUEST_NAME_SIZE);
    wire_put_text(&w, m->accel, GUEST_KIND_SIZE);
    wire_put_u32(&w, m->vcpus);
    wire_put_u64(&w, m->memory_bytes);
    wire_put_u32(&w, m->region_count);
    wire_put_u32(&w, m->platform_size);
    for (uint32_t i = 0; i < m->region_count; i++) {
        wire_put_u32(&w, m->regions[i].id);
        wire_put_u32(&w, m->regions[i].backing);
        wire_put_u64(&w, m->regions[i].size);
        wire_put_text(&w, m->regions[i].name, sizeof(m->regions[i].name));
    }
    wire_put_bytes(&w, m->platform, m->platform_size);
    return 0;
}

static void region_decode(struct wire_reader *r, uint32_t index, struct guest_region *region)
{
    *region = (struct guest_region){.id = wire_get_u32(r)};
    uint32_t backing = wire_get_u32(r);
    region->size = wire_get_u64(r);
    wire_get_text(r, region->name, sizeof(region->name));
    region->backing = backing == GUEST_NAMED_FILE ? GUEST_NAMED_FILE : GUEST_ANONYMOUS;
    if (region->id != index || backing > GUEST_NAMED_FILE || region->size == 0 ||
        region->size % GUEST_PAGE_SIZE || region->size > INT64_MAX)
        r->failed = true;
}

int guest_decode(const struct message *from, struct guest_description *m, struct error *err)
{
    struct wire_reader r = wire_reader(from->body, from->size);

    *m = (struct guest_description){0};
    wire_get_text(&r, m->kind, sizeof(m->kind));
    wire_get_text(&r, m->name, sizeof(m->name));
    wire_get_text(&r, m->accel, sizeof(m->accel));
    m->vcpus = wire_get_u32(&r);
    m->memory_bytes = wire_get_u64(&r);
    m->region_count = wire_get_u32(&r);
    m->platform_size = wire_get_u32(&r);
    if (r.failed || m->region_count == 0 || m->region_count > GUEST_MAX_REGIONS ||
        m->platform_size > GUEST_MAX_PLATFORM)
        return malformed(from, err);
    for (uint32_t i = 0; i < m->region_count; i++)
        region_decode(&r, i, &m->regions[i]);
    const void *platform = wire_get_view(&r, m->platform_size);
    if (!wire_reader_done(&r))
        return malformed(from, err);
    m->platform = malloc(m->platform_size + 1);
    if (!m->platform)
        return error_set(err, ENOMEM, "no memory for the description of the guest");
    memcpy(m->platform, platform, m->platform_size);
    return 0;
}

char *message_text(const struct message *from, char *out, size_t size)
{
    size_t length = from->size < size - 1 ? from->size : size - 1;

    for (size_t i = 0; i < length; i++)
        out[i] = from->body[i] == '\n' || isprint(from->body[i]) ? (char)from->body[i] : '?';
    out[length] = '\0';
    return out;
}

int message_unexpected(const struct message *got, const char *wanted, struct error *err)
{
    char text[ERROR_TEXT_SIZE - 64];

    switch (got->type) {
    case MESSAGE_REFUSE:
        return error_set(err, ECONNREFUSED, "the destination refuses: %s",
                         message_text(got, text, sizeof(text)));
    case MESSAGE_ERROR:
    case MESSAGE_ABORT:
    case MESSAGE_ABORTED:
        return error_set(err, ECONNABORTED, "the peer ended the session: %s",
                         message_text(got, text, sizeof(text)));
    default:
        return error_set(err, EPROTO, "the peer sent %s where %s belongs", message_name(got->type),
                         wanted);
    }
}

void token_format(const uint8_t token[TRANSPORT_TOKEN_SIZE], char out[33])
{
    for (int i = 0; i < TRANSPORT_TOKEN_SIZE; i++)
        snprintf(out + 2 * i, 3, "%02x", token[i]);
}

int token_parse(const char *text, uint8_t token[TRANSPORT_TOKEN_SIZE])
{
    if (strlen(text) != 2 * TRANSPORT_TOKEN_SIZE ||
        strspn(text, "0123456789abcdef") != 2 * TRANSPORT_TOKEN_SIZE)
        return -EINVAL;
    for (int i = 0; i < TRANSPORT_TOKEN_SIZE; i++) {
        unsigned byte;
        sscanf(text + 2 * i, "%2x", &byte);
        token[i] = (uint8_t)byte;
    }
    return 0;
}
