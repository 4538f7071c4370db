#include "transport/base/options.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct unit {
    const char *suffix;
    uint64_t multiple;
};

static const struct unit size_units[] = {
    {"", 1},
    {"B", 1},
    {"K", 1ull << 10},
    {"KB", 1ull << 10},
    {"KiB", 1ull << 10},
    {"M", 1ull << 20},
    {"MB", 1ull << 20},
    {"MiB", 1ull << 20},
    {"G", 1ull << 30},
    {"GB", 1ull << 30},
    {"GiB", 1ull << 30},
    {"T", 1ull << 40},
    {"TB", 1ull << 40},
    {"TiB", 1ull << 40},
    {"P", 1ull << 50},
    {"PB", 1ull << 50},
    {"PiB", 1ull << 50},
    {NULL, 0},
};

static const struct unit bit_units[] = {
    {"bit", 1},
    {"Kbit", 1000},
    {"Mbit", 1000 * 1000},
    {"Gbit", 1000 * 1000 * 1000},
    {"Tbit", 1000ull * 1000 * 1000 * 1000},
    {NULL, 0},
};

static const struct unit time_units[] = {
    {"", 1000 * 1000},       {"ns", 1},         {"us", 1000},
    {"ms", 1000 * 1000},     {"s", 1000000000}, {"m", 60000000000ull},
    {"h", 3600000000000ull}, {NULL, 0},
};

/* Reads leading decimal digits into *value and points *rest behind them. strtoull would let blanks
 * and signs pass. -EINVAL without a digit, -ERANGE. */
static int parse_digits(const char *text, uint64_t *value, const char **rest)
{
    char *end;

    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    errno = 0;
    *value = strtoull(text, &end, 10);
    *rest = end;
    return -errno;
}

/* "m" is "M" as everywhere in this field, but "b" is not "B": many write bits so. */
static bool is_suffix(const char *name, const char *text, size_t length)
{
    if (strlen(name) != length || !length)
        return strlen(name) == length;
    return (*name == *text || (*text != 'b' && *text != 'B' && tolower(*name) == tolower(*text))) &&
           !strncmp(name + 1, text + 1, length - 1);
}

static const struct unit *find_unit(const struct unit *units, const char *suffix, size_t length)
{
    for (; units->suffix; units++)
        if (is_suffix(units->suffix, suffix, length))
            return units;
    return NULL;
}

static int scale(uint64_t *value, const struct unit *unit)
{
    if (!unit)
        return -EINVAL;
    return __builtin_mul_overflow(*value, unit->multiple, value) ? -ERANGE : 0;
}

/* The one text for everything that is no number of the wanted form. */
static int reject(int code, const char *text, const char *what, struct error *err)
{
    if (code == -ERANGE)
        return error_set(err, ERANGE, "\"%s\" is too large for %s", text, what);
    return error_set(err, EINVAL, "\"%s\" is not %s", text, what);
}

int parse_size(const char *text, uint64_t *bytes, struct error *err)
{
    const char *rest;
    uint64_t value = 0;
    int result = parse_digits(text, &value, &rest);

    if (!result)
        result = scale(&value, find_unit(size_units, rest, strlen(rest)));
    if (!result && !value)
        result = -EINVAL;
    if (result)
        return reject(result, text, "a size above 0 (examples: 4096, 512M, 4GiB)", err);
    *bytes = value;
    return 0;
}

/* Length of a rate's suffix without the "/s" that may end it. */
static size_t unit_length(const char *suffix)
{
    size_t length = strlen(suffix);

    return length >= 2 && !strcmp(suffix + length - 2, "/s") ? length - 2 : length;
}

static int scale_rate(uint64_t *value, const char *suffix)
{
    size_t length = unit_length(suffix);
    const struct unit *bits = find_unit(bit_units, suffix, length);
    int result;

    if (!bits)
        return scale(value, find_unit(size_units, suffix, length));
    result = scale(value, bits);
    *value /= 8;
    return result;
}

int parse_rate(const char *text, uint64_t *bytes_per_s, struct error *err)
{
    const char *rest;
    uint64_t value = 0;
    int result = parse_digits(text, &value, &rest);

    if (!result)
        result = scale_rate(&value, rest);
    if (!result && !value)
        result = -EINVAL;
    if (result)
        return reject(result, text,
                      "a rate of at least 1 byte/s (examples: 100M, 100MiB/s, 10Gbit/s)", err);
    *bytes_per_s = value;
    return 0;
}

int parse_time(const char *text, uint64_t *ns, struct error *err)
{
    const char *rest;
    uint64_t value = 0;
    int result = parse_digits(text, &value, &rest);

    if (!result)
        result = scale(&value, find_unit(time_units, rest, strlen(rest)));
    if (result)
        return reject(result, text, "a time (examples: 300ms, 10s, 2m, 50us; a bare number is ms)",
                      err);
    *ns = value;
    return 0;
}

int parse_number(const char *text, uint64_t low, uint64_t high, uint64_t *value, struct error *err)
{
    const char *rest;
    uint64_t number = 0;
    int result = parse_digits(text, &number, &rest);

    if (result == -EINVAL || (!result && *rest))
        return error_set(err, EINVAL, "\"%s\" is not a whole number from %llu to %llu", text,
                         (unsigned long long)low, (unsigned long long)high);
    if (result || number < low || number > high)
        return error_set(err, ERANGE, "%s is out of range: it must be from %llu to %llu", text,
                         (unsigned long long)low, (unsigned long long)high);
    *value = number;
    return 0;
}

/* "%.1f" of `value` in the largest unit that leaves at least 1 before the point. */
static char *format_binary(double value, const char *per, char *out, size_t size)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;

    while (value >= 1023.95 && unit + 1 < sizeof(names) / sizeof(names[0])) {
        value /= 1024;
        unit++;
    }
    snprintf(out, size, unit ? "%.1f %s%s" : "%.0f %s%s", value, names[unit], per);
    return out;
}

char *format_size(uint64_t bytes, char *out, size_t size)
{
    return format_binary((double)bytes, "", out, size);
}

char *format_rate(double bytes_per_s, char *out, size_t size)
{
    return format_binary(bytes_per_s, "/s", out, size);
}

char *format_time(uint64_t ns, char *out, size_t size)
{
    uint64_t s = ns / 1000000000;

    if (ns < 999950)
        snprintf(out, size, "%.1f us", (double)ns / 1e3);
    else if (ns < 999950000)
        snprintf(out, size, "%.1f ms", (double)ns / 1e6);
    else if (s < 120)
        snprintf(out, size, "%.1f s", (double)ns / 1e9);
    else
        snprintf(out, size, "%llu min %llu s", (unsigned long long)(s / 60),
                 (unsigned long long)(s % 60));
    return out;
}

static bool copy_part(const char *from, size_t length, char *to, size_t size)
{
    if (!length || length >= size)
        return false;
    memcpy(to, from, length);
    to[length] = '\0';
    return true;
}

int next_pair(const char **cursor, char *key, size_t key_size, char *value, size_t value_size,
              struct error *err)
{
    const char *pair = *cursor;
    size_t length = strcspn(pair, ","), equals = strcspn(pair, "=");

    if (!*pair)
        return 0;
    if (equals >= length || !copy_part(pair, equals, key, key_size) ||
        !copy_part(pair + equals + 1, length - equals - 1, value, value_size))
        return error_set(err, EINVAL, "\"%.*s\" is not of the form key=value", (int)length, pair);
    if (pair[length] && !pair[length + 1])
        return error_set(err, EINVAL, "\"%s\" ends with a comma", pair);
    *cursor = pair + length + (pair[length] == ',');
    return 1;
}
