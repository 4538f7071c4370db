#include "tools/control_protocol.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/path_options.h"
#include "transport/base/clock.h"
#include "transport/transport.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define LARGEST      CONTROL_MAX_NUMBER

/* One member of a request: where it goes and what it may be. */
enum member_type {
    MEMBER_TEXT,
    MEMBER_FILTER,
    MEMBER_URI,
    MEMBER_NUMBER,
    MEMBER_BOOLEAN,
    MEMBER_CHOICE
};

struct member {
    const char *key;
    enum member_type type;
    size_t offset, size;
    uint64_t low, high;
    const char *const *choices;
    bool required;
};

#define FIELD(path)                                                                                \
    .offset = offsetof(struct control_request, path),                                              \
    .size = sizeof(((struct control_request *)0)->path)

struct request_form {
    const char *command;
    const struct member *members;
    size_t count;
};

static const char *const resolve_choices[] = {"resume", "destroy", NULL};

enum { PREDICT_ONLY = 2 };

/* `predict` takes all of them, `migrate` all but the first PREDICT_ONLY. */
static const struct member predict_members[] = {
    {"sample_ns", MEMBER_NUMBER, FIELD(rehearsal.sample_ns),
     .high = CONTROL_MAX_SAMPLE_MS * NS_PER_MS},
    {"only", MEMBER_BOOLEAN, FIELD(rehearsal.only)},
    {"uri", MEMBER_URI, FIELD(migrate.destination), .required = true},
    {"downtime_limit_ns", MEMBER_NUMBER, FIELD(migrate.limits.downtime_ns), .low = 1,
     .high = LARGEST},
    {"max_time_ns", MEMBER_NUMBER, FIELD(migrate.limits.max_time_ns), .high = LARGEST},
    {"on_timeout", MEMBER_CHOICE, FIELD(migrate.limits.on_timeout),
     .choices = path_timeout_choices},
    {"throttle_max", MEMBER_NUMBER, FIELD(migrate.limits.throttle_max), .high = 99},
    {"max_bandwidth", MEMBER_NUMBER, FIELD(migrate.max_bandwidth), .high = LARGEST},
    {"lanes", MEMBER_NUMBER, FIELD(migrate.lanes), .low = 1, .high = TRANSPORT_MAX_LANES},
    {"verify", MEMBER_BOOLEAN, FIELD(migrate.verify)},
    {"rdma_operation", MEMBER_CHOICE, FIELD(migrate.operation), .choices = path_operation_choices},
    {"rdma_registration", MEMBER_CHOICE, FIELD(migrate.registration),
     .choices = path_registration_choices},
    {"rdma_pin_limit", MEMBER_NUMBER, FIELD(migrate.pin_limit), .high = LARGEST},
    {"dscp", MEMBER_NUMBER, FIELD(migrate.dscp), .high = 63},
    {"tracker", MEMBER_TEXT, FIELD(migrate.tracker)},
    {"filter", MEMBER_FILTER, FIELD(migrate.filter)},
};

static const struct member resolve_members[] = {
    {"action", MEMBER_CHOICE, FIELD(action), .choices = resolve_choices, .required = true},
    {"force", MEMBER_BOOLEAN, FIELD(force)},
};

static const struct member workload_members[] = {
    {"check", MEMBER_BOOLEAN, FIELD(self_check)},
};

static const struct member check_members[] = {
    {"uri", MEMBER_URI, FIELD(migrate.destination), .required = true},
    {"lanes", MEMBER_NUMBER, FIELD(migrate.lanes), .low = 1, .high = TRANSPORT_MAX_LANES},
    {"rdma_operation", MEMBER_CHOICE, FIELD(migrate.operation), .choices = path_operation_choices},
    {"rdma_registration", MEMBER_CHOICE, FIELD(migrate.registration),
     .choices = path_registration_choices},
    {"rdma_pin_limit", MEMBER_NUMBER, FIELD(migrate.pin_limit), .high = LARGEST},
};

static const struct request_form forms[CONTROL_COMMANDS] = {
    [CONTROL_STATUS] = {"status"},
    [CONTROL_MIGRATE] = {"migrate", predict_members + PREDICT_ONLY,
                         COUNT(predict_members) - PREDICT_ONLY},
    [CONTROL_CANCEL] = {"cancel"},
    [CONTROL_RESOLVE] = {"resolve", resolve_members, COUNT(resolve_members)},
    [CONTROL_WORKLOAD] = {"workload", workload_members, COUNT(workload_members)},
    [CONTROL_CONSOLE] = {"console"},
    [CONTROL_CHECK] = {"check", check_members, COUNT(check_members)},
    [CONTROL_PREDICT] = {"predict", predict_members, COUNT(predict_members)},
    [CONTROL_QUIT] = {"quit"},
};

static const char *const migration_phases[] = {
    [MIGRATION_CONNECTING] = "connecting", [MIGRATION_PRECOPY] = "precopy",
    [MIGRATION_SWITCHOVER] = "switchover", [MIGRATION_COMMITTING] = "committing",
    [MIGRATION_IN_DOUBT] = "in-doubt",     [MIGRATION_COMPLETED] = "completed",
    [MIGRATION_FAILED] = "failed",         [MIGRATION_STUCK] = "stuck",
};

static const char *const incoming_phases[] = {
    [INCOMING_GREETING] = "greeting",   [INCOMING_QUERY] = "query",
    [INCOMING_RECEIVING] = "receiving", [INCOMING_PREPARED] = "prepared",
    [INCOMING_STARTED] = "started",     [INCOMING_ABORTED] = "aborted",
};

const char *migration_phase_name(enum migration_phase phase)
{
    return migration_phases[phase];
}

const char *incoming_phase_name(enum incoming_phase phase)
{
    return incoming_phases[phase];
}

void migration_options_defaults(struct migration_options *out)
{
    *out = (struct migration_options){
        .limits = {.downtime_ns = MIGRATION_DEFAULT_DOWNTIME_MS * NS_PER_MS,
                   .on_timeout = ON_TIMEOUT_CANCEL},
        .lanes = MIGRATION_DEFAULT_LANES,
    };
}

static int take_text(const struct member *member, const cJSON *value, void *field,
                     struct error *err)
{
    struct cli_option text = {.size = member->size};

    if (!cJSON_IsString(value))
        return error_set(err, EINVAL, "'%s' must be a text", member->key);
    if (member->type == MEMBER_URI)
        return cli_destination(value->valuestring, field, err);
    if (value->valuestring[0] == '\0') {
        *(char *)field = '\0';
        return 0;
    }
    if (member->type == MEMBER_FILTER)
        return cli_filter(&text, value->valuestring, field, err);
    return cli_text(&text, value->valuestring, field, err);
}

static int take_number(const struct member *member, const cJSON *value, void *field,
                       struct error *err)
{
    double number = value->valuedouble;
    uint64_t whole;

    if (!cJSON_IsNumber(value) ||
        !(number >= (double)member->low && number <= (double)member->high) ||
        number != (double)(uint64_t)number)
        return error_set(err, EINVAL, "'%s' must be a whole number from %llu to %llu", member->key,
                         (unsigned long long)member->low, (unsigned long long)member->high);
    whole = (uint64_t)number;
    if (member->size == sizeof(whole))
        *(uint64_t *)field = whole;
    else
        *(unsigned *)field = (unsigned)whole;
    return 0;
}

static int take_choice(const struct member *member, const cJSON *value, void *field,
                       struct error *err)
{
    for (unsigned i = 0; cJSON_IsString(value) && member->choices[i]; i++)
        if (strcmp(value->valuestring, member->choices[i]) == 0) {
            *(unsigned *)field = i;
            return 0;
        }
    return error_set(err, EINVAL, "'%s' must be \"%s\" or \"%s\"", member->key, member->choices[0],
                     member->choices[1]);
}

static int take_member(const struct member *member, const cJSON *value, struct control_request *out,
                       struct error *err)
{
    void *field = (char *)out + member->offset;

    switch (member->type) {
    case MEMBER_NUMBER:
        return take_number(member, value, field, err);
    case MEMBER_CHOICE:
        return take_choice(member, value, field, err);
    case MEMBER_BOOLEAN:
        if (!cJSON_IsBool(value))
            return error_set(err, EINVAL, "'%s' must be true or false", member->key);
        *(bool *)field = cJSON_IsTrue(value);
        return 0;
    default:
        return take_text(member, value, field, err);
    }
}

/* The index of a member in its form, or -1. */
static int find_member(const struct request_form *form, const char *key)
{
    for (size_t i = 0; i < form->count; i++)
        if (strcmp(form->members[i].key, key) == 0)
            return (int)i;
    return -1;
}

static int take_members(const struct request_form *form, const cJSON *json,
                        struct control_request *out, struct error *err)
{
    const cJSON *value;
    uint32_t seen = 0;
    int rc;

    cJSON_ArrayForEach(value, json)
    {
        int i = find_member(form, value->string);

        if (strcmp(value->string, "command") == 0)
            continue;
        if (i < 0)
            return error_set(err, EINVAL, "command '%s' has no member '%.40s'", form->command,
                             value->string);
        if (seen & 1u << i)
            return error_set(err, EINVAL, "member '%s' is there twice", form->members[i].key);
        seen |= 1u << i;
        rc = take_member(&form->members[i], value, out, err);
        if (rc < 0)
            return error_prefix(err, "%s", form->members[i].key);
    }
    for (size_t i = 0; i < form->count; i++)
        if (form->members[i].required && !(seen & 1u << i))
            return error_set(err, EINVAL, "command '%s' needs the member '%s'", form->command,
                             form->members[i].key);
    return 0;
}

static int find_command(const cJSON *json, enum control_command *out, struct error *err)
{
    const cJSON *command = cJSON_GetObjectItemCaseSensitive(json, "command");

    if (!cJSON_IsString(command))
        return error_set(err, EINVAL, "a request needs the text member 'command'");
    for (unsigned i = 0; i < CONTROL_COMMANDS; i++)
        if (strcmp(forms[i].command, command->valuestring) == 0) {
            *out = i;
            return 0;
        }
    return error_set(err, EINVAL, "there is no command '%.40s'", command->valuestring);
}

/* One object and nothing behind it but white space. */
static cJSON *parse_object(const char *line, size_t size)
{
    const char *end = NULL;
    cJSON *json = cJSON_ParseWithLengthOpts(line, size, &end, false);

    while (json && end < line + size && strchr(" \t\r", *end) && *end)
        end++;
    if (json && (end != line + size || !cJSON_IsObject(json))) {
        cJSON_Delete(json);
        return NULL;
    }
    return json;
}

int control_request_parse(const char *line, size_t size, struct control_request *out,
                          struct error *err)
{
    cJSON *json;
    int rc;

    *out = (struct control_request){0};
    migration_options_defaults(&out->migrate);
    if (size > CONTROL_MAX_LINE)
        return error_set(err, EINVAL, "a request may have at most %d bytes", CONTROL_MAX_LINE);
    json = parse_object(line, size);
    if (!json)
        return error_set(err, EINVAL, "a request is one JSON object on one line; this is none");
    rc = find_command(json, &out->command, err);
    if (rc == 0)
        rc = take_members(&forms[out->command], json, out, err);
    cJSON_Delete(json);
    return rc < 0 ? -EINVAL : 0;
}

/* cJSON prints 15 digits of a number; ours may have 16. */
static cJSON *number_to_json(const struct member *member, const void *field)
{
    unsigned long long value =
        member->size == sizeof(uint64_t) ? *(const uint64_t *)field : *(const unsigned *)field;
    char text[24];

    snprintf(text, sizeof(text), "%llu", value);
    return cJSON_CreateRaw(text);
}

static cJSON *member_to_json(const struct member *member, const struct control_request *request)
{
    const void *field = (const char *)request + member->offset;
    char uri[sizeof(struct address) + 16];

    switch (member->type) {
    case MEMBER_URI:
        return cJSON_CreateString(address_format(field, uri, sizeof(uri)));
    case MEMBER_NUMBER:
        return number_to_json(member, field);
    case MEMBER_BOOLEAN:
        return cJSON_CreateBool(*(const bool *)field);
    case MEMBER_CHOICE:
        return cJSON_CreateString(member->choices[*(const unsigned *)field]);
    default:
        return cJSON_CreateString(field);
    }
}

char *control_request_format(const struct control_request *request)
{
    const struct request_form *form = &forms[request->command];
    cJSON *json = cJSON_CreateObject();
    char *text;

    cJSON_AddStringToObject(json, "command", form->command);
    for (size_t i = 0; i < form->count; i++)
        cJSON_AddItemToObject(json, form->members[i].key,
                              member_to_json(&form->members[i], request));
    text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}

int control_reply_parse(const char *line, size_t size, cJSON **out, struct error *err)
{
    cJSON *json = parse_object(line, size);
    const cJSON *error;

    if (!json)
        return error_set(err, EPROTO,
                         "the guest's process answered with something that is no JSON object");
    error = cJSON_GetObjectItemCaseSensitive(json, "error");
    if (cJSON_IsString(error)) {
        bool again = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(json, "retry"));
        int rc = error_set(err, again ? EAGAIN : EREMOTEIO, "%s", error->valuestring);

        cJSON_Delete(json);
        return rc;
    }
    *out = json;
    return 0;
}

const char *control_text(const cJSON *json, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);

    return cJSON_IsString(item) ? item->valuestring : "";
}

uint64_t control_number(const cJSON *json, const char *key, uint64_t otherwise)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);

    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= (double)LARGEST))
        return otherwise;
    return (uint64_t)item->valuedouble;
}

static void add_eta(cJSON *json, uint64_t eta_ns)
{
    if (eta_ns == UINT64_MAX)
        cJSON_AddStringToObject(json, "eta_ns", "never");
    else if (eta_ns == 0)
        cJSON_AddNullToObject(json, "eta_ns");
    else
        cJSON_AddNumberToObject(json, "eta_ns", (double)eta_ns);
}

/* The whole numbers of a progress object, read and written by the same table. */
static const struct {
    const char *key;
    size_t offset;
} progress_numbers[] = {
    {"elapsed_ns", offsetof(struct migration_status, elapsed_ns)},
    {"round_bytes", offsetof(struct migration_status, round_bytes)},
    {"round_bytes_done", offsetof(struct migration_status, round_bytes_done)},
    {"guest_bytes", offsetof(struct migration_status, guest_bytes)},
    {"wire_bytes", offsetof(struct migration_status, wire_bytes)},
    {"bandwidth", offsetof(struct migration_status, bandwidth)},
    {"dirty_rate", offsetof(struct migration_status, dirty_rate)},
    {"predicted_downtime_ns", offsetof(struct migration_status, predicted_downtime_ns)},
};

cJSON *control_progress_to_json(const struct migration_status *status)
{
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "phase", migration_phase_name(status->phase));
    cJSON_AddStringToObject(json, "session", status->session);
    cJSON_AddNumberToObject(json, "round", status->round);
    cJSON_AddNumberToObject(json, "throttle", status->throttle);
    for (size_t i = 0; i < COUNT(progress_numbers); i++) {
        const uint64_t *field = (const void *)((const char *)status + progress_numbers[i].offset);

        cJSON_AddNumberToObject(json, progress_numbers[i].key, (double)*field);
    }
    add_eta(json, status->eta_ns);
    cJSON_AddStringToObject(json, "message", status->message);
    return json;
}

static int find_phase(const char *name, enum migration_phase *out, struct error *err)
{
    for (unsigned i = 0; i < COUNT(migration_phases); i++)
        if (strcmp(migration_phases[i], name) == 0) {
            *out = i;
            return 0;
        }
    return error_set(err, EPROTO,
                     "the guest's process told of a phase '%.40s' that this program does not know",
                     name);
}

int control_progress_from_json(const cJSON *json, struct migration_status *out, struct error *err)
{
    int rc;

    *out = (struct migration_status){0};
    rc = find_phase(control_text(json, "phase"), &out->phase, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < COUNT(progress_numbers); i++) {
        uint64_t *field = (void *)((char *)out + progress_numbers[i].offset);

        *field = control_number(json, progress_numbers[i].key, 0);
    }
    out->round = (unsigned)control_number(json, "round", 0);
    out->throttle = (unsigned)control_number(json, "throttle", 0);
    out->eta_ns = strcmp(control_text(json, "eta_ns"), "never") == 0
                      ? UINT64_MAX
                      : control_number(json, "eta_ns", 0);
    snprintf(out->session, sizeof(out->session), "%s", control_text(json, "session"));
    snprintf(out->message, sizeof(out->message), "%s", control_text(json, "message"));
    return 0;
}
