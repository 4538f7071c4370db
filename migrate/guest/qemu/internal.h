/* Inside of the QEMU guest, shared by the files that make it up; nobody else includes it.
 *
 *   qemu.c     what the engine asks of any guest
 *   attach.c   a QEMU that runs by itself
 *   arrive.c   the QEMU that is started for a guest to come; one whose wander died */
#ifndef MIGRATE_GUEST_QEMU_INTERNAL_H
#define MIGRATE_GUEST_QEMU_INTERNAL_H

#include <stdatomic.h>

#include "migrate/guest/qemu/device_state.h"
#include "migrate/guest/qemu/facts.h"
#include "migrate/guest/qemu/guardian.h"
#include "migrate/guest/qemu/memory.h"
#include "migrate/guest/qemu/process.h"
#include "migrate/guest/qemu/qemu.h"
#include "migrate/guest/qemu/throttle.h"

enum { QEMU_KILL_MS = 10000 }; /* a killed process with much memory takes its time */

struct qemu {
    struct guest guest;
    char name[GUEST_NAME_SIZE];
    struct guest_monitor monitor;
    struct qmp *qmp;
    struct qemu_process process;
    struct qemu_memory memory;
    struct qemu_facts *facts;
    bool start_is_open; /* it was told to start, and has not answered */
    bool arriving;      /* the other end has it, and it never ran here */

    atomic_bool paused;
    atomic_uint_least64_t resumed_at;

    /* While a migration is under way. */
    struct qemu_settings *settings;
    struct guardian *guardian;
    struct qemu_throttle *throttle;
    unsigned throttled; /* percent, wanted while it runs */
    bool disks_let_go;  /* by saving or not yet taking them: `cont` takes them */
    uint64_t looked_at; /* clock: nothing was in the way of a move then */
};

static inline struct qemu *qemu_of(struct guest *g)
{
    return (struct qemu *)g;
}

/* attach.c: everything that keeps the running guest from being moved, as one error: -EPERM. What
 * ought to be known besides goes to `notes`, which may be NULL. */
int qemu_look(struct qemu *q, struct reasons *notes, struct error *err);

/* -EBUSY: RAM is not what it was when it was opened. */
int qemu_check_memory(struct qemu *q, struct error *err);

/* A guest that has nothing yet; NULL without memory. */
struct qemu *qemu_allocate(void);
/* Closes and frees what there is of it; QEMU goes on. */
void qemu_free(struct qemu *q);
/* Once the process is known. */
void qemu_note_monitor(struct qemu *q, const char *socket);
/* When a process was started, as guest_monitor.born; 0: there is none. */
uint64_t qemu_process_born(pid_t pid);
/* A guardian that knows the settings of now, in place of the one there was. */
int qemu_start_guardian(struct qemu *q, enum guardian_word word, struct error *err);
/* Before an error: what QEMU said at its end, if it has ended. */
void qemu_add_last_words(struct qemu *q, struct error *err);

#endif
