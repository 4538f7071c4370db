/* Streams that are not what the source sent: cut or changed on the way, or made up by somebody who
 * holds the token. */
#include <poll.h>
#include <unistd.h>

#include "tests/conformance/harness/harness.h"
#include "transport/base/wire.h"
#include "transport/tcp/frame.h"

enum {
    PAGE = 4096,
    PAGES = 64,
    BEFORE_PAYLOAD = PREFACE_SIZE + FRAME_HEADER_SIZE + 2 * FRAME_RUN_SIZE
};

/* Sits between the two ends of a stream with one lane. At byte `at` of what the source sends it
 * flips bits, or ends the connection. */
struct tamper {
    struct address destination;
    int listener;
    uint64_t at;
    uint8_t flip; /* 0: cut */
    pthread_t thread;
};

/* What becomes of n bytes of which `passed` came before: the number to hand on, less than n for a
 * cut. */
static ssize_t tamper_with(const struct tamper *t, uint8_t *bytes, ssize_t n, uint64_t passed)
{
    if (t->at < passed || t->at >= passed + (uint64_t)n)
        return n;
    if (!t->flip)
        return (ssize_t)(t->at - passed);
    bytes[t->at - passed] ^= t->flip;
    return n;
}

/* Hands on one helping; `t` is NULL for the way back. False at the end of the stream. */
static bool forward(const struct tamper *t, int from, int to, uint64_t *passed)
{
    uint8_t bytes[65536];
    ssize_t n = recv(from, bytes, sizeof(bytes), 0), kept;

    if (n <= 0)
        return false;
    kept = t ? tamper_with(t, bytes, n, *passed) : n;
    *passed += (uint64_t)n;
    return send(to, bytes, (size_t)kept, MSG_NOSIGNAL) == n;
}

static void *tamper_main(void *context)
{
    struct tamper *t = context;
    int source = accept(t->listener, NULL, NULL);
    int destination = address_connect(&t->destination, PATIENCE_MS, -1, NULL);
    struct pollfd fds[] = {{.fd = source, .events = POLLIN}, {.fd = destination, .events = POLLIN}};
    uint64_t passed = 0, back = 0;
    bool open = source >= 0 && destination >= 0;

    while (open && poll(fds, 2, PATIENCE_MS) > 0) {
        if (fds[0].revents)
            open = forward(t, source, destination, &passed);
        if (open && fds[1].revents)
            open = forward(NULL, destination, source, &back);
    }
    close(source);
    close(destination);
    return NULL;
}

static void tamper_start(struct ends *e, struct tamper *t)
{
    struct address at = e->at;

    t->destination = e->at;
    at.port = 0;
    t->listener = address_listen(&at, &at.port, &e->err);
    require(e, t->listener >= 0, "%s", e->err.text);
    e->at.port = at.port;
    cr_assert_eq(pthread_create(&t->thread, NULL, tamper_main, t), 0);
}

static void tamper_join(struct tamper *t)
{
    pthread_join(t->thread, NULL);
    close(t->listener);
}

/* Reaps for half a second at most: the error that ended the source, or 0. */
static int reap_fence_or_error(struct ends *e)
{
    uint64_t deadline = clock_now() + 500 * NS_PER_MS;
    struct completion completion;
    int n = 0;

    while (n >= 0 && !e->fences_completed && clock_now() < deadline) {
        n = transport_reap(e->source, &completion, 1, 50, &e->err);
        e->fences_completed += n == 1 && completion.kind == COMPLETION_FENCE;
    }
    return n < 0 ? n : 0;
}

/* Two runs in one frame, and a fence. */
static int send_two_runs(struct ends *e, const struct memory *m)
{
    struct transfer t[2] = {place(m, PAGE, 8 * PAGE, NULL), place(m, 20 * PAGE, 3 * PAGE, NULL)};

    if (transport_post(e->source, t, 2, &e->err) < 0 || transport_fence(e->source, 1, &e->err))
        return -e->err.code;
    return reap_fence_or_error(e);
}

/* One session through a tamperer. The memory lies between guard pages: a byte outside a region
 * would end the test. */
static int tampered_session(unsigned setup, struct ends *e, struct memory *m, struct tamper *tamper)
{
    struct transport_params params = params_default(1);
    struct call accepting;
    int result;

    ends_make(e, setup, &params, &params);
    ends_listen(e);
    memory_make(m, 1, PAGES * PAGE);
    memory_open(e, m);
    tamper_start(e, tamper);
    call_start(&accepting, call_accept, e->destination, &e->at);
    result = transport_connect(e->source, &e->at, 1000, &e->err);
    if (!result)
        result = send_two_runs(e, m);
    transport_shutdown(e->destination);
    call_join(&accepting);
    ends_close(e);
    tamper_join(tamper);
    return result;
}

CONFORMS_STREAM(tampered, a_cut_anywhere_completes_no_fence)
{
    static const uint64_t cuts[] = {0,
                                    1,
                                    PREFACE_SIZE - 1,
                                    PREFACE_SIZE,
                                    PREFACE_SIZE + 1,
                                    PREFACE_SIZE + FRAME_HEADER_SIZE - 1,
                                    PREFACE_SIZE + FRAME_HEADER_SIZE,
                                    BEFORE_PAYLOAD - 1,
                                    BEFORE_PAYLOAD,
                                    BEFORE_PAYLOAD + 1,
                                    BEFORE_PAYLOAD + 8 * PAGE + 5,
                                    BEFORE_PAYLOAD + 11 * PAGE - 1,
                                    BEFORE_PAYLOAD + 11 * PAGE,
                                    BEFORE_PAYLOAD + 11 * PAGE + 1,
                                    BEFORE_PAYLOAD + 11 * PAGE + FRAME_HEADER_SIZE - 1};

    for (unsigned i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        struct tamper tamper = {.at = cuts[i]};
        struct memory memory;
        struct ends e;
        int result = tampered_session(*setup, &e, &memory, &tamper);

        expect(&e, result < 0, "cut at %llu: no error", (unsigned long long)cuts[i]);
        expect(&e, e.err.text[0], "cut at %llu: no text", (unsigned long long)cuts[i]);
        expect(&e, !e.fences_completed, "cut at %llu: the fence completed",
               (unsigned long long)cuts[i]);
        memory_free(&memory);
    }
}

/* A changed preface or header is always noticed. A changed run may be a good one that lands
 * elsewhere: that is for TCP's checksum and TLS to prevent; here it must stay inside its region,
 * and be all or nothing. */
CONFORMS_STREAM(tampered, flipped_bits_stay_inside_the_regions)
{
    for (uint64_t at = 0; at < BEFORE_PAYLOAD; at++) {
        struct tamper tamper = {.at = at, .flip = at % 2 ? 0x80 : 0x01};
        struct memory memory;
        struct ends e;
        int result = tampered_session(*setup, &e, &memory, &tamper);
        uint64_t touched = memory_touched(&memory, 0, memory.size);

        expect(&e, result < 0 || at >= PREFACE_SIZE + FRAME_HEADER_SIZE,
               "flip at %llu: nobody noticed", (unsigned long long)at);
        expect(&e, result == 0 || touched == 0, "flip at %llu: refused with %llu bytes applied",
               (unsigned long long)at, (unsigned long long)touched);
        expect(&e, result < 0 || e.fences_completed, "flip at %llu: the session hung",
               (unsigned long long)at);
        expect(&e, touched <= 11 * PAGE, "flip at %llu: %llu bytes were written",
               (unsigned long long)at, (unsigned long long)touched);
        memory_free(&memory);
    }
}

/* Somebody who knows the token speaks the protocol by hand. */
static int bind_by_hand(struct ends *e)
{
    struct transport_params params = params_default(1);
    struct preface preface = {.index = 0, .count = 1, .epoch = params.epoch};
    uint8_t bytes[PREFACE_SIZE], answer[ANSWER_SIZE];
    int fd = address_connect(&e->at, PATIENCE_MS, -1, &e->err);

    require(e, fd >= 0, "%s", e->err.text);
    memcpy(preface.token, params.token, sizeof(preface.token));
    preface_encode(&preface, bytes);
    cr_assert_eq(send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL), (ssize_t)sizeof(bytes));
    cr_assert_eq(recv(fd, answer, sizeof(answer), MSG_WAITALL), (ssize_t)sizeof(answer));
    require(e, !bind_answer_decode(answer, &e->err), "turned away: %s", e->err.text);
    return fd;
}

struct forged {
    const char *name;
    struct frame_header header;
    struct frame_run runs[3];
};

/* The good run that each forged frame begins with lies in region 1 at offset 0. */
#define GOOD                                                                                       \
    {                                                                                              \
        1, PAGE, 0                                                                                 \
    }

static const struct forged forgeries[] = {
    {"a run beyond the end",
     {FRAME_PLACE, 2, 2 * PAGE, 0},
     {GOOD, {1, PAGE, (PAGES - 1) * PAGE + 1}}},
    {"an offset that wraps", {FRAME_PLACE, 2, 2 * PAGE, 0}, {GOOD, {1, PAGE, UINT64_MAX - 10}}},
    {"another region", {FRAME_PLACE, 2, 2 * PAGE, 0}, {GOOD, {2, PAGE, 0}}},
    {"an empty run", {FRAME_PLACE, 2, PAGE, 0}, {GOOD, {1, 0, PAGE}}},
    {"fewer bytes than its runs", {FRAME_PLACE, 2, PAGE, 0}, {GOOD, {1, PAGE, PAGE}}},
    {"more bytes than its runs", {FRAME_PLACE, 2, 3 * PAGE, 0}, {GOOD, {1, PAGE, PAGE}}},
    {"lengths that wrap", {FRAME_PLACE, 3, PAGE, 0}, {GOOD, {1, 1u << 31, 0}, {1, 1u << 31, 0}}},
    {"too many bytes", {FRAME_PLACE, 1, FRAME_MAX_BYTES + 1, 0}, {GOOD}},
    {"too many runs", {FRAME_PLACE, FRAME_MAX_RUNS + 1, PAGE, 0}, {GOOD}},
    {"no runs", {FRAME_PLACE, 0, 0, 0}, {GOOD}},
    {"an unknown type", {(enum frame_type)9, 1, PAGE, 0}, {GOOD}},
    {"an acknowledgement", {FRAME_ACKNOWLEDGE, 0, 0, 1}, {GOOD}},
    {"a blob nobody decodes", {FRAME_BLOB, 1, PAGE, 0}, {{0, PAGE, 0}}},
};

static void send_forged(int fd, const struct forged *forged)
{
    static const uint8_t payload[3 * PAGE];
    uint8_t bytes[FRAME_HEADER_SIZE + 3 * FRAME_RUN_SIZE];

    frame_header_encode(&forged->header, bytes);
    for (unsigned i = 0; i < 3; i++)
        frame_run_encode(&forged->runs[i], bytes + FRAME_HEADER_SIZE + i * FRAME_RUN_SIZE);
    send(fd, bytes,
         FRAME_HEADER_SIZE + FRAME_RUN_SIZE * (forged->header.count < 3 ? forged->header.count : 3),
         MSG_NOSIGNAL);
    send(fd, payload, sizeof(payload), MSG_NOSIGNAL);
}

CONFORMS_STREAM(tampered, forged_frames_touch_nothing)
{
    struct transport_params params = params_default(1);

    for (unsigned i = 0; i < sizeof(forgeries) / sizeof(forgeries[0]); i++) {
        struct call accepting;
        struct error err = {0};
        struct memory memory;
        struct ends e;
        int fd, result;

        ends_make(&e, *setup, &params, &params);
        ends_listen(&e);
        memory_make(&memory, 1, PAGES * PAGE);
        memory_open(&e, &memory);
        call_start(&accepting, call_accept, e.destination, &e.at);
        fd = bind_by_hand(&e);
        call_join(&accepting);
        require(&e, !accepting.result, "accept: %s", accepting.err.text);
        send_forged(fd, &forgeries[i]);
        result = wait_for_error(e.destination, &err);
        expect(&e, result == -EPROTO, "%s: expected -EPROTO, got %d (%s)", forgeries[i].name,
               result, err.text);
        expect(&e, !memory_touched(&memory, 0, memory.size), "%s: memory was touched",
               forgeries[i].name);
        close(fd);
        ends_close(&e);
        memory_free(&memory);
    }
}

/* A destination that acknowledges what was never sent, or answers with something else. */
static int bind_to(struct ends *e, int listener)
{
    uint8_t preface[PREFACE_SIZE], answer[ANSWER_SIZE];
    int fd = accept(listener, NULL, NULL);

    require(e, fd >= 0, "accept: %s", strerror(errno));
    cr_assert_eq(recv(fd, preface, sizeof(preface), MSG_WAITALL), (ssize_t)sizeof(preface));
    bind_answer_encode(ANSWER_WELCOME, answer);
    cr_assert_eq(send(fd, answer, sizeof(answer), MSG_NOSIGNAL), (ssize_t)sizeof(answer));
    return fd;
}

CONFORMS_STREAM(tampered, forged_acknowledgements_complete_nothing)
{
    static const struct frame_header forged[] = {
        {FRAME_ACKNOWLEDGE, 0, 0, 1}, /* nothing was sent */
        {FRAME_FENCE, 0, 0, 1},
        {FRAME_PLACE, 1, PAGE, 0},
        {(enum frame_type)200, 0, 0, 0},
    };
    struct transport_params params = params_default(1);

    for (unsigned i = 0; i < sizeof(forged) / sizeof(forged[0]); i++) {
        uint8_t bytes[FRAME_HEADER_SIZE];
        struct call connecting;
        struct error err = {0};
        struct ends e;
        int listener, fd, result;

        ends_make(&e, *setup, &params, &params);
        listener = address_listen(&e.at, &e.at.port, &err);
        if (listener == -EADDRNOTAVAIL || listener == -EAFNOSUPPORT)
            cr_skip("this machine has no %s", e.at.host);
        call_start(&connecting, call_connect, e.source, &e.at);
        fd = bind_to(&e, listener);
        call_join(&connecting);
        require(&e, !connecting.result, "connect: %s", connecting.err.text);
        frame_header_encode(&forged[i], bytes);
        send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
        result = wait_for_error(e.source, &err);
        expect(&e, result == -EPROTO, "case %u: expected -EPROTO, got %d (%s)", i, result,
               err.text);
        close(fd);
        close(listener);
        ends_close(&e);
    }
}
