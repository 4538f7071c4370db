#include "migrate/exchange.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/base/clock.h"

enum { LAST_EPOCH = 1 << 30 }; /* nobody comes after it */

static int wait_for(int socket, short events, uint64_t deadline, int cancel_fd, struct error *err)
{
    struct pollfd wait[2] = {{.fd = socket, .events = events}, {.fd = cancel_fd, .events = POLLIN}};

    for (;;) {
        int ready = poll(wait, cancel_fd < 0 ? 1 : 2, clock_ms_until(deadline));
        if (ready > 0 && cancel_fd >= 0 && wait[1].revents)
            return error_set(err, ECANCELED, "cancelled");
        if (ready < 0 && errno != EINTR)
            return error_set_errno(err, errno, "poll failed");
        if (clock_now() >= deadline) /* whatever comes: a flood must not go on for ever */
            return error_set(err, ETIMEDOUT,
                             "the peer accepted the connection but did not say in time what it "
                             "should");
        if (ready > 0)
            return 0;
    }
}

static int read_exactly(int socket, uint8_t *to, size_t size, uint64_t deadline, int cancel_fd,
                        struct error *err)
{
    while (size > 0) {
        int result = wait_for(socket, POLLIN, deadline, cancel_fd, err);
        if (result)
            return result;
        ssize_t got = read(socket, to, size);
        if (got == 0)
            return error_set(err, ECONNRESET,
                             "the peer closed the connection before it had said what it wants");
        if (got < 0 && errno != EINTR && errno != EAGAIN)
            return error_set_errno(err, errno, "reading from the peer failed");
        if (got > 0) {
            to += got;
            size -= (size_t)got;
        }
    }
    return 0;
}

int exchange_read(int socket, struct message *out, uint64_t deadline, int cancel_fd,
                  struct error *err)
{
    uint8_t header[PROTO_HEADER_SIZE];
    int result = read_exactly(socket, header, sizeof(header), deadline, cancel_fd, err);

    *out = (struct message){0};
    if (!result)
        result = message_header_decode(header, &out->type, &out->size, err);
    if (result || out->size == 0)
        return result;
    out->body = malloc(out->size);
    if (!out->body)
        return error_set(err, ENOMEM, "no memory for a message of %u bytes", out->size);
    result = read_exactly(socket, out->body, out->size, deadline, cancel_fd, err);
    if (result)
        message_free(out);
    return result;
}

static int write_exactly(int socket, const uint8_t *bytes, size_t size, uint64_t deadline,
                         struct error *err)
{
    while (size > 0) {
        int result = wait_for(socket, POLLOUT, deadline, -1, err);
        if (result)
            return result;
        ssize_t sent = send(socket, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR && errno != EAGAIN)
            return error_set_errno(err, errno, "writing to the peer failed");
        if (sent > 0) {
            bytes += sent;
            size -= (size_t)sent;
        }
    }
    return 0;
}

int exchange_write(int socket, enum message_type type, const void *body, size_t size,
                   uint64_t deadline, struct error *err)
{
    uint8_t header[PROTO_HEADER_SIZE];

    message_header_encode(type, (uint32_t)size, header);
    int result = write_exactly(socket, header, sizeof(header), deadline, err);
    return result || size == 0 ? result : write_exactly(socket, body, size, deadline, err);
}

/* Connects and says HELLO with an intent: the socket, or -errno. */
static int greet(const struct address *peer, const uint8_t token[TRANSPORT_TOKEN_SIZE],
                 enum hello_intent intent, int timeout_ms, int cancel_fd, struct error *err)
{
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    struct hello hello = {
        .version_min = PROTO_VERSION_MIN,
        .version_max = PROTO_VERSION_MAX,
        .intent = intent,
        .epoch = intent == HELLO_RECONNECT ? LAST_EPOCH : 0,
    };
    uint8_t body[PROTO_BODY_SIZE];

    if (peer->port == 0)
        return error_set(err, ENOTCONN, "the peer gave no address where it can be asked");
    memcpy(hello.token, token, sizeof(hello.token));
    int socket = address_connect(peer, timeout_ms, cancel_fd, err);
    if (socket < 0)
        return socket;
    int result =
        exchange_write(socket, MESSAGE_HELLO, body, hello_encode(&hello, body), deadline, err);
    if (result) {
        close(socket);
        return result;
    }
    return socket;
}

int exchange_ask(const struct address *peer, const uint8_t token[TRANSPORT_TOKEN_SIZE],
                 int timeout_ms, int cancel_fd, enum ownership_state *state, struct error *err)
{
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    struct message reply = {0};
    struct answer answer;
    int socket = greet(peer, token, HELLO_QUERY, timeout_ms, cancel_fd, err);

    if (socket < 0)
        return socket;
    int result = exchange_read(socket, &reply, deadline, cancel_fd, err);
    if (!result)
        result = reply.type == MESSAGE_ANSWER ? answer_decode(&reply, &answer, err)
                                              : message_unexpected(&reply, "ANSWER", err);
    if (!result)
        *state = (enum ownership_state)answer.state;
    message_free(&reply);
    close(socket);
    return result;
}

int exchange_abort(const struct address *peer, const uint8_t token[TRANSPORT_TOKEN_SIZE],
                   int timeout_ms, struct error *err)
{
    static const char why[] = "the source kept the guest";
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    int socket = greet(peer, token, HELLO_RECONNECT, timeout_ms, -1, err);
    bool aborted = false;

    if (socket < 0)
        return socket;
    int result = exchange_write(socket, MESSAGE_ABORT, why, strlen(why), deadline, err);
    while (!result && !aborted) {
        struct message reply = {0};
        result = exchange_read(socket, &reply, deadline, -1, err); /* heartbeats are among them */
        aborted = !result && reply.type == MESSAGE_ABORTED;
        message_free(&reply);
    }
    close(socket);
    return result;
}
