/* A QEMU of a test's own: TCG, 64 MiB, nothing runs in it until it is told to. */
#ifndef TESTS_UNIT_QEMU_REAL_H
#define TESTS_UNIT_QEMU_REAL_H

#include <criterion/criterion.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migrate/guest/guest.h"
#include "migrate/guest/qemu/qmp.h"
#include "transport/base/clock.h"

#define FIXTURE_QEMU    "qemu-system-x86_64"
#define FIXTURE_WAIT_MS 60000

struct fixture_qemu {
    pid_t pid;
    struct qmp *qmp;
    char folder[64], socket[100];
};

static inline void fixture_folder(struct fixture_qemu *f)
{
    if (f->folder[0])
        return;
    strcpy(f->folder, "/dev/shm/wander-test-qemu-XXXXXX");
    cr_assert_not_null(mkdtemp(f->folder), "no folder in /dev/shm");
}

static inline void fixture_run(struct fixture_qemu *f, const char *arguments)
{
    char command[4096];

    snprintf(command, sizeof command,
             "cd %s && exec %s -accel tcg -m 64 -display none -nodefaults -S -qmp "
             "unix:%s,server=on,wait=off %s >log 2>&1",
             f->folder, FIXTURE_QEMU, f->socket, arguments ? arguments : "-machine q35");
    f->pid = fork();
    cr_assert_geq(f->pid, 0);
    if (f->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/bin/sh", "sh", "-c", command, NULL);
        _exit(127);
    }
}

/* What QEMU has written, for a test that fails. */
static inline const char *fixture_log(const struct fixture_qemu *f, char *out, size_t size)
{
    char path[128];
    FILE *file;

    snprintf(path, sizeof path, "%s/log", f->folder);
    file = fopen(path, "re");
    out[file ? fread(out, 1, size - 1, file) : 0] = '\0';
    if (file)
        fclose(file);
    return out;
}

/* `arguments`: besides -accel tcg -m 64; with -machine, or NULL for q35 alone. Relative paths are
 * in the fixture's folder, in shared memory. A test without QEMU is skipped by name. */
static inline void fixture_start(struct fixture_qemu *f, const char *arguments)
{
    uint64_t deadline = clock_now() + FIXTURE_WAIT_MS * NS_PER_MS;
    struct error err = {0};
    char log[2048];

    if (system("command -v " FIXTURE_QEMU " >/dev/null 2>&1") != 0)
        cr_skip_test("skipped: " FIXTURE_QEMU " is not installed");
    fixture_folder(f);
    snprintf(f->socket, sizeof f->socket, "%s/qmp.sock", f->folder);
    fixture_run(f, arguments);
    while (access(f->socket, F_OK) < 0) {
        cr_assert(clock_now() < deadline && waitpid(f->pid, NULL, WNOHANG) == 0,
                  "QEMU did not start with '%s': %s", arguments ? arguments : "",
                  fixture_log(f, log, sizeof log));
        usleep(10000);
    }
    while (qmp_connect(f->socket, &f->qmp, &err) < 0) {
        cr_assert(clock_now() < deadline, "%s", err.text);
        error_clear(&err);
        usleep(10000);
    }
}

static inline void fixture_stop(struct fixture_qemu *f)
{
    char command[128];

    qmp_close(f->qmp);
    kill(f->pid, SIGKILL);
    waitpid(f->pid, NULL, 0);
    snprintf(command, sizeof command, "rm -rf '%s'", f->folder);
    cr_expect_eq(system(command), 0);
    *f = (struct fixture_qemu){0};
}

static inline int fixture_wait_readable(int fd)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};

    return poll(&ready, 1, FIXTURE_WAIT_MS) == 1 ? 0 : -1;
}

/* The texts `expected` (NULL-terminated) must be among the reasons, one each, and no reason else.
 */
static inline void expect_reasons(const char *name, const struct reasons *reasons,
                                  const char *const *expected)
{
    unsigned count = 0;

    for (; expected[count]; count++)
        cr_expect(reasons->text && strstr(reasons->text, expected[count]),
                  "%s: expected '%s' among the reasons: %s", name, expected[count],
                  reasons->text ? reasons->text : "(none)");
    cr_expect_eq(reasons->count, count, "%s: %u reasons, expected %u: %s", name, reasons->count,
                 count, reasons->text ? reasons->text : "(none)");
}

#endif
