#include "migrate/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "transport/base/clock.h"

/* The first pings come close together: one round trip is a poor estimate, the shortest of many a
 * good one. */
enum { FIRST_PINGS = 16, FIRST_PING_MS = 15, LINGER_MS = 200 };

struct queued {
    struct queued *next;
    struct message message;
};

/* Locks: `sending` is held over a whole message on the wire; `lock` guards the fields below it and
 * nests inside. */
struct channel {
    int socket, stop_event;
    pthread_t thread;
    struct wakeup *wakeup;

    pthread_mutex_t sending;

    pthread_mutex_t lock;
    struct queued *first, **last;
    unsigned queued;
    size_t queued_bytes;
    struct error failure; /* set once */
    uint64_t best_round_trip;
    int64_t clock_offset;

    atomic_bool is_lost;
    atomic_bool
        has_spoken; /* a session begins with HELLO or its answer: no heartbeat goes before */

    /* the reader's own */
    uint64_t last_heard, next_ping;
    unsigned pings;
    uint8_t header[PROTO_HEADER_SIZE];
    size_t header_read, body_read;
    struct message incoming;
};

static void channel_fail(struct channel *c, const struct error *why)
{
    pthread_mutex_lock(&c->lock);
    bool first = c->failure.code == 0;
    if (first)
        c->failure = *why;
    pthread_mutex_unlock(&c->lock);
    if (!first)
        return;
    atomic_store(&c->is_lost, true);
    wakeup_raise(c->wakeup);
}

/* Writes all of `iov` to the non-blocking socket, waiting for room until the deadline. */
static int write_all(struct channel *c, struct iovec *iov, int count, struct error *err)
{
    uint64_t deadline = clock_now() + CHANNEL_DEAD_AFTER_MS * NS_PER_MS;

    while (count > 0) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)count};
        ssize_t sent = sendmsg(c->socket, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd wait = {.fd = c->socket, .events = POLLOUT};
            if (atomic_load(&c->is_lost))
                return error_set(err, ECONNRESET, "the control channel is lost");
            if (clock_now() >= deadline)
                return error_set(err, ETIMEDOUT,
                                 "the peer has taken nothing from the control channel for %d s",
                                 CHANNEL_DEAD_AFTER_MS / 1000);
            poll(&wait, 1, 100);
            continue;
        }
        if (sent < 0)
            return error_set_errno(err, errno, "sending on the control channel failed");
        deadline = clock_now() + CHANNEL_DEAD_AFTER_MS * NS_PER_MS;
        for (; count > 0 && (size_t)sent >= iov->iov_len; iov++, count--)
            sent -= (ssize_t)iov->iov_len;
        if (count > 0) {
            iov->iov_base = (char *)iov->iov_base + sent;
            iov->iov_len -= (size_t)sent;
        }
    }
    return 0;
}

/* With `sending` held. */
static int send_locked(struct channel *c, enum message_type type, const void *body, size_t size,
                       struct error *err)
{
    uint8_t header[PROTO_HEADER_SIZE];
    struct iovec iov[2] = {{header, sizeof(header)}, {(void *)body, size}};

    message_header_encode(type, (uint32_t)size, header);
    return write_all(c, iov, size ? 2 : 1, err);
}

int channel_send(struct channel *c, enum message_type type, const void *body, size_t size,
                 struct error *err)
{
    struct error local = {0};

    if (atomic_load(&c->is_lost)) {
        pthread_mutex_lock(&c->lock);
        int result = error_set(err, c->failure.code, "%s", c->failure.text);
        pthread_mutex_unlock(&c->lock);
        return result;
    }
    pthread_mutex_lock(&c->sending);
    int result = send_locked(c, type, body, size, &local);
    pthread_mutex_unlock(&c->sending);
    atomic_store(&c->has_spoken, true);
    if (result) {
        channel_fail(c, &local);
        error_set(err, local.code, "%s", local.text);
    }
    return result;
}

int channel_send_text(struct channel *c, enum message_type type, const char *text,
                      struct error *err)
{
    size_t size = strnlen(text, PROTO_MAX_TEXT);

    return channel_send(c, type, size ? text : "?", size ? size : 1, err);
}

/* From the reader, which must never wait for a sender that waits for the peer to read: a message
 * under way is as good a sign of life as a heartbeat. */
static int send_if_idle(struct channel *c, enum message_type type, const void *body, size_t size,
                        struct error *err)
{
    if (atomic_load(&c->is_lost) ||
        pthread_mutex_trylock(&c->sending)) /* lost: perhaps in the middle of a message */
        return 0;
    int result = send_locked(c, type, body, size, err);
    pthread_mutex_unlock(&c->sending);
    return result;
}

static int on_pong(struct channel *c, const struct message *m, struct error *err)
{
    struct pong pong;
    uint64_t now = clock_now();
    int result = pong_decode(m, &pong, err);

    if (result || pong.ping_sent_at > now)
        return result;
    uint64_t round_trip = now - pong.ping_sent_at;
    pthread_mutex_lock(&c->lock);
    if (c->best_round_trip == 0 || round_trip < c->best_round_trip) {
        c->best_round_trip = round_trip ? round_trip : 1;
        c->clock_offset = (int64_t)(pong.now - (pong.ping_sent_at + round_trip / 2));
    }
    pthread_mutex_unlock(&c->lock);
    return 0;
}

static int on_ping(struct channel *c, const struct message *m, struct error *err)
{
    struct ping ping;
    uint8_t body[16];
    int result = ping_decode(m, &ping, err);

    if (result)
        return result;
    struct pong pong = {.ping_sent_at = ping.sent_at, .now = clock_now()};
    return send_if_idle(c, MESSAGE_PONG, body, pong_encode(&pong, body), err);
}

static int enqueue(struct channel *c, struct message *m, struct error *err)
{
    struct queued *entry = malloc(sizeof(*entry));

    if (!entry)
        return error_set(err, ENOMEM, "no memory for a message");
    *entry = (struct queued){.message = *m};
    *m = (struct message){0};
    pthread_mutex_lock(&c->lock);
    *c->last = entry;
    c->last = &entry->next;
    c->queued_bytes += entry->message.size;
    bool too_much = ++c->queued > CHANNEL_MAX_QUEUE || c->queued_bytes > CHANNEL_MAX_QUEUED_BYTES;
    pthread_mutex_unlock(&c->lock);
    wakeup_raise(c->wakeup);
    if (too_much)
        return error_set(err, EPROTO, "the peer sends faster than it waits for answers");
    return 0;
}

static int dispatch(struct channel *c, struct error *err)
{
    struct message m = c->incoming;
    int result;

    c->incoming = (struct message){0};
    c->header_read = c->body_read = 0;
    if (m.type == MESSAGE_PING)
        result = on_ping(c, &m, err);
    else if (m.type == MESSAGE_PONG)
        result = on_pong(c, &m, err);
    else
        result = enqueue(c, &m, err);
    message_free(&m);
    return result;
}

static int begin_body(struct channel *c, struct error *err)
{
    int result = message_header_decode(c->header, &c->incoming.type, &c->incoming.size, err);

    if (result || c->incoming.size == 0)
        return result;
    c->incoming.body = malloc(c->incoming.size);
    return c->incoming.body
               ? 0
               : error_set(err, ENOMEM, "no memory for a message of %u bytes", c->incoming.size);
}

/* Reads what is there, at most to the end of a message: whoever sends without a pause must not keep
 * the thread from its other duties. */
static int read_some(struct channel *c, struct error *err)
{
    for (;;) {
        bool in_header = c->header_read < PROTO_HEADER_SIZE;
        void *to = in_header ? c->header + c->header_read : c->incoming.body + c->body_read;
        size_t want =
            in_header ? PROTO_HEADER_SIZE - c->header_read : c->incoming.size - c->body_read;
        ssize_t got = read(c->socket, to, want);
        int result = 0;

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return 0;
        if (got < 0)
            return error_set_errno(err, errno, "the control channel broke");
        if (got == 0)
            return error_set(err, ECONNRESET, "the peer closed the control channel%s",
                             c->header_read ? " in the middle of a message" : "");
        c->last_heard = clock_now();
        *(in_header ? &c->header_read : &c->body_read) += (size_t)got;
        if (in_header && c->header_read == PROTO_HEADER_SIZE)
            result = begin_body(c, err);
        if (!result && c->header_read == PROTO_HEADER_SIZE && c->body_read == c->incoming.size)
            return dispatch(c, err);
        if (result)
            return result;
    }
}

static int heartbeat(struct channel *c, struct error *err)
{
    uint64_t now = clock_now();
    uint8_t body[8];

    if (now - c->last_heard > CHANNEL_DEAD_AFTER_MS * NS_PER_MS)
        return error_set(
            err, ETIMEDOUT,
            "the peer has been silent for %d s: its process is stopped, its host is down or "
            "the link is broken",
            CHANNEL_DEAD_AFTER_MS / 1000);
    if (now < c->next_ping)
        return 0;
    if (!atomic_load(&c->has_spoken)) {
        c->next_ping = now + NS_PER_MS;
        return 0;
    }
    c->next_ping =
        now + (c->pings++ < FIRST_PINGS ? FIRST_PING_MS : CHANNEL_HEARTBEAT_MS) * NS_PER_MS;
    return send_if_idle(c, MESSAGE_PING, body, ping_encode(&(struct ping){.sent_at = now}, body),
                        err);
}

static void *channel_thread(void *argument)
{
    struct channel *c = argument;
    struct error err = {0};

    pthread_setname_np(pthread_self(), "channel");
    for (;;) {
        struct pollfd wait[2] = {{.fd = c->socket, .events = POLLIN},
                                 {.fd = c->stop_event, .events = POLLIN}};
        if (heartbeat(c, &err))
            break;
        poll(wait, 2, clock_ms_until(c->next_ping));
        if (wait[1].revents) {
            error_set(&err, ESHUTDOWN, "the control channel was closed here");
            break;
        }
        if (wait[0].revents && read_some(c, &err))
            break;
    }
    channel_fail(c, &err);
    return NULL;
}

int channel_open(int socket, struct wakeup *wakeup, struct channel **out, struct error *err)
{
    struct channel *c = calloc(1, sizeof(*c));
    int result;

    if (!c) {
        close(socket);
        return error_set(err, ENOMEM, "no memory for a control channel");
    }
    c->socket = socket;
    c->wakeup = wakeup;
    c->last = &c->first;
    c->last_heard = clock_now();
    pthread_mutex_init(&c->sending, NULL);
    pthread_mutex_init(&c->lock, NULL);
    fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK);
    c->stop_event = eventfd(0, EFD_CLOEXEC);
    if (c->stop_event < 0) {
        result = error_set_errno(err, errno, "eventfd failed");
        goto free_channel;
    }
    result = -pthread_create(&c->thread, NULL, channel_thread, c);
    if (result) {
        error_set_errno(err, -result, "starting the control channel's thread failed");
        goto close_event;
    }
    *out = c;
    return 0;

close_event:
    close(c->stop_event);
free_channel:
    close(socket);
    free(c);
    return result;
}

int channel_poll(struct channel *c, struct message *out, struct error *err)
{
    int result = 0;

    pthread_mutex_lock(&c->lock);
    struct queued *entry = c->first;
    if (entry) {
        c->first = entry->next;
        if (!c->first)
            c->last = &c->first;
        c->queued--;
        c->queued_bytes -= entry->message.size;
        *out = entry->message;
        result = 1;
    } else if (c->failure.code) {
        result = error_set(err, c->failure.code, "%s", c->failure.text);
    }
    pthread_mutex_unlock(&c->lock);
    free(entry);
    return result;
}

bool channel_lost(struct channel *c)
{
    return atomic_load(&c->is_lost);
}

int64_t channel_clock_offset(struct channel *c)
{
    pthread_mutex_lock(&c->lock);
    int64_t offset = c->clock_offset;
    pthread_mutex_unlock(&c->lock);
    return offset;
}

uint64_t channel_round_trip(struct channel *c)
{
    pthread_mutex_lock(&c->lock);
    uint64_t round_trip = c->best_round_trip;
    pthread_mutex_unlock(&c->lock);
    return round_trip;
}

int channel_socket(const struct channel *c)
{
    return c->socket;
}

static void release(struct channel *c)
{
    close(c->stop_event);
    close(c->socket);
    while (c->first) {
        struct queued *next = c->first->next;
        message_free(&c->first->message);
        free(c->first);
        c->first = next;
    }
    message_free(&c->incoming);
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->sending);
    free(c);
}

/* A socket that is closed with something unread takes back what the peer has not read yet. */
static void linger(int socket)
{
    uint64_t deadline = clock_now() + LINGER_MS * NS_PER_MS;
    struct pollfd fd = {.fd = socket, .events = POLLIN};
    char rest[4096];

    shutdown(socket, SHUT_WR);
    while (poll(&fd, 1, clock_ms_until(deadline)) > 0)
        if (recv(socket, rest, sizeof(rest), MSG_DONTWAIT) <= 0)
            return;
}

static void stop(struct channel *c)
{
    uint64_t one = 1;

    if (write(c->stop_event, &one, sizeof(one)) < 0)
        abort(); /* an eventfd that was never written takes one */
    pthread_join(c->thread, NULL);
}

void channel_close_heard(struct channel *c)
{
    if (!c)
        return;
    stop(c);
    linger(c->socket);
    release(c);
}

void channel_close(struct channel *c)
{
    if (!c)
        return;
    stop(c);
    release(c);
}
