/* A rehearsal as JSON. */
#include <stdio.h>
#include <stdlib.h>

#include "migrate/rehearsal.h"
#include "transport/base/clock.h"

enum { SCHEMA = 1 };

static void add_or_null(cJSON *json, const char *key, uint64_t value, double unit)
{
    if (value)
        cJSON_AddNumberToObject(json, key, (double)value / unit);
    else
        cJSON_AddNullToObject(json, key);
}

static cJSON *made_with(const struct rehearsal *r)
{
    const struct migration_options *o = &r->options;
    cJSON *json = cJSON_CreateObject();
    bool force = o->limits.on_timeout == ON_TIMEOUT_FORCE;

    cJSON_AddStringToObject(json, "host", o->destination.host);
    cJSON_AddNumberToObject(json, "lanes", o->lanes);
    add_or_null(json, "max_bandwidth_bytes_per_s", o->max_bandwidth, 1);
    cJSON_AddNumberToObject(json, "downtime_ms", ns_to_ms(o->limits.downtime_ns));
    add_or_null(json, "max_time_ms", o->limits.max_time_ns, 1e6);
    cJSON_AddStringToObject(json, "on_timeout", force ? "force" : "cancel");
    cJSON_AddNumberToObject(json, "throttle_max_percent", o->limits.throttle_max);
    return json;
}

static cJSON *path_to_json(const struct rehearsal_path *path)
{
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "transport", path->scheme);
    cJSON_AddBoolToObject(json, "usable", path->usable);
    if (path->usable) {
        cJSON_AddNullToObject(json, "error");
        cJSON_AddItemToObject(json, "path", path_profile_to_json(&path->profile));
        cJSON_AddItemToObject(json, "costs", fixed_costs_to_json(&path->costs));
        cJSON_AddItemToObject(json, "prediction", prediction_to_json(&path->prediction));
    } else {
        cJSON_AddStringToObject(json, "error", path->error);
        cJSON_AddNullToObject(json, "path");
        cJSON_AddNullToObject(json, "costs");
        cJSON_AddNullToObject(json, "prediction");
    }
    return json;
}

cJSON *rehearsal_to_json(const struct rehearsal *r)
{
    cJSON *json = cJSON_CreateObject(), *paths;

    cJSON_AddNumberToObject(json, "schema", SCHEMA);
    cJSON_AddItemToObject(json, "made_with", made_with(r));
    cJSON_AddItemToObject(json, "guest", dirty_profile_to_json(&r->guest));
    paths = cJSON_AddArrayToObject(json, "paths");
    for (unsigned i = 0; i < r->path_count; i++)
        cJSON_AddItemToArray(paths, path_to_json(&r->paths[i]));
    return json;
}
