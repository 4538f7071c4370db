#include "migrate/responder.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

enum { GREETING_MS = 1000 };

struct responder {
    struct responder_config config;
    int listener, stop_event;
    uint16_t port;
    pthread_t thread;
};

static int answer_query(struct responder *r, int socket, uint64_t deadline, struct error *err)
{
    struct answer answer = {.state = ownership_get(r->config.ownership)};
    uint8_t body[8];

    return exchange_write(socket, MESSAGE_ANSWER, body, answer_encode(&answer, body), deadline,
                          err);
}

/* Takes ownership of `socket`. */
static void serve(struct responder *r, int socket)
{
    uint64_t deadline = clock_now() + GREETING_MS * NS_PER_MS;
    struct message m = {0};
    struct hello hello;
    struct error err = {0};
    int result = exchange_read(socket, &m, deadline, r->stop_event, &err);

    if (!result)
        result = m.type == MESSAGE_HELLO ? hello_decode(&m, &hello, &err)
                                         : message_unexpected(&m, "HELLO", &err);
    message_free(&m);
    if (!result && memcmp(hello.token, r->config.token, sizeof(hello.token)))
        result = error_set(&err, EACCES, "that is not the session here");
    if (!result && hello.intent == HELLO_QUERY) {
        result = answer_query(r, socket, deadline, &err);
    } else if (!result && hello.intent == HELLO_RECONNECT && r->config.reconnect) {
        r->config.reconnect(r->config.context, socket, &hello);
        return;
    } else if (!result) {
        result = error_set(&err, EPROTO, "this port only answers for its session");
    }
    if (result) {
        log_line(LOG_INFO, "session port: %s", err.text);
        exchange_write(socket, MESSAGE_ERROR, err.text, strlen(err.text), deadline,
                       &(struct error){0});
    }
    close(socket);
}

static void *responder_thread(void *argument)
{
    struct responder *r = argument;

    pthread_setname_np(pthread_self(), "session-port");
    for (;;) {
        struct pollfd wait[2] = {{.fd = r->listener, .events = POLLIN},
                                 {.fd = r->stop_event, .events = POLLIN}};
        struct error err = {0};
        poll(wait, 2, -1);
        if (wait[1].revents)
            return NULL;
        int socket = wait[0].revents ? address_accept(r->listener, &err) : -EAGAIN;
        if (socket >= 0)
            serve(r, socket);
        else if (socket != -EAGAIN)
            clock_sleep_until(clock_now() + 100 * NS_PER_MS);
    }
}

int responder_start(int control_socket, const struct responder_config *config,
                    struct responder **out, struct error *err)
{
    struct responder *r = calloc(1, sizeof(*r));
    struct address at;
    int result;

    if (!r)
        return error_set(err, ENOMEM, "no memory for the session port");
    r->config = *config;
    result = address_of_local(control_socket, "tcp", &at, err);
    if (result)
        goto free_responder;
    at.port = 0;
    r->listener = address_listen(&at, &r->port, err);
    if (r->listener < 0) {
        result = r->listener;
        goto free_responder;
    }
    fcntl(r->listener, F_SETFL, O_NONBLOCK);
    r->stop_event = eventfd(0, EFD_CLOEXEC);
    if (r->stop_event < 0) {
        result = error_set_errno(err, errno, "eventfd failed");
        goto close_listener;
    }
    result = -pthread_create(&r->thread, NULL, responder_thread, r);
    if (result) {
        error_set_errno(err, -result, "starting the session port's thread failed");
        goto close_event;
    }
    *out = r;
    return 0;

close_event:
    close(r->stop_event);
close_listener:
    close(r->listener);
free_responder:
    free(r);
    return result;
}

uint16_t responder_port(const struct responder *r)
{
    return r->port;
}

void responder_stop(struct responder *r)
{
    uint64_t one = 1;

    if (!r)
        return;
    if (write(r->stop_event, &one, sizeof(one)) < 0)
        abort(); /* an eventfd that was never written takes one */
    pthread_join(r->thread, NULL);
    close(r->stop_event);
    close(r->listener);
    free(r);
}
