#include "migrate/measurement_fields.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/measurement.h"
#include "transport/base/clock.h"

static const double max_exact_integer = 0x1p53;

/* Length of the UTF-8 sequence at `text`, which ends in a zero byte; 0 when it is none (RFC 3629).
 */
static size_t utf8_length(const unsigned char *text)
{
    static const struct {
        unsigned char mask, lead;
        unsigned lowest;
    } forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};

    for (size_t n = 0; n < sizeof(forms) / sizeof(forms[0]); n++) {
        if ((text[0] & forms[n].mask) != forms[n].lead)
            continue;
        unsigned point = text[0] & (unsigned char)~forms[n].mask;

        for (size_t i = 1; i <= n; i++) {
            if ((text[i] & 0xc0) != 0x80)
                return 0;
            point = point << 6 | (text[i] & 0x3f);
        }
        if (point < forms[n].lowest || point > 0x10ffff || (point >= 0xd800 && point < 0xe000))
            return 0;
        return n + 1;
    }
    return 0;
}

static cJSON *text_to_json(const char *text, size_t size)
{
    char *copy = strndup(text, size);
    cJSON *json;

    if (!copy)
        return NULL;
    for (unsigned char *at = (unsigned char *)copy; *at;) {
        size_t length = utf8_length(at);

        if (!length)
            *at = '?';
        at += length ? length : 1;
    }
    json = cJSON_CreateString(copy);
    free(copy);
    return json;
}

/* Raw, because a double would round above 2^53. */
static cJSON *unsigned_to_json(uint64_t value)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRIu64, value);
    return cJSON_CreateRaw(text);
}

static cJSON *signed_to_json(int64_t value)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRId64, value);
    return cJSON_CreateRaw(text);
}

static cJSON *decimal_to_json(uint64_t value, uint64_t unit, int decimals)
{
    char text[32];

    snprintf(text, sizeof(text), "%" PRIu64 ".%0*" PRIu64, value / unit, decimals, value % unit);
    return cJSON_CreateRaw(text);
}

static bool is_null(const struct field *field, const void *at)
{
    static const uint64_t zero;

    switch (field->null) {
    case NULL_IF_ZERO:
        return field->kind == FIELD_TEXT ? !*(const char *)at : !memcmp(at, &zero, field->size);
    case NULL_IF_NEGATIVE:
        return field->kind == FIELD_INT ? *(const int *)at < 0 : *(const int64_t *)at < 0;
    case NEVER_NULL:
        break;
    }
    return false;
}

static cJSON *field_to_json(const struct field *field, const void *at)
{
    if (is_null(field, at))
        return cJSON_CreateNull();
    switch (field->kind) {
    case FIELD_TEXT:
        return text_to_json(at, field->size);
    case FIELD_U64:
        return unsigned_to_json(*(const uint64_t *)at);
    case FIELD_UNSIGNED:
        return unsigned_to_json(*(const unsigned *)at);
    case FIELD_I64:
        return signed_to_json(*(const int64_t *)at);
    case FIELD_INT:
        return signed_to_json(*(const int *)at);
    case FIELD_BOOL:
        return cJSON_CreateBool(*(const bool *)at);
    case FIELD_MS:
        return decimal_to_json(*(const uint64_t *)at, NS_PER_MS, 6);
    case FIELD_MILLIONTHS:
        return decimal_to_json(*(const uint64_t *)at, 1000000, 6);
    case FIELD_S:
        return decimal_to_json(*(const uint64_t *)at, NS_PER_S, 9);
    }
    return NULL;
}

bool fields_add(cJSON *object, const void *base, const struct field *fields, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        cJSON *item = field_to_json(&fields[i], (const char *)base + fields[i].offset);

        if (!item)
            return false;
        if (!cJSON_AddItemToObject(object, fields[i].key, item)) {
            cJSON_Delete(item);
            return false;
        }
    }
    return true;
}

static int read_text(const struct field *field, const cJSON *item, char *out, struct error *err)
{
    size_t length = cJSON_IsString(item) ? strlen(item->valuestring) : SIZE_MAX;

    if (length >= field->size)
        return error_set(err, EPROTO, "%s is no text of at most %zu bytes", field->key,
                         field->size - 1);
    for (size_t i = 0; i < length; i++) {
        if (item->valuestring[i] < ' ' || item->valuestring[i] > '~')
            return error_set(err, EPROTO, "%s is not printable", field->key);
    }
    memcpy(out, item->valuestring, length + 1);
    return 0;
}

/* Everything that is not a whole number in [0, max] fails the comparison, NaN included. */
static int read_integer(const struct field *field, const cJSON *item, double max, uint64_t *out,
                        struct error *err)
{
    double value = cJSON_IsNumber(item) ? item->valuedouble : -1;

    if (!(value >= 0 && value <= max) || (double)(uint64_t)value != value)
        return error_set(err, EPROTO, "%s is no whole number from 0 to %.0f", field->key, max);
    *out = (uint64_t)value;
    return 0;
}

static int read_null(const struct field *field, void *at, struct error *err)
{
    if (field->null == NEVER_NULL)
        return error_set(err, EPROTO, "%s is null", field->key);
    memset(at, field->null == NULL_IF_NEGATIVE ? 0xff : 0, field->size);
    return 0;
}

static int field_read(const struct field *field, const cJSON *item, void *at, struct error *err)
{
    double max = field->kind == FIELD_INT        ? INT_MAX
                 : field->kind == FIELD_UNSIGNED ? UINT_MAX
                                                 : max_exact_integer;
    uint64_t value = 0;
    int result;

    if (cJSON_IsNull(item))
        return read_null(field, at, err);
    if (field->kind == FIELD_TEXT)
        return read_text(field, item, at, err);
    result = read_integer(field, item, max, &value, err);
    if (result)
        return result;
    if (field->kind == FIELD_INT)
        *(int *)at = (int)value;
    else if (field->kind == FIELD_UNSIGNED)
        *(unsigned *)at = (unsigned)value;
    else
        *(uint64_t *)at = value;
    return 0;
}

int fields_read(const cJSON *object, void *base, const struct field *fields, size_t count,
                struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, fields[i].key);
        int result;

        if (!item)
            return error_set(err, EPROTO, "%s is missing", fields[i].key);
        result = field_read(&fields[i], item, (char *)base + fields[i].offset, err);
        if (result)
            return result;
    }
    return 0;
}

#define HOST(member, key, kind, null) FIELD(struct host_facts, member, key, kind, null)

const struct field host_fields[] = {
    HOST(hostname, "hostname", FIELD_TEXT, NULL_IF_ZERO),
    HOST(kernel, "kernel", FIELD_TEXT, NULL_IF_ZERO),
    HOST(cpu, "cpu", FIELD_TEXT, NULL_IF_ZERO),
    HOST(interface, "interface", FIELD_TEXT, NULL_IF_ZERO),
    HOST(link_mbit, "link_mbit_per_s", FIELD_I64, NULL_IF_NEGATIVE),
    HOST(mtu, "mtu_bytes", FIELD_INT, NULL_IF_ZERO),
    HOST(version, "wander", FIELD_TEXT, NULL_IF_ZERO),
};

const size_t host_field_count = sizeof(host_fields) / sizeof(host_fields[0]);

#define CPU(member, key, null) FIELD(struct cpu_measurement, member, key, FIELD_U64, null)

const struct field cpu_wire_fields[] = {
    CPU(guest_ns, "guest_ns", NULL_IF_NEGATIVE),
    CPU(engine_ns, "engine_ns", NEVER_NULL),
    CPU(lanes_ns, "lanes_ns", NEVER_NULL),
    CPU(other_ns, "other_ns", NEVER_NULL),
};

const size_t cpu_wire_field_count = sizeof(cpu_wire_fields) / sizeof(cpu_wire_fields[0]);
