/* Option texts: what is taken, what is refused, and with which error. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "transport/base/options.h"

struct number_case {
    const char *text;
    int result;
    uint64_t value;
};

typedef int parse_fn(const char *text, uint64_t *value, struct error *err);

static void check_numbers(parse_fn *parse, const struct number_case *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct error err = {0};
        uint64_t value = 4711;
        int result = parse(cases[i].text, &value, &err);

        cr_expect_eq(result, cases[i].result, "\"%s\": expected %d, got %d", cases[i].text,
                     cases[i].result, result);
        cr_expect_eq(value, result ? 4711 : cases[i].value, "\"%s\": got %llu", cases[i].text,
                     (unsigned long long)value);
        cr_expect(!result || strstr(err.text, cases[i].text),
                  "\"%s\": the text \"%s\" names it not", cases[i].text, err.text);
    }
}

#define CHECK_NUMBERS(parse, cases) check_numbers(parse, cases, sizeof(cases) / sizeof(cases[0]))

Test(options, sizes)
{
    static const struct number_case cases[] = {
        {"1", 0, 1},
        {"4096", 0, 4096},
        {"4096B", 0, 4096},
        {"512M", 0, 512ull << 20},
        {"512m", 0, 512ull << 20},
        {"4GiB", 0, 4ull << 30},
        {"4GB", 0, 4ull << 30},
        {"1T", 0, 1ull << 40},
        {"16383P", 0, 16383ull << 50},
        {"18446744073709551615", 0, UINT64_MAX},
        {"18446744073709551616", -ERANGE, 0},
        {"16384P", -ERANGE, 0},
        {"0", -EINVAL, 0},
        {"0G", -EINVAL, 0},
        {"", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"+1", -EINVAL, 0},
        {" 1", -EINVAL, 0},
        {"1 ", -EINVAL, 0},
        {"1 G", -EINVAL, 0},
        {"G", -EINVAL, 0},
        {"1.5G", -EINVAL, 0},
        {"0x10", -EINVAL, 0},
        {"1Gib", -EINVAL, 0},
        {"1Gb", -EINVAL, 0},
        {"1b", -EINVAL, 0},
        {"1i", -EINVAL, 0},
        {"1GiBs", -EINVAL, 0},
        {"1G/s", -EINVAL, 0},
    };

    CHECK_NUMBERS(parse_size, cases);
}

Test(options, rates)
{
    static const struct number_case cases[] = {
        {"1", 0, 1},
        {"1/s", 0, 1},
        {"100M", 0, 100ull << 20},
        {"100MiB/s", 0, 100ull << 20},
        {"100k/s", 0, 100ull << 10},
        {"10Gbit", 0, 1250000000},
        {"10Gbit/s", 0, 1250000000},
        {"10gbit/s", 0, 1250000000},
        {"8bit/s", 0, 1},
        {"7bit/s", -EINVAL, 0},
        {"0", -EINVAL, 0},
        {"0M/s", -EINVAL, 0},
        {"", -EINVAL, 0},
        {"/s", -EINVAL, 0},
        {"1M/m", -EINVAL, 0},
        {"1M/", -EINVAL, 0},
        {"1M/s/s", -EINVAL, 0},
        {"-1M", -EINVAL, 0},
        {"1Mb/s", -EINVAL, 0},
        {"1Gibit", -EINVAL, 0},
        {"18446744073709551615Gbit", -ERANGE, 0},
        {"17179869184G", -ERANGE, 0},
    };

    CHECK_NUMBERS(parse_rate, cases);
}

Test(options, times)
{
    static const struct number_case cases[] = {
        {"0", 0, 0},
        {"300", 0, 300000000},
        {"300ms", 0, 300000000},
        {"50us", 0, 50000},
        {"7ns", 0, 7},
        {"10s", 0, 10000000000ull},
        {"2m", 0, 120000000000ull},
        {"1h", 0, 3600000000000ull},
        {"18446744073709551615ns", 0, UINT64_MAX},
        {"18446744073709551615us", -ERANGE, 0},
        {"18446744073710", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"ms", -EINVAL, 0},
        {"-1s", -EINVAL, 0},
        {"1.5s", -EINVAL, 0},
        {"1 s", -EINVAL, 0},
        {"1d", -EINVAL, 0},
        {"1sec", -EINVAL, 0},
    };

    CHECK_NUMBERS(parse_time, cases);
}

static int parse_percent(const char *text, uint64_t *value, struct error *err)
{
    return parse_number(text, 1, 99, value, err);
}

Test(options, numbers_in_a_range)
{
    static const struct number_case cases[] = {
        {"1", 0, 1},         {"99", 0, 99},       {"007", 0, 7},
        {"0", -ERANGE, 0},   {"100", -ERANGE, 0}, {"18446744073709551616", -ERANGE, 0},
        {"", -EINVAL, 0},    {"9x", -EINVAL, 0},  {"-5", -EINVAL, 0},
        {"5.0", -EINVAL, 0},
    };

    CHECK_NUMBERS(parse_percent, cases);
}

Test(options, sizes_for_humans)
{
    static const struct {
        uint64_t bytes;
        const char *expected;
    } cases[] = {
        {0, "0 B"},
        {1, "1 B"},
        {1023, "1023 B"},
        {1024, "1.0 KiB"},
        {1536, "1.5 KiB"},
        {(1 << 20) - 1, "1.0 MiB"},
        {3ull << 29, "1.5 GiB"},
        {UINT64_MAX, "16.0 EiB"},
    };
    char text[32];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        cr_expect_str_eq(format_size(cases[i].bytes, text, sizeof(text)), cases[i].expected,
                         "%llu: expected \"%s\", got \"%s\"", (unsigned long long)cases[i].bytes,
                         cases[i].expected, text);
    cr_expect_str_eq(format_rate(1.5 * (1 << 30), text, sizeof(text)), "1.5 GiB/s", "got %s", text);
    cr_expect_str_eq(format_rate(0, text, sizeof(text)), "0 B/s", "got %s", text);
}

Test(options, times_for_humans)
{
    static const struct {
        uint64_t ns;
        const char *expected;
    } cases[] = {
        {0, "0.0 us"},
        {1500, "1.5 us"},
        {999949, "999.9 us"},
        {999950, "1.0 ms"},
        {12300000, "12.3 ms"},
        {999950000, "1.0 s"},
        {119900000000ull, "119.9 s"},
        {120000000000ull, "2 min 0 s"},
        {185700000000ull, "3 min 5 s"},
    };
    char text[48];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        cr_expect_str_eq(format_time(cases[i].ns, text, sizeof(text)), cases[i].expected,
                         "%llu: expected \"%s\", got \"%s\"", (unsigned long long)cases[i].ns,
                         cases[i].expected, text);
}

Test(options, a_short_buffer_is_respected)
{
    char text[8] = "1234567";

    format_size(3ull << 29, text, 4);
    cr_expect_str_eq(text, "1.5", "got \"%s\"", text);
    cr_expect_str_eq(text + 4, "567", "the text ran over its end");
}

Test(options, pairs)
{
    static const struct {
        const char *text, *expected;
        int result; /* of the call behind the last good pair */
    } cases[] = {
        {"", "", 0},
        {"a=b", "a:b;", 0},
        {"a=b,c=d", "a:b;c:d;", 0},
        {"a=b=c", "a:b=c;", 0},
        {"a", "", -EINVAL},
        {"a=", "", -EINVAL},
        {"=b", "", -EINVAL},
        {",", "", -EINVAL},
        {"a=b,", "", -EINVAL},
        {"a=b,,c=d", "a:b;", -EINVAL},
        {"a=b,c", "a:b;", -EINVAL},
        {"a,b=c", "", -EINVAL},
        {"longer_key=b", "", -EINVAL},
        {"a=longer_value", "", -EINVAL},
        {"1234567=1234567", "1234567:1234567;", 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char key[8], value[8], seen[64] = "";
        const char *cursor = cases[i].text;
        struct error err = {0};
        int result;

        while ((result = next_pair(&cursor, key, sizeof(key), value, sizeof(value), &err)) == 1)
            sprintf(seen + strlen(seen), "%s:%s;", key, value);
        cr_expect_eq(result, cases[i].result, "\"%s\": expected %d, got %d", cases[i].text,
                     cases[i].result, result);
        cr_expect_str_eq(seen, cases[i].expected, "\"%s\": expected %s, got %s", cases[i].text,
                         cases[i].expected, seen);
        cr_expect_eq(result < 0, err.text[0] != 0, "\"%s\": text is \"%s\"", cases[i].text,
                     err.text);
    }
}
