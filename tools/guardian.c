/* wander guardian: what stays behind with a QEMU when wander itself is killed. */
#include "migrate/guest/qemu/guardian.h"
#include "tools/commands.h"

static int run(const struct cli_command *self, int argc, char **argv)
{
    (void)self;
    (void)argc;
    (void)argv;
    return guardian_main();
}

const struct cli_command guardian_command = {
    .name = "guardian",
    .arguments = "",
    .summary = "wait for the end of the wander that started this one",
    .hidden = true,
    .run = run,
};
