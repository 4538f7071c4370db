/* A real QEMU for the tests: TCG, a firmware that finds nothing to boot, two monitors (one for what
 * is tested, one to look on). */
#ifndef TESTS_UNIT_QEMU_MACHINE_H
#define TESTS_UNIT_QEMU_MACHINE_H

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/guest/qemu/qmp.h"
#include "migrate/guest/qemu/spawn.h"
#include "transport/base/clock.h"

#define QEMU_PROGRAM "qemu-system-x86_64"

enum { MACHINE_ARGUMENTS = 40, PATIENCE_S = 30 };

struct machine {
    char monitor[96], onlooker[96], ram[96];
    pid_t pid;
    int handle;
};

static inline void need_qemu(void)
{
    if (system("command -v " QEMU_PROGRAM " >/dev/null 2>&1") != 0)
        cr_skip_test("there is no " QEMU_PROGRAM " in PATH (package qemu-system-x86)");
}

/* A folder of the test's own, in memory. */
static inline void make_folder(char *out, size_t size)
{
    snprintf(out, size, "/dev/shm/wander-unit-XXXXXX");
    cr_assert(mkdtemp(out), "cannot make %s: %s", out, strerror(errno));
}

static inline void remove_folder(const char *path)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf '%s'", path);
    cr_expect_eq(system(command), 0, "cannot remove %s", path);
}

static inline struct qmp *connect_monitor(const char *path)
{
    uint64_t deadline = clock_now() + PATIENCE_S * NS_PER_S;
    struct error err = {0};
    struct qmp *q = NULL;

    while (qmp_connect(path, &q, &err) < 0) {
        cr_assert(clock_now() < deadline, "no monitor at %s: %s", path, err.text);
        error_clear(&err);
        clock_sleep_until(clock_now() + 20 * NS_PER_MS);
    }
    return q;
}

/* `extra`: further arguments, NULL-terminated, or NULL. Without `shared` its RAM is its own. */
static inline struct machine machine_start(const char *folder, const char *name, bool shared,
                                           const char *const *extra)
{
    struct machine m = {0};
    char qmp[2][160], backend[192];
    /* It ends with the test, should that fail. */
    const char *arguments[MACHINE_ARGUMENTS] = {"setpriv",
                                                "--pdeathsig",
                                                "KILL",
                                                QEMU_PROGRAM,
                                                "-nodefaults",
                                                "-display",
                                                "none",
                                                "-accel",
                                                "tcg",
                                                "-m",
                                                "64M",
                                                "-qmp",
                                                qmp[0],
                                                "-qmp",
                                                qmp[1],
                                                "-machine",
                                                shared ? "q35,memory-backend=r" : "q35",
                                                "-object",
                                                shared ? backend
                                                       : "memory-backend-ram,id=unused,size=4096"};
    size_t count = 19;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct spawn how = {.program = arguments[0],
                        .arguments = (char *const *)arguments,
                        .environment = environ,
                        .files = {null, null, STDERR_FILENO},
                        .file_count = 3};

    snprintf(m.monitor, sizeof(m.monitor), "%s/%s.qmp", folder, name);
    snprintf(m.onlooker, sizeof(m.onlooker), "%s/%s.onlooker", folder, name);
    snprintf(m.ram, sizeof(m.ram), "%s/%s.ram", folder, name);
    snprintf(qmp[0], sizeof(qmp[0]), "unix:%s,server=on,wait=off", m.monitor);
    snprintf(qmp[1], sizeof(qmp[1]), "unix:%s,server=on,wait=off", m.onlooker);
    snprintf(backend, sizeof(backend), "memory-backend-file,id=r,size=64M,mem-path=%s,share=on",
             m.ram);
    while (extra && *extra && count < MACHINE_ARGUMENTS - 1)
        arguments[count++] = *extra++;
    cr_assert_eq(spawn_start(&how, &m.pid, &m.handle), 0, "cannot start " QEMU_PROGRAM);
    close(null);
    return m;
}

static inline void machine_end(struct machine *m)
{
    int status;

    pidfd_send_signal(m->handle, SIGKILL, NULL, 0);
    cr_expect_eq(spawn_await_end(m->handle, PATIENCE_S * 1000, &status), 0, "QEMU did not end");
    close(m->handle);
}

static inline void run_state(struct qmp *q, char out[32])
{
    struct error err = {0};
    cJSON *answer = NULL;
    const char *text;

    cr_assert_eq(qmp_call(q, &answer, &err, "query-status", NULL), 0, "query-status: %s", err.text);
    text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(answer, "status"));
    snprintf(out, 32, "%s", text ? text : "");
    cJSON_Delete(answer);
}

static inline void expect_run_state(struct qmp *q, const char *when, const char *expected)
{
    char state[32];

    run_state(q, state);
    cr_expect_str_eq(state, expected, "%s: QEMU is '%s', expected '%s'", when, state, expected);
}

static inline void await_run_state(struct qmp *q, const char *when, const char *expected)
{
    uint64_t deadline = clock_now() + PATIENCE_S * NS_PER_S;
    char state[32];

    do {
        clock_sleep_until(clock_now() + 20 * NS_PER_MS);
        run_state(q, state);
    } while (strcmp(state, expected) != 0 && clock_now() < deadline);
    cr_expect_str_eq(state, expected, "%s: QEMU stays '%s', expected '%s'", when, state, expected);
}

/* All migration settings as text, the caller's. */
static inline char *settings_text(struct qmp *q)
{
    cJSON *capabilities = NULL, *parameters = NULL, *both = cJSON_CreateArray();
    char *text;

    cr_assert_eq(qmp_call(q, &capabilities, NULL, "query-migrate-capabilities", NULL), 0);
    cr_assert_eq(qmp_call(q, &parameters, NULL, "query-migrate-parameters", NULL), 0);
    cJSON_AddItemToArray(both, capabilities);
    cJSON_AddItemToArray(both, parameters);
    text = cJSON_PrintUnformatted(both);
    cJSON_Delete(both);
    return text;
}

static inline void expect_done(struct qmp *q, const char *command, const char *when)
{
    struct error err = {0};

    cr_expect_eq(qmp_call(q, NULL, &err, command, NULL), 0, "%s %s: %s", command, when, err.text);
}

#endif
