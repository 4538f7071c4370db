#include "migrate/destination.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/base/clock.h"
#include "transport/base/log.h"
#include "transport/base/thread.h"

void destination_set_phase(struct incoming *in, enum incoming_phase phase)
{
    pthread_mutex_lock(&in->lock);
    in->status.phase = phase;
    pthread_mutex_unlock(&in->lock);
    in->observer.changed(in->observer.context);
}

void destination_say(struct incoming *in, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    pthread_mutex_lock(&in->lock);
    vsnprintf(in->status.message, sizeof(in->status.message), format, arguments);
    pthread_mutex_unlock(&in->lock);
    va_end(arguments);
    in->observer.changed(in->observer.context);
}

void destination_close_lanes(struct incoming *in)
{
    if (!in->transport)
        return;
    device_note(in->transport, in->options.pin_limit, &in->measurement.device);
    transport_shutdown(in->transport);
    transport_close(in->transport);
    in->transport = NULL;
}

/* The guest's end on this host: nothing of it is left when the phase says so. */
static void discard(struct incoming *in, const struct error *why)
{
    bool was_prepared = ownership_get(&in->ownership) == OWNERSHIP_ABORTED;

    if (in->channel && !was_prepared)
        channel_send_text(in->channel, MESSAGE_ERROR, why->text, &(struct error){0});
    destination_close_lanes(in);
    prefault_stop(in->prefault);
    in->prefault = NULL;
    pthread_mutex_lock(&in->lock);
    struct guest *guest = in->guest;
    in->guest = NULL;
    pthread_mutex_unlock(&in->lock);
    if (guest)
        guest->ops->destroy(guest);
    ownership_attach(&in->ownership, NULL);
    if (was_prepared)
        record_keep(in->record); /* the source may still have to ask */
    else
        record_remove(in->record);
    in->record = NULL;
    destination_say(in, "%s", why->text);
}

static void leave(struct incoming *in, enum incoming_phase phase)
{
    channel_close_heard(in->channel);
    in->channel = NULL;
    if (in->socket >= 0)
        close(in->socket);
    in->socket = -1;
    free(in->state);
    in->state = NULL;
    pthread_mutex_lock(&in->lock);
    in->status.finished = true;
    in->status.phase = phase;
    pthread_mutex_unlock(&in->lock);
    in->observer.changed(in->observer.context);
}

static void *session_thread(void *argument)
{
    struct incoming *in = argument;
    struct error err = {0};

    thread_set_name("incoming", -1);
    int result = destination_greet(in, &err);
    if (result == 0) {
        leave(in, INCOMING_QUERY);
        return NULL;
    }
    if (result > 0)
        result = destination_receive(in, &err);
    if (result == 0)
        result = destination_stand_by(in, &err);
    if (result) {
        discard(in, &err);
        leave(in, INCOMING_ABORTED);
        return NULL;
    }
    destination_set_phase(in, INCOMING_STARTED);
    destination_say(in, "the guest runs here");
    destination_close_lanes(in);
    destination_see_off(in);
    if (in->guest->ops->restore)
        in->guest->ops->restore(in->guest);
    ownership_attach(&in->ownership, NULL);
    record_keep(in->record);
    in->record = NULL;
    leave(in, INCOMING_STARTED);
    return NULL;
}

int incoming_start(int socket, const struct incoming_options *options,
                   const struct migration_observer *observer, struct incoming **out,
                   struct error *err)
{
    struct incoming *in = calloc(1, sizeof(*in));
    int result;

    if (!in) {
        close(socket);
        return error_set(err, ENOMEM, "no memory for an incoming migration");
    }
    in->options = *options;
    in->host.command = options->command;
    memcpy(in->host.runtime, options->runtime, sizeof(in->host.runtime));
    in->observer = *observer;
    in->socket = socket;
    in->pending_socket = -1;
    in->began_at = clock_now();
    cpu_watch_begin(&in->cpu);
    in->resident_before = process_resident_bytes();
    wakeup_init(&in->wakeup);
    pthread_mutex_init(&in->lock, NULL);
    ownership_init(&in->ownership, OWNERSHIP_RECEIVING);
    in->cancel_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (in->cancel_event < 0) {
        result = error_set_errno(err, errno, "eventfd failed");
        goto free_incoming;
    }
    result = -pthread_create(&in->thread, NULL, session_thread, in);
    if (result) {
        error_set_errno(err, -result, "starting the session's thread failed");
        goto close_event;
    }
    *out = in;
    return 0;

close_event:
    close(in->cancel_event);
free_incoming:
    ownership_destroy(&in->ownership);
    pthread_mutex_destroy(&in->lock);
    wakeup_destroy(&in->wakeup);
    close(socket);
    free(in);
    return result;
}

void incoming_get_status(struct incoming *in, struct incoming_status *out)
{
    pthread_mutex_lock(&in->lock);
    *out = in->status;
    pthread_mutex_unlock(&in->lock);
    out->elapsed_ns = clock_now() - in->began_at;
}

struct guest *incoming_guest(struct incoming *in)
{
    pthread_mutex_lock(&in->lock);
    struct guest *guest = in->guest;
    pthread_mutex_unlock(&in->lock);
    return guest;
}

struct guest *incoming_take_guest(struct incoming *in)
{
    pthread_mutex_lock(&in->lock);
    struct guest *guest =
        in->status.finished && in->status.phase == INCOMING_STARTED ? in->guest : NULL;
    if (guest)
        in->guest = NULL;
    pthread_mutex_unlock(&in->lock);
    return guest;
}

void incoming_cancel(struct incoming *in)
{
    uint64_t one = 1;

    atomic_store(&in->cancelled, true);
    if (write(in->cancel_event, &one, sizeof(one)) < 0)
        log_line(LOG_DEBUG, "cancelled more often than can be counted");
    wakeup_raise(&in->wakeup);
}

int incoming_resolve(struct incoming *in, enum resolve_action action, bool force,
                     resolve_done_fn *done, void *context, struct error *err)
{
    int result = 0;

    pthread_mutex_lock(&in->lock);
    if (!in->resolvable)
        result =
            error_set(err, EINVAL, "this session is not prepared: there is nothing to resolve");
    else if (in->resolve.waiting)
        result = error_set(err, EBUSY, "another request to resolve this session is being served");
    else
        in->resolve = (struct resolve_request){true, action, force, done, context};
    pthread_mutex_unlock(&in->lock);
    if (!result)
        wakeup_raise(&in->wakeup);
    return result;
}

void incoming_free(struct incoming *in)
{
    if (!in)
        return;
    pthread_join(in->thread, NULL);
    prefault_stop(in->prefault);
    responder_stop(in->responder);
    if (in->pending_socket >= 0)
        close(in->pending_socket);
    if (in->guest)
        in->guest->ops->destroy(in->guest);
    if (in->host.ready)
        in->host.ready->ops->destroy(in->host.ready);
    close(in->cancel_event);
    ownership_destroy(&in->ownership);
    pthread_mutex_destroy(&in->lock);
    wakeup_destroy(&in->wakeup);
    free(in);
}
