#include "tools/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/control_client.h"
#include "tools/runtime.h"

#define PREFIX "qmp:"

enum { ANSWER_MS = 30000 };

bool attach_is_monitor(const char *guest)
{
    return strncmp(guest, PREFIX, strlen(PREFIX)) == 0;
}

static int monitor_path(const char *guest, char path[PATH_MAX], struct error *err)
{
    if (!realpath(guest + strlen(PREFIX), path))
        return error_set_errno(err, errno,
                               "there is no QMP socket %s: start QEMU with -qmp "
                               "unix:PATH,server=on,wait=off, or name the one it has",
                               guest + strlen(PREFIX));
    return 0;
}

int attach_find(const char *guest, char name[GUEST_NAME_SIZE], struct error *err)
{
    char path[PATH_MAX];
    int result = monitor_path(guest, path, err);

    if (!result)
        result = control_find("monitor", path, name, err);
    return result == -ENOENT ? error_set(err, ENOENT, "nobody moves the guest at %s", guest)
                             : result;
}

/* The child: detached from terminal and session, with nothing open but its lifeline. */
_Noreturn static void become_server(const char *path, int lifeline)
{
    int nothing = open("/dev/null", O_RDWR);

    setsid();
    for (int fd = 0; fd < ATTACH_LIFELINE; fd++)
        dup2(nothing, fd);
    if (lifeline == ATTACH_LIFELINE)
        fcntl(lifeline, F_SETFD, 0);
    else
        dup2(lifeline, ATTACH_LIFELINE);
    close_range(ATTACH_LIFELINE + 1, ~0u, 0);
    /* Twice removed: whoever started us need not wait for it. */
    if (fork() == 0)
        execl("/proc/self/exe", "wander", "attach", path, (char *)NULL);
    _exit(127);
}

static int read_line(int fd, char *line, size_t size)
{
    size_t used = 0;

    while (used + 1 < size) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (poll(&wait, 1, ANSWER_MS) <= 0)
            return -ETIMEDOUT;
        ssize_t got = read(fd, line + used, 1);
        if (got <= 0)
            return -ECONNRESET;
        if (line[used] == '\n')
            break;
        used++;
    }
    line[used] = '\0';
    return 0;
}

static int hear(int fd, char name[GUEST_NAME_SIZE], struct error *err)
{
    char line[ERROR_TEXT_SIZE + 16];
    int result = read_line(fd, line, sizeof(line));

    while (result == 0 && strncmp(line, "note ", 5) == 0) {
        fprintf(stderr, "note: %s\n", line + 5);
        result = read_line(fd, line, sizeof(line));
    }
    if (result)
        return error_set_errno(err, -result,
                               "the process that was to take hold of the guest said nothing");
    if (strncmp(line, "guest ", 6) == 0) {
        snprintf(name, GUEST_NAME_SIZE, "%.*s", GUEST_NAME_SIZE - 1, line + 6);
        return 0;
    }
    return error_set(err, EPERM, "%s", strncmp(line, "error ", 6) == 0 ? line + 6 : line);
}

int attach_start(const char *guest, char name[GUEST_NAME_SIZE], int *lifeline, struct error *err)
{
    char path[PATH_MAX];
    int pair[2], result = attach_find(guest, name, err);

    *lifeline = -1;
    if (result != -ENOENT)
        return result;
    error_clear(err);
    result = monitor_path(guest, path, err);
    if (result)
        return result;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set_errno(err, errno,
                               "no socket for the process that takes hold of the guest");
    pid_t child = fork();
    if (child == 0)
        become_server(path, pair[1]);
    close(pair[1]);
    if (child > 0) {
        waitpid(child, NULL, 0);
        result = hear(pair[0], name, err);
    }
    if (child < 0)
        result =
            error_set_errno(err, errno, "starting the process that takes hold of the guest failed");
    if (result)
        close(pair[0]);
    else
        *lifeline = pair[0];
    return result;
}
