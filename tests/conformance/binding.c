/* Who may bind a lane: those with the right token, epoch and number of lanes, and nobody else. */
#include <stdlib.h>
#include <unistd.h>

#include "tests/conformance/harness/harness.h"

enum { MiB = 1 << 20 };

/* Changes one thing about the source's params. */
typedef void disguise_fn(struct transport_params *params);

static void other_token(struct transport_params *params)
{
    params->token[TRANSPORT_TOKEN_SIZE - 1] ^= 1;
}

static void older_epoch(struct transport_params *params)
{
    params->epoch--;
}

static void newer_epoch(struct transport_params *params)
{
    params->epoch++;
}

static void fewer_lanes(struct transport_params *params)
{
    params->lanes--;
}

static void more_lanes(struct transport_params *params)
{
    params->lanes++;
}

static const struct {
    const char *name;
    disguise_fn *apply;
} disguises[] = {
    {"another token", other_token}, {"an older epoch", older_epoch}, {"a newer epoch", newer_epoch},
    {"fewer lanes", fewer_lanes},   {"more lanes", more_lanes},
};

enum { DISGUISES = sizeof(disguises) / sizeof(disguises[0]) };

static struct transport_params disguised(unsigned i)
{
    struct transport_params params = params_default(2);

    disguises[i].apply(&params);
    return params;
}

static int call_accept_briefly(struct transport *t, const struct address *at, struct error *err)
{
    (void)at;
    return transport_accept(t, 600, err);
}

CONFORMS(binding, others_are_turned_away)
{
    struct transport_params right = params_default(2);

    for (unsigned i = 0; i < DISGUISES; i++) {
        struct transport_params wrong = disguised(i);
        struct call accepting;
        struct ends e;
        int result;

        ends_make(&e, *setup, &wrong, &right);
        ends_listen(&e);
        call_start(&accepting, call_accept_briefly, e.destination, &e.at);
        result = transport_connect(e.source, &e.at, PATIENCE_MS, &e.err);
        call_join(&accepting);
        expect(&e, result < 0 && result != -ETIMEDOUT, "%s: connect gave %d", disguises[i].name,
               result);
        expect(&e, e.err.text[0], "%s: connect failed without a text", disguises[i].name);
        expect(&e, accepting.result == -ETIMEDOUT, "%s: accept gave %d (%s)", disguises[i].name,
               accepting.result, accepting.err.text);
        ends_close(&e);
    }
}

static void expect_turned_away(struct ends *e, unsigned i)
{
    struct transport_params wrong = disguised(i);
    struct transport *impostor = source_make(e, &wrong);
    struct error err = {0};
    int result = transport_connect(impostor, &e->at, 5000, &err);

    expect(e, result < 0, "%s: the impostor was let in", disguises[i].name);
    transport_close(impostor);
}

static void expect_data_flows(struct ends *e, const struct memory *m, uint64_t fence)
{
    unsigned counter = 0, before = e->transfers_completed;
    struct transfer t = place(m, 0, MiB, &counter);

    post_all(e, &t, 1);
    settle(e, fence);
    reap_until(e, before + 1);
    expect(e, !memory_missing(m, 0, MiB), "bytes did not arrive");
}

CONFORMS_SEPARABLE(binding, impostors_do_not_keep_the_right_one_out)
{
    struct transport_params params = params_default(2);
    struct call accepting;
    struct memory memory;
    struct ends e;

    ends_make(&e, *setup, &params, &params);
    ends_listen(&e);
    memory_make(&memory, 1, MiB);
    memory_open(&e, &memory);
    call_start(&accepting, call_accept, e.destination, &e.at);
    for (unsigned i = 0; i < DISGUISES; i++)
        expect_turned_away(&e, i);
    ends_meet(&e, &accepting);
    expect_data_flows(&e, &memory, 1);
    ends_close(&e);
    memory_free(&memory);
}

/* Late ones find nobody who listens, or are refused; either way the lanes that are there do not
 * notice. */
CONFORMS_SEPARABLE(binding, latecomers_disturb_nothing)
{
    struct transport_params params = params_default(2);
    struct memory memory;
    struct ends e;
    struct transport *twin;
    struct error err = {0};

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, MiB);
    memory_open(&e, &memory);
    for (unsigned i = 0; i < DISGUISES; i++) {
        struct transport_params wrong = disguised(i);
        struct transport *impostor = source_make(&e, &wrong);

        expect(&e, transport_connect(impostor, &e.at, 300, &err) < 0, "%s was let in",
               disguises[i].name);
        error_clear(&err);
        transport_close(impostor);
    }
    twin = source_make(&e, &params);
    expect(&e, transport_connect(twin, &e.at, 300, &err) < 0, "the same session was let in twice");
    transport_close(twin);
    expect_data_flows(&e, &memory, 1);
    ends_close(&e);
    memory_free(&memory);
}

/* Several connections that say nothing, too little, or something else. */
enum { STRANGERS = 6 };

static void strangers_come(struct ends *e, int fds[STRANGERS])
{
    static const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    uint8_t *rubbish = calloc(1, MiB);

    for (unsigned i = 0; i < STRANGERS; i++) {
        fds[i] = address_connect(&e->at, 5000, -1, &e->err);
        require(e, fds[i] >= 0, "%s", e->err.text);
    }
    memset(rubbish, 0xff, MiB);
    /* 0 and 1 stay silent. Whether the others' bytes are taken is the listener's business. */
    send(fds[2], http, sizeof(http) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    send(fds[3], rubbish, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    send(fds[4], rubbish, MiB, MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(fds[5], SHUT_WR);
    free(rubbish);
}

CONFORMS_STREAM(binding, strangers_do_not_keep_the_right_one_out)
{
    struct transport_params params = params_default(2);
    struct call accepting;
    int fds[STRANGERS];
    struct memory memory;
    struct ends e;

    ends_make(&e, *setup, &params, &params);
    ends_listen(&e);
    memory_make(&memory, 1, MiB);
    memory_open(&e, &memory);
    strangers_come(&e, fds);
    call_start(&accepting, call_accept, e.destination, &e.at);
    ends_meet(&e, &accepting);
    expect_data_flows(&e, &memory, 1);
    for (unsigned i = 0; i < STRANGERS; i++)
        close(fds[i]);
    expect_data_flows(&e, &memory, 2);
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS_STREAM(binding, a_stranger_that_answers_is_no_destination)
{
    struct transport_params params = params_default(1);
    struct address at = {.scheme = "tcp"};
    struct error err = {0};
    int listener, result;
    struct ends e;
    struct call connecting;

    ends_make(&e, *setup, &params, &params);
    at = e.at;
    listener = address_listen(&at, &at.port, &err);
    if (listener == -EADDRNOTAVAIL || listener == -EAFNOSUPPORT)
        cr_skip("this machine has no %s", at.host);
    call_start(&connecting, call_connect, e.source, &at);
    result = accept(listener, NULL, NULL);
    require(&e, result >= 0, "accept: %s", strerror(errno));
    send(result, "SSH-2.0-nobody\r\n\r\n................................................", 66,
         MSG_NOSIGNAL);
    close(result);
    close(listener);
    call_join(&connecting);
    expect(&e, connecting.result < 0 && connecting.result != -ETIMEDOUT, "connect gave %d",
           connecting.result);
    expect(&e, connecting.err.text[0], "connect failed without a text");
    ends_close(&e);
}
