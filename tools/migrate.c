/* wander migrate: asks a guest's process to move it, shows how that goes, and prints what it cost.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "migrate/orphan.h"
#include "migrate/proto.h"
#include "tools/atomic_file.h"
#include "tools/attach.h"
#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/path_options.h"
#include "tools/progress.h"
#include "tools/runtime.h"
#include "transport/base/clock.h"

enum {
    STILL_ALIVE_MS = 2000, /* how often a pipe gets a line although nothing comes */
    BUSY_RETRIES = 100,
    BUSY_RETRY_MS = 100,
    END_MS = 5000,
};

struct migrate_values {
    struct migration_options migrate;
    char json[3072];
};

static const struct cli_option options[] = {
    PATH_LIMIT_OPTIONS(struct migrate_values),
    {"verify", NULL, "compare all memory at both ends before the start there; beyond the limit",
     cli_flag, CLI_FIELD(struct migrate_values, migrate.verify)},
    {"json", "FILE", "write the measurement there (replaced as a whole, at the end)", cli_text,
     CLI_FIELD(struct migrate_values, json)},
    PATH_LANE_OPTIONS(struct migrate_values),
    PATH_OTHER_OPTIONS(struct migrate_values),
    {0},
};

/* The client's side of one migration. */
struct viewer {
    const struct cli_command *command;
    const char *guest;
    struct control_connection connection;
    int signals;  /* signalfd */
    int lifeline; /* of a guest that was attached to for this; or -1 */
    unsigned interrupts;
    bool terminal;
    bool has_monitor; /* the guest outlives the process that moves it */
    struct progress_pace pace;
    struct progress_rate rate;
    struct migration_status status; /* the newest; zero before the first */
};

static unsigned terminal_width(void)
{
    struct winsize size;

    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

static void clear_bar(const struct viewer *v)
{
    if (v->terminal) {
        fputs("\r\033[K", stdout);
        fflush(stdout);
    }
}

/* What is under way; the end is told by finish. */
static void show(struct viewer *v)
{
    char text[1024];

    if (v->status.phase >= MIGRATION_IN_DOUBT)
        return;
    progress_estimate(&v->rate, &v->status);
    if (v->terminal) {
        printf("\r%s\033[K", progress_bar(&v->status, terminal_width() - 1, text, sizeof(text)));
        fflush(stdout);
    } else if (progress_due(&v->pace, &v->status, clock_now())) {
        printf("%s\n", progress_line(&v->status, text, sizeof(text)));
    }
}

static void ask_to_cancel(struct viewer *v)
{
    struct control_request request = {.command = CONTROL_CANCEL};
    struct error err = {0};
    cJSON *reply = NULL;

    clear_bar(v);
    if (control_call(v->guest, &request, CONTROL_TIMEOUT_MS, &reply, &err) < 0)
        fprintf(stderr, "cannot cancel: %s\n", err.text);
    else
        fprintf(stderr, "cancelling: %s\n", control_text(reply, "message"));
    cJSON_Delete(reply);
}

/* True when the user wants to leave. */
static bool on_interrupt(struct viewer *v)
{
    struct signalfd_siginfo info;

    if (read(v->signals, &info, sizeof(info)) != sizeof(info))
        return false;
    v->interrupts++;
    if (v->interrupts == 1) {
        ask_to_cancel(v);
    } else if (v->interrupts == 2) {
        clear_bar(v);
        fprintf(stderr, "the guest's process was already asked to cancel; Ctrl-C once more leaves "
                        "this display only\n");
    }
    return v->interrupts > 2;
}

static int leave(const struct viewer *v)
{
    clear_bar(v);
    return cli_fail(v->command, EXIT_CODE_LEFT,
                    "left before the end; guest '%s' is unharmed, see wander status %s", v->guest,
                    v->guest);
}

/* Whether the guest lives in a process of its own. */
static bool has_monitor(const char *guest)
{
    char monitor[GUEST_MONITOR_SIZE];

    control_ask_status(guest, "monitor", monitor, sizeof(monitor), NULL);
    return monitor[0];
}

static bool still_answers(const char *guest)
{
    char name[GUEST_NAME_SIZE];

    return control_ask_status(guest, "name", name, sizeof(name), NULL) == 0;
}

/* The record knows better than the display, which came before. */
static bool may_be_handed_over(const struct viewer *v)
{
    uint8_t token[TRANSPORT_TOKEN_SIZE];

    if (v->status.phase == MIGRATION_COMMITTING || v->status.phase == MIGRATION_IN_DOUBT)
        return true;
    return v->has_monitor && v->status.phase >= MIGRATION_SWITCHOVER &&
           !(token_parse(v->status.session, token) == 0 && orphan_was_kept(token));
}

/* The guest's process is gone or silent: what that means depends on how far it had come. */
static int lost(const struct viewer *v, const struct error *err)
{
    clear_bar(v);
    if (still_answers(v->guest))
        return cli_fail(
            v->command, EXIT_CODE_LEFT,
            "the connection to the guest's process was lost, but it goes on: see wander "
            "status %s",
            v->guest);
    if (may_be_handed_over(v))
        return cli_fail(
            v->command, EXIT_CODE_IN_DOUBT,
            "%s while the guest was handed over: look at the destination, and say there "
            "wander resolve %s if it is in doubt too",
            err->text, v->status.session);
    if (v->has_monitor)
        return cli_fail(v->command, EXIT_CODE_FAILED,
                        "%s during the migration; the guest goes on here, in its own process",
                        err->text);
    return cli_fail(v->command, EXIT_CODE_NOT_RUNNING,
                    "%s during the migration, and the guest '%s' with it, unless it runs at the "
                    "destination by now: look there",
                    err->text, v->guest);
}

/* Receives until the last object, which the caller frees; else returns the exit code. */
static int follow(struct viewer *v, cJSON **last)
{
    for (;;) {
        struct error err = {0};
        cJSON *reply = NULL;
        int rc = control_receive(&v->connection, STILL_ALIVE_MS, v->signals, &reply, &err);

        if (rc == -EINTR) {
            if (on_interrupt(v))
                return leave(v);
            continue;
        }
        if (rc == -EREMOTEIO || rc == -EAGAIN)
            return cli_fail(v->command, EXIT_CODE_FAILED, "%s", err.text);
        if (rc < 0 && rc != -ETIMEDOUT)
            return lost(v, &err);
        if (reply && cJSON_HasObjectItem(reply, "exit_code")) {
            *last = reply;
            return EXIT_CODE_DONE;
        }
        if (reply && control_progress_from_json(cJSON_GetObjectItemCaseSensitive(reply, "progress"),
                                                &v->status, &err) < 0)
            fprintf(stderr, "%s\n", err.text);
        cJSON_Delete(reply);
        show(v);
    }
}

static int finish(const struct viewer *v, const cJSON *last, struct atomic_file *json)
{
    const char *report = control_text(last, "report");
    int code = (int)control_number(last, "exit_code", EXIT_CODE_FAILED);
    struct error err = {0};

    clear_bar(v);
    fputs(control_text(last, "table"), stdout);
    if (json->path[0] && report[0] && atomic_file_commit(json, report, &err) < 0)
        cli_fail(v->command, code, "--json: %s", err.text);
    if (code != EXIT_CODE_DONE)
        cli_fail(v->command, code, "%s", control_text(last, "message"));
    return code;
}

/* Sends the request; a guest that has just arrived is waited for. */
static int begin(struct viewer *v, const struct control_request *request, cJSON **first,
                 struct error *err)
{
    for (unsigned i = 0;; i++) {
        int rc;

        error_clear(err);
        rc = control_send(&v->connection, request, err);
        if (rc == 0)
            rc = control_receive(&v->connection, CONTROL_TIMEOUT_MS, -1, first, err);
        if (rc != -EAGAIN || i == BUSY_RETRIES)
            return rc;
        clock_sleep_until(clock_now() + BUSY_RETRY_MS * NS_PER_MS);
    }
}

static int move(struct viewer *v, const struct control_request *request, struct atomic_file *json)
{
    struct error err = {0};
    cJSON *first = NULL, *last = NULL;
    int code;

    v->signals = control_catch_signals();
    if (begin(v, request, &first, &err) < 0)
        return cli_fail(v->command, EXIT_CODE_FAILED, "%s", err.text);
    if (cJSON_HasObjectItem(first, "exit_code")) {
        last = first;
        code = EXIT_CODE_DONE;
    } else {
        control_progress_from_json(cJSON_GetObjectItemCaseSensitive(first, "progress"), &v->status,
                                   NULL);
        cJSON_Delete(first);
        show(v);
        code = follow(v, &last);
    }
    if (last)
        code = finish(v, last, json);
    cJSON_Delete(last);
    return code;
}

/* The process that had the guest has ended when the guest's name is free again. */
static void await_end(int lifeline, int timeout_ms)
{
    struct pollfd end = {.fd = lifeline, .events = POLLIN};

    poll(&end, 1, timeout_ms);
    close(lifeline);
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct migrate_values values = {0};
    struct control_request request = {.command = CONTROL_MIGRATE};
    struct viewer viewer = {
        .command = self, .signals = -1, .lifeline = -1, .terminal = isatty(STDOUT_FILENO)};
    struct atomic_file json = {0};
    const char *arguments[CLI_MAX_ARGUMENTS];
    char name[GUEST_NAME_SIZE];
    struct error err = {0};
    int code;

    migration_options_defaults(&values.migrate);
    code = cli_begin(self, argc, argv, &values, arguments);
    if (code >= 0)
        return code;
    bool attach = attach_is_monitor(arguments[0]);
    if ((!attach && guest_name_check(arguments[0], &err) < 0) ||
        path_options_check(&values.migrate, &err) < 0 ||
        cli_destination(arguments[1], &values.migrate.destination, &err) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "%s", err.text);
    if (values.json[0] && atomic_file_open(values.json, &json, &err) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "--json: %s", err.text);
    request.migrate = values.migrate;
    viewer.guest = arguments[0];
    if (attach && attach_start(arguments[0], name, &viewer.lifeline, &err) < 0) {
        code = cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
        atomic_file_close(&json);
        return code;
    }
    if (attach)
        viewer.guest = name;
    viewer.has_monitor = attach || has_monitor(viewer.guest);
    if (control_open(viewer.guest, &viewer.connection, &err) < 0) {
        code =
            cli_fail(self, err.code == ENOENT ? EXIT_CODE_USAGE : EXIT_CODE_FAILED, "%s", err.text);
    } else {
        code = move(&viewer, &request, &json);
        control_close(&viewer.connection);
    }
    if (viewer.lifeline >= 0)
        await_end(viewer.lifeline, code == EXIT_CODE_DONE ? END_MS : 0);
    atomic_file_close(&json);
    return code;
}

const struct cli_command migrate_command = {
    .name = "migrate",
    .arguments = "GUEST URI",
    .summary = "move a guest to where 'wander receive' listens, tcp:// or rdma://HOST:PORT",
    .details =
        "GUEST is a name (wander status lists them), or qmp:PATH for a QEMU that runs by itself.\n"
        "Ctrl-C asks for an end: the guest then runs on here, unless it was just being handed "
        "over.\n"
        "Exit codes: 0 migrated; 1 failed, the guest runs on here; 2 usage; 3 in doubt, see\n"
        "'wander resolve --help'; 4 failed and the guest does not run; 130 left by a third "
        "Ctrl-C.\n",
    .min_arguments = 2,
    .max_arguments = 2,
    .options = options,
    .run = run,
};
