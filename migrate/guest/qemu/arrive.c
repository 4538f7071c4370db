#include "migrate/guest/qemu/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/guest/qemu/memory_files.h"
#include "migrate/guest/qemu/run_state.h"

/* Starts the operator's QEMU for a guest of this name; it waits, paused, with empty memory. */
static int start_arriving(const struct guest_host *host, const char *name, struct qemu **out,
                          struct reasons *reasons, struct error *err)
{
    struct qemu *q = qemu_allocate();
    pid_t pid;
    int result;

    if (!q)
        return error_set(err, ENOMEM, "no memory for a guest");
    snprintf(q->name, sizeof(q->name), "%s", name);
    q->arriving = q->disks_let_go = true;
    atomic_store(&q->paused, true);
    result = qemu_process_start(host->command, host->runtime, name, &q->process, err);
    if (result)
        goto free_guest;
    result = qemu_start_guardian(q, GUARDIAN_KILL, err);
    if (!result)
        result = qemu_process_connect(&q->process, &q->qmp, err);
    if (!result)
        qemu_note_monitor(q, q->process.socket);
    if (!result)
        result = qemu_memory_open(q->qmp, &q->memory, reasons, err);
    if (!result)
        result = qemu_facts_gather(q->qmp, &q->facts, err);
    if (!result && q->memory.count)
        result = qemu_memory_locate(&q->memory, q->process.pid, &pid, err);
    if (!result)
        result = qemu_memory_clear(&q->memory, q->process.pid, err);
    if (!result)
        result = qemu_settings_apply(q->qmp, true, &q->settings, err);
    if (result)
        goto end_process;
    *out = q;
    return 0;

end_process:
    if (q->qmp)
        qemu_add_last_words(q, err);
    qemu_process_end(&q->process, true, QEMU_KILL_MS, &(struct error){0});
    qemu_settings_restore(q->qmp, q->settings);
    guardian_end(q->guardian);
free_guest:
    qemu_free(q);
    return result;
}

static void qemu_check(struct guest_host *host, const struct guest_description *d,
                       struct reasons *reasons)
{
    struct qemu_facts *theirs = NULL;
    struct qemu *q = NULL;
    struct error err = {0};

    if (!host->command || !host->command[0]) {
        reasons_add(reasons, "this receiver has no QEMU to start: say wander receive --guest qemu "
                             "… -- qemu-system-x86_64 with the guest's arguments");
        return;
    }
    if (qemu_facts_decode(d->platform, d->platform_size, &theirs, &err) < 0 ||
        (reasons->count == 0 && start_arriving(host, d->name, &q, reasons, &err) < 0))
        reasons_add(reasons, "%s", err.text);
    if (q) {
        qemu_facts_compare(theirs, q->facts, reasons);
        if (host->ready)
            host->ready->ops->destroy(host->ready);
        host->ready = &q->guest;
    }
    qemu_facts_free(theirs);
}

/* Regions go by number on the wire: they must be the same ones. */
static int check_regions(const struct qemu *q, const struct guest_description *d, struct error *err)
{
    bool same = d->region_count == q->memory.count;

    for (unsigned i = 0; same && i < q->memory.count; i++)
        same = d->regions[i].id == i && d->regions[i].size == q->memory.regions[i].size &&
               strcmp(d->regions[i].name, q->memory.regions[i].name) == 0;
    return same ? 0
                : error_set(err, EINVAL,
                            "the guest's memory backends are not those of the QEMU here: give both "
                            "the same -object memory-backend-file ids and sizes");
}

static int qemu_incoming(struct guest_host *host, const struct guest_description *d,
                         struct guest **out, struct error *err)
{
    struct guest *ready = host->ready;

    if (!ready)
        return error_set(err, EINVAL, "no QEMU was started for guest %s", d->name);
    int result = check_regions(qemu_of(ready), d, err);
    if (result)
        return result;
    host->ready = NULL;
    *out = ready;
    return 0;
}

/* The very QEMU, and nobody else who listens where it did. -ENOENT: it has ended. */
static int connect_again(const struct guest_monitor *monitor, struct qmp **out, struct error *err)
{
    bool lives = monitor->born && qemu_process_born(monitor->pid) == monitor->born;
    int result = lives ? qmp_connect(monitor->path, out, err) : -ENOENT;

    if (result == 0 && qmp_peer(*out) != monitor->listener) {
        qmp_close(*out);
        result = -ENOENT;
    }
    if (result == -ENOENT) {
        error_clear(err);
        error_set(err, ENOENT, "the guest's QEMU (process %d, at %s) has ended", monitor->pid,
                  monitor->path);
    }
    return result;
}

static bool qemu_runs(const struct guest_monitor *monitor)
{
    struct error err = {0};
    struct qmp *qmp;
    bool runs;

    if (connect_again(monitor, &qmp, &err))
        return false;
    qemu_is_running(qmp, &runs, &err);
    qmp_close(qmp);
    return runs;
}

/* Whatever of a migration of QEMU's own is left in it is ended first. */
static int make_run(struct qemu *q, struct error *err)
{
    int result = qemu_state_abandon(q->qmp, err);

    atomic_store(&q->paused, true);
    q->disks_let_go = true;
    return result ? result : q->guest.ops->resume(&q->guest, err);
}

static int qemu_settle(const struct guest_monitor *monitor, bool run, struct error *err)
{
    struct qemu *q = qemu_allocate();

    if (!q)
        return error_set(err, ENOMEM, "no memory for a guest");
    snprintf(q->name, sizeof(q->name), "at %.60s", monitor->path);
    int result = connect_again(monitor, &q->qmp, err);
    if (!result)
        result = run ? make_run(q, err) : qmp_call(q->qmp, NULL, err, "quit", NULL);
    qemu_free(q);
    return result;
}

const struct guest_kind qemu_guest_kind = {
    .kind = "qemu",
    .check = qemu_check,
    .incoming = qemu_incoming,
    .runs = qemu_runs,
    .settle = qemu_settle,
};
