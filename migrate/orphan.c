#include "migrate/orphan.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/exchange.h"
#include "migrate/record.h"
#include "transport/base/log.h"

enum { ASK_MS = 2000 };

static enum ownership_state ask(const struct record_content *c)
{
    const struct address *where[] = {&c->peer, &c->peer_main};
    enum ownership_state state = OWNERSHIP_UNKNOWN;

    for (unsigned i = 0; i < 2 && state == OWNERSHIP_UNKNOWN; i++)
        if (where[i]->port &&
            exchange_ask(where[i], c->token, ASK_MS, -1, &state, &(struct error){0}))
            state = OWNERSHIP_UNKNOWN;
    return state;
}

/* Whether the other end, which says it is `there`, has certainly no guest that runs or will. */
static bool is_free_of_it(enum record_role role, enum ownership_state there)
{
    if (role == RECORD_SOURCE)
        return there == OWNERSHIP_ABORTED;
    return there == OWNERSHIP_RELEASED || there == OWNERSHIP_COMMITTING;
}

/* Whether the other end certainly has it. */
static bool has_it(enum record_role role, enum ownership_state there)
{
    if (role == RECORD_SOURCE)
        return there == OWNERSHIP_STARTED;
    return there == OWNERSHIP_OWNER;
}

/* NULL: nothing is against it. */
static const char *objection(const struct record_content *c, enum ownership_state there,
                             enum resolve_action action, bool force)
{
    bool resume = action == RESOLVE_RESUME;

    if (resume && (c->state == OWNERSHIP_ABORTED || c->state == OWNERSHIP_RELEASED))
        return "the guest was given up here, and the other end told so: it cannot run here";
    /* Nobody was ever told that the guest may start elsewhere. */
    if (c->role == RECORD_SOURCE && c->state == OWNERSHIP_OWNER)
        return resume || force ? NULL
                               : "the guest was never handed over: this is the only copy. Use "
                                 "--resume, or --destroy --force to lose it";
    if (resume && has_it(c->role, there))
        return "the guest runs at the other end: the copy here can only be destroyed";
    if (!resume && is_free_of_it(c->role, there) && !force)
        return "the other end has no copy any more: this is the only one. Use --resume, or "
               "--destroy --force to lose it";
    if (there == OWNERSHIP_PREPARED && !force)
        return "the other end has the guest prepared and waits: decide there first, with wander "
               "resolve, then here";
    if (resume ? is_free_of_it(c->role, there) : has_it(c->role, there))
        return NULL;
    return force ? NULL
                 : "the other end does not answer for this session. If you are certain how it "
                   "stands there, repeat with --force; if you are wrong, two copies run or none";
}

/* The other end may still have to ask what became of it here. */
static void leave_verdict(struct record *record, const struct record_content *content,
                          enum resolve_action action)
{
    bool never_ran = content->state == OWNERSHIP_RECEIVING || content->state == OWNERSHIP_PREPARED;
    struct error err = {0};

    if (content->role == RECORD_SOURCE || (action == RESOLVE_DESTROY && !never_ran)) {
        record_remove(record);
        return;
    }
    if (record_set_state(record, action == RESOLVE_RESUME ? OWNERSHIP_STARTED : OWNERSHIP_ABORTED,
                         &err))
        log_line(LOG_ERROR, "%s", err.text);
    record_release(record);
}

int orphan_resolve(const uint8_t token[TRANSPORT_TOKEN_SIZE], enum resolve_action action,
                   bool force, char *text, size_t size, struct error *err)
{
    struct record_content content;
    struct record *record;
    int result = record_adopt(token, RECORD_SOURCE, &record, &content, err);

    if (result == -ENOENT) {
        error_clear(err);
        result = record_adopt(token, RECORD_DESTINATION, &record, &content, err);
    }
    if (result)
        return result;
    const struct guest_kind *kind = guest_kind_find(content.guest_kind);
    enum ownership_state there = ask(&content);
    /* What waits there is given up before anything runs here. */
    if (content.role == RECORD_SOURCE && action == RESOLVE_RESUME && there == OWNERSHIP_PREPARED &&
        exchange_abort(&content.peer, content.token, ASK_MS, &(struct error){0}) == 0)
        there = OWNERSHIP_ABORTED;
    const char *against = objection(&content, there, action, force);
    if (!kind || !kind->settle)
        result =
            error_set(err, ENOENT, "guest %s ended with its process: there is nothing to resolve",
                      content.guest_name);
    else if (against)
        result = error_set(err, EBUSY, "%s", against);
    else
        result = kind->settle(&content.monitor, action == RESOLVE_RESUME, err);
    bool gone = result == -ENOENT || result == -ECONNREFUSED;
    if (result && !(gone && action == RESOLVE_DESTROY)) {
        record_release(record);
        return result;
    }
    error_clear(err);
    snprintf(text, size,
             action == RESOLVE_RESUME ? "guest %s runs here" : "the copy of guest %s here is gone",
             content.guest_name);
    leave_verdict(record, &content, action);
    return 0;
}

bool orphan_was_kept(const uint8_t token[TRANSPORT_TOKEN_SIZE])
{
    struct record_content content;
    struct record *record;

    if (record_adopt(token, RECORD_SOURCE, &record, &content, &(struct error){0}))
        return false;
    record_release(record);
    return content.state == OWNERSHIP_OWNER;
}

static void forget(void *context, struct record *record, const struct record_content *content)
{
    const struct guest_monitor *monitor = context;
    struct error err = {0};

    if (content->monitor.pid != monitor->pid || content->monitor.born != monitor->born ||
        content->state != OWNERSHIP_OWNER) {
        record_release(record);
        return;
    }
    if (content->uncertain && exchange_abort(&content->peer, content->token, ASK_MS, &err))
        log_line(LOG_WARNING,
                 "an earlier migration of this guest died, and its destination does not answer "
                 "(%s): if it "
                 "waits there still, say there wander resolve --destroy",
                 err.text);
    record_remove(record);
}

void orphan_forget(const struct guest_monitor *monitor)
{
    record_adopt_all(RECORD_SOURCE, forget, (void *)monitor);
}
