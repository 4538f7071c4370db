/* wander quit: ends a guest. */
#include <stdio.h>

#include "tools/commands.h"
#include "tools/control_client.h"

enum { QUIT_TIMEOUT_MS = 120000 }; /* memory of a large guest takes its time to be given back */

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct control_request request = {.command = CONTROL_QUIT};
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct error err = {0};
    cJSON *reply;
    int code = cli_begin(self, argc, argv, NULL, arguments);

    if (code >= 0)
        return code;
    if (control_call(arguments[0], &request, QUIT_TIMEOUT_MS, &reply, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    printf("%s\n", control_text(reply, "message"));
    cJSON_Delete(reply);
    return EXIT_CODE_DONE;
}

const struct cli_command quit_command = {
    .name = "quit",
    .arguments = "GUEST",
    .summary = "end a guest for good; a migration is cancelled first",
    .details = "A guest in doubt is not ended so: see 'wander resolve --help'.\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .run = run,
};
