/* Inside of the source's engine, shared by the files that make it up; nobody else includes it.
 *
 *   migration.c    public face, the session's thread, its end
 *   greeting.c     connection, HELLO, GUEST, lanes
 *   precopy.c      rounds and policy, until the destination is PREPARED
 *   forecast.c     prediction, ETA, and what is learnt for those to come
 *   switchover.c   pause, state, last round, LOAD, verification
 *   commit.c       COMMIT, coming back after a lost connection, in doubt, resolve */
#ifndef MIGRATE_SOURCE_H
#define MIGRATE_SOURCE_H

#include <pthread.h>
#include <stdatomic.h>

#include "migrate/channel.h"
#include "migrate/costs.h"
#include "migrate/cpu_account.h"
#include "migrate/guest/tracker.h"
#include "migrate/migration.h"
#include "migrate/ownership.h"
#include "migrate/record.h"
#include "migrate/resolve.h"
#include "migrate/responder.h"
#include "migrate/rounds.h"
#include "migrate/wakeup.h"

enum {
    SOURCE_CONNECT_MS = 5000,
    SOURCE_LANES_MS = 10000,  /* the connection manager of RDMA repeats itself after 4 s and more */
    SOURCE_ACCEPT_MS = 30000, /* the destination may have to start a hypervisor first */
    SOURCE_REPLY_MS = 10000,  /* for an answer that takes the destination work */
    SOURCE_QUIET_MS =
        100,             /* nobody is woken for the display as long as the guest only just stands */
    SOURCE_HISTORY = 64, /* rounds the policy looks back on */
};

struct migration {
    struct guest *guest;
    struct migration_options options;
    struct migration_observer observer;
    pthread_t thread;
    struct wakeup wakeup;
    atomic_bool cancelled;
    int cancel_event; /* eventfd, readable once cancelled */

    pthread_mutex_t lock;
    struct migration_status status; /* under lock */
    struct resolve_request resolve; /* under lock */
    uint64_t eta_at;                /* under lock: when status.eta_ns was right */
    bool reportable; /* under lock: `measurement` is complete and no longer changes */

    /* The session thread's own. */
    uint8_t token[TRANSPORT_TOKEN_SIZE];
    uint32_t epoch;
    uint64_t accepted_at, last_notify;
    struct cpu_watch cpu;
    uint64_t tracking_at; /* when tracking had started */
    struct costs_key costs_key;
    struct fixed_costs costs; /* of migrations like this one, as known at its start */
    struct channel *channel;
    struct transport *transport;
    struct tracker *tracker;
    struct rounds *rounds;
    struct ownership ownership;
    struct record *record;
    struct responder *responder;
    bool clock_shared;           /* the destination is on this very host */
    struct address session_peer; /* the destination's session port */
    struct guest_state state;
    bool guest_prepared;      /* there may be something to restore */
    bool guest_paused;        /* by us */
    bool asked_again;         /* what became of COMMIT did not come by itself */
    bool destination_settled; /* it has given the guest up and said so */
    struct measurement measurement;
    struct policy_round history[SOURCE_HISTORY];
    size_t history_count;
    uint64_t best_bandwidth; /* bytes/s that a round has shown; 0: none has */
    uint64_t collected_at;   /* clock of the last collect */
    uint64_t paused_at;      /* the switchover's milestones: before the pause, */
    uint64_t saved_at;       /* the state is saved, */
    uint64_t prepared_at;    /* the destination is PREPARED and compared */
    uint64_t dirty_pages;    /* found by the last collect */
    uint64_t state_bytes, fixed_ns,
        pause_delay_ns; /* what the policy reckons with, measured where it could be */
    unsigned throttle;
};

/* Status and progress. */
void source_set_phase(struct migration *m, enum migration_phase phase);
/* Without telling the observer: while the guest stands still nobody else shall want the CPU. */
void source_enter_phase(struct migration *m, enum migration_phase phase);
void source_say(struct migration *m, const char *format, ...) __attribute__((format(printf, 2, 3)));
void source_notify(struct migration *m, bool now);

/* -ECANCELED once cancelled, the channel's error once it is lost. */
int source_interrupted(void *migration, struct error *err);
/* Waits for the next message of type `wanted`; anything else is an error (see message_unexpected).
 * `cancellable`: a cancel ends the wait. */
int source_receive(struct migration *m, enum message_type wanted, int timeout_ms, bool cancellable,
                   struct message *out, struct error *err);

/* How much the workload has written, MEASUREMENT_UNKNOWN when the guest keeps no account. */
uint64_t source_pages_written(struct migration *m);

/* The totals so far, while the lanes are there to be asked. */
void source_note_totals(struct migration *m);

/* Recalls what migrations like this one cost. Blocks on the file system. */
void source_recall(struct migration *m, const struct guest_description *guest);
/* Before tracking starts: the prediction, where a rehearsal came before. */
void source_forecast(struct migration *m);
/* After a round: the ETA anew, for the round's account, too. `last`: the switchover is next, and
 * what the guest writes meanwhile is paid for in downtime. */
void source_refine(struct migration *m, const struct policy_input *now, bool last);
/* Keeps what the completed migration cost. Blocks on the file system; a failure is logged only. */
void source_learn(struct migration *m);

int source_greet(struct migration *m, struct error *err);
int source_precopy(struct migration *m, struct error *err);

/* 0: the destination is PREPARED. 1: more was dirty than foretold; the guest runs again, what was
 * collected awaits the next round. -errno: the guest is paused. */
int source_switch_over(struct migration *m, const struct policy_decision *decision,
                       struct error *err);
struct policy_input source_policy_input(struct migration *m);

/* Adds a round to history and measurement, after its collect. */
int source_collect(struct migration *m, struct error *err);
int source_finish_round(struct migration *m, uint64_t started, uint64_t wire_before, bool paused,
                        struct error *err);

/* From PREPARED to an end that is certain: 0 the guest runs at the destination; -ECONNABORTED it
 * does not, and we are OWNER again. Returns from doubt only when resolved. */
int source_commit(struct migration *m, struct error *err);
/* After the commit: the destination's half of the measurement, if it comes. */
void source_await_report(struct migration *m);
/* Gives up before COMMITTING: tells the destination, over a new connection if need be. Best effort,
 * bounded. */
void source_tell_abort(struct migration *m, const char *why);

#endif
