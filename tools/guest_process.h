/* The process that owns one guest: its loop with the control socket, its signals, and the work that
 * the loop must not do itself. `wander lab` and each session of `wander receive` end up here. */
#ifndef TOOLS_GUEST_PROCESS_H
#define TOOLS_GUEST_PROCESS_H

#include "migrate/guest/guest.h"
#include "migrate/incoming.h"
#include "tools/runtime.h"

/* Makes the guest, paused; on a worker thread. */
typedef int guest_maker_fn(void *context, struct guest **out, struct error *err);

/* Makes a guest under the claimed name, lets it run and serves until it has moved away or was
 * ended. The claim is taken. Returns the process's exit code; what went wrong is on stderr. */
int guest_process_new(struct name_claim *claim, guest_maker_fn *make, void *context);

/* Serves a guest that runs by itself and was only taken hold of, until it has moved away, or has
 * not been asked to for a while. `lifeline`: a descriptor (taken) that reads end of file once
 * whoever wanted it is gone. The claim and the guest are taken. */
int guest_process_attached(struct name_claim *claim, struct guest *guest, int lifeline);

struct arrival {
    int socket; /* the accepted control connection; taken */
    int events; /* where the listener hears of it, a JSON line each: {"event": "started", "guest":
                   NAME},
                   {"event": "ended", "message": WHY}; taken */
    int once; /* -1, or a file: only the session that can lock it (fcntl(2): as long as its process
                 lives) takes a guest; questions are answered all the same */
    const struct incoming_options *options; /* name_check is filled in here */
};

/* Receives a guest and goes on as guest_process_new. Returns 0 as well when somebody only asked, 1
 * when no guest came of it. */
int guest_process_arriving(const struct arrival *arrival);

#endif
