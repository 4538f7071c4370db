/* A migration as its source sees it: the engine with its session thread. */
#ifndef MIGRATE_MIGRATION_H
#define MIGRATE_MIGRATION_H

#include "migrate/guest/guest.h"
#include "migrate/measurement.h"
#include "migrate/policy.h"
#include "transport/base/address.h"
#include "transport/transport.h"

enum { MIGRATION_DEFAULT_DOWNTIME_MS = 300, MIGRATION_DEFAULT_LANES = 2 };

struct rehearsal;

struct migration_options {
    struct address destination;
    struct policy_limits limits;
    uint64_t max_bandwidth; /* bytes/s, 0: unlimited */
    unsigned lanes;
    bool verify;
    /* How one-sided transports go about it; see struct transport_params. */
    enum transport_operation operation;
    enum transport_registration registration;
    uint64_t pin_limit; /* bytes, of this end; 0: TRANSPORT_DEFAULT_PIN_LIMIT */
    unsigned dscp;
    char tracker[24]; /* "": the guest's default */
    char filter[128]; /* "": none; see transport_wrap */
    /* Of this guest, to begin the prediction with; outlives the migration. NULL: none. Of no use
     * where it was made with other options than these (limits may differ). */
    const struct rehearsal *rehearsal;
};

enum migration_phase {
    MIGRATION_CONNECTING,
    MIGRATION_PRECOPY,
    MIGRATION_SWITCHOVER,
    MIGRATION_COMMITTING,
    MIGRATION_IN_DOUBT,  /* waits for migration_resolve; the guest is paused */
    MIGRATION_COMPLETED, /* the guest runs at the destination; this process may end */
    MIGRATION_FAILED,    /* the guest runs on here */
    MIGRATION_STUCK,     /* failed, and the guest could not be resumed */
};

/* A snapshot for progress displays. */
struct migration_status {
    enum migration_phase phase;
    bool finished; /* no thread works on it any more (never while in doubt) */
    char session[33];
    unsigned round;
    uint64_t elapsed_ns;
    uint64_t eta_ns; /* until the source is free; UINT64_MAX: as things go, never; 0: not known yet */
    uint64_t round_bytes, round_bytes_done;
    uint64_t guest_bytes, wire_bytes;
    uint64_t bandwidth;  /* bytes/s */
    uint64_t dirty_rate; /* bytes/s */
    uint64_t predicted_downtime_ns;
    unsigned throttle;
    char message[ERROR_TEXT_SIZE]; /* what is going on, or what went wrong and what to do */
};

/* Called from the session thread: something in the status changed (at most 20 times a second, and
 * at every change of phase). Must not block: wake an event loop. */
struct migration_observer {
    void (*changed)(void *context);
    void *context;
};

enum resolve_action { RESOLVE_RESUME, RESOLVE_DESTROY };
/* Called once from the session thread: 0 and what was done, or -errno and why not. */
typedef void resolve_done_fn(void *context, int result, const char *text);

struct migration;

/* Starts moving `guest` (which outlives the migration) and returns at once. -EINVAL, -EAGAIN. Any
 * thread. */
int migration_start(struct guest *guest, const struct migration_options *options,
                    const struct migration_observer *observer, struct migration **out,
                    struct error *err);
/* Asks for an end: the guest goes on at the source, as long as COMMIT is not under way. Any thread,
 * at once. */
void migration_cancel(struct migration *m);
void migration_get_status(struct migration *m, struct migration_status *out); /* any thread */
/* In doubt only (-EINVAL otherwise): asks the destination and acts; without its word only with
 * `force`. Returns at once. */
int migration_resolve(struct migration *m, enum resolve_action action, bool force,
                      resolve_done_fn *done, void *context, struct error *err);
/* After status.finished, or while in doubt: the measurement as JSON or as a table; the caller
 * frees. NULL before. */
char *migration_report_json(struct migration *m);
char *migration_report_table(struct migration *m);
/* Exit code of `wander migrate`: 0 completed, 1 failed and the guest runs here, 3 in doubt, 4
 * stuck. -1 before the end. */
int migration_exit_code(struct migration *m);
/* Joins the thread and frees. Until then the session port goes on telling what became of the
 * session: free a failed migration late, for a destination that was cut off has nobody else to ask.
 * Blocks until finished (cancel first); not for a thread that must not block. */
void migration_free(struct migration *m);

#endif
