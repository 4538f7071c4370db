/* The QEMU process of an incoming guest: started from the operator's command line, with our own
 * monitor and -incoming defer added. */
#ifndef MIGRATE_GUEST_QEMU_PROCESS_H
#define MIGRATE_GUEST_QEMU_PROCESS_H

#include <sys/types.h>

#include "migrate/guest/qemu/qmp.h"

struct qemu_process {
    pid_t pid;
    int handle;                    /* pidfd(2) */
    char socket[108];              /* path of our monitor's socket */
    char log[256];                 /* what QEMU wrote on stderr */
    ino_t socket_inode, log_inode; /* as this one made them; 0: not known */
};

/* Refuses command lines that contradict what is added (-incoming, -daemonize, -S is fine, -name
 * kept), each with the remedy; pure. */
int qemu_command_check(char *const *command, struct error *err);
/* Starts it in a session of its own (setsid), stdin from /dev/null, stderr to a log file in
 * `runtime`, our library preloaded, its monitor to be at `runtime`/`name`.qmp. Waits for nothing
 * but the end of an earlier QEMU of that name, two seconds at most: -EBUSY when it lives on. */
int qemu_process_start(char *const *command, const char *runtime, const char *name,
                       struct qemu_process *out, struct error *err);
/* Connects the monitor of one that was just started. -EIO with the last lines of its stderr when it
 * ends before it greets. Blocks up to 20 s. */
int qemu_process_connect(struct qemu_process *p, struct qmp **qmp, struct error *err);
/* Waits until it has ended; SIGKILL first when `kill`. Also for processes that are not our children
 * (by pidfd). -ETIMEDOUT. Removes socket and log of one that was started here, and no others that
 * have taken their places. */
int qemu_process_end(struct qemu_process *p, bool kill, int timeout_ms, struct error *err);
/* True while it lives. */
bool qemu_process_alive(const struct qemu_process *p);
/* For a QEMU that is there already. -ESRCH. */
int qemu_process_attach(pid_t pid, struct qemu_process *out, struct error *err);
/* The newest lines of its log, at most `size`-1 bytes; "" when there are none. */
void qemu_process_last_words(const struct qemu_process *p, char *out, size_t size);
void qemu_process_close(struct qemu_process *p); /* the handle only */

/* The path of libwander-qemu.so: $WANDER_QEMU_LIBRARY, beside the program (a build directory), or
 * where it was installed. -ENOENT names the places looked at. */
int qemu_library_path(char *out, size_t size, struct error *err);

#endif
