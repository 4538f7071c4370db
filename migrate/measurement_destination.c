#include "migrate/measurement.h"

#include <errno.h>

#include "migrate/measurement_device.h"
#include "migrate/measurement_fields.h"

/* A real one has some 600 bytes, and with a device 100 for each of its error counters. */
enum { MAX_DESTINATION_TEXT = 16384 };

#define D(member, key, kind) FIELD(struct destination_measurement, member, key, kind, NEVER_NULL)

static const struct field half_fields[] = {
    D(cpu_ns, "cpu_ns", FIELD_U64),
    D(state_load_ns, "state_load_ns", FIELD_U64),
    D(resume_ns, "resume_ns", FIELD_U64),
    D(running_at_us, "running_at_us", FIELD_U64),
    D(guest_gap_ns, "guest_gap_ns", FIELD_U64),
    D(resident_growth_bytes, "resident_growth_bytes", FIELD_U64),
};

static const size_t half_field_count = sizeof(half_fields) / sizeof(half_fields[0]);

static bool add_cpu(cJSON *object, const struct cpu_measurement *cpu)
{
    cJSON *own;

    if (!cpu->known)
        return cJSON_AddNullToObject(object, "cpu");
    own = cJSON_AddObjectToObject(object, "cpu");
    return own && fields_add(own, cpu, cpu_wire_fields, cpu_wire_field_count);
}

/* A peer from before there was such an account sends none. */
static int read_cpu(const cJSON *object, struct cpu_measurement *out, struct error *err)
{
    const cJSON *cpu = cJSON_GetObjectItemCaseSensitive(object, "cpu");

    if (!cpu || cJSON_IsNull(cpu))
        return 0;
    if (!cJSON_IsObject(cpu))
        return error_set(err, EPROTO, "cpu is no object");
    out->known = true;
    return fields_read(cpu, out, cpu_wire_fields, cpu_wire_field_count, err);
}

char *destination_measurement_encode(const struct destination_measurement *d)
{
    cJSON *object = cJSON_CreateObject(), *host;
    char *text = NULL;

    if (!object || !fields_add(object, d, half_fields, half_field_count))
        goto delete_object;
    host = cJSON_AddObjectToObject(object, "host");
    if (host && fields_add(host, &d->host, host_fields, host_field_count) &&
        add_cpu(object, &d->cpu) && device_encode(object, &d->device))
        text = cJSON_PrintUnformatted(object);
delete_object:
    cJSON_Delete(object);
    return text;
}

int destination_measurement_decode(const char *text, size_t size,
                                   struct destination_measurement *out, struct error *err)
{
    struct destination_measurement d = {.known = true};
    const char *end = NULL;
    const cJSON *host;
    cJSON *object;
    int result;

    if (size > MAX_DESTINATION_TEXT)
        return error_set(err, EPROTO,
                         "the destination's report has %zu bytes, at most %d are accepted", size,
                         MAX_DESTINATION_TEXT);
    object = cJSON_ParseWithLengthOpts(text, size, &end, false);
    if (!cJSON_IsObject(object) || end != text + size) {
        result = error_set(err, EPROTO, "the destination's report is no JSON object");
        goto delete_object;
    }
    result = fields_read(object, &d, half_fields, half_field_count, err);
    if (result)
        goto prefix_error;
    host = cJSON_GetObjectItemCaseSensitive(object, "host");
    if (!cJSON_IsObject(host)) {
        result = error_set(err, EPROTO, "host is no object");
        goto prefix_error;
    }
    result = fields_read(host, &d.host, host_fields, host_field_count, err);
    if (!result)
        result = read_cpu(object, &d.cpu, err);
    if (!result)
        result = device_decode(object, &d.device, err);
    if (!result)
        *out = d;
prefix_error:
    if (result)
        error_prefix(err, "the destination's report is malformed");
delete_object:
    cJSON_Delete(object);
    return result;
}
