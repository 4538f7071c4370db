/* wander console: the newest text that a guest wrote. */
#include <stdio.h>
#include <string.h>

#include "tools/commands.h"
#include "tools/control_client.h"

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct control_request request = {.command = CONTROL_CONSOLE};
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct error err = {0};
    const char *text;
    cJSON *reply;
    int code = cli_begin(self, argc, argv, NULL, arguments);

    if (code >= 0)
        return code;
    if (control_call(arguments[0], &request, CONTROL_TIMEOUT_MS, &reply, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    text = control_text(reply, "console");
    fputs(text, stdout);
    if (text[0] && text[strlen(text) - 1] != '\n')
        putchar('\n');
    cJSON_Delete(reply);
    return EXIT_CODE_DONE;
}

const struct cli_command console_command = {
    .name = "console",
    .arguments = "GUEST",
    .summary = "print the newest text a guest wrote on its serial console (4 KiB at most)",
    .min_arguments = 1,
    .max_arguments = 1,
    .run = run,
};
