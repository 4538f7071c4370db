#include "migrate/measurement_device.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/measurement_fields.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const double millionths = 1e6, bytes_per_gib = 1 << 30;

/* What the document holds beyond the structure, or otherwise than there. */
struct derived {
    char operation[8], registration[8];
    uint64_t bytes_per_work_request;
    uint64_t signalled_share, registrations_per_gib; /* in millionths */
    bool encrypted;
};

#define V(member, key, kind, null) FIELD(struct device_measurement, device.member, key, kind, null)
#define M(member, key, kind, null) FIELD(struct device_measurement, member, key, kind, null)
#define D(member, key, kind, null) FIELD(struct derived, member, key, kind, null)

static const struct field device_fields[] = {
    V(name, "device", FIELD_TEXT, NULL_IF_ZERO),
    V(port, "port", FIELD_UNSIGNED, NEVER_NULL),
    V(link_layer, "link_layer", FIELD_TEXT, NULL_IF_ZERO),
    V(gid, "gid", FIELD_TEXT, NULL_IF_ZERO),
    V(gid_type, "gid_type", FIELD_TEXT, NULL_IF_ZERO),
    V(mtu, "mtu", FIELD_UNSIGNED, NULL_IF_ZERO),
    V(max_message, "max_message_bytes", FIELD_U64, NULL_IF_ZERO),
    V(max_work_requests, "max_work_requests", FIELD_U64, NULL_IF_ZERO),
    M(pin_limit, "pin_limit_bytes", FIELD_U64, NULL_IF_ZERO),
    V(work_requests, "work_requests", FIELD_U64, NEVER_NULL),
    V(data_work_requests, "data_work_requests", FIELD_U64, NEVER_NULL),
    V(data_bytes, "data_bytes", FIELD_U64, NEVER_NULL),
    V(signalled, "signalled", FIELD_U64, NEVER_NULL),
    V(registrations, "registrations", FIELD_U64, NEVER_NULL),
    V(registered_bytes, "registered_bytes", FIELD_U64, NEVER_NULL),
    V(pinned_peak_bytes, "pinned_peak_bytes", FIELD_U64, NEVER_NULL),
};

static const struct field time_fields[] = {
    V(register_ns, "register_ms", FIELD_MS, NEVER_NULL),
};

static const struct field wire_time_fields[] = {
    V(register_ns, "register_ns", FIELD_U64, NEVER_NULL),
};

static const struct field choice_fields[] = {
    D(operation, "operation", FIELD_TEXT, NEVER_NULL),
    D(registration, "registration", FIELD_TEXT, NEVER_NULL),
};

static const struct field ratio_fields[] = {
    D(bytes_per_work_request, "bytes_per_work_request", FIELD_U64, NULL_IF_ZERO),
    D(signalled_share, "signalled_share", FIELD_MILLIONTHS, NULL_IF_ZERO),
    D(registrations_per_gib, "registrations_per_gib", FIELD_MILLIONTHS, NULL_IF_ZERO),
    D(encrypted, "encrypted", FIELD_BOOL, NEVER_NULL),
};

static const struct field counter_fields[] = {
    FIELD(struct transport_counter, before, "before", FIELD_U64, NEVER_NULL),
    FIELD(struct transport_counter, after, "after", FIELD_U64, NEVER_NULL),
};

static uint64_t ratio(double part, double whole)
{
    return whole > 0 ? (uint64_t)(part / whole * millionths + 0.5) : 0;
}

static struct derived derive(const struct device_measurement *m, uint64_t guest_bytes,
                             bool encrypted)
{
    const struct transport_device *v = &m->device;
    struct derived d = {
        .signalled_share = ratio((double)v->signalled, (double)v->work_requests),
        .registrations_per_gib =
            ratio((double)v->registrations * bytes_per_gib, (double)guest_bytes),
        .encrypted = encrypted,
    };

    if (v->data_work_requests)
        d.bytes_per_work_request = v->data_bytes / v->data_work_requests;
    snprintf(d.operation, sizeof(d.operation), "%s", transport_operation_name(v->operation));
    snprintf(d.registration, sizeof(d.registration), "%s",
             transport_registration_name(v->registration));
    return d;
}

static bool add_counters(cJSON *object, const struct transport_device *device)
{
    cJSON *counters = cJSON_AddObjectToObject(object, "counters");

    for (unsigned i = 0; counters && i < device->counter_count; i++) {
        cJSON *counter = cJSON_AddObjectToObject(counters, device->counters[i].name);

        if (!counter ||
            !fields_add(counter, &device->counters[i], counter_fields, COUNT(counter_fields)))
            return false;
    }
    return counters;
}

/* Lanes have two ends, and are encrypted at both or at none. */
static bool add_end(cJSON *object, const struct device_measurement *m, uint64_t guest_bytes,
                    bool encrypted)
{
    struct derived d = derive(m, guest_bytes, encrypted);

    return fields_add(object, m, device_fields, COUNT(device_fields)) &&
           fields_add(object, m, time_fields, COUNT(time_fields)) &&
           fields_add(object, &d, choice_fields, COUNT(choice_fields)) &&
           fields_add(object, &d, ratio_fields, COUNT(ratio_fields)) &&
           add_counters(object, &m->device);
}

void device_note(const struct transport *transport, uint64_t pin_limit,
                 struct device_measurement *out)
{
    struct transport_device device;

    if (!transport || !transport_describe(transport, &device))
        return;
    *out = (struct device_measurement){
        .known = true,
        .encrypted = transport_capabilities(transport) & TRANSPORT_ENCRYPTS,
        .pin_limit = pin_limit ? pin_limit : (uint64_t)TRANSPORT_DEFAULT_PIN_LIMIT,
        .device = device,
    };
}

bool device_add_report(cJSON *document, const struct measurement *m)
{
    const struct destination_measurement *half = &m->destination_half;
    cJSON *rdma, *theirs;

    if (!m->source_device.known)
        return cJSON_AddNullToObject(document, "rdma");
    rdma = cJSON_AddObjectToObject(document, "rdma");
    if (!rdma || !add_end(rdma, &m->source_device, m->guest_bytes, m->source_device.encrypted))
        return false;
    if (!half->known || !half->device.known)
        return cJSON_AddNullToObject(rdma, "destination");
    theirs = cJSON_AddObjectToObject(rdma, "destination");
    return theirs && add_end(theirs, &half->device, m->guest_bytes, m->source_device.encrypted);
}

bool device_encode(cJSON *object, const struct device_measurement *device)
{
    struct derived d = derive(device, 0, false);
    cJSON *own;

    if (!device->known)
        return cJSON_AddNullToObject(object, "device");
    own = cJSON_AddObjectToObject(object, "device");
    return own && fields_add(own, device, device_fields, COUNT(device_fields)) &&
           fields_add(own, device, wire_time_fields, COUNT(wire_time_fields)) &&
           fields_add(own, &d, choice_fields, COUNT(choice_fields)) &&
           add_counters(own, &device->device);
}

static int decode_counters(const cJSON *object, struct transport_device *out, struct error *err)
{
    const cJSON *counters = cJSON_GetObjectItemCaseSensitive(object, "counters"), *counter;

    if (!cJSON_IsObject(counters))
        return error_set(err, EPROTO, "counters is no object");
    cJSON_ArrayForEach(counter, counters)
    {
        struct transport_counter *to = &out->counters[out->counter_count];
        size_t length = strlen(counter->string);

        if (out->counter_count == TRANSPORT_MAX_COUNTERS || length == 0 ||
            length >= sizeof(to->name) ||
            strspn(counter->string, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                    "0123456789_-.") != length)
            return error_set(err, EPROTO, "counters has a name that is none, or too many");
        memcpy(to->name, counter->string, length + 1);
        int result = fields_read(counter, to, counter_fields, COUNT(counter_fields), err);
        if (result)
            return result;
        out->counter_count++;
    }
    return 0;
}

int device_decode(const cJSON *object, struct device_measurement *out, struct error *err)
{
    const cJSON *own = cJSON_GetObjectItemCaseSensitive(object, "device");
    struct derived d = {0};

    if (cJSON_IsNull(own))
        return 0;
    if (!cJSON_IsObject(own))
        return error_set(err, EPROTO, "device is no object");
    int result = fields_read(own, out, device_fields, COUNT(device_fields), err);
    if (!result)
        result = fields_read(own, out, wire_time_fields, COUNT(wire_time_fields), err);
    if (!result)
        result = fields_read(own, &d, choice_fields, COUNT(choice_fields), err);
    if (!result)
        result = decode_counters(own, &out->device, err);
    if (result)
        return result;
    bool reads = strcmp(d.operation, "read") == 0, chunks = strcmp(d.registration, "chunk") == 0;
    if ((!reads && strcmp(d.operation, "write")) || (!chunks && strcmp(d.registration, "all")))
        return error_set(err, EPROTO, "operation or registration is none there is");
    out->device.operation = reads ? TRANSPORT_READ : TRANSPORT_WRITE;
    out->device.registration = chunks ? TRANSPORT_REGISTER_CHUNK : TRANSPORT_REGISTER_ALL;
    out->known = true;
    return 0;
}
