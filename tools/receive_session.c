/* wander receive-session: one session of `wander receive`, and then the guest's process. Not for
 * users. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/commands.h"
#include "tools/guest_process.h"
#include "tools/receive.h"
#include "tools/runtime.h"

struct session_values {
    char name[GUEST_NAME_SIZE], kind[GUEST_KIND_SIZE], filter[128];
    uint64_t pin_limit;
    bool once;
};

static const struct cli_option options[] = {
    {"name", "NAME", "what the guest is called here", cli_name,
     CLI_FIELD(struct session_values, name)},
    {"guest", "KIND", "the only kind accepted", cli_text, CLI_FIELD(struct session_values, kind)},
    {"filter", "SPEC", "around the transport", cli_filter,
     CLI_FIELD(struct session_values, filter)},
    {"rdma-pin-limit", "SIZE", "most memory that rdma pins", cli_size,
     CLI_FIELD(struct session_values, pin_limit)},
    {"once", NULL, "take a guest only when no other session does", cli_flag,
     CLI_FIELD(struct session_values, once)},
    {0},
};

static int inherited_socket(int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISSOCK(st.st_mode))
        return -ENOTSOCK;
    return fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, 0) < 0 ? -errno : 0;
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct session_values values = {0};
    struct incoming_options incoming = {0};
    struct arrival arrival = {
        .socket = SESSION_SOCKET, .events = SESSION_EVENTS, .once = -1, .options = &incoming};
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct error err = {0};
    unsigned command_count;
    char **command = cli_split_command(&argc, argv, &command_count);
    int code = cli_begin(self, argc, argv, &values, arguments);

    if (code >= 0)
        return code;
    if (command_count) {
        incoming.command = command;
        if (runtime_directory(incoming.runtime, sizeof(incoming.runtime), &err) < 0)
            return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    }
    if (inherited_socket(SESSION_SOCKET) < 0 || inherited_socket(SESSION_EVENTS) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "this is started by wander receive, not by hand");
    memcpy(incoming.name, values.name, sizeof(incoming.name));
    memcpy(incoming.kind, values.kind, sizeof(incoming.kind));
    memcpy(incoming.filter, values.filter, sizeof(incoming.filter));
    incoming.pin_limit = values.pin_limit;
    if (values.once && fcntl(SESSION_ONCE, F_SETFD, FD_CLOEXEC) == 0)
        arrival.once = SESSION_ONCE;
    return guest_process_arriving(&arrival);
}

const struct cli_command receive_session_command = {
    .name = "receive-session",
    .arguments = "",
    .summary = "serve one session of wander receive",
    .options = options,
    .hidden = true,
    .run = run,
};
