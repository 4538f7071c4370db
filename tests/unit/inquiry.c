/* Asking a destination for room to rehearse in: one that pretends, and a real one, whose room is
 * then sent to. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "migrate/incoming.h"
#include "migrate/inquiry.h"
#include "migrate/preflight.h"
#include "migrate/rehearsal.h"
#include "migrate/trial.h"
#include "transport/base/clock.h"

struct stage {
    int listener;
    struct migration_options options;
    struct incoming *incoming;
    /* What a pretender says. */
    unsigned version;
    struct found_message found;
};

static void on_changed(void *context)
{
    (void)context;
}

static struct stage open_stage(void)
{
    struct stage s = {.options = {.destination = {"tcp", "127.0.0.1", 0}, .lanes = 3},
                      .version = PROTO_VERSION_MAX};
    struct error err = {0};

    s.listener = address_listen(&s.options.destination, &s.options.destination.port, &err);
    cr_assert_geq(s.listener, 0, "%s", err.text);
    return s;
}

static int take_connection(struct stage *s)
{
    struct pollfd fd = {.fd = s->listener, .events = POLLIN};
    struct error err = {0};

    cr_assert_eq(poll(&fd, 1, 5000), 1);
    int socket = address_accept(s->listener, &err);
    cr_assert_geq(socket, 0, "%s", err.text);
    return socket;
}

static uint64_t soon(void)
{
    return clock_now() + 5 * NS_PER_S;
}

static void expect_message(int socket, enum message_type type)
{
    struct error err = {0};
    struct message m;

    cr_assert_eq(exchange_read(socket, &m, soon(), -1, &err), 0, "%s", err.text);
    cr_expect_eq(m.type, type, "expected %s, came %s", message_name(type), message_name(m.type));
    message_free(&m);
}

static void *play_pretender(void *stage)
{
    struct stage *s = stage;
    static uint8_t body[PROTO_BODY_SIZE];
    struct welcome welcome = {.version = (uint16_t)s->version};
    struct error err = {0};
    int socket = take_connection(s);

    expect_message(socket, MESSAGE_HELLO);
    exchange_write(socket, MESSAGE_WELCOME, body, welcome_encode(&welcome, body), soon(), &err);
    if (s->version >= PROTO_VERSION_ROOM) {
        expect_message(socket, MESSAGE_PROBE);
        exchange_write(socket, MESSAGE_PING, body, ping_encode(&(struct ping){1}, body), soon(),
                       &err);
        exchange_write(socket, MESSAGE_FOUND, body, found_encode(&s->found, body), soon(), &err);
    }
    exchange_read(socket, &(struct message){0}, soon(), -1, &(struct error){0});
    close(socket);
    return NULL;
}

static void *play_destination(void *stage)
{
    struct stage *s = stage;
    struct incoming_options options = {.kind = "lab"};
    struct migration_observer observer = {on_changed, NULL};
    struct error err = {0};

    cr_assert_eq(incoming_start(take_connection(s), &options, &observer, &s->incoming, &err), 0,
                 "%s", err.text);
    return NULL;
}

Test(inquiry, an_answer_that_was_not_asked_for_is_refused)
{
    static const struct {
        unsigned version;
        uint16_t port;
        uint64_t room;
        int result;
        const char *mentions;
    } cases[] = {
        {2, 0, 0, -EPROTONOSUPPORT, "same version of wander"},
        {3, 9, 8 << 20, 0, ""},
        {3, 9, 1 << 20, 0, ""},
        {3, 0, 0, 0, ""},
        {3, 9, 0, -EPROTO, "gives 0"},
        {3, 9, (8 << 20) + 4096, -EPROTO, "gives 8392704"},
        {3, 9, UINT64_MAX, -EPROTO, "gives 18446744073709551615"},
        {3, 9, 4097, -EPROTO, "gives 4097"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct stage s = open_stage();
        struct probe_message wanted = {.room = 8 << 20};
        struct found_message found = {0};
        struct error err = {0};
        struct reasons refused = {0};
        struct inquiry q;
        pthread_t thread;

        s.version = cases[i].version;
        s.found = (struct found_message){.lane_port = cases[i].port, .room = cases[i].room};
        pthread_create(&thread, NULL, play_pretender, &s);
        cr_assert_eq(inquiry_open(&s.options.destination, 5000, -1, &refused, &q, &err), 0, "%s",
                     err.text);
        cr_assert_eq(inquiry_greet(&q, &s.options, 0, &err), 1, "%s", err.text);
        int result = inquiry_probe(&q, &wanted, &found, &err);
        cr_expect_eq(result, cases[i].result, "case %zu: expected %d, came %d: %s", i,
                     cases[i].result, result, err.text);
        cr_expect(strstr(err.text, cases[i].mentions), "case %zu: expected \"%s\" in \"%s\"", i,
                  cases[i].mentions, err.text);
        inquiry_close(&q);
        pthread_join(thread, NULL);
        close(s.listener);
    }
}

/* As a destination does that is just saying something else: the first ping gets no answer, the
 * second a late one, and heartbeats of its own come in between. */
static void *play_busy_pretender(void *stage)
{
    struct stage *s = stage;
    uint8_t body[PROTO_BODY_SIZE];
    struct welcome welcome = {.version = PROTO_VERSION_MAX};
    struct error err = {0};
    struct message m;
    struct pong late = {0};
    int socket = take_connection(s);

    expect_message(socket, MESSAGE_HELLO);
    exchange_write(socket, MESSAGE_WELCOME, body, welcome_encode(&welcome, body), soon(), &err);
    for (int i = 0; exchange_read(socket, &m, soon(), -1, &err) == 0; i++) {
        struct ping ping = {0};
        ping_decode(&m, &ping, &err);
        message_free(&m);
        exchange_write(socket, MESSAGE_PING, body, ping_encode(&ping, body), soon(), &err);
        if (i == 2)
            exchange_write(socket, MESSAGE_PONG, body, pong_encode(&late, body), soon(), &err);
        late = (struct pong){.ping_sent_at = ping.sent_at};
        if (i > 1)
            exchange_write(socket, MESSAGE_PONG, body, pong_encode(&late, body), soon(), &err);
    }
    close(socket);
    return NULL;
}

Test(inquiry, pings_without_an_answer_are_sent_anew)
{
    struct stage s = open_stage();
    struct error err = {0};
    struct reasons refused = {0};
    struct inquiry q;
    uint64_t ns = 0;
    pthread_t thread;

    pthread_create(&thread, NULL, play_busy_pretender, &s);
    cr_assert_eq(inquiry_open(&s.options.destination, 20000, -1, &refused, &q, &err), 0, "%s",
                 err.text);
    cr_assert_eq(inquiry_greet(&q, &s.options, 0, &err), 1, "%s", err.text);
    cr_expect_eq(inquiry_round_trip(&q, &ns, &err), 0, "%s", err.text);
    cr_expect(ns > 0 && ns < UINT64_MAX, "came %llu ns", (unsigned long long)ns);
    inquiry_close(&q);
    pthread_join(thread, NULL);
    close(s.listener);
}

static int welcome_inquiry(struct stage *s)
{
    uint8_t body[PROTO_BODY_SIZE];
    struct welcome welcome = {.version = PROTO_VERSION_MAX};
    struct error err = {0};
    int socket = take_connection(s);

    expect_message(socket, MESSAGE_HELLO);
    exchange_write(socket, MESSAGE_WELCOME, body, welcome_encode(&welcome, body), soon(), &err);
    return socket;
}

/* Each answer takes longer than the first one is waited for. */
static void *play_distant_pretender(void *stage)
{
    int socket = welcome_inquiry(stage);
    uint8_t body[8];
    struct error err = {0};
    struct message m;

    while (exchange_read(socket, &m, soon(), -1, &err) == 0) {
        struct ping ping = {0};
        ping_decode(&m, &ping, &err);
        message_free(&m);
        clock_sleep_until(ping.sent_at + 120 * NS_PER_MS);
        struct pong pong = {.ping_sent_at = ping.sent_at};
        exchange_write(socket, MESSAGE_PONG, body, pong_encode(&pong, body), soon(), &err);
    }
    close(socket);
    return NULL;
}

/* Says that it is alive, and nothing else, faster than anybody reads. */
static void *play_flooding_pretender(void *stage)
{
    enum { PING_SIZE = PROTO_HEADER_SIZE + 8 };
    static uint8_t flood[4096][PING_SIZE];
    int socket = welcome_inquiry(stage);

    for (size_t i = 0; i < 4096; i++) {
        size_t size = ping_encode(&(struct ping){1}, flood[i] + PROTO_HEADER_SIZE);
        message_header_encode(MESSAGE_PING, (uint32_t)size, flood[i]);
    }
    while (send(socket, flood, sizeof(flood), MSG_NOSIGNAL) == sizeof(flood))
        ;
    close(socket);
    return NULL;
}

static void begin_inquiry(struct stage *s, void *(*play)(void *), int timeout_ms, pthread_t *thread,
                          struct inquiry *q)
{
    static struct reasons refused;
    struct error err = {0};

    pthread_create(thread, NULL, play, s);
    cr_assert_eq(inquiry_open(&s->options.destination, timeout_ms, -1, &refused, q, &err), 0, "%s",
                 err.text);
    cr_assert_eq(inquiry_greet(q, &s->options, 0, &err), 1, "%s", err.text);
}

static void end_inquiry(struct stage *s, pthread_t thread, struct inquiry *q)
{
    inquiry_close(q);
    pthread_join(thread, NULL);
    close(s->listener);
}

Test(inquiry, a_long_way_has_a_round_trip_too, .timeout = 60)
{
    struct stage s = open_stage();
    struct error err = {0};
    struct inquiry q;
    uint64_t ns = 0;
    pthread_t thread;

    begin_inquiry(&s, play_distant_pretender, 20000, &thread, &q);
    cr_expect_eq(inquiry_round_trip(&q, &ns, &err), 0, "%s", err.text);
    cr_expect_geq(ns, 120 * NS_PER_MS, "came %.1f ms", ns_to_ms(ns));
    end_inquiry(&s, thread, &q);
}

Test(inquiry, a_flood_of_heartbeats_ends_at_the_deadline, .timeout = 60)
{
    for (int probes = 0; probes < 2; probes++) {
        struct stage s = open_stage();
        struct probe_message wanted = {.room = 8 << 20};
        struct found_message found;
        struct error err = {0};
        struct inquiry q;
        uint64_t ns = 0;
        pthread_t thread;

        begin_inquiry(&s, play_flooding_pretender, 5000, &thread, &q);
        q.deadline = clock_now() + 200 * NS_PER_MS;
        int result =
            probes ? inquiry_probe(&q, &wanted, &found, &err) : inquiry_round_trip(&q, &ns, &err);
        cr_expect_eq(result, -ETIMEDOUT, "%s: came %d: %s", probes ? "probe" : "ping", result,
                     err.text);
        end_inquiry(&s, thread, &q);
    }
}

static int counted(void *context, struct error *err)
{
    (void)err;
    ++*(unsigned *)context;
    return 0;
}

static struct trial_result run_trial(struct stage *s, const struct inquiry *q,
                                     const struct found_message *found, struct trial_config config)
{
    struct transport_params params = preflight_params(&s->options);
    struct trial_result result;
    struct address peer;
    struct error err = {0};

    params.epoch = 1;
    memcpy(params.token, q->token, sizeof(params.token));
    config.peer = &peer;
    config.params = &params;
    config.size = found->room;
    config.piece_bytes = 4 << 20;
    config.memory =
        mmap(NULL, found->room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_eq(inquiry_lane_address(q, "tcp", found, &peer, &err), 0, "%s", err.text);
    cr_assert_eq(trial_run(&config, 5000, &result, &err), 0, "%s", err.text);
    munmap(config.memory, found->room);
    return result;
}

static void send_to(struct stage *s, const struct inquiry *q, const struct found_message *found)
{
    unsigned calls = 0;
    struct trial_config config = {
        .filter = "",
        .enough_ns = 60 * NS_PER_S,
        .limit_ns = 60 * NS_PER_S,
        .again_ns = 60 * NS_PER_S,
        .fences = 3,
        .before = counted,
        .after = counted,
        .context = &calls,
    };
    struct trial_result result = run_trial(s, q, found, config);
    uint64_t bytes = 0, last_ns = 0;
    for (unsigned i = 0; i < result.piece_count; i++) {
        cr_expect(result.pieces[i].at_ns >= last_ns, "piece %u arrived before the one before", i);
        last_ns = result.pieces[i].at_ns;
        bytes += result.pieces[i].bytes;
    }
    cr_expect(bytes == found->room && result.bytes == bytes && last_ns <= result.ns,
              "expected %llu bytes in pieces and in all, came %llu and %llu",
              (unsigned long long)found->room, (unsigned long long)bytes,
              (unsigned long long)result.bytes);
    cr_expect_eq(result.piece_count, (found->room + (4 << 20) - 1) / (4 << 20), "came %u pieces",
                 result.piece_count);
    cr_expect(result.again_bytes == bytes && result.again_ns > 0,
              "expected all to be sent again, came %llu bytes",
              (unsigned long long)result.again_bytes);
    cr_expect(result.fence_count == 3 && calls == 2, "came %u fences, %u calls", result.fence_count,
              calls);
}

Test(inquiry, a_destination_gives_no_more_room_than_it_wants_and_takes_what_is_sent_there)
{
    static const struct {
        struct probe_message wanted;
        uint64_t room;
    } cases[] = {
        {{3 << 20, GUEST_ANONYMOUS}, 3 << 20},
        {{(5 << 20) + 4096, GUEST_NAMED_FILE}, 5 << 20},
        {{1ull << 60, GUEST_NAMED_FILE}, REHEARSAL_BYTES},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct stage s = open_stage();
        struct found_message found = {0};
        struct error err = {0};
        struct reasons refused = {0};
        struct inquiry q;
        uint64_t round_trip = 0;
        pthread_t thread;

        pthread_create(&thread, NULL, play_destination, &s);
        cr_assert_eq(inquiry_open(&s.options.destination, 20000, -1, &refused, &q, &err), 0, "%s",
                     err.text);
        cr_assert_eq(inquiry_greet(&q, &s.options, 0, &err), 1, "%s", err.text);
        cr_assert_eq(inquiry_round_trip(&q, &round_trip, &err), 0, "%s", err.text);
        cr_expect(round_trip > 0, "case %zu: expected a round trip", i);
        cr_assert_eq(inquiry_probe(&q, &cases[i].wanted, &found, &err), 0, "%s", err.text);
        cr_assert_eq(found.room, cases[i].room, "case %zu: expected room for %llu, came %llu", i,
                     (unsigned long long)cases[i].room, (unsigned long long)found.room);
        send_to(&s, &q, &found);
        inquiry_close(&q);
        pthread_join(thread, NULL);
        incoming_free(s.incoming);
        close(s.listener);
    }
}

static void find_room(struct stage *s, struct inquiry *q, struct found_message *found,
                      pthread_t *thread)
{
    struct probe_message wanted = {64 << 20, GUEST_ANONYMOUS};
    struct error err = {0};

    begin_inquiry(s, play_destination, 60000, thread, q);
    cr_assert_eq(inquiry_probe(q, &wanted, found, &err), 0, "%s", err.text);
    cr_assert_eq(found->room, wanted.room);
}

/* What its buffers would have taken in that time is much more. */
Test(inquiry, a_slow_path_is_sent_no_more_than_a_few_pieces, .timeout = 60)
{
    struct stage s = open_stage();
    struct trial_config config = {
        .filter = "delay=1s", .enough_ns = 60 * NS_PER_S, .limit_ns = 500 * NS_PER_MS};
    struct found_message found = {0};
    struct inquiry q;
    pthread_t thread;

    find_room(&s, &q, &found, &thread);
    struct trial_result result = run_trial(&s, &q, &found, config);
    cr_expect_leq(result.bytes, 8u << 20, "came %llu bytes", (unsigned long long)result.bytes);
    end_inquiry(&s, thread, &q);
    incoming_free(s.incoming);
}

static int cancel_destination(void *stage, struct error *err)
{
    struct stage *s = stage;
    struct incoming_status status = {0};

    (void)err;
    incoming_cancel(s->incoming);
    while (!status.finished) {
        clock_sleep_until(clock_now() + NS_PER_MS);
        incoming_get_status(s->incoming, &status);
    }
    return 0;
}

Test(inquiry, a_path_that_fails_the_second_time_is_known_all_the_same, .timeout = 60)
{
    struct stage s = open_stage();
    struct trial_config config = {.filter = "",
                                  .enough_ns = 60 * NS_PER_S,
                                  .limit_ns = 60 * NS_PER_S,
                                  .again_ns = 60 * NS_PER_S,
                                  .after = cancel_destination,
                                  .context = &s};
    struct found_message found = {0};
    struct inquiry q;
    pthread_t thread;

    find_room(&s, &q, &found, &thread);
    struct trial_result result = run_trial(&s, &q, &found, config);
    cr_expect(result.bytes == found.room && result.again_bytes == 0 && result.again_ns == 0,
              "came %llu bytes, and again %llu", (unsigned long long)result.bytes,
              (unsigned long long)result.again_bytes);
    end_inquiry(&s, thread, &q);
    incoming_free(s.incoming);
}

Test(inquiry, a_destination_that_was_sent_nonsense_says_so)
{
    struct stage s = open_stage();
    struct error err = {0};
    struct reasons refused = {0};
    struct inquiry q;
    struct message m;
    pthread_t thread;

    pthread_create(&thread, NULL, play_destination, &s);
    cr_assert_eq(inquiry_open(&s.options.destination, 5000, -1, &refused, &q, &err), 0, "%s",
                 err.text);
    cr_assert_eq(inquiry_greet(&q, &s.options, 0, &err), 1, "%s", err.text);
    exchange_write(q.socket, MESSAGE_PROBE, "half a probe", 12, q.deadline, &err);
    do
        cr_assert_eq(exchange_read(q.socket, &m, q.deadline, -1, &err), 0, "%s", err.text);
    while (m.type == MESSAGE_PING);
    cr_expect_eq(m.type, MESSAGE_ERROR, "expected ERROR, came %s", message_name(m.type));
    message_free(&m);
    inquiry_close(&q);
    pthread_join(thread, NULL);
    incoming_free(s.incoming);
    close(s.listener);
}
