/* The QEMU guest: what the engine asks of any guest, put together from its parts. */
#include "migrate/guest/qemu/qemu.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/qemu/device_state.h"
#include "migrate/guest/qemu/facts.h"
#include "migrate/guest/qemu/guardian.h"
#include "migrate/guest/qemu/memory_files.h"
#include "migrate/guest/qemu/process.h"
#include "migrate/guest/qemu/throttle.h"
#include "migrate/guest/qemu/tracking.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

enum {
    STOP_MS = 20000, /* QEMU finishes what its disks have under way first */
    LOCK_RETRIES = 50,
    LOCK_RETRY_MS = 100, /* until the other QEMU has let the disks go */
    QUIT_MS = 3000,
    KILL_MS = 10000,
};

struct qemu {
    struct guest guest;
    char name[GUEST_NAME_SIZE], monitor[GUEST_MONITOR_SIZE];
    struct qmp *qmp;
    struct qemu_process process;
    struct qemu_memory memory;
    struct qemu_facts *facts;
    bool arriving; /* the other end has it, and it never ran here */

    atomic_bool paused;
    atomic_uint_least64_t resumed_at;

    /* While a migration is under way. */
    struct qemu_settings *settings;
    struct guardian *guardian;
    struct qemu_throttle *throttle;
    unsigned throttled;  /* percent, wanted while it runs */
    bool disks_let_go;   /* by saving or not yet taking them: `cont` takes them */
    char backends[1024]; /* RAM as it was when the migration began */
};

static struct qemu *of(struct guest *g)
{
    return (struct qemu *)g;
}

static void set_throttle(struct qemu *q, unsigned percent)
{
    struct error err = {0};

    if (q->throttle && qemu_throttle_set(q->throttle, percent, &err) < 0)
        log_line(LOG_WARNING, "guest %s: %s", q->name, err.text);
}

static int qemu_describe(struct guest *g, struct guest_description *out, struct error *err)
{
    const struct qemu *q = of(g);

    *out = (struct guest_description){.vcpus = qemu_facts_vcpus(q->facts),
                                      .memory_bytes = q->memory.bytes,
                                      .region_count = q->memory.count};
    snprintf(out->kind, sizeof(out->kind), "%s", qemu_guest_kind.kind);
    snprintf(out->name, sizeof(out->name), "%s", q->name);
    snprintf(out->accel, sizeof(out->accel), "%s", qemu_facts_accel(q->facts));
    memcpy(out->regions, q->memory.regions, sizeof(out->regions));
    for (unsigned i = 0; i < q->memory.count; i++)
        out->regions[i].host = NULL;
    return qemu_facts_encode(q->facts, &out->platform, &out->platform_size, err);
}

static unsigned qemu_regions(struct guest *g, const struct guest_region **out)
{
    *out = of(g)->memory.regions;
    return of(g)->memory.count;
}

static int qemu_present(struct guest *g, uint32_t region, struct extent_list *out,
                        struct error *err)
{
    return qemu_memory_present(&of(g)->memory, region, out, err);
}

static int qemu_tracker(struct guest *g, const char *name, struct tracker **out, struct error *err)
{
    struct qemu *q = of(g);

    if (name && strcmp(name, "userfaultfd") != 0)
        return error_set(err, EINVAL, "a QEMU guest has no tracker '%s'; it has userfaultfd", name);
    return qemu_tracker_new(q->process.pid, &q->memory, out, err);
}

/* The kernel's thread ids of the vCPUs. */
static int vcpu_threads(struct qemu *q, pid_t *threads, unsigned *count, struct error *err)
{
    cJSON *cpus, *cpu;
    int result = qmp_call(q->qmp, &cpus, err, "query-cpus-fast", NULL);

    *count = 0;
    if (result)
        return result;
    cJSON_ArrayForEach(cpu, cpus)
    {
        const cJSON *thread = cJSON_GetObjectItemCaseSensitive(cpu, "thread-id");
        pid_t id = cJSON_IsNumber(thread) ? (pid_t)thread->valuedouble : 0;
        bool known = false;

        for (unsigned i = 0; i < *count; i++)
            known |= threads[i] == id; /* TCG may run all vCPUs in one */
        if (id > 0 && !known && *count < GUEST_MAX_VCPUS)
            threads[(*count)++] = id;
    }
    cJSON_Delete(cpus);
    return 0;
}

static int start_guardian(struct qemu *q, enum guardian_word word, struct error *err)
{
    cJSON *undo = q->settings ? qemu_settings_commands(q->settings) : NULL;

    guardian_end(q->guardian);
    q->guardian = NULL;
    return guardian_start(q->qmp, q->process.pid, undo, word, &q->guardian, err);
}

static void qemu_restore(struct guest *g)
{
    struct qemu *q = of(g);

    qemu_throttle_free(q->throttle);
    q->throttle = NULL;
    q->throttled = 0;
    qemu_settings_restore(q->qmp, q->settings);
    q->settings = NULL;
    guardian_end(q->guardian);
    q->guardian = NULL;
}

static int qemu_prepare(struct guest *g, struct error *err)
{
    struct qemu *q = of(g);
    pid_t threads[GUEST_MAX_VCPUS];
    unsigned count;
    int result = qemu_memory_list(q->qmp, q->backends, sizeof(q->backends), err);

    if (!result)
        result = vcpu_threads(q, threads, &count, err);
    if (!result)
        result = qemu_throttle_new(threads, count, &q->throttle, err);
    if (!result)
        result = qemu_settings_apply(q->qmp, false, &q->settings, err);
    if (!result)
        result = start_guardian(q, GUARDIAN_CONTINUE, err);
    if (result)
        qemu_restore(g);
    qmp_forget(q->qmp, "BALLOON_CHANGE");
    return result;
}

static int qemu_pause(struct guest *g, struct error *err)
{
    struct qemu *q = of(g);

    set_throttle(q, 0);
    int result = qmp_command(q->qmp, "stop", NULL, -1, STOP_MS, NULL, err);
    if (result)
        return result;
    atomic_store(&q->paused, true);
    return 0;
}

/* Its disks may still be the other QEMU's, for the moment that one takes to end. */
static int let_run(struct qemu *q, struct error *err)
{
    int result = -EREMOTEIO;

    for (unsigned i = 0; result == -EREMOTEIO && i < LOCK_RETRIES; i++) {
        if (i > 0)
            clock_sleep_until(clock_now() + LOCK_RETRY_MS * NS_PER_MS);
        error_clear(err);
        result = qmp_command(q->qmp, "cont", NULL, -1, STOP_MS, NULL, err);
        if (!strstr(err->text, "lock"))
            break;
    }
    return result;
}

/* Gratuitous ARP and the like from all of the guest's network cards, so that switches learn where
 * it is. */
static void announce(struct qemu *q)
{
    struct error err = {0};

    if (qmp_call(q->qmp, NULL, &err, "announce-self",
                 "{'initial': 50, 'max': 550, 'rounds': 5, 'step': 100}"))
        log_line(LOG_WARNING, "guest %s: its network is not told where it runs: %s", q->name,
                 err.text);
}

static int qemu_resume(struct guest *g, struct error *err)
{
    struct qemu *q = of(g);

    if (!atomic_load(&q->paused))
        return 0;
    int result = let_run(q, err);
    if (result)
        return result;
    atomic_store(&q->resumed_at, clock_now());
    atomic_store(&q->paused, false);
    if (q->throttled)
        set_throttle(q, q->throttled);
    if (q->disks_let_go)
        announce(q);
    q->disks_let_go = false;
    q->arriving = false;
    return 0;
}

static bool qemu_paused(struct guest *g)
{
    return atomic_load(&of(g)->paused);
}

static uint64_t qemu_resumed_at(struct guest *g)
{
    return atomic_load(&of(g)->resumed_at);
}

/* What would make the copy at the destination another machine than this one. */
static int check_unchanged(struct qemu *q, struct error *err)
{
    char now[sizeof(q->backends)];
    int result = qemu_memory_list(q->qmp, now, sizeof(now), err);

    if (result)
        return result;
    if (strcmp(now, q->backends) != 0)
        return error_set(err, EBUSY,
                         "memory of guest %s was plugged in or taken away during the migration "
                         "(before: %.200s; now: %.200s); migrate it again",
                         q->name, q->backends, now);
    if (qmp_seen(q->qmp, "BALLOON_CHANGE", NULL))
        return error_set(err, EBUSY,
                         "the balloon of guest %s changed during the migration; migrate it again "
                         "when it is at rest",
                         q->name);
    return 0;
}

static int qemu_save(struct guest *g, struct guest_state *out, struct error *err)
{
    struct qemu *q = of(g);
    int result = check_unchanged(q, err);

    if (result)
        return result;
    q->disks_let_go = true;
    return qemu_state_save(q->qmp, out, err);
}

static void add_last_words(struct qemu *q, struct error *err)
{
    char words[400];

    qemu_process_last_words(&q->process, words, sizeof(words));
    if (words[0] && !qemu_process_alive(&q->process))
        error_prefix(err, "QEMU ended and said: %s", words);
}

static int qemu_load(struct guest *g, const void *bytes, size_t size,
                     const struct guest_load_context *context, struct error *err)
{
    struct qemu *q = of(g);
    (void)context; /* QEMU carries the guest's clocks itself */
    int result = qemu_state_load(q->qmp, bytes, size, err);

    if (result)
        add_last_words(q, err);
    return result;
}

static int qemu_set_throttle(struct guest *g, unsigned percent, struct error *err)
{
    struct qemu *q = of(g);
    int result = q->throttle ? qemu_throttle_set(q->throttle, percent, err) : 0;

    if (result == 0)
        q->throttled = percent;
    return result;
}

/* A guest that has just come is safe by itself; one that is being moved away is to run. */
static void qemu_entrust(struct guest *g, enum guest_holder holder)
{
    struct qemu *q = of(g);

    if (!q->guardian)
        return;
    if (holder == GUEST_HELD_THERE)
        guardian_say(q->guardian, GUARDIAN_KILL);
    else if (holder == GUEST_HELD_IN_DOUBT || q->arriving)
        guardian_say(q->guardian, GUARDIAN_LEAVE);
    else
        guardian_say(q->guardian, GUARDIAN_CONTINUE);
}

static const char *qemu_monitor(struct guest *g)
{
    return of(g)->monitor;
}

static int qemu_end_event(struct guest *g)
{
    return of(g)->process.handle;
}

static void free_guest(struct qemu *q)
{
    qemu_facts_free(q->facts);
    qemu_memory_close(&q->memory);
    qmp_close(q->qmp);
    qemu_process_close(&q->process);
    free(q);
}

static void qemu_detach(struct guest *g)
{
    qemu_restore(g);
    free_guest(of(g));
}

static void qemu_destroy(struct guest *g)
{
    struct qemu *q = of(g);
    struct error err = {0};

    qemu_throttle_free(q->throttle);
    q->throttle = NULL;
    /* From here on it is to end, whatever becomes of us. */
    if (q->guardian)
        guardian_say(q->guardian, GUARDIAN_KILL);
    bool asked = qmp_call(q->qmp, NULL, &err, "quit", NULL) == 0;
    if (!asked || qemu_process_end(&q->process, false, QUIT_MS, &err))
        qemu_process_end(&q->process, true, KILL_MS, &err);
    if (qemu_process_alive(&q->process))
        log_line(LOG_ERROR, "guest %s: %s", q->name, err.text);
    else
        qemu_memory_discard(&q->memory);
    qemu_settings_restore(NULL, q->settings);
    guardian_end(q->guardian);
    free_guest(q);
}

static const struct guest_ops qemu_ops = {
    .kind = "qemu",
    .describe = qemu_describe,
    .regions = qemu_regions,
    .present = qemu_present,
    .tracker = qemu_tracker,
    .pause = qemu_pause,
    .resume = qemu_resume,
    .paused = qemu_paused,
    .resumed_at = qemu_resumed_at,
    .save = qemu_save,
    .load = qemu_load,
    .throttle = qemu_set_throttle,
    .prepare = qemu_prepare,
    .restore = qemu_restore,
    .entrust = qemu_entrust,
    .monitor = qemu_monitor,
    .end_event = qemu_end_event,
    .detach = qemu_detach,
    .destroy = qemu_destroy,
};

static struct qemu *allocate(void)
{
    struct qemu *q = calloc(1, sizeof(*q));

    if (!q)
        return NULL;
    q->guest.ops = &qemu_ops;
    q->process.handle = -1;
    return q;
}

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

static void choose_name(struct qemu *q, const char *wanted, const char *socket)
{
    const char *own = qemu_facts_name(q->facts), *slash = strrchr(socket, '/');
    const char *file = slash ? slash + 1 : socket;
    size_t length = strcspn(file, ".");

    if (wanted[0] || own[0])
        snprintf(q->name, sizeof(q->name), "%s", wanted[0] ? wanted : own);
    else
        snprintf(q->name, sizeof(q->name), "%.*s", (int)length, file);
}

static void note_monitor(struct qemu *q, const char *socket)
{
    char *path = realpath(socket, NULL);

    snprintf(q->monitor, sizeof(q->monitor), "%s", path ? path : socket);
    free(path);
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

/* Everything that keeps the running guest from being moved. */
static int look_at_running(struct qemu *q, struct reasons *reasons, struct error *err)
{
    struct reasons notes = {0};
    pid_t pid;
    int result = qemu_memory_open(q->qmp, &q->memory, reasons, err);

    if (!result)
        result = qemu_facts_gather(q->qmp, &q->facts, err);
    if (!result)
        result = check_running(q, reasons, err);
    if (result || q->memory.count == 0)
        return result;
    result = qemu_memory_locate(&q->memory, qmp_peer(q->qmp), &pid, err);
    if (!result)
        result = qemu_process_attach(pid, &q->process, err);
    if (!result)
        result = qemu_facts_refuse(q->qmp, pid, q->facts, reasons, &notes, err);
    if (!result)
        qemu_tracking_check(pid, &q->memory, reasons);
    if (notes.text)
        log_line(LOG_WARNING, "%s", notes.text);
    reasons_free(&notes);
    return result;
}

int qemu_guest_attach(const char *socket, const char *name, struct guest **out, struct error *err)
{
    struct reasons reasons = {0};
    struct qemu *q = allocate();
    int result;

    if (!q)
        return error_set(err, ENOMEM, "no memory for a guest");
    result = qmp_connect(socket, &q->qmp, err);
    if (!result)
        result = look_at_running(q, &reasons, err);
    if (!result && reasons.count)
        result = refused(&reasons, "this guest cannot be moved", err);
    reasons_free(&reasons);
    if (result) {
        free_guest(q);
        return result;
    }
    choose_name(q, name, socket);
    note_monitor(q, socket);
    *out = &q->guest;
    return 0;
}

/* Starts the operator's QEMU for a guest of this name; it waits, paused, with empty memory. */
static int start_arriving(const struct guest_host *host, const char *name, struct qemu **out,
                          struct reasons *reasons, struct error *err)
{
    struct qemu *q = allocate();
    pid_t pid;
    int result;

    if (!q)
        return error_set(err, ENOMEM, "no memory for a guest");
    snprintf(q->name, sizeof(q->name), "%s", name);
    q->arriving = q->disks_let_go = true;
    atomic_store(&q->paused, true);
    result = qemu_process_start(host->command, host->runtime, name, &q->process, &q->qmp, err);
    if (result)
        goto free_guest;
    note_monitor(q, q->process.socket);
    result = start_guardian(q, GUARDIAN_KILL, err);
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
    add_last_words(q, err);
    qemu_process_end(&q->process, true, KILL_MS, &(struct error){0});
    qemu_settings_restore(NULL, q->settings);
    guardian_end(q->guardian);
free_guest:
    free_guest(q);
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
    int result = check_regions(of(ready), d, err);
    if (result)
        return result;
    host->ready = NULL;
    *out = ready;
    return 0;
}

/* Whatever of a migration of QEMU's own is left in it is ended first. */
static int qemu_settle(const char *monitor, bool run, struct error *err)
{
    struct qemu *q = allocate();
    int result =
        q ? qmp_connect(monitor, &q->qmp, err) : error_set(err, ENOMEM, "no memory for a guest");

    if (result)
        goto free_guest;
    snprintf(q->name, sizeof(q->name), "at %.60s", monitor);
    if (!run) {
        result = qmp_call(q->qmp, NULL, err, "quit", NULL);
        goto free_guest;
    }
    result = qemu_state_abandon(q->qmp, err);
    atomic_store(&q->paused, true);
    q->disks_let_go = true;
    if (!result)
        result = qemu_resume(&q->guest, err);
free_guest:
    if (q)
        free_guest(q);
    return result;
}

const struct guest_kind qemu_guest_kind = {
    .kind = "qemu",
    .check = qemu_check,
    .incoming = qemu_incoming,
    .settle = qemu_settle,
};
