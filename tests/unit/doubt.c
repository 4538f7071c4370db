/* The source against a destination that this test plays by hand: what it does with every way in
 * which COMMIT can end. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "migrate/guest/synthetic/synthetic.h"
#include "migrate/migration.h"
#include "transport/base/clock.h"

enum { MEMORY = 8 << 20, STEP_MS = 10000 };

/* What the destination does when it hears COMMIT, and what it says to whoever asks later. */
struct script {
    enum message_type reply;     /* RUNNING, ABORTED, or 0: hang up */
    enum ownership_state answer; /* to queries */
    bool takes_back;             /* accepts a reconnection and then says `second_reply` */
    enum message_type second_reply;
};

struct stage {
    struct script script;
    int listener, session_listener;
    struct address address;
    uint16_t session_port;
    pthread_t session, queries;
    atomic_bool over;
    atomic_uint commits, aborts, reconnect_epoch;
    atomic_int answer;            /* to queries, at first as the script says */
    atomic_bool hesitates, asked; /* queries are answered late; one has come */
    struct guest *guest;
    struct migration *migration;
    char folder[64];
};

static void send_one(int socket, enum message_type type, const void *body, size_t size)
{
    exchange_write(socket, type, body, size, clock_now() + STEP_MS * NS_PER_MS, &(struct error){0});
}

static void send_reply(int socket, enum message_type type)
{
    uint8_t timing[8] = {0};

    if (type == MESSAGE_RUNNING)
        send_one(socket, type, timing, sizeof(timing));
    else
        send_one(socket, type, "by the script", 13);
}

/* The next message that is no heartbeat; false at the end. */
static bool next_message(int socket, struct message *out)
{
    for (;;) {
        if (exchange_read(socket, out, clock_now() + STEP_MS * NS_PER_MS, -1, &(struct error){0}))
            return false;
        if (out->type == MESSAGE_PING) {
            uint8_t body[16];
            struct ping ping;
            ping_decode(out, &ping, &(struct error){0});
            struct pong pong = {.ping_sent_at = ping.sent_at, .now = clock_now()};
            send_one(socket, MESSAGE_PONG, body, pong_encode(&pong, body));
        }
        if (out->type != MESSAGE_PING && out->type != MESSAGE_PONG)
            return true;
        message_free(out);
    }
}

static struct transport *open_lanes(const struct hello *hello, void *memory, uint16_t *port)
{
    struct transport_params params = {.epoch = hello->epoch, .lanes = hello->lanes};
    struct address at = {.scheme = "tcp", .host = "127.0.0.1"};
    struct transport *t;
    struct error err = {0};

    memcpy(params.token, hello->token, sizeof(params.token));
    cr_assert_eq(transport_new("tcp", &params, &t, &err), 0, "%s", err.text);
    cr_assert_eq(transport_open_region(t, &(struct transport_region){0, memory, MEMORY}, &err), 0,
                 "%s", err.text);
    cr_assert_eq(transport_listen(t, &at, port, &err), 0, "%s", err.text);
    return t;
}

static void play(struct stage *s, int socket, struct transport *lanes)
{
    struct message m;
    uint8_t body[8] = {0};
    bool on = true;

    while (on && next_message(socket, &m)) {
        switch (m.type) {
        case MESSAGE_EXTENTS:
            if (m.body[4] == 1)
                transport_accept(lanes, STEP_MS, &(struct error){0});
            break;
        case MESSAGE_PREPARE:
            send_one(socket, MESSAGE_READY, NULL, 0);
            break;
        case MESSAGE_LOAD:
            send_one(socket, MESSAGE_PREPARED, body, sizeof(body));
            break;
        case MESSAGE_COMMIT:
            s->commits++;
            if (s->script.reply)
                send_reply(socket, s->script.reply);
            on = s->script.reply != 0;
            break;
        default:
            break;
        }
        message_free(&m);
    }
}

static void *session_thread(void *stage)
{
    struct stage *s = stage;
    struct error err = {0};
    struct message m;
    struct hello hello;
    struct welcome welcome = {.version = PROTO_VERSION_MAX, .epoch = 1};
    struct accept_reply accept = {.session_port = s->session_port};
    uint8_t body[PROTO_BODY_SIZE];
    void *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int socket = address_accept(s->listener, &err);

    cr_assert(socket >= 0 && next_message(socket, &m));
    cr_assert_eq(hello_decode(&m, &hello, &err), 0, "%s", err.text);
    message_free(&m);
    send_one(socket, MESSAGE_WELCOME, body, welcome_encode(&welcome, body));
    cr_assert(next_message(socket, &m) && m.type == MESSAGE_GUEST);
    message_free(&m);
    struct transport *lanes = open_lanes(&hello, memory, &accept.lane_port);
    send_one(socket, MESSAGE_ACCEPT, body, accept_encode(&accept, body));
    play(s, socket, lanes);
    close(socket);
    transport_close(lanes);
    munmap(memory, MEMORY);
    return NULL;
}

static void play_reconnected(struct stage *s, int socket, const struct hello *hello)
{
    struct welcome welcome = {.version = PROTO_VERSION_MAX, .epoch = hello->epoch};
    uint8_t body[PROTO_BODY_SIZE];
    struct message m;

    s->reconnect_epoch = hello->epoch;
    send_one(socket, MESSAGE_WELCOME, body, welcome_encode(&welcome, body));
    while (next_message(socket, &m)) {
        if (m.type == MESSAGE_COMMIT || m.type == MESSAGE_ABORT) {
            *(m.type == MESSAGE_COMMIT ? &s->commits : &s->aborts) += 1;
            send_reply(socket, s->script.second_reply);
        }
        message_free(&m);
    }
}

/* The session port: queries, and the source that comes back. Ends with a connection after `over`.
 */
static void *query_thread(void *stage)
{
    struct stage *s = stage;

    while (!s->over) {
        struct message m;
        struct hello hello;
        struct answer answer = {0};
        uint8_t body[8];
        int socket = address_accept(s->session_listener, &(struct error){0});
        if (socket < 0)
            continue;
        if (!s->over && next_message(socket, &m)) {
            cr_assert_eq(hello_decode(&m, &hello, &(struct error){0}), 0);
            message_free(&m);
            s->asked = s->hesitates && hello.intent == HELLO_QUERY;
            while (s->asked && s->hesitates)
                clock_sleep_until(clock_now() + NS_PER_MS);
            answer.state = (uint32_t)s->answer;
            if (hello.intent == HELLO_QUERY)
                send_one(socket, MESSAGE_ANSWER, body, answer_encode(&answer, body));
            else if (s->script.takes_back)
                play_reconnected(s, socket, &hello);
        }
        close(socket);
    }
    return NULL;
}

static void ignore_change(void *context)
{
    (void)context;
}

static void raise_curtain(struct stage *s, const struct script *script)
{
    struct synthetic_config config = {.name = "g", .memory_bytes = MEMORY, .vcpus = 1};
    struct migration_options options = {.lanes = 1, .limits = {.downtime_ns = 300 * NS_PER_MS}};
    struct migration_observer observer = {.changed = ignore_change};
    struct address any = {.scheme = "tcp", .host = "127.0.0.1"};
    struct error err = {0};

    *s = (struct stage){.script = *script, .answer = (int)script->answer};
    strcpy(s->folder, "/tmp/wander-doubt-XXXXXX");
    cr_assert(mkdtemp(s->folder));
    setenv("XDG_STATE_HOME", s->folder, 1);
    s->address = any;
    s->listener = address_listen(&any, &s->address.port, &err);
    s->session_listener = address_listen(&any, &s->session_port, &err);
    cr_assert(s->listener >= 0 && s->session_listener >= 0, "%s", err.text);
    cr_assert_eq(workload_parse("touch=1M,hot=64K,rate=100", &config.workload, &err), 0, "%s",
                 err.text);
    cr_assert_eq(synthetic_guest_new(&config, &s->guest, &err), 0, "%s", err.text);
    cr_assert_eq(s->guest->ops->resume(s->guest, &err), 0, "%s", err.text);
    pthread_create(&s->session, NULL, session_thread, s);
    pthread_create(&s->queries, NULL, query_thread, s);
    options.destination = s->address;
    cr_assert_eq(migration_start(s->guest, &options, &observer, &s->migration, &err), 0, "%s",
                 err.text);
}

static void drop_curtain(struct stage *s)
{
    struct address at = {.scheme = "tcp", .host = "127.0.0.1", .port = s->session_port};
    char command[128];

    s->over = true;
    int knock = address_connect(&at, 1000, -1, &(struct error){0});
    pthread_join(s->queries, NULL);
    if (knock >= 0)
        close(knock);
    migration_free(s->migration);
    pthread_join(s->session, NULL);
    s->guest->ops->destroy(s->guest);
    close(s->listener);
    close(s->session_listener);
    snprintf(command, sizeof(command), "rm -rf '%s'", s->folder);
    cr_assert_eq(system(command), 0);
}

/* Waits until the migration has ended or is in doubt; returns its exit code. */
static int await_end(struct stage *s, int seconds)
{
    uint64_t deadline = clock_now() + (uint64_t)seconds * NS_PER_S;
    int code;

    while ((code = migration_exit_code(s->migration)) < 0 && clock_now() < deadline)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    return code;
}

static void expect_end(struct stage *s, int code, bool paused)
{
    struct migration_status status;
    int came = await_end(s, 30);

    migration_get_status(s->migration, &status);
    cr_expect_eq(came, code, "expected exit code %d, came %d: %s", code, came, status.message);
    cr_expect_eq(s->guest->ops->paused(s->guest), paused, "the guest at the source %s",
                 paused ? "runs" : "is paused");
}

static const struct script runs = {.reply = MESSAGE_RUNNING};
static const struct script aborts = {.reply = MESSAGE_ABORTED};
static const struct script says_aborted = {.answer = OWNERSHIP_ABORTED};
static const struct script says_started = {.answer = OWNERSHIP_STARTED};
static const struct script says_unknown = {.answer = OWNERSHIP_UNKNOWN};
static const struct script says_dead = {.answer = OWNERSHIP_STARTED_DEAD};
static const struct script comes_back = {
    .answer = OWNERSHIP_PREPARED, .takes_back = true, .second_reply = MESSAGE_RUNNING};
static const struct script says_aborted_again = {
    .answer = OWNERSHIP_PREPARED, .takes_back = true, .second_reply = MESSAGE_ABORTED};

static void expect_learnt(const struct stage *s, bool learnt)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/wander/costs.json", s->folder);
    cr_expect_eq(access(path, F_OK) == 0, learnt, "expected %s to be learnt for predictions",
                 learnt ? "it" : "nothing");
}

static void one_act(const struct script *script, int code, bool paused)
{
    struct stage s;

    raise_curtain(&s, script);
    expect_end(&s, code, paused);
    expect_learnt(&s, script->reply == MESSAGE_RUNNING);
    drop_curtain(&s);
}

Test(doubt, running_ends_it, .timeout = 60)
{
    one_act(&runs, 0, true);
}

Test(doubt, aborted_gives_the_guest_back, .timeout = 60)
{
    one_act(&aborts, 1, false);
}

Test(doubt, a_later_word_of_aborted_gives_it_back, .timeout = 60)
{
    one_act(&says_aborted, 1, false);
}

Test(doubt, a_later_word_of_started_releases_it, .timeout = 60)
{
    one_act(&says_started, 0, true);
}

Test(doubt, commit_is_said_again_on_a_new_epoch, .timeout = 60)
{
    struct stage s;

    raise_curtain(&s, &comes_back);
    expect_end(&s, 0, true);
    cr_expect_eq(s.commits, 2, "COMMIT was said %u times", s.commits);
    cr_expect_eq(s.reconnect_epoch, 2, "came back in epoch %u", s.reconnect_epoch);
    expect_learnt(&s, false);
    drop_curtain(&s);
}

Test(doubt, an_aborted_session_says_so_when_asked_again, .timeout = 60)
{
    one_act(&says_aborted_again, 1, false);
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

static int resolve(struct stage *s, enum resolve_action action, bool force, struct resolved *r)
{
    struct error err = {0};

    r->result = 1;
    cr_assert_eq(migration_resolve(s->migration, action, force, on_resolved, r, &err), 0, "%s",
                 err.text);
    for (int i = 0; i < 6000 && r->result == 1; i++)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    return r->result;
}

Test(doubt, silence_keeps_the_guest_paused_until_forced, .timeout = 90)
{
    struct stage s;
    struct resolved r;

    raise_curtain(&s, &says_unknown);
    expect_end(&s, 3, true);
    cr_expect_eq(resolve(&s, RESOLVE_RESUME, false, &r), -EBUSY,
                 "without a word and without force: %s", r.text);
    cr_expect(strstr(r.text, "--force"), "the refusal must name --force: %s", r.text);
    expect_end(&s, 3, true);
    cr_expect_eq(resolve(&s, RESOLVE_RESUME, true, &r), 0, "%s", r.text);
    clock_sleep_until(clock_now() + 200 * NS_PER_MS);
    while (migration_exit_code(s.migration) == 3)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    expect_end(&s, 1, false);
    drop_curtain(&s);
}

Test(doubt, started_and_dead_since_is_not_aborted, .timeout = 90)
{
    struct stage s;
    struct resolved r;

    raise_curtain(&s, &says_dead);
    expect_end(&s, 3, true);
    cr_expect_eq(resolve(&s, RESOLVE_DESTROY, true, &r), 0, "%s", r.text);
    while (migration_exit_code(s.migration) == 3)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    expect_end(&s, 0, true);
    drop_curtain(&s);
}

Test(doubt, a_request_that_comes_too_late_is_answered, .timeout = 90)
{
    struct stage s;
    struct resolved r = {.result = 1};
    struct error err = {0};

    raise_curtain(&s, &says_unknown);
    expect_end(&s, 3, true);
    s.hesitates = true;
    for (int i = 0; i < 2000 && !s.asked; i++)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    cr_expect_eq(migration_resolve(s.migration, RESOLVE_DESTROY, true, on_resolved, &r, &err), 0,
                 "%s", err.text);
    s.answer = OWNERSHIP_ABORTED;
    s.hesitates = false;
    for (int i = 0; i < 2000 && r.result == 1; i++)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    cr_expect_eq(r.result, -EALREADY, "came %d: %s", r.result, r.text);
    while (migration_exit_code(s.migration) == 3)
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    expect_end(&s, 1, false);
    drop_curtain(&s);
}

/* Reports are asked for all the while the doubt ends (for the race detector). */
Test(doubt, a_report_may_be_asked_for_when_it_ends, .timeout = 90)
{
    struct stage s;

    raise_curtain(&s, &says_unknown);
    expect_end(&s, 3, true);
    s.answer = OWNERSHIP_STARTED;
    while (migration_exit_code(s.migration) != 0) {
        free(migration_report_json(s.migration));
        clock_sleep_until(clock_now() + NS_PER_MS / 4);
    }
    drop_curtain(&s);
}
