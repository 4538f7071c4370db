#include "migrate/ownership.h"

#include <errno.h>
#include <string.h>

#include "migrate/record.h"

static const char *const names[OWNERSHIP_STATES] = {
    [OWNERSHIP_NONE] = "none",
    [OWNERSHIP_OWNER] = "owner",
    [OWNERSHIP_COMMITTING] = "committing",
    [OWNERSHIP_RELEASED] = "released",
    [OWNERSHIP_RECEIVING] = "receiving",
    [OWNERSHIP_PREPARED] = "prepared",
    [OWNERSHIP_STARTED] = "started",
    [OWNERSHIP_ABORTED] = "aborted",
    [OWNERSHIP_STARTED_DEAD] = "started-dead",
    [OWNERSHIP_UNKNOWN] = "unknown",
    [OWNERSHIP_STARTING] = "starting",
};

/* STARTING to ABORTED is for a start that failed before one instruction ran. STARTED is final: the
 * source lets the guest go when it hears of it. */
static const struct {
    enum ownership_state from, to;
} moves[] = {
    {OWNERSHIP_OWNER, OWNERSHIP_COMMITTING},  {OWNERSHIP_COMMITTING, OWNERSHIP_RELEASED},
    {OWNERSHIP_COMMITTING, OWNERSHIP_OWNER},  {OWNERSHIP_RECEIVING, OWNERSHIP_PREPARED},
    {OWNERSHIP_RECEIVING, OWNERSHIP_ABORTED}, {OWNERSHIP_PREPARED, OWNERSHIP_STARTING},
    {OWNERSHIP_PREPARED, OWNERSHIP_ABORTED},  {OWNERSHIP_STARTING, OWNERSHIP_STARTED},
    {OWNERSHIP_STARTING, OWNERSHIP_ABORTED},
};

const char *ownership_name(enum ownership_state state)
{
    return state < OWNERSHIP_STATES ? names[state] : "invalid";
}

enum ownership_state ownership_from_name(const char *name)
{
    for (int state = OWNERSHIP_OWNER; state < OWNERSHIP_STATES; state++)
        if (strcmp(names[state], name) == 0)
            return (enum ownership_state)state;
    return OWNERSHIP_NONE;
}

void ownership_init(struct ownership *o, enum ownership_state state)
{
    pthread_mutex_init(&o->lock, NULL);
    o->state = state;
    o->record = NULL;
}

void ownership_destroy(struct ownership *o)
{
    pthread_mutex_destroy(&o->lock);
}

enum ownership_state ownership_get(struct ownership *o)
{
    pthread_mutex_lock(&o->lock);
    enum ownership_state state = o->state;
    pthread_mutex_unlock(&o->lock);
    return state;
}

void ownership_attach(struct ownership *o, struct record *record)
{
    pthread_mutex_lock(&o->lock);
    o->record = record;
    pthread_mutex_unlock(&o->lock);
}

static bool is_move(enum ownership_state from, enum ownership_state to)
{
    for (size_t i = 0; i < sizeof(moves) / sizeof(*moves); i++)
        if (moves[i].from == from && moves[i].to == to)
            return true;
    return false;
}

int ownership_move(struct ownership *o, enum ownership_state from, enum ownership_state to,
                   struct error *err)
{
    int result = 0;

    if (!is_move(from, to))
        return error_set(err, EINVAL, "ownership cannot go from %s to %s", ownership_name(from),
                         ownership_name(to));
    pthread_mutex_lock(&o->lock);
    if (o->state != from)
        result = error_set(err, ESTALE, "the session is %s here, not %s", ownership_name(o->state),
                           ownership_name(from));
    else if (o->record)
        result = record_set_state(o->record, to, err);
    if (result == 0)
        o->state = to;
    pthread_mutex_unlock(&o->lock);
    return result;
}
