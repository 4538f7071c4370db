#include "migrate/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "transport/base/clock.h"
#include "transport/base/log.h"
#include "transport/base/thread.h"

enum {
    NOTIFY_MS = 50,
    LAST_WORDS_MS = 200, /* for the destination's own account of a failure to come in */
};

void source_notify(struct migration *m, bool now)
{
    uint64_t at = clock_now();
    struct transport_stats stats;

    if (!now && at - m->last_notify < NOTIFY_MS * NS_PER_MS)
        return;
    m->last_notify = at;
    pthread_mutex_lock(&m->lock);
    m->status.elapsed_ns = at - m->accepted_at;
    if (m->rounds && m->transport) {
        transport_stats(m->transport, &stats);
        m->status.round_bytes_done = rounds_counts(m->rounds)->pages * GUEST_PAGE_SIZE;
        m->status.guest_bytes = m->measurement.guest_bytes + rounds_counts(m->rounds)->bytes;
        m->status.wire_bytes = stats.wire_bytes;
    }
    pthread_mutex_unlock(&m->lock);
    m->observer.changed(m->observer.context);
}

void source_enter_phase(struct migration *m, enum migration_phase phase)
{
    pthread_mutex_lock(&m->lock);
    m->status.phase = phase;
    pthread_mutex_unlock(&m->lock);
}

void source_set_phase(struct migration *m, enum migration_phase phase)
{
    source_enter_phase(m, phase);
    source_notify(m, true);
}

void source_say(struct migration *m, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    pthread_mutex_lock(&m->lock);
    vsnprintf(m->status.message, sizeof(m->status.message), format, arguments);
    pthread_mutex_unlock(&m->lock);
    va_end(arguments);
}

static bool explains(const struct message *message)
{
    return message->type == MESSAGE_ERROR || message->type == MESSAGE_REFUSE ||
           message->type == MESSAGE_ABORTED;
}

/* Of a channel that is lost: the peer's own account of why, if it left one, or else what happened
 * to the channel. */
static int last_words(struct migration *m, struct error *err)
{
    struct message message;
    int result;

    while ((result = channel_poll(m->channel, &message, err)) > 0) {
        bool found = explains(&message);
        if (found)
            result = message_unexpected(&message, "nothing", err);
        message_free(&message);
        if (found)
            return result;
    }
    return result;
}

int source_interrupted(void *migration, struct error *err)
{
    struct migration *m = migration;

    if (guest_ended(m->guest))
        return error_set(err, ESRCH, "the guest has ended by itself");
    if (atomic_load(&m->cancelled))
        return error_set(err, ECANCELED, "cancelled");
    return m->channel && channel_lost(m->channel) ? last_words(m, err) : 0;
}

int source_receive(struct migration *m, enum message_type wanted, int timeout_ms, bool cancellable,
                   struct message *out, struct error *err)
{
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS, seen = 0;

    for (;;) {
        int result = channel_poll(m->channel, out, err);
        if (result < 0)
            return result;
        if (result > 0 && out->type == wanted)
            return 0;
        if (result > 0) {
            result = message_unexpected(out, message_name(wanted), err);
            message_free(out);
            return result;
        }
        if (cancellable && atomic_load(&m->cancelled))
            return error_set(err, ECANCELED, "cancelled");
        if (clock_now() >= deadline)
            return error_set(err, ETIMEDOUT,
                             "the destination is alive but has not sent %s for %d s",
                             message_name(wanted), timeout_ms / 1000);
        wakeup_wait(&m->wakeup, &seen, deadline);
    }
}

/* That a connection was closed tells nothing; whatever else went wrong here goes first. */
static void take_words(struct message *message, struct error *err)
{
    struct error own = *err, words = {0};

    message_unexpected(message, "nothing", &words);
    error_clear(err);
    if (own.code == ECONNRESET || own.code == EPIPE || own.code == ESHUTDOWN)
        *err = words;
    else
        error_set(err, own.code, "%.400s (%.300s)", own.text, words.text);
}

/* A lane that breaks is often only the echo of something the destination has already explained on
 * the channel. */
static void hear_last_words(struct migration *m, struct error *err)
{
    uint64_t deadline = clock_now() + LAST_WORDS_MS * NS_PER_MS, seen = 0;
    struct error words = {0};
    struct message message;
    int result = 0;

    if (!m->channel || err->code == ECANCELED || err->code == ETIME || err->code == EBADMSG)
        return;
    while (result == 0 && clock_now() < deadline) {
        while ((result = channel_poll(m->channel, &message, &words)) > 0) {
            bool found = explains(&message);
            if (found)
                take_words(&message, err);
            message_free(&message);
            if (found)
                return;
        }
        wakeup_wait(&m->wakeup, &seen, deadline);
    }
}

static int run(struct migration *m, struct error *err)
{
    int result = source_greet(m, err);

    if (!result)
        result = source_precopy(m, err);
    return result ? result : source_commit(m, err);
}

static void close_lanes(struct migration *m)
{
    if (!m->transport)
        return;
    device_note(m->transport, m->options.pin_limit, &m->measurement.source_device);
    transport_shutdown(m->transport);
    transport_close(m->transport);
    m->transport = NULL;
}

static void close_tracker(struct migration *m)
{
    if (m->tracker)
        m->tracker->ops->close(m->tracker);
    m->tracker = NULL;
}

uint64_t source_pages_written(struct migration *m)
{
    struct guest_workload workload;

    if (!m->guest->ops->workload)
        return MEASUREMENT_UNKNOWN;
    m->guest->ops->workload(m->guest, &workload);
    return workload.pages_written;
}

void source_note_totals(struct migration *m)
{
    struct measurement *out = &m->measurement;
    uint64_t ns = 0, bytes = 0;
    struct transport_stats stats;

    for (size_t i = 0; i < out->round_count; i++) {
        if (out->rounds[i].paused)
            continue;
        ns += out->rounds[i].ns;
        bytes += out->rounds[i].bytes;
    }
    if (m->transport) {
        device_note(m->transport, m->options.pin_limit, &out->source_device);
        transport_stats(m->transport, &stats);
        out->wire_bytes = stats.wire_bytes;
    }
    out->goodput = ns ? (uint64_t)((double)bytes * 1e9 / (double)ns) : 0;
    out->total_ns = clock_now() - m->accepted_at;
    cpu_watch_result(&m->cpu, &out->source_cpu_ns, &out->source_cpu);
}

static void finish_completed(struct migration *m)
{
    source_set_phase(m, MIGRATION_COMMITTING);
    close_lanes(m);
    close_tracker(m);
    source_note_totals(m);
    ownership_attach(&m->ownership, NULL);
    record_remove(m->record);
    m->record = NULL;
    source_await_report(m);
    snprintf(m->measurement.result, sizeof(m->measurement.result), "completed");
    m->measurement.error[0] = '\0';
    source_learn(m);
    source_say(m, "the guest runs at the destination");
}

/* The guest first; everything else can wait. */
static enum migration_phase finish_failed(struct migration *m, struct error *why)
{
    struct error err = {0};
    enum migration_phase phase = MIGRATION_FAILED;

    if (m->throttle && m->guest->ops->throttle(m->guest, 0, &err))
        log_line(LOG_ERROR, "taking the throttle off failed: %s", err.text);
    error_clear(&err);
    if (m->guest_paused && m->guest->ops->resume(m->guest, &err)) {
        phase = MIGRATION_STUCK;
        error_prefix(why, "the guest is paused and could not be resumed (%s)", err.text);
    }
    if (m->guest_prepared && m->guest->ops->restore)
        m->guest->ops->restore(m->guest);
    hear_last_words(m, why);
    snprintf(m->measurement.result, sizeof(m->measurement.result),
             why->code == ECANCELED ? "cancelled" : "failed");
    snprintf(m->measurement.error, sizeof(m->measurement.error), "%s", why->text);
    if (guest_ended(m->guest)) {
        phase = MIGRATION_STUCK;
        source_say(m, "%s; the guest has ended by itself and does not run any more", why->text);
    } else if (phase == MIGRATION_FAILED) {
        source_say(m, "%s; the guest goes on at the source", why->text);
    } else {
        source_say(m, "%s; try `wander resolve` or `wander quit`", why->text);
    }
    source_note_totals(m);
    if (!m->destination_settled)
        source_tell_abort(
            m, why->text); /* before the lanes go, or the destination takes that for the reason */
    close_lanes(m);
    close_tracker(m);
    ownership_attach(&m->ownership, NULL);
    record_remove(m->record);
    m->record = NULL;
    return phase;
}

/* Guests in processes of their own have their CPU time there. */
static void watch_cpu(struct migration *m)
{
    const struct guest_ops *ops = m->guest->ops;

    cpu_watch_begin(&m->cpu);
    if (ops->monitor)
        cpu_watch_hypervisor(&m->cpu, ops->monitor(m->guest)->pid, false);
}

static void *session_thread(void *argument)
{
    struct migration *m = argument;
    struct error err = {0};
    enum migration_phase phase = MIGRATION_COMPLETED;

    thread_set_name("migration", -1);
    watch_cpu(m);
    if (run(m, &err) == 0)
        finish_completed(m);
    else
        phase = finish_failed(m, &err);
    cpu_watch_result(&m->cpu, &m->measurement.source_cpu_ns, &m->measurement.source_cpu);
    channel_close(m->channel);
    m->channel = NULL;
    rounds_free(m->rounds);
    m->rounds = NULL;
    guest_state_free(&m->state);
    pthread_mutex_lock(&m->lock);
    m->reportable = true;
    m->status.finished = true;
    m->status.phase = phase;
    pthread_mutex_unlock(&m->lock);
    source_notify(m, true);
    return NULL;
}

static void note_options(struct migration *m)
{
    struct measurement *out = &m->measurement;

    token_format(m->token, out->session);
    memcpy(m->status.session, out->session, sizeof(m->status.session));
    snprintf(out->transport, sizeof(out->transport), "%s", m->options.destination.scheme);
    address_format(&m->options.destination, out->destination, sizeof(out->destination));
    snprintf(out->filter, sizeof(out->filter), "%s", m->options.filter);
    out->lanes = m->options.lanes;
    out->limits = m->options.limits;
    out->max_bandwidth = m->options.max_bandwidth;
    out->operation = m->options.operation;
    out->registration = m->options.registration;
    out->pin_limit =
        m->options.pin_limit ? m->options.pin_limit : (uint64_t)TRANSPORT_DEFAULT_PIN_LIMIT;
    out->dscp = m->options.dscp;
}

static int check_options(const struct migration_options *o, struct error *err)
{
    if (o->lanes == 0 || o->lanes > TRANSPORT_MAX_LANES)
        return error_set(err, EINVAL, "a migration has 1 to %d lanes, not %u", TRANSPORT_MAX_LANES,
                         o->lanes);
    if (o->limits.throttle_max > 99)
        return error_set(err, EINVAL, "a guest can be throttled by at most 99 %%, not %u %%",
                         o->limits.throttle_max);
    if (o->dscp > 63)
        return error_set(err, EINVAL, "a DSCP is 0 to 63, not %u", o->dscp);
    return o->filter[0] ? transport_wrap_check(o->filter, err) : 0;
}

int migration_start(struct guest *guest, const struct migration_options *options,
                    const struct migration_observer *observer, struct migration **out,
                    struct error *err)
{
    int result = check_options(options, err);
    struct migration *m = result ? NULL : calloc(1, sizeof(*m));

    if (!m)
        return result ? result : error_set(err, ENOMEM, "no memory for a migration");
    m->guest = guest;
    m->options = *options;
    m->observer = *observer;
    m->accepted_at = clock_now();
    m->epoch = 1;
    m->fixed_ns = POLICY_FIRST_FIXED_MS * NS_PER_MS;
    m->pause_delay_ns = POLICY_FIRST_PAUSE_DELAY_MS * NS_PER_MS;
    wakeup_init(&m->wakeup);
    pthread_mutex_init(&m->lock, NULL);
    ownership_init(&m->ownership, OWNERSHIP_OWNER);
    m->cancel_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->cancel_event < 0 || getrandom(m->token, sizeof(m->token), 0) != sizeof(m->token)) {
        result = error_set_errno(err, errno, "making a session token failed");
        goto free_migration;
    }
    note_options(m);
    result = -pthread_create(&m->thread, NULL, session_thread, m);
    if (result) {
        error_set_errno(err, -result, "starting the migration's thread failed");
        goto free_migration;
    }
    *out = m;
    return 0;

free_migration:
    if (m->cancel_event >= 0)
        close(m->cancel_event);
    ownership_destroy(&m->ownership);
    pthread_mutex_destroy(&m->lock);
    wakeup_destroy(&m->wakeup);
    free(m);
    return result;
}

void migration_cancel(struct migration *m)
{
    uint64_t one = 1;

    atomic_store(&m->cancelled, true);
    if (write(m->cancel_event, &one, sizeof(one)) < 0)
        log_line(LOG_DEBUG, "cancelled more often than can be counted");
    wakeup_raise(&m->wakeup);
}

void migration_get_status(struct migration *m, struct migration_status *out)
{
    pthread_mutex_lock(&m->lock);
    uint64_t now = clock_now(); /* never before eta_at */
    *out = m->status;
    if (!out->finished)
        out->elapsed_ns = now - m->accepted_at;
    if (out->eta_ns && out->eta_ns != UINT64_MAX) {
        uint64_t passed = now - m->eta_at;
        out->eta_ns = passed < out->eta_ns ? out->eta_ns - passed : NS_PER_MS;
    }
    pthread_mutex_unlock(&m->lock);
}

int migration_resolve(struct migration *m, enum resolve_action action, bool force,
                      resolve_done_fn *done, void *context, struct error *err)
{
    int result = 0;

    pthread_mutex_lock(&m->lock);
    if (m->status.phase != MIGRATION_IN_DOUBT)
        result =
            error_set(err, EINVAL, "this migration is not in doubt: there is nothing to resolve");
    else if (m->resolve.waiting)
        result = error_set(err, EBUSY, "another request to resolve this migration is being served");
    else
        m->resolve = (struct resolve_request){true, action, force, done, context};
    pthread_mutex_unlock(&m->lock);
    if (!result)
        wakeup_raise(&m->wakeup);
    return result;
}

static char *report(struct migration *m, char *(*render)(const struct measurement *, uint64_t))
{
    pthread_mutex_lock(&m->lock);
    char *text = m->reportable
                     ? render(&m->measurement, m->measurement.destination_half.guest_gap_ns)
                     : NULL;
    pthread_mutex_unlock(&m->lock);
    return text;
}

char *migration_report_json(struct migration *m)
{
    return report(m, measurement_to_json);
}

char *migration_report_table(struct migration *m)
{
    return report(m, measurement_to_table);
}

int migration_exit_code(struct migration *m)
{
    struct migration_status status;

    migration_get_status(m, &status);
    if (status.phase == MIGRATION_IN_DOUBT)
        return 3;
    if (!status.finished)
        return -1;
    return status.phase == MIGRATION_COMPLETED ? 0 : status.phase == MIGRATION_FAILED ? 1 : 4;
}

void migration_free(struct migration *m)
{
    if (!m)
        return;
    pthread_join(m->thread, NULL);
    responder_stop(m->responder);
    close(m->cancel_event);
    measurement_free(&m->measurement);
    ownership_destroy(&m->ownership);
    pthread_mutex_destroy(&m->lock);
    wakeup_destroy(&m->wakeup);
    free(m);
}
