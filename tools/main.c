/* wander: moves a running virtual machine to another host. This file only finds the subcommand. */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "tools/commands.h"

static const struct cli_command *const commands[] = {
    &lab_command,      &receive_command,  &migrate_command, &status_command,
    &cancel_command,   &resolve_command,  &check_command,   &predict_command,
    &workload_command, &console_command,  &quit_command,    &receive_session_command,
    &qemu_env_command, &guardian_command, &attach_command,  &simulate_command,
};

enum { COMMAND_COUNT = sizeof(commands) / sizeof(commands[0]) };

static const struct cli_command *find_command(const char *name)
{
    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

static int show_usage(FILE *out, int exit_code)
{
    fprintf(out,
            "usage: wander COMMAND [ARGUMENT]... [OPTION]...\n"
            "Moves a running virtual machine between Linux hosts and measures what it cost.\n\n");
    for (unsigned i = 0; i < COMMAND_COUNT; i++)
        if (!commands[i]->hidden)
            fprintf(out, "  %-9s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(
        out,
        "\n'wander COMMAND --help' tells more. 'wander --version' prints the version.\n"
        "Environment: WANDER_RUNTIME_DIR (control sockets), XDG_STATE_HOME (records of sessions),\n"
        "WANDER_LOG (error, warning, info or debug on stderr; default warning).\n");
    return exit_code;
}

enum { LARGE_BLOCK = 128 << 10 };

int main(int argc, char **argv)
{
    const struct cli_command *command;

    signal(SIGPIPE, SIG_IGN);
    /* A session is started through /proc/self/exe and would be called "exe" in ps and top. */
    prctl(PR_SET_NAME, "wander");
    /* A guest's process lives for months: what a session needed is to go back to the system, and not
     * to lie in the heap with holes between (mallopt(3): a threshold that is set stays as it is). */
    mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 2)
        return show_usage(stderr, EXIT_CODE_USAGE);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0)
        return show_usage(stdout, EXIT_CODE_DONE);
    if (strcmp(argv[1], "--version") == 0) {
        printf("wander %s\n", WANDER_VERSION);
        return EXIT_CODE_DONE;
    }
    command = find_command(argv[1]);
    if (!command) {
        fprintf(stderr, "wander: there is no command '%.80s' (see wander --help)\n", argv[1]);
        return EXIT_CODE_USAGE;
    }
    return command->run(command, argc - 1, argv + 1);
}
