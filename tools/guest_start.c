/* How a guest's process begins: with a guest that it makes, that runs by itself, or that a listener
 * has been sent. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/guest_state.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

enum {
    ATTACHED_MS = 5000, /* between two looks whether an attached guest is still wanted */
};

static void on_changed(uv_async_t *async)
{
    guest_process_step(async->data);
}

/* A guest that can go on without this process does. */
static void on_signal(uv_signal_t *handle, int number)
{
    struct guest_process *p = handle->data;
    (void)number;

    p->leaving = true;
    guest_process_end(p, 0);
}

/* As it is in the background of a script: Ctrl-C there is meant for others. */
static bool is_ignored(int number)
{
    struct sigaction now;

    return sigaction(number, NULL, &now) == 0 && now.sa_handler == SIG_IGN;
}

static struct guest_process *process_open(void)
{
    struct guest_process *p = calloc(1, sizeof(*p));

    if (!p)
        return NULL;
    p->events = p->once = p->lifeline_fd = p->job.cancel_fd = -1;
    if (uv_loop_init(&p->loop) < 0 || uv_mutex_init(&p->mutex) < 0) {
        free(p);
        return NULL;
    }
    uv_async_init(&p->loop, &p->changed, on_changed);
    uv_signal_init(&p->loop, &p->interrupt);
    uv_signal_init(&p->loop, &p->terminate);
    p->changed.data = p->interrupt.data = p->terminate.data = p;
    if (!is_ignored(SIGINT))
        uv_signal_start(&p->interrupt, on_signal, SIGINT);
    uv_signal_start(&p->terminate, on_signal, SIGTERM);
    return p;
}

static int process_close(struct guest_process *p)
{
    int exit_code;

    uv_run(&p->loop, UV_RUN_DEFAULT);
    exit_code = p->exit_code;
    if (p->claimed)
        name_release(&p->claim);
    uv_loop_close(&p->loop);
    uv_mutex_destroy(&p->mutex);
    if (p->events >= 0)
        close(p->events);
    if (p->lifeline_fd >= 0)
        close(p->lifeline_fd);
    free(p);
    return exit_code;
}

int guest_process_new(struct name_claim *claim, guest_maker_fn *make, void *context)
{
    struct guest_process *p = process_open();
    struct error err = {0};

    if (!p) {
        fprintf(stderr, "wander lab: no memory for the event loop\n");
        name_release(claim);
        return 1;
    }
    p->claim = *claim;
    p->claimed = true;
    p->claim.socket = -1;
    if (control_server_start(&p->loop, claim->socket, guest_process_request, guest_process_gone, p,
                             &p->server, &err) < 0) {
        fprintf(stderr, "wander lab: %s\n", err.text);
        p->exit_code = 1;
        guest_process_stop(p);
        return process_close(p);
    }
    guest_process_make(p, make, context);
    return process_close(p);
}

/* Leaves a guest that was only attached to once nobody wants it moved, or no longer. */
static void on_patience(uv_timer_t *timer)
{
    struct guest_process *p = timer->data;

    if (p->migration || p->busy || p->stuck)
        return;
    p->leaving = p->ending = true;
    guest_process_step(p);
}

static void on_lifeline(uv_poll_t *poll, int status, int events)
{
    struct guest_process *p = poll->data;
    (void)status;
    (void)events;

    uv_poll_stop(poll);
    uv_timer_start(&p->patience, on_patience, ATTACHED_MS, ATTACHED_MS);
}

int guest_process_attached(struct name_claim *claim, struct guest *guest, int lifeline)
{
    struct guest_process *p = process_open();
    struct error err = {0};

    if (!p) {
        guest->ops->detach(guest);
        name_release(claim);
        close(lifeline);
        return 1;
    }
    p->claim = *claim;
    p->claimed = true;
    p->claim.socket = -1;
    p->lifeline_fd = lifeline;
    uv_poll_init(&p->loop, &p->lifeline, lifeline);
    uv_timer_init(&p->loop, &p->patience);
    p->lifeline.data = p->patience.data = p;
    uv_poll_start(&p->lifeline, UV_DISCONNECT | UV_READABLE, on_lifeline);
    if (control_server_start(&p->loop, claim->socket, guest_process_request, guest_process_gone, p,
                             &p->server, &err) < 0) {
        log_line(LOG_ERROR, "%s", err.text);
        guest->ops->detach(guest);
        p->exit_code = 1;
        guest_process_stop(p);
        return process_close(p);
    }
    guest_process_adopt(p, guest, NULL);
    return process_close(p);
}

/* Session thread: claims the name that the guest would have here. */
static void check_name(void *context, const char *name, bool keep, struct reasons *reasons)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct guest_process *p = context;
    struct name_claim trial;
    struct error err = {0};

    if (p->once >= 0 && (fcntl(p->once, keep ? F_SETLK : F_GETLK, &lock) < 0 ||
                         (!keep && lock.l_type != F_UNLCK))) {
        reasons_add(reasons, "this receiver takes --once a guest, and has one or is being sent one "
                             "already: start another wander receive");
        return;
    }
    if (!keep) {
        if (name_claim(name, &trial, &err) == 0)
            name_release(&trial);
        else
            reasons_add(reasons, "%s", err.text);
        return;
    }
    if (p->claimed && strcmp(p->claim.name, name) != 0) {
        error_set(&err, EINVAL, "this session already goes by the name '%s'", p->claim.name);
    } else if (!p->claimed && name_claim(name, &trial, &err) == 0) {
        uv_mutex_lock(&p->mutex);
        p->claim = trial;
        p->claimed = true;
        uv_mutex_unlock(&p->mutex);
    }
    if (err.code)
        reasons_add(reasons, "%s", err.text);
    uv_async_send(&p->changed);
}

static void on_incoming_changed(void *context)
{
    uv_async_send(context);
}

int guest_process_arriving(const struct arrival *arrival)
{
    struct guest_process *p = process_open();
    struct incoming_options options = *arrival->options;
    struct error err = {0};

    if (!p) {
        close(arrival->socket);
        close(arrival->events);
        return 1;
    }
    p->arriving = true;
    p->events = arrival->events;
    p->once = arrival->once;
    options.name_check = check_name;
    options.name_context = p;
    if (incoming_start(arrival->socket, &options,
                       &(struct migration_observer){on_incoming_changed, &p->changed}, &p->incoming,
                       &err) < 0) {
        guest_process_tell_listener(p, "ended", "message", err.text);
        p->incoming = NULL;
        p->exit_code = 1;
        guest_process_stop(p);
    }
    return process_close(p);
}
