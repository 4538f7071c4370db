/* `wander check` between two ends in one process, and with a destination that only pretends. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "migrate/incoming.h"
#include "transport/base/clock.h"
#include "transport/transport.h"

struct stage {
    int listener;
    struct migration_options options;
    struct incoming *incoming;
    struct found_message found; /* what a pretender says */
    bool refuses, takes_nothing;
    struct hello hello; /* that it heard */
};

static void on_changed(void *context)
{
    (void)context;
}

static struct stage open_stage(void)
{
    struct stage s = {.options = {.destination = {"tcp", "127.0.0.1", 0}, .lanes = 2}};
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

static uint64_t soon(void)
{
    return clock_now() + 5 * NS_PER_S;
}

/* A lane that opens, and over which nothing arrives. */
static struct transport *open_lane(struct stage *s)
{
    struct transport_params params = {.epoch = 1, .lanes = 1};
    struct address at = {"tcp", "127.0.0.1", 0};
    struct transport *lane;
    struct error err = {0};

    memcpy(params.token, s->hello.token, sizeof(params.token));
    cr_assert_eq(transport_new("tcp", &params, &lane, &err), 0, "%s", err.text);
    cr_assert_eq(transport_listen(lane, &at, &s->found.lane_port, &err), 0, "%s", err.text);
    return lane;
}

static void cut_lane(struct transport *lane)
{
    struct error err = {0};

    cr_expect_eq(transport_accept(lane, 5000, &err), 0, "%s", err.text);
    transport_shutdown(lane);
    transport_close(lane);
}

static void *play_pretender(void *stage)
{
    struct stage *s = stage;
    static uint8_t body[PROTO_BODY_SIZE];
    struct welcome welcome = {.version = PROTO_VERSION_MAX};
    struct error err = {0};
    struct message m;
    int socket = take_connection(s);

    cr_assert_eq(exchange_read(socket, &m, soon(), -1, &err), 0, "%s", err.text);
    cr_assert_eq(hello_decode(&m, &s->hello, &err), 0, "%s", err.text);
    message_free(&m);
    if (s->refuses) {
        exchange_write(socket, MESSAGE_REFUSE, "one\ntwo", 7, soon(), &err);
    } else {
        exchange_write(socket, MESSAGE_WELCOME, body, welcome_encode(&welcome, body), soon(), &err);
        cr_assert_eq(exchange_read(socket, &m, soon(), -1, &err), 0, "%s", err.text);
        cr_expect_eq(m.type, MESSAGE_PROBE, "expected PROBE, came %s", message_name(m.type));
        message_free(&m);
        struct transport *lane = s->takes_nothing ? open_lane(s) : NULL;
        exchange_write(socket, MESSAGE_FOUND, body, found_encode(&s->found, body), soon(), &err);
        if (lane)
            cut_lane(lane);
    }
    exchange_read(socket, &m, soon(), -1, &(struct error){0}); /* until the source closes */
    close(socket);
    return NULL;
}

static void check(struct stage *s, void *(*peer)(void *), struct check_report *report)
{
    struct error err = {0};
    pthread_t thread;

    *report = (struct check_report){0};
    pthread_create(&thread, NULL, peer, s);
    cr_assert_eq(migration_check(NULL, &s->options, report, &err), 0, "%s", err.text);
    pthread_join(thread, NULL);
    close(s->listener);
}

static void expect_text(const struct reasons *lines, const char *want)
{
    cr_expect(lines->text && strstr(lines->text, want), "expected \"%s\" in \"%s\"", want,
              lines->text ? lines->text : "");
}

Test(checking, two_ends_that_fit_try_a_lane_and_find_nothing)
{
    struct stage s = open_stage();
    struct incoming_status status;
    struct check_report report;

    check(&s, play_destination, &report);
    cr_expect_eq(report.refused.count, 0, "%s", report.refused.text);
    cr_expect_eq(report.ends.count, 0, "tcp has no device: %s", report.ends.text);
    for (uint64_t until = soon(); clock_now() < until;) {
        incoming_get_status(s.incoming, &status);
        if (status.finished)
            break;
        clock_sleep_until(clock_now() + 5 * NS_PER_MS);
    }
    cr_expect(status.finished && status.phase == INCOMING_QUERY,
              "expected an answered question, came phase %d: %s", status.phase, status.message);
    incoming_free(s.incoming);
    check_report_free(&report);
}

Test(checking, a_lane_that_cannot_be_opened_is_told)
{
    struct stage s = open_stage();
    struct check_report report;

    s.found.lane_port = 1; /* nothing listens there */
    check(&s, play_pretender, &report);
    cr_expect_eq(report.refused.count, 1, "%s", report.refused.text);
    expect_text(&report.refused, "a trial lane did not work");
    expect_text(&report.refused, "firewall");
    check_report_free(&report);
}

Test(checking, a_lane_over_which_nothing_arrives_is_told)
{
    struct stage s = open_stage();
    struct check_report report;

    s.takes_nothing = true;
    check(&s, play_pretender, &report);
    cr_expect_eq(report.refused.count, 1, "%s", report.refused.text);
    expect_text(&report.refused, "a trial lane did not work");
    check_report_free(&report);
}

Test(checking, what_the_destination_finds_comes_back)
{
    struct stage s = open_stage();
    struct check_report report;

    s.options.registration = TRANSPORT_REGISTER_CHUNK;
    s.options.operation = TRANSPORT_READ;
    s.options.pin_limit = 12345678;
    strcpy(s.found.findings.device, "rxe0");
    strcpy(s.found.findings.link_layer, "Ethernet");
    strcpy(s.found.findings.gid_type, "RoCE v2");
    s.found.findings.port = 1;
    s.found.findings.mtu = 1024;
    transport_findings_add(&s.found.findings, true, "port 1 of rxe0 is down");
    transport_findings_add(&s.found.findings, false, "it is RoCE v1");
    check(&s, play_pretender, &report);
    cr_expect_eq(report.refused.count, 1, "%s", report.refused.text);
    expect_text(&report.refused, "destination: port 1 of rxe0 is down");
    expect_text(&report.notes, "destination: it is RoCE v1");
    expect_text(&report.ends, "destination: rxe0 port 1, Ethernet, RoCE v2, MTU 1024");
    expect_text(&report.ends, "assumed: a guest with 64.0 MiB");
    cr_expect_eq(s.hello.intent, HELLO_CHECK);
    cr_expect_eq(s.hello.lanes, 2);
    cr_expect_eq(s.hello.registration, TRANSPORT_REGISTER_CHUNK);
    cr_expect_eq(s.hello.operation, TRANSPORT_READ);
    cr_expect_eq(s.hello.pin_limit, 12345678);
    cr_expect_eq(s.hello.present_bytes, CHECK_BYTES);
    check_report_free(&report);
}

Test(checking, a_refusal_at_once_is_told_with_every_reason)
{
    struct stage s = open_stage();
    struct check_report report;

    s.refuses = true;
    check(&s, play_pretender, &report);
    cr_expect_eq(report.refused.count, 2, "%s", report.refused.text);
    expect_text(&report.refused, "destination: one\ndestination: two");
    check_report_free(&report);
}
