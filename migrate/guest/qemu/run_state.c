#include "migrate/guest/qemu/run_state.h"

#include <stdio.h>
#include <string.h>

#include "migrate/guest/qemu/qom.h"

int qemu_run_state(struct qmp *q, char *out, size_t size, struct error *err)
{
    cJSON *answer = NULL;
    int ret = qmp_call(q, &answer, err, "query-status", NULL);

    snprintf(out, size, "%s", json_text(answer, "status"));
    cJSON_Delete(answer);
    return ret;
}

int qemu_is_running(struct qmp *q, bool *running, struct error *err)
{
    cJSON *answer = NULL;
    int ret = qmp_call(q, &answer, err, "query-status", NULL);

    *running = json_true(answer, "running");
    cJSON_Delete(answer);
    return ret;
}

bool qemu_migration_is_over(const char *status)
{
    static const char *const over[] = {"", "none", "completed", "failed", "cancelled"};

    for (size_t i = 0; i < sizeof(over) / sizeof(over[0]); i++)
        if (strcmp(status, over[i]) == 0)
            return true;
    return false;
}

cJSON *qemu_announcement(void)
{
    return cJSON_Parse("{\"initial\": 50, \"max\": 550, \"rounds\": 5, \"step\": 100}");
}
