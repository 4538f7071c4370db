#include "tools/control_client.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/attach.h"
#include "tools/runtime.h"
#include "transport/base/clock.h"

int control_open(const char *guest, struct control_connection *out, struct error *err)
{
    char name[GUEST_NAME_SIZE];

    if (attach_is_monitor(guest)) {
        int rc = attach_find(guest, name, err);
        if (rc < 0)
            return rc;
        guest = name;
    }
    int fd = runtime_connect(guest, err);
    if (fd < 0)
        return fd;
    *out = (struct control_connection){.socket = fd};
    return 0;
}

void control_close(struct control_connection *connection)
{
    close(connection->socket);
    free(connection->bytes);
    *connection = (struct control_connection){.socket = -1};
}

static int send_all(int socket, const char *bytes, size_t size, struct error *err)
{
    while (size > 0) {
        ssize_t sent = send(socket, bytes, size, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return error_set(err, ETIMEDOUT, "the guest's process does not answer");
        if (sent < 0)
            return error_set_errno(err, errno, "the guest's process takes no request");
        bytes += sent;
        size -= (size_t)sent;
    }
    return 0;
}

int control_send(struct control_connection *connection, const struct control_request *request,
                 struct error *err)
{
    char *line = control_request_format(request);
    int rc;

    if (!line)
        return error_set(err, ENOMEM, "no memory for a request");
    rc = send_all(connection->socket, line, strlen(line), err);
    if (rc == 0)
        rc = send_all(connection->socket, "\n", 1, err);
    free(line);
    return rc;
}

static int make_room(struct control_connection *c, struct error *err)
{
    size_t larger = c->capacity ? c->capacity * 2 : 4096;
    char *bytes;

    if (c->used < c->capacity)
        return 0;
    if (larger > CONTROL_MAX_REPLY)
        return error_set(err, EPROTO, "the guest's process sent a line of more than %d bytes",
                         CONTROL_MAX_REPLY);
    bytes = realloc(c->bytes, larger);
    if (!bytes)
        return error_set(err, ENOMEM, "no memory for an answer");
    c->bytes = bytes;
    c->capacity = larger;
    return 0;
}

/* Waits for and reads some bytes more. */
static int read_more(struct control_connection *c, uint64_t deadline, int other_fd,
                     struct error *err)
{
    struct pollfd fds[2] = {{.fd = c->socket, .events = POLLIN},
                            {.fd = other_fd, .events = POLLIN}};
    ssize_t size;
    int rc = make_room(c, err);

    if (rc < 0)
        return rc;
    rc = poll(fds, 2, deadline == UINT64_MAX ? -1 : clock_ms_until(deadline));
    if (rc < 0 && errno != EINTR)
        return error_set_errno(err, errno, "cannot wait for an answer");
    if (rc == 0)
        return error_set(err, ETIMEDOUT, "the guest's process does not answer");
    if (rc > 0 && fds[1].revents)
        return -EINTR;
    if (rc < 0 || !fds[0].revents)
        return 0;
    size = recv(c->socket, c->bytes + c->used, c->capacity - c->used, 0);
    if (size < 0 && errno == EINTR)
        return 0;
    if (size <= 0)
        return error_set(err, ECONNRESET, "the guest's process has ended or closed the connection");
    c->used += (size_t)size;
    return 0;
}

int control_receive(struct control_connection *c, int timeout_ms, int other_fd, cJSON **out,
                    struct error *err)
{
    uint64_t deadline =
        timeout_ms < 0 ? UINT64_MAX : clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    size_t searched = 0, length;
    char *newline;
    int rc;

    while (!(newline = c->used > searched ? memchr(c->bytes + searched, '\n', c->used - searched)
                                          : NULL)) {
        searched = c->used;
        rc = read_more(c, deadline, other_fd, err);
        if (rc < 0)
            return rc;
    }
    length = (size_t)(newline - c->bytes);
    rc = control_reply_parse(c->bytes, length, out, err);
    c->used -= length + 1;
    memmove(c->bytes, newline + 1, c->used);
    return rc;
}

int control_call(const char *guest, const struct control_request *request, int timeout_ms,
                 cJSON **out, struct error *err)
{
    struct control_connection connection;
    int rc = control_open(guest, &connection, err);

    if (rc < 0)
        return rc;
    rc = control_send(&connection, request, err);
    if (rc == 0)
        rc = control_receive(&connection, timeout_ms, -1, out, err);
    control_close(&connection);
    return rc;
}

int control_catch_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int control_ask_status(const char *guest, const char *key, char *out, size_t size,
                       struct error *err)
{
    struct control_request request = {.command = CONTROL_STATUS};
    cJSON *status = NULL;
    int rc = control_call(guest, &request, CONTROL_TIMEOUT_MS, &status, err);

    snprintf(out, size, "%s", rc < 0 ? "" : control_text(status, key));
    cJSON_Delete(status);
    return rc;
}

int control_find(const char *key, const char *text, char name[GUEST_NAME_SIZE], struct error *err)
{
    char(*names)[GUEST_NAME_SIZE], found[GUEST_MONITOR_SIZE];
    size_t count;
    int rc = runtime_names(&names, &count, err);

    if (rc < 0)
        return rc;
    rc = -ENOENT;
    for (size_t i = 0; i < count && rc == -ENOENT; i++) {
        if (control_ask_status(names[i], key, found, sizeof(found), NULL) < 0 ||
            strcmp(found, text) != 0)
            continue;
        memcpy(name, names[i], GUEST_NAME_SIZE);
        rc = 0;
    }
    free(names);
    return rc;
}
