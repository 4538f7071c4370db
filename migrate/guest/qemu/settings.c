/* QEMU's migration settings: what saving and loading device state needs, and the way back. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/qemu/device_state.h"
#include "transport/base/log.h"

struct qemu_settings {
    cJSON *commands; /* put back what was there, in this order */
};

/* What must be on; every other capability changes the stream and must be off. */
struct capability {
    const char *name, *since;
    bool incoming_only;
};

static const struct capability needed[] = {
    {"x-ignore-shared", "4.0", false},
    {"events", "2.4", false},
    {"late-block-activate", "3.0", true},
};

/* A NULL text means the number. Those with `since` must be there. */
struct parameter {
    const char *name, *text;
    double number;
    const char *since;
};

static const struct parameter parameters[] = {
    {"max-bandwidth", NULL, 0x1p40, "2.8"},
    {"downtime-limit", NULL, 2000000, "2.8"},
    {"announce-rounds", NULL, 0, "4.0"},
    {"tls-creds", "", 0, NULL},
    {"mode", "normal", 0, NULL},
};

#define LARGEST_NUMBER 0x1p53 /* beyond, cJSON's doubles would be no integers any more */

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static bool is_needed(const char *name, bool incoming)
{
    for (size_t i = 0; i < LENGTH(needed); i++)
        if (strcmp(name, needed[i].name) == 0)
            return incoming || !needed[i].incoming_only;
    return false;
}

static void add_capability(cJSON *list, const char *name, bool on)
{
    cJSON *item = cJSON_CreateObject();

    cJSON_AddStringToObject(item, "capability", name);
    cJSON_AddBoolToObject(item, "state", on);
    cJSON_AddItemToArray(list, item);
}

static const cJSON *find_capability(const cJSON *list, const char *name)
{
    const cJSON *item;

    cJSON_ArrayForEach(item, list)
    {
        const char *text =
            cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "capability"));
        if (text && strcmp(text, name) == 0)
            return item;
    }
    return NULL;
}

static int lacks(const char *what, const char *name, const char *since, struct error *err)
{
    return error_set(err, EREMOTEIO,
                     "this QEMU has no migration %s '%s': it takes QEMU %s or newer", what, name,
                     since);
}

static int check_capabilities(const cJSON *there, bool incoming, struct error *err)
{
    for (size_t i = 0; i < LENGTH(needed); i++)
        if (is_needed(needed[i].name, incoming) && !find_capability(there, needed[i].name))
            return lacks("capability", needed[i].name, needed[i].since, err);
    return 0;
}

/* What differs from what is wanted: into `change` as it shall be, into `undo` as it is. */
static void compare_capabilities(const cJSON *there, bool incoming, cJSON *change, cJSON *undo)
{
    const cJSON *item;

    cJSON_ArrayForEach(item, there)
    {
        const char *name =
            cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "capability"));
        bool on = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(item, "state"));
        if (!name || on == is_needed(name, incoming))
            continue;
        add_capability(change, name, !on);
        add_capability(undo, name, on);
    }
}

static bool parameter_is(const struct parameter *p, const cJSON *value)
{
    const char *text = cJSON_GetStringValue(value);

    return p->text ? text && strcmp(text, p->text) == 0
                   : cJSON_IsNumber(value) && value->valuedouble == p->number;
}

static cJSON *copy_value(const cJSON *value)
{
    if (cJSON_IsNumber(value) && value->valuedouble > LARGEST_NUMBER)
        return cJSON_CreateNumber(LARGEST_NUMBER);
    return cJSON_Duplicate(value, true);
}

static int compare_parameters(const cJSON *there, cJSON *change, cJSON *undo, struct error *err)
{
    for (size_t i = 0; i < LENGTH(parameters); i++) {
        const struct parameter *p = &parameters[i];
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(there, p->name);
        if (!value && p->since)
            return lacks("parameter", p->name, p->since, err);
        if (!value || parameter_is(p, value))
            continue;
        if (p->text)
            cJSON_AddStringToObject(change, p->name, p->text);
        else
            cJSON_AddNumberToObject(change, p->name, p->number);
        cJSON_AddItemToObject(undo, p->name, copy_value(value));
    }
    return 0;
}

static void keep_command(struct qemu_settings *s, const char *name, cJSON *arguments)
{
    cJSON *command = cJSON_CreateObject();

    cJSON_AddStringToObject(command, "execute", name);
    cJSON_AddItemToObject(command, "arguments", arguments);
    cJSON_AddItemToArray(s->commands, command);
}

/* Sends `change`, and keeps `undo` when there is something to undo. Takes both. */
static int apply(struct qmp *q, struct qemu_settings *s, const char *command, cJSON *change,
                 cJSON *undo, struct error *err)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(change, "capabilities");
    bool nothing = cJSON_GetArraySize(list ? list : change) == 0;
    int ret;

    if (nothing) {
        cJSON_Delete(change);
        cJSON_Delete(undo);
        return 0;
    }
    ret = qmp_command(q, command, change, -1, QMP_TIMEOUT_MS, NULL, err);
    if (ret == 0)
        keep_command(s, command, undo);
    else
        cJSON_Delete(undo);
    return ret;
}

static int apply_capabilities(struct qmp *q, bool incoming, struct qemu_settings *s,
                              struct error *err)
{
    cJSON *there = NULL, *change, *undo;
    int ret = qmp_call(q, &there, err, "query-migrate-capabilities", NULL);

    if (ret == 0)
        ret = check_capabilities(there, incoming, err);
    if (ret == 0) {
        change = cJSON_CreateObject();
        undo = cJSON_CreateObject();
        compare_capabilities(there, incoming, cJSON_AddArrayToObject(change, "capabilities"),
                             cJSON_AddArrayToObject(undo, "capabilities"));
        ret = apply(q, s, "migrate-set-capabilities", change, undo, err);
    }
    cJSON_Delete(there);
    return ret;
}

static int apply_parameters(struct qmp *q, struct qemu_settings *s, struct error *err)
{
    cJSON *there = NULL, *change, *undo;
    int ret = qmp_call(q, &there, err, "query-migrate-parameters", NULL);

    if (ret < 0)
        return ret;
    change = cJSON_CreateObject();
    undo = cJSON_CreateObject();
    ret = compare_parameters(there, change, undo, err);
    cJSON_Delete(there);
    if (ret == 0)
        return apply(q, s, "migrate-set-parameters", change, undo, err);
    cJSON_Delete(change);
    cJSON_Delete(undo);
    return ret;
}

int qemu_settings_apply(struct qmp *q, bool incoming, struct qemu_settings **out, struct error *err)
{
    struct qemu_settings *s = calloc(1, sizeof(*s));
    int ret;

    if (!s)
        return error_set_errno(err, ENOMEM, "cannot keep QEMU's migration settings");
    s->commands = cJSON_CreateArray();
    ret = apply_capabilities(q, incoming, s, err);
    if (ret == 0)
        ret = apply_parameters(q, s, err);
    if (ret < 0) {
        qemu_settings_restore(q, s);
        return ret;
    }
    *out = s;
    return 0;
}

void qemu_settings_replay(struct qmp *q, const cJSON *commands)
{
    const cJSON *item;

    if (!q || qmp_lost(q)) /* a QEMU that is about to end has no need of them */
        return;
    cJSON_ArrayForEach(item, commands)
    {
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "execute"));
        cJSON *arguments =
            cJSON_Duplicate(cJSON_GetObjectItemCaseSensitive(item, "arguments"), true);
        struct error err = {0};
        if (!name)
            cJSON_Delete(arguments);
        else if (qmp_command(q, name, arguments, -1, QMP_TIMEOUT_MS, NULL, &err) < 0)
            log_line(LOG_WARNING, "cannot put a setting of QEMU's migration back: %s", err.text);
    }
}

cJSON *qemu_settings_commands(const struct qemu_settings *s)
{
    return cJSON_Duplicate(s->commands, true);
}

void qemu_settings_restore(struct qmp *q, struct qemu_settings *s)
{
    if (!s)
        return;
    qemu_settings_replay(q, s->commands);
    cJSON_Delete(s->commands);
    free(s);
}
