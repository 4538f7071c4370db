#include "migrate/guest/qemu/device_state.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migrate/guest/qemu/run_state.h"
#include "transport/base/clock.h"

#define STREAM_NAME "w" /* what QEMU knows its end of the stream as */

enum {
    STREAM_BUFFER = 4 << 20,
    STATE_LIMIT_S = 10,
    ABANDON_LIMIT_S = 5,
    EVENT_WAIT_MS = 100, /* then asked again: QEMU tells nothing where events are off */
};

static const char *const migration_events[] = {"MIGRATION", NULL};

/* Where QEMU's migration stands, as query-migrate has it. */
struct standing {
    char status[32]; /* "" when there was none */
    char reason[256];
};

static void copy_text(char *out, size_t size, const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
    size_t length = text ? strnlen(text, size - 1) : 0;

    if (length)
        memcpy(out, text, length);
    out[length] = '\0';
}

static int ask_standing(struct qmp *q, struct standing *out, struct error *err)
{
    cJSON *answer = NULL;
    int ret;

    qmp_forget(q, migration_events[0]);
    ret = qmp_call(q, &answer, err, "query-migrate", NULL);
    copy_text(out->status, sizeof(out->status), answer, "status");
    copy_text(out->reason, sizeof(out->reason), answer, "error-desc");
    cJSON_Delete(answer);
    return ret;
}

/* Until QEMU says something new of its migration, or for a moment. */
static int await_news(struct qmp *q, struct error *err)
{
    struct error own = {0};
    int ret = qmp_await(q, migration_events, EVENT_WAIT_MS, &own);

    return ret >= 0 || ret == -ETIMEDOUT ? 0 : error_set(err, own.code, "%s", own.text);
}

/* As a rule QEMU has said so before the stream ends: a question less. */
static bool has_said_completed(struct qmp *q, struct standing *out)
{
    cJSON *data = NULL;

    *out = (struct standing){0};
    if (qmp_seen(q, migration_events[0], &data))
        copy_text(out->status, sizeof(out->status), data, "status");
    cJSON_Delete(data);
    return strcmp(out->status, "completed") == 0;
}

static int await_end(struct qmp *q, struct standing *out, uint64_t deadline, struct error *err)
{
    if (has_said_completed(q, out))
        return 0;
    int ret = ask_standing(q, out, err);

    while (ret == 0 && (!qemu_migration_is_over(out->status) || !out->status[0])) {
        if (clock_now() > deadline)
            return error_set(err, ETIMEDOUT,
                             "QEMU did not come to an end with its device state: it is still '%s'",
                             out->status);
        ret = await_news(q, err);
        if (ret == 0)
            ret = ask_standing(q, out, err);
    }
    return ret;
}

/* Waits for QEMU to leave the state in which it would refuse to continue. It nearly always has
 * already. */
static int await_settled(struct qmp *q, uint64_t deadline, struct error *err)
{
    char state[32];
    int ret = qemu_run_state(q, state, sizeof(state), err);

    while (ret == 0 && strcmp(state, "finish-migrate") == 0) {
        if (clock_now() > deadline)
            return error_set(err, ETIMEDOUT, "QEMU does not leave the state 'finish-migrate'");
        clock_sleep_until(clock_now() + NS_PER_MS);
        ret = qemu_run_state(q, state, sizeof(state), err);
    }
    return ret;
}

/* Gives QEMU one end of a socket pair as STREAM_NAME; *ours is the other. */
static int open_stream(struct qmp *q, int *ours, struct error *err)
{
    cJSON *arguments = cJSON_CreateObject();
    int pair[2], size = STREAM_BUFFER, ret;

    cJSON_AddStringToObject(arguments, "fdname", STREAM_NAME);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        cJSON_Delete(arguments);
        return error_set_errno(err, errno, "cannot make a socket pair for the device state");
    }
    for (unsigned i = 0; i < 2; i++)
        if (setsockopt(pair[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
            setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    ret = qmp_command(q, "getfd", arguments, pair[1], QMP_TIMEOUT_MS, NULL, err);
    close(pair[1]);
    *ours = pair[0];
    if (ret < 0)
        close(pair[0]);
    return ret;
}

/* Starts QEMU's side of the stream with `command`. */
static int start_stream(struct qmp *q, const char *command, int *ours, struct error *err)
{
    int ret = open_stream(q, ours, err);

    if (ret < 0)
        return ret;
    qmp_seen(q, migration_events[0], NULL);
    qmp_forget(q, migration_events[0]);
    ret = qmp_call(q, NULL, err, command, "{'uri': 'fd:%s'}", STREAM_NAME);
    if (ret == 0)
        return 0;
    qmp_call(q, NULL, NULL, "closefd", "{'fdname': '%s'}", STREAM_NAME);
    close(*ours);
    return ret;
}

/* 0 when it is ready. */
static int await_stream(int stream, short events, uint64_t deadline, struct error *err)
{
    struct pollfd p = {.fd = stream, .events = events};
    int ready;

    do
        ready = poll(&p, 1, clock_ms_until(deadline));
    while (ready < 0 && errno == EINTR);
    if (ready < 0)
        return error_set_errno(err, errno, "cannot wait for QEMU's device state");
    return ready ? 0
                 : error_set(err, ETIMEDOUT, "QEMU's device state did not pass within %d s",
                             STATE_LIMIT_S);
}

static int drain(int stream, struct guest_state *out, uint64_t deadline, struct error *err)
{
    uint8_t buffer[64 << 10];
    size_t total = 0;
    ssize_t n;

    for (;;) {
        int ret = await_stream(stream, POLLIN, deadline, err);
        if (ret < 0)
            return ret;
        n = recv(stream, buffer, sizeof(buffer), MSG_DONTWAIT);
        if (n == 0)
            return 0;
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "cannot read QEMU's device state");
        total += (size_t)n;
        ret = total > GUEST_MAX_STATE ? -EFBIG : guest_state_append(out, buffer, (size_t)n);
        if (ret == -EFBIG)
            return error_set(err, EFBIG,
                             "QEMU's device state has more than %d MiB: guest RAM or large video "
                             "memory is in it. RAM must be in files (-object "
                             "memory-backend-file,share=on,…); give the video card less memory "
                             "(vgamem_mb=8), or have none (-vga none)",
                             GUEST_MAX_STATE >> 20);
        if (ret < 0)
            return error_set_errno(err, -ret, "cannot keep QEMU's device state");
    }
}

/* 0 when it all went in or QEMU takes no more: its standing says which and why. */
static int feed(int stream, const uint8_t *bytes, size_t size, uint64_t deadline, struct error *err)
{
    while (size) {
        int ret = await_stream(stream, POLLOUT, deadline, err);
        if (ret < 0)
            return ret;
        ssize_t n = send(stream, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n < 0)
            return 0;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

static int expect_completed(const struct standing *s, const char *what, struct error *err)
{
    if (strcmp(s->status, "completed") == 0)
        return 0;
    return error_set(err, strcmp(s->status, "cancelled") == 0 ? ECANCELED : EREMOTEIO,
                     "QEMU could not %s its device state: %s%s%s", what, s->status,
                     s->reason[0] ? ": " : "", s->reason);
}

int qemu_state_save(struct qmp *q, struct guest_state *out, struct error *err)
{
    uint64_t deadline = clock_now() + STATE_LIMIT_S * NS_PER_S;
    struct standing standing;
    int stream, ret = start_stream(q, "migrate", &stream, err);

    if (ret < 0)
        return ret;
    ret = drain(stream, out, deadline, err);
    if (ret == 0)
        ret = await_end(q, &standing, deadline, err);
    close(stream); /* first: a QEMU that waits for room in it may not answer meanwhile */
    if (ret < 0)
        qemu_state_abandon(q, NULL);
    return ret == 0 ? expect_completed(&standing, "save", err) : ret;
}

/* What a QEMU may be in once it has a guest that must not run yet: what the source's was in. */
static int expect_held(struct qmp *q, struct error *err)
{
    static const char *const held[] = {"paused", "prelaunch", "postmigrate", "suspended"};
    char state[32];
    int ret = qemu_run_state(q, state, sizeof(state), err);

    for (size_t i = 0; ret == 0 && i < sizeof(held) / sizeof(held[0]); i++)
        if (strcmp(state, held[i]) == 0)
            return 0;
    return ret < 0
               ? ret
               : error_set(err, EBADMSG,
                           "QEMU has loaded the device state and is '%s' now, not paused", state);
}

int qemu_state_load(struct qmp *q, const void *bytes, size_t size, struct error *err)
{
    uint64_t deadline = clock_now() + STATE_LIMIT_S * NS_PER_S;
    struct standing standing;
    int stream, ret = start_stream(q, "migrate-incoming", &stream, err);

    if (ret < 0)
        return ret;
    ret = feed(stream, bytes, size, deadline, err);
    close(stream);
    if (ret == 0)
        ret = await_end(q, &standing, deadline, err);
    if (ret == -ECONNRESET)
        return error_prefix(err, "QEMU ended while it loaded the device state");
    if (ret == 0)
        ret = expect_completed(&standing, "load", err);
    return ret == 0 ? expect_held(q, err) : ret;
}

int qemu_state_abandon(struct qmp *q, struct error *err)
{
    uint64_t deadline = clock_now() + ABANDON_LIMIT_S * NS_PER_S;
    struct standing standing;
    int ret = ask_standing(q, &standing, err);

    if (ret == 0 && !qemu_migration_is_over(standing.status))
        ret = qmp_call(q, NULL, err, "migrate_cancel", NULL);
    while (ret == 0 && !qemu_migration_is_over(standing.status)) {
        if (clock_now() > deadline)
            return error_set(err, ETIMEDOUT, "QEMU does not end its own migration: it is '%s'",
                             standing.status);
        ret = await_news(q, err);
        if (ret == 0)
            ret = ask_standing(q, &standing, err);
    }
    return ret == 0 ? await_settled(q, deadline, err) : ret;
}
