/* How a transport ends: shut down, closed, by an error, or because its peer is gone. */
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/conformance/harness/harness.h"

enum { PAGE = 4096, MiB = 1 << 20 };

/* Every call there is, on an end that was shut down. */
static void expect_all_shut_down(struct ends *e, struct transport *t, struct memory *m)
{
    struct transport_region region = {.id = 99, .base = m->source, .size = m->size};
    struct transfer transfer = place(m, 0, PAGE, NULL);
    struct completion completion;
    uint64_t start = clock_now();
    uint16_t port;

    expect_result(e, transport_listen(t, &e->at, &port, &e->err), -ESHUTDOWN);
    expect_result(e, transport_accept(t, PATIENCE_MS, &e->err), -ESHUTDOWN);
    expect_result(e, transport_connect(t, &e->at, PATIENCE_MS, &e->err), -ESHUTDOWN);
    expect_result(e, transport_open_region(t, &region, &e->err), -ESHUTDOWN);
    expect_result(e, transport_close_region(t, m->id, &e->err), -ESHUTDOWN);
    expect_result(e, transport_post(t, &transfer, 1, &e->err), -ESHUTDOWN);
    expect_result(e, transport_kick(t, &e->err), -ESHUTDOWN);
    expect_result(e, transport_fence(t, 1000, &e->err), -ESHUTDOWN);
    expect_result(e, transport_reap(t, &completion, 1, -1, &e->err), -ESHUTDOWN);
    expect_result(e, transport_reap(t, &completion, 1, 0, &e->err), -ESHUTDOWN);
    transport_will_need(t, m->id, 0, PAGE);
    transport_done_with(t, m->id, 0, PAGE);
    expect(e, clock_now() - start < SHUTDOWN_LIMIT_MS * NS_PER_MS, "the calls took %.1f ms",
           ns_to_ms(clock_now() - start));
}

CONFORMS(ending, after_shutdown_every_call_says_so)
{
    struct memory memory;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, MiB);
    memory_open(&e, &memory);
    transport_shutdown(e.source);
    transport_shutdown(e.destination);
    expect_all_shut_down(&e, e.source, &memory);
    expect_all_shut_down(&e, e.destination, &memory);
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(ending, shutdown_before_there_are_lanes)
{
    struct transport_params params = params_default(2);
    struct memory memory;
    struct ends e;

    ends_make(&e, *setup, &params, &params);
    memory_make(&memory, 1, MiB);
    ends_listen(&e);
    transport_shutdown(e.source);
    transport_shutdown(e.destination);
    expect_all_shut_down(&e, e.source, &memory);
    expect_all_shut_down(&e, e.destination, &memory);
    ends_close(&e);
    memory_free(&memory);
}

/* Starts `run` in a thread, lets it block, shuts the transport down from this one. */
static void expect_woken(struct ends *e, call_fn *run, struct transport *t, const char *what)
{
    struct call blocked;
    uint64_t start;

    call_start(&blocked, run, t, &e->at);
    clock_sleep_until(clock_now() + 100 * NS_PER_MS);
    start = clock_now();
    transport_shutdown(t);
    call_join(&blocked);
    expect(e, blocked.result == -ESHUTDOWN, "%s: expected -ESHUTDOWN, got %d (%s)", what,
           blocked.result, blocked.err.text);
    expect(e, blocked.done_at < start + SHUTDOWN_LIMIT_MS * NS_PER_MS, "%s: woke after %.1f ms",
           what, ns_to_ms(blocked.done_at - start));
}

CONFORMS(ending, shutdown_wakes_reap)
{
    struct ends e;

    ends_connected(&e, *setup, 2);
    expect_woken(&e, call_reap, e.source, "reap at the source");
    ends_close(&e);
    ends_connected(&e, *setup, 2);
    expect_woken(&e, call_reap, e.destination, "reap at the destination");
    ends_close(&e);
}

CONFORMS(ending, shutdown_wakes_accept)
{
    struct transport_params params = params_default(2);
    struct ends e;

    ends_make(&e, *setup, &params, &params);
    ends_listen(&e);
    expect_woken(&e, call_accept, e.destination, "accept");
    ends_close(&e);
}

/* The destination listens and does not accept: the source's lanes get no answer. */
CONFORMS(ending, shutdown_wakes_connect)
{
    struct transport_params params = params_default(2);
    struct ends e;

    ends_make(&e, *setup, &params, &params);
    ends_listen(&e);
    expect_woken(&e, call_connect, e.source, "connect");
    ends_close(&e);
}

CONFORMS(ending, connect_and_accept_keep_their_time_limits)
{
    struct transport_params params = params_default(2);
    uint64_t start;
    struct ends e;

    ends_make(&e, *setup, &params, &params);
    ends_listen(&e);
    start = clock_now();
    expect_result(&e, transport_connect(e.source, &e.at, 200, &e.err), -ETIMEDOUT);
    expect_result(&e, transport_accept(e.destination, 200, &e.err), -ETIMEDOUT);
    expect(&e, clock_now() - start >= 398 * NS_PER_MS, "gave up early");
    expect(&e, clock_now() - start < PATIENCE_MS * NS_PER_MS, "the time limits were not kept");
    ends_close(&e);
}

static int decode_slowly(void *context, const void *bytes, size_t size, struct error *err)
{
    atomic_bool *stop = context;

    (void)bytes, (void)size, (void)err;
    while (!*stop)
        clock_sleep_until(clock_now() + NS_PER_MS);
    return 0;
}

/* Posts for ever; what it returns is the first error. */
static int call_post(struct transport *t, const struct address *at, struct error *err)
{
    static uint8_t bytes[TRANSPORT_MAX_BLOB];
    struct transfer transfer = {
        .kind = TRANSFER_BLOB, .bytes = bytes, .length = sizeof(bytes), .cookie = NULL};
    struct completion completion;
    int result;

    (void)at;
    do {
        result = transport_post(t, &transfer, 1, err);
        if (result == 0)
            result = transport_reap(t, &completion, 1, -1, err);
    } while (result >= 0);
    return result;
}

/* The lanes hang in a full socket, the decoder and whatever else there is. */
CONFORMS(ending, shutdown_wakes_a_source_that_is_full)
{
    struct transport_params source = params_default(2), destination = source;
    atomic_bool stop = false;
    struct ends e;

    destination.decode = decode_slowly;
    destination.decode_context = &stop;
    ends_make(&e, *setup, &source, &destination);
    ends_connect(&e);
    expect_woken(&e, call_post, e.source, "post and reap");
    stop = true;
    ends_close(&e);
}

CONFORMS(ending, shutdown_from_many_threads)
{
    enum { THREADS = 8 };
    struct call calls[THREADS];
    struct completion completion;
    struct ends e;

    ends_connected(&e, *setup, 4);
    for (unsigned i = 0; i < THREADS; i++)
        call_start(&calls[i], call_shutdown, i % 2 ? e.source : e.destination, &e.at);
    for (unsigned i = 0; i < THREADS; i++)
        call_join(&calls[i]);
    expect_result(&e, transport_reap(e.source, &completion, 1, -1, &e.err), -ESHUTDOWN);
    expect_result(&e, transport_reap(e.destination, &completion, 1, -1, &e.err), -ESHUTDOWN);
    ends_close(&e);
}

CONFORMS(ending, close_in_any_state)
{
    struct transport_params params = params_default(4);
    struct ends e;

    transport_close(NULL);
    ends_make(&e, *setup, &params, &params);
    ends_close(&e);
    ends_make(&e, *setup, &params, &params);
    ends_listen(&e);
    ends_close(&e);
    ends_connected(&e, *setup, 4);
    ends_close(&e);
}

CONFORMS(ending, after_close_nothing_lands)
{
    enum { CHUNKS = 32 };
    struct transfer transfers[CHUNKS];
    struct completion completion;
    uint8_t *copy = malloc(CHUNKS * MiB);
    struct memory memory;
    struct ends e;
    int taken;

    ends_connected(&e, *setup, 4);
    memory_make(&memory, 1, CHUNKS * MiB);
    memory_open(&e, &memory);
    for (unsigned i = 0; i < CHUNKS; i++)
        transfers[i] = place(&memory, i * MiB, MiB, NULL);
    taken = transport_post(e.source, transfers, CHUNKS, &e.err);
    expect(&e, taken > 0, "post took %d: %s", taken, e.err.text);
    transport_reap(e.source, &completion, 1, 1, &e.err);
    transport_close(e.destination);
    e.destination = NULL;
    memcpy(copy, memory.destination, memory.size);
    clock_sleep_until(clock_now() + 50 * NS_PER_MS);
    expect(&e, !memcmp(copy, memory.destination, memory.size), "bytes landed after close");
    ends_close(&e);
    memory_free(&memory);
    free(copy);
}

CONFORMS(ending, the_source_sees_its_peer_go)
{
    struct error err = {0};
    struct ends e;
    int result;

    ends_connected(&e, *setup, 3);
    transport_close(e.destination);
    e.destination = NULL;
    result = wait_for_error(e.source, &err);
    expect(&e, result == -ECONNRESET, "expected -ECONNRESET, got %d (%s)", result, err.text);
    expect(&e, strstr(err.text, "lane"), "the text does not name the lane: %s", err.text);
    ends_close(&e);
}

CONFORMS(ending, the_destination_sees_its_peer_go)
{
    struct error err = {0};
    struct ends e;
    int result;

    ends_connected(&e, *setup, 3);
    transport_close(e.source);
    e.source = NULL;
    result = wait_for_error(e.destination, &err);
    expect(&e, result == -ECONNRESET, "expected -ECONNRESET, got %d (%s)", result, err.text);
    expect(&e, strstr(err.text, "lane"), "the text does not name the lane: %s", err.text);
    ends_close(&e);
}

CONFORMS(ending, what_was_fenced_survives_the_source)
{
    unsigned counter = 0;
    struct memory memory;
    struct transfer t;
    struct ends e;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, MiB);
    memory_open(&e, &memory);
    t = place(&memory, 0, MiB, &counter);
    post_all(&e, &t, 1);
    settle(&e, 1);
    transport_close(e.source);
    e.source = NULL;
    wait_for_error(e.destination, &e.err);
    expect(&e, !memory_missing(&memory, 0, MiB), "fenced bytes are missing");
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS(ending, the_first_error_stays)
{
    struct error first = {0}, second = {0};
    struct memory memory;
    struct ends e;
    int result;

    ends_connected(&e, *setup, 2);
    memory_make(&memory, 1, MiB);
    memory_open(&e, &memory);
    transport_close(e.destination);
    e.destination = NULL;
    result = wait_for_error(e.source, &first);
    for (unsigned i = 0; i < 5; i++) {
        struct transfer t = place(&memory, 0, PAGE, NULL);

        expect_result(&e, transport_post(e.source, &t, 1, &e.err), result);
        expect_result(&e, transport_fence(e.source, i + 1, &e.err), result);
    }
    wait_for_error(e.source, &second);
    expect(&e, !strcmp(first.text, second.text), "\"%s\" became \"%s\"", first.text, second.text);
    ends_close(&e);
    memory_free(&memory);
}

/* A destination in a process of its own. It says its port through a pipe, has one region, and never
 * ends by itself. */
struct far {
    pid_t pid;
    struct address at;
};

static void far_main(struct ends *e, const struct transport_params *params, int port_pipe)
{
    struct transport *t = destination_make(e, params);
    struct transport_region region = {.id = 1, .base = malloc(64 * MiB), .size = 64 * MiB};
    struct error err = {0};
    struct completion completion;
    uint16_t port = 0;

    if (transport_listen(t, &e->at, &port, &err) || transport_open_region(t, &region, &err) ||
        write(port_pipe, &port, sizeof(port)) != sizeof(port) ||
        transport_accept(t, PATIENCE_MS, &err))
        _exit(1);
    while (transport_reap(t, &completion, 1, 1000, &err) >= 0 || err.code == ECONNRESET)
        clock_sleep_until(clock_now() + 10 * NS_PER_MS);
    _exit(1);
}

/* Forks before this process has any thread, then connects. */
static void far_start(struct ends *e, struct far *far, unsigned setup, unsigned dead_after_ms)
{
    struct transport_params params = params_default(2);
    int port_pipe[2];

    params.dead_after_ms = dead_after_ms;
    ends_make(e, setup, &params, &params);
    cr_assert_eq(pipe(port_pipe), 0);
    far->pid = fork();
    cr_assert_geq(far->pid, 0);
    if (!far->pid)
        far_main(e, &params, port_pipe[1]);
    close(port_pipe[1]);
    far->at = e->at;
    if (read(port_pipe[0], &far->at.port, sizeof(far->at.port)) != sizeof(far->at.port))
        cr_skip("no listener on %s", e->at.host);
    close(port_pipe[0]);
    require(e, !transport_connect(e->source, &far->at, PATIENCE_MS, &e->err), "connect: %s",
            e->err.text);
}

/* A signal takes effect when each thread notices it: waits until all have. */
static void far_stop(struct far *far)
{
    int status = 0;

    kill(far->pid, SIGSTOP);
    cr_assert_eq(waitpid(far->pid, &status, WUNTRACED), far->pid);
    cr_assert(WIFSTOPPED(status), "the peer ended with status %#x", (unsigned)status);
}

static void far_end(struct far *far)
{
    kill(far->pid, SIGKILL);
    waitpid(far->pid, NULL, 0);
}

/* Posts chunks and fences until the transport ends. */
static int post_until_error(struct ends *e, const struct memory *m, uint64_t give_up_at)
{
    struct completion completions[64];
    int result = 0;

    for (uint64_t fence = 1; result >= 0 && clock_now() < give_up_at; fence++) {
        struct transfer t = place(m, 0, MiB, NULL);

        result = transport_post(e->source, &t, 1, &e->err);
        if (result > 0 && fence % 8 == 0)
            result = transport_fence(e->source, fence, &e->err);
        if (result == -EAGAIN) {
            error_clear(&e->err);
            result = 0;
        }
        if (result >= 0)
            result = transport_reap(e->source, completions, 64, 20, &e->err);
    }
    return result;
}

static void source_region(struct ends *e, struct memory *m)
{
    struct transport_region here;

    memory_make(m, 1, 4 * MiB);
    here = (struct transport_region){.id = m->id, .base = m->source, .size = m->size};
    require(e, !transport_open_region(e->source, &here, &e->err), "open_region: %s", e->err.text);
}

CONFORMS_SEPARABLE(ending, the_peer_process_is_killed)
{
    struct memory memory;
    struct far far;
    struct ends e;
    uint64_t start;
    int result;

    far_start(&e, &far, *setup, 2000);
    source_region(&e, &memory);
    far_end(&far);
    start = clock_now();
    result = post_until_error(&e, &memory, start + PATIENCE_MS * NS_PER_MS);
    expect(&e, result == -ECONNRESET, "expected -ECONNRESET, got %d (%s)", result, e.err.text);
    expect(&e, clock_now() - start < 3 * NS_PER_S, "noticed after %.1f ms",
           ns_to_ms(clock_now() - start));
    ends_close(&e);
    memory_free(&memory);
}

CONFORMS_SEPARABLE(ending, the_peer_process_is_stopped_under_load)
{
    struct memory memory;
    struct far far;
    struct ends e;
    uint64_t start;
    int result;

    far_start(&e, &far, *setup, 1000);
    source_region(&e, &memory);
    far_stop(&far);
    start = clock_now();
    result = post_until_error(&e, &memory, start + PATIENCE_MS * NS_PER_MS);
    expect(&e, result == -ETIMEDOUT || result == -ECONNRESET,
           "expected -ETIMEDOUT or -ECONNRESET, got %d (%s)", result, e.err.text);
    expect(&e, clock_now() - start >= 900 * NS_PER_MS, "declared dead after only %.1f ms",
           ns_to_ms(clock_now() - start));
    expect(&e, clock_now() - start < 3 * NS_PER_S, "noticed after %.1f ms",
           ns_to_ms(clock_now() - start));
    ends_close(&e);
    far_end(&far);
    memory_free(&memory);
}

/* Its kernel goes on acknowledging bytes; only the fence stays unanswered. */
CONFORMS_SEPARABLE(ending, the_peer_process_is_stopped_before_a_fence)
{
    struct error err = {0};
    struct far far;
    struct ends e;
    uint64_t start;
    int result;

    far_start(&e, &far, *setup, 1000);
    far_stop(&far);
    start = clock_now();
    expect_result(&e, transport_fence(e.source, 1, &e.err), 0);
    result = wait_for_error(e.source, &err);
    expect(&e, result == -ETIMEDOUT || result == -ECONNRESET,
           "expected -ETIMEDOUT or -ECONNRESET, got %d (%s)", result, err.text);
    expect(&e, clock_now() - start < 3 * NS_PER_S, "noticed after %.1f ms",
           ns_to_ms(clock_now() - start));
    ends_close(&e);
    far_end(&far);
}

CONFORMS_SEPARABLE(ending, an_idle_lane_lives_longer_than_dead_after)
{
    struct error err = {0};
    struct completion completion;
    struct far far;
    struct ends e;
    int result;

    far_start(&e, &far, *setup, 500);
    result = transport_reap(e.source, &completion, 1, 1500, &err);
    expect(&e, result == 0, "an idle lane was declared dead: %d (%s)", result, err.text);
    settle(&e, 1);
    ends_close(&e);
    far_end(&far);
}
