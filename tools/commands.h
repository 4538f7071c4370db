/* The subcommands of `wander`, one file each. */
#ifndef TOOLS_COMMANDS_H
#define TOOLS_COMMANDS_H

#include "tools/cli_options.h"

extern const struct cli_command lab_command;
extern const struct cli_command receive_command;
extern const struct cli_command
    receive_session_command;                    /* what `receive` starts for each session */
extern const struct cli_command attach_command; /* what `migrate qmp:PATH` starts */
extern const struct cli_command migrate_command;
extern const struct cli_command status_command;
extern const struct cli_command cancel_command;
extern const struct cli_command resolve_command;
extern const struct cli_command check_command;
extern const struct cli_command predict_command;
extern const struct cli_command workload_command;
extern const struct cli_command console_command;
extern const struct cli_command quit_command;
extern const struct cli_command qemu_env_command;
extern const struct cli_command simulate_command; /* what testbed/plan starts */
extern const struct cli_command guardian_command; /* what a QEMU guest's move starts */

#endif
