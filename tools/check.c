/* wander check: what would keep a guest from moving, before anything is moved. */
#include <errno.h>
#include <stdio.h>

#include "tools/commands.h"
#include "tools/control_client.h"

enum { CHECK_TIMEOUT_MS = 20000 }; /* the question itself takes 10 s at most */

struct check_values {
    char guest[GUEST_NAME_SIZE];
};

static const struct cli_option options[] = {
    {"guest", "NAME",
     "ask for this guest (default: only whether wander answers there, and its version)", cli_name,
     CLI_FIELD(struct check_values, guest)},
    {0},
};

static int tell(const struct cli_command *self, const char *uri, unsigned count,
                const char *reasons)
{
    if (count == 0) {
        printf("%s answers; nothing found that would be refused\n", uri);
        return EXIT_CODE_DONE;
    }
    printf("%s\n", reasons);
    return cli_fail(self, EXIT_CODE_FAILED, "%s would refuse, for %u reason%s", uri, count,
                    count > 1 ? "s" : "");
}

static int check_here(const struct cli_command *self, const char *uri,
                      const struct address *destination)
{
    struct reasons reasons = {0};
    struct error err = {0};
    int code;

    if (migration_check(NULL, destination, &reasons, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    code = tell(self, uri, reasons.count, reasons.text);
    reasons_free(&reasons);
    return code;
}

static int check_guest(const struct cli_command *self, const char *uri,
                       const struct address *destination, const char *guest)
{
    struct control_request request = {.command = CONTROL_CHECK,
                                      .migrate.destination = *destination};
    struct error err = {0};
    cJSON *reply;
    int code;

    if (control_call(guest, &request, CHECK_TIMEOUT_MS, &reply, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    code = tell(self, uri, (unsigned)control_number(reply, "count", 0),
                control_text(reply, "reasons"));
    cJSON_Delete(reply);
    return code;
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct check_values values = {0};
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct address destination;
    struct error err = {0};
    int code = cli_begin(self, argc, argv, &values, arguments);

    if (code >= 0)
        return code;
    if (cli_destination(arguments[0], &destination, &err) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "%s", err.text);
    if (values.guest[0])
        return check_guest(self, arguments[0], &destination, values.guest);
    return check_here(self, arguments[0], &destination);
}

const struct cli_command check_command = {
    .name = "check",
    .arguments = "URI",
    .summary = "tell beforehand what a destination would refuse, and how to mend it",
    .details = "Moves nothing. Ends with 0 when nothing stands in the way, else with 1.\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .run = run,
};
