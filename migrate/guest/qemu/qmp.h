/* A connection to a QEMU's monitor (QMP): JSON objects over a Unix socket, one command at a time.
 * https://www.qemu.org/docs/master/interop/qmp-spec.html */
#ifndef MIGRATE_GUEST_QEMU_QMP_H
#define MIGRATE_GUEST_QEMU_QMP_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "transport/base/error.h"

enum { QMP_TIMEOUT_MS = 5000 };

struct qmp;

/* Connects to the socket at `path` and negotiates. -EBUSY when QEMU is there but does not greet
 * within 3 s (it serves one client at a time, and another has it), -ECONNREFUSED, -ENOENT, -EPROTO
 * when no QMP is spoken there. Blocks. */
int qmp_connect(const char *path, struct qmp **out, struct error *err);
/* Takes over a connection that another process negotiated and left in whatever state: what it had
 * begun to send is dropped by QEMU, answers to it are passed over. `socket` is q's from then on; on
 * failure it stays the caller's. -ECONNRESET, -ETIMEDOUT. */
int qmp_adopt(int socket, struct qmp **out, struct error *err);
/* The process that listens at the other end, as the kernel tells (SO_PEERCRED): QEMU, or what
 * started it and made the socket for it. */
pid_t qmp_peer(const struct qmp *q);
/* The connected socket: for a process that takes over should this one die. Stays q's. */
int qmp_socket(const struct qmp *q);

/* One command and its answer. `arguments` is taken, and may be NULL. *out (may be NULL) is what
 * "return" held, the caller's to delete. `fd` >= 0 goes along (SCM_RIGHTS, for getfd). Errors:
 * -EREMOTEIO when QEMU refused (err's text is QEMU's own, with the command's name before it),
 * -ETIMEDOUT, -ECONNRESET when QEMU has gone; after the last two the connection is dead and every
 * later call says so. Any thread: calls wait for one another. */
int qmp_command(struct qmp *q, const char *command, cJSON *arguments, int fd, int timeout_ms,
                cJSON **out, struct error *err);
/* Sends a command whose answer nobody waits for. `arguments` is taken, and may be NULL. */
int qmp_post(struct qmp *q, const char *command, cJSON *arguments, struct error *err);
/* As qmp_command with QMP_TIMEOUT_MS and no file; `format` is JSON with printf's conversions
 * ("{'id': %d}", where ' is written for "), or NULL. For arguments without foreign text. */
int qmp_call(struct qmp *q, cJSON **out, struct error *err, const char *command, const char *format,
             ...) __attribute__((format(printf, 5, 6)));

/* Whether an event of this name has come since the last qmp_forget; *data (may be NULL) is the
 * newest one's data, the caller's to delete. Reads what has come, does not wait. Events are noted
 * whenever answers are read as well. */
bool qmp_seen(struct qmp *q, const char *event, cJSON **data);
void qmp_forget(struct qmp *q, const char *event);
/* Waits until an event of one of these names (NULL-terminated) has come since it was forgotten;
 * returns its index. -ETIMEDOUT, -ECONNRESET. */
int qmp_await(struct qmp *q, const char *const *events, int timeout_ms, struct error *err);
/* True once QEMU has closed the connection, and for NULL. Does not wait. Any thread. */
bool qmp_lost(struct qmp *q);

/* Speaks again to a QEMU that did not answer in time: what it says late to the old commands is
 * passed over. Leaves a connection alone that lives, or that QEMU has closed. */
void qmp_revive(struct qmp *q);
void qmp_close(struct qmp *q); /* NULL is fine */

#endif
