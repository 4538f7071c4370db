/* The destination's QEMU process: what command lines are refused, how it starts, what it inherits,
 * what is told when it fails, and that nothing of it stays. */
#include "migrate/guest/qemu/process.h"

#include <dlfcn.h>
#include <glob.h>
#include <gnu/libc-version.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "qemu_machine.h"

enum { END_MS = PATIENCE_S * 1000 };

struct command {
    const char *arguments[8];
    const char *expected; /* part of the text; NULL: it is taken */
};

Test(qemu_process, commands)
{
    static const struct command commands[] = {
        {{"qemu", "-m", "1G", "-name", "web", "-S", "-nodefaults"}, NULL},
        {{"qemu", "-drive", "file=/srv/fd=3/disk.raw,if=virtio"}, NULL},
        {{"qemu", "-netdev", "tap,id=n,ifname=tap0,script=no"}, NULL},
        {{"qemu", "-append", "incoming"}, NULL},
        {{NULL}, "there is no QEMU to start"},
        {{""}, "there is no QEMU to start"},
        {{"qemu", "-incoming", "tcp:0:4444"}, "-incoming"},
        {{"qemu", "--incoming", "defer"}, "-incoming"},
        {{"qemu", "-daemonize"}, "-daemonize"},
        {{"qemu", "-loadvm", "snapshot"}, "-loadvm"},
        {{"qemu", "-preconfig"}, "-preconfig"},
        {{"qemu", "-add-fd", "fd=3,set=1"}, "-add-fd"},
        {{"qemu", "-netdev", "tap,id=n,fd=3"}, "fd=3"},
        {{"qemu", "-netdev", "tap,fds=3:4,id=n"}, "fds=3:4"},
        {{"qemu", "-netdev", "tap,id=n,ifname=tap0,vhostfd=4"}, "vhostfd=4"},
        {{"qemu", "-netdev", "stream,id=n,addr.type=fd,addr.str=3"}, "addr.type=fd"},
        {{"qemu", "-netdev", "{\"type\":\"tap\",\"id\":\"n\",\"ifname\":\"fd\"}"}, NULL},
        {{"qemu", "-netdev", "{\"type\":\"tap\",\"fd\":\"3\"}"}, "\"fd\":"},
        {{"qemu", "-netdev", "{\"type\":\"tap\",\"fds\" : \"3:4\"}"}, "\"fds\""},
        {{"qemu", "-netdev", "{'type':'tap','vhostfd':'3'}"}, "'vhostfd'"},
        {{"qemu", "-netdev", "{\"addr\": {\"type\": \"fd\", \"str\": \"3\"}}"}, "\"fd\""},
        {{"qemu", "-drive", "file=/dev/fdset/1,if=virtio"}, "/dev/fdset/1"},
        {{"qemu", "-blockdev", "{\"driver\":\"file\",\"filename\":\"/dev/fdset/2\"}"}, "fdset/2"},
    };

    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        const struct command *c = &commands[i];
        struct error err = {0};
        int ret = qemu_command_check((char *const *)c->arguments, &err);
        cr_expect_eq(ret, c->expected ? -EINVAL : 0, "command %zu: %d (%s), expected %d", i, ret,
                     err.text, c->expected ? -EINVAL : 0);
        cr_expect(!c->expected || strstr(err.text, c->expected),
                  "command %zu: '%s', expected '%s' in it", i, err.text, c->expected);
    }
    cr_expect_eq(qemu_command_check(NULL, NULL), -EINVAL, "no command: expected a refusal");
}

/* Any library there is does for LD_PRELOAD: the C library, which QEMU has anyway. */
static void use_some_library(void)
{
    Dl_info info;

    cr_assert(dladdr((void *)(uintptr_t)&gnu_get_libc_version, &info), "where is the C library?");
    setenv("WANDER_QEMU_LIBRARY", info.dli_fname, 1);
}

static struct qmp *start(const char *folder, struct qemu_process *p)
{
    static const char *const command[] = {QEMU_PROGRAM, "-nodefaults", "-display", "none", "-accel",
                                          "tcg",        "-m",          "64M",      NULL};
    struct error err = {0};
    struct qmp *q = NULL;

    cr_assert_eq(qemu_process_start((char *const *)command, folder, "guest", p, &err), 0,
                 "start: %s", err.text);
    cr_assert_eq(qemu_process_connect(p, &q, &err), 0, "connect: %s", err.text);
    return q;
}

static void expect_environment(pid_t pid, const char *expected)
{
    char path[64], text[65536], setting[1024];
    size_t length = (size_t)snprintf(setting, sizeof(setting), "LD_PRELOAD=%s", expected);

    snprintf(path, sizeof(path), "/proc/%d/environ", pid);
    int file = open(path, O_RDONLY);
    ssize_t size = read(file, text, sizeof(text));
    close(file);
    cr_expect(size > 0 && memmem(text, (size_t)size, setting, length + 1),
              "expected %s in the environment of QEMU", setting);
}

static void expect_not_inherited(pid_t pid, const char *file)
{
    char pattern[64];
    glob_t found;

    snprintf(pattern, sizeof(pattern), "/proc/%d/fd/*", pid);
    cr_assert_eq(glob(pattern, 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char target[256] = "";
        ssize_t length = readlink(found.gl_pathv[i], target, sizeof(target) - 1);
        cr_expect(length < 0 || strcmp(target, file) != 0, "QEMU has %s open as %s", file,
                  found.gl_pathv[i]);
    }
    globfree(&found);
}

Test(qemu_process, starts_and_leaves_nothing)
{
    char folder[64], leaked[96], expected[512], log[256], monitor[108];
    struct qemu_process p;
    struct error err = {0};
    struct stat st;
    sigset_t blocked, ignored;

    need_qemu();
    use_some_library();
    make_folder(folder, sizeof(folder));
    snprintf(leaked, sizeof(leaked), "%s/leaked", folder);
    int leak = open(leaked, O_RDWR | O_CREAT, 0600);
    setenv("LD_PRELOAD", "libm.so.6", 1);
    snprintf(expected, sizeof(expected), "libm.so.6:%s", getenv("WANDER_QEMU_LIBRARY"));
    sigfillset(&blocked);
    sigprocmask(SIG_BLOCK, &blocked, &ignored);
    struct qmp *q = start(folder, &p);

    expect_run_state(q, "after the start", "inmigrate");
    expect_environment(p.pid, expected);
    expect_not_inherited(p.pid, leaked);
    cr_expect_eq(getsid(p.pid), p.pid, "QEMU's session is %d, expected its own", getsid(p.pid));
    cr_assert_eq(stat(p.log, &st), 0, "no log at %s", p.log);
    cr_expect_eq(st.st_mode & 0777, 0600, "mode of the log %o, expected 600", st.st_mode & 0777);
    cr_expect(qemu_process_alive(&p), "expected it to be alive");
    strcpy(log, p.log);
    strcpy(monitor, p.socket);
    cr_expect_eq(qemu_process_end(&p, false, 50, &err), -ETIMEDOUT,
                 "waiting for one that runs on: expected a time-out");
    cr_expect_eq(qemu_process_end(&p, true, END_MS, NULL), 0, "end");
    cr_expect(!qemu_process_alive(&p), "expected it to be dead");
    cr_expect(kill(p.pid, 0) < 0 && errno == ESRCH, "a zombie stayed");
    cr_expect(access(log, F_OK) < 0 && access(monitor, F_OK) < 0, "log or socket stayed");
    qmp_close(q);
    qemu_process_close(&p);
    close(leak);
    remove_folder(folder);
}

Test(qemu_process, quits_by_itself)
{
    char folder[64];
    struct qemu_process p;

    need_qemu();
    use_some_library();
    make_folder(folder, sizeof(folder));
    struct qmp *q = start(folder, &p);
    expect_done(q, "quit", "after the start");
    cr_expect_eq(qemu_process_end(&p, false, END_MS, NULL), 0, "end");
    cr_expect(kill(p.pid, 0) < 0 && errno == ESRCH, "a zombie stayed");
    qmp_close(q);
    qemu_process_close(&p);
    remove_folder(folder);
}

Test(qemu_process, comma_in_the_folder)
{
    char folder[64], inner[96];
    struct qemu_process p;

    need_qemu();
    use_some_library();
    make_folder(folder, sizeof(folder));
    snprintf(inner, sizeof(inner), "%s/a,b,,c", folder);
    cr_assert_eq(mkdir(inner, 0700), 0);
    struct qmp *q = start(inner, &p);
    expect_run_state(q, "after the start", "inmigrate");
    cr_expect_eq(qemu_process_end(&p, true, END_MS, NULL), 0, "end");
    qmp_close(q);
    qemu_process_close(&p);
    remove_folder(folder);
}

struct failure {
    const char *name, *command[4], *guest, *library;
    bool long_folder;
    int expected;
    const char *text;
};

Test(qemu_process, failed_starts)
{
    static const struct failure failures[] = {
        {"an option that is none",
         {QEMU_PROGRAM, "-no-such-option"},
         "g",
         NULL,
         false,
         -EIO,
         "no-such-option"},
        {"a program that ends at once", {"true"}, "g", NULL, false, -EIO, "exit code 0"},
        {"a program that is killed",
         {"sh", "-c", "kill -9 $$"},
         "g",
         NULL,
         false,
         -EIO,
         "signal 9"},
        {"a program that is not there",
         {"/no/such/qemu"},
         "g",
         NULL,
         false,
         -ENOENT,
         "/no/such/qemu"},
        {"a name that is a path", {QEMU_PROGRAM}, "../g", NULL, false, -EINVAL, "../g"},
        {"a hidden name", {QEMU_PROGRAM}, ".g", NULL, false, -EINVAL, ".g"},
        {"a folder that is too deep",
         {QEMU_PROGRAM},
         "g",
         NULL,
         true,
         -ENAMETOOLONG,
         "WANDER_RUNTIME_DIR"},
        {"no library", {QEMU_PROGRAM}, "g", "/no/such/library", false, -ENOENT, "/no/such/library"},
        {"a command that is refused",
         {QEMU_PROGRAM, "-daemonize"},
         "g",
         NULL,
         false,
         -EINVAL,
         "-daemonize"},
    };
    char folder[64], deep[200];

    need_qemu();
    make_folder(folder, sizeof(folder));
    memset(deep, 'd', sizeof(deep) - 1);
    deep[sizeof(deep) - 1] = '\0';
    for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++) {
        const struct failure *f = &failures[i];
        struct qemu_process p;
        struct error err = {0};
        struct qmp *q = NULL;
        use_some_library();
        if (f->library)
            setenv("WANDER_QEMU_LIBRARY", f->library, 1);
        int ret = qemu_process_start((char *const *)f->command, f->long_folder ? deep : folder,
                                     f->guest, &p, &err);
        if (ret == 0) {
            ret = qemu_process_connect(&p, &q, &err);
            qemu_process_end(&p, true, 10000, &(struct error){0});
            qemu_process_close(&p);
        }
        cr_expect_eq(ret, f->expected, "%s: %d (%s), expected %d", f->name, ret, err.text,
                     f->expected);
        cr_expect(strstr(err.text, f->text), "%s: '%s', expected '%s' in it", f->name, err.text,
                  f->text);
        cr_expect(rmdir(folder) == 0 && mkdir(folder, 0700) == 0, "%s: something stayed in %s",
                  f->name, folder);
    }
    remove_folder(folder);
}

/* Listens, or was left by one who did. */
static int make_listener(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(address.sun_path, path);
    cr_assert(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 &&
                  listen(listener, 0) == 0,
              "cannot listen at %s: %s", path, strerror(errno));
    return listener;
}

static int try_start(const char *folder, struct error *err)
{
    struct qemu_process p;
    int ret = qemu_process_start((char *const[]){"true", NULL}, folder, "web", &p, err);

    if (ret == 0)
        qemu_process_end(&p, true, END_MS, NULL);
    qemu_process_close(&p);
    return ret;
}

/* Heard or not: the first call waits to be taken, the next find no room to wait. */
Test(qemu_process, a_living_qemu_of_that_name_is_left_alone)
{
    char folder[64], path[96], log[96];

    use_some_library();
    make_folder(folder, sizeof(folder));
    snprintf(path, sizeof(path), "%s/web.qmp", folder);
    snprintf(log, sizeof(log), "%s/web.qemu.log", folder);
    int listener = make_listener(path);
    close(open(log, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    for (int i = 0; i < 2; i++) {
        struct error err = {0};
        int ret = try_start(folder, &err);
        cr_expect_eq(ret, -EBUSY, "start %d: %d (%s), expected %d", i, ret, err.text, -EBUSY);
        cr_expect(strstr(err.text, "guest web") && strstr(err.text, "wander migrate qmp:") &&
                      strstr(err.text, path),
                  "start %d: '%s', expected the guest and the remedy", i, err.text);
        cr_expect(access(path, F_OK) == 0 && access(log, F_OK) == 0,
                  "start %d: the living one's socket or log is gone", i);
    }
    close(listener);
    struct error err = {0};
    cr_expect_eq(try_start(folder, &err), 0, "after its end: %s", err.text);
    cr_expect(access(log, F_OK) < 0, "the log stayed");
    remove_folder(folder);
}

/* Ended without an answer, whatever lies in its places is another's. */
Test(qemu_process, what_another_made_since_is_left)
{
    char folder[64], path[108], log[256];
    struct qemu_process p;
    struct error err = {0};

    use_some_library();
    make_folder(folder, sizeof(folder));
    cr_assert_eq(qemu_process_start((char *const[]){"sleep", "60", NULL}, folder, "web", &p, &err),
                 0, "start: %s", err.text);
    strcpy(path, p.socket);
    strcpy(log, p.log);
    char aside[sizeof(log) + 8];
    snprintf(aside, sizeof(aside), "%s.aside", log);
    cr_assert_eq(rename(log, aside), 0);
    int listener = make_listener(path), file = open(log, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_expect_eq(qemu_process_end(&p, true, END_MS, &err), 0, "end: %s", err.text);
    cr_expect_eq(access(path, F_OK), 0, "another's socket is gone");
    cr_expect_eq(access(log, F_OK), 0, "another's log is gone");
    qemu_process_close(&p);
    close(listener);
    close(file);
    remove_folder(folder);
}

Test(qemu_process, last_words)
{
    struct qemu_process p = {.handle = -1};
    char folder[64], words[16];

    make_folder(folder, sizeof(folder));
    qemu_process_last_words(&p, words, sizeof(words));
    cr_expect_str_eq(words, "", "of one without a log: '%s'", words);
    snprintf(p.log, sizeof(p.log), "%s/log", folder);
    qemu_process_last_words(&p, words, sizeof(words));
    cr_expect_str_eq(words, "", "of one whose log is gone: '%s'", words);
    FILE *log = fopen(p.log, "w");
    fputs("first\nsecond\033[1m\nlast\n\n", log);
    fclose(log);
    qemu_process_last_words(&p, words, sizeof(words));
    cr_expect_str_eq(words, "last", "'%s', expected 'last': what is whole of the end", words);
    char all[64];
    qemu_process_last_words(&p, all, sizeof(all));
    cr_expect_str_eq(all, "first\nsecond [1m\nlast", "'%s'", all);
    remove_folder(folder);
}

Test(qemu_process, attach)
{
    struct qemu_process p;
    struct error err = {0};

    cr_assert_eq(qemu_process_attach(getppid(), &p, &err), 0, "attach: %s", err.text);
    cr_expect(qemu_process_alive(&p), "the parent lives");
    cr_expect_eq(qemu_process_end(&p, false, 10, NULL), -ETIMEDOUT, "the parent lives on");
    qemu_process_close(&p);
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    siginfo_t info;
    waitid(P_PID, (id_t)child, &info, WEXITED);
    cr_expect_eq(qemu_process_attach(child, &p, &err), -ESRCH, "attach to none: '%s'", err.text);
}

Test(qemu_process, library)
{
    struct error err = {0};
    char path[512], small[4];

    use_some_library();
    cr_expect_eq(qemu_library_path(path, sizeof(path), &err), 0, "%s", err.text);
    cr_expect_str_eq(path, getenv("WANDER_QEMU_LIBRARY"));
    cr_expect_eq(qemu_library_path(small, sizeof(small), &err), -ENOENT, "in too little room");
    unsetenv("WANDER_QEMU_LIBRARY");
    error_clear(&err);
    int ret = qemu_library_path(path, sizeof(path), &err);
    cr_expect(ret == 0 || (ret == -ENOENT && strstr(err.text, "WANDER_QEMU_LIBRARY")),
              "%d: '%s', expected the remedy", ret, err.text);
}
