/* wander receive: listens, and starts one process for each session. That process owns the guest
 * that comes of it, and lives on without us: it has a session (setsid) of its own and none of our
 * descriptors but its connection. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <unistd.h>
#include <uv.h>

#include "migrate/guest/qemu/process.h"
#include "tools/commands.h"
#include "tools/control_protocol.h"
#include "tools/receive.h"
#include "transport/base/address.h"
#include "transport/base/log.h"

enum { LISTEN_BACKLOG = 16, SESSION_ARGUMENTS = 16 };

struct receive_values {
    struct address listen;
    char name[GUEST_NAME_SIZE];
    char kind[GUEST_KIND_SIZE];
    bool once, insecure;
    unsigned max_sessions;
    uint64_t pin_limit;
    char filter[128];
    char **command; /* what follows "--": the QEMU to start for each guest, or none */
    unsigned command_count;
};

/* One child. Gone once its process, its events and this are closed. */
struct session {
    LIST_ENTRY(session) entry;
    struct listener *listener;
    unsigned number;
    unsigned handles; /* not closed yet */
    uv_process_t process;
    uv_pipe_t events;
    bool started;         /* it is a guest now */
    bool exited, drained; /* the process has ended; all its events were read */
    int exit_code;
    char guest[GUEST_NAME_SIZE], why[ERROR_TEXT_SIZE];
    size_t used;
    char line[SESSION_MAX_EVENT];
};

struct listener {
    uv_loop_t loop;
    uv_tcp_t tcp;
    uv_signal_t interrupt, terminate;
    const struct receive_values *values;
    LIST_HEAD(, session) sessions;
    unsigned forming; /* sessions that are no guests yet */
    unsigned last_number;
    int once; /* -1, or what SESSION_ONCE is for */
    bool stopping;
    int exit_code;
};

static int parse_listen(const struct cli_option *option, const char *text, void *field,
                        struct error *err)
{
    (void)option;
    return cli_destination(text, field, err);
}

static int parse_kind(const struct cli_option *option, const char *text, void *field,
                      struct error *err)
{
    if (!guest_kind_find(text))
        return error_set(err, EINVAL, "'%s' is no kind of guest: lab, synthetic and qemu are",
                         text);
    return cli_text(option, text, field, err);
}

#define FIELD(member) CLI_FIELD(struct receive_values, member)

static const struct cli_option options[] = {
    {"listen", "URI",
     "tcp://HOST:PORT to listen at, for rdma:// too; port 0: any, it is printed (required)",
     parse_listen, FIELD(listen)},
    {"name", "NAME", "what the guest is called here (default: as at its source)", cli_name,
     FIELD(name)},
    {"guest", "lab|synthetic|qemu", "the only kind of guest accepted (default lab and synthetic)",
     parse_kind, FIELD(kind)},
    {"once", NULL, "take one guest only, and end with its process", cli_flag, FIELD(once)},
    {"insecure", NULL,
     "listen beyond loopback: whoever reaches the port can send a guest and read it", cli_flag,
     FIELD(insecure)},
    {"max-sessions", "N", "sessions at a time that are no guests yet, 1 to 64 (default 4)",
     cli_number, FIELD(max_sessions), .low = 1, .high = 64},
    {"rdma-pin-limit", "SIZE",
     "rdma: most memory pinned here by a session whose source asks for chunk (default 256M)",
     cli_size, FIELD(pin_limit)},
    {"filter", "SPEC", "around the transport, for tests: rate=R,delay=T,fault=cut|fail|stall@N",
     cli_filter, FIELD(filter)},
    {0},
};

static void close_handle(uv_handle_t *handle, uv_close_cb done)
{
    if (!uv_is_closing(handle))
        uv_close(handle, done);
}

/* Leaves the loop; the children stay as they are. */
static void stop_listening(struct listener *l, int exit_code)
{
    struct session *session;

    if (l->stopping)
        return;
    l->stopping = true;
    l->exit_code = exit_code;
    close_handle((uv_handle_t *)&l->tcp, NULL);
    close_handle((uv_handle_t *)&l->interrupt, NULL);
    close_handle((uv_handle_t *)&l->terminate, NULL);
    LIST_FOREACH(session, &l->sessions, entry)
    {
        uv_unref((uv_handle_t *)&session->process);
        uv_unref((uv_handle_t *)&session->events);
    }
}

static void on_session_closed(uv_handle_t *handle)
{
    struct session *session = handle->data;

    if (--session->handles > 0)
        return;
    LIST_REMOVE(session, entry);
    free(session);
}

/* Once the process has ended and all it said was read. */
static void session_over(struct session *session)
{
    struct listener *l = session->listener;

    if (!session->exited || !session->drained)
        return;
    if (session->started) {
        printf("[%u] guest %s has left\n", session->number, session->guest);
    } else {
        printf("[%u] session ended: %s\n", session->number,
               session->why[0] ? session->why : "its process died without a word");
        l->forming--;
    }
    close_handle((uv_handle_t *)&session->process, on_session_closed);
    close_handle((uv_handle_t *)&session->events, on_session_closed);
    if (session->started && l->values->once)
        stop_listening(l, session->exit_code);
}

static void on_exit_of(uv_process_t *process, int64_t status, int signal_number)
{
    struct session *session = process->data;

    session->exited = true;
    session->exit_code = signal_number ? 128 + signal_number : (int)status;
    session_over(session);
}

static void on_started(struct session *session, const char *guest)
{
    struct listener *l = session->listener;

    if (session->started)
        return;
    session->started = true;
    l->forming--;
    snprintf(session->guest, sizeof(session->guest), "%s", guest);
    printf("[%u] guest %s runs here\n", session->number, session->guest);
}

static void take_event(struct session *session, size_t size)
{
    cJSON *event = cJSON_ParseWithLength(session->line, size);
    const char *what = control_text(event, "event");

    if (strcmp(what, "started") == 0)
        on_started(session, control_text(event, "guest"));
    else if (strcmp(what, "ended") == 0)
        snprintf(session->why, sizeof(session->why), "%s", control_text(event, "message"));
    cJSON_Delete(event);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    struct session *session = handle->data;
    (void)suggested;

    *buffer = uv_buf_init(session->line + session->used,
                          (unsigned)(sizeof(session->line) - session->used));
}

/* A full buffer without a line ends in UV_ENOBUFS: the child is then as good as silent. */
static void on_event(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer)
{
    struct session *session = stream->data;
    char *newline;
    (void)buffer;

    if (size < 0) {
        uv_read_stop(stream);
        session->drained = true;
        session_over(session);
        return;
    }
    session->used += (size_t)size;
    while ((newline = memchr(session->line, '\n', session->used))) {
        size_t length = (size_t)(newline - session->line);

        take_event(session, length);
        session->used -= length + 1;
        memmove(session->line, newline + 1, session->used);
    }
}

static void add_argument(char **arguments, unsigned *count, const char *option, const char *value)
{
    if (!value[0])
        return;
    arguments[(*count)++] = (char *)option;
    arguments[(*count)++] = (char *)value;
}

static int spawn(struct session *session, uv_os_fd_t socket)
{
    const struct receive_values *values = session->listener->values;
    char **arguments = calloc(SESSION_ARGUMENTS + values->command_count, sizeof(*arguments));
    uv_stdio_container_t descriptors[] = {
        {.flags = UV_IGNORE},
        {.flags = UV_INHERIT_FD, .data.fd = 1},
        {.flags = UV_INHERIT_FD, .data.fd = 2},
        [SESSION_SOCKET] = {.flags = UV_INHERIT_FD, .data.fd = socket},
        [SESSION_EVENTS] = {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE,
                            .data.stream = (uv_stream_t *)&session->events},
        [SESSION_ONCE] = {.flags = UV_INHERIT_FD, .data.fd = session->listener->once},
    };
    uv_process_options_t how = {
        .exit_cb = on_exit_of,
        .file = "/proc/self/exe",
        .args = arguments,
        .flags = UV_PROCESS_DETACHED,
        .stdio = descriptors,
        .stdio_count = session->listener->once < 0 ? SESSION_ONCE : SESSION_ONCE + 1,
    };
    unsigned count = 0;
    char pin_limit[24] = "";

    if (!arguments)
        return UV_ENOMEM;
    arguments[count++] = "wander";
    arguments[count++] = "receive-session";
    if (values->pin_limit)
        snprintf(pin_limit, sizeof(pin_limit), "%llu", (unsigned long long)values->pin_limit);
    add_argument(arguments, &count, "--name", values->name);
    add_argument(arguments, &count, "--guest", values->kind);
    add_argument(arguments, &count, "--filter", values->filter);
    add_argument(arguments, &count, "--rdma-pin-limit", pin_limit);
    if (session->listener->once >= 0)
        arguments[count++] = "--once";
    if (values->command_count)
        arguments[count++] = "--";
    for (unsigned i = 0; i < values->command_count; i++)
        arguments[count++] = values->command[i];
    int rc = uv_spawn(&session->listener->loop, &session->process, &how);
    free(arguments);
    return rc;
}

static int start_session(struct listener *l, uv_os_fd_t socket, const char *peer)
{
    struct session *session = calloc(1, sizeof(*session));
    int rc;

    if (!session)
        return UV_ENOMEM;
    session->listener = l;
    session->number = ++l->last_number;
    session->handles = 2;
    uv_pipe_init(&l->loop, &session->events, 0);
    session->process.data = session->events.data = session;
    LIST_INSERT_HEAD(&l->sessions, session, entry);
    rc = spawn(session, socket);
    if (rc < 0) {
        close_handle((uv_handle_t *)&session->process, on_session_closed);
        close_handle((uv_handle_t *)&session->events, on_session_closed);
        return rc;
    }
    l->forming++;
    printf("[%u] connected from %s\n", session->number, peer);
    rc = uv_read_start((uv_stream_t *)&session->events, on_alloc, on_event);
    session->drained = rc < 0;
    return rc;
}

static void free_tcp(uv_handle_t *handle)
{
    free(handle);
}

static void welcome(struct listener *l, uv_tcp_t *connection)
{
    char peer[sizeof(struct address) + 16] = "somewhere";
    struct address address;
    uv_os_fd_t socket;
    int rc;

    if (uv_fileno((uv_handle_t *)connection, &socket) < 0)
        return;
    if (address_of_peer(socket, "tcp", &address, NULL) == 0)
        address_format(&address, peer, sizeof(peer));
    if (l->forming >= l->values->max_sessions) {
        printf("turned away %s: %u sessions are under way already (--max-sessions)\n", peer,
               l->forming);
        return;
    }
    rc = start_session(l, socket, peer);
    if (rc < 0)
        log_line(LOG_ERROR, "cannot start a session for %s: %s", peer, uv_strerror(rc));
}

static void on_connection(uv_stream_t *stream, int status)
{
    struct listener *l = stream->data;
    uv_tcp_t *connection = status < 0 ? NULL : malloc(sizeof(*connection));

    if (!connection) {
        log_line(LOG_ERROR, "cannot take a connection: %s",
                 uv_strerror(status < 0 ? status : UV_ENOMEM));
        return;
    }
    uv_tcp_init(&l->loop, connection);
    if (uv_accept(stream, (uv_stream_t *)connection) == 0)
        welcome(l, connection);
    uv_close((uv_handle_t *)connection, free_tcp);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct listener *l = handle->data;
    (void)number;

    printf("no longer listening; guests and sessions here go on by themselves\n");
    stop_listening(l, EXIT_CODE_DONE);
}

static int listener_open(struct listener *l, int socket)
{
    int rc = uv_loop_init(&l->loop);

    if (rc < 0)
        return rc;
    LIST_INIT(&l->sessions);
    uv_tcp_init(&l->loop, &l->tcp);
    uv_signal_init(&l->loop, &l->interrupt);
    uv_signal_init(&l->loop, &l->terminate);
    l->tcp.data = l->interrupt.data = l->terminate.data = l;
    uv_signal_start(&l->interrupt, on_signal, SIGINT);
    uv_signal_start(&l->terminate, on_signal, SIGTERM);
    rc = uv_tcp_open(&l->tcp, socket);
    return rc < 0 ? rc : uv_listen((uv_stream_t *)&l->tcp, LISTEN_BACKLOG, on_connection);
}

static int serve(const struct cli_command *self, const struct receive_values *values, int socket,
                 struct address bound)
{
    struct listener l = {.values = values, .once = -1};
    struct session *session;
    char uri[sizeof(struct address) + 16];
    int rc = listener_open(&l, socket);

    if (rc == 0 && values->once && (l.once = memfd_create("wander-once", MFD_CLOEXEC)) < 0)
        rc = -errno;
    if (rc < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "cannot serve the listening socket: %s",
                        uv_strerror(rc));
    printf("listening on %s\n", address_format(&bound, uri, sizeof(uri)));
    uv_run(&l.loop, UV_RUN_DEFAULT);
    while ((session = LIST_FIRST(&l.sessions))) {
        LIST_REMOVE(session, entry);
        free(session);
    }
    return l.exit_code;
}

static int check_values(const struct receive_values *values, struct error *err)
{
    if (!values->listen.scheme[0])
        return error_set(err, EINVAL, "expected --listen tcp://HOST:PORT");
    if (!values->insecure && !address_is_loopback(&values->listen))
        return error_set(err, EPERM,
                         "--listen: '%s' is not loopback, and there is no authentication: whoever "
                         "reaches the port could "
                         "send a guest. Say --insecure on a network you trust",
                         values->listen.host);
    if (values->command_count && strcmp(values->kind, "qemu") != 0)
        return error_set(err, EINVAL, "a command after -- is for --guest qemu");
    if (strcmp(values->kind, "qemu") != 0)
        return 0;
    if (!values->command_count)
        return error_set(err, EINVAL,
                         "--guest qemu needs the guest's QEMU to start: -- qemu-system-x86_64 and "
                         "its arguments, as at the source");
    return qemu_command_check(values->command, err);
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct receive_values values = {.max_sessions = 4};
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct address bound, local;
    struct error err = {0};
    int socket, code;

    values.command = cli_split_command(&argc, argv, &values.command_count);
    code = cli_begin(self, argc, argv, &values, arguments);
    if (code >= 0)
        return code;
    if (check_values(&values, &err) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "%s", err.text);
    /* What we were born with is not for guests that outlive us: a shell's lock, a pipe whose end
     * somebody waits for. */
    close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
    bound = values.listen;
    socket = address_listen(&values.listen, &bound.port, &err);
    if (socket < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    /* A name may have been resolved to something else the second time. */
    if (!values.insecure &&
        (address_of_local(socket, "tcp", &local, &err) < 0 || !address_is_loopback(&local)))
        return cli_fail(self, EXIT_CODE_FAILED,
                        "--listen: '%s' is not loopback any more: say its "
                        "address, or --insecure",
                        values.listen.host);
    return serve(self, &values, socket, bound);
}

const struct cli_command receive_command = {
    .name = "receive",
    .arguments = "",
    .summary = "listen for guests; each session is a process of its own, and so is its guest",
    .details =
        "With --guest qemu, what follows -- is the QEMU that is started, waiting, for each guest: "
        "its\n"
        "machine, CPU, memory and devices as at the source, -incoming and a monitor are added.\n"
        "Prints a line when somebody connects, when a guest runs here, and when a session ends.\n"
        "The guests' processes live on when this one ends. With --once further connections can\n"
        "still ask what became of a session, but bring no other guest; the exit code is that of\n"
        "the guest's process, 0 when the guest was moved on or ended.\n",
    .options = options,
    .run = run,
};
