/* How fast lanes move pages, as ratios to a single plain stream of send and recv in the same run.
 *
 *   lanes [GIBIBYTES [REPEATS [RUN_KIB]]]    default 4, 3, 1024
 *
 * Two processes, loopback, touched memory in huge pages at both ends. Each line is one repeat:
 * GiB/s from the first byte to the last fence, and CPU seconds of source and destination per GiB.
 * RUN_KIB below 1024 leaves a hole of 4 KiB after each run, as scattered dirty pages do. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "transport/base/clock.h"
#include "transport/base/options.h"
#include "transport/transport.h"

enum { PLAIN_BYTES = 1 << 20, HOLE = 4096, BATCH = 64, WAIT_MS = 10000 };

struct result {
    double gib_per_s, source_cpu, destination_cpu; /* CPU seconds per GiB */
};

struct bench {
    uint8_t *memory;
    uint64_t size, moved, run;
    unsigned lanes; /* 0: plain stream */
    int pipe;       /* to the parent (destination) or from the child (source) */
};

static void die(const char *what, const struct error *err)
{
    fprintf(stderr, "lanes: %s: %s\n", what, err && err->code ? err->text : strerror(errno));
    _exit(1);
}

static void say(int fd, const void *bytes, size_t size)
{
    if (write(fd, bytes, size) != (ssize_t)size)
        die("write", NULL);
}

static void hear(int fd, void *bytes, size_t size)
{
    if (read(fd, bytes, size) != (ssize_t)size)
        die("the other process ended early", NULL);
}

static struct address loopback(void)
{
    struct address at = {.scheme = "tcp", .host = "127.0.0.1"};

    return at;
}

static struct transport *lanes_new(const struct bench *b)
{
    struct transport_params params = {.epoch = 1, .lanes = b->lanes};
    struct transport_region region = {.id = 0, .base = b->memory, .size = b->size};
    struct error err = {0};
    struct transport *t;

    if (transport_new("tcp", &params, &t, &err) < 0 || transport_open_region(t, &region, &err) < 0)
        die("transport", &err);
    return t;
}

static void plain_destination(const struct bench *b)
{
    struct address at = loopback();
    struct error err = {0};
    int listener = address_listen(&at, &at.port, &err), socket;

    if (listener < 0)
        die("listen", &err);
    say(b->pipe, &at.port, sizeof at.port);
    socket = accept(listener, NULL, NULL);
    for (uint64_t at_byte = 0; at_byte < b->size;) {
        ssize_t n = recv(socket, b->memory + at_byte, PLAIN_BYTES, MSG_WAITALL);

        if (n <= 0)
            die("recv", NULL);
        at_byte += (uint64_t)n;
    }
    if (send(socket, "", 1, 0) != 1)
        die("send", NULL);
}

static void lanes_destination(const struct bench *b)
{
    struct transport *t = lanes_new(b);
    struct address at = loopback();
    struct error err = {0};
    uint16_t port;
    int result;

    if (transport_listen(t, &at, &port, &err) < 0)
        die("listen", &err);
    say(b->pipe, &port, sizeof port);
    if (transport_accept(t, WAIT_MS, &err) < 0)
        die("accept", &err);
    while ((result = transport_reap(t, NULL, 0, WAIT_MS, &err)) == 0)
        ;
    if (result != -ECONNRESET)
        die("destination", &err);
    transport_close(t);
}

static void plain_source(const struct bench *b, struct address *peer)
{
    struct error err = {0};
    int socket = address_connect(peer, WAIT_MS, -1, &err);
    char done;

    if (socket < 0)
        die("connect", &err);
    for (uint64_t at = 0; at < b->size;) {
        uint64_t left = b->size - at;
        ssize_t n = send(socket, b->memory + at, left < PLAIN_BYTES ? left : PLAIN_BYTES, 0);

        if (n < 0)
            die("send", NULL);
        at += (uint64_t)n;
    }
    if (recv(socket, &done, 1, 0) != 1)
        die("recv", NULL);
    close(socket);
}

static unsigned next_batch(const struct bench *b, uint64_t at, struct transfer *batch)
{
    uint64_t step = b->run == TRANSPORT_MAX_TRANSFER ? b->run : b->run + HOLE;
    unsigned n = 0;

    for (; n < BATCH && at < b->size; n++, at += step)
        batch[n] = (struct transfer){.offset = at,
                                     .bytes = b->memory + at,
                                     .length = b->size - at < b->run ? b->size - at : b->run,
                                     .cookie = b->memory};
    return n;
}

static bool reap_all(struct transport *t, int timeout_ms)
{
    struct completion completions[BATCH];
    struct error err = {0};
    int n = transport_reap(t, completions, BATCH, timeout_ms, &err);

    if (n < 0)
        die("reap", &err);
    for (int i = 0; i < n; i++)
        if (completions[i].kind == COMPLETION_FENCE)
            return true;
    return false;
}

static void lanes_source(struct bench *b, const struct address *peer)
{
    struct transport *t = lanes_new(b);
    uint64_t step = b->run == TRANSPORT_MAX_TRANSFER ? b->run : b->run + HOLE;
    struct transfer batch[BATCH];
    struct error err = {0};

    if (transport_connect(t, peer, WAIT_MS, &err) < 0)
        die("connect", &err);
    b->moved = 0;
    for (uint64_t at = 0; at < b->size;) {
        int taken = transport_post(t, batch, next_batch(b, at, batch), &err);

        if (taken < 0 || transport_kick(t, &err) < 0)
            die("post", &err);
        for (int i = 0; i < taken; i++)
            b->moved += batch[i].length;
        at += (uint64_t)taken * step;
        reap_all(t, taken ? 0 : WAIT_MS);
    }
    if (transport_fence(t, 1, &err) < 0)
        die("fence", &err);
    while (!reap_all(t, WAIT_MS))
        ;
    transport_close(t);
}

/* Memory of this process's own: what a fork shares is copied page by page at the first write. */
static uint8_t *touched_memory(uint64_t size)
{
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        die("mmap", NULL);
    madvise(memory, size, MADV_HUGEPAGE);
    memset(memory, 1, size);
    return memory;
}

static void destination(struct bench *b)
{
    uint64_t cpu;
    char go = 0;

    b->memory = touched_memory(b->size);
    say(b->pipe, &go, 1);
    cpu = clock_process_cpu();
    (b->lanes ? lanes_destination : plain_destination)(b);
    cpu = clock_process_cpu() - cpu;
    say(b->pipe, &cpu, sizeof cpu);
    _exit(0);
}

static struct result run(struct bench *b)
{
    struct address peer = loopback();
    uint64_t start, cpu, far_cpu;
    int fds[2];
    double gib;
    char go;

    if (pipe(fds) < 0)
        die("pipe", NULL);
    b->pipe = fds[1];
    if (fork() == 0)
        destination(b);
    close(fds[1]);
    hear(fds[0], &go, 1);
    hear(fds[0], &peer.port, sizeof peer.port);
    start = clock_now();
    cpu = clock_process_cpu();
    b->moved = b->size;
    if (b->lanes)
        lanes_source(b, &peer);
    else
        plain_source(b, &peer);
    start = clock_now() - start;
    cpu = clock_process_cpu() - cpu;
    hear(fds[0], &far_cpu, sizeof far_cpu);
    close(fds[0]);
    wait(NULL);
    gib = (double)b->moved / (1 << 30);
    return (struct result){gib * 1e9 / (double)start, (double)cpu / 1e9 / gib,
                           (double)far_cpu / 1e9 / gib};
}

static void compare(struct bench *b)
{
    static const unsigned lanes[] = {1, 2, 4};
    struct result plain;

    b->lanes = 0;
    plain = run(b);
    printf("plain    %5.2f GiB/s  cpu/GiB %.3f + %.3f\n", plain.gib_per_s, plain.source_cpu,
           plain.destination_cpu);
    for (unsigned i = 0; i < sizeof lanes / sizeof *lanes; i++) {
        struct result r;

        b->lanes = lanes[i];
        r = run(b);
        printf("%u lane%s  %5.2f GiB/s  cpu/GiB %.3f + %.3f   rate x%.2f  cpu x%.2f\n", lanes[i],
               lanes[i] > 1 ? "s" : " ", r.gib_per_s, r.source_cpu, r.destination_cpu,
               r.gib_per_s / plain.gib_per_s,
               (r.source_cpu + r.destination_cpu) / (plain.source_cpu + plain.destination_cpu));
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    uint64_t gib = 4, repeats = 3, run_kib = 1024;
    struct error err = {0};
    struct bench b;

    if ((argc > 1 && parse_number(argv[1], 1, 64, &gib, &err) < 0) ||
        (argc > 2 && parse_number(argv[2], 1, 100, &repeats, &err) < 0) ||
        (argc > 3 && parse_number(argv[3], 4, 1024, &run_kib, &err) < 0)) {
        fprintf(stderr, "usage: lanes [GIBIBYTES [REPEATS [RUN_KIB]]]: %s\n", err.text);
        return 2;
    }
    b = (struct bench){.size = gib << 30, .run = run_kib << 10};
    b.memory = touched_memory(b.size);
    for (uint64_t i = 0; i < repeats; i++)
        compare(&b);
    return 0;
}
