/* The destination against a source that this test plays by hand: what becomes of a PREPARED guest.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "migrate/guest/synthetic/synthetic.h"
#include "migrate/incoming.h"
#include "migrate/record.h"
#include "transport/base/clock.h"
#include "transport/base/wire.h"

enum { MEMORY = 8 << 20, STEP_MS = 10000 };

static uint64_t memory = MEMORY; /* of the guest; more is announced in fragments */

struct stage {
    struct guest *original;
    struct incoming *incoming;
    struct transport *lanes;
    struct hello hello;
    struct address receiver, session; /* where the destination listens: first port, session port */
    int control;
    int answers;      /* our own session port */
    atomic_int state; /* what we say of ourselves; OWNERSHIP_NONE: nothing */
    atomic_bool over;
    pthread_t answering;
    char folder[64];
};

static void send_one(int socket, enum message_type type, const void *body, size_t size)
{
    struct error err = {0};

    cr_assert_eq(exchange_write(socket, type, body, size, clock_now() + STEP_MS * NS_PER_MS, &err),
                 0, "%s", err.text);
}

/* The next message that is no heartbeat; pings are answered. */
static struct message next_message(int socket)
{
    struct error err = {0};
    struct message m;

    for (;;) {
        int result = exchange_read(socket, &m, clock_now() + STEP_MS * NS_PER_MS, -1, &err);
        cr_assert_eq(result, 0, "nothing came: %s", err.text);
        if (m.type != MESSAGE_PING && m.type != MESSAGE_PONG)
            return m;
        message_free(&m);
    }
}

static void expect(int socket, enum message_type wanted)
{
    struct message m = next_message(socket);
    char text[256];

    cr_assert_eq(m.type, wanted, "expected %s, came %s: %s", message_name(wanted),
                 message_name(m.type), message_text(&m, text, sizeof(text)));
    message_free(&m);
}

static void *answer_thread(void *stage)
{
    struct stage *s = stage;

    while (!s->over) {
        struct message m;
        int socket = address_accept(s->answers, &(struct error){0});
        if (socket < 0)
            continue;
        if (!s->over && s->state != OWNERSHIP_NONE &&
            exchange_read(socket, &m, clock_now() + NS_PER_S, -1, &(struct error){0}) == 0) {
            struct answer answer = {.state = (uint32_t)s->state};
            uint8_t body[8];
            exchange_write(socket, MESSAGE_ANSWER, body, answer_encode(&answer, body),
                           clock_now() + NS_PER_S, &(struct error){0});
            message_free(&m);
        }
        close(socket);
    }
    return NULL;
}

static void ignore_change(void *context)
{
    (void)context;
}

static void start_destination(struct stage *s)
{
    struct incoming_options options = {.name = "moved"};
    struct migration_observer observer = {.changed = ignore_change};
    struct error err = {0};
    int listener;

    s->receiver = (struct address){.scheme = "tcp", .host = "127.0.0.1"};
    listener = address_listen(&s->receiver, &s->receiver.port, &err);
    cr_assert(listener >= 0, "%s", err.text);
    s->control = address_connect(&s->receiver, STEP_MS, -1, &err);
    cr_assert(s->control >= 0, "%s", err.text);
    cr_assert_eq(
        incoming_start(address_accept(listener, &err), &options, &observer, &s->incoming, &err), 0,
        "%s", err.text);
    close(listener);
}

static void say_hello(struct stage *s, int socket, enum hello_intent intent, uint32_t epoch,
                      uint16_t port)
{
    uint8_t body[PROTO_BODY_SIZE];

    s->hello = (struct hello){.version_min = PROTO_VERSION_MIN,
                              .version_max = PROTO_VERSION_MAX,
                              .intent = (uint8_t)intent,
                              .epoch = epoch,
                              .session_port = port,
                              .lanes = 1,
                              .scheme = "tcp"};
    memset(s->hello.token, 0x77, sizeof(s->hello.token));
    send_one(socket, MESSAGE_HELLO, body, hello_encode(&s->hello, body));
}

static void present_guest(struct stage *s)
{
    struct guest_description description;
    struct accept_reply accept;
    struct error err = {0};
    uint8_t *body;
    size_t size;

    cr_assert_eq(s->original->ops->describe(s->original, &description, &err), 0, "%s", err.text);
    cr_assert_eq(guest_encode(&description, &body, &size, &err), 0);
    send_one(s->control, MESSAGE_GUEST, body, size);
    free(body);
    guest_description_free(&description);
    struct message m = next_message(s->control);
    cr_assert_eq(m.type, MESSAGE_ACCEPT, "came %s", message_name(m.type));
    cr_assert_eq(accept_decode(&m, &accept, &err), 0);
    message_free(&m);
    s->session = s->receiver;
    s->session.port = accept.session_port;
    s->receiver.port = accept.lane_port;
}

/* Every other page of the guest, one extent each. */
static void announce_fragments(struct stage *s, uint64_t bytes)
{
    static struct extents_message message;
    uint8_t body[PROTO_BODY_SIZE];

    for (uint64_t at = 0; at + 2 * GUEST_PAGE_SIZE * PROTO_MAX_EXTENTS <= bytes;) {
        message.count = PROTO_MAX_EXTENTS;
        for (unsigned i = 0; i < PROTO_MAX_EXTENTS; i++, at += 2 * GUEST_PAGE_SIZE)
            message.extents[i] = (struct extent){at, GUEST_PAGE_SIZE};
        send_one(s->control, MESSAGE_EXTENTS, body, extents_encode(&message, body));
        clock_sleep_until(clock_now() + 20 * NS_PER_MS);
    }
}

static void open_lanes(struct stage *s)
{
    struct extents_message none = {.last = 1};
    struct transport_params params = {.epoch = 1, .lanes = 1};
    uint8_t body[PROTO_BODY_SIZE];
    struct error err = {0};

    send_one(s->control, MESSAGE_EXTENTS, body, extents_encode(&none, body));
    memcpy(params.token, s->hello.token, sizeof(params.token));
    cr_assert_eq(transport_new("tcp", &params, &s->lanes, &err), 0, "%s", err.text);
    cr_assert_eq(transport_connect(s->lanes, &s->receiver, STEP_MS, &err), 0, "%s", err.text);
}

static void send_state(struct stage *s)
{
    struct guest_state state = {0};
    struct error err = {0};
    uint64_t no_offset = 0;

    cr_assert_eq(guest_state_append(&state, &no_offset, sizeof(no_offset)), 0);
    cr_assert_eq(s->original->ops->save(s->original, &state, &err), 0, "%s", err.text);
    send_one(s->control, MESSAGE_STATE, state.bytes, state.size);
    guest_state_free(&state);
}

static enum incoming_phase phase(struct stage *s)
{
    struct incoming_status status;

    incoming_get_status(s->incoming, &status);
    return status.phase;
}

static void expect_phase(struct stage *s, enum incoming_phase wanted, int seconds)
{
    uint64_t deadline = clock_now() + (uint64_t)seconds * NS_PER_S;

    while (phase(s) != wanted && clock_now() < deadline)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    cr_expect_eq(phase(s), wanted, "expected phase %d, it is %d", wanted, phase(s));
}

static void set_the_stage(struct stage *s)
{
    struct synthetic_config config = {.name = "g", .memory_bytes = memory, .vcpus = 1};
    struct address any = {.scheme = "tcp", .host = "127.0.0.1"};
    struct error err = {0};
    uint16_t port;

    *s = (struct stage){0};
    strcpy(s->folder, "/tmp/wander-standby-XXXXXX");
    cr_assert(mkdtemp(s->folder));
    setenv("XDG_STATE_HOME", s->folder, 1);
    cr_assert_eq(workload_parse("", &config.workload, &err), 0, "%s", err.text);
    cr_assert_eq(synthetic_guest_new(&config, &s->original, &err), 0, "%s", err.text);
    s->answers = address_listen(&any, &port, &err);
    cr_assert(s->answers >= 0, "%s", err.text);
    pthread_create(&s->answering, NULL, answer_thread, s);
    start_destination(s);
    say_hello(s, s->control, HELLO_NEW, 1, port);
    expect(s->control, MESSAGE_WELCOME);
    present_guest(s);
    if (memory > MEMORY)
        announce_fragments(s, memory);
    open_lanes(s);
}

/* Everything up to PREPARED. */
static void raise_curtain(struct stage *s)
{
    set_the_stage(s);
    send_one(s->control, MESSAGE_PREPARE, NULL, 0);
    expect(s->control, MESSAGE_READY);
    send_state(s);
    send_one(s->control, MESSAGE_LOAD, NULL, 0);
    expect(s->control, MESSAGE_PREPARED);
    expect_phase(s, INCOMING_PREPARED, 5);
}

static void hang_up(struct stage *s)
{
    if (s->control >= 0)
        close(s->control);
    s->control = -1;
}

static int come_back(struct stage *s, uint32_t epoch)
{
    struct error err = {0};
    int socket = address_connect(&s->session, STEP_MS, -1, &err);

    cr_assert(socket >= 0, "%s", err.text);
    say_hello(s, socket, HELLO_RECONNECT, epoch, s->hello.session_port);
    return socket;
}

struct resolved {
    atomic_int result;
    char text[256];
};

static void on_resolved(void *context, int result, const char *text)
{
    struct resolved *r = context;

    snprintf(r->text, sizeof(r->text), "%s", text);
    r->result = result;
}

static void ask_to_resolve(struct stage *s, enum resolve_action action, bool force,
                           struct resolved *r)
{
    struct error err = {0};

    r->result = 1;
    cr_assert_eq(incoming_resolve(s->incoming, action, force, on_resolved, r, &err), 0, "%s",
                 err.text);
}

static int await_resolved(struct resolved *r)
{
    for (int i = 0; i < 2000 && r->result == 1; i++)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    return r->result;
}

static int resolve(struct stage *s, enum resolve_action action, bool force, struct resolved *r)
{
    ask_to_resolve(s, action, force, r);
    return await_resolved(r);
}

/* Nothing ends a prepared guest but a word: here the operator's. */
static void end_incoming(struct stage *s)
{
    struct resolved r = {.result = 1};

    s->state = OWNERSHIP_RELEASED;
    /* Refused where it was started or ended a moment ago: then there is no need. */
    if (incoming_resolve(s->incoming, RESOLVE_DESTROY, true, on_resolved, &r, &(struct error){0}) ==
        0)
        await_resolved(&r);
    incoming_free(s->incoming);
}

static void drop_curtain(struct stage *s)
{
    struct address at = {.scheme = "tcp", .host = "127.0.0.1"};
    char command[128];

    hang_up(s);
    end_incoming(s);
    s->over = true;
    address_of_local(s->answers, "tcp", &at, &(struct error){0});
    close(address_connect(&at, 1000, -1, &(struct error){0}));
    pthread_join(s->answering, NULL);
    transport_close(s->lanes);
    s->original->ops->destroy(s->original);
    snprintf(command, sizeof(command), "rm -rf '%s'", s->folder);
    cr_assert_eq(system(command), 0);
}

Test(standby, commit_starts_it_once_and_is_idempotent, .timeout = 60)
{
    struct stage s;

    raise_curtain(&s);
    send_one(s.control, MESSAGE_COMMIT, NULL, 0);
    expect(s.control, MESSAGE_RUNNING);
    send_one(s.control, MESSAGE_COMMIT, NULL, 0);
    expect(s.control, MESSAGE_RUNNING);
    send_one(s.control, MESSAGE_RELEASE, NULL, 0);
    expect(s.control, MESSAGE_REPORT);
    expect_phase(&s, INCOMING_STARTED, 5);
    drop_curtain(&s);
}

Test(standby, memory_in_fragments_does_not_use_up_the_mappings, .timeout = 60)
{
    struct stage s;

    memory = 1 << 30;
    raise_curtain(&s);
    send_one(s.control, MESSAGE_COMMIT, NULL, 0);
    expect(s.control, MESSAGE_RUNNING);
    drop_curtain(&s);
}

/* A record that is not durable would say after a crash of the host that the guest never started. */
Test(standby, nothing_is_loaded_before_the_record_is_durable, .timeout = 60)
{
    struct stage s;

    set_the_stage(&s);
    send_state(&s);
    send_one(s.control, MESSAGE_LOAD, NULL, 0);
    expect(s.control, MESSAGE_ERROR);
    expect_phase(&s, INCOMING_ABORTED, 5);
    drop_curtain(&s);
}

Test(standby, abort_is_recorded_and_answered, .timeout = 60)
{
    struct stage s;

    raise_curtain(&s);
    send_one(s.control, MESSAGE_ABORT, "changed my mind", 15);
    expect(s.control, MESSAGE_ABORTED);
    expect_phase(&s, INCOMING_ABORTED, 5);
    drop_curtain(&s);
}

/* A guest that takes its time to start, and then fails when told to. */
static struct {
    const struct guest_ops *real;
    atomic_bool under_way, go_on, fails;
} start;

static int hesitant_resume(struct guest *guest, struct error *err)
{
    start.under_way = true;
    while (!start.go_on)
        clock_sleep_until(clock_now() + NS_PER_MS);
    return start.fails ? error_set(err, EIO, "no wish to run") : start.real->resume(guest, err);
}

static void make_it_hesitate(struct stage *s, bool fails)
{
    static struct guest_ops ops;
    struct guest *guest = incoming_guest(s->incoming);

    start.real = guest->ops;
    start.under_way = start.go_on = false;
    start.fails = fails;
    ops = *guest->ops;
    ops.resume = hesitant_resume;
    guest->ops = &ops;
}

static void await_start(void)
{
    for (int i = 0; i < 2000 && !start.under_way; i++)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    cr_assert(start.under_way, "the guest was not started");
}

/* A source that hears STARTED lets its copy go: it must not hear it while the start can still fail.
 */
Test(standby, started_is_not_said_before_it_is_certain, .timeout = 60)
{
    struct stage s;
    enum ownership_state state = OWNERSHIP_NONE;
    struct error err = {0};

    raise_curtain(&s);
    make_it_hesitate(&s, true);
    send_one(s.control, MESSAGE_COMMIT, NULL, 0);
    await_start();
    cr_assert_eq(exchange_ask(&s.session, s.hello.token, STEP_MS, -1, &state, &err), 0, "%s",
                 err.text);
    cr_expect_eq(state, OWNERSHIP_STARTING, "the session port says %s", ownership_name(state));
    state = record_consult(s.hello.token, RECORD_DESTINATION);
    cr_expect_eq(state, OWNERSHIP_STARTING, "the record says %s", ownership_name(state));
    start.go_on = true;
    expect(s.control, MESSAGE_ABORTED);
    expect_phase(&s, INCOMING_ABORTED, 5);
    cr_expect_eq(record_consult(s.hello.token, RECORD_DESTINATION), OWNERSHIP_ABORTED);
    drop_curtain(&s);
}

static void let_files_be_written(bool allowed)
{
    struct rlimit limit;

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = allowed ? limit.rlim_max : 0;
    setrlimit(RLIMIT_FSIZE, &limit);
}

Test(standby, what_cannot_be_recorded_does_not_happen, .timeout = 60)
{
    struct stage s;

    raise_curtain(&s);
    let_files_be_written(false);
    send_one(s.control, MESSAGE_ABORT, "changed my mind", 15);
    send_one(s.control, MESSAGE_COMMIT, NULL, 0);
    s.state = OWNERSHIP_OWNER;
    hang_up(&s);
    clock_sleep_until(clock_now() + 2 * NS_PER_S);
    expect_phase(&s, INCOMING_PREPARED, 0);
    let_files_be_written(true);
    expect_phase(&s, INCOMING_ABORTED, 8);
    cr_expect_eq(record_consult(s.hello.token, RECORD_DESTINATION), OWNERSHIP_ABORTED);
    drop_curtain(&s);
}

Test(standby, a_start_that_failed_unrecorded_is_tried_again, .timeout = 60)
{
    struct stage s;

    raise_curtain(&s);
    make_it_hesitate(&s, true);
    send_one(s.control, MESSAGE_COMMIT, NULL, 0);
    await_start();
    let_files_be_written(false);
    start.go_on = true;
    clock_sleep_until(clock_now() + 100 * NS_PER_MS);
    expect_phase(&s, INCOMING_PREPARED, 0);
    let_files_be_written(true);
    start.fails = false;
    send_one(s.control, MESSAGE_COMMIT, NULL, 0);
    expect(s.control, MESSAGE_RUNNING);
    expect_phase(&s, INCOMING_STARTED, 5);
    cr_expect_eq(record_consult(s.hello.token, RECORD_DESTINATION), OWNERSHIP_STARTED);
    drop_curtain(&s);
}

Test(standby, silence_never_ends_it, .timeout = 60)
{
    struct stage s;

    raise_curtain(&s);
    hang_up(&s);
    clock_sleep_until(clock_now() + 6 * NS_PER_S);
    expect_phase(&s, INCOMING_PREPARED, 0);
    drop_curtain(&s);
}

Test(standby, a_source_that_is_committing_is_waited_for, .timeout = 60)
{
    struct stage s;

    raise_curtain(&s);
    s.state = OWNERSHIP_COMMITTING;
    hang_up(&s);
    clock_sleep_until(clock_now() + 3 * NS_PER_S);
    expect_phase(&s, INCOMING_PREPARED, 0);
    int again = come_back(&s, 2);
    expect(again, MESSAGE_WELCOME);
    send_one(again, MESSAGE_COMMIT, NULL, 0);
    expect(again, MESSAGE_RUNNING);
    expect_phase(&s, INCOMING_STARTED, 5);
    close(again);
    clock_sleep_until(clock_now() + 500 * NS_PER_MS);
    struct incoming_status status;
    incoming_get_status(s.incoming, &status);
    cr_expect(strstr(status.message, "runs here"), "of a guest that runs it says: %s",
              status.message);
    drop_curtain(&s);
}

Test(standby, a_source_that_kept_the_guest_ends_it, .timeout = 60)
{
    struct stage s;

    raise_curtain(&s);
    s.state = OWNERSHIP_OWNER;
    hang_up(&s);
    expect_phase(&s, INCOMING_ABORTED, 8);
    drop_curtain(&s);
}

Test(standby, an_old_epoch_is_turned_away, .timeout = 60)
{
    struct stage s;
    struct message m;

    raise_curtain(&s);
    int old = come_back(&s, 1);
    cr_expect_eq(exchange_read(old, &m, clock_now() + 5 * NS_PER_S, -1, &(struct error){0}),
                 -ECONNRESET, "an old epoch was answered");
    send_one(s.control, MESSAGE_COMMIT, NULL, 0);
    expect(s.control, MESSAGE_RUNNING);
    close(old);
    drop_curtain(&s);
}

Test(standby, a_request_that_comes_too_late_is_answered, .timeout = 60)
{
    struct stage s;
    struct resolved r;

    raise_curtain(&s);
    make_it_hesitate(&s, false);
    send_one(s.control, MESSAGE_COMMIT, NULL, 0);
    await_start();
    ask_to_resolve(&s, RESOLVE_DESTROY, true, &r);
    start.go_on = true;
    cr_expect_eq(await_resolved(&r), -EALREADY, "came %d: %s", r.result, r.text);
    expect_phase(&s, INCOMING_STARTED, 5);
    drop_curtain(&s);
}

Test(standby, what_an_operator_may_do_depends_on_the_source, .timeout = 200)
{
    static const struct {
        enum ownership_state source;
        enum resolve_action action;
        bool force;
        int result;
        enum incoming_phase phase;
    } cases[] = {
        {OWNERSHIP_OWNER, RESOLVE_RESUME, false, -EBUSY, INCOMING_PREPARED},
        {OWNERSHIP_OWNER, RESOLVE_RESUME, true, -EBUSY, INCOMING_PREPARED},
        {OWNERSHIP_OWNER, RESOLVE_DESTROY, false, 0, INCOMING_ABORTED},
        {OWNERSHIP_COMMITTING, RESOLVE_RESUME, false, 0, INCOMING_STARTED},
        {OWNERSHIP_COMMITTING, RESOLVE_DESTROY, false, 0, INCOMING_ABORTED},
        {OWNERSHIP_RELEASED, RESOLVE_RESUME, false, 0, INCOMING_STARTED},
        {OWNERSHIP_RELEASED, RESOLVE_DESTROY, false, -EBUSY, INCOMING_PREPARED},
        {OWNERSHIP_NONE, RESOLVE_RESUME, false, -EBUSY, INCOMING_PREPARED},
        {OWNERSHIP_NONE, RESOLVE_RESUME, true, 0, INCOMING_STARTED},
        {OWNERSHIP_NONE, RESOLVE_DESTROY, false, -EBUSY, INCOMING_PREPARED},
        {OWNERSHIP_NONE, RESOLVE_DESTROY, true, 0, INCOMING_ABORTED},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct stage s;
        struct resolved r;
        raise_curtain(&s);
        s.state = (int)cases[i].source;
        int result = resolve(&s, cases[i].action, cases[i].force, &r);
        cr_expect_eq(result, cases[i].result, "case %zu: expected %d, came %d: %s", i,
                     cases[i].result, result, r.text);
        expect_phase(&s, cases[i].phase, 5);
        drop_curtain(&s);
    }
}
