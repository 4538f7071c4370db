/* PREPARED and after. A time-out never ends it: COMMIT, ABORT, the source's own word that it has
 * kept the guest, or the operator does. */
#include "migrate/destination.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"
#include "transport/base/wire.h"

enum { ASK_EVERY_MS = 1000, ASK_MS = 1500, SEE_OFF_MS = 10000, GAP_MS = 500, QUIET_MS = 100 };

/* -ECONNABORTED: it cannot be started, and that is recorded. -EINPROGRESS: it may run, or not; it
 * stays STARTING. Other errors: nothing is decided. After both it may be tried again. */
static int start_guest(struct incoming *in, struct error *err)
{
    uint64_t started = clock_now();
    struct error local = {0};
    int result = 0;

    if (in->transport)
        transport_shutdown(in->transport);
    /* Before the record: one that dies in between is an orphan that never runs, not a guest in
     * doubt. */
    if (in->guest->ops->entrust)
        in->guest->ops->entrust(in->guest, GUEST_HELD_HERE);
    if (ownership_get(&in->ownership) != OWNERSHIP_STARTING)
        result = ownership_move(&in->ownership, OWNERSHIP_PREPARED, OWNERSHIP_STARTING, err);
    if (result)
        return result;
    result = in->guest->ops->resume(in->guest, &local);
    in->start_is_open = result == -EINPROGRESS;
    if (in->start_is_open)
        return error_set(err, EINPROGRESS, "%s", local.text);
    if (result) {
        result = ownership_move(&in->ownership, OWNERSHIP_STARTING, OWNERSHIP_ABORTED, err);
        return result
                   ? result
                   : error_set(err, ECONNABORTED, "the guest could not be started: %s", local.text);
    }
    in->measurement.resume_ns = clock_now() - started;
    if (ownership_move(&in->ownership, OWNERSHIP_STARTING, OWNERSHIP_STARTED, &local))
        log_line(LOG_ERROR, "the guest runs, but: %s", local.text);
    return 0;
}

static void say_running(struct incoming *in)
{
    uint8_t body[8];

    if (in->channel)
        channel_send(in->channel, MESSAGE_RUNNING, body,
                     timing_encode(&(struct timing_message){.ns = in->measurement.resume_ns}, body),
                     &(struct error){0});
}

static void say_aborted(struct incoming *in, const char *why)
{
    if (in->channel)
        channel_send_text(in->channel, MESSAGE_ABORTED, why, &(struct error){0});
}

/* The guest ends first: one whose start was begun might go on with it. */
static int abort_guest(struct incoming *in, const char *why, bool force, struct error *err)
{
    const struct guest_ops *ops = in->guest->ops;
    enum ownership_state now = ownership_get(&in->ownership); /* PREPARED, or a start is open */

    if (in->start_is_open && !force)
        return error_set(err, EBUSY,
                         "the guest was told to start and has not answered: it may have run here");
    int result = ops->kill ? ops->kill(in->guest, err) : 0;
    if (!result)
        result = ownership_move(&in->ownership, now, OWNERSHIP_ABORTED, err);
    if (result)
        return result;
    say_aborted(in, why);
    return error_set(err, ECONNABORTED, "%s", why);
}

/* What could not be recorded has not happened: the guest stays prepared, and whoever wanted it says
 * so again. */
static int if_recorded(int result, struct error *err)
{
    if (result == 0 || result == -ECONNABORTED)
        return result;
    log_line(LOG_ERROR, "the guest's fate stays open: %s", err->text);
    error_clear(err);
    return 1;
}

static int start_and_say(struct incoming *in, struct error *err)
{
    int result = start_guest(in, err);

    if (result == 0)
        say_running(in);
    else if (result == -ECONNABORTED)
        say_aborted(in, err->text);
    return result;
}

/* 1: go on waiting; 0: STARTED; -ECONNABORTED: ABORTED. */
static int on_message(struct incoming *in, const struct message *m, struct error *err)
{
    char why[ERROR_TEXT_SIZE / 2];

    switch (m->type) {
    case MESSAGE_COMMIT:
        return if_recorded(start_and_say(in, err), err);
    case MESSAGE_ABORT:
        return if_recorded(abort_guest(in, message_text(m, why, sizeof(why)), false, err), err);
    default:
        log_line(LOG_WARNING, "%s is no message for a prepared guest", message_name(m->type));
        return 1;
    }
}

static void close_channel(struct incoming *in)
{
    channel_close(in->channel);
    in->channel = NULL;
}

static void drop_channel(struct incoming *in)
{
    close_channel(in);
    pthread_mutex_lock(&in->lock);
    in->status.source_silent = true;
    pthread_mutex_unlock(&in->lock);
    destination_say(
        in,
        "the connection to the source is lost; the guest stays paused until its fate is known. "
        "If the source does not come back: wander resolve %s --resume (or --destroy)",
        in->status.session);
}

/* Takes over a connection that the source has made anew. The lanes of the old epoch are dead before
 * it is answered. */
static void adopt_pending(struct incoming *in)
{
    struct error err = {0};
    uint8_t body[PROTO_BODY_SIZE];

    pthread_mutex_lock(&in->lock);
    int socket = in->pending_socket;
    uint32_t epoch = in->pending_epoch;
    in->pending_socket = -1;
    pthread_mutex_unlock(&in->lock);
    if (socket < 0)
        return;
    if (epoch <= in->epoch) {
        log_line(LOG_WARNING, "a connection of the old epoch %u came back and was turned away",
                 epoch);
        close(socket);
        return;
    }
    destination_close_lanes(in);
    close_channel(in);
    in->epoch = epoch;
    if (channel_open(socket, &in->wakeup, &in->channel, &err) == 0) {
        struct welcome welcome = {.version = PROTO_VERSION_MAX, .epoch = epoch};
        boot_id_read(welcome.boot_id);
        channel_send(in->channel, MESSAGE_WELCOME, body, welcome_encode(&welcome, body), &err);
    }
    pthread_mutex_lock(&in->lock);
    in->status.source_silent = in->channel == NULL;
    pthread_mutex_unlock(&in->lock);
    if (err.code)
        log_line(LOG_WARNING, "%s", err.text);
}

static enum ownership_state ask_source(struct incoming *in)
{
    enum ownership_state state = OWNERSHIP_UNKNOWN;
    struct error err = {0};

    if (exchange_ask(&in->source_peer, in->hello.token, ASK_MS, -1, &state, &err))
        return OWNERSHIP_UNKNOWN;
    return state;
}

static int start_by_operator(struct incoming *in, enum ownership_state there, bool force,
                             char *text, size_t size, struct error *err)
{
    if (there == OWNERSHIP_OWNER) {
        snprintf(text, size,
                 "the guest runs at the source: it cannot be resumed here. Use --destroy");
        return -EBUSY;
    }
    if (there != OWNERSHIP_COMMITTING && there != OWNERSHIP_RELEASED && !force) {
        snprintf(text, size,
                 "the source does not answer for this session. If you are certain that the guest "
                 "does not run "
                 "there, repeat with --force; if you are wrong, two copies will run");
        return -EBUSY;
    }
    int result = start_and_say(in, err);
    snprintf(text, size, "%s", result ? err->text : "the guest runs here");
    return result;
}

static int abort_by_operator(struct incoming *in, enum ownership_state there, bool force,
                             char *text, size_t size, struct error *err)
{
    if (there == OWNERSHIP_RELEASED && !force) {
        snprintf(text, size,
                 "the source has let the guest go: this is the only copy. Use --resume, or "
                 "--destroy --force to "
                 "lose it");
        return -EBUSY;
    }
    if (there != OWNERSHIP_OWNER && there != OWNERSHIP_COMMITTING && !force) {
        snprintf(text, size,
                 "the source does not answer for this session. If you are certain that it still "
                 "has the guest, or "
                 "want it gone, repeat with --force; if the source is dead, the guest is lost");
        return -EBUSY;
    }
    int result = abort_guest(in, "given up by the operator at the destination", force, err);
    if (result == -EBUSY)
        snprintf(text, size,
                 "%.600s. Repeat with --force to give it up all the same: what it wrote to "
                 "its disks stays",
                 err->text);
    else
        snprintf(text, size, "the copy here is gone; the source may go on with the guest");
    return result;
}

/* 1: go on waiting. */
static int serve_request(struct incoming *in, struct error *err)
{
    char text[ERROR_TEXT_SIZE];

    pthread_mutex_lock(&in->lock);
    struct resolve_request request = in->resolve;
    in->resolve.waiting = false;
    pthread_mutex_unlock(&in->lock);
    if (!request.waiting)
        return 1;
    enum ownership_state there = ask_source(in);
    int result = request.action == RESOLVE_RESUME
                     ? start_by_operator(in, there, request.force, text, sizeof(text), err)
                     : abort_by_operator(in, there, request.force, text, sizeof(text), err);
    bool served = result == 0 || result == -ECONNABORTED;
    bool wanted = result == (request.action == RESOLVE_RESUME ? 0 : -ECONNABORTED);
    request.done(request.context, wanted ? 0 : result, text);
    if (!served)
        error_clear(err);
    return served ? result : 1;
}

static void set_resolvable(struct incoming *in, bool resolvable, struct resolve_request *late)
{
    pthread_mutex_lock(&in->lock);
    in->resolvable = resolvable;
    *late = in->resolve;
    in->resolve.waiting = false;
    pthread_mutex_unlock(&in->lock);
}

/* Whoever asked too late to be served learns how it ended. */
static void answer_late(const struct resolve_request *late, bool started)
{
    bool wanted = started == (late->action == RESOLVE_RESUME);

    if (late->waiting)
        late->done(late->context, wanted ? 0 : -EALREADY,
                   started ? "settled meanwhile: the guest runs here"
                           : "settled meanwhile: the copy here is gone");
}

static int drain_channel(struct incoming *in, struct error *err)
{
    int result = 1;

    while (result == 1 && in->channel) {
        struct message m;
        struct error lost = {0};
        int got = channel_poll(in->channel, &m, &lost);
        if (got == 0)
            return 1;
        if (got < 0) {
            drop_channel(in);
            return 1;
        }
        result = on_message(in, &m, err);
        message_free(&m);
    }
    return result;
}

static int await_fate(struct incoming *in, struct error *err)
{
    uint64_t next_ask = clock_now(), seen = 0, show_at = next_ask + QUIET_MS * NS_PER_MS;

    for (;;) {
        adopt_pending(in);
        int result = drain_channel(in, err);
        if (result == 1)
            result = serve_request(in, err);
        if (result == 1 && !in->channel && clock_now() >= next_ask) {
            if (ask_source(in) == OWNERSHIP_OWNER)
                result =
                    if_recorded(abort_guest(in, "the source has kept the guest", true, err), err);
            next_ask = clock_now() + ASK_EVERY_MS * NS_PER_MS;
        }
        if (result != 1)
            return result;
        if (clock_now() >= show_at) {
            in->observer.changed(in->observer.context);
            show_at = UINT64_MAX;
        }
        uint64_t until = in->channel ? UINT64_MAX : next_ask;
        wakeup_wait(&in->wakeup, &seen, until < show_at ? until : show_at);
    }
}

int destination_stand_by(struct incoming *in, struct error *err)
{
    struct resolve_request late;

    set_resolvable(in, true, &late);
    /* As a rule COMMIT comes at once: the display can wait for the guest. */
    pthread_mutex_lock(&in->lock);
    in->status.phase = INCOMING_PREPARED;
    pthread_mutex_unlock(&in->lock);
    int result = await_fate(in, err);
    set_resolvable(in, false, &late);
    answer_late(&late, result == 0);
    return result;
}

/* The guest's own measure of the gap comes a moment after it runs. */
static void await_gap(struct incoming *in)
{
    struct guest_workload workload = {0};
    uint64_t deadline = clock_now() + GAP_MS * NS_PER_MS;

    if (!in->guest->ops->workload)
        return;
    for (;;) {
        in->guest->ops->workload(in->guest, &workload);
        if (workload.gap_ns || clock_now() >= deadline)
            break;
        clock_sleep_until(clock_now() + 2 * NS_PER_MS);
    }
    in->measurement.guest_gap_ns = workload.gap_ns;
}

static void send_report(struct incoming *in)
{
    uint64_t resident = process_resident_bytes();

    await_gap(in);
    in->measurement.known = true;
    in->measurement.running_at_us = in->guest->ops->resumed_at(in->guest) / NS_PER_US;
    cpu_watch_result(&in->cpu, &in->measurement.cpu_ns, &in->measurement.cpu);
    in->measurement.resident_growth_bytes =
        resident > in->resident_before ? resident - in->resident_before : 0;
    char *text = destination_measurement_encode(&in->measurement);
    if (text && in->channel)
        channel_send_text(in->channel, MESSAGE_REPORT, text, &(struct error){0});
    free(text);
}

void destination_see_off(struct incoming *in)
{
    uint64_t deadline = clock_now() + SEE_OFF_MS * NS_PER_MS, seen = 0;
    bool released = false;

    while (!released && clock_now() < deadline) {
        struct message m = {0};
        adopt_pending(in);
        int got = in->channel ? channel_poll(in->channel, &m, &(struct error){0}) : 0;
        if (got > 0 && m.type == MESSAGE_RELEASE)
            released = true;
        else if (got > 0 && (m.type == MESSAGE_COMMIT || m.type == MESSAGE_ABORT))
            say_running(in);
        else if (got < 0)
            close_channel(in);
        else if (got == 0 && !in->channel && ask_source(in) == OWNERSHIP_RELEASED)
            released = true;
        else if (got == 0)
            wakeup_wait(&in->wakeup, &seen,
                        in->channel ? deadline : clock_now() + ASK_EVERY_MS * NS_PER_MS);
        message_free(&m);
        if (in->channel && !released)
            deadline = clock_now() + SEE_OFF_MS * NS_PER_MS;
    }
    if (!released)
        return;
    ownership_attach(&in->ownership, NULL);
    record_remove(in->record);
    in->record = NULL;
    send_report(in);
}
