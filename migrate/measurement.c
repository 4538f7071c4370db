#include "migrate/measurement.h"

#include <stdlib.h>
#include <string.h>

#include "migrate/measurement_device.h"
#include "migrate/measurement_fields.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

struct round_measurement *measurement_add_round(struct measurement *m)
{
    struct round_measurement *round;

    if (m->round_count == m->round_capacity) {
        size_t capacity = m->round_capacity ? m->round_capacity * 2 : 16;
        struct round_measurement *rounds = reallocarray(m->rounds, capacity, sizeof(*rounds));

        if (!rounds)
            return NULL;
        m->rounds = rounds;
        m->round_capacity = capacity;
    }
    round = &m->rounds[m->round_count++];
    memset(round, 0, sizeof(*round));
    return round;
}

void measurement_free(struct measurement *m)
{
    free(m->rounds);
    m->rounds = NULL;
    m->round_count = m->round_capacity = 0;
}

/* What the document holds beyond the structure, or otherwise than there. */
struct derived {
    char downtime_clock[8];
    unsigned schema;
    uint64_t gap_ns, destination_cpu_ns, resident_growth_bytes;
    char on_timeout[8], operation[8], registration[8];
};

/* The prediction as the document has it: without figures that describe no end. */
struct foretold {
    char basis[16];
    uint64_t age_ns;
    bool converges;
    struct prediction_range total_ns, downtime_ns;
    unsigned rounds;
    uint64_t bytes;
};

#define M(member, key, kind, null) FIELD(struct measurement, member, key, kind, null)
#define D(member, key, kind, null) FIELD(struct derived, member, key, kind, null)
#define R(member, key, kind, null) FIELD(struct round_measurement, member, key, kind, null)
#define P(member, key, kind, null) FIELD(struct foretold, member, key, kind, null)
#define W(member, key, kind)       FIELD(struct guest_work, member, key, kind, NEVER_NULL)
#define C(member, key, null)       FIELD(struct cpu_measurement, member, key, FIELD_S, null)

static const struct field schema_fields[] = {
    D(schema, "schema", FIELD_UNSIGNED, NEVER_NULL),
};

static const struct field outcome_fields[] = {
    M(result, "result", FIELD_TEXT, NEVER_NULL),
    M(error, "error", FIELD_TEXT, NULL_IF_ZERO),
    M(session, "session", FIELD_TEXT, NULL_IF_ZERO),
};

static const struct field guest_fields[] = {
    M(guest_name, "name", FIELD_TEXT, NULL_IF_ZERO),
    M(guest_kind, "kind", FIELD_TEXT, NULL_IF_ZERO),
    M(accel, "accel", FIELD_TEXT, NULL_IF_ZERO),
    M(memory_bytes, "memory_bytes", FIELD_U64, NEVER_NULL),
    M(vcpus, "vcpus", FIELD_UNSIGNED, NEVER_NULL),
    M(tracker, "tracker", FIELD_TEXT, NULL_IF_ZERO),
};

static const struct field path_fields[] = {
    M(transport, "transport", FIELD_TEXT, NULL_IF_ZERO),
    M(destination, "destination", FIELD_TEXT, NULL_IF_ZERO),
    M(filter, "filter", FIELD_TEXT, NULL_IF_ZERO),
    M(lanes, "lanes", FIELD_UNSIGNED, NEVER_NULL),
    M(total_ns, "total_ms", FIELD_MS, NEVER_NULL),
    M(setup_ns, "setup_ms", FIELD_MS, NULL_IF_ZERO),
    M(round_trip_ns, "round_trip_ms", FIELD_MS, NULL_IF_ZERO),
    M(pause_start_ns, "pause_start_ms", FIELD_MS, NULL_IF_ZERO),
    M(downtime_ns, "downtime_ms", FIELD_MS, NULL_IF_ZERO),
};

static const struct field downtime_fields[] = {
    M(downtime.pause, "pause", FIELD_MS, NULL_IF_ZERO),
    M(downtime.final_copy, "final_copy", FIELD_MS, NULL_IF_ZERO),
    M(downtime.verify, "verify", FIELD_MS, NULL_IF_ZERO),
    M(downtime.state_save, "state_save", FIELD_MS, NULL_IF_ZERO),
    M(downtime.state_transfer, "state_transfer", FIELD_MS, NULL_IF_ZERO),
    M(downtime.state_load, "state_load", FIELD_MS, NULL_IF_ZERO),
    M(downtime.resume, "resume", FIELD_MS, NULL_IF_ZERO),
};

static const struct field gap_fields[] = {
    D(downtime_clock, "downtime_clock", FIELD_TEXT, NEVER_NULL),
    D(gap_ns, "guest_gap_ms", FIELD_MS, NULL_IF_ZERO),
};

static const struct field prediction_fields[] = {
    P(basis, "basis", FIELD_TEXT, NEVER_NULL),
    P(age_ns, "age_ms", FIELD_MS, NULL_IF_ZERO),
    P(converges, "converges", FIELD_BOOL, NEVER_NULL),
    P(total_ns.expected, "total_ms", FIELD_MS, NULL_IF_ZERO),
    P(total_ns.low, "total_low_ms", FIELD_MS, NULL_IF_ZERO),
    P(total_ns.high, "total_high_ms", FIELD_MS, NULL_IF_ZERO),
    P(downtime_ns.expected, "downtime_ms", FIELD_MS, NULL_IF_ZERO),
    P(downtime_ns.low, "downtime_low_ms", FIELD_MS, NULL_IF_ZERO),
    P(downtime_ns.high, "downtime_high_ms", FIELD_MS, NULL_IF_ZERO),
    P(rounds, "rounds", FIELD_UNSIGNED, NULL_IF_ZERO),
    P(bytes, "bytes", FIELD_U64, NULL_IF_ZERO),
};

static const struct field switchover_fields[] = {
    M(predicted_downtime_ns, "predicted_downtime_ms", FIELD_MS, NEVER_NULL),
    M(predicted_last_bytes, "predicted_last_bytes", FIELD_U64, NEVER_NULL),
    M(last_bytes, "measured_last_bytes", FIELD_U64, NEVER_NULL),
    M(switchover_retries, "retries", FIELD_UNSIGNED, NEVER_NULL),
    M(forced, "forced", FIELD_BOOL, NEVER_NULL),
};

static const struct field work_fields[] = {
    W(pages_at_start, "pages_written_at_start", FIELD_U64),
    W(pages_at_pause, "pages_written_at_pause", FIELD_U64),
    W(ns, "ms", FIELD_MS),
};

static const struct field cpu_fields[] = {
    C(guest_ns, "guest_s", NULL_IF_NEGATIVE),
    C(engine_ns, "engine_s", NEVER_NULL),
    C(lanes_ns, "lanes_s", NEVER_NULL),
    C(other_ns, "other_s", NEVER_NULL),
};

static const struct field round_fields[] = {
    R(pages, "pages", FIELD_U64, NEVER_NULL),
    R(zero_pages, "zero_pages", FIELD_U64, NEVER_NULL),
    R(skipped_pages, "skipped_pages", FIELD_U64, NEVER_NULL),
    R(bytes, "bytes", FIELD_U64, NEVER_NULL),
    R(wire_bytes, "wire_bytes", FIELD_U64, NEVER_NULL),
    R(start_ns, "start_ms", FIELD_MS, NEVER_NULL),
    R(ns, "ms", FIELD_MS, NEVER_NULL),
    R(dirty_pages_after, "dirty_pages_after", FIELD_U64, NEVER_NULL),
    R(predicted_downtime_ns, "predicted_downtime_ms", FIELD_MS, NULL_IF_ZERO),
    R(predicted_total_ns, "predicted_total_ms", FIELD_MS, NULL_IF_ZERO),
    R(guest_pages_written, "guest_pages_written", FIELD_U64, NULL_IF_NEGATIVE),
    R(throttle, "throttle_percent", FIELD_UNSIGNED, NEVER_NULL),
    R(paused, "paused", FIELD_BOOL, NEVER_NULL),
};

static const struct field page_fields[] = {
    M(raw_pages, "raw", FIELD_U64, NEVER_NULL),
    M(zero_pages, "zero", FIELD_U64, NEVER_NULL),
    M(hole_pages, "hole", FIELD_U64, NEVER_NULL),
};

static const struct field volume_fields[] = {
    M(present_bytes, "present_bytes", FIELD_U64, NEVER_NULL),
    M(guest_bytes, "guest_bytes", FIELD_U64, NEVER_NULL),
    M(wire_bytes, "wire_bytes", FIELD_U64, NEVER_NULL),
    M(state_bytes, "state_bytes", FIELD_U64, NULL_IF_ZERO),
    M(goodput, "goodput_bytes_per_s", FIELD_U64, NULL_IF_ZERO),
    M(source_cpu_ns, "source_cpu_s", FIELD_S, NEVER_NULL),
};

static const struct field destination_fields[] = {
    D(destination_cpu_ns, "destination_cpu_s", FIELD_S, NEVER_NULL),
    D(resident_growth_bytes, "destination_resident_growth_bytes", FIELD_U64, NEVER_NULL),
};

static const struct field verification_fields[] = {
    M(verified, "verified", FIELD_BOOL, NEVER_NULL),
    M(verified_chunks, "verified_chunks", FIELD_U64, NEVER_NULL),
};

static const struct field limit_fields[] = {
    M(limits.downtime_ns, "downtime_ms", FIELD_MS, NEVER_NULL),
    M(limits.max_time_ns, "max_time_ms", FIELD_MS, NULL_IF_ZERO),
    M(limits.throttle_max, "throttle_max_percent", FIELD_UNSIGNED, NEVER_NULL),
    M(max_bandwidth, "max_bandwidth_bytes_per_s", FIELD_U64, NULL_IF_ZERO),
    M(pin_limit, "rdma_pin_limit_bytes", FIELD_U64, NULL_IF_ZERO),
    M(dscp, "dscp", FIELD_UNSIGNED, NULL_IF_ZERO),
};

static const struct field derived_limit_fields[] = {
    D(on_timeout, "on_timeout", FIELD_TEXT, NEVER_NULL),
    D(operation, "rdma_operation", FIELD_TEXT, NEVER_NULL),
    D(registration, "rdma_registration", FIELD_TEXT, NEVER_NULL),
};

static struct derived derive(const struct measurement *m, uint64_t gap_ns)
{
    bool force = m->limits.on_timeout == ON_TIMEOUT_FORCE;
    struct derived d = {
        .schema = MEASUREMENT_SCHEMA,
        .gap_ns = gap_ns,
        .destination_cpu_ns = m->destination_half.cpu_ns,
        .resident_growth_bytes = m->destination_half.resident_growth_bytes,
    };

    strcpy(d.downtime_clock, m->downtime_clock_shared ? "shared" : "source");
    strcpy(d.on_timeout, force ? "force" : "cancel");
    strcpy(d.operation, transport_operation_name(m->operation));
    strcpy(d.registration, transport_registration_name(m->registration));
    return d;
}

static struct foretold foretell(const struct measurement_prediction *p)
{
    struct foretold f = {.age_ns = p->age_ns, .converges = p->is.converges};

    strcpy(f.basis, p->basis == PREDICTION_REHEARSED ? "predict" : "first-round");
    if (!p->is.converges)
        return f;
    f.total_ns = p->is.total_ns;
    f.downtime_ns = p->is.downtime_ns;
    f.rounds = p->is.rounds;
    f.bytes = p->is.bytes;
    return f;
}

/* An object of its own for a table of fields, or null. */
static bool add_object(cJSON *parent, const char *key, const void *base, const struct field *fields,
                       size_t count)
{
    cJSON *object;

    if (!base)
        return cJSON_AddNullToObject(parent, key);
    object = cJSON_AddObjectToObject(parent, key);
    return object && fields_add(object, base, fields, count);
}

static bool add_nulls(cJSON *object, const struct field *fields, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!cJSON_AddNullToObject(object, fields[i].key))
            return false;
    }
    return true;
}

static bool add_rounds(cJSON *document, const struct measurement *m)
{
    cJSON *rounds = cJSON_AddArrayToObject(document, "rounds");

    for (size_t i = 0; rounds && i < m->round_count; i++) {
        cJSON *round = cJSON_CreateObject();

        if (!cJSON_AddItemToArray(rounds, round)) {
            cJSON_Delete(round);
            return false;
        }
        if (!fields_add(round, &m->rounds[i], round_fields, COUNT(round_fields)))
            return false;
    }
    return rounds;
}

static bool add_limits(cJSON *document, const struct measurement *m, const struct derived *d)
{
    cJSON *limits = cJSON_AddObjectToObject(document, "limits");

    return limits && fields_add(limits, m, limit_fields, COUNT(limit_fields)) &&
           fields_add(limits, d, derived_limit_fields, COUNT(derived_limit_fields));
}

static bool add_hosts(cJSON *document, const struct measurement *m)
{
    const struct host_facts *theirs = m->destination_half.known ? &m->destination_half.host : NULL;
    cJSON *hosts = cJSON_AddObjectToObject(document, "host");

    return hosts && add_object(hosts, "source", &m->source_host, host_fields, host_field_count) &&
           add_object(hosts, "destination", theirs, host_fields, host_field_count);
}

static bool add_destination(cJSON *document, const struct measurement *m, const struct derived *d)
{
    if (!m->destination_half.known)
        return add_nulls(document, destination_fields, COUNT(destination_fields));
    return fields_add(document, d, destination_fields, COUNT(destination_fields));
}

static bool add_times(cJSON *document, const struct measurement *m, const struct derived *d)
{
    const struct destination_measurement *half = &m->destination_half;
    struct measurement known = *m;

    known.downtime.state_load = first_known_ns(m->downtime.state_load, half, half->state_load_ns);
    known.downtime.resume = first_known_ns(m->downtime.resume, half, half->resume_ns);
    return fields_add(document, m, path_fields, COUNT(path_fields)) &&
           add_object(document, "downtime", &known, downtime_fields, COUNT(downtime_fields)) &&
           fields_add(document, d, gap_fields, COUNT(gap_fields));
}

static bool add_predictions(cJSON *document, const struct measurement *m)
{
    struct foretold foretold = foretell(&m->prediction);

    return add_object(document, "prediction", m->prediction.basis ? &foretold : NULL,
                      prediction_fields, COUNT(prediction_fields)) &&
           add_object(document, "switchover", m->predicted_downtime_ns ? m : NULL,
                      switchover_fields, COUNT(switchover_fields));
}

static bool add_cpu(cJSON *document, const struct measurement *m)
{
    const struct cpu_measurement *own = m->source_cpu.known ? &m->source_cpu : NULL;
    const struct cpu_measurement *theirs =
        m->destination_half.known && m->destination_half.cpu.known ? &m->destination_half.cpu
                                                                   : NULL;
    cJSON *cpu = cJSON_AddObjectToObject(document, "cpu");

    return cpu && add_object(cpu, "source", own, cpu_fields, COUNT(cpu_fields)) &&
           add_object(cpu, "destination", theirs, cpu_fields, COUNT(cpu_fields));
}

static bool add_document(cJSON *document, const struct measurement *m, uint64_t gap_ns)
{
    struct derived d = derive(m, gap_ns);

    return fields_add(document, &d, schema_fields, COUNT(schema_fields)) &&
           fields_add(document, m, outcome_fields, COUNT(outcome_fields)) &&
           add_object(document, "guest", m, guest_fields, COUNT(guest_fields)) &&
           add_times(document, m, &d) && add_predictions(document, m) && add_rounds(document, m) &&
           add_object(document, "pages", m, page_fields, COUNT(page_fields)) &&
           fields_add(document, m, volume_fields, COUNT(volume_fields)) &&
           add_destination(document, m, &d) && add_cpu(document, m) &&
           add_object(document, "guest_work", m->guest_work.known ? &m->guest_work : NULL,
                      work_fields, COUNT(work_fields)) &&
           fields_add(document, m, verification_fields, COUNT(verification_fields)) &&
           add_limits(document, m, &d) && add_hosts(document, m) && device_add_report(document, m);
}

char *measurement_to_json(const struct measurement *m, uint64_t gap_ns)
{
    cJSON *document = cJSON_CreateObject();
    char *text = NULL;

    if (document && add_document(document, m, gap_ns))
        text = cJSON_Print(document);
    cJSON_Delete(document);
    return text;
}
