/* The life of a guest's process. One function, guest_process_step, looks at what is there and does
 * the next thing:
 *
 *   lab:      make ─→ run ─┐                     ┌─→ run on (failed)
 *   arriving: receive ─────┴─→ serve ─→ migrate ─┼─→ end    (moved away)
 *                                 │              └─→ wait   (in doubt, until resolved)
 *                                 └─→ end (quit, SIGTERM, SIGINT)
 */
#include "tools/guest_process.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/guest_state.h"
#include "transport/base/log.h"
#include "transport/base/options.h"

static void on_job_run(uv_work_t *work)
{
    struct job *job = (struct job *)work;

    job->run(job);
}

static void on_job_done(uv_work_t *work, int status)
{
    struct guest_process *p = work->data;
    (void)status;

    p->busy = false;
    p->job.done(p, &p->job);
    guest_process_step(p);
}

void guest_process_start_job(struct guest_process *p, void (*run)(struct job *job),
                             void (*done)(struct guest_process *process, struct job *job))
{
    p->busy = true;
    p->job.run = run;
    p->job.done = done;
    p->job.result = 0;
    error_clear(&p->job.err);
    p->job.work.data = p;
    uv_queue_work(&p->loop, &p->job.work, on_job_run, on_job_done);
}

void guest_process_tell_listener(struct guest_process *p, const char *event, const char *key,
                                 const char *text)
{
    cJSON *json;
    char *line;

    if (!p->arriving)
        return;
    json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "event", event);
    cJSON_AddStringToObject(json, key, text);
    line = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    if (line && dprintf(p->events, "%s\n", line) < 0)
        log_line(LOG_DEBUG, "the listener has gone");
    cJSON_free(line);
}

void guest_process_stop(struct guest_process *p)
{
    p->stopped = true;
    if (p->server)
        control_server_stop(p->server);
    p->server = NULL;
    if (p->watched)
        uv_close((uv_handle_t *)&p->ended, NULL);
    if (p->lifeline_fd >= 0) {
        uv_close((uv_handle_t *)&p->lifeline, NULL);
        uv_close((uv_handle_t *)&p->patience, NULL);
    }
    uv_close((uv_handle_t *)&p->changed, NULL);
    uv_close((uv_handle_t *)&p->interrupt, NULL);
    uv_close((uv_handle_t *)&p->terminate, NULL);
}

/* What a guest is, without what only a destination needs. */
static void keep_facts(struct guest_process *p, struct guest_description *description)
{
    p->facts = *description;
    p->facts.platform = NULL;
    p->facts.platform_size = 0;
    guest_description_free(description);
}

static void run_make(struct job *job)
{
    job->guest = NULL;
    job->result = job->make(job->make_context, &job->guest, &job->err);
    if (job->result < 0)
        return;
    job->result = job->guest->ops->describe(job->guest, &job->description, &job->err);
    if (job->result == 0)
        job->result = job->guest->ops->resume(job->guest, &job->err);
    if (job->result < 0) {
        job->guest->ops->destroy(job->guest);
        guest_description_free(&job->description);
    }
}

static void make_done(struct guest_process *p, struct job *job)
{
    char size[32];

    if (job->result < 0) {
        fprintf(stderr, "wander lab: %s\n", job->err.text);
        p->exit_code = 1;
        guest_process_stop(p);
        return;
    }
    p->guest = job->guest;
    keep_facts(p, &job->description);
    printf("guest %s runs here: %s, accel %s, %s, %u vCPU%s\n", p->claim.name, p->facts.kind,
           p->facts.accel, format_size(p->facts.memory_bytes, size, sizeof(size)), p->facts.vcpus,
           p->facts.vcpus > 1 ? "s" : "");
}

void guest_process_make(struct guest_process *p, guest_maker_fn *make, void *context)
{
    p->job.make = make;
    p->job.make_context = context;
    guest_process_start_job(p, run_make, make_done);
}

static void run_destroy(struct job *job)
{
    job->guest->ops->destroy(job->guest);
    migration_free(job->migration);
}

static void run_detach(struct job *job)
{
    job->guest->ops->detach(job->guest);
    migration_free(job->migration);
}

static void stop_watching(struct guest_process *p)
{
    if (p->watched)
        uv_close((uv_handle_t *)&p->ended, NULL);
    p->watched = false;
}

static void on_guest_ended(uv_poll_t *poll, int status, int events)
{
    struct guest_process *p = poll->data;
    (void)status;
    (void)events;

    stop_watching(p);
    log_line(LOG_WARNING, "guest %s has ended by itself", p->claim.name);
    p->exit_code = 1;
    p->ending = true;
    guest_process_step(p);
}

/* A guest in a process of its own may end without us. */
static void watch_guest(struct guest_process *p)
{
    int event = p->guest && p->guest->ops->end_event ? p->guest->ops->end_event(p->guest) : -1;

    if (event < 0 || p->watched || uv_poll_init(&p->loop, &p->ended, event) < 0)
        return;
    p->ended.data = p;
    p->watched = uv_poll_start(&p->ended, UV_READABLE, on_guest_ended) == 0;
}

/* Tells who asked for the end that it has come. */
static void answer_quitter(struct guest_process *p, const char *text)
{
    cJSON *json;

    if (!p->quitter)
        return;
    json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "message", text);
    control_server_send(p->server, p->quitter, json);
}

static void destroy_done(struct guest_process *p, struct job *job)
{
    (void)job;
    if (p->moved && p->quitter)
        control_server_error(p->server, p->quitter,
                             "guest '%s' had moved away already: end it at its destination",
                             p->claim.name);
    else
        answer_quitter(p, "the guest was ended");
    guest_process_stop(p);
}

static void run_describe(struct job *job)
{
    if (job->guest)
        job->result = job->guest->ops->describe(job->guest, &job->description, &job->err);
    incoming_free(job->incoming);
}

static void arrived(struct guest_process *p, struct job *job)
{
    watch_guest(p);
    if (!p->guest) {
        answer_quitter(p, "the session was ended; no guest came of it here");
        guest_process_stop(p);
        return;
    }
    if (job->result == 0)
        keep_facts(p, &job->description);
    else
        log_line(LOG_WARNING, "cannot describe the guest that arrived: %s", job->err.text);
}

void guest_process_adopt(struct guest_process *p, struct guest *guest, struct incoming *incoming)
{
    p->guest = guest; /* at once: it runs, and whoever asks for it finds it */
    p->job.guest = guest;
    p->job.incoming = incoming;
    guest_process_start_job(p, run_describe, arrived);
}

/* The session thread has a name for us: from now on clients can ask. */
static void adopt_claim(struct guest_process *p)
{
    struct error err = {0};
    int socket = -1;

    uv_mutex_lock(&p->mutex);
    if (p->claimed && !p->server) {
        socket = p->claim.socket;
        p->claim.socket = -1;
    }
    uv_mutex_unlock(&p->mutex);
    if (socket >= 0 && control_server_start(&p->loop, socket, guest_process_request,
                                            guest_process_gone, p, &p->server, &err) < 0)
        log_line(LOG_ERROR, "%s", err.text);
}

static void refuse_end(struct guest_process *p)
{
    p->ending = false;
    log_line(LOG_WARNING,
             "guest %s is in doubt and stays: say wander resolve %s --resume or --destroy",
             p->claim.name, p->claim.name);
    if (p->quitter)
        control_server_error(
            p->server, p->quitter,
            "guest '%s' is in doubt and stays: say wander resolve %s --resume or --destroy",
            p->claim.name, p->claim.name);
}

void guest_process_end(struct guest_process *p, uint64_t client)
{
    p->ending = true;
    p->quitter = client;
    guest_process_cancel_prediction(p);
    guest_process_step(p);
}

static void end_incoming(struct guest_process *p, const struct incoming_status *status)
{
    switch (status->phase) {
    case INCOMING_PREPARED:
        refuse_end(p);
        break;
    case INCOMING_STARTED: /* about to be ours */
        break;
    default:
        incoming_cancel(p->incoming);
    }
}

static void step_incoming(struct guest_process *p)
{
    struct incoming_status status;

    adopt_claim(p);
    incoming_get_status(p->incoming, &status);
    if (status.phase == INCOMING_STARTED && !p->announced) {
        p->announced = true;
        guest_process_tell_listener(p, "started", "guest", p->claim.name);
    }
    if (!status.finished) {
        if (p->ending)
            end_incoming(p, &status);
        return;
    }
    if (status.phase != INCOMING_STARTED) {
        guest_process_tell_listener(p, "ended", "message",
                                    status.message[0] ? status.message
                                                      : "a question was asked and answered");
        p->exit_code = status.phase == INCOMING_QUERY ? 0 : 1;
    }
    struct incoming *over = p->incoming;
    p->incoming = NULL;
    guest_process_adopt(p, status.phase == INCOMING_STARTED ? incoming_take_guest(over) : NULL,
                        over);
}

static void run_report(struct job *job)
{
    job->report = migration_report_json(job->migration);
    job->table = migration_report_table(job->migration);
    job->exit_code = migration_exit_code(job->migration);
}

static void report_done(struct guest_process *p, struct job *job)
{
    struct migration_status status;
    char uri[sizeof(struct address) + 16];
    cJSON *json = cJSON_CreateObject();

    migration_get_status(p->migration, &status);
    cJSON_AddNumberToObject(json, "exit_code", job->exit_code);
    cJSON_AddStringToObject(json, "message", status.message);
    cJSON_AddStringToObject(json, "report", job->report ? job->report : "");
    cJSON_AddStringToObject(json, "table", job->table ? job->table : "");
    control_server_send(p->server, p->subscriber, json);
    free(job->report);
    free(job->table);
    p->told = status.phase;
    p->last_exit_code = job->exit_code;
    snprintf(p->last_message, sizeof(p->last_message), "%s", status.message);
    address_format(&p->destination, uri, sizeof(uri));
    if (job->exit_code == 0)
        printf("guest %s has moved to %s\n", p->claim.name, uri);
    else
        fprintf(stderr, "wander: guest %s was to move to %s: %s\n", p->claim.name, uri,
                status.message);
}

static void run_free_migration(struct job *job)
{
    migration_free(job->migration);
}

/* The newest migration that ended stays: its session port tells a destination that missed the end
 * of it. */
static void migration_ended(struct guest_process *p, struct job *job)
{
    (void)job;
    p->past = p->migration;
    p->migration = NULL;
}

static void send_progress(struct guest_process *p, const struct migration_status *status)
{
    cJSON *json;

    if (control_server_is_behind(p->server, p->subscriber))
        return;
    json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "progress", control_progress_to_json(status));
    control_server_send(p->server, p->subscriber, json);
}

static void step_migration(struct guest_process *p)
{
    struct migration_status status;
    bool over;

    migration_get_status(p->migration, &status);
    over = status.finished || status.phase == MIGRATION_IN_DOUBT;
    if (p->told < 0)
        send_progress(p, &status);
    p->job.migration = p->migration;
    if (over && p->told != (int)status.phase) {
        guest_process_start_job(p, run_report, report_done);
        return;
    }
    if (status.finished) {
        p->stuck = status.phase == MIGRATION_STUCK;
        p->moved = status.phase == MIGRATION_COMPLETED;
        p->ending |= p->moved || p->destroyed;
        p->job.migration = p->past;
        guest_process_start_job(p, run_free_migration, migration_ended);
        return;
    }
    if (p->ending && over)
        refuse_end(p);
    else if (p->ending)
        migration_cancel(p->migration);
}

static void step_ending(struct guest_process *p)
{
    if (!p->guest) {
        guest_process_stop(p);
        return;
    }
    stop_watching(p);
    p->job.guest = p->guest;
    p->guest = NULL;
    p->job.migration = p->past;
    p->past = NULL;
    bool leave = p->leaving && !p->moved && !p->destroyed && p->job.guest->ops->detach;
    guest_process_start_job(p, leave ? run_detach : run_destroy, destroy_done);
}

/* Answers a resolve that the session thread has carried out. */
static void finish_resolution(struct guest_process *p)
{
    struct resolution done;

    uv_mutex_lock(&p->mutex);
    done = p->resolution;
    if (done.finished)
        p->resolution = (struct resolution){0};
    uv_mutex_unlock(&p->mutex);
    if (!done.active || !done.finished)
        return;
    if (done.result < 0) {
        control_server_error(p->server, done.client, "%s", done.text);
    } else {
        cJSON *json = cJSON_CreateObject();

        cJSON_AddStringToObject(json, "message", done.text);
        control_server_send(p->server, done.client, json);
        p->destroyed = p->migration && done.action == RESOLVE_DESTROY;
    }
}

void guest_process_step(struct guest_process *p)
{
    if (p->stopped)
        return;
    finish_resolution(p);
    if (p->busy)
        return;
    if (p->incoming)
        step_incoming(p);
    else if (p->migration)
        step_migration(p);
    else if (p->ending)
        step_ending(p);
}
