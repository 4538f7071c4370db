#include "migrate/guest/qemu/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/guest/qemu/tracking.h"
#include "transport/base/clock.h"

/* All of it on one line: reasons are lines. */
static int refused(const struct reasons *reasons, const char *what, struct error *err)
{
    char text[ERROR_TEXT_SIZE];

    snprintf(text, sizeof(text), "%s", reasons->text ? reasons->text : "no memory");
    for (char *c = text; *c; c++)
        if (*c == '\n')
            *c = ';';
    return error_set(err, EPERM, "%s: %s", what, text);
}

static void choose_name(struct qemu *q, const char *socket)
{
    const char *own = qemu_facts_name(q->facts), *slash = strrchr(socket, '/');
    const char *file = slash ? slash + 1 : socket;
    size_t length = strcspn(file, ".");

    if (own[0])
        snprintf(q->name, sizeof(q->name), "%s", own);
    else
        snprintf(q->name, sizeof(q->name), "%.*s", (int)length, file);
}

static int check_running(struct qemu *q, struct reasons *reasons, struct error *err)
{
    cJSON *status;
    int result = qmp_call(q->qmp, &status, err, "query-status", NULL);

    if (result)
        return result;
    const cJSON *word = cJSON_GetObjectItemCaseSensitive(status, "status");
    if (!cJSON_IsString(word) || strcmp(word->valuestring, "running") != 0)
        reasons_add(reasons,
                    "the guest does not run (QEMU says it is %s): continue it first, with `cont`",
                    cJSON_IsString(word) ? word->valuestring : "in no state");
    cJSON_Delete(status);
    return 0;
}

static int look_at(struct qemu *q, struct reasons *reasons, struct reasons *notes,
                   struct error *err)
{
    int result = check_running(q, reasons, err);

    if (!result)
        result = qemu_facts_refuse(q->qmp, q->process.pid, q->facts, reasons, notes, err);
    if (!result)
        qemu_tracking_check(q->process.pid, &q->memory, reasons);
    return result;
}

int qemu_look(struct qemu *q, struct reasons *notes, struct error *err)
{
    struct reasons reasons = {0};
    int result = look_at(q, &reasons, notes, err);

    if (!result && reasons.count)
        result = refused(&reasons, "this guest cannot be moved", err);
    reasons_free(&reasons);
    q->looked_at = result ? 0 : clock_now();
    return result;
}

/* Memory, process, facts: what looking needs. */
static int take_hold(struct qemu *q, struct error *err)
{
    struct reasons reasons = {0};
    pid_t pid;
    int result = qemu_memory_open(q->qmp, &q->memory, &reasons, err);

    if (!result && reasons.count)
        result = refused(&reasons, "this guest cannot be moved", err);
    reasons_free(&reasons);
    if (!result)
        result = qemu_facts_gather(q->qmp, &q->facts, err);
    if (!result)
        result = qemu_memory_locate(&q->memory, qmp_peer(q->qmp), &pid, err);
    return result ? result : qemu_process_attach(pid, &q->process, err);
}

int qemu_guest_attach(const char *socket, struct guest **out, struct reasons *notes,
                      struct error *err)
{
    struct qemu *q = qemu_allocate();
    int result;

    if (!q)
        return error_set(err, ENOMEM, "no memory for a guest");
    result = qmp_connect(socket, &q->qmp, err);
    if (!result)
        result = take_hold(q, err);
    if (!result)
        result = qemu_look(q, notes, err);
    if (result) {
        qemu_free(q);
        return result;
    }
    choose_name(q, socket);
    qemu_note_monitor(q, socket);
    *out = &q->guest;
    return 0;
}
