/* Inside of the destination's session, shared by the files that make it up; nobody else includes
 * it.
 *
 *   incoming.c   public face, the session's thread, its end
 *   receiving.c  greeting, checks, memory and lanes, until PREPARED
 *   probing.c    greeted with a question only: what would be refused, how lanes would do
 *   standby.c    PREPARED: waits for COMMIT or ABORT, through lost connections, and for the
 * operator; then STARTED */
#ifndef MIGRATE_DESTINATION_H
#define MIGRATE_DESTINATION_H

#include <pthread.h>
#include <stdatomic.h>

#include "migrate/channel.h"
#include "migrate/cpu_account.h"
#include "migrate/incoming.h"
#include "migrate/ownership.h"
#include "migrate/page/page.h"
#include "migrate/prefault.h"
#include "migrate/record.h"
#include "migrate/resolve.h"
#include "migrate/responder.h"
#include "migrate/wakeup.h"

enum {
    DESTINATION_GREETING_MS = 5000,
    DESTINATION_POLL_MS = 200, /* how often lanes are looked at for errors */
};

struct incoming {
    struct incoming_options options;
    struct guest_host host; /* the session thread's */
    struct migration_observer observer;
    pthread_t thread;
    struct wakeup wakeup;
    atomic_bool cancelled;
    int cancel_event; /* eventfd, readable once cancelled */

    pthread_mutex_t lock;
    struct incoming_status status;  /* under lock */
    struct resolve_request resolve; /* under lock */
    bool resolvable;                /* under lock: requests are served */
    struct guest *guest;            /* under lock while the thread runs */
    int pending_socket;             /* under lock: a connection that comes back, or -1 */
    uint32_t pending_epoch;

    /* The session thread's own. */
    int socket; /* until the channel takes it over; then -1 */
    uint64_t began_at, resident_before;
    struct cpu_watch cpu;
    struct hello hello;
    uint32_t epoch;
    struct channel *channel; /* NULL while the source is gone */
    struct transport *transport;
    struct page_target target;
    unsigned advised;          /* extents that were to get huge pages */
    struct prefault *prefault; /* in the first round */
    struct ownership ownership;
    struct record *record;
    bool is_durable; /* "may have started" is on disk: nothing is loaded before */
    struct responder *responder;
    struct address source_peer; /* the source's session port */
    bool start_is_open;         /* it was told to start: nobody knows whether it did */
    uint8_t *state;             /* of STATE, owned */
    size_t state_size;
    struct guest_load_context load_context;
    struct destination_measurement measurement;
};

/* The next message, whatever it is; lanes are looked at meanwhile. -ETIMEDOUT at `deadline`
 * (clock_now). */
int destination_next_message(struct incoming *in, uint64_t deadline, struct message *out,
                             struct error *err);
/* Everything that keeps the guest from coming here, at once; gives `d` its name on this host. */
void destination_judge(struct incoming *in, struct guest_description *d, struct reasons *reasons);
/* What is in the way of lanes here. `memory_bytes`: what counts if the source did not say. */
void destination_look_at_lanes(struct incoming *in, uint64_t memory_bytes,
                               struct transport_findings *findings);

void destination_set_phase(struct incoming *in, enum incoming_phase phase);
void destination_say(struct incoming *in, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* HELLO, the guest's description, memory and lanes. 1: go on; 0: that was all (a query, a check, a
 * refusal); -errno. */
int destination_greet(struct incoming *in, struct error *err);
/* After WELCOME, intent CHECK: GUEST is judged, PROBE answered, one lane let in. 0, or -errno. */
int destination_answer_check(struct incoming *in, struct error *err);
/* Rounds, until PREPARED (0). */
int destination_receive(struct incoming *in, struct error *err);
/* From PREPARED to the end: 0 STARTED, -ECONNABORTED recorded as ABORTED. */
int destination_stand_by(struct incoming *in, struct error *err);
/* After STARTED: answers until the source has acknowledged or stays away. */
void destination_see_off(struct incoming *in);

/* Kills the lanes of this epoch; nothing lands any more once it returns. */
void destination_close_lanes(struct incoming *in);

#endif
