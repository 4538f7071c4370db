/* What the parts of a guest's process share: guest_start.c (how it begins), guest_process.c (its
 * life), guest_requests.c (what clients ask) and guest_status.c (what it says of itself).
 * Everything belongs to the loop's thread unless it says otherwise. */
#ifndef TOOLS_GUEST_STATE_H
#define TOOLS_GUEST_STATE_H

#include <uv.h>

#include "migrate/rehearsal.h"
#include "tools/control_server.h"
#include "tools/guest_process.h"

struct guest_process;

/* Work that may block, one piece at a time: `run` on a worker thread, touching only the job; then
 * `done` on the loop's. */
struct job {
    uv_work_t work;
    void (*run)(struct job *job);
    void (*done)(struct guest_process *process, struct job *job);
    int result;
    struct error err;
    guest_maker_fn *make;
    void *make_context;
    struct guest *guest;
    struct migration *migration;
    struct incoming *incoming;
    struct guest_description description;
    char *report, *table;
    int exit_code;
    struct migration_options options;
    struct check_report check;
    struct rehearsal_wish wish;
    struct rehearsal rehearsal;
    int cancel_fd; /* of the prediction under way: readable once it is to end; else -1 */
    uint64_t client;
};

/* A `resolve` under way; `finished`, `result` and `text` are the session thread's, under the mutex.
 */
struct resolution {
    bool active, finished;
    enum resolve_action action;
    uint64_t client;
    int result;
    char text[ERROR_TEXT_SIZE];
};

struct guest_process {
    uv_loop_t loop;
    uv_async_t changed; /* sent by session threads */
    uv_signal_t interrupt, terminate;
    struct control_server *server; /* NULL before an arriving guest has a name */

    uv_mutex_t mutex; /* guards claim and resolution, which session threads touch; nothing else is
                         locked inside */
    struct name_claim claim;
    bool claimed;
    struct resolution resolution;

    bool busy; /* the job runs */
    struct job job;

    struct guest *guest; /* NULL before it exists, while it is still the incoming's, and once it is
                            being ended */
    struct guest_description facts; /* without its platform part; kind "" before it is known */
    struct incoming *incoming;
    struct migration *migration;
    struct migration *past;     /* the newest that failed: still answers its destination; or NULL */
    struct address destination; /* of the newest migration */
    struct rehearsal rehearsal; /* the newest, for the migrations that follow it */
    bool rehearsed;             /* there is one */
    uint64_t subscriber;        /* the client that asked for it */
    int told;                   /* the phase in which its report was given last, or -1 */

    char last_message[ERROR_TEXT_SIZE]; /* of the newest migration that ended; "" when there was
                                           none */
    int last_exit_code;

    uv_poll_t ended;     /* of a guest that can end by itself */
    uv_poll_t lifeline;  /* of an attached one: who wanted it has gone */
    uv_timer_t patience; /* of an attached one that nobody moves */
    int lifeline_fd;     /* -1: not attached */
    bool watched;        /* `ended` is in use */
    bool leaving;        /* ends, but the guest goes on by itself */

    bool arriving, announced; /* came from a listener; the listener knows that the guest runs */
    int events, once;         /* see struct arrival */

    bool stuck;       /* ours, paused, and could not be resumed after a failed migration */
    bool moved;       /* the migration has completed: what is left here is an empty shell */
    bool destroyed;   /* resolved so: ends once the migration has */
    bool ending;      /* asked to end */
    bool stopped;     /* the loop is being left */
    uint64_t quitter; /* the client that asked for the end; 0: a signal */
    int exit_code;
};

/* Decides what comes next from all the above; after every change. */
void guest_process_step(struct guest_process *p);
/* Starts a job that the caller has filled in, `done` included. Only while !busy. */
void guest_process_start_job(struct guest_process *p, void (*run)(struct job *job),
                             void (*done)(struct guest_process *process, struct job *job));
/* Makes the guest, lets it run, and serves it. Only while !busy. */
void guest_process_make(struct guest_process *p, guest_maker_fn *make, void *context);
/* Serves a guest that is there (NULL: none came); frees `incoming`, which may be NULL. Only while
 * !busy. */
void guest_process_adopt(struct guest_process *p, struct guest *guest, struct incoming *incoming);
/* A line for the listener that started this process, if one did. */
void guest_process_tell_listener(struct guest_process *p, const char *event, const char *key,
                                 const char *text);
/* Leaves the loop. */
void guest_process_stop(struct guest_process *p);
/* Asks for the end; `client` gets an answer (0: nobody). */
void guest_process_end(struct guest_process *p, uint64_t client);

/* The guest that runs or ran here, for calls that any thread may make; NULL when there is none. */
struct guest *guest_process_guest(struct guest_process *p);

/* Asks the prediction under way to end, soon; false when there is none. */
bool guest_process_cancel_prediction(struct guest_process *p);

/* What the control server calls; `context` is the process. */
void guest_process_request(void *context, uint64_t client, const struct control_request *request);
void guest_process_gone(void *context, uint64_t client);

/* The answer to "status", and to "workload" (NULL when the guest keeps no account). */
cJSON *guest_process_status(struct guest_process *p);
cJSON *guest_workload_json(struct guest *guest);

#endif
