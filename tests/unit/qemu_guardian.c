/* The guardian with real QEMUs: a process takes hold of one, leaves a guardian and is killed. */
#include "migrate/guest/qemu/guardian.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "migrate/guest/qemu/device_state.h"
#include "qemu_machine.h"

enum { STILL_MS = 500 }; /* so long it is watched doing nothing */

/* The guardian is this program started again. */
__attribute__((constructor)) static void be_the_guardian(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "guardian") == 0)
        _exit(guardian_main());
}

struct scene {
    char folder[64], disk[96];
    struct machine machine;
    struct qmp *onlooker;
    char *settings;
};

static struct scene scene_start(bool shared)
{
    struct scene s = {0};
    char drive[256];
    const char *extra[] = {"-drive", drive, "-device", "virtio-blk-pci,drive=d", NULL};

    need_qemu();
    make_folder(s.folder, sizeof(s.folder));
    snprintf(s.disk, sizeof(s.disk), "%s/disk", s.folder);
    snprintf(drive, sizeof(drive), "file=%s,format=raw,if=none,id=d,file.locking=on", s.disk);
    int disk = open(s.disk, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert_eq(ftruncate(disk, 1 << 20), 0);
    close(disk);
    s.machine = machine_start(s.folder, "source", shared, extra);
    s.onlooker = connect_monitor(s.machine.onlooker);
    s.settings = settings_text(s.onlooker);
    return s;
}

static void scene_end(struct scene *s)
{
    qmp_close(s->onlooker);
    machine_end(&s->machine);
    cJSON_free(s->settings);
    remove_folder(s->folder);
}

/* What the process does before it is killed; any failure ends it with a code of its own. */
struct hold {
    struct qmp *q;
    struct guardian *guardian;
};

typedef void act(struct hold *h);

static void need(int ret, int code)
{
    if (ret < 0)
        _exit(code);
}

static void act_none(struct hold *h)
{
    (void)h;
}

static void act_stop(struct hold *h)
{
    need(qmp_call(h->q, NULL, NULL, "stop", NULL), 20);
}

/* QEMU fills a stream that nobody reads, and stays in the middle of it: its monitor does not answer
 * until the stream is closed. */
static void act_saving(struct hold *h)
{
    int pair[2];

    act_stop(h);
    need(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 21);
    need(qmp_command(h->q, "getfd", cJSON_Parse("{\"fdname\": \"x\"}"), pair[1], QMP_TIMEOUT_MS,
                     NULL, NULL),
         22);
    close(pair[1]);
    need(qmp_call(h->q, NULL, NULL, "migrate", "{'uri': 'fd:x'}"), 23);
    need(poll(&(struct pollfd){.fd = pair[0], .events = POLLIN}, 1, 10000) - 1, 24);
}

/* With a reader that outlives us, so slowly that it is only ended by a cancel. */
static void act_saving_elsewhere(struct hold *h)
{
    act_stop(h);
    need(qmp_call(h->q, NULL, NULL, "migrate-set-parameters", "{'max-bandwidth': 1000}"), 28);
    need(qmp_call(h->q, NULL, NULL, "migrate", "{'uri': 'exec:cat >/dev/null'}"), 25);
}

static void act_saved(struct hold *h)
{
    struct guest_state state = {0};

    act_stop(h);
    need(qemu_state_save(h->q, &state, NULL), 26);
}

/* In the middle of a command, and of an answer. */
static void act_half_a_command(struct hold *h)
{
    static const char text[] = "{\"execute\": \"query-qmp-schema\"}\n{\"execute\": \"sto";

    act_stop(h);
    need((int)send(qmp_socket(h->q), text, sizeof(text) - 1, MSG_NOSIGNAL), 27);
}

static void act_with_children(struct hold *h)
{
    char *arguments[] = {"sleep", "20", NULL};

    act_stop(h);
    if (fork() == 0) {
        execvp("sleep", arguments);
        _exit(1);
    }
}

static void act_say_leave(struct hold *h)
{
    guardian_say(h->guardian, GUARDIAN_LEAVE);
}

static void act_stop_and_leave(struct hold *h)
{
    act_stop(h);
    guardian_say(h->guardian, GUARDIAN_LEAVE);
}

static void act_change_mind(struct hold *h)
{
    act_stop(h);
    guardian_say(h->guardian, GUARDIAN_KILL);
    guardian_say(h->guardian, GUARDIAN_LEAVE);
    guardian_say(h->guardian, GUARDIAN_CONTINUE);
}

static void act_stop_and_end(struct hold *h)
{
    act_stop(h);
    guardian_end(h->guardian);
}

/* Ends with the test, too, should that fail. */
static void hold_and_wait(const struct scene *s, enum guardian_word first, act *what, int ready)
{
    struct qemu_settings *settings = NULL;
    struct hold h = {0};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    need(qmp_connect(s->machine.monitor, &h.q, NULL), 10);
    need(qemu_settings_apply(h.q, false, &settings, NULL), 11);
    need(guardian_start(h.q, s->machine.pid, qemu_settings_commands(settings), first, &h.guardian,
                        NULL),
         12);
    what(&h);
    need((int)write(ready, "", 1) - 1, 13);
    for (;;)
        pause();
}

/* The process has done its part and lives. */
static pid_t holder_start(const struct scene *s, enum guardian_word first, act *what)
{
    int pipes[2], status;
    char byte;
    pid_t pid;

    cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
    pid = fork();
    if (pid == 0)
        hold_and_wait(s, first, what, pipes[1]);
    close(pipes[1]);
    if (read(pipes[0], &byte, 1) != 1) {
        waitpid(pid, &status, 0);
        cr_assert_fail("the holder ended with code %d", WEXITSTATUS(status));
    }
    close(pipes[0]);
    return pid;
}

static void holder_kill(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* Its monitor is free again: the guardian has ended. */
static void expect_free_monitor(const struct scene *s, const char *when)
{
    struct error err = {0};
    struct qmp *q = NULL;
    int ret, tries = 0;

    while ((ret = qmp_connect(s->machine.monitor, &q, &err)) == -EBUSY && ++tries < 10)
        error_clear(&err);
    cr_expect_eq(ret, 0, "%s: the monitor is not free again: %s", when, err.text);
    qmp_close(q);
}

static void expect_settings(const struct scene *s, const char *when)
{
    char *now = settings_text(s->onlooker);

    cr_expect_str_eq(now, s->settings, "%s: settings %s, expected %s", when, now, s->settings);
    cJSON_free(now);
}

struct moment {
    const char *name;
    act *what;
    const char *before; /* what the guest is in when the process is killed; NULL: not asked */
    bool own_ram;
};

Test(qemu_guardian, guest_goes_on)
{
    static const struct moment moments[] = {
        {"before the stop", act_none, "running"},
        {"stopped", act_stop, "paused"},
        {"while the state is saved", act_saving, NULL},
        {"while somebody else reads the state", act_saving_elsewhere, NULL, true},
        {"after the state was saved", act_saved, "postmigrate"},
        {"in the middle of a command", act_half_a_command, "paused"},
        {"with a child that lives on", act_with_children, "paused"},
        {"after other words", act_change_mind, "paused"},
    };

    for (size_t i = 0; i < sizeof(moments) / sizeof(moments[0]); i++) {
        const struct moment *m = &moments[i];
        struct scene s = scene_start(!m->own_ram);
        pid_t holder = holder_start(&s, GUARDIAN_CONTINUE, m->what);
        if (m->before)
            expect_run_state(s.onlooker, m->name, m->before);
        holder_kill(holder);
        expect_free_monitor(&s, m->name);
        await_run_state(s.onlooker, m->name, "running");
        expect_settings(&s, m->name);
        scene_end(&s);
    }
}

static void stand_still(void)
{
    clock_sleep_until(clock_now() + STILL_MS * NS_PER_MS);
}

Test(qemu_guardian, nothing_while_the_process_lives)
{
    struct scene s = scene_start(true);
    pid_t holder = holder_start(&s, GUARDIAN_KILL, act_stop);

    stand_still();
    expect_run_state(s.onlooker, "while the process lives", "paused");
    cr_expect_eq(waitid(P_PIDFD, (id_t)s.machine.handle, &(siginfo_t){0}, WEXITED | WNOHANG), 0);
    holder_kill(holder);
    int status;
    cr_expect_eq(spawn_await_end(s.machine.handle, PATIENCE_S * 1000, &status), 0,
                 "KILL: QEMU lives on");
    cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "KILL: status %x", status);
    scene_end(&s);
}

struct quiet {
    const char *name;
    act *what;
    enum guardian_word first;
    const char *after;
};

Test(qemu_guardian, touches_nothing)
{
    static const struct quiet quiets[] = {
        {"LEAVE from the start", act_stop, GUARDIAN_LEAVE, "paused"},
        {"LEAVE said later", act_stop_and_leave, GUARDIAN_CONTINUE, "paused"},
        {"LEAVE instead of KILL", act_say_leave, GUARDIAN_KILL, "running"},
        {"BYE", act_stop_and_end, GUARDIAN_CONTINUE, "paused"},
    };

    for (size_t i = 0; i < sizeof(quiets) / sizeof(quiets[0]); i++) {
        struct scene s = scene_start(true);
        holder_kill(holder_start(&s, quiets[i].first, quiets[i].what));
        expect_free_monitor(&s, quiets[i].name);
        stand_still();
        expect_run_state(s.onlooker, quiets[i].name, quiets[i].after);
        scene_end(&s);
    }
}

/* The destination has the disk for a moment longer. */
Test(qemu_guardian, waits_for_the_disk)
{
    struct scene s = scene_start(true);
    pid_t holder = holder_start(&s, GUARDIAN_CONTINUE, act_saved);
    char drive[256];
    const char *extra[] = {"-drive", drive, "-device", "virtio-blk-pci,drive=d", NULL};
    struct machine other;
    struct qmp *q;

    snprintf(drive, sizeof(drive), "file=%s,format=raw,if=none,id=d,file.locking=on", s.disk);
    other = machine_start(s.folder, "other", true, extra);
    q = connect_monitor(other.monitor);
    expect_run_state(q, "the one that has the disk", "running");
    holder_kill(holder);
    stand_still();
    expect_run_state(s.onlooker, "while another has the disk", "postmigrate");
    machine_end(&other);
    await_run_state(s.onlooker, "once the disk is free", "running");
    qmp_close(q);
    scene_end(&s);
}

Test(qemu_guardian, ends_with_qemu)
{
    struct scene s = scene_start(true);
    struct guardian *g = NULL;
    struct error err = {0};
    struct qmp *q = connect_monitor(s.machine.monitor);

    cr_assert_eq(guardian_start(q, s.machine.pid, NULL, GUARDIAN_CONTINUE, &g, &err), 0, "%s",
                 err.text);
    kill(s.machine.pid, SIGKILL);
    stand_still();
    guardian_say(g, GUARDIAN_KILL); /* to a dead one */
    guardian_end(g);
    guardian_end(NULL);
    qmp_close(q);
    scene_end(&s);
}

Test(qemu_guardian, no_qemu_no_guardian)
{
    struct scene s = scene_start(true);
    struct qmp *q = connect_monitor(s.machine.monitor);
    struct guardian *g = NULL;
    struct error err = {0};
    pid_t gone = fork();

    if (gone == 0)
        _exit(0);
    waitpid(gone, NULL, 0);
    cr_expect_eq(guardian_start(q, gone, cJSON_CreateArray(), GUARDIAN_KILL, &g, &err), -ESRCH,
                 "a guardian for no process: '%s'", err.text);
    qmp_close(q);
    scene_end(&s);
}
