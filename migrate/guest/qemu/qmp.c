#include "migrate/guest/qemu/qmp.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "migrate/guest/qemu/qmp_inbox.h"
#include "transport/base/clock.h"

enum {
    GREETING_TIMEOUT_MS = 3000,
    READ_BYTES = 4096,
    AWAIT_SLICE_MS = 50, /* another thread's command may have read what is awaited */
    RESYNC_BYTE = 0xff,  /* QEMU's parser drops what it has of a command */
};

struct qmp {
    int socket;
    pid_t peer;
    pthread_mutex_t lock; /* all below */
    struct qmp_inbox inbox;
    struct error dead; /* why nothing can be said any more; code 0: alive */
    char id[64];       /* of the command that waits for its answer */
    uint64_t commands;
};

/* Ends our use of the connection: the first cause stays and is what every later call tells. The
 * socket itself is left alone, another process may be about to adopt it. */
static int die(struct qmp *q, int code, const char *text, struct error *err)
{
    error_set(&q->dead, code, "%s", text);
    return error_set(err, code, "%s", text);
}

static int check_alive(const struct qmp *q, const char *command, struct error *err)
{
    if (!q->dead.code)
        return 0;
    return error_set(err, q->dead.code, "%s was not sent, the monitor's connection is dead: %s",
                     command, q->dead.text);
}

/* Text of another process, for a terminal. */
static void print_only(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            *text = ' ';
}

/* 1: something came, 0: nothing there. */
static int read_some(struct qmp *q, struct error *err)
{
    size_t room;
    char *at = qmp_inbox_room(&q->inbox, READ_BYTES, &room);

    if (!at && errno == ENOMEM)
        return die(q, ENOMEM, "out of memory for what QEMU's monitor says", err);
    if (!at)
        return die(q, EPROTO, "QEMU's monitor sent a line of more than 16 MiB; is it a QMP socket?",
                   err);
    ssize_t got = recv(q->socket, at, room, MSG_DONTWAIT);
    if (got > 0) {
        qmp_inbox_filled(&q->inbox, got);
        return 1;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    return die(q, ECONNRESET,
               "QEMU closed its monitor's connection: it has ended or was killed; its log says why",
               err);
}

/* The next message that is no event: 1, and *out is the caller's; 0: none there. */
static int next_answer(struct qmp *q, cJSON **out, struct error *err)
{
    int ret;

    while ((ret = qmp_inbox_next(&q->inbox, out)) > 0) {
        if (!cJSON_HasObjectItem(*out, "event"))
            return 1;
        qmp_inbox_note(&q->inbox, *out);
        cJSON_Delete(*out);
    }
    *out = NULL;
    if (ret < 0)
        return die(q, EPROTO,
                   "what the socket sent is not QMP; give the path of a socket made with "
                   "-qmp unix:PATH,server=on,wait=off, not of a human monitor (-monitor)",
                   err);
    return 0;
}

static void wait_ready(struct qmp *q, short events, uint64_t deadline)
{
    struct pollfd ready = {.fd = q->socket, .events = events};

    poll(&ready, 1, clock_ms_until(deadline));
}

/* The next message that is no event. What has come is looked at once more after the deadline, for
 * the one who was late may have been this process; *late (false at first) says that it was. Then
 * -ETIMEDOUT, without a text. */
static int read_answer(struct qmp *q, uint64_t deadline, bool *late, cJSON **out, struct error *err)
{
    int ret;

    for (;;) {
        if ((ret = next_answer(q, out, err)) != 0)
            return ret < 0 ? ret : 0;
        if (*late)
            return -ETIMEDOUT;
        *late = clock_now() >= deadline;
        wait_ready(q, POLLIN, deadline);
        if ((ret = read_some(q, err)) < 0)
            return ret;
    }
}

/* One sendmsg(2); `fd` goes along unless it is -1. */
static ssize_t send_some(struct qmp *q, const char *bytes, size_t size, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {.iov_base = (char *)bytes, .iov_len = size};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    return sendmsg(q->socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* -ETIMEDOUT without a text. */
static int send_all(struct qmp *q, const char *bytes, size_t size, int fd, uint64_t deadline,
                    struct error *err)
{
    ssize_t sent;

    while (size > 0) {
        sent = send_some(q, bytes, size, fd);
        if (sent > 0) {
            bytes += sent;
            size -= sent;
            fd = -1;
        } else if (errno == EAGAIN || errno == EINTR) {
            if (clock_now() >= deadline)
                return -ETIMEDOUT;
            wait_ready(q, POLLOUT, deadline);
        } else {
            return die(q, ECONNRESET,
                       "QEMU closed its monitor's connection: it has ended or was killed; its log "
                       "says why",
                       err);
        }
    }
    return 0;
}

static int send_command(struct qmp *q, const char *command, cJSON *arguments, int fd,
                        uint64_t deadline, struct error *err)
{
    cJSON *message = cJSON_CreateObject();
    char *text = NULL, *line = NULL;
    int ret = -ENOMEM;

    /* Short: QEMU's monitor takes its commands in byte by byte, at 3 us each. */
    snprintf(q->id, sizeof q->id, "%x.%" PRIx64, getpid(), ++q->commands);
    cJSON_AddStringToObject(message, "execute", command);
    cJSON_AddItemToObject(message, "arguments", arguments);
    if (cJSON_AddStringToObject(message, "id", q->id))
        text = cJSON_PrintUnformatted(message);
    if (text && asprintf(&line, "%s\n", text) >= 0)
        ret = send_all(q, line, strlen(line), fd, deadline, err);
    else
        error_set(err, ENOMEM, "out of memory for the command %s", command);
    free(line);
    cJSON_free(text);
    cJSON_Delete(message);
    return ret;
}

/* Answers to somebody else's commands are passed over. */
static int await_answer(struct qmp *q, uint64_t deadline, cJSON **out, struct error *err)
{
    bool late = false;
    const char *id;
    int ret;

    while ((ret = read_answer(q, deadline, &late, out, err)) == 0) {
        id = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(*out, "id"));
        if (id && strcmp(id, q->id) == 0)
            return 0;
        cJSON_Delete(*out);
    }
    *out = NULL;
    return ret;
}

static int unpack_answer(cJSON *answer, const char *command, cJSON **out, struct error *err)
{
    cJSON *error = cJSON_GetObjectItemCaseSensitive(answer, "error");
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(error, "desc"));
    struct error said = {0};

    if (error) {
        error_set(&said, EREMOTEIO, "%s", text ? text : "QEMU gave no reason");
        print_only(said.text);
        return error_set(err, EREMOTEIO, "%s: %s", command, said.text);
    }
    if (!cJSON_HasObjectItem(answer, "return"))
        return error_set(err, EREMOTEIO, "%s: QEMU's answer is neither a result nor an error",
                         command);
    if (out)
        *out = cJSON_DetachItemFromObjectCaseSensitive(answer, "return");
    return 0;
}

static int timed_out(struct qmp *q, const char *command, int timeout_ms, struct error *err)
{
    struct error text = {0};

    error_set(&text, ETIMEDOUT,
              "QEMU did not answer %s within %d ms; it is stopped (SIGSTOP), or hangs on its disks "
              "or network: look at its process",
              command, timeout_ms);
    return die(q, ETIMEDOUT, text.text, err);
}

static int exchange(struct qmp *q, const char *command, cJSON *arguments, int fd, int timeout_ms,
                    cJSON **out, struct error *err)
{
    uint64_t deadline = clock_now() + timeout_ms * NS_PER_MS;
    cJSON *answer = NULL;
    int ret;

    if ((ret = check_alive(q, command, err)) < 0) {
        cJSON_Delete(arguments);
        return ret;
    }
    ret = send_command(q, command, arguments, fd, deadline, err);
    if (ret == 0)
        ret = await_answer(q, deadline, &answer, err);
    if (ret == -ETIMEDOUT)
        return timed_out(q, command, timeout_ms, err);
    if (ret == 0)
        ret = unpack_answer(answer, command, out, err);
    cJSON_Delete(answer);
    return ret;
}

int qmp_command(struct qmp *q, const char *command, cJSON *arguments, int fd, int timeout_ms,
                cJSON **out, struct error *err)
{
    int ret;

    if (out)
        *out = NULL;
    pthread_mutex_lock(&q->lock);
    ret = exchange(q, command, arguments, fd, timeout_ms, out, err);
    pthread_mutex_unlock(&q->lock);
    return ret;
}

int qmp_post(struct qmp *q, const char *command, cJSON *arguments, struct error *err)
{
    pthread_mutex_lock(&q->lock);
    int ret = check_alive(q, command, err);
    if (ret == 0) {
        uint64_t deadline = clock_now() + QMP_TIMEOUT_MS * NS_PER_MS;
        ret = send_command(q, command, arguments, -1, deadline, err);
        if (ret == -ETIMEDOUT)
            ret = timed_out(q, command, QMP_TIMEOUT_MS, err);
    } else {
        cJSON_Delete(arguments);
    }
    pthread_mutex_unlock(&q->lock);
    return ret;
}

static int parse_arguments(const char *command, const char *format, va_list args, cJSON **out,
                           struct error *err)
{
    char *text;

    if (vasprintf(&text, format, args) < 0)
        return error_set(err, ENOMEM, "out of memory for the command %s", command);
    for (char *at = text; (at = strchr(at, '\'')); at++)
        *at = '"';
    *out = cJSON_Parse(text);
    free(text);
    return *out ? 0 : error_set(err, EINVAL, "the arguments of %s are no JSON", command);
}

int qmp_call(struct qmp *q, cJSON **out, struct error *err, const char *command, const char *format,
             ...)
{
    cJSON *arguments = NULL;
    va_list args;
    int ret = 0;

    if (out)
        *out = NULL;
    if (format) {
        va_start(args, format);
        ret = parse_arguments(command, format, args, &arguments, err);
        va_end(args);
    }
    if (ret < 0)
        return ret;
    return qmp_command(q, command, arguments, -1, QMP_TIMEOUT_MS, out, err);
}

/* Notes the events that have come. An answer among them is nobody's any more. */
static int drain(struct qmp *q, struct error *err)
{
    uint64_t deadline = clock_now() + AWAIT_SLICE_MS * NS_PER_MS;
    cJSON *stray;
    int ret;

    do {
        while ((ret = next_answer(q, &stray, err)) > 0)
            cJSON_Delete(stray);
        if (ret == 0 && (ret = q->dead.code ? -q->dead.code : read_some(q, err)) == 0)
            return 0;
    } while (ret > 0 && clock_now() < deadline);
    return ret < 0 ? ret : 0;
}

bool qmp_seen(struct qmp *q, const char *event, cJSON **data)
{
    struct qmp_event *seen;

    pthread_mutex_lock(&q->lock);
    drain(q, NULL);
    seen = qmp_inbox_event(&q->inbox, event);
    if (data)
        *data = seen ? cJSON_Duplicate(seen->data, true) : NULL;
    pthread_mutex_unlock(&q->lock);
    return seen;
}

void qmp_forget(struct qmp *q, const char *event)
{
    pthread_mutex_lock(&q->lock);
    drain(q, NULL);
    qmp_event_forget(qmp_inbox_event(&q->inbox, event));
    pthread_mutex_unlock(&q->lock);
}

/* The index of the first event seen, or -EAGAIN, or why none can come any more. */
static int look_for(struct qmp *q, const char *const *events, struct error *err)
{
    int found = -EAGAIN;

    pthread_mutex_lock(&q->lock);
    drain(q, NULL);
    for (int i = 0; events[i] && found < 0; i++)
        if (qmp_inbox_event(&q->inbox, events[i]))
            found = i;
    if (found < 0 && q->dead.code)
        found =
            error_set(err, q->dead.code, "waiting for the event %s: %s", events[0], q->dead.text);
    pthread_mutex_unlock(&q->lock);
    return found;
}

int qmp_await(struct qmp *q, const char *const *events, int timeout_ms, struct error *err)
{
    uint64_t deadline = clock_now() + timeout_ms * NS_PER_MS, slice;
    bool late = false;
    int found;

    while ((found = look_for(q, events, err)) == -EAGAIN) {
        if (late)
            return error_set(err, ETIMEDOUT, "QEMU did not send the event %s within %d ms",
                             events[0], timeout_ms);
        late = clock_now() >= deadline;
        slice = clock_now() + AWAIT_SLICE_MS * NS_PER_MS;
        wait_ready(q, POLLIN, slice < deadline ? slice : deadline);
    }
    return found;
}

bool qmp_lost(struct qmp *q)
{
    struct pollfd ready = {.fd = q ? q->socket : -1, .events = POLLRDHUP};

    if (!q)
        return true;
    return poll(&ready, 1, 0) > 0 && ready.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

pid_t qmp_peer(const struct qmp *q)
{
    return q->peer;
}

int qmp_socket(const struct qmp *q)
{
    return q->socket;
}

static int check_greeting(struct qmp *q, const char *path, struct error *err)
{
    uint64_t deadline = clock_now() + GREETING_TIMEOUT_MS * NS_PER_MS;
    cJSON *greeting = NULL;
    bool late = false;
    int ret = read_answer(q, deadline, &late, &greeting, err);

    if (ret == -ETIMEDOUT)
        return error_set(err, EBUSY,
                         "QEMU does not answer at %s: it serves one client at a time, and another "
                         "(libvirt, another wander) has this monitor; end that one, or start QEMU "
                         "with a second monitor (-qmp unix:PATH,server=on,wait=off) for wander",
                         path);
    if (ret < 0)
        return error_prefix(err, "no greeting from QEMU's monitor at %s", path);
    if (!cJSON_HasObjectItem(greeting, "QMP"))
        ret = error_set(err, EPROTO, "what listens at %s does not speak QMP", path);
    cJSON_Delete(greeting);
    return ret;
}

static int connect_socket(const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint64_t deadline = clock_now() + GREETING_TIMEOUT_MS * NS_PER_MS;
    int fd, code;

    if (strlen(path) >= sizeof address.sun_path)
        return error_set(
            err, ENAMETOOLONG,
            "the path of QEMU's monitor has more than %zu bytes: %s; use a shorter one",
            sizeof address.sun_path - 1, path);
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set_errno(err, errno, "making a socket failed");
    while (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        code = errno;
        if (code != EAGAIN || clock_now() >= deadline) {
            close(fd);
            return code == EAGAIN
                       ? error_set(err, EBUSY,
                                   "other clients wait for QEMU's monitor at %s already; end them, "
                                   "or start QEMU with a second monitor (-qmp unix:...)",
                                   path)
                       : error_set_errno(err, code,
                                         "connecting to QEMU's monitor at %s failed (is QEMU "
                                         "running with -qmp unix:%s,server=on,wait=off?)",
                                         path, path);
        }
        clock_sleep_until(clock_now() + 20 * NS_PER_MS);
    }
    return fd;
}

static int make(int socket, struct qmp **out, struct error *err)
{
    struct ucred peer = {0};
    socklen_t size = sizeof peer;
    struct qmp *q = calloc(1, sizeof *q);

    if (!q)
        return error_set(err, ENOMEM, "out of memory for a monitor's connection");
    getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size);
    pthread_mutex_init(&q->lock, NULL);
    q->socket = socket;
    q->peer = peer.pid;
    *out = q;
    return 0;
}

int qmp_connect(const char *path, struct qmp **out, struct error *err)
{
    struct qmp *q;
    int socket = connect_socket(path, err);
    int ret;

    if (socket < 0)
        return socket;
    if ((ret = make(socket, &q, err)) < 0)
        goto close_socket;
    if ((ret = check_greeting(q, path, err)) < 0 ||
        (ret = qmp_call(q, NULL, err, "qmp_capabilities", NULL)) < 0)
        goto close_qmp;
    *out = q;
    return 0;
close_qmp:
    qmp_close(q);
    return ret;
close_socket:
    close(socket);
    return ret;
}

void qmp_revive(struct qmp *q)
{
    const char resync[] = {(char)RESYNC_BYTE, '\n'}; /* a command may have been sent in half */

    pthread_mutex_lock(&q->lock);
    if (q->dead.code == ETIMEDOUT) {
        error_clear(&q->dead);
        if (send_all(q, resync, sizeof resync, -1, clock_now() + QMP_TIMEOUT_MS * NS_PER_MS,
                     NULL) == -ETIMEDOUT)
            timed_out(q, "anything", QMP_TIMEOUT_MS, NULL);
    }
    pthread_mutex_unlock(&q->lock);
}

int qmp_adopt(int socket, struct qmp **out, struct error *err)
{
    const char resync[] = {(char)RESYNC_BYTE, '\n'};
    struct qmp *q;
    int ret;

    if ((ret = make(socket, &q, err)) < 0)
        return ret;
    q->inbox.forgive = true;
    ret = send_all(q, resync, sizeof resync, -1, clock_now() + QMP_TIMEOUT_MS * NS_PER_MS, err);
    if (ret == -ETIMEDOUT)
        ret = timed_out(q, "anything", QMP_TIMEOUT_MS, err);
    if (ret < 0) {
        q->socket = -1;
        qmp_close(q);
        return ret;
    }
    *out = q;
    return 0;
}

void qmp_close(struct qmp *q)
{
    if (!q)
        return;
    qmp_inbox_free(&q->inbox);
    pthread_mutex_destroy(&q->lock);
    if (q->socket >= 0)
        close(q->socket);
    free(q);
}
