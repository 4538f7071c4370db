/* Command lines to values, and the messages for those that are none. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli_options.h"
#include "tools/commands.h"
#include "tools/runtime.h"
#include "transport/base/clock.h"

struct values {
    char name[64];
    uint64_t size, rate, time;
    unsigned number, choice, throttle;
    bool flag;
};

static const char *const colours[] = {"red", "green", NULL};

static const struct cli_option options[] = {
    {"name", "NAME", "a name", cli_name, CLI_FIELD(struct values, name)},
    {"size", "SIZE", "a size", cli_size, CLI_FIELD(struct values, size)},
    {"rate", "R", "a rate", cli_rate, CLI_FIELD(struct values, rate)},
    {"time", "T", "a time", cli_time, CLI_FIELD(struct values, time)},
    {"number", "N", "2 to 8", cli_number, CLI_FIELD(struct values, number), .low = 2, .high = 8},
    {"choice", "red|green", "a choice", cli_choice, CLI_FIELD(struct values, choice),
     .choices = colours},
    {"throttle", "auto|none|MAX%", "a share", cli_throttle, CLI_FIELD(struct values, throttle)},
    {"flag", NULL, "a flag", cli_flag, CLI_FIELD(struct values, flag)},
    {0},
};

static const struct cli_command command = {
    .name = "try",
    .arguments = "A [B]",
    .summary = "for tests",
    .min_arguments = 1,
    .max_arguments = 2,
    .options = options,
};

static int parse(const char *line, struct values *values, const char *arguments[CLI_MAX_ARGUMENTS],
                 struct error *err)
{
    static char copy[512];
    char *argv[32] = {"try"}, *rest = copy;
    int argc = 1;

    snprintf(copy, sizeof(copy), "%s", line);
    for (char *word; (word = strsep(&rest, " "));)
        argv[argc++] = word;
    *values = (struct values){0};
    return cli_parse(&command, argc, argv, values, arguments, err);
}

static const struct good_case {
    const char *line;
    struct values expected;
} good[] = {
    {"a", {.flag = false}},
    {"a b", {.flag = false}},
    {"--flag a", {.flag = true}},
    {"a --flag", {.flag = true}},
    {"a --name x.y_z-1", {.name = "x.y_z-1"}},
    {"a --size 4G", {.size = 4ull << 30}},
    {"a --size=1T --number 8", {.size = 1ull << 40, .number = 8}},
    {"a --rate 8Gbit", {.rate = 1000000000}},
    {"a --time 20ms", {.time = 20 * NS_PER_MS}},
    {"a --choice green", {.choice = 1}},
    {"a --throttle auto", {.throttle = 99}},
    {"a --throttle none", {.throttle = 0}},
    {"a --throttle 60%", {.throttle = 60}},
};

Test(cli_options, reads_what_is_right)
{
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        const char *arguments[CLI_MAX_ARGUMENTS];
        struct values values;
        struct error err = {0};
        int rc = parse(good[i].line, &values, arguments, &err);

        cr_assert_eq(rc, 0, "'%s': expected 0, got %d: %s", good[i].line, rc, err.text);
        cr_expect_str_eq(values.name, good[i].expected.name, "'%s': name is '%s'", good[i].line,
                         values.name);
        cr_expect_eq(values.size, good[i].expected.size, "'%s': size is %lu", good[i].line,
                     values.size);
        cr_expect_eq(values.rate, good[i].expected.rate, "'%s': rate is %lu", good[i].line,
                     values.rate);
        cr_expect_eq(values.time, good[i].expected.time, "'%s': time is %lu", good[i].line,
                     values.time);
        cr_expect_eq(values.number, good[i].expected.number, "'%s': number is %u", good[i].line,
                     values.number);
        cr_expect_eq(values.choice, good[i].expected.choice, "'%s': choice is %u", good[i].line,
                     values.choice);
        cr_expect_eq(values.throttle, good[i].expected.throttle, "'%s': throttle is %u",
                     good[i].line, values.throttle);
        cr_expect_eq(values.flag, good[i].expected.flag, "'%s': flag is %d", good[i].line,
                     values.flag);
        cr_expect_str_eq(arguments[0], "a", "'%s': first argument is '%s'", good[i].line,
                         arguments[0]);
    }
}

static const struct bad_case {
    const char *line, *mentions;
} bad[] = {
    {"", "A [B]"},
    {"a b c", "'c'"},
    {"a --frob", "'--frob'"},
    {"a -x", "'-x'"},
    {"a --flag=1", "--flag"},
    {"a --size", "'--size'"},
    {"a --size 0", "--size"},
    {"a --size 17E", "--size"},
    {"a --size 17408P", "--size"},
    {"a --size -1", "--size"},
    {"a --rate fast", "--rate"},
    {"a --time 3weeks", "--time"},
    {"a --number 1", "--number"},
    {"a --number 9", "--number"},
    {"a --number 2x", "--number"},
    {"a --choice blue", "red|green"},
    {"a --throttle 0%", "0%"},
    {"a --throttle 100%", "100%"},
    {"a --throttle 50", "50"},
    {"a --throttle %", "'%'"},
    {"a --throttle auto%", "auto%"},
    {"a --name a/b", "a/b"},
    {"a --name=", "--name"},
};

Test(cli_options, refuses_what_is_wrong_in_one_line)
{
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const char *arguments[CLI_MAX_ARGUMENTS];
        struct values values;
        struct error err = {0};
        int rc;

        rc = bad[i].line[0]
                 ? parse(bad[i].line, &values, arguments, &err)
                 : cli_parse(&command, 1, (char *[]){"try", NULL}, &values, arguments, &err);
        cr_expect_eq(rc, -EINVAL, "'%s': expected -EINVAL, got %d", bad[i].line, rc);
        cr_expect(strstr(err.text, bad[i].mentions),
                  "'%s': expected the text to mention %s, got '%s'", bad[i].line, bad[i].mentions,
                  err.text);
        cr_expect_not(strchr(err.text, '\n'), "'%s': more than one line: '%s'", bad[i].line,
                      err.text);
    }
}

Test(cli_options, help_has_every_option)
{
    static const struct cli_command *const all[] = {
        &command,          &lab_command,     &receive_command, &migrate_command,
        &status_command,   &cancel_command,  &resolve_command, &check_command,
        &workload_command, &console_command, &quit_command,
    };

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        char *help = cli_help(all[i]);

        cr_assert(help);
        for (const struct cli_option *o = all[i]->options; o && o->name; o++)
            cr_expect(strstr(help, o->name), "wander %s --help lacks --%s:\n%s", all[i]->name,
                      o->name, help);
        cr_expect(strstr(help, "--help"), "wander %s --help lacks --help", all[i]->name);
        for (const char *line = help; line;
             line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
            cr_expect_leq(strcspn(line, "\n"), 120, "wander %s --help has a line too long: %.120s",
                          all[i]->name, line);
        free(help);
    }
}

Test(cli_options, guest_names_are_safe_as_file_names)
{
    static const struct {
        const char *name;
        bool good;
    } names[] = {
        {"lab", true},
        {"a.b-c_D9", true},
        {"", false},
        {"a/b", false},
        {"..", true},
        {"a b", false},
        {"a\n", false},
        {"\xc3\xa4", false},
        {"0123456789012345678901234567890123456789012345678901234567890ab", true},   /* 63 */
        {"0123456789012345678901234567890123456789012345678901234567890abc", false}, /* 64 */
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct error err = {0};
        int rc = guest_name_check(names[i].name, &err);

        cr_expect_eq(rc == 0, names[i].good, "'%s': got %d %s", names[i].name, rc, err.text);
    }
}
