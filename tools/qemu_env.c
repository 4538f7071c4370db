/* wander qemu-env: what to set so that QEMU loads our library. */
#include <stdio.h>
#include <stdlib.h>

#include "migrate/guest/qemu/process.h"
#include "tools/commands.h"

struct values {
    bool shell, libvirt;
};

static const struct cli_option options[] = {
    {"shell", NULL, "a line for eval in a shell", cli_flag, CLI_FIELD(struct values, shell)},
    {"libvirt", NULL, "the element for the domain's XML", cli_flag,
     CLI_FIELD(struct values, libvirt)},
    {0},
};

/* For text between single quotes. */
static void print_shell(const char *text)
{
    for (; *text; text++)
        if (*text == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*text);
}

static void print_xml(const char *text)
{
    for (; *text; text++)
        switch (*text) {
        case '&':
            fputs("&amp;", stdout);
            break;
        case '<':
            fputs("&lt;", stdout);
            break;
        case '\'':
            fputs("&apos;", stdout);
            break;
        default:
            putchar(*text);
        }
}

static void show_shell(const char *library)
{
    printf("export LD_PRELOAD=\"${LD_PRELOAD:+$LD_PRELOAD:}\"'");
    print_shell(library);
    printf("'\n");
}

static void show_libvirt(const char *library)
{
    printf("<!-- in <domain type='…' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'> -->\n"
           "<qemu:commandline>\n"
           "  <qemu:env name='LD_PRELOAD' value='");
    print_xml(library);
    printf("'/>\n"
           "</qemu:commandline>\n");
}

static void show_plain(const char *library)
{
    const char *before = getenv("LD_PRELOAD");

    printf("LD_PRELOAD=%s%s%s\n", before ? before : "", before && *before ? ":" : "", library);
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct values values = {0};
    struct error err = {0};
    char library[512];
    int code = cli_begin(self, argc, argv, &values, arguments);

    if (code >= 0)
        return code;
    if (values.shell && values.libvirt)
        return cli_fail(self, EXIT_CODE_USAGE, "say --shell or --libvirt, not both");
    if (qemu_library_path(library, sizeof(library), &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    if (values.shell)
        show_shell(library);
    else if (values.libvirt)
        show_libvirt(library);
    else
        show_plain(library);
    return EXIT_CODE_DONE;
}

const struct cli_command qemu_env_command = {
    .name = "qemu-env",
    .arguments = "",
    .summary = "print the environment that makes a QEMU guest movable",
    .details =
        "env $(wander qemu-env) qemu-system-x86_64 …, or eval \"$(wander qemu-env --shell)\"\n"
        "first. WANDER_QEMU_LIBRARY says where the library is when it is not found.\n",
    .options = options,
    .run = run,
};
