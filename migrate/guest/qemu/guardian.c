#include "migrate/guest/qemu/guardian.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migrate/guest/qemu/spawn.h"

enum { END_LIMIT_MS = 2000 };

struct guardian {
    int words;  /* our end of the pipe: a socket, so that writing to a dead one raises no signal */
    int handle; /* pidfd */
    pid_t pid;
};

/* A memfd with the commands as JSON, at its beginning. */
static int write_undo(const cJSON *undo, struct error *err)
{
    char *text = undo ? cJSON_PrintUnformatted(undo) : NULL;
    size_t length = text ? strlen(text) : 0;
    int file = memfd_create("wander-undo", MFD_CLOEXEC);

    if (file < 0 || (undo && !text) || pwrite(file, text, length, 0) != (ssize_t)length) {
        error_set_errno(err, errno ? errno : ENOMEM,
                        "cannot write down what the guardian is to do");
        if (file >= 0)
            close(file);
        file = -err->code;
    }
    cJSON_free(text);
    return file;
}

static int spawn_guardian(struct guardian *g, const int files[4], struct error *err)
{
    static char *const arguments[] = {"wander", "guardian", NULL};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int errors = fcntl(STDERR_FILENO, F_GETFD) < 0 ? null : STDERR_FILENO;
    struct spawn how = {
        .program = "/proc/self/exe",
        .arguments = arguments,
        .environment = environ,
        .files = {null, null, errors, files[0], files[1] < 0 ? null : files[1], files[2], files[3]},
        .file_count = 7,
    };
    int ret = null < 0 ? -errno : spawn_start(&how, &g->pid, &g->handle);

    if (null >= 0)
        close(null);
    return ret < 0 ? error_set_errno(err, -ret, "cannot start the guardian") : 0;
}

/* Opens what the guardian is given and starts it. */
static int launch(struct guardian *g, struct qmp *q, pid_t pid, const cJSON *undo,
                  enum guardian_word first, struct error *err)
{
    int pair[2], target, memory, ret;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return error_set_errno(err, errno, "cannot make the guardian's pipe");
    g->words = pair[0];
    guardian_say(g, first);
    ret = target = pidfd_open(pid, 0);
    if (target < 0) {
        ret = error_set_errno(err, errno, "cannot take hold of QEMU (process %d)", pid);
        goto close_pair;
    }
    ret = memory = write_undo(undo, err);
    if (memory < 0)
        goto close_target;
    ret = spawn_guardian(g, (const int[]){pair[1], q ? qmp_socket(q) : -1, target, memory}, err);
    close(memory);
close_target:
    close(target);
close_pair:
    close(pair[1]);
    if (ret < 0)
        close(pair[0]);
    return ret;
}

int guardian_start(struct qmp *q, pid_t pid, cJSON *undo, enum guardian_word first,
                   struct guardian **out, struct error *err)
{
    struct guardian *g = calloc(1, sizeof(*g));
    struct error own = {0};
    int ret = g ? launch(g, q, pid, undo, first, &own)
                : error_set_errno(&own, ENOMEM, "cannot start the guardian");

    cJSON_Delete(undo);
    if (ret < 0) {
        free(g);
        return error_set(err, own.code, "%s", own.text);
    }
    *out = g;
    return 0;
}

void guardian_say(struct guardian *g, enum guardian_word word)
{
    char byte = (char)word;

    while (send(g->words, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EINTR)
        continue;
}

void guardian_end(struct guardian *g)
{
    int status;

    if (!g)
        return;
    guardian_say(g, GUARDIAN_BYE);
    if (spawn_await_end(g->handle, END_LIMIT_MS, &status) < 0) {
        pidfd_send_signal(g->handle, SIGKILL, NULL, 0);
        spawn_await_end(g->handle, END_LIMIT_MS, &status);
    }
    close(g->words);
    close(g->handle);
    free(g);
}
