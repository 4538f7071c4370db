/* Command lines from tables: one table per subcommand gives getopt_long its options and --help its
 * text, so that neither can have what the other lacks. */
#ifndef TOOLS_CLI_OPTIONS_H
#define TOOLS_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/base/address.h"
#include "transport/base/error.h"

/* Exit codes of `wander migrate` (design: "Command line"); the other subcommands use the first
 * three. */
enum exit_code {
    EXIT_CODE_DONE = 0,
    EXIT_CODE_FAILED = 1, /* for a migration: the guest runs on at the source */
    EXIT_CODE_USAGE = 2,
    EXIT_CODE_IN_DOUBT = 3,    /* who owns the guest must be resolved */
    EXIT_CODE_NOT_RUNNING = 4, /* failed, and the guest does not run */
    EXIT_CODE_LEFT = 130,      /* left by Ctrl-C before the end; what was asked goes on */
};

struct cli_option {
    const char *name;     /* without dashes; NULL ends a table */
    const char *argument; /* as --help shows it; NULL for a flag */
    const char *help;     /* one sentence with unit and default */
    /* Reads `text` (NULL for a flag) into `field`. -EINVAL, -ERANGE; the error says what is
     * expected. */
    int (*parse)(const struct cli_option *option, const char *text, void *field, struct error *err);
    size_t offset, size;        /* of the field in the subcommand's values */
    uint64_t low, high;         /* of a number */
    const char *const *choices; /* of a choice, NULL at the end; the field gets the index */
};

struct cli_command {
    const char *name;
    const char *arguments; /* as --help shows them, "GUEST URI" */
    const char *summary;   /* half a line */
    const char *details;   /* further lines of --help, or NULL */
    unsigned min_arguments, max_arguments;
    const struct cli_option *options;
    bool hidden; /* not for users */
    /* argv[0] is the subcommand's name. Returns the process's exit code. */
    int (*run)(const struct cli_command *self, int argc, char **argv);
};

enum { CLI_MAX_ARGUMENTS = 2 };

#define CLI_FIELD(type, member)                                                                    \
    .offset = offsetof(type, member), .size = sizeof(((type *)0)->member)

/* Parsers for the tables; each field's type is named. */
int cli_flag(const struct cli_option *option, const char *text, void *field,
             struct error *err); /* bool */
int cli_text(const struct cli_option *option, const char *text, void *field,
             struct error *err); /* char[size] */
int cli_size(const struct cli_option *option, const char *text, void *field,
             struct error *err); /* uint64_t bytes */
int cli_rate(const struct cli_option *option, const char *text, void *field,
             struct error *err); /* uint64_t bytes/s */
int cli_time(const struct cli_option *option, const char *text, void *field,
             struct error *err); /* uint64_t ns */
int cli_number(const struct cli_option *option, const char *text, void *field,
               struct error *err); /* unsigned */
int cli_choice(const struct cli_option *option, const char *text, void *field,
               struct error *err); /* enum */
int cli_name(const struct cli_option *option, const char *text, void *field,
             struct error *err); /* a guest's name */
int cli_filter(const struct cli_option *option, const char *text, void *field,
               struct error *err); /* a filter spec */
int cli_throttle(const struct cli_option *option, const char *text, void *field,
                 struct error *err); /* unsigned percent: auto, none or MAX% */

/* Where a migration can go to: a URI of a scheme there is a transport for. -EINVAL. */
int cli_destination(const char *uri, struct address *out, struct error *err);

/* Cuts the arguments off at "--": what follows is another program's command line, NULL-terminated
 * like argv; *count is 0 when there is none. */
char **cli_split_command(int *argc, char **argv, unsigned *count);

/* Reads the options into `values` (which holds the defaults) and the rest into `arguments` (NULL
 * where there is none). Returns 0, 1 when --help was asked for, or -EINVAL. Uses getopt's globals:
 * main thread only. */
int cli_parse(const struct cli_command *command, int argc, char **argv, void *values,
              const char *arguments[CLI_MAX_ARGUMENTS], struct error *err);
/* As cli_parse, and says on stdout or stderr what it found: returns -1 to go on, else the exit code
 * to leave with. */
int cli_begin(const struct cli_command *command, int argc, char **argv, void *values,
              const char *arguments[CLI_MAX_ARGUMENTS]);
/* The text of --help; the caller frees. NULL without memory. */
char *cli_help(const struct cli_command *command);

/* One line "wander COMMAND: text" on stderr; returns `code`. */
int cli_fail(const struct cli_command *command, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
