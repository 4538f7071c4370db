/* The runtime directory: where the control sockets of this user's guests are, and whose name is
 * whose.
 *
 * Directory: $WANDER_RUNTIME_DIR, else $XDG_RUNTIME_DIR/wander, else /run/wander; mode 0700, the
 * user's own. In it, for each guest NAME: NAME.lock, locked with flock(2) by the process that has
 * the name for as long as it lives, and NAME.sock, its control socket. What a dead process left is
 * replaced: the lock says who is dead. */
#ifndef TOOLS_RUNTIME_H
#define TOOLS_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>

#include "migrate/guest/guest.h"
#include "transport/base/error.h"

/* A name and its listening control socket, held by this process. */
struct name_claim {
    char name[GUEST_NAME_SIZE];
    int directory, lock, socket; /* socket is -1 once it was given away */
};

/* [A-Za-z0-9._-]{1,63}: names become file names. -EINVAL. */
int guest_name_check(const char *name, struct error *err);

/* The runtime directory's path, made if need be and checked to be private. */
int runtime_directory(char *out, size_t size, struct error *err);

/* Takes a name and listens on its socket (close-on-exec, mode 0600). -EADDRINUSE when a live
 * process has it, and keeps it for 1.5 s more: it may be one that is only just ending. Any thread
 * but one that serves a control socket. */
int name_claim(const char *name, struct name_claim *out, struct error *err);
/* Removes the files and gives the name back; closes the socket unless it was given away. */
void name_release(struct name_claim *claim);

/* A connected, blocking control socket of the guest. -ENOENT: no such guest; the text lists those
 * there are. */
int runtime_connect(const char *name, struct error *err);
/* The names with a live process, sorted; *names is one block that the caller frees, *count may be
 * 0. */
int runtime_names(char (**names)[GUEST_NAME_SIZE], size_t *count, struct error *err);

#endif
