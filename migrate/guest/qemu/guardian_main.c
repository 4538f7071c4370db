/* The guardian's own life: it waits for the end of the process that started it, or of QEMU. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "migrate/guest/qemu/device_state.h"
#include "migrate/guest/qemu/guardian.h"
#include "migrate/guest/qemu/run_state.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

enum { WORDS = 3, MONITOR = 4, TARGET = 5, UNDO = 6 };

enum {
    CONTINUE_LIMIT_S = 10, /* the destination may hold the image locks until it is gone */
    CONTINUE_EVERY_MS = 50,
    MAX_UNDO = 64 << 10,
};

/* The newest word among those that have come, or `word` when none has. False at the end of file. */
static bool read_words(char *word)
{
    char bytes[64];
    ssize_t n = read(WORDS, bytes, sizeof(bytes));

    if (n < 0)
        return errno == EINTR || errno == EAGAIN;
    for (ssize_t i = 0; i < n && *word != GUARDIAN_BYE; i++)
        *word = bytes[i];
    return n > 0;
}

/* What is to be done, once there is something: BYE when nothing is. */
static char await_word(void)
{
    struct pollfd p[] = {{.fd = WORDS, .events = POLLIN}, {.fd = TARGET, .events = POLLIN}};
    char word = GUARDIAN_LEAVE;

    for (;;) {
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return GUARDIAN_LEAVE;
        if (p[1].revents)
            return GUARDIAN_BYE;
        if (p[0].revents && !read_words(&word))
            return word;
        if (word == GUARDIAN_BYE)
            return word;
    }
}

static cJSON *read_undo(void)
{
    char *text = malloc(MAX_UNDO);
    ssize_t length = text ? pread(UNDO, text, MAX_UNDO, 0) : -1;
    cJSON *undo = length > 0 ? cJSON_ParseWithLength(text, (size_t)length) : NULL;

    free(text);
    return undo;
}

static int let_run(struct qmp *q, struct error *err)
{
    uint64_t deadline = clock_now() + CONTINUE_LIMIT_S * NS_PER_S;

    for (;;) {
        struct error refused = {0};
        int ret = qmp_call(q, NULL, &refused, "cont", NULL);
        if (ret == 0)
            return 0;
        if (ret != -EREMOTEIO || clock_now() > deadline)
            return error_set(err, refused.code, "%s", refused.text);
        clock_sleep_until(clock_now() + CONTINUE_EVERY_MS * NS_PER_MS);
    }
}

/* Only a guest that was stopped for its move: one that stopped by itself has its own reasons. */
static bool may_run(const char *state)
{
    return strcmp(state, "paused") == 0 || strcmp(state, "postmigrate") == 0;
}

static int bring_back(struct qmp *q, const cJSON *undo, struct error *err)
{
    char state[32];
    int ret = qemu_run_state(q, state, sizeof(state), err);

    if (ret == 0 && strcmp(state, "running") != 0)
        ret = qemu_state_abandon(q, err);
    if (ret < 0)
        return ret;
    qemu_settings_replay(q, undo);
    ret = qemu_run_state(q, state, sizeof(state), err);
    if (ret < 0 || strcmp(state, "running") == 0)
        return ret;
    if (!may_run(state))
        return error_set(err, EPERM, "it is '%s', which is not wander's doing", state);
    ret = let_run(q, err);
    if (ret == 0)
        qmp_command(q, "announce-self", qemu_announcement(), -1, QMP_TIMEOUT_MS, NULL, NULL);
    return ret;
}

static int continue_guest(void)
{
    struct error err = {0};
    struct qmp *q = NULL;
    cJSON *undo = read_undo();
    int ret = qmp_adopt(MONITOR, &q, &err);

    if (ret == 0)
        ret = bring_back(q, undo, &err);
    qmp_close(q);
    cJSON_Delete(undo);
    if (ret == 0)
        log_line(LOG_WARNING, "wander ended in the middle of a move; the guest runs on here");
    else
        log_line(LOG_ERROR,
                 "wander ended in the middle of a move, and the guest could not be made to run "
                 "here: %s; say 'cont' to QEMU's monitor",
                 err.text);
    return ret < 0;
}

static int kill_target(void)
{
    if (pidfd_send_signal(TARGET, SIGKILL, NULL, 0) < 0 && errno != ESRCH) {
        log_line(LOG_ERROR, "cannot end the QEMU that waited for its guest: %s", strerror(errno));
        return 1;
    }
    log_line(LOG_WARNING, "wander ended before the guest was its own; QEMU was ended here");
    return 0;
}

int guardian_main(void)
{
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};

    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
        signal(ignored[i], SIG_IGN);
    switch (await_word()) {
    case GUARDIAN_CONTINUE:
        return continue_guest();
    case GUARDIAN_KILL:
        return kill_target();
    default:
        return 0;
    }
}
