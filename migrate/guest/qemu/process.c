#include "migrate/guest/qemu/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migrate/guest/qemu/spawn.h"
#include "transport/base/clock.h"

enum {
    GREETING_LIMIT_S = 20,
    CONNECT_EVERY_MS = 10,
    END_LIMIT_MS = 2000, /* of an earlier QEMU that may be on its way out */
    END_EVERY_MS = 200,
    ADDED_ARGUMENTS = 4, /* -incoming defer -qmp unix:… */
    LAST_WORDS = 400,
};

#define PRELOAD_VARIABLE "LD_PRELOAD="
#define LIBRARY_NAME     "libwander-qemu.so"

/* Options, without their dashes, that contradict what we add. */
struct refusal {
    const char *option, *why;
};

static const struct refusal refused_options[] = {
    {"incoming", "wander says itself how the guest comes in: leave it out"},
    {"daemonize", "wander keeps the process it started: leave it out"},
    {"loadvm", "the guest comes from the source, not from a snapshot: leave it out"},
    {"preconfig", "QEMU would wait for more of its configuration: leave it out"},
    {"add-fd", "no open file is handed on to QEMU: name files by their paths"},
};

static const char *const refused_fields[] = {
    "fd=", "fds=", "vhostfd=", "vhostfds=", "addr.type=fd"};

/* The same in arguments that are JSON. */
static const struct {
    const char *name, *value; /* NULL: whatever it is */
} refused_members[] = {
    {"fd", NULL}, {"fds", NULL}, {"vhostfd", NULL}, {"vhostfds", NULL}, {"type", "fd"}};

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static const struct refusal *find_refusal(const char *argument)
{
    const char *name = argument + strspn(argument, "-");

    for (size_t i = 0; i < LENGTH(refused_options); i++)
        if (name != argument && strcmp(name, refused_options[i].option) == 0)
            return &refused_options[i];
    return NULL;
}

/* Whether a part between commas begins with one of the fields that want an open descriptor. */
static bool has_refused_field(const char *argument)
{
    for (const char *part = argument; part; part = strchr(part, ',')) {
        part += *part == ',';
        for (size_t i = 0; i < LENGTH(refused_fields); i++)
            if (strncmp(part, refused_fields[i], strlen(refused_fields[i])) == 0)
                return true;
    }
    return false;
}

/* What follows `word` and its quotes; NULL when it is not here. QEMU takes either kind of quotes.
 */
static const char *skip_quoted(const char *text, const char *word)
{
    size_t length = strlen(word);
    bool here = (*text == '"' || *text == '\'') && strncmp(text + 1, word, length) == 0 &&
                text[length + 1] == *text;

    return here ? text + length + 2 : NULL;
}

static bool is_member(const char *text, const char *name, const char *value)
{
    const char *at = skip_quoted(text, name);

    if (!at)
        return false;
    at += strspn(at, " \t\r\n");
    return *at == ':' && (!value || skip_quoted(at + 1 + strspn(at + 1, " \t\r\n"), value));
}

static bool has_refused_member(const char *argument)
{
    for (const char *at = *argument == '{' ? argument : ""; *at; at++)
        for (size_t i = 0; i < LENGTH(refused_members); i++)
            if (is_member(at, refused_members[i].name, refused_members[i].value))
                return true;
    return false;
}

static bool wants_descriptor(const char *argument)
{
    return has_refused_field(argument) || has_refused_member(argument) ||
           strstr(argument, "/dev/fdset/");
}

int qemu_command_check(char *const *command, struct error *err)
{
    if (!command || !command[0] || !command[0][0])
        return error_set(err, EINVAL,
                         "there is no QEMU to start: say -- qemu-system-x86_64 ARGUMENT…");
    for (char *const *argument = command + 1; *argument; argument++) {
        const struct refusal *r = find_refusal(*argument);
        if (r)
            return error_set(err, EINVAL, "QEMU's option %.40s cannot be given: %s", *argument,
                             r->why);
        if (wants_descriptor(*argument))
            return error_set(err, EINVAL,
                             "QEMU's argument '%.200s' names an open file by its number: none is "
                             "handed on to QEMU; name it by path or interface (ifname=)",
                             *argument);
    }
    return 0;
}

static bool is_file(const char *path)
{
    return access(path, R_OK) == 0;
}

/* The folder of this program, with the '/' at its end; "" when it cannot be told. */
static void program_folder(char *out, size_t size)
{
    ssize_t length = readlink("/proc/self/exe", out, size - 1);
    char *slash;

    out[length < 0 ? 0 : length] = '\0';
    slash = strrchr(out, '/');
    if (slash)
        slash[1] = '\0';
}

int qemu_library_path(char *out, size_t size, struct error *err)
{
    static const char *const beside[] = {"", "../lib/wander/", "../lib64/wander/",
                                         "../lib/x86_64-linux-gnu/wander/"};
    const char *own = getenv("WANDER_QEMU_LIBRARY");
    char folder[512];

    program_folder(folder, sizeof(folder));
    for (size_t i = own && own[0] ? LENGTH(beside) : 0; i < LENGTH(beside); i++) {
        char path[640], *real = NULL;
        snprintf(path, sizeof(path), "%s%s" LIBRARY_NAME, folder, beside[i]);
        real = is_file(path) ? realpath(path, NULL) : NULL;
        size_t length = real ? (size_t)snprintf(out, size, "%s", real) : size;
        free(real);
        if (length < size)
            return 0;
    }
    if (own && own[0] && is_file(own) && (size_t)snprintf(out, size, "%s", own) < size)
        return 0;
    if (own && own[0])
        return error_set(
            err, ENOENT,
            "there is no readable " LIBRARY_NAME " where WANDER_QEMU_LIBRARY says: %.300s", own);
    return error_set(err, ENOENT,
                     "there is no " LIBRARY_NAME " in %s nor in ../lib/wander, ../lib64/wander or "
                     "../lib/x86_64-linux-gnu/wander from there: install it, or say where it is "
                     "with WANDER_QEMU_LIBRARY",
                     folder);
}

/* "LD_PRELOAD=" with our library behind what is there. The caller frees. */
static int preload_setting(char **out, struct error *err)
{
    const char *before = getenv("LD_PRELOAD");
    char library[512];
    int ret = qemu_library_path(library, sizeof(library), err);

    if (ret < 0)
        return ret;
    if (strpbrk(library, ": "))
        return error_set(err, EINVAL,
                         "the path of the library has a colon or a blank, which LD_PRELOAD cannot "
                         "have: %s",
                         library);
    if (asprintf(out, PRELOAD_VARIABLE "%s%s%s", before ? before : "", before && *before ? ":" : "",
                 library) < 0)
        return error_set_errno(err, ENOMEM, "cannot make QEMU's environment");
    return 0;
}

/* This process's environment with `preload` in it; the list is the caller's, its texts are not. */
static char **make_environment(char *preload)
{
    size_t count = 0, used = 0;
    char **list;

    while (environ[count])
        count++;
    list = calloc(count + 2, sizeof(*list));
    for (size_t i = 0; list && i < count; i++)
        if (strncmp(environ[i], PRELOAD_VARIABLE, strlen(PRELOAD_VARIABLE)) != 0)
            list[used++] = environ[i];
    if (list)
        list[used] = preload;
    return list;
}

/* In QEMU's options a comma in a value is written twice. */
static void double_commas(char *out, const char *text)
{
    for (; *text; text++) {
        if (*text == ',')
            *out++ = ',';
        *out++ = *text;
    }
    *out = '\0';
}

/* The operator's command with our arguments behind it; the list is the caller's. */
static char **make_arguments(char *const *command, char *monitor)
{
    size_t count = 0;
    char **list;

    while (command[count])
        count++;
    list = calloc(count + ADDED_ARGUMENTS + 1, sizeof(*list));
    if (!list)
        return NULL;
    memcpy(list, command, count * sizeof(*list));
    list[count++] = "-incoming";
    list[count++] = "defer";
    list[count++] = "-qmp";
    list[count] = monitor;
    return list;
}

static int make_paths(const char *runtime, const char *name, struct qemu_process *p,
                      struct error *err)
{
    if (!name[0] || name[0] == '.' || strchr(name, '/'))
        return error_set(err, EINVAL, "'%.80s' cannot be part of a file's name", name);
    if ((size_t)snprintf(p->socket, sizeof(p->socket), "%s/%s.qmp", runtime, name) >=
            sizeof(p->socket) ||
        (size_t)snprintf(p->log, sizeof(p->log), "%s/%s.qemu.log", runtime, name) >= sizeof(p->log))
        return error_set(err, ENAMETOOLONG,
                         "the monitor's socket %s/%s.qmp would have more than %zu characters: set "
                         "WANDER_RUNTIME_DIR to a shorter place",
                         runtime, name, sizeof(p->socket) - 1);
    return 0;
}

/* The error with which a monitor's socket does not answer; 0: somebody listens there. */
static int knock(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int knocker = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int ret = knocker < 0 ? -errno : 0;

    memcpy(address.sun_path, path, strnlen(path, sizeof(address.sun_path) - 1));
    if (ret == 0 && connect(knocker, (struct sockaddr *)&address, sizeof(address)) < 0)
        ret = errno == EAGAIN ? 0 : -errno; /* too many wait to be heard */
    if (knocker >= 0)
        close(knocker);
    return ret;
}

/* Makes sure that no QEMU has the monitor's place: the one of an earlier move may run on there. */
static int expect_nobody(const struct qemu_process *p, const char *name, struct error *err)
{
    uint64_t deadline = clock_now() + END_LIMIT_MS * NS_PER_MS;
    int ret = knock(p->socket);

    while (ret == 0 && clock_now() < deadline) {
        clock_sleep_until(clock_now() + END_EVERY_MS * NS_PER_MS);
        ret = knock(p->socket);
    }
    if (ret == 0)
        return error_set(err, EBUSY,
                         "a QEMU of guest %s runs here already, at %s: move it with wander migrate "
                         "qmp:%s, or end it",
                         name, p->socket, p->socket);
    if (ret == -ECONNREFUSED || ret == -ENOENT)
        return 0;
    return error_set_errno(err, -ret, "cannot tell whether a QEMU of guest %s runs at %s", name,
                           p->socket);
}

/* What a dead one of the same name left is removed first. */
static int open_log(struct qemu_process *p, struct error *err)
{
    struct stat status;
    int file;

    unlink(p->socket);
    unlink(p->log);
    file = open(p->log, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0)
        return error_set_errno(err, errno, "cannot make QEMU's log %s", p->log);
    p->log_inode = fstat(file, &status) == 0 ? status.st_ino : 0;
    return file;
}

static void note_socket(struct qemu_process *p)
{
    struct stat status;

    if (lstat(p->socket, &status) == 0 && S_ISSOCK(status.st_mode))
        p->socket_inode = status.st_ino;
}

/* Unless it is another's by now. */
static void remove_own(char *path, ino_t inode)
{
    struct stat status;

    if (path[0] && lstat(path, &status) == 0 && status.st_ino == inode)
        unlink(path);
    path[0] = '\0';
}

static int spawn_qemu(const struct spawn *how, struct qemu_process *p, struct error *err)
{
    int ret = spawn_start(how, &p->pid, &p->handle);

    if (ret == 0)
        return 0;
    remove_own(p->log, p->log_inode);
    return error_set_errno(err, -ret, "cannot start %.200s", how->program);
}

static int start_with(char *const *command, char **environment, struct qemu_process *p,
                      struct error *err)
{
    char doubled[2 * sizeof(p->socket)], monitor[sizeof(doubled) + 32];
    struct spawn how = {.program = command[0], .environment = environment, .file_count = 3};
    char **arguments;
    int log, null, ret;

    double_commas(doubled, p->socket);
    snprintf(monitor, sizeof(monitor), "unix:%s,server=on,wait=off", doubled);
    arguments = make_arguments(command, monitor);
    if (!arguments)
        return error_set_errno(err, ENOMEM, "cannot make QEMU's command line");
    ret = log = open_log(p, err);
    if (log < 0)
        goto free_arguments;
    null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    ret = null < 0 ? error_set_errno(err, errno, "cannot open /dev/null") : 0;
    if (ret < 0)
        goto close_log;
    how.arguments = arguments;
    how.files[0] = null;
    how.files[1] = how.files[2] = log;
    ret = spawn_qemu(&how, p, err);
    close(null);
close_log:
    close(log);
free_arguments:
    free(arguments);
    return ret;
}

static int ended_early(struct qemu_process *p, struct error *err)
{
    char words[LAST_WORDS];
    int status;

    qemu_process_last_words(p, words, sizeof(words));
    for (char *at = words; (at = strchr(at, '\n'));)
        *at = ' ';
    if (spawn_await_end(p->handle, 0, &status) == 0 && WIFSIGNALED(status))
        return error_set(err, EIO,
                         "QEMU was ended by signal %d (%s) before its monitor answered: %s",
                         WTERMSIG(status), strsignal(WTERMSIG(status)), words);
    return error_set(err, EIO, "QEMU ended before its monitor answered, exit code %d: %s",
                     WEXITSTATUS(status), words[0] ? words : "it said nothing");
}

/* Its socket is not there at once. */
int qemu_process_connect(struct qemu_process *p, struct qmp **qmp, struct error *err)
{
    uint64_t deadline = clock_now() + GREETING_LIMIT_S * NS_PER_S;
    struct pollfd end = {.fd = p->handle, .events = POLLIN};
    struct error last = {0};

    while (poll(&end, 1, CONNECT_EVERY_MS) <= 0) {
        error_clear(&last);
        note_socket(p);
        int ret = qmp_connect(p->socket, qmp, &last);
        if (ret == 0)
            return 0;
        if (clock_now() > deadline)
            return error_set(err, ETIMEDOUT, "QEMU's monitor did not answer within %d s: %s",
                             GREETING_LIMIT_S, last.text);
    }
    return ended_early(p, err);
}

int qemu_process_start(char *const *command, const char *runtime, const char *name,
                       struct qemu_process *out, struct error *err)
{
    char *preload = NULL, **environment;
    int ret = qemu_command_check(command, err);

    *out = (struct qemu_process){.handle = -1};
    if (ret == 0)
        ret = make_paths(runtime, name, out, err);
    if (ret == 0)
        ret = expect_nobody(out, name, err);
    if (ret == 0)
        ret = preload_setting(&preload, err);
    if (ret < 0)
        return ret;
    environment = make_environment(preload);
    ret = environment ? start_with(command, environment, out, err)
                      : error_set_errno(err, ENOMEM, "cannot make QEMU's environment");
    free(environment);
    free(preload);
    return ret;
}

int qemu_process_end(struct qemu_process *p, bool kill, int timeout_ms, struct error *err)
{
    int status;

    if (kill)
        pidfd_send_signal(p->handle, SIGKILL, NULL, 0);
    if (spawn_await_end(p->handle, timeout_ms, &status) < 0)
        return error_set(err, ETIMEDOUT, "QEMU (process %d) did not end within %d ms", p->pid,
                         timeout_ms);
    remove_own(p->socket, p->socket_inode);
    remove_own(p->log, p->log_inode);
    return 0;
}

bool qemu_process_alive(const struct qemu_process *p)
{
    struct pollfd end = {.fd = p->handle, .events = POLLIN};

    return poll(&end, 1, 0) == 0;
}

int qemu_process_attach(pid_t pid, struct qemu_process *out, struct error *err)
{
    *out = (struct qemu_process){.pid = pid, .handle = pidfd_open(pid, 0)};
    if (out->handle >= 0)
        return 0;
    return error_set_errno(err, errno, "cannot take hold of QEMU (process %d)", pid);
}

/* Text of another process, for a terminal: no control characters but line ends. */
static void tidy(char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (((unsigned char)text[i] < ' ' && text[i] != '\n') || text[i] == 0x7f)
            text[i] = ' ';
    while (length && (text[length - 1] == '\n' || text[length - 1] == ' '))
        length--;
    text[length] = '\0';
}

void qemu_process_last_words(const struct qemu_process *p, char *out, size_t size)
{
    int file = p->log[0] ? open(p->log, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
    off_t end = file < 0 ? 0 : lseek(file, 0, SEEK_END);
    off_t start = end > (off_t)size - 1 ? end - ((off_t)size - 1) : 0;
    ssize_t length = file < 0 ? 0 : pread(file, out, size - 1, start);
    char *line;

    tidy(out, length < 0 ? 0 : (size_t)length);
    line = start ? strchr(out, '\n') : NULL;
    if (line)
        memmove(out, line + 1, strlen(line));
    if (file >= 0)
        close(file);
}

void qemu_process_close(struct qemu_process *p)
{
    if (p->handle >= 0)
        close(p->handle);
    p->handle = -1;
}
