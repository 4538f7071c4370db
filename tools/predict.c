/* wander predict: what moving a guest would take. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "migrate/rehearsal.h"
#include "tools/atomic_file.h"
#include "tools/attach.h"
#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/path_options.h"
#include "tools/prediction_view.h"
#include "tools/runtime.h"
#include "transport/base/clock.h"
#include "transport/base/options.h"

enum {
    TRIALS_MS = 120000, /* for the trials of all transports, at most */
    TICK_MS = 200,
    BUSY_RETRIES = 100,
    BUSY_RETRY_MS = 100,
};

struct predict_values {
    struct migration_options migrate;
    struct rehearsal_wish rehearsal;
    char json[3072];
};

static const struct cli_option options[] = {
    {"sample", "T",
     "how long to watch the guest, like 500ms or 10s, up to 60s (default 2s, then as long as the "
     "first round would take, up to 10s)",
     cli_time, CLI_FIELD(struct predict_values, rehearsal.sample_ns)},
    {"only", NULL, "try the transport that URI names, and no other", cli_flag,
     CLI_FIELD(struct predict_values, rehearsal.only)},
    {"json", "FILE", "write the prediction there (replaced as a whole, at the end)", cli_text,
     CLI_FIELD(struct predict_values, json)},
    PATH_LIMIT_OPTIONS(struct predict_values),
    PATH_LANE_OPTIONS(struct predict_values),
    PATH_OTHER_OPTIONS(struct predict_values),
    {0},
};

/* One question under way. */
struct question {
    const char *guest;
    const struct control_request *request;
    struct control_connection connection;
    uint64_t asked_at;
    int signals;
    bool terminal, told_trial;
};

static uint64_t sample_ns(const struct question *q)
{
    uint64_t asked = q->request->rehearsal.sample_ns;

    return asked ? asked : REHEARSAL_SAMPLE_MS * NS_PER_MS;
}

static void clear_progress(const struct question *q)
{
    if (q->terminal)
        fputs("\r\033[K", stderr);
}

/* The guest's process says nothing meanwhile: what it is at follows from the time. */
static void show_progress(struct question *q)
{
    uint64_t passed = clock_now() - q->asked_at, all = sample_ns(q);
    bool watching = passed < all;
    char done[32], whole[32];

    if (q->terminal && watching)
        fprintf(stderr, "\rwatching guest %s: %s of %s\033[K", q->guest,
                format_time(passed, done, sizeof(done)), format_time(all, whole, sizeof(whole)));
    else if (q->terminal)
        fprintf(stderr, "\rsending a sample of its pages, and watching on: %s\033[K",
                format_time(passed - all, done, sizeof(done)));
    else if (!watching && !q->told_trial)
        fprintf(stderr, "sending a sample of its pages\n");
    q->told_trial |= !watching;
}

static int await_answer(struct question *q, cJSON **answer, struct error *err)
{
    uint64_t longest_ns = sample_ns(q) + (TRIALS_MS + REHEARSAL_LONGEST_MS) * NS_PER_MS;
    uint64_t deadline = clock_now() + longest_ns;
    int result;

    for (;;) {
        show_progress(q);
        error_clear(err);
        result = control_receive(&q->connection, TICK_MS, q->signals, answer, err);
        if (result != -ETIMEDOUT || clock_now() >= deadline)
            break;
    }
    clear_progress(q);
    if (result == -EINTR)
        return error_set(err, ECANCELED, "interrupted: the prediction ends; the guest runs on");
    return result;
}

/* A guest's process that is busy for a moment is waited for. */
static int ask(struct question *q, cJSON **answer, struct error *err)
{
    int result;

    for (unsigned i = 0;; i++) {
        q->asked_at = clock_now();
        result = control_send(&q->connection, q->request, err);
        if (!result)
            result = await_answer(q, answer, err);
        if (result != -EAGAIN || i == BUSY_RETRIES)
            return result;
        error_clear(err);
        clock_sleep_until(clock_now() + BUSY_RETRY_MS * NS_PER_MS);
    }
}

static int write_json(const struct cli_command *self, const cJSON *answer, struct atomic_file *json)
{
    struct error err = {0};
    char *text = json->path[0] ? cJSON_Print(answer) : NULL;
    int result = text ? atomic_file_commit(json, text, &err) : 0;

    cJSON_free(text);
    return result ? cli_fail(self, EXIT_CODE_FAILED, "--json: %s", err.text) : EXIT_CODE_DONE;
}

static int tell(const struct cli_command *self, const cJSON *answer, struct atomic_file *json)
{
    struct error err = {0};
    int code = write_json(self, answer, json);

    if (prediction_print(stdout, answer, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    return code == EXIT_CODE_DONE && !prediction_is_good(answer) ? EXIT_CODE_FAILED : code;
}

static int predict(const struct cli_command *self, struct question *q, struct atomic_file *json)
{
    char whole[32];
    struct error err = {0};
    cJSON *answer;
    int code;

    q->signals = control_catch_signals();
    if (control_open(q->guest, &q->connection, &err) < 0)
        return cli_fail(self, err.code == ENOENT ? EXIT_CODE_USAGE : EXIT_CODE_FAILED, "%s",
                        err.text);
    if (!q->terminal)
        fprintf(stderr, "watching guest %s for %s\n", q->guest,
                format_time(sample_ns(q), whole, sizeof(whole)));
    if (ask(q, &answer, &err) < 0) {
        code = cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    } else {
        code = tell(self, answer, json);
        cJSON_Delete(answer);
    }
    control_close(&q->connection);
    return code;
}

static int check_values(const struct predict_values *values, const char *guest, struct error *err)
{
    if (values->rehearsal.sample_ns > CONTROL_MAX_SAMPLE_MS * NS_PER_MS)
        return error_set(err, ERANGE, "--sample: more than %d s", CONTROL_MAX_SAMPLE_MS / 1000);
    if (!attach_is_monitor(guest) && guest_name_check(guest, err) < 0)
        return -err->code;
    return path_options_check(&values->migrate, err);
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct predict_values values = {0};
    struct control_request request = {.command = CONTROL_PREDICT};
    struct question question = {.request = &request, .terminal = isatty(STDERR_FILENO)};
    struct atomic_file json = {0};
    const char *arguments[CLI_MAX_ARGUMENTS];
    char name[GUEST_NAME_SIZE];
    struct error err = {0};
    int lifeline = -1;

    migration_options_defaults(&values.migrate);
    int code = cli_begin(self, argc, argv, &values, arguments);
    if (code >= 0)
        return code;
    if (check_values(&values, arguments[0], &err) < 0 ||
        cli_destination(arguments[1], &values.migrate.destination, &err) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "%s", err.text);
    if (values.json[0] && atomic_file_open(values.json, &json, &err) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "--json: %s", err.text);
    request.migrate = values.migrate;
    request.rehearsal = values.rehearsal;
    question.guest = arguments[0];
    bool attach = attach_is_monitor(arguments[0]);
    if (attach && attach_start(arguments[0], name, &lifeline, &err) < 0) {
        code = cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    } else {
        question.guest = attach ? name : arguments[0];
        code = predict(self, &question, &json);
    }
    if (lifeline >= 0)
        close(lifeline);
    atomic_file_close(&json);
    return code;
}

const struct cli_command predict_command = {
    .name = "predict",
    .arguments = "GUEST URI",
    .summary = "tell beforehand what moving a guest there would take, over each transport",
    .details =
        "Watches the running guest and sends a sample of its memory to the destination, which\n"
        "throws it away; the guest runs on. Ctrl-C ends it, and so do wander cancel\n"
        "and wander migrate. GUEST is a name, or qmp:PATH, as for wander migrate.\n"
        "With --tracker dirty-ring watching slows the guest, and the prediction may be too good.\n"
        "Exit codes: 0 it converges over the transport that URI names; 1 it does not, or that\n"
        "transport cannot be used, or the prediction failed; 2 usage.\n",
    .min_arguments = 2,
    .max_arguments = 2,
    .options = options,
    .run = run,
};
