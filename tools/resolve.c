/* wander resolve: decides about a guest in doubt. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/orphan.h"
#include "migrate/proto.h"
#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/runtime.h"

enum { RESOLVE_TIMEOUT_MS = 60000, TOKEN_DIGITS = 32 };

struct resolve_values {
    bool resume, destroy, force;
};

static const struct cli_option options[] = {
    {"resume", NULL, "the guest is to run at this end", cli_flag,
     CLI_FIELD(struct resolve_values, resume)},
    {"destroy", NULL, "the copy at this end is to go", cli_flag,
     CLI_FIELD(struct resolve_values, destroy)},
    {"force", NULL, "act even without the other end's word: risks two running copies, or none",
     cli_flag, CLI_FIELD(struct resolve_values, force)},
    {0},
};

static bool is_token(const char *text)
{
    return strlen(text) == TOKEN_DIGITS && strspn(text, "0123456789abcdef") == TOKEN_DIGITS;
}

/* The guest that a session's token stands for; other texts are a guest's name already. */
static int find_guest(const char *text, char out[GUEST_NAME_SIZE], struct error *err)
{
    char own[GUEST_NAME_SIZE];
    int rc = guest_name_check(text, err);

    if (rc < 0)
        return rc;
    snprintf(out, GUEST_NAME_SIZE, "%s", text);
    if (!is_token(text))
        return 0;
    rc = control_find("session", text, out, err);
    if (rc == -ENOENT) /* or a guest that is called so */
        rc = control_ask_status(text, "name", own, sizeof(own), NULL) < 0 ? -ENOENT : 0;
    return rc == -ENOENT ? error_set(err, ENOENT, "no guest here belongs to session %s", text) : rc;
}

/* A session whose process has died, and its guest has not. */
static int resolve_orphan(const struct cli_command *self, const char *token,
                          const struct resolve_values *values)
{
    enum resolve_action action = values->resume ? RESOLVE_RESUME : RESOLVE_DESTROY;
    uint8_t bytes[TRANSPORT_TOKEN_SIZE];
    char text[ERROR_TEXT_SIZE];
    struct error err = {0};

    if (token_parse(token, bytes) < 0 ||
        orphan_resolve(bytes, action, values->force, text, sizeof(text), &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    printf("%s\n", text);
    return EXIT_CODE_DONE;
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct control_request request = {.command = CONTROL_RESOLVE};
    struct resolve_values values = {0};
    const char *arguments[CLI_MAX_ARGUMENTS];
    char guest[GUEST_NAME_SIZE];
    struct error err = {0};
    cJSON *reply;
    int code = cli_begin(self, argc, argv, &values, arguments);

    if (code >= 0)
        return code;
    if (values.resume == values.destroy)
        return cli_fail(self, EXIT_CODE_USAGE,
                        "say either --resume or --destroy (see wander resolve --help)");
    request.action = values.resume ? RESOLVE_RESUME : RESOLVE_DESTROY;
    request.force = values.force;
    code = find_guest(arguments[0], guest, &err);
    if (code == -ENOENT && is_token(arguments[0]))
        return resolve_orphan(self, arguments[0], &values);
    if (code < 0 || control_call(guest, &request, RESOLVE_TIMEOUT_MS, &reply, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    printf("%s\n", control_text(reply, "message"));
    cJSON_Delete(reply);
    return EXIT_CODE_DONE;
}

const struct cli_command resolve_command = {
    .name = "resolve",
    .arguments = "GUEST|SESSION",
    .summary = "decide about a guest that is in doubt or stuck after a failed hand-over",
    .details = "Works at both ends. The other end is asked first; what it says is followed. "
               "Without its word\n"
               "nothing is done, unless --force is given.\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .run = run,
};
