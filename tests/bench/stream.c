/* How fast lanes move pages from one host to another: two processes, one on each.
 *
 *   stream receive URI MEBIBYTES LANES                        takes one stream; port 0: any
 *   stream send URI MEBIBYTES LANES RUN_KIB [write|read [all|chunk]]    default write, all
 *
 * Memory is touched at both ends beforehand. RUN_KIB below 1024 leaves a hole of 4 KiB after each
 * run, as scattered dirty pages do. One page of every MiB goes first, to a fence, and is not
 * counted: so with `all` everything is registered when the clock starts. Each end prints a line of
 * JSON. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "transport/base/clock.h"
#include "transport/base/options.h"
#include "transport/transport.h"

enum { HOLE = 4096, BATCH = 64, WAIT_MS = 60000 };

struct stream {
    struct address at;
    struct transport_params params;
    struct transport *transport;
    uint8_t *memory;
    uint64_t size, moved;
    bool fenced;
};

static void die(const char *what, const struct error *err)
{
    fprintf(stderr, "stream: %s: %s\n", what, err && err->code ? err->text : strerror(errno));
    exit(1);
}

static void open_transport(struct stream *s)
{
    struct transport_region region = {.id = 0, .size = s->size};
    struct error err = {0};

    s->memory = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->memory == MAP_FAILED)
        die("mmap", NULL);
    memset(s->memory, 1, s->size);
    region.base = s->memory;
    if (transport_new(s->at.scheme, &s->params, &s->transport, &err) < 0 ||
        transport_open_region(s->transport, &region, &err) < 0)
        die("transport", &err);
}

static void receive(struct stream *s)
{
    struct error err = {0};
    uint16_t port;
    int result;

    if (transport_listen(s->transport, &s->at, &port, &err) < 0)
        die("listen", &err);
    printf("listening on port %u\n", port);
    fflush(stdout);
    if (transport_accept(s->transport, WAIT_MS, &err) < 0)
        die("accept", &err);
    while ((result = transport_reap(s->transport, NULL, 0, WAIT_MS, &err)) == 0)
        ;
    if (result != -ECONNRESET)
        die("receive", &err);
    printf("{\"cpu_s\": %.3f}\n", (double)clock_process_cpu() / 1e9);
}

static void reap(struct stream *s, int timeout_ms)
{
    struct completion completions[BATCH];
    struct error err = {0};
    int n = transport_reap(s->transport, completions, BATCH, timeout_ms, &err);

    if (n < 0)
        die("reap", &err);
    for (int i = 0; i < n; i++)
        s->fenced |= completions[i].kind == COMPLETION_FENCE;
}

static unsigned next_batch(const struct stream *s, uint64_t at, uint64_t run, uint64_t step,
                           struct transfer *batch)
{
    unsigned n = 0;

    for (; n < BATCH && at < s->size; n++, at += step)
        batch[n] = (struct transfer){.offset = at,
                                     .bytes = s->memory + at,
                                     .length = s->size - at < run ? s->size - at : run,
                                     .cookie = s->memory};
    return n;
}

/* Every `step` bytes a run of `run`, to the fence. Adds to `moved`. */
static void send_runs(struct stream *s, uint64_t run, uint64_t step, uint64_t fence)
{
    struct transfer batch[BATCH];
    struct error err = {0};

    for (uint64_t at = 0; at < s->size;) {
        unsigned n = next_batch(s, at, run, step, batch);
        int taken = transport_post(s->transport, batch, n, &err);

        if (taken < 0 || transport_kick(s->transport, &err) < 0)
            die("post", &err);
        for (int i = 0; i < taken; i++)
            s->moved += batch[i].length;
        at += (uint64_t)taken * step;
        reap(s, taken ? 0 : WAIT_MS);
    }
    s->fenced = false;
    if (transport_fence(s->transport, fence, &err) < 0)
        die("fence", &err);
    while (!s->fenced)
        reap(s, WAIT_MS);
}

static void print_result(const struct stream *s, uint64_t setup, uint64_t spent, uint64_t cpu)
{
    struct transport_device d = {0};

    transport_describe(s->transport, &d);
    printf("{\"bytes\": %llu, \"setup_s\": %.6f, \"s\": %.6f, \"cpu_s\": %.3f, \"mtu\": %u, "
           "\"data_work_requests\": %llu, \"work_requests\": %llu, \"signalled\": %llu, "
           "\"registrations\": %llu}\n",
           (unsigned long long)s->moved, (double)setup / 1e9, (double)spent / 1e9,
           (double)cpu / 1e9, d.mtu, (unsigned long long)d.data_work_requests,
           (unsigned long long)d.work_requests, (unsigned long long)d.signalled,
           (unsigned long long)d.registrations);
}

static void send_all(struct stream *s, uint64_t run)
{
    uint64_t began = clock_now(), opened, cpu;
    struct error err = {0};

    if (transport_connect(s->transport, &s->at, WAIT_MS, &err) < 0)
        die("connect", &err);
    transport_will_need(s->transport, 0, 0, s->size);
    send_runs(s, HOLE, TRANSPORT_MAX_TRANSFER, 1);
    s->moved = 0;
    opened = clock_now();
    cpu = clock_process_cpu();
    send_runs(s, run, run == TRANSPORT_MAX_TRANSFER ? run : run + HOLE, 2);
    print_result(s, opened - began, clock_now() - opened, clock_process_cpu() - cpu);
}

static void usage(const struct error *err)
{
    fprintf(stderr,
            "usage: stream receive URI MEBIBYTES LANES\n"
            "       stream send URI MEBIBYTES LANES RUN_KIB [write|read [all|chunk]]\n%s\n",
            err->text);
    exit(2);
}

int main(int argc, char **argv)
{
    struct stream s = {.params = {.epoch = 1}};
    uint64_t mebibytes = 0, run_kib = 0, lanes;
    bool sends = argc > 1 && strcmp(argv[1], "send") == 0;
    struct error err = {0};

    if ((!sends && (argc < 2 || strcmp(argv[1], "receive") != 0)) || argc < (sends ? 6 : 5) ||
        argc > 8 || address_parse(argv[2], &s.at, &err) < 0 ||
        parse_number(argv[3], 1, 65536, &mebibytes, &err) < 0 ||
        parse_number(argv[4], 1, TRANSPORT_MAX_LANES, &lanes, &err) < 0 ||
        (sends && parse_number(argv[5], 4, 1024, &run_kib, &err) < 0))
        usage(&err);
    s.size = mebibytes << 20;
    s.params.lanes = (unsigned)lanes;
    s.params.operation =
        argc > 6 && strcmp(argv[6], "read") == 0 ? TRANSPORT_READ : TRANSPORT_WRITE;
    s.params.registration = argc > 7 && strcmp(argv[7], "chunk") == 0 ? TRANSPORT_REGISTER_CHUNK
                                                                      : TRANSPORT_REGISTER_ALL;
    open_transport(&s);
    if (sends)
        send_all(&s, run_kib << 10);
    else
        receive(&s);
    transport_close(s.transport);
    return 0;
}
