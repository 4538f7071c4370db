/* A migration as its destination sees it: one session, in a process of its own. */
#ifndef MIGRATE_INCOMING_H
#define MIGRATE_INCOMING_H

#include "migrate/guest/guest.h"
#include "migrate/migration.h"

struct incoming_options {
    char name[GUEST_NAME_SIZE]; /* "": as the source calls it */
    char kind[GUEST_KIND_SIZE]; /* "": any; else only this kind is accepted */
    char filter[128];           /* around the transport's receiving end; "": none */
    uint64_t pin_limit;         /* bytes, of this end; 0: TRANSPORT_DEFAULT_PIN_LIMIT */
    char *const *command;       /* as guest_host.command; outlives the incoming */
    char runtime[256];          /* as guest_host.runtime */
    /* Says whether a name is free on this host; adds a reason if not. `keep`: it is taken from then
     * on; else this is a question only. From the session thread. May be NULL. */
    void (*name_check)(void *context, const char *name, bool keep, struct reasons *reasons);
    void *name_context;
};

enum incoming_phase {
    INCOMING_GREETING, /* nothing known yet */
    INCOMING_QUERY,    /* somebody asked what became of a session, and was answered */
    INCOMING_RECEIVING,
    INCOMING_PREPARED, /* complete, paused, not ours yet; in doubt when the source is silent */
    INCOMING_STARTED,  /* the guest runs here */
    INCOMING_ABORTED,  /* nothing is left of it */
};

struct incoming_status {
    enum incoming_phase phase;
    bool finished; /* no thread works on it any more; with STARTED: the source has acknowledged or
                      is gone */
    bool source_silent; /* PREPARED: the control channel is lost, the source does not answer */
    char session[33];
    char guest_name[GUEST_NAME_SIZE];
    uint64_t elapsed_ns;
    char message[ERROR_TEXT_SIZE];
};

struct incoming;

/* Serves the accepted control connection `socket` (owned from here on, also on error) in a thread
 * of its own. */
int incoming_start(int socket, const struct incoming_options *options,
                   const struct migration_observer *observer, struct incoming **out,
                   struct error *err);
void incoming_get_status(struct incoming *in, struct incoming_status *out); /* any thread */
/* The guest once it exists (RECEIVING with a guest accepted, PREPARED, STARTED), else NULL. Owned
 * by the incoming until STARTED and finished; then incoming_take_guest moves the ownership to the
 * caller. */
struct guest *incoming_guest(struct incoming *in);
struct guest *incoming_take_guest(struct incoming *in);
/* Before PREPARED: gives up and discards. Later: no effect. Any thread, at once. */
void incoming_cancel(struct incoming *in);
/* PREPARED only. As migration_resolve. */
int incoming_resolve(struct incoming *in, enum resolve_action action, bool force,
                     resolve_done_fn *done, void *context, struct error *err);
/* Joins and frees (the guest too unless taken). Blocks. */
void incoming_free(struct incoming *in);

/* What `wander check` finds; each is text in lines that begin with the end they are about. */
struct check_report {
    struct reasons ends;    /* what lanes would run over; none for transports without a device */
    struct reasons refused; /* what would be refused, or cannot work */
    struct reasons notes;   /* what may be worse than it could */
};

/* `wander check`: looks at this end, connects, presents the description of `guest` (NULL:
 * CHECK_BYTES of memory are assumed), and tries a lane if nothing stands in its way. Of `options`
 * it reads destination, operation, registration, pin_limit and dscp. Moves nothing. Returns 0 with
 * the report filled (check_report_free), -errno when the peer cannot be asked. Blocks up to 20 s.
 */
enum { CHECK_BYTES = 64 << 20 };
int migration_check(struct guest *guest, const struct migration_options *options,
                    struct check_report *report, struct error *err);
void check_report_free(struct check_report *report);

#endif
