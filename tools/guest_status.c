#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/guest_state.h"

struct guest *guest_process_guest(struct guest_process *p)
{
    struct incoming_status status;

    if (p->guest)
        return p->guest;
    if (!p->incoming)
        return NULL;
    incoming_get_status(p->incoming, &status);
    return status.phase == INCOMING_STARTED ? incoming_guest(p->incoming) : NULL;
}

cJSON *guest_workload_json(struct guest *guest)
{
    struct guest_workload account = {0};
    cJSON *json;

    if (!guest || !guest->ops->workload)
        return NULL;
    guest->ops->workload(guest, &account);
    json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "pages_written", (double)account.pages_written);
    cJSON_AddNumberToObject(json, "rate", (double)account.rate);
    cJSON_AddNumberToObject(json, "moves", (double)account.moves);
    cJSON_AddNumberToObject(json, "gap_ns", (double)account.gap_ns);
    cJSON_AddStringToObject(json, "gap_clock", account.gap_clock);
    cJSON_AddNumberToObject(json, "checks", (double)account.checks);
    cJSON_AddNumberToObject(json, "check_moves", (double)account.check_moves);
    cJSON_AddNumberToObject(json, "checked_pages", (double)account.checked_pages);
    cJSON_AddNumberToObject(json, "bad_pages", (double)account.bad_pages);
    return json;
}

static cJSON *facts_json(const struct guest_description *facts)
{
    cJSON *json;

    if (!facts->kind[0])
        return cJSON_CreateNull();
    json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "kind", facts->kind);
    cJSON_AddStringToObject(json, "accel", facts->accel);
    cJSON_AddNumberToObject(json, "memory_bytes", (double)facts->memory_bytes);
    cJSON_AddNumberToObject(json, "vcpus", facts->vcpus);
    return json;
}

static cJSON *or_null(cJSON *json)
{
    return json ? json : cJSON_CreateNull();
}

static void add_incoming(cJSON *json, const struct incoming_status *status)
{
    cJSON *incoming = cJSON_AddObjectToObject(json, "incoming");

    cJSON_AddStringToObject(incoming, "phase", incoming_phase_name(status->phase));
    cJSON_AddNumberToObject(incoming, "elapsed_ns", (double)status->elapsed_ns);
    cJSON_AddBoolToObject(incoming, "source_silent", status->source_silent);
}

static void add_last(cJSON *json, const struct guest_process *p)
{
    cJSON *last;

    if (!p->last_message[0]) {
        cJSON_AddNullToObject(json, "last_migration");
        return;
    }
    last = cJSON_AddObjectToObject(json, "last_migration");
    cJSON_AddNumberToObject(last, "exit_code", p->last_exit_code);
    cJSON_AddStringToObject(last, "message", p->last_message);
}

static const char *incoming_state(const struct incoming_status *status)
{
    switch (status->phase) {
    case INCOMING_PREPARED:
        return status->source_silent ? "in-doubt" : "prepared";
    case INCOMING_STARTED:
        return "running";
    default:
        return "receiving";
    }
}

static const char *migration_state(const struct migration_status *status)
{
    switch (status->phase) {
    case MIGRATION_IN_DOUBT:
        return "in-doubt";
    case MIGRATION_COMPLETED:
        return "moved";
    case MIGRATION_FAILED:
        return "running";
    case MIGRATION_STUCK:
        return "stuck";
    default:
        return "migrating";
    }
}

static const char *idle_state(struct guest_process *p)
{
    if (p->ending)
        return "ending";
    if (!p->guest)
        return "starting";
    if (p->stuck)
        return "stuck";
    return p->guest->ops->paused(p->guest) ? "paused" : "running";
}

/* The state in one word, with the members that go with it. */
static void add_state(cJSON *json, struct guest_process *p)
{
    struct incoming_status incoming;
    struct migration_status migration;

    if (p->incoming) {
        incoming_get_status(p->incoming, &incoming);
        cJSON_AddStringToObject(json, "state", incoming_state(&incoming));
        cJSON_AddStringToObject(json, "session", incoming.session);
        cJSON_AddStringToObject(json, "message", incoming.message);
        add_incoming(json, &incoming);
    } else if (p->migration) {
        migration_get_status(p->migration, &migration);
        cJSON_AddStringToObject(json, "state", migration_state(&migration));
        cJSON_AddStringToObject(json, "session", migration.session);
        cJSON_AddStringToObject(json, "message", migration.message);
        cJSON_AddItemToObject(json, "migration", control_progress_to_json(&migration));
    } else {
        cJSON_AddStringToObject(json, "state", idle_state(p));
        cJSON_AddStringToObject(json, "session", "");
        cJSON_AddStringToObject(json, "message", "");
    }
}

static const char *monitor_of(struct guest *guest)
{
    return guest && guest->ops->monitor ? guest->ops->monitor(guest)->path : "";
}

cJSON *guest_process_status(struct guest_process *p)
{
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "name", p->claim.name);
    cJSON_AddNumberToObject(json, "pid", getpid());
    add_state(json, p);
    cJSON_AddStringToObject(json, "monitor", monitor_of(guest_process_guest(p)));
    cJSON_AddItemToObject(json, "guest", facts_json(&p->facts));
    cJSON_AddItemToObject(json, "workload", or_null(guest_workload_json(guest_process_guest(p))));
    add_last(json, p);
    return json;
}
