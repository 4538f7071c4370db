#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>

#include "migrate/measurement_fields.h"
#include "migrate/prediction.h"

#define P(member, key, kind) FIELD(struct prediction, member, key, kind, NEVER_NULL)
#define PATH(member, key)    FIELD(struct path_profile, member, key, FIELD_U64, NEVER_NULL)
#define COST(member, key)    FIELD(struct fixed_costs, member, key, FIELD_U64, NEVER_NULL)

/* clang-format off */
/* Null in a prediction that does not converge. */
static const struct field end_fields[] = {
    P(total_ns.expected, "total_ms", FIELD_MS),
    P(total_ns.low, "total_low_ms", FIELD_MS),
    P(total_ns.high, "total_high_ms", FIELD_MS),
    P(downtime_ns.expected, "downtime_ms", FIELD_MS),
    P(downtime_ns.low, "downtime_low_ms", FIELD_MS),
    P(downtime_ns.high, "downtime_high_ms", FIELD_MS),
    P(rounds, "rounds", FIELD_UNSIGNED),
    P(bytes, "bytes", FIELD_U64),
    P(throttle, "throttle_percent", FIELD_UNSIGNED),
    P(forced, "forced", FIELD_BOOL),
};

static const struct field needed_fields[] = {
    FIELD(struct prediction, needed_bandwidth, "needed_bandwidth_bytes_per_s", FIELD_U64,
          NULL_IF_ZERO),
    FIELD(struct prediction, needed_throttle, "needed_throttle_percent", FIELD_UNSIGNED,
          NULL_IF_ZERO),
    P(why, "why", FIELD_TEXT),
};

static const struct field path_fields[] = {
    PATH(bandwidth, "bandwidth_bytes_per_s"),
    PATH(zero_bandwidth, "zero_bandwidth_bytes_per_s"),
    PATH(setup_ns, "setup_ns"),
    PATH(round_ns, "round_ns"),
    PATH(round_trip_ns, "round_trip_ns"),
};

/* A path that was written down without one of them is taken as well. */
static const struct field optional_fields[] = {
    PATH(tracked_ns, "tracked_ns"),
    PATH(first_ns, "first_ns"),
    PATH(again_bandwidth, "again_bandwidth_bytes_per_s"),
    FIELD(struct path_profile, lanes, "lanes", FIELD_UNSIGNED, NEVER_NULL),
};

static const struct field cost_fields[] = {
    FIELD(struct fixed_costs, samples, "samples", FIELD_UNSIGNED, NEVER_NULL),
    COST(setup_ns, "setup_ns"),
    COST(downtime_ns, "downtime_ns"),
    COST(downtime_spread_ns, "downtime_spread_ns"),
    COST(finish_ns, "finish_ns"),
};

/* As above. */
static const struct field state_field[] = {COST(state_bytes, "state_bytes")};
/* clang-format on */

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static cJSON *or_nothing(cJSON *json, bool complete)
{
    if (complete)
        return json;
    cJSON_Delete(json);
    return NULL;
}

static bool add_nulls(cJSON *json, const struct field *fields, size_t count)
{
    bool complete = true;

    for (size_t i = 0; i < count; i++)
        complete = complete && cJSON_AddNullToObject(json, fields[i].key);
    return complete;
}

cJSON *prediction_to_json(const struct prediction *p)
{
    cJSON *json = cJSON_CreateObject();
    bool complete = json && cJSON_AddBoolToObject(json, "converges", p->converges);

    if (p->converges)
        complete = complete && fields_add(json, p, end_fields, COUNT(end_fields));
    else
        complete = complete && add_nulls(json, end_fields, COUNT(end_fields));
    complete = complete && fields_add(json, p, needed_fields, COUNT(needed_fields));
    return or_nothing(json, complete);
}

cJSON *path_profile_to_json(const struct path_profile *p)
{
    cJSON *json = cJSON_CreateObject();
    bool complete = json && fields_add(json, p, path_fields, COUNT(path_fields)) &&
                    fields_add(json, p, optional_fields, COUNT(optional_fields)) &&
                    cJSON_AddNumberToObject(json, "bandwidth_spread", p->bandwidth_spread) &&
                    cJSON_AddNumberToObject(json, "guest_share", p->guest_share);

    return or_nothing(json, complete);
}

cJSON *fixed_costs_to_json(const struct fixed_costs *c)
{
    cJSON *json = cJSON_CreateObject();
    bool complete = json && fields_add(json, c, cost_fields, COUNT(cost_fields)) &&
                    fields_add(json, c, state_field, 1) &&
                    cJSON_AddNumberToObject(json, "bandwidth_ratio", c->bandwidth_ratio);

    return or_nothing(json, complete);
}

/* What is not a number fails the comparison, NaN included. */
static int read_ratio(const cJSON *json, const char *key, double low, double high, double *out,
                      struct error *err)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    double value = cJSON_IsNumber(item) ? item->valuedouble : NAN;

    if (!(value >= low && value <= high))
        return error_set(err, EPROTO, "%s is no number from %g to %g", key, low, high);
    *out = value;
    return 0;
}

static int check_object(const cJSON *json, const char *what, struct error *err)
{
    if (cJSON_IsObject(json))
        return 0;
    return error_set(err, EPROTO, "%s is no object", what);
}

int path_profile_from_json(const cJSON *json, struct path_profile *out, struct error *err)
{
    int result = check_object(json, "the path", err);

    *out = (struct path_profile){0};
    if (!result)
        result = fields_read(json, out, path_fields, COUNT(path_fields), err);
    out->tracked_ns = out->setup_ns; /* where nothing tells them apart */
    for (size_t i = 0; !result && i < COUNT(optional_fields); i++)
        if (cJSON_HasObjectItem(json, optional_fields[i].key))
            result = fields_read(json, out, &optional_fields[i], 1, err);
    if (!result)
        result = read_ratio(json, "bandwidth_spread", 0, 10, &out->bandwidth_spread, err);
    if (!result)
        result = read_ratio(json, "guest_share", 0, 1, &out->guest_share, err);
    if (!result && out->bandwidth == 0)
        result = error_set(err, EPROTO, "bandwidth_bytes_per_s is 0");
    return result;
}

int fixed_costs_from_json(const cJSON *json, struct fixed_costs *out, struct error *err)
{
    int result = check_object(json, "the costs", err);

    *out = (struct fixed_costs){0};
    if (!result)
        result = fields_read(json, out, cost_fields, COUNT(cost_fields), err);
    out->state_bytes = policy_first_state_bytes(1);
    if (!result && cJSON_HasObjectItem(json, state_field[0].key))
        result = fields_read(json, out, state_field, 1, err);
    if (!result)
        result = read_ratio(json, "bandwidth_ratio", 0.001, 1000, &out->bandwidth_ratio, err);
    return result;
}
