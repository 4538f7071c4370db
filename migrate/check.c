/* `wander check`: what would be refused, without moving anything. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "migrate/incoming.h"
#include "transport/base/clock.h"

enum { CHECK_MS = 10000 };

static int say_hello(int socket, const struct address *destination, uint64_t deadline,
                     struct error *err)
{
    struct hello hello = {
        .version_min = PROTO_VERSION_MIN,
        .version_max = PROTO_VERSION_MAX,
        .intent = HELLO_CHECK,
        .lanes = 1,
    };
    uint8_t body[PROTO_BODY_SIZE];

    memcpy(hello.scheme, destination->scheme, sizeof(hello.scheme));
    return exchange_write(socket, MESSAGE_HELLO, body, hello_encode(&hello, body), deadline, err);
}

/* The next message that is no heartbeat. */
static int read_reply(int socket, uint64_t deadline, struct message *out, struct error *err)
{
    for (;;) {
        int result = exchange_read(socket, out, deadline, -1, err);
        if (result || (out->type != MESSAGE_PING && out->type != MESSAGE_PONG))
            return result;
        message_free(out);
    }
}

/* Fills `reasons` from a REFUSE; otherwise the reply must be `wanted`. */
static int take_reply(int socket, enum message_type wanted, uint64_t deadline,
                      struct reasons *reasons, struct error *err)
{
    struct message reply;
    char text[ERROR_TEXT_SIZE * 4];
    int result = read_reply(socket, deadline, &reply, err);

    if (result)
        return result;
    if (reply.type == MESSAGE_REFUSE) {
        char *rest = message_text(&reply, text, sizeof(text)), *line;
        while ((line = strsep(&rest, "\n")))
            if (*line)
                reasons_add(reasons, "%s", line);
    } else if (reply.type != wanted) {
        result = message_unexpected(&reply, message_name(wanted), err);
    }
    message_free(&reply);
    return result;
}

static int present_guest(int socket, struct guest *guest, uint64_t deadline, struct error *err)
{
    struct guest_description description = {0};
    uint8_t *body = NULL;
    size_t size;
    int result = guest->ops->describe(guest, &description, err);

    if (!result)
        result = guest_encode(&description, &body, &size, err);
    if (!result)
        result = exchange_write(socket, MESSAGE_GUEST, body, size, deadline, err);
    free(body);
    guest_description_free(&description);
    return result;
}

int migration_check(struct guest *guest, const struct address *destination, struct reasons *reasons,
                    struct error *err)
{
    uint64_t deadline = clock_now() + CHECK_MS * NS_PER_MS;
    int socket = address_connect(destination, CHECK_MS, -1, err);

    if (socket < 0) {
        error_prefix(err, "the destination cannot be reached");
        return socket;
    }
    int result = say_hello(socket, destination, deadline, err);
    if (!result)
        result = take_reply(socket, MESSAGE_WELCOME, deadline, reasons, err);
    if (!result && reasons->count == 0 && guest) {
        result = present_guest(socket, guest, deadline, err);
        if (!result)
            result = take_reply(socket, MESSAGE_ACCEPT, deadline, reasons, err);
    }
    close(socket);
    return result;
}
