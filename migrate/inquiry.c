#include "migrate/inquiry.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "migrate/preflight.h"
#include "transport/base/clock.h"

enum { PINGS = 8, FIRST_PONG_MS = 50, LAST_PONG_MS = 5000 };

int inquiry_open(const struct address *destination, int timeout_ms, int cancel_fd,
                 struct reasons *refused, struct inquiry *out, struct error *err)
{
    *out = (struct inquiry){
        .deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS,
        .cancel_fd = cancel_fd,
        .refused = refused,
    };
    if (getrandom(out->token, sizeof(out->token), 0) != sizeof(out->token))
        return error_set_errno(err, errno, "making a session token failed");
    out->socket = address_connect(destination, timeout_ms, cancel_fd, err);
    if (out->socket < 0)
        return error_prefix(err, "the destination cannot be reached");
    return 0;
}

/* The next message that is no heartbeat. */
static int read_reply(struct inquiry *q, struct message *out, struct error *err)
{
    for (;;) {
        int result = exchange_read(q->socket, out, q->deadline, q->cancel_fd, err);
        if (result || (out->type != MESSAGE_PING && out->type != MESSAGE_PONG))
            return result;
        message_free(out);
    }
}

/* 1: `wanted`, whose body is the caller's then; 0: REFUSE. */
static int take_reply(struct inquiry *q, enum message_type wanted, struct message *reply,
                      struct error *err)
{
    char text[ERROR_TEXT_SIZE * 4];
    int result = read_reply(q, reply, err);

    if (result || reply->type == wanted)
        return result ? result : 1;
    if (reply->type == MESSAGE_REFUSE) {
        char *rest = message_text(reply, text, sizeof(text)), *line;
        while ((line = strsep(&rest, "\n")))
            if (*line)
                reasons_add(q->refused, "destination: %s", line);
    } else {
        result = message_unexpected(reply, message_name(wanted), err);
    }
    message_free(reply);
    return result;
}

int inquiry_greet(struct inquiry *q, const struct migration_options *options,
                  uint64_t present_bytes, struct error *err)
{
    struct hello hello = {
        .version_min = PROTO_VERSION_MIN,
        .version_max = PROTO_VERSION_MAX,
        .intent = HELLO_CHECK,
        .epoch = 1,
    };
    uint8_t body[PROTO_BODY_SIZE];
    struct message reply;
    struct welcome welcome;

    memcpy(hello.token, q->token, sizeof(hello.token));
    preflight_hello(options, present_bytes, &hello);
    int result = exchange_write(q->socket, MESSAGE_HELLO, body, hello_encode(&hello, body),
                                q->deadline, err);
    if (!result)
        result = take_reply(q, MESSAGE_WELCOME, &reply, err);
    if (result <= 0)
        return result;
    result = welcome_decode(&reply, &welcome, err);
    message_free(&reply);
    q->version = welcome.version;
    return result ? result : 1;
}

int inquiry_present(struct inquiry *q, struct guest *guest, struct error *err)
{
    struct guest_description description = {0};
    struct message reply;
    uint8_t *body = NULL;
    size_t size;
    int result = guest->ops->describe(guest, &description, err);

    if (!result)
        result = guest_encode(&description, &body, &size, err);
    if (!result)
        result = exchange_write(q->socket, MESSAGE_GUEST, body, size, q->deadline, err);
    free(body);
    guest_description_free(&description);
    if (!result)
        result = take_reply(q, MESSAGE_ACCEPT, &reply, err);
    if (result > 0)
        message_free(&reply);
    return result;
}

/* What came must be what was asked for: memory here is sent for so long as it says. */
static int check_room(const struct probe_message *wanted, const struct found_message *found,
                      struct error *err)
{
    if (found->room <= wanted->room && found->room % GUEST_PAGE_SIZE == 0 &&
        (found->room || !found->lane_port))
        return 0;
    return error_set(err, EPROTO,
                     "the destination was asked for room for %llu bytes and gives %llu",
                     (unsigned long long)wanted->room, (unsigned long long)found->room);
}

int inquiry_probe(struct inquiry *q, const struct probe_message *wanted, struct found_message *out,
                  struct error *err)
{
    static const struct probe_message one_lane = {0};
    uint8_t body[16];
    struct message reply;

    if (wanted && q->version < PROTO_VERSION_ROOM)
        return error_set(err, EPROTONOSUPPORT,
                         "the destination speaks protocol version %u, and rehearsals came with %d: "
                         "install the same version of wander on both hosts",
                         q->version, PROTO_VERSION_ROOM);
    int result = exchange_write(q->socket, MESSAGE_PROBE, body,
                                probe_encode(wanted ? wanted : &one_lane, body), q->deadline, err);
    if (!result)
        result = take_reply(q, MESSAGE_FOUND, &reply, err);
    if (result <= 0)
        return result ? result : error_set(err, EPROTO, "the destination refuses to be asked");
    result = found_decode(&reply, out, err);
    message_free(&reply);
    return result || !wanted ? result : check_room(wanted, out, err);
}

/* 1: the answer to that very ping; 0: none within wait_ms. Other heartbeats may come in between. */
static int await_pong(struct inquiry *q, uint64_t sent_at, uint64_t wait_ms, struct error *err)
{
    uint64_t until = sent_at + wait_ms * NS_PER_MS;
    struct pollfd wait[] = {{.fd = q->socket, .events = POLLIN},
                            {.fd = q->cancel_fd, .events = POLLIN}};

    while (poll(wait, 2, clock_ms_until(until)) > 0) {
        struct pong pong = {0};
        struct message m;
        int result = exchange_read(q->socket, &m, q->deadline, q->cancel_fd, err);
        if (result)
            return result;
        if (m.type == MESSAGE_PONG)
            result = pong_decode(&m, &pong, err);
        else if (m.type != MESSAGE_PING)
            result = message_unexpected(&m, "PONG", err);
        message_free(&m);
        if (result || pong.ping_sent_at == sent_at)
            return result ? result : 1;
    }
    return 0;
}

/* A ping that comes while the other end is saying something else gets no answer: it is sent anew,
 * and its answer waited for longer, for the way may be long. */
int inquiry_round_trip(struct inquiry *q, uint64_t *ns, struct error *err)
{
    uint64_t shortest = UINT64_MAX, wait_ms = FIRST_PONG_MS;
    uint8_t body[8];

    for (int count = 0; count < PINGS;) {
        struct ping ping = {.sent_at = clock_now()};
        int result = exchange_write(q->socket, MESSAGE_PING, body, ping_encode(&ping, body),
                                    q->deadline, err);
        if (!result)
            result = await_pong(q, ping.sent_at, wait_ms, err);
        if (result < 0)
            return result;
        uint64_t now = clock_now();
        if (result > 0 && now - ping.sent_at < shortest)
            shortest = now - ping.sent_at;
        count += result;
        if (!result && wait_ms < LAST_PONG_MS)
            wait_ms *= 2;
        if (now >= q->deadline)
            return error_set(err, ETIMEDOUT, "the destination answers no ping");
    }
    *ns = shortest;
    return 0;
}

int inquiry_lane_address(const struct inquiry *q, const char *scheme,
                         const struct found_message *found, struct address *out, struct error *err)
{
    int result = address_of_peer(q->socket, scheme, out, err);

    out->port = found->lane_port;
    return result;
}

void inquiry_close(struct inquiry *q)
{
    close(q->socket);
    q->socket = -1;
}
