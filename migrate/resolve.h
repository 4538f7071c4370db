/* An operator's request to resolve a session, handed from any thread to the session's own. */
#ifndef MIGRATE_RESOLVE_H
#define MIGRATE_RESOLVE_H

#include "migrate/migration.h"

struct resolve_request {
    bool waiting;
    enum resolve_action action;
    bool force;
    resolve_done_fn *done;
    void *context;
};

#endif
