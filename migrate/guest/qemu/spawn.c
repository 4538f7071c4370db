#include "migrate/guest/qemu/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "transport/base/clock.h"

static void close_all(const int *files, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        close(files[i]);
}

/* Copies above the numbers that the child gets them under, so that none overwrites another. */
static int lift(const struct spawn *how, int lifted[SPAWN_MAX_FILES])
{
    for (unsigned i = 0; i < how->file_count; i++) {
        lifted[i] = fcntl(how->files[i], F_DUPFD_CLOEXEC, SPAWN_MAX_FILES);
        if (lifted[i] < 0) {
            int code = -errno;
            close_all(lifted, i);
            return code;
        }
    }
    return 0;
}

static void describe_files(posix_spawn_file_actions_t *actions, const int *lifted, unsigned count)
{
    posix_spawn_file_actions_init(actions);
    for (unsigned i = 0; i < count; i++)
        posix_spawn_file_actions_adddup2(actions, lifted[i], (int)i);
    posix_spawn_file_actions_addclosefrom_np(actions, (int)count);
}

static void describe_process(posix_spawnattr_t *attributes)
{
    sigset_t all, none;

    sigfillset(&all);
    sigemptyset(&none);
    posix_spawnattr_init(attributes);
    posix_spawnattr_setsigdefault(attributes, &all);
    posix_spawnattr_setsigmask(attributes, &none);
    posix_spawnattr_setflags(attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
}

static int open_handle(pid_t pid, int *handle)
{
    int code;

    *handle = pidfd_open(pid, 0);
    if (*handle >= 0)
        return 0;
    code = -errno;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return code;
}

int spawn_start(const struct spawn *how, pid_t *pid, int *handle)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int lifted[SPAWN_MAX_FILES];
    int ret = lift(how, lifted);

    if (ret < 0)
        return ret;
    describe_files(&actions, lifted, how->file_count);
    describe_process(&attributes);
    ret = -posix_spawnp(pid, how->program, &actions, &attributes, how->arguments, how->environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close_all(lifted, how->file_count);
    return ret < 0 ? ret : open_handle(*pid, handle);
}

static bool has_ended(int handle, int timeout_ms)
{
    struct pollfd p = {.fd = handle, .events = POLLIN};

    return poll(&p, 1, timeout_ms) > 0;
}

int spawn_await_end(int handle, int timeout_ms, int *status)
{
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    siginfo_t info = {0};

    *status = -1;
    while (!has_ended(handle, clock_ms_until(deadline)))
        if (clock_now() >= deadline)
            return -ETIMEDOUT;
    if (waitid(P_PIDFD, (id_t)handle, &info, WEXITED | WNOHANG) == 0 && info.si_pid)
        *status = info.si_code == CLD_EXITED ? W_EXITCODE(info.si_status, 0) : info.si_status;
    return 0;
}
