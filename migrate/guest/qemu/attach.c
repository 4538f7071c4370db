#include "migrate/guest/qemu/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/guest/qemu/run_state.h"
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
    char state[32];
    int result = qemu_run_state(q->qmp, state, sizeof(state), err);

    if (!result && strcmp(state, "running") != 0)
        reasons_add(reasons,
                    "the guest does not run (QEMU says it is %s): continue it first, with `cont`",
                    state[0] ? state : "in no state");
    return result;
}

static int look_at(struct qemu *q, struct reasons *reasons, struct reasons *notes,
                   struct error *err)
{
    int result = check_running(q, reasons, err);

    if (!result && q->memory.count)
        result = qemu_check_memory(q, err);
    if (!result)
        result = qemu_facts_refuse(q->qmp, q->process.pid, q->facts, reasons, notes, err);
    if (!result)
        qemu_tracking_check(q->process.pid, &q->memory, reasons);
    return result;
}

/* What was found, as one error; `reasons` are freed. */
static int judge(struct qemu *q, int result, struct reasons *reasons, struct error *err)
{
    if (!result && reasons->count)
        result = refused(reasons, "this guest cannot be moved", err);
    reasons_free(reasons);
    q->looked_at = result ? 0 : clock_now();
    return result;
}

int qemu_look(struct qemu *q, struct reasons *notes, struct error *err)
{
    struct reasons reasons = {0};

    return judge(q, look_at(q, &reasons, notes, err), &reasons, err);
}

/* Memory, process, facts: what looking needs. Without memory the monitor's peer is taken for QEMU,
 * so that all that is wrong can be said at once. */
static int take_hold(struct qemu *q, struct reasons *reasons, struct error *err)
{
    pid_t pid = qmp_peer(q->qmp);
    int result = qemu_memory_open(q->qmp, &q->memory, reasons, err);

    if (!result)
        result = qemu_facts_gather(q->qmp, &q->facts, err);
    if (!result && q->memory.count)
        result = qemu_memory_locate(&q->memory, pid, &pid, err);
    return result ? result : qemu_process_attach(pid, &q->process, err);
}

int qemu_guest_attach(const char *socket, struct guest **out, struct reasons *notes,
                      struct error *err)
{
    struct reasons reasons = {0};
    struct qemu *q = qemu_allocate();
    int result;

    if (!q)
        return error_set(err, ENOMEM, "no memory for a guest");
    result = qmp_connect(socket, &q->qmp, err);
    if (!result)
        result = take_hold(q, &reasons, err);
    if (!result)
        result = look_at(q, &reasons, notes, err);
    result = judge(q, result, &reasons, err);
    if (result) {
        qemu_free(q);
        return result;
    }
    choose_name(q, socket);
    qemu_note_monitor(q, socket);
    *out = &q->guest;
    return 0;
}
