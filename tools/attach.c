/* wander attach: takes hold of a QEMU that runs by itself, and serves it while it is moved. Not for
 * users: `wander migrate qmp:PATH` starts it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "migrate/guest/qemu/qemu.h"
#include "migrate/orphan.h"
#include "tools/attach.h"
#include "tools/commands.h"
#include "tools/guest_process.h"
#include "transport/base/log.h"

static const struct cli_option options[] = {{0}};

/* What it says from here on is for whoever looks for it later: the terminal is somebody else's. */
static void use_log(const struct name_claim *claim)
{
    char name[GUEST_NAME_SIZE + 8];

    snprintf(name, sizeof(name), "%s.log", claim->name);
    int log =
        openat(claim->directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log < 0)
        log = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    close(log);
}

static void remove_log(int directory, const char *guest)
{
    char name[GUEST_NAME_SIZE + 8];

    snprintf(name, sizeof(name), "%s.log", guest);
    unlinkat(directory, name, 0);
    close(directory);
}

static int take_name(const char *name, struct name_claim *claim, struct error *err)
{
    int result = name_claim(name, claim, err);

    if (result != -EADDRINUSE)
        return result;
    error_clear(err);
    return error_set(
        err, EADDRINUSE,
        "a guest called '%s' is served here by a wander process already: if it is this "
        "one, say wander migrate %s; if not, start one of them with another -name",
        name, name);
}

static int say_error(const struct error *err)
{
    if (dprintf(ATTACH_LIFELINE, "error %s\n", err->text) < 0)
        log_line(LOG_ERROR, "%s", err->text);
    return EXIT_CODE_FAILED;
}

static void say_notes(struct reasons *notes)
{
    char *next, *line = notes->text ? strtok_r(notes->text, "\n", &next) : NULL;

    for (; line; line = strtok_r(NULL, "\n", &next))
        dprintf(ATTACH_LIFELINE, "note %s\n", line);
    reasons_free(notes);
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct name_claim claim;
    struct guest_description facts = {0};
    struct reasons notes = {0};
    struct guest *guest;
    struct error err = {0};
    int code = cli_begin(self, argc, argv, NULL, arguments);

    if (code >= 0)
        return code;
    if (fcntl(ATTACH_LIFELINE, F_SETFD, FD_CLOEXEC) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "this is started by wander migrate, not by hand");
    if (qemu_guest_attach(arguments[0], &guest, &notes, &err) < 0)
        return say_error(&err);
    if (guest->ops->describe(guest, &facts, &err) < 0 || take_name(facts.name, &claim, &err) < 0) {
        guest->ops->detach(guest);
        guest_description_free(&facts);
        return say_error(&err);
    }
    guest_description_free(&facts);
    orphan_forget(guest->ops->monitor(guest));
    int directory = dup(claim.directory);
    char name[GUEST_NAME_SIZE];
    memcpy(name, claim.name, sizeof(name));
    use_log(&claim);
    say_notes(&notes);
    dprintf(ATTACH_LIFELINE, "guest %s\n", name);
    code = guest_process_attached(&claim, guest, ATTACH_LIFELINE);
    remove_log(directory, name);
    return code;
}

const struct cli_command attach_command = {
    .name = "attach",
    .arguments = "SOCKET",
    .summary = "serve a QEMU that runs by itself while it is moved",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .hidden = true,
    .run = run,
};
