/* What a guest's process does when a client asks. Each handler answers at once, or starts something
 * that will. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tools/guest_state.h"

static void reply_text(struct guest_process *p, uint64_t client, const char *text)
{
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "message", text);
    control_server_send(p->server, client, json);
}

/* An error that will pass by itself soon. */
static void reply_later(struct guest_process *p, uint64_t client, const char *text)
{
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "error", text);
    cJSON_AddTrueToObject(json, "retry");
    control_server_send(p->server, client, json);
}

static void handle_status(struct guest_process *p, uint64_t client,
                          const struct control_request *request)
{
    (void)request;
    control_server_send(p->server, client, guest_process_status(p));
}

/* True when the guest is here and nothing is being done with it; answers if not. */
static bool guest_is_free(struct guest_process *p, uint64_t client)
{
    struct migration_status status;

    if (p->migration && !p->busy) {
        migration_get_status(p->migration, &status);
        if (status.phase == MIGRATION_IN_DOUBT)
            control_server_error(
                p->server, client,
                "guest '%s' is in doubt: say wander resolve %s --resume or --destroy first",
                p->claim.name, p->claim.name);
        else
            control_server_error(p->server, client,
                                 "a migration of guest '%s' is under way (see wander status %s)",
                                 p->claim.name, p->claim.name);
        return false;
    }
    if (p->ending) {
        control_server_error(p->server, client, "guest '%s' is being ended", p->claim.name);
        return false;
    }
    if (p->busy || p->incoming || !p->guest) {
        reply_later(p, client,
                    "the guest's process is still busy starting, receiving or cleaning up: try "
                    "again in a moment");
        return false;
    }
    if (p->stuck) {
        control_server_error(
            p->server, client,
            "guest '%s' is paused since a failed migration: say wander resolve %s --resume first",
            p->claim.name, p->claim.name);
        return false;
    }
    return true;
}

bool guest_process_cancel_prediction(struct guest_process *p)
{
    return p->job.cancel_fd >= 0 && eventfd_write(p->job.cancel_fd, 1) == 0;
}

/* Nobody is there any more to hear of the prediction. */
void guest_process_gone(void *context, uint64_t client)
{
    struct guest_process *p = context;

    if (p->job.client == client)
        guest_process_cancel_prediction(p);
}

static void on_migration_changed(void *context)
{
    uv_async_send(context);
}

/* A prediction gives way: its guest may have to leave at once. */
static void handle_migrate(struct guest_process *p, uint64_t client,
                           const struct control_request *request)
{
    struct migration_observer observer = {on_migration_changed, &p->changed};
    struct migration_options options = request->migrate;
    struct error err = {0};

    guest_process_cancel_prediction(p);
    if (!guest_is_free(p, client))
        return;
    options.rehearsal = p->rehearsed ? &p->rehearsal : NULL;
    if (migration_start(p->guest, &options, &observer, &p->migration, &err) < 0) {
        p->migration = NULL;
        control_server_error(p->server, client, "%s", err.text);
        return;
    }
    p->destination = request->migrate.destination;
    p->subscriber = client;
    p->told = -1;
    guest_process_step(p);
}

static void handle_cancel(struct guest_process *p, uint64_t client,
                          const struct control_request *request)
{
    struct migration_status status;
    (void)request;

    if (p->incoming) {
        incoming_cancel(p->incoming);
        reply_text(p, client,
                   "asked the session to give up; once the guest is prepared or runs here this has "
                   "no effect");
        return;
    }
    if (guest_process_cancel_prediction(p)) {
        reply_text(p, client, "asked the prediction to end; the guest runs on");
        return;
    }
    if (!p->migration) {
        control_server_error(p->server, client, "no migration of guest '%s' is under way",
                             p->claim.name);
        return;
    }
    migration_get_status(p->migration, &status);
    if (status.phase == MIGRATION_IN_DOUBT) {
        control_server_error(p->server, client,
                             "guest '%s' is in doubt and cannot be cancelled: say wander resolve "
                             "%s --resume or --destroy",
                             p->claim.name, p->claim.name);
        return;
    }
    migration_cancel(p->migration);
    reply_text(p, client,
               "asked the migration to end; the guest goes on here unless the hand-over is already "
               "under way");
}

/* Session thread. */
static void on_resolved(void *context, int result, const char *text)
{
    struct guest_process *p = context;

    uv_mutex_lock(&p->mutex);
    p->resolution.finished = true;
    p->resolution.result = result;
    snprintf(p->resolution.text, sizeof(p->resolution.text), "%s", text);
    uv_mutex_unlock(&p->mutex);
    uv_async_send(&p->changed);
}

static void run_resume(struct job *job)
{
    job->result = job->guest->ops->resume(job->guest, &job->err);
}

static void resume_done(struct guest_process *p, struct job *job)
{
    p->guest = job->guest;
    if (job->result < 0) {
        control_server_error(p->server, job->client, "%s", job->err.text);
        return;
    }
    p->stuck = false;
    reply_text(p, job->client, "the guest runs here again");
}

/* The session has ended and the guest is ours, only paused: no peer needs to be asked. */
static void resolve_stuck(struct guest_process *p, uint64_t client, enum resolve_action action)
{
    if (action == RESOLVE_DESTROY) {
        guest_process_end(p, client);
        return;
    }
    p->job.guest = p->guest;
    p->job.client = client;
    p->guest = NULL;
    guest_process_start_job(p, run_resume, resume_done);
}

static int start_resolution(struct guest_process *p, const struct control_request *request,
                            struct error *err)
{
    if (p->migration)
        return migration_resolve(p->migration, request->action, request->force, on_resolved, p,
                                 err);
    if (p->incoming)
        return incoming_resolve(p->incoming, request->action, request->force, on_resolved, p, err);
    return error_set(err, EINVAL, "guest '%s' is not in doubt: there is nothing to resolve",
                     p->claim.name);
}

static void handle_resolve(struct guest_process *p, uint64_t client,
                           const struct control_request *request)
{
    struct error err = {0};
    bool under_way;

    if (p->busy) {
        reply_later(p, client, "the guest's process is busy: try again in a moment");
        return;
    }
    if (p->stuck) {
        resolve_stuck(p, client, request->action);
        return;
    }
    uv_mutex_lock(&p->mutex);
    under_way = p->resolution.active;
    if (!under_way)
        p->resolution =
            (struct resolution){.active = true, .action = request->action, .client = client};
    uv_mutex_unlock(&p->mutex);
    if (under_way) {
        control_server_error(p->server, client, "another resolve is under way");
        return;
    }
    if (start_resolution(p, request, &err) < 0) {
        uv_mutex_lock(&p->mutex);
        p->resolution.active = false;
        uv_mutex_unlock(&p->mutex);
        control_server_error(p->server, client, "%s", err.text);
    }
}

static void handle_workload(struct guest_process *p, uint64_t client,
                            const struct control_request *request)
{
    struct guest *guest = guest_process_guest(p);
    cJSON *account = guest_workload_json(guest);
    struct error err = {0};

    if (!account) {
        control_server_error(p->server, client, "guest '%s' %s", p->claim.name,
                             guest ? "keeps no account of its workload" : "is not here (yet)");
        return;
    }
    if (request->self_check && !guest->ops->request_check)
        error_set(&err, ENOTSUP, "guest '%s' has no self-check", p->claim.name);
    else if (request->self_check)
        guest->ops->request_check(guest, &err);
    if (err.code) {
        cJSON_Delete(account);
        control_server_error(p->server, client, "%s", err.text);
        return;
    }
    control_server_send(p->server, client, account);
}

static void handle_console(struct guest_process *p, uint64_t client,
                           const struct control_request *request)
{
    struct guest *guest = guest_process_guest(p);
    char text[4096] = "";
    cJSON *json;
    (void)request;

    if (!guest || !guest->ops->console) {
        control_server_error(p->server, client, "guest '%s' %s", p->claim.name,
                             guest ? "has no console" : "is not here (yet)");
        return;
    }
    guest->ops->console(guest, text, sizeof(text));
    for (char *c = text; *c; c++)
        if ((*c < ' ' && *c != '\n' && *c != '\t') || *c > '~')
            *c = '?';
    json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "console", text);
    control_server_send(p->server, client, json);
}

static void run_check(struct job *job)
{
    job->result = migration_check(job->guest, &job->options, &job->check, &job->err);
}

static void add_lines(cJSON *json, const char *key, const struct reasons *lines)
{
    cJSON_AddStringToObject(json, key, lines->text ? lines->text : "");
}

static void check_done(struct guest_process *p, struct job *job)
{
    cJSON *json;

    if (job->result < 0) {
        control_server_error(p->server, job->client, "%s", job->err.text);
    } else {
        json = cJSON_CreateObject();
        cJSON_AddNumberToObject(json, "count", job->check.refused.count);
        add_lines(json, "reasons", &job->check.refused);
        add_lines(json, "ends", &job->check.ends);
        add_lines(json, "notes", &job->check.notes);
        control_server_send(p->server, job->client, json);
    }
    check_report_free(&job->check);
}

static void handle_check(struct guest_process *p, uint64_t client,
                         const struct control_request *request)
{
    if (!guest_is_free(p, client))
        return;
    p->job.guest = p->guest;
    p->job.options = request->migrate;
    p->job.check = (struct check_report){0};
    p->job.client = client;
    guest_process_start_job(p, run_check, check_done);
}

static void run_predict(struct job *job)
{
    job->result = migration_rehearse(job->guest, &job->options, &job->wish, job->cancel_fd,
                                     &job->rehearsal, &job->err);
}

static void predict_done(struct guest_process *p, struct job *job)
{
    cJSON *json;

    close(job->cancel_fd);
    job->cancel_fd = -1;
    if (job->result < 0) {
        control_server_error(p->server, job->client, "%s", job->err.text);
        return;
    }
    p->rehearsal = job->rehearsal;
    p->rehearsed = true;
    json = rehearsal_to_json(&p->rehearsal);
    if (json)
        control_server_send(p->server, job->client, json);
    else
        control_server_error(p->server, job->client, "no memory for the prediction");
}

static void handle_predict(struct guest_process *p, uint64_t client,
                           const struct control_request *request)
{
    if (!guest_is_free(p, client))
        return;
    p->job.cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->job.cancel_fd < 0) {
        control_server_error(p->server, client, "making an eventfd failed: %s", strerror(errno));
        return;
    }
    p->job.guest = p->guest;
    p->job.options = request->migrate;
    p->job.wish = request->rehearsal;
    p->job.client = client;
    guest_process_start_job(p, run_predict, predict_done);
}

static void handle_quit(struct guest_process *p, uint64_t client,
                        const struct control_request *request)
{
    (void)request;
    guest_process_end(p, client);
}

static void (*const handlers[CONTROL_COMMANDS])(struct guest_process *, uint64_t,
                                                const struct control_request *) = {
    [CONTROL_STATUS] = handle_status,     [CONTROL_MIGRATE] = handle_migrate,
    [CONTROL_CANCEL] = handle_cancel,     [CONTROL_RESOLVE] = handle_resolve,
    [CONTROL_WORKLOAD] = handle_workload, [CONTROL_CONSOLE] = handle_console,
    [CONTROL_CHECK] = handle_check,       [CONTROL_PREDICT] = handle_predict,
    [CONTROL_QUIT] = handle_quit,
};

void guest_process_request(void *context, uint64_t client, const struct control_request *request)
{
    handlers[request->command](context, client, request);
}
