#include "migrate/guest/qemu/qom.h"

#include <errno.h>
#include <stdio.h>

static int ask(struct qmp *q, const char *command, cJSON *arguments, cJSON **out, struct error *err)
{
    struct error refused = {0};
    int ret = qmp_command(q, command, arguments, -1, QMP_TIMEOUT_MS, out, &refused);

    if (ret == 0 || ret == -EREMOTEIO)
        return 0;
    return error_set(err, -ret, "%s", refused.text);
}

int qom_get(struct qmp *q, const char *path, const char *property, cJSON **out, struct error *err)
{
    cJSON *arguments = cJSON_CreateObject();

    cJSON_AddStringToObject(arguments, "path", path);
    cJSON_AddStringToObject(arguments, "property", property);
    return ask(q, "qom-get", arguments, out, err);
}

int qom_get_text(struct qmp *q, const char *path, const char *property, char *out, size_t size,
                 struct error *err)
{
    cJSON *value;
    int ret = qom_get(q, path, property, &value, err);

    snprintf(out, size, "%s", cJSON_IsString(value) ? value->valuestring : "");
    cJSON_Delete(value);
    return ret;
}

int qom_get_bool(struct qmp *q, const char *path, const char *property, bool *out,
                 struct error *err)
{
    cJSON *value;
    int ret = qom_get(q, path, property, &value, err);

    *out = cJSON_IsTrue(value);
    cJSON_Delete(value);
    return ret;
}

int qom_list(struct qmp *q, const char *path, cJSON **out, struct error *err)
{
    cJSON *arguments = cJSON_CreateObject();

    cJSON_AddStringToObject(arguments, "path", path);
    return ask(q, "qom-list", arguments, out, err);
}

const char *json_text(const cJSON *object, const char *name)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));

    return text ? text : "";
}

bool json_true(const cJSON *object, const char *name)
{
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, name));
}

bool json_number(const cJSON *object, const char *name, uint64_t *out)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, name);
    double number = cJSON_IsNumber(value) ? value->valuedouble : -1;

    if (!(number >= 0 && number <= 9007199254740992.0))
        return false;
    *out = (uint64_t)number;
    return (double)*out == number;
}
