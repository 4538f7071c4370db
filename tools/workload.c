/* wander workload: what a guest says of its own work. */
#include <stdio.h>

#include "tools/commands.h"
#include "tools/control_client.h"

static const struct cli_option options[] = {
    {"check", NULL, "ask the guest to check all it ever wrote; 'checks' goes up when it has",
     cli_flag, CLI_FIELD(struct control_request, self_check)},
    {0},
};

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct control_request request = {.command = CONTROL_WORKLOAD};
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct error err = {0};
    cJSON *reply;
    char *text;
    int code = cli_begin(self, argc, argv, &request, arguments);

    if (code >= 0)
        return code;
    if (control_call(arguments[0], &request, CONTROL_TIMEOUT_MS, &reply, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    text = cJSON_Print(reply);
    cJSON_Delete(reply);
    if (!text)
        return cli_fail(self, EXIT_CODE_FAILED, "no memory for the text");
    printf("%s\n", text);
    cJSON_free(text);
    return EXIT_CODE_DONE;
}

const struct cli_command workload_command = {
    .name = "workload",
    .arguments = "GUEST",
    .summary = "print a guest's own account of its work as JSON",
    .details = "pages_written since its first start; rate in pages/s; moves it has seen; gap_ns, "
               "the pause of\n"
               "the newest move as the guest measured it (0: not known) with gap_clock; checks "
               "completed,\n"
               "check_moves and checked_pages of the newest one; bad_pages of all: 0, or memory "
               "was damaged.\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .run = run,
};
