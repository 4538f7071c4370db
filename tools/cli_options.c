#include "tools/cli_options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/runtime.h"
#include "transport/base/options.h"
#include "transport/transport.h"

enum { MAX_OPTIONS = 32, FIRST_OPTION = 256, THROTTLE_MAX = 99 };

int cli_flag(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    (void)option, (void)text, (void)err;
    *(bool *)field = true;
    return 0;
}

int cli_text(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    size_t length = strlen(text);

    if (length == 0)
        return error_set(err, EINVAL, "it is empty");
    if (length >= option->size)
        return error_set(err, EINVAL, "%zu characters are too many, at most %zu fit", length,
                         option->size - 1);
    memcpy(field, text, length + 1);
    return 0;
}

int cli_size(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    (void)option;
    return parse_size(text, field, err);
}

int cli_rate(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    (void)option;
    return parse_rate(text, field, err);
}

int cli_time(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    (void)option;
    return parse_time(text, field, err);
}

int cli_number(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    uint64_t value;
    int rc = parse_number(text, option->low, option->high, &value, err);

    if (rc == 0)
        *(unsigned *)field = (unsigned)value;
    return rc;
}

int cli_choice(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    for (unsigned i = 0; option->choices[i]; i++)
        if (strcmp(text, option->choices[i]) == 0) {
            *(unsigned *)field = i;
            return 0;
        }
    return error_set(err, EINVAL, "'%s' is none of %s", text, option->argument);
}

int cli_name(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    int rc = guest_name_check(text, err);

    return rc < 0 ? rc : cli_text(option, text, field, err);
}

int cli_filter(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    int rc = transport_wrap_check(text, err);

    return rc < 0 ? rc : cli_text(option, text, field, err);
}

int cli_throttle(const struct cli_option *option, const char *text, void *field, struct error *err)
{
    size_t length = strlen(text);
    char digits[4] = "";
    uint64_t percent;
    (void)option;

    if (strcmp(text, "auto") == 0 || strcmp(text, "none") == 0) {
        *(unsigned *)field = text[0] == 'a' ? THROTTLE_MAX : 0;
        return 0;
    }
    if (length < 2 || length > sizeof(digits) || text[length - 1] != '%')
        return error_set(err, EINVAL, "'%s' is none of auto, none and a percentage like 60%%",
                         text);
    memcpy(digits, text, length - 1);
    if (parse_number(digits, 1, THROTTLE_MAX, &percent, NULL) < 0)
        return error_set(err, EINVAL, "'%s' is no percentage from 1%% to %d%%", text, THROTTLE_MAX);
    *(unsigned *)field = (unsigned)percent;
    return 0;
}

int cli_destination(const char *uri, struct address *out, struct error *err)
{
    int rc = address_parse(uri, out, err);

    if (rc == 0 && transport_scheme_check(out->scheme, err) < 0) {
        error_prefix(err, "'%s'", uri);
        return -EINVAL;
    }
    return rc;
}

static size_t option_count(const struct cli_option *options)
{
    size_t count = 0;

    while (options && options[count].name)
        count++;
    return count;
}

/* getopt's table: --help first, then the subcommand's own. */
static size_t long_options(const struct cli_command *command, struct option out[MAX_OPTIONS + 2])
{
    size_t count = option_count(command->options);

    if (count > MAX_OPTIONS)
        abort();
    out[0] = (struct option){"help", no_argument, NULL, 'h'};
    for (size_t i = 0; i < count; i++)
        out[i + 1] = (struct option){
            .name = command->options[i].name,
            .has_arg = command->options[i].argument ? required_argument : no_argument,
            .val = FIRST_OPTION + (int)i,
        };
    out[count + 1] = (struct option){0};
    return count;
}

static int take_option(const struct cli_option *option, char *values, struct error *err)
{
    int rc = option->parse(option, optarg, values + option->offset, err);

    if (rc < 0)
        return error_prefix(err, "--%s", option->name);
    return 0;
}

static int take_arguments(const struct cli_command *command, int argc, char **argv,
                          const char **arguments, struct error *err)
{
    unsigned count = (unsigned)(argc - optind);

    if (count < command->min_arguments)
        return error_set(err, EINVAL, "expected %s", command->arguments);
    if (count > command->max_arguments)
        return error_set(err, EINVAL, "'%s' is one argument too many, expected %s",
                         argv[optind + (int)command->max_arguments],
                         command->max_arguments ? command->arguments : "none");
    for (unsigned i = 0; i < count; i++)
        arguments[i] = argv[optind + (int)i];
    return 0;
}

static int bad_option(const struct cli_command *command, int found, char **argv, struct error *err)
{
    const char *text = argv[optind - 1];

    if (found == ':')
        return error_set(err, EINVAL, "option '%s' needs a value", text);
    if (optopt >= FIRST_OPTION)
        return error_set(err, EINVAL, "option '--%s' takes no value",
                         command->options[optopt - FIRST_OPTION].name);
    return error_set(err, EINVAL, "unknown or ambiguous option '%s'", text);
}

int cli_parse(const struct cli_command *command, int argc, char **argv, void *values,
              const char *arguments[CLI_MAX_ARGUMENTS], struct error *err)
{
    struct option table[MAX_OPTIONS + 2];
    int found, rc;

    long_options(command, table);
    for (unsigned i = 0; i < CLI_MAX_ARGUMENTS; i++)
        arguments[i] = NULL;
    optind = 0;
    opterr = 0;
    while ((found = getopt_long(argc, argv, ":h", table, NULL)) != -1) {
        if (found == 'h')
            return 1;
        if (found < FIRST_OPTION)
            return bad_option(command, found, argv, err);
        rc = take_option(&command->options[found - FIRST_OPTION], values, err);
        if (rc < 0)
            return -EINVAL;
    }
    return take_arguments(command, argc, argv, arguments, err);
}

char **cli_split_command(int *argc, char **argv, unsigned *count)
{
    for (int i = 1; i < *argc; i++) {
        if (strcmp(argv[i], "--") != 0)
            continue;
        *count = (unsigned)(*argc - i - 1);
        *argc = i;
        argv[i] = NULL;
        return argv + i + 1;
    }
    *count = 0;
    return argv + *argc;
}

int cli_begin(const struct cli_command *command, int argc, char **argv, void *values,
              const char *arguments[CLI_MAX_ARGUMENTS])
{
    struct error err = {0};
    int rc = cli_parse(command, argc, argv, values, arguments, &err);
    char *help;

    if (rc < 0)
        return cli_fail(command, EXIT_CODE_USAGE, "%s (see wander %s --help)", err.text,
                        command->name);
    if (rc == 0)
        return -1;
    help = cli_help(command);
    if (!help)
        return cli_fail(command, EXIT_CODE_FAILED, "no memory for the help text");
    fputs(help, stdout);
    free(help);
    return EXIT_CODE_DONE;
}

static void help_option(FILE *out, const struct cli_option *option)
{
    char left[40];

    snprintf(left, sizeof(left), "--%s%s%s", option->name, option->argument ? " " : "",
             option->argument ? option->argument : "");
    fprintf(out, "  %-26s %s\n", left, option->help);
}

char *cli_help(const struct cli_command *command)
{
    static const struct cli_option help = {.name = "help", .help = "show this text"};
    size_t count = option_count(command->options), size;
    char *text = NULL;
    FILE *out = open_memstream(&text, &size);

    if (!out)
        return NULL;
    fprintf(out, "usage: wander %s%s%s [OPTION]...\n%s\n", command->name,
            command->arguments[0] ? " " : "", command->arguments, command->summary);
    if (command->details)
        fprintf(out, "\n%s", command->details);
    fprintf(out, "\noptions:\n");
    for (size_t i = 0; i < count; i++)
        help_option(out, &command->options[i]);
    help_option(out, &help);
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

int cli_fail(const struct cli_command *command, int code, const char *format, ...)
{
    char text[ERROR_TEXT_SIZE + 128];
    va_list list;

    va_start(list, format);
    vsnprintf(text, sizeof(text), format, list);
    va_end(list);
    fprintf(stderr, "wander %s: %s\n", command->name, text);
    return code;
}
