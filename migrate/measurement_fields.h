/* Structures as JSON objects and back, by tables of fields. Private to the measurement's files. */
#ifndef MIGRATE_MEASUREMENT_FIELDS_H
#define MIGRATE_MEASUREMENT_FIELDS_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>

#include "migrate/measurement.h"
#include "transport/base/error.h"

enum field_kind {
    FIELD_TEXT,       /* char[size] */
    FIELD_U64,        /* uint64_t, printed exactly */
    FIELD_UNSIGNED,   /* unsigned */
    FIELD_I64,        /* int64_t, read back only if not negative */
    FIELD_INT,        /* int, likewise */
    FIELD_BOOL,       /* bool */
    FIELD_MS,         /* uint64_t of ns, printed as ms with 6 decimals: exact */
    FIELD_MILLIONTHS, /* uint64_t of millionths, printed with 6 decimals: exact */
    FIELD_S,          /* uint64_t of ns, printed as s with 9 decimals: exact */
};

enum field_null {
    NEVER_NULL,
    NULL_IF_ZERO,     /* or empty: not known, or did not happen */
    NULL_IF_NEGATIVE, /* or, of an unsigned one, MEASUREMENT_UNKNOWN */
};

struct field {
    const char *key;
    enum field_kind kind;
    enum field_null null;
    size_t offset;
    size_t size; /* FIELD_TEXT */
};

#define FIELD(type, member, json_key, field_kind, when)                                            \
    {                                                                                              \
        .key = json_key, .kind = field_kind, .null = when, .offset = offsetof(type, member),       \
        .size = sizeof(((type *)0)->member)                                                        \
    }

/* Adds the `count` fields of the structure at `base` to `object`. False without memory. Text that
 * is not UTF-8 is printed with '?' for the bytes in question. */
bool fields_add(cJSON *object, const void *base, const struct field *fields, size_t count);

/* Reads them back: every key must be there, of its type, within its range (integers up to 2^53,
 * text printable ASCII that fits); null only where the table allows it. FIELD_TEXT, FIELD_U64,
 * FIELD_UNSIGNED, FIELD_I64 and FIELD_INT. -EPROTO. */
int fields_read(const cJSON *object, void *base, const struct field *fields, size_t count,
                struct error *err);

/* Of a struct host_facts; both ends of the wire and the report use them. */
extern const struct field host_fields[];
extern const size_t host_field_count;

/* Of a struct cpu_measurement, in REPORT. */
extern const struct field cpu_wire_fields[];
extern const size_t cpu_wire_field_count;

/* A part of the downtime: as the source took it, else from the destination's half, else 0. */
static inline uint64_t first_known_ns(uint64_t own, const struct destination_measurement *half,
                                      uint64_t theirs)
{
    return own || !half->known ? own : theirs;
}

#endif
