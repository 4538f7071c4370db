/* Wire cursors: little-endian, bounded, failing for good at the first access beyond the end. */
#include <criterion/criterion.h>
#include <string.h>

#include "transport/base/wire.h"

Test(wire, integers_are_little_endian)
{
    static const uint8_t expected[] = {0x01, 0x03, 0x02, 0x07, 0x06, 0x05, 0x04, 0x0f,
                                       0x0e, 0x0d, 0x0c, 0x0b, 0x0a, 0x09, 0x08};
    uint8_t bytes[sizeof(expected)];
    struct wire_writer w = wire_writer(bytes, sizeof(bytes));
    struct wire_reader r = wire_reader(bytes, sizeof(bytes));

    wire_put_u8(&w, 0x01);
    wire_put_u16(&w, 0x0203);
    wire_put_u32(&w, 0x04050607);
    wire_put_u64(&w, 0x08090a0b0c0d0e0full);
    cr_expect_not(w.failed);
    cr_expect_eq(w.at, w.end);
    cr_expect(!memcmp(bytes, expected, sizeof(bytes)), "the bytes are in another order");
    cr_expect_eq(wire_get_u8(&r), 0x01);
    cr_expect_eq(wire_get_u16(&r), 0x0203);
    cr_expect_eq(wire_get_u32(&r), 0x04050607);
    cr_expect_eq(wire_get_u64(&r), 0x08090a0b0c0d0e0full);
    cr_expect(wire_reader_done(&r));
}

Test(wire, a_writer_never_passes_its_end)
{
    uint8_t bytes[8];
    struct wire_writer w = wire_writer(bytes, 3);

    memset(bytes, 0xaa, sizeof(bytes));
    wire_put_u16(&w, 0);
    wire_put_u32(&w, 0);
    cr_expect(w.failed, "4 bytes went where 1 was left");
    wire_put_u8(&w, 0);
    cr_expect_eq(bytes[2], 0xaa, "a failed writer wrote again");
    cr_expect_eq(bytes[3], 0xaa, "the writer passed its end");
}

Test(wire, a_reader_fails_for_good)
{
    static const uint8_t bytes[] = {1, 2, 3};
    struct wire_reader r = wire_reader(bytes, sizeof(bytes));

    cr_expect_eq(wire_get_u16(&r), 0x0201);
    cr_expect_eq(wire_get_u64(&r), 0, "a read beyond the end must give 0");
    cr_expect(r.failed);
    cr_expect_eq(wire_get_u8(&r), 0, "a failed reader must not go on");
    cr_expect_not(wire_reader_done(&r));
}

Test(wire, bytes_left_over_are_not_done)
{
    static const uint8_t bytes[] = {1, 2, 3};
    struct wire_reader r = wire_reader(bytes, sizeof(bytes));

    wire_get_u8(&r);
    cr_expect_not(wire_reader_done(&r));
    cr_expect_eq(wire_reader_left(&r), 2);
}

Test(wire, byte_fields_are_copied_or_zeroed)
{
    uint8_t bytes[6], out[6] = {9, 9, 9, 9, 9, 9};
    struct wire_writer w = wire_writer(bytes, sizeof(bytes));
    struct wire_reader r = wire_reader(bytes, sizeof(bytes));

    wire_put_bytes(&w, "abcd", 4);
    wire_put_bytes(&w, NULL, 0);
    wire_get_bytes(&r, out, 4);
    cr_expect(!memcmp(out, "abcd", 4));
    wire_get_bytes(&r, out, 3);
    cr_expect(r.failed);
    cr_expect(!memcmp(out, "\0\0\0d", 4), "what could not be read must be zero");
}

Test(wire, a_view_is_bounded)
{
    static const uint8_t bytes[4] = {0};
    struct wire_reader r = wire_reader(bytes, sizeof(bytes));

    cr_expect_eq(wire_get_view(&r, 3), bytes);
    cr_expect_null(wire_get_view(&r, SIZE_MAX));
    cr_expect(r.failed);
    cr_expect_null(wire_get_view(&r, 0), "a failed reader must not go on");
}

Test(wire, text_is_cut_and_padded)
{
    static const struct {
        const char *text, *expected;
    } cases[] = {{"", ""}, {"abc", "abc"}, {"abcdefg", "abcdefg"}, {"abcdefgh", "abcdefg"}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char field[8], padded[8] = "";
        struct wire_writer w = wire_writer(field, sizeof(field));

        memset(field, 'x', sizeof(field));
        strcpy(padded, cases[i].expected);
        wire_put_text(&w, cases[i].text, sizeof(field));
        cr_expect(!w.failed && !memcmp(field, padded, sizeof(field)), "\"%s\": got \"%.8s\"",
                  cases[i].text, field);
    }
}

Test(wire, text_from_the_peer_is_checked)
{
    static const struct {
        const char *name;
        char field[4];
        bool good;
    } cases[] = {
        {"empty", "", true},
        {"short", "ab", true},
        {"full", "abc", true},
        {"no zero", {'a', 'b', 'c', 'd'}, false},
        {"newline", "a\n", false},
        {"escape", "\x1b[", false},
        {"not ASCII", "\xc3\xa4", false},
        {"DEL", "\x7f", false},
        {"rubbish behind the zero", {'a', 0, '\n', 'x'}, true},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[4] = "???";
        struct wire_reader r = wire_reader(cases[i].field, sizeof(cases[i].field));

        wire_get_text(&r, text, sizeof(text));
        cr_expect_eq(!r.failed, cases[i].good, "%s: expected %s", cases[i].name,
                     cases[i].good ? "to be taken" : "to fail");
        cr_expect_str_eq(text, cases[i].good ? cases[i].field : "", "%s: got \"%s\"", cases[i].name,
                         text);
    }
}

Test(wire, text_beyond_the_end_fails)
{
    char text[8] = "???";
    struct wire_reader r = wire_reader("ab", 3);

    wire_get_text(&r, text, sizeof(text));
    cr_expect(r.failed);
    cr_expect_str_eq(text, "");
}

Test(wire, zero_sizes_are_harmless)
{
    struct wire_writer w = wire_writer(NULL, 0);
    struct wire_reader r = wire_reader(NULL, 0);

    wire_put_bytes(&w, NULL, 0);
    wire_get_bytes(&r, NULL, 0);
    cr_expect(!w.failed && wire_reader_done(&r));
    wire_put_text(&w, "a", 0);
    wire_put_u8(&w, 1);
    wire_get_u8(&r);
    cr_expect(w.failed && r.failed);
}
