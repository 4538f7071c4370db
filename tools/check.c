/* wander check: what would keep a guest from moving, before anything is moved. */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "tools/attach.h"
#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/path_options.h"
#include "transport/base/clock.h"

enum {
    CHECK_TIMEOUT_MS = 30000, /* the question itself takes 22 s at most */
    BUSY_RETRIES = 100,
    BUSY_RETRY_MS = 100,
};

struct check_values {
    char guest[GUEST_MONITOR_SIZE + 8];
    struct migration_options migrate;
};

static int parse_guest(const struct cli_option *option, const char *text, void *field,
                       struct error *err)
{
    return attach_is_monitor(text) ? cli_text(option, text, field, err)
                                   : cli_name(option, text, field, err);
}

static const struct cli_option options[] = {
    {"guest", "GUEST",
     "ask for this guest (default: whether wander answers there, and whether lanes work)",
     parse_guest, CLI_FIELD(struct check_values, guest)},
    PATH_LANE_OPTIONS(struct check_values),
    {0},
};

static int tell(const struct cli_command *self, const char *uri, const char *ends,
                const char *notes, unsigned count, const char *reasons)
{
    if (ends[0])
        printf("%s\n", ends);
    if (notes[0])
        printf("%s\n", notes);
    if (count == 0) {
        printf("%s answers; nothing found that would be refused\n", uri);
        return EXIT_CODE_DONE;
    }
    printf("%s\n", reasons);
    return cli_fail(self, EXIT_CODE_FAILED, "a migration to %s would be refused, for %u reason%s",
                    uri, count, count > 1 ? "s" : "");
}

static const char *text_of(const struct reasons *reasons)
{
    return reasons->text ? reasons->text : "";
}

static int check_here(const struct cli_command *self, const char *uri,
                      const struct migration_options *wanted)
{
    struct check_report report = {0};
    struct error err = {0};
    int code;

    if (migration_check(NULL, wanted, &report, &err) < 0)
        code = cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    else
        code = tell(self, uri, text_of(&report.ends), text_of(&report.notes), report.refused.count,
                    text_of(&report.refused));
    check_report_free(&report);
    return code;
}

/* A guest's process that has only just begun is waited for. */
static int ask(const char *guest, const struct control_request *request, cJSON **reply,
               struct error *err)
{
    for (unsigned i = 0;; i++) {
        error_clear(err);
        int rc = control_call(guest, request, CHECK_TIMEOUT_MS, reply, err);
        if (rc != -EAGAIN || i == BUSY_RETRIES)
            return rc;
        clock_sleep_until(clock_now() + BUSY_RETRY_MS * NS_PER_MS);
    }
}

static int check_guest(const struct cli_command *self, const char *uri,
                       const struct migration_options *wanted, const char *guest)
{
    struct control_request request = {.command = CONTROL_CHECK, .migrate = *wanted};
    char name[GUEST_NAME_SIZE];
    struct error err = {0};
    int code, lifeline = -1;
    cJSON *reply;

    if (attach_is_monitor(guest)) {
        if (attach_start(guest, name, &lifeline, &err) < 0)
            return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
        guest = name;
    }
    if (ask(guest, &request, &reply, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    code = tell(self, uri, control_text(reply, "ends"), control_text(reply, "notes"),
                (unsigned)control_number(reply, "count", 0), control_text(reply, "reasons"));
    cJSON_Delete(reply);
    if (lifeline >= 0)
        close(lifeline);
    return code;
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct check_values values = {0};
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct error err = {0};
    int code;

    migration_options_defaults(&values.migrate);
    code = cli_begin(self, argc, argv, &values, arguments);
    if (code >= 0)
        return code;
    if (cli_destination(arguments[0], &values.migrate.destination, &err) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "%s", err.text);
    if (values.guest[0])
        return check_guest(self, arguments[0], &values.migrate, values.guest);
    return check_here(self, arguments[0], &values.migrate);
}

const struct cli_command check_command = {
    .name = "check",
    .arguments = "URI",
    .summary =
        "tell beforehand what would not work between here and a destination, and how to mend it",
    .details =
        "Moves nothing, but opens a lane for a trial. Ends with 0 when nothing stands in the way,\n"
        "else with 1. How much memory this host may pin is a matter of the process that\n"
        "migrates: with --guest, that is the guest's.\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .run = run,
};
