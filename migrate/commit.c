/* COMMIT and what may follow it. From the record of COMMITTING on, only the destination's recorded
 * word makes this end OWNER again; until that word comes, COMMIT is said again and again, and the
 * guest stays paused. */
#include "migrate/source.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/exchange.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

enum {
    RETRY_MS = 500,
    DOUBT_AFTER_MS = 10000,
    DOUBT_RETRY_MS = 2000,
    ASK_MS = 2000,
    REPORT_MS = 2000,
};

/* What is known of the destination's fate. */
enum verdict { VERDICT_NONE, VERDICT_RUNS_THERE, VERDICT_ABORTED };

/* Under the lock: in doubt, a report may be asked for at the same time. */
static void note_running(struct migration *m)
{
    uint64_t now = clock_now();

    pthread_mutex_lock(&m->lock);
    if (m->measurement.downtime_ns == 0) {
        m->measurement.downtime_ns = now - m->paused_at;
        m->measurement.downtime.resume = now - m->prepared_at;
    }
    pthread_mutex_unlock(&m->lock);
}

/* Says `what` on the channel and waits for the answer. */
static enum verdict say_and_listen(struct migration *m, enum message_type what, struct error *err)
{
    enum verdict verdict = VERDICT_NONE;
    struct message reply = {0};
    uint64_t deadline = clock_now() + SOURCE_REPLY_MS * NS_PER_MS, seen = 0;
    uint64_t show_at = clock_now() + SOURCE_QUIET_MS * NS_PER_MS;
    int result = what == MESSAGE_ABORT
                     ? channel_send_text(m->channel, what, "the source gave up", err)
                     : channel_send(m->channel, what, NULL, 0, err);

    while (!result && verdict == VERDICT_NONE && clock_now() < deadline) {
        wakeup_wait(&m->wakeup, &seen, show_at < deadline ? show_at : deadline);
        if (clock_now() >= show_at) {
            source_notify(m, true);
            show_at = deadline;
        }
        while ((result = channel_poll(m->channel, &reply, err)) > 0) {
            if (reply.type == MESSAGE_RUNNING) {
                note_running(m);
                verdict = VERDICT_RUNS_THERE;
            } else if (reply.type == MESSAGE_ABORTED) {
                char text[ERROR_TEXT_SIZE / 2];
                error_clear(err);
                error_set(err, ECONNABORTED, "the destination did not start the guest: %s",
                          message_text(&reply, text, sizeof(text)));
                verdict = VERDICT_ABORTED;
            }
            message_free(&reply);
            if (verdict != VERDICT_NONE)
                return verdict;
        }
    }
    return verdict;
}

/* A new connection to the session, the next epoch. */
static int reconnect(struct migration *m, struct error *err)
{
    struct hello hello = {
        .version_min = PROTO_VERSION_MIN,
        .version_max = PROTO_VERSION_MAX,
        .intent = HELLO_RECONNECT,
        .epoch = m->epoch + 1,
        .session_port = responder_port(m->responder),
    };
    uint8_t body[PROTO_BODY_SIZE];
    struct message reply;
    int socket;

    if (m->session_peer.port == 0)
        return error_set(err, ENOTCONN, "the destination has no session port");
    socket = address_connect(&m->session_peer, ASK_MS, -1, err);
    if (socket < 0)
        return socket;
    memcpy(hello.token, m->token, sizeof(hello.token));
    channel_close(m->channel);
    m->channel = NULL;
    int result = channel_open(socket, &m->wakeup, &m->channel, err);
    if (result)
        return result;
    m->epoch++;
    result = channel_send(m->channel, MESSAGE_HELLO, body, hello_encode(&hello, body), err);
    if (!result)
        result = source_receive(m, MESSAGE_WELCOME, ASK_MS, false, &reply, err);
    if (!result)
        message_free(&reply);
    return result;
}

/* Asks the session port, then the listener, what became of the session. */
static enum ownership_state ask_destination(struct migration *m)
{
    enum ownership_state state = OWNERSHIP_UNKNOWN;
    struct error err = {0};

    if (exchange_ask(&m->session_peer, m->token, ASK_MS, -1, &state, &err) == 0 &&
        state != OWNERSHIP_UNKNOWN)
        return state;
    error_clear(&err);
    if (exchange_ask(&m->options.destination, m->token, ASK_MS, -1, &state, &err))
        state = OWNERSHIP_UNKNOWN;
    return state;
}

/* One attempt to learn the end of it over a new connection, saying `what` again. */
static enum verdict try_again(struct migration *m, enum message_type what, struct error *err)
{
    struct error local = {0};

    if (reconnect(m, &local) == 0) {
        enum verdict verdict = say_and_listen(m, what, &local);
        if (verdict == VERDICT_ABORTED)
            error_set(err, local.code, "%s", local.text);
        if (verdict != VERDICT_NONE)
            return verdict;
    }
    switch (ask_destination(m)) {
    case OWNERSHIP_ABORTED:
        error_set(err, ECONNABORTED,
                  "the destination says that it has not started the guest and will not");
        return VERDICT_ABORTED;
    case OWNERSHIP_STARTED:
        note_running(m);
        return VERDICT_RUNS_THERE;
    default:
        return VERDICT_NONE;
    }
}

static bool take_request(struct migration *m, struct resolve_request *out)
{
    pthread_mutex_lock(&m->lock);
    *out = m->resolve;
    m->resolve.waiting = false;
    pthread_mutex_unlock(&m->lock);
    return out->waiting;
}

/* What the operator wants against what the destination says. Sets *verdict when it ends the doubt.
 */
static int decide_request(struct migration *m, const struct resolve_request *request,
                          enum verdict *verdict, char *text, size_t size, struct error *err)
{
    enum ownership_state there = ask_destination(m);

    if (there == OWNERSHIP_PREPARED) {
        enum message_type what = request->action == RESOLVE_RESUME ? MESSAGE_ABORT : MESSAGE_COMMIT;
        *verdict = try_again(m, what, err);
        there = *verdict == VERDICT_ABORTED      ? OWNERSHIP_ABORTED
                : *verdict == VERDICT_RUNS_THERE ? OWNERSHIP_STARTED
                                                 : OWNERSHIP_UNKNOWN;
    }
    *verdict = VERDICT_NONE;
    if (there == OWNERSHIP_ABORTED && request->action == RESOLVE_DESTROY && !request->force) {
        snprintf(text, size,
                 "the destination has given the guest up: this is the only copy. Use --resume, or "
                 "--destroy --force to lose it");
        return -EBUSY;
    }
    if (there == OWNERSHIP_STARTED && request->action == RESOLVE_RESUME) {
        *verdict = VERDICT_RUNS_THERE;
        snprintf(text, size,
                 "the guest runs at the destination; the copy here was released, not resumed");
        return -EBUSY;
    }
    if (there == OWNERSHIP_STARTING) {
        snprintf(text, size,
                 "the destination is starting the guest at this moment: ask again when it has");
        return -EBUSY;
    }
    if (there != OWNERSHIP_ABORTED && there != OWNERSHIP_STARTED && !request->force) {
        snprintf(text, size,
                 "the destination does not answer for this session (%s). If you are certain that "
                 "the guest "
                 "%s there, repeat with --force; if you are wrong, %s",
                 ownership_name(there), request->action == RESOLVE_RESUME ? "does not run" : "runs",
                 request->action == RESOLVE_RESUME ? "two copies will run" : "the guest is lost");
        return -EBUSY;
    }
    *verdict = request->action == RESOLVE_RESUME ? VERDICT_ABORTED : VERDICT_RUNS_THERE;
    snprintf(text, size,
             request->action == RESOLVE_RESUME ? "the guest goes on here"
                                               : "the copy here is gone");
    return 0;
}

static enum verdict serve_request(struct migration *m, struct error *err)
{
    struct resolve_request request;
    enum verdict verdict = VERDICT_NONE;
    struct error local = {0};
    char text[ERROR_TEXT_SIZE / 2];

    if (!take_request(m, &request))
        return VERDICT_NONE;
    int result = decide_request(m, &request, &verdict, text, sizeof(text), &local);
    if (verdict == VERDICT_ABORTED)
        error_set(err, ECONNABORTED, "resolved: the guest goes on at the source");
    request.done(request.context, result, text);
    return verdict;
}

/* Whoever asked too late to be served learns how it ended. */
static void leave_doubt(struct migration *m, enum verdict verdict)
{
    bool here = verdict == VERDICT_ABORTED;
    struct resolve_request late;

    pthread_mutex_lock(&m->lock);
    m->reportable = false;
    m->status.phase = MIGRATION_COMMITTING;
    late = m->resolve;
    m->resolve.waiting = false;
    pthread_mutex_unlock(&m->lock);
    source_notify(m, true);
    if (late.waiting)
        late.done(late.context, here == (late.action == RESOLVE_RESUME) ? 0 : -EALREADY,
                  here ? "settled meanwhile: the guest goes on here"
                       : "settled meanwhile: the guest runs at the destination");
}

static enum verdict stay_in_doubt(struct migration *m, struct error *err)
{
    enum verdict verdict = VERDICT_NONE;
    char token[33];
    uint64_t seen = 0, next_try = clock_now();

    token_format(m->token, token);
    snprintf(m->measurement.result, sizeof(m->measurement.result), "in-doubt");
    snprintf(m->measurement.error, sizeof(m->measurement.error),
             "in doubt: the destination was told to start the guest and then fell silent. The "
             "guest is paused here; wander goes on "
             "asking. If the destination stays silent, look there, then: wander resolve %s "
             "--resume (or --destroy), here or there",
             token);
    source_say(m, "%s", m->measurement.error);
    source_note_totals(m);
    pthread_mutex_lock(&m->lock);
    m->reportable = true;
    pthread_mutex_unlock(&m->lock);
    source_set_phase(m, MIGRATION_IN_DOUBT);
    while (verdict == VERDICT_NONE) {
        if (clock_now() >= next_try) {
            verdict = try_again(m, MESSAGE_COMMIT, err);
            next_try = clock_now() + DOUBT_RETRY_MS * NS_PER_MS;
        }
        if (verdict == VERDICT_NONE)
            verdict = serve_request(m, err);
        if (verdict == VERDICT_NONE)
            wakeup_wait(&m->wakeup, &seen, next_try);
    }
    leave_doubt(m, verdict);
    return verdict;
}

static enum verdict find_out(struct migration *m, struct error *err)
{
    uint64_t until = clock_now() + DOUBT_AFTER_MS * NS_PER_MS;
    enum verdict verdict;

    m->asked_again = true;
    source_say(m, "the connection broke after COMMIT: asking the destination anew");
    for (;;) {
        verdict = try_again(m, MESSAGE_COMMIT, err);
        if (verdict != VERDICT_NONE)
            return verdict;
        if (clock_now() >= until)
            return stay_in_doubt(m, err);
        clock_sleep_until(clock_now() + RETRY_MS * NS_PER_MS);
    }
}

static void entrust(struct migration *m, enum guest_holder holder)
{
    if (m->guest->ops->entrust)
        m->guest->ops->entrust(m->guest, holder);
}

static void release(struct migration *m)
{
    struct error err = {0};

    if (ownership_move(&m->ownership, OWNERSHIP_COMMITTING, OWNERSHIP_RELEASED, &err))
        log_line(LOG_ERROR, "%s", err.text);
    else
        entrust(m, GUEST_HELD_THERE);
    if (m->channel)
        channel_send(m->channel, MESSAGE_RELEASE, NULL, 0, &(struct error){0});
}

/* On one clock the moment a vCPU set out is known itself, and not only when the word of it came. */
static void sharpen_downtime(struct migration *m)
{
    struct measurement *out = &m->measurement;
    uint64_t running_at = out->destination_half.running_at_us * NS_PER_US;

    if (!m->clock_shared || running_at < m->prepared_at ||
        running_at > m->paused_at + out->downtime_ns)
        return;
    out->downtime_ns = running_at - m->paused_at;
    out->downtime.resume = running_at - m->prepared_at;
    out->downtime_clock_shared = true;
}

void source_await_report(struct migration *m)
{
    struct error err = {0};
    struct message reply;

    if (!m->channel || source_receive(m, MESSAGE_REPORT, REPORT_MS, false, &reply, &err))
        return;
    if (destination_measurement_decode((const char *)reply.body, reply.size,
                                       &m->measurement.destination_half, &err))
        log_line(LOG_WARNING, "%s", err.text);
    message_free(&reply);
    sharpen_downtime(m);
}

int source_commit(struct migration *m, struct error *err)
{
    struct error commit_error = {0};
    enum verdict verdict;
    int result = source_interrupted(m, err); /* the last moment for a cancel */

    if (result)
        return result;
    entrust(m, GUEST_HELD_IN_DOUBT);
    result = ownership_move(&m->ownership, OWNERSHIP_OWNER, OWNERSHIP_COMMITTING, err);
    if (result) {
        entrust(m, GUEST_HELD_HERE);
        return result;
    }
    source_enter_phase(m, MIGRATION_COMMITTING);
    verdict = say_and_listen(m, MESSAGE_COMMIT, &commit_error);
    if (verdict == VERDICT_NONE) {
        error_clear(&commit_error);
        verdict = find_out(m, &commit_error);
    }
    if (verdict == VERDICT_RUNS_THERE) {
        release(m);
        return 0;
    }
    m->destination_settled = true;
    result = ownership_move(&m->ownership, OWNERSHIP_COMMITTING, OWNERSHIP_OWNER, err);
    if (result)
        return result;
    entrust(m, GUEST_HELD_HERE);
    return error_set(err, ECONNABORTED, "%s", commit_error.text);
}

void source_tell_abort(struct migration *m, const char *why)
{
    struct error err = {0};
    uint64_t until = clock_now() + ASK_MS * NS_PER_MS;

    if (!m->channel ||
        (channel_send_text(m->channel, MESSAGE_ABORT, why, &err) == 0 && !channel_lost(m->channel)))
        return;
    if (!m->record || m->measurement.downtime.final_copy == 0)
        return; /* it was never PREPARED: silence tells it all */
    do {
        error_clear(&err);
        if (reconnect(m, &err) == 0 && say_and_listen(m, MESSAGE_ABORT, &err) == VERDICT_ABORTED)
            return;
        clock_sleep_until(clock_now() + RETRY_MS / 5 * NS_PER_MS);
    } while (clock_now() < until);
}
