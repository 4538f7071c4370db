/* wander cancel: asks a migration or a prediction to end. */
#include <stdio.h>

#include "tools/commands.h"
#include "tools/control_client.h"

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct control_request request = {.command = CONTROL_CANCEL};
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct error err = {0};
    cJSON *reply;
    int code = cli_begin(self, argc, argv, NULL, arguments);

    if (code >= 0)
        return code;
    if (control_call(arguments[0], &request, CONTROL_TIMEOUT_MS, &reply, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    printf("%s\n", control_text(reply, "message"));
    cJSON_Delete(reply);
    return EXIT_CODE_DONE;
}

const struct cli_command cancel_command = {
    .name = "cancel",
    .arguments = "GUEST",
    .summary = "ask the migration or prediction of a guest to end; it runs on here",
    .details =
        "Answers at once; 'wander status GUEST' and 'wander migrate' tell when it has ended.\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .run = run,
};
