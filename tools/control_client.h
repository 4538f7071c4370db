/* The control socket's client side, for commands that run in the foreground: plain blocking calls
 * with deadlines. */
#ifndef TOOLS_CONTROL_CLIENT_H
#define TOOLS_CONTROL_CLIENT_H

#include "tools/control_protocol.h"

enum {
    CONTROL_TIMEOUT_MS = 5000,    /* for an answer that is given at once */
    CONTROL_MAX_REPLY = 64 << 20, /* bytes of one line */
};

struct control_connection {
    int socket;
    char *bytes; /* what came and was not handed out yet */
    size_t used, capacity;
};

/* Connects to a guest's control socket. -ENOENT with a text that lists the guests there are. */
int control_open(const char *guest, struct control_connection *out, struct error *err);
void control_close(struct control_connection *connection);
int control_send(struct control_connection *connection, const struct control_request *request,
                 struct error *err);
/* The next line as an object that the caller frees; timeout_ms -1: no limit. -ETIMEDOUT,
 * -ECONNRESET at the end, -EREMOTEIO or -EAGAIN with the text of an {"error": …}; `other_fd` (or
 * -1) becoming readable first is -EINTR. */
int control_receive(struct control_connection *connection, int timeout_ms, int other_fd,
                    cJSON **out, struct error *err);
/* SIGINT and SIGTERM no longer end the process, but make this descriptor readable (signalfd(2)). */
int control_catch_signals(void);
/* One request, one answer. */
int control_call(const char *guest, const struct control_request *request, int timeout_ms,
                 cJSON **out, struct error *err);

/* One text of a guest's status, cut to fit; "" when it lacks it. */
int control_ask_status(const char *guest, const char *key, char *out, size_t size,
                       struct error *err);
/* The guest here whose status has this text. -ENOENT without a text of its own: there is none. */
int control_find(const char *key, const char *text, char name[GUEST_NAME_SIZE], struct error *err);

#endif
