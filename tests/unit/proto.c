/* Messages: what is encoded is decoded, and nothing else is. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/proto.h"
#include "transport/base/wire.h"

/* A body of exactly `size` bytes on the heap, so that a sanitizer sees a read beyond it. */
static struct message body_of(enum message_type type, const void *bytes, size_t size)
{
    struct message m = {.type = type, .size = (uint32_t)size, .body = malloc(size ? size : 1)};

    memcpy(m.body, bytes, size);
    return m;
}

Test(proto, header_is_checked)
{
    static const struct {
        uint32_t magic;
        uint16_t type;
        uint32_t size;
        int result;
    } cases[] = {
        {PROTO_MAGIC, MESSAGE_PING, 8, 0},
        {PROTO_MAGIC, MESSAGE_COMMIT, 0, 0},
        {PROTO_MAGIC, MESSAGE_COMMIT, 1, -EPROTO},
        {PROTO_MAGIC, MESSAGE_PING, 7, -EPROTO},
        {PROTO_MAGIC, MESSAGE_PING, 9, -EPROTO},
        {PROTO_MAGIC, MESSAGE_ERROR, 0, -EPROTO},
        {PROTO_MAGIC, MESSAGE_ERROR, PROTO_MAX_TEXT, 0},
        {PROTO_MAGIC, MESSAGE_ERROR, PROTO_MAX_TEXT + 1, -EPROTO},
        {PROTO_MAGIC, MESSAGE_STATE, UINT32_MAX, -EPROTO},
        {PROTO_MAGIC, MESSAGE_STATE, 8 + GUEST_MAX_STATE, 0},
        {PROTO_MAGIC, 0, 0, -EPROTO},
        {PROTO_MAGIC, MESSAGE_TYPES, 0, -EPROTO},
        {PROTO_MAGIC, 0xffff, 0, -EPROTO},
        {0x20544547, MESSAGE_PING, 8, -EPROTO}, /* "GET " */
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint8_t header[PROTO_HEADER_SIZE] = {0};
        struct wire_writer w = wire_writer(header, sizeof(header));
        enum message_type type;
        uint32_t size;
        struct error err = {0};

        wire_put_u32(&w, cases[i].magic);
        wire_put_u16(&w, cases[i].type);
        wire_put_u16(&w, 0);
        wire_put_u32(&w, cases[i].size);
        int result = message_header_decode(header, &type, &size, &err);
        cr_expect_eq(result, cases[i].result, "case %zu: expected %d, came %d (%s)", i,
                     cases[i].result, result, err.text);
        cr_expect(result == 0 || err.text[0], "case %zu: an error without a text", i);
    }
}

static struct hello example_hello(void)
{
    struct hello m = {.version_min = 1,
                      .version_max = 3,
                      .intent = HELLO_RECONNECT,
                      .epoch = 7,
                      .session_port = 4711,
                      .lanes = 4,
                      .scheme = "tcp",
                      .operation = TRANSPORT_READ,
                      .registration = TRANSPORT_REGISTER_CHUNK,
                      .pin_limit = 64 << 20,
                      .present_bytes = 3ull << 40};

    memset(m.token, 0x5a, sizeof(m.token));
    return m;
}

Test(proto, hello_goes_both_ways)
{
    struct hello in = example_hello(), out;
    struct error err = {0};
    uint8_t body[PROTO_BODY_SIZE];
    struct message m = body_of(MESSAGE_HELLO, body, hello_encode(&in, body));

    cr_assert_eq(hello_decode(&m, &out, &err), 0, "%s", err.text);
    cr_expect_eq(out.epoch, in.epoch);
    cr_expect_eq(out.intent, in.intent);
    cr_expect_eq(out.session_port, in.session_port);
    cr_expect_eq(out.lanes, in.lanes);
    cr_expect_str_eq(out.scheme, in.scheme);
    cr_expect_eq(out.operation, in.operation);
    cr_expect_eq(out.registration, in.registration);
    cr_expect_eq(out.pin_limit, in.pin_limit);
    cr_expect_eq(out.present_bytes, in.present_bytes);
    cr_expect_eq(memcmp(out.token, in.token, sizeof(in.token)), 0);
    message_free(&m);
}

Test(proto, hello_with_bad_fields_is_refused)
{
    struct error err = {0};
    struct hello out;
    struct hello bad[6];

    for (int i = 0; i < 6; i++)
        bad[i] = example_hello();

    bad[0].version_min = 4;
    bad[1].intent = 0;
    bad[2].intent = HELLO_QUERY + 1;
    bad[3].lanes = TRANSPORT_MAX_LANES + 1;
    bad[4].operation = TRANSPORT_READ + 1;
    bad[5].registration = TRANSPORT_REGISTER_CHUNK + 1;
    for (int i = 0; i < 6; i++) {
        uint8_t body[PROTO_BODY_SIZE];
        struct message m = body_of(MESSAGE_HELLO, body, hello_encode(&bad[i], body));
        cr_expect_eq(hello_decode(&m, &out, &err), -EPROTO, "case %d was taken", i);
        message_free(&m);
    }
}

/* So that a program of that version can be told why it is refused. */
Test(proto, a_hello_of_version_1_is_read)
{
    struct hello in = example_hello(), out;
    struct error err = {0};
    uint8_t body[PROTO_BODY_SIZE];

    in.version_max = 1;
    hello_encode(&in, body);
    struct message m = body_of(MESSAGE_HELLO, body, 48);
    cr_expect_eq(hello_decode(&m, &out, &err), 0, "%s", err.text);
    cr_expect(out.version_max == 1 && out.lanes == 4 && out.pin_limit == 0);
    message_free(&m);
    in.version_max = 2;
    hello_encode(&in, body);
    m = body_of(MESSAGE_HELLO, body, 48);
    cr_expect_eq(hello_decode(&m, &out, &err), -EPROTO, "half a HELLO was taken");
    message_free(&m);
}

static struct found_message example_found(void)
{
    struct found_message m = {.lane_port = 4711};

    strcpy(m.findings.device, "rxe0");
    strcpy(m.findings.link_layer, "Ethernet");
    strcpy(m.findings.gid_type, "RoCE v2");
    strcpy(m.findings.passage, "UDP port 4791");
    m.findings.port = 1;
    m.findings.mtu = 4096;
    transport_findings_add(&m.findings, true, "port %d is down", 1);
    transport_findings_add(&m.findings, false, "%*s", TRANSPORT_FINDING_SIZE + 5, "long");
    return m;
}

Test(proto, findings_go_both_ways)
{
    struct found_message in = example_found(), out;
    struct error err = {0};
    static uint8_t body[PROTO_BODY_SIZE];

    while (in.findings.count < TRANSPORT_MAX_FINDINGS)
        transport_findings_add(&in.findings, true, "number %u", in.findings.count);
    transport_findings_add(&in.findings, true, "one too many");
    struct message m = body_of(MESSAGE_FOUND, body, found_encode(&in, body));
    cr_assert_eq(found_decode(&m, &out, &err), 0, "%s", err.text);
    cr_expect_eq(out.lane_port, 4711);
    cr_expect_str_eq(out.findings.device, "rxe0");
    cr_expect_str_eq(out.findings.link_layer, "Ethernet");
    cr_expect_str_eq(out.findings.gid_type, "RoCE v2");
    cr_expect_str_eq(out.findings.passage, "UDP port 4791");
    cr_expect_eq(out.findings.port, 1);
    cr_expect_eq(out.findings.mtu, 4096);
    cr_assert_eq(out.findings.count, TRANSPORT_MAX_FINDINGS);
    for (unsigned i = 0; i < out.findings.count; i++) {
        cr_expect_eq(out.findings.all[i].fatal, in.findings.all[i].fatal, "finding %u", i);
        cr_expect_str_eq(out.findings.all[i].text, in.findings.all[i].text, "finding %u", i);
    }
    message_free(&m);
}

Test(proto, hostile_findings)
{
    struct found_message in = example_found(), out;
    static uint8_t body[PROTO_BODY_SIZE];
    size_t size = found_encode(&in, body);

    for (size_t cut = 0; cut < size; cut++) {
        struct message m = body_of(MESSAGE_FOUND, body, cut);
        cr_expect_eq(found_decode(&m, &out, &(struct error){0}), -EPROTO, "%zu bytes taken", cut);
        message_free(&m);
    }
    for (size_t at = 0; at < size; at++) {
        for (int bit = 0; bit < 8; bit++) {
            struct message m = body_of(MESSAGE_FOUND, body, size);
            m.body[at] ^= (uint8_t)(1 << bit);
            int result = found_decode(&m, &out, &(struct error){0});
            cr_assert(result == -EPROTO || result == 0, "came %d", result);
            cr_assert(result || out.findings.count <= TRANSPORT_MAX_FINDINGS);
            message_free(&m);
        }
    }
}

Test(proto, a_probe_asks_for_a_lane_or_for_room)
{
    static const struct {
        struct probe_message probe;
        size_t size;
    } cases[] = {{{0}, 0}, {{64 << 20, GUEST_NAMED_FILE}, 16}, {{1 << 20, GUEST_ANONYMOUS}, 16}};
    struct probe_message out;
    struct error err = {0};
    uint8_t body[16];

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        size_t size = probe_encode(&cases[i].probe, body);
        cr_expect_eq(size, cases[i].size, "case %zu: expected %zu bytes, came %zu", i,
                     cases[i].size, size);
        struct message m = body_of(MESSAGE_PROBE, body, size);
        cr_expect_eq(probe_decode(&m, &out, &err), 0, "case %zu: %s", i, err.text);
        cr_expect(out.room == cases[i].probe.room && out.backing == cases[i].probe.backing,
                  "case %zu: came room %llu, backing %d", i, (unsigned long long)out.room,
                  out.backing);
        message_free(&m);
    }
}

Test(proto, hostile_probes)
{
    static const struct {
        uint8_t body[16];
        size_t size;
        const char *what;
    } cases[] = {
        {{1}, 15, "a byte short"},
        {{1}, 8, "half"},
        {{0}, 16, "room of 0 bytes"},
        {{0, 0, 16, [8] = 2}, 16, "a backing that does not exist"},
        {{0, 0, 16, [11] = 0x80}, 16, "a backing below 0"},
    };
    struct probe_message out;

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct message m = body_of(MESSAGE_PROBE, cases[i].body, cases[i].size);
        cr_expect_eq(probe_decode(&m, &out, &(struct error){0}), -EPROTO, "%s was taken",
                     cases[i].what);
        message_free(&m);
    }
}

Test(proto, room_is_told_behind_the_findings_and_only_whole)
{
    struct found_message in = example_found(), out;
    struct error err = {0};
    static uint8_t body[PROTO_BODY_SIZE];
    size_t without = found_encode(&in, body);

    in.room = 5 << 20;
    size_t with = found_encode(&in, body);
    cr_assert_eq(with, without + 8);
    for (size_t size = without; size <= with; size++) {
        bool whole = size == without || size == with;
        struct message m = body_of(MESSAGE_FOUND, body, size);
        int result = found_decode(&m, &out, &err);
        cr_expect_eq(result, whole ? 0 : -EPROTO, "%zu of %zu bytes: came %d", size, with, result);
        if (whole)
            cr_expect_eq(out.room, size == with ? 5 << 20 : 0, "%zu bytes: came room %llu", size,
                         (unsigned long long)out.room);
        message_free(&m);
    }
}

static struct guest_description example_guest(void)
{
    struct guest_description d = {.kind = "lab",
                                  .name = "g-1",
                                  .accel = "kvm",
                                  .vcpus = 2,
                                  .memory_bytes = 3 << 20,
                                  .region_count = 2,
                                  .platform_size = 5};

    d.regions[0] = (struct guest_region){.id = 0, .name = "ram-low", .size = 1 << 20};
    d.regions[1] = (struct guest_region){.id = 1, .name = "ram-high", .size = 2 << 20};
    d.platform = malloc(5);
    memcpy(d.platform, "hello", 5);
    return d;
}

Test(proto, guest_goes_both_ways)
{
    struct guest_description in = example_guest(), out;
    struct error err = {0};
    uint8_t *bytes;
    size_t size;

    cr_assert_eq(guest_encode(&in, &bytes, &size, &err), 0);
    struct message m = body_of(MESSAGE_GUEST, bytes, size);
    cr_assert_eq(guest_decode(&m, &out, &err), 0, "%s", err.text);
    cr_expect_str_eq(out.name, in.name);
    cr_expect_eq(out.region_count, 2);
    cr_expect_eq(out.regions[1].size, 2 << 20);
    cr_expect_str_eq(out.regions[1].name, "ram-high");
    cr_expect_eq(memcmp(out.platform, "hello", 5), 0);
    guest_description_free(&in);
    guest_description_free(&out);
    message_free(&m);
    free(bytes);
}

/* Whatever comes, decoding ends in 0 or -EPROTO, reads nothing outside, and what it accepts is in
 * range. */
static void decode_guest(const uint8_t *bytes, size_t size)
{
    struct guest_description out;
    struct error err = {0};
    struct message m = body_of(MESSAGE_GUEST, bytes, size);
    int result = guest_decode(&m, &out, &err);

    cr_assert(result == 0 || result == -EPROTO, "came %d", result);
    if (result == 0) {
        cr_assert(out.region_count >= 1 && out.region_count <= GUEST_MAX_REGIONS);
        for (uint32_t i = 0; i < out.region_count; i++)
            cr_assert(out.regions[i].size > 0 && out.regions[i].size % GUEST_PAGE_SIZE == 0 &&
                      out.regions[i].id == i);
        guest_description_free(&out);
    }
    message_free(&m);
}

Test(proto, hostile_guests)
{
    struct guest_description in = example_guest();
    struct error err = {0};
    uint8_t *bytes;
    size_t size;

    cr_assert_eq(guest_encode(&in, &bytes, &size, &err), 0);
    for (size_t cut = 0; cut < size; cut++)
        decode_guest(bytes, cut);
    for (size_t at = 0; at < size; at++) {
        for (int bit = 0; bit < 8; bit++) {
            bytes[at] ^= (uint8_t)(1 << bit);
            decode_guest(bytes, size);
            bytes[at] ^= (uint8_t)(1 << bit);
        }
    }
    free(bytes);
    guest_description_free(&in);
}

Test(proto, extents_must_fill_their_message)
{
    struct extents_message *in = calloc(1, sizeof(*in)), *out = calloc(1, sizeof(*out));
    uint8_t body[PROTO_BODY_SIZE];
    struct error err = {0};

    *in = (struct extents_message){
        .region = 1, .last = 1, .count = 2, .extents = {{0, 4096}, {8192, 4096}}};
    size_t size = extents_encode(in, body);
    struct message m = body_of(MESSAGE_EXTENTS, body, size);
    cr_assert_eq(extents_decode(&m, out, &err), 0, "%s", err.text);
    cr_expect_eq(out->extents[1].offset, 8192);
    for (uint32_t claimed = 0; claimed < 6; claimed++) {
        m.body[8] = (uint8_t)claimed;
        int expected = claimed == 2 ? 0 : -EPROTO;
        int result = extents_decode(&m, out, &(struct error){0});
        cr_expect_eq(result, expected, "%u claimed, 2 there: expected %d, came %d", claimed,
                     expected, result);
    }
    memset(m.body + 8, 0xff, 4);
    cr_expect_eq(extents_decode(&m, out, &(struct error){0}), -EPROTO);
    message_free(&m);
    free(in);
    free(out);
}

Test(proto, verify_ranges_cannot_overflow)
{
    static const struct {
        uint32_t unit;
        uint64_t first;
        uint32_t count;
        int result;
    } cases[] = {
        {GUEST_CHUNK_SIZE, 0, 1, 0},
        {GUEST_PAGE_SIZE, 12345, PROTO_MAX_HASHES, 0},
        {GUEST_PAGE_SIZE, 0, PROTO_MAX_HASHES + 1, -EPROTO},
        {GUEST_PAGE_SIZE, 0, 0, -EPROTO},
        {0, 0, 1, -EPROTO},
        {1, 0, 1, -EPROTO},
        {GUEST_CHUNK_SIZE, UINT64_MAX, 1, -EPROTO},
        {GUEST_CHUNK_SIZE, UINT64_MAX / GUEST_CHUNK_SIZE, 1, -EPROTO},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct verify_message in = {.unit = cases[i].unit,
                                    .first = cases[i].first,
                                    .count = cases[i].count},
                              out;
        uint8_t body[24];
        struct message m = body_of(MESSAGE_VERIFY, body, verify_encode(&in, body));
        int result = verify_decode(&m, &out, &(struct error){0});
        cr_expect_eq(result, cases[i].result, "case %zu: expected %d, came %d", i, cases[i].result,
                     result);
        message_free(&m);
    }
}

Test(proto, text_from_a_peer_is_made_printable)
{
    struct message m = body_of(MESSAGE_ERROR, "no\x1b[31m room\n\xff", 13);
    char text[64], shorter[4];

    cr_expect_str_eq(message_text(&m, text, sizeof(text)), "no?[31m room\n");
    cr_expect_str_eq(message_text(&m, shorter, sizeof(shorter)), "no?");
    message_free(&m);
}

Test(proto, tokens_go_both_ways)
{
    uint8_t token[TRANSPORT_TOKEN_SIZE], back[TRANSPORT_TOKEN_SIZE];
    char text[33];

    for (int i = 0; i < TRANSPORT_TOKEN_SIZE; i++)
        token[i] = (uint8_t)(i * 17);
    token_format(token, text);
    cr_assert_eq(token_parse(text, back), 0);
    cr_expect_eq(memcmp(token, back, sizeof(token)), 0);
    cr_expect_eq(token_parse("00", back), -EINVAL);
    cr_expect_eq(token_parse("zz112233445566778899aabbccddeeff", back), -EINVAL);
    cr_expect_eq(token_parse("00112233445566778899aabbccddeeff0", back), -EINVAL);
}
