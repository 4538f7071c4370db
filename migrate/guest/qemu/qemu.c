/* The QEMU guest: what the engine asks of any guest, put together from its parts. */
#include "migrate/guest/qemu/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migrate/guest/qemu/memory_files.h"
#include "migrate/guest/qemu/run_state.h"
#include "migrate/guest/qemu/tracking.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

enum {
    STOP_MS = 5000, /* QEMU finishes what its disks have under way first */
    LOCK_RETRIES = 50,
    LOCK_RETRY_MS = 100, /* until the other QEMU has let the disks go */
    QUIT_MS = 3000,
    LOOK_MS = 2000, /* a guest that was just found fit is not looked at again */
    BACKENDS_SIZE = 1024,
};

static void set_throttle(struct qemu *q, unsigned percent)
{
    struct error err = {0};

    if (q->throttle && qemu_throttle_set(q->throttle, percent, &err) < 0)
        log_line(LOG_WARNING, "guest %s: %s", q->name, err.text);
}

/* Devices come and go while it runs. */
static int renew_facts(struct qemu *q, struct error *err)
{
    struct qemu_facts *now;

    qmp_revive(q->qmp);
    int result = qemu_facts_gather(q->qmp, &now, err);
    if (result)
        return result;
    qemu_facts_free(q->facts);
    q->facts = now;
    return 0;
}

static int qemu_describe(struct guest *g, struct guest_description *out, struct error *err)
{
    struct qemu *q = qemu_of(g);
    bool fresh = q->arriving || clock_now() - q->looked_at < LOOK_MS * NS_PER_MS;
    int result = fresh ? 0 : renew_facts(q, err);

    if (result)
        return result;

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
    *out = qemu_of(g)->memory.regions;
    return qemu_of(g)->memory.count;
}

static int qemu_present(struct guest *g, uint32_t region, struct extent_list *out,
                        struct error *err)
{
    return qemu_memory_present(&qemu_of(g)->memory, region, out, err);
}

static int qemu_tracker(struct guest *g, const char *name, struct tracker **out, struct error *err)
{
    struct qemu *q = qemu_of(g);

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

int qemu_start_guardian(struct qemu *q, enum guardian_word word, struct error *err)
{
    cJSON *undo = q->settings ? qemu_settings_commands(q->settings) : NULL;

    guardian_end(q->guardian);
    q->guardian = NULL;
    return guardian_start(q->qmp, q->process.pid, undo, word, &q->guardian, err);
}

static void qemu_restore(struct guest *g)
{
    struct qemu *q = qemu_of(g);

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
    struct qemu *q = qemu_of(g);
    pid_t threads[GUEST_MAX_VCPUS];
    unsigned count;
    bool looked = clock_now() - q->looked_at < LOOK_MS * NS_PER_MS;

    qmp_revive(q->qmp);
    int result = looked ? 0 : qemu_look(q, NULL, err);

    if (!result)
        result = vcpu_threads(q, threads, &count, err);
    if (!result)
        result = qemu_throttle_new(threads, count, &q->throttle, err);
    if (!result)
        result = qemu_settings_apply(q->qmp, false, &q->settings, err);
    if (!result)
        result = qemu_start_guardian(q, GUARDIAN_CONTINUE, err);
    if (result)
        qemu_restore(g);
    qmp_forget(q->qmp, "BALLOON_CHANGE");
    return result;
}

static int qemu_pause(struct guest *g, struct error *err)
{
    struct qemu *q = qemu_of(g);

    set_throttle(q, 0);
    int result = qmp_command(q->qmp, "stop", NULL, -1, STOP_MS, NULL, err);
    /* Without an answer it may stop yet: then resume has to make certain. */
    if (result != -EREMOTEIO)
        atomic_store(&q->paused, true);
    return result;
}

/* Its disks may still be the other QEMU's, for the moment that one takes to end. */
static int let_run(struct qemu *q, struct error *err)
{
    int result = -EREMOTEIO;

    for (unsigned i = 0; result == -EREMOTEIO && i < LOCK_RETRIES; i++) {
        if (i > 0)
            clock_sleep_until(clock_now() + LOCK_RETRY_MS * NS_PER_MS);
        error_clear(err);
        result = qmp_command(q->qmp, "cont", NULL, -1, QMP_TIMEOUT_MS, NULL, err);
        if (!strstr(err->text, "lock"))
            break;
    }
    return result;
}

/* The first instruction here. A `cont` that QEMU was told and did not answer may have been carried
 * out: then only QEMU itself can say. */
static int start(struct qemu *q, struct error *err)
{
    bool running = false;
    int result = 0;

    if (q->start_is_open)
        result = qemu_is_running(q->qmp, &running, err);
    else if (!qemu_process_alive(&q->process) || qmp_lost(q->qmp))
        return error_set(err, ECONNRESET, "its QEMU has ended");
    if (!result && !running) {
        q->start_is_open = true;
        result = let_run(q, err);
    }
    if (result && result != -EREMOTEIO) {
        error_prefix(err, "QEMU was told to start the guest and does not answer");
        return -EINPROGRESS;
    }
    q->start_is_open = false;
    return result;
}

/* Gratuitous ARP and the like from all of the guest's network cards, so that switches learn where
 * it is. */
static void announce(struct qemu *q)
{
    struct error err = {0};

    if (qmp_post(q->qmp, "announce-self", qemu_announcement(), &err))
        log_line(LOG_WARNING, "guest %s: its network is not told where it runs: %s", q->name,
                 err.text);
}

static int qemu_resume(struct guest *g, struct error *err)
{
    struct qemu *q = qemu_of(g);

    if (!atomic_load(&q->paused))
        return 0;
    qmp_revive(q->qmp);
    bool saved = q->disks_let_go && !q->arriving;
    int result = saved ? qemu_state_abandon(q->qmp, err) : 0;
    if (!result)
        result = q->arriving ? start(q, err) : let_run(q, err);
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
    return atomic_load(&qemu_of(g)->paused);
}

static uint64_t qemu_resumed_at(struct guest *g)
{
    return atomic_load(&qemu_of(g)->resumed_at);
}

int qemu_check_memory(struct qemu *q, struct error *err)
{
    char before[BACKENDS_SIZE], now[BACKENDS_SIZE];
    int result = qemu_memory_opened(&q->memory, before, sizeof(before), err);

    if (!result)
        result = qemu_memory_list(q->qmp, now, sizeof(now), err);
    if (result || strcmp(now, before) == 0)
        return result;
    return error_set(err, EBUSY,
                     "memory of guest %s was plugged in or taken away since wander took hold of it "
                     "(before: %.200s; now: %.200s): end its wander process %d (the guest goes on) "
                     "and say wander migrate qmp:%s",
                     q->name, before, now, getpid(), q->monitor.path);
}

/* What would make the copy at the destination another machine than this one. */
static int check_unchanged(struct qemu *q, struct error *err)
{
    int result = qemu_check_memory(q, err);

    if (result)
        return result;
    if (qmp_seen(q->qmp, "BALLOON_CHANGE", NULL))
        return error_set(err, EBUSY,
                         "the balloon of guest %s changed during the migration; migrate it again "
                         "when it is at rest",
                         q->name);
    return 0;
}

static int qemu_save(struct guest *g, struct guest_state *out, struct error *err)
{
    struct qemu *q = qemu_of(g);
    int result = check_unchanged(q, err);

    if (result)
        return result;
    q->disks_let_go = true;
    return qemu_state_save(q->qmp, out, err);
}

void qemu_add_last_words(struct qemu *q, struct error *err)
{
    char words[400];

    qemu_process_last_words(&q->process, words, sizeof(words));
    if (words[0] && !qemu_process_alive(&q->process))
        error_prefix(err, "QEMU ended and said: %s", words);
}

static int qemu_load(struct guest *g, const void *bytes, size_t size,
                     const struct guest_load_context *context, struct error *err)
{
    struct qemu *q = qemu_of(g);
    (void)context; /* QEMU carries the guest's clocks itself */
    int result = qemu_state_load(q->qmp, bytes, size, err);

    if (result)
        qemu_add_last_words(q, err);
    return result;
}

static int qemu_set_throttle(struct guest *g, unsigned percent, struct error *err)
{
    struct qemu *q = qemu_of(g);
    int result = q->throttle ? qemu_throttle_set(q->throttle, percent, err) : 0;

    if (result == 0)
        q->throttled = percent;
    return result;
}

/* A guest that has just come is safe by itself; one that is being moved away is to run. */
static void qemu_entrust(struct guest *g, enum guest_holder holder)
{
    struct qemu *q = qemu_of(g);

    if (!q->guardian)
        return;
    if (holder == GUEST_HELD_THERE)
        guardian_say(q->guardian, GUARDIAN_KILL);
    else if (holder == GUEST_HELD_IN_DOUBT || q->arriving)
        guardian_say(q->guardian, GUARDIAN_LEAVE);
    else
        guardian_say(q->guardian, GUARDIAN_CONTINUE);
}

static const struct guest_monitor *qemu_monitor(struct guest *g)
{
    return &qemu_of(g)->monitor;
}

static int qemu_end_event(struct guest *g)
{
    return qemu_of(g)->process.handle;
}

void qemu_free(struct qemu *q)
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
    qemu_free(qemu_of(g));
}

static int qemu_kill(struct guest *g, struct error *err)
{
    return qemu_process_end(&qemu_of(g)->process, true, QEMU_KILL_MS, err);
}

static void qemu_destroy(struct guest *g)
{
    struct qemu *q = qemu_of(g);
    struct error err = {0};

    qemu_throttle_free(q->throttle);
    q->throttle = NULL;
    /* From here on it is to end, whatever becomes of us. */
    if (q->guardian)
        guardian_say(q->guardian, GUARDIAN_KILL);
    bool asked = !qmp_lost(q->qmp) && qmp_call(q->qmp, NULL, &err, "quit", NULL) == 0;
    if (!asked || qemu_process_end(&q->process, false, QUIT_MS, &err))
        qemu_process_end(&q->process, true, QEMU_KILL_MS, &err);
    if (qemu_process_alive(&q->process))
        log_line(LOG_ERROR, "guest %s: %s", q->name, err.text);
    else
        qemu_memory_discard(&q->memory);
    qemu_settings_restore(q->qmp, q->settings);
    guardian_end(q->guardian);
    qemu_free(q);
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
    .save_costs = true,
    .load = qemu_load,
    .throttle = qemu_set_throttle,
    .prepare = qemu_prepare,
    .restore = qemu_restore,
    .entrust = qemu_entrust,
    .monitor = qemu_monitor,
    .end_event = qemu_end_event,
    .kill = qemu_kill,
    .detach = qemu_detach,
    .destroy = qemu_destroy,
};

struct qemu *qemu_allocate(void)
{
    struct qemu *q = calloc(1, sizeof(*q));

    if (!q)
        return NULL;
    q->guest.ops = &qemu_ops;
    q->process.handle = -1;
    return q;
}

uint64_t qemu_process_born(pid_t pid)
{
    unsigned long long born = 0;
    char path[64], text[1024];

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    size_t size = file ? fread(text, 1, sizeof(text) - 1, file) : 0;
    if (file)
        fclose(file);
    text[size] = '\0';
    const char *after = strrchr(text, ')'); /* the name may hold anything */
    if (!after || sscanf(after + 1,
                         " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d "
                         "%*d %*d %llu",
                         &born) != 1)
        return 0;
    return born;
}

void qemu_note_monitor(struct qemu *q, const char *socket)
{
    char *path = realpath(socket, NULL);

    snprintf(q->monitor.path, sizeof(q->monitor.path), "%s", path ? path : socket);
    free(path);
    q->monitor.pid = q->process.pid;
    q->monitor.listener = qmp_peer(q->qmp);
    q->monitor.born = qemu_process_born(q->process.pid);
}
