#include "tests/conformance/harness/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "transport/loop/loop.h"

#define RDMA_IPV4 "WANDER_RDMA_IPV4" /* an address of this machine that leads to an RDMA device */
#define RDMA_IPV6 "WANDER_RDMA_IPV6"

/* Every transport: its scheme and where its destination listens. Without a scheme the two ends come
 * as a pair. A stream listens on a TCP port, which anybody may connect to. `given` names a variable
 * of the environment that has the address; without it there is no such transport here. */
static const struct {
    const char *name, *scheme, *host, *given;
    bool stream;
    enum transport_operation operation;
    enum transport_registration registration;
} transports[] = {
    {"loop", NULL, "127.0.0.1"},
    {"tcp/ipv4", "tcp", "127.0.0.1", .stream = true},
    {"tcp/ipv6", "tcp", "::1", .stream = true},
    {"rdma/write/all/ipv4", "rdma", .given = RDMA_IPV4},
    {"rdma/read/all/ipv6", "rdma", .given = RDMA_IPV6, .operation = TRANSPORT_READ},
    {"rdma/write/chunk/ipv6", "rdma", .given = RDMA_IPV6, .registration = TRANSPORT_REGISTER_CHUNK},
    {"rdma/read/chunk/ipv4", "rdma", .given = RDMA_IPV4, .operation = TRANSPORT_READ,
     .registration = TRANSPORT_REGISTER_CHUNK},
};

/* What each is wrapped in, both its ends. The rate's bucket is a few MiB: tests that move more are
 * held back by it. */
static const char *const filters[] = {
    "", "rate=400M", "delay=2ms", "fault=cut@1000000000", "delay=1ms,rate=400M",
};

enum {
    TRANSPORTS = sizeof(transports) / sizeof(transports[0]),
    FILTERS = sizeof(filters) / sizeof(filters[0]),
    SETUPS = TRANSPORTS * FILTERS,
};

static bool is_any(unsigned transport)
{
    return transport < TRANSPORTS;
}

static bool is_separable(unsigned transport)
{
    return transports[transport].scheme != NULL;
}

static bool is_stream(unsigned transport)
{
    return transports[transport].stream;
}

/* Where its destination listens; NULL when it is not here, or not asked for. */
static const char *host_of(unsigned transport)
{
    const char *only = getenv("WANDER_CONFORMANCE"); /* a part of the names of those wanted */

    if (only && !strstr(transports[transport].name, only))
        return NULL;
    return transports[transport].given ? getenv(transports[transport].given)
                                       : transports[transport].host;
}

/* Whether the environment asks for a filter, by the whole of its text, or "none". */
static bool is_asked_for(unsigned filter)
{
    const char *only = getenv("WANDER_CONFORMANCE_FILTER");

    return !only || !strcmp(*filters[filter] ? filters[filter] : "none", only);
}

static struct criterion_test_params setups_where(bool (*wanted)(unsigned transport))
{
    static unsigned indices[SETUPS];
    size_t count = 0;

    for (unsigned i = 0; i < SETUPS; i++)
        if (host_of(i / FILTERS) && wanted(i / FILTERS) && is_asked_for(i % FILTERS))
            indices[count++] = i;
    return cr_make_param_array(unsigned, indices, count);
}

struct criterion_test_params setups_all(void)
{
    return setups_where(is_any);
}

struct criterion_test_params setups_separable(void)
{
    return setups_where(is_separable);
}

struct criterion_test_params setups_stream(void)
{
    return setups_where(is_stream);
}

struct transport_params params_default(unsigned lanes)
{
    return (struct transport_params){
        .token = "0123456789abcde",
        .epoch = 7,
        .lanes = lanes,
    };
}

static struct transport *end_make(struct ends *e, const struct transport_params *params)
{
    struct transport *t = NULL;
    struct transport_params all = *params;
    int result;

    all.operation = transports[e->setup / FILTERS].operation;
    all.registration = transports[e->setup / FILTERS].registration;
    result = transport_new(transports[e->setup / FILTERS].scheme, &all, &t, &e->err);

    require(e, result == 0, "transport_new: %s", e->err.text);
    result = transport_wrap(filters[e->setup % FILTERS], &t, &e->err);
    require(e, result == 0, "transport_wrap: %s", e->err.text);
    return t;
}

struct transport *source_make(struct ends *e, const struct transport_params *params)
{
    return end_make(e, params);
}

struct transport *destination_make(struct ends *e, const struct transport_params *params)
{
    return end_make(e, params);
}

static void pair_make(struct ends *e)
{
    const char *spec = filters[e->setup % FILTERS];
    int result = loop_pair_new(&e->source_params, &e->destination_params, &e->source,
                               &e->destination, &e->err);

    require(e, result == 0, "loop_pair_new: %s", e->err.text);
    result = transport_wrap(spec, &e->source, &e->err);
    require(e, result == 0, "transport_wrap: %s", e->err.text);
    result = transport_wrap(spec, &e->destination, &e->err);
    require(e, result == 0, "transport_wrap: %s", e->err.text);
}

void ends_make(struct ends *e, unsigned setup, const struct transport_params *source,
               const struct transport_params *destination)
{
    *e = (struct ends){
        .setup = setup,
        .source_params = *source,
        .destination_params = *destination,
        .fences_in_order = true,
    };
    snprintf(e->name, sizeof(e->name), "%s %s", transports[setup / FILTERS].name,
             filters[setup % FILTERS]);
    snprintf(e->at.host, sizeof(e->at.host), "%s", host_of(setup / FILTERS));
    snprintf(e->at.scheme, sizeof(e->at.scheme), "tcp");
    if (!transports[setup / FILTERS].scheme) {
        pair_make(e);
        return;
    }
    e->source = end_make(e, source);
    e->destination = end_make(e, destination);
}

void ends_listen(struct ends *e)
{
    int result = transport_listen(e->destination, &e->at, &e->at.port, &e->err);

    if (result == -EADDRNOTAVAIL || result == -EAFNOSUPPORT)
        cr_skip("this machine has no %s", e->at.host);
    require(e, result == 0, "listen: %s", e->err.text);
    require(e, e->at.port != 0, "listen told no port");
}

void ends_meet(struct ends *e, struct call *accepting)
{
    int result = transport_connect(e->source, &e->at, PATIENCE_MS, &e->err);

    call_join(accepting);
    require(e, result == 0, "connect: %s", e->err.text);
    require(e, accepting->result == 0, "accept: %s", accepting->err.text);
}

void ends_connect(struct ends *e)
{
    struct call accepting;

    ends_listen(e);
    call_start(&accepting, call_accept, e->destination, &e->at);
    ends_meet(e, &accepting);
}

void ends_connected(struct ends *e, unsigned setup, unsigned lanes)
{
    struct transport_params params = params_default(lanes);

    ends_make(e, setup, &params, &params);
    ends_connect(e);
}

void ends_close(struct ends *e)
{
    transport_close(e->source);
    transport_close(e->destination);
    e->source = e->destination = NULL;
}

static uint64_t rounded(uint64_t size)
{
    return (size + 4095) & ~4095ull;
}

/* The memory ends right before the guard page behind it, so that not even one byte too many goes
 * unseen. */
static uint8_t *guarded(uint64_t size)
{
    uint64_t whole = rounded(size);
    uint8_t *all = mmap(NULL, whole + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    cr_assert_neq((void *)all, MAP_FAILED);
    cr_assert_eq(mprotect(all + 4096, whole, PROT_READ | PROT_WRITE), 0);
    return all + 4096 + (whole - size);
}

static void guarded_free(uint8_t *memory, uint64_t size)
{
    uint64_t whole = rounded(size);

    munmap(memory - (whole - size) - 4096, whole + 8192);
}

void memory_make(struct memory *m, uint32_t id, uint64_t size)
{
    *m = (struct memory){
        .id = id, .size = size, .source = guarded(size), .destination = guarded(size)};
    for (uint64_t i = 0; i < size; i += sizeof(i)) {
        uint64_t word = (i + id + 1) * 0x9e3779b97f4a7c15ull;

        memcpy(m->source + i, &word, size - i < sizeof(word) ? size - i : sizeof(word));
    }
    memset(m->destination, UNTOUCHED, size);
}

void memory_open(struct ends *e, const struct memory *m)
{
    struct transport_region here = {.id = m->id, .base = m->source, .size = m->size};
    struct transport_region there = {.id = m->id, .base = m->destination, .size = m->size};
    int result = transport_open_region(e->source, &here, &e->err);

    require(e, result == 0, "open_region at the source: %s", e->err.text);
    result = transport_open_region(e->destination, &there, &e->err);
    require(e, result == 0, "open_region at the destination: %s", e->err.text);
}

void memory_free(struct memory *m)
{
    guarded_free(m->source, m->size);
    guarded_free(m->destination, m->size);
}

uint64_t memory_missing(const struct memory *m, uint64_t offset, uint64_t length)
{
    uint64_t missing = 0;

    if (!memcmp(m->destination + offset, m->source + offset, length))
        return 0;
    for (uint64_t i = offset; i < offset + length; i++)
        missing += m->destination[i] != m->source[i];
    return missing;
}

uint64_t memory_touched(const struct memory *m, uint64_t offset, uint64_t length)
{
    const uint8_t *at = m->destination + offset;
    uint64_t touched = 0;

    /* All are equal when each is equal to the next. */
    if (!length || (*at == UNTOUCHED && !memcmp(at, at + 1, length - 1)))
        return 0;
    for (uint64_t i = offset; i < offset + length; i++)
        touched += m->destination[i] != UNTOUCHED;
    return touched;
}

struct transfer place(const struct memory *m, uint64_t offset, size_t length, unsigned *counter)
{
    return (struct transfer){
        .kind = TRANSFER_PLACE,
        .region = m->id,
        .offset = offset,
        .bytes = m->source + offset,
        .length = length,
        .cookie = counter,
    };
}

static void tally(struct ends *e, const struct completion *c)
{
    if (c->kind == COMPLETION_TRANSFER) {
        e->transfers_completed++;
        ++*(unsigned *)c->cookie;
        return;
    }
    e->fences_in_order = e->fences_in_order && c->fence > e->last_fence;
    e->last_fence = c->fence;
    e->fences_completed++;
}

int reap_some(struct ends *e, unsigned max, int timeout_ms)
{
    struct completion completions[64];
    int n = transport_reap(e->source, completions, max < 64 ? max : 64, timeout_ms, &e->err);

    require(e, n >= 0, "reap: %s", e->err.text);
    for (int i = 0; i < n; i++)
        tally(e, &completions[i]);
    return n;
}

void post_all(struct ends *e, const struct transfer *transfers, unsigned n)
{
    uint64_t deadline = clock_now() + PATIENCE_MS * NS_PER_MS;
    unsigned posted = 0;

    while (posted < n) {
        int taken = transport_post(e->source, transfers + posted, n - posted, &e->err);

        require(e, taken >= 0, "post: %s", e->err.text);
        require(e, (unsigned)taken <= n - posted, "post took %d of %u", taken, n - posted);
        require(e, clock_now() < deadline, "only %u of %u transfers found room", posted, n);
        posted += (unsigned)taken;
        if (posted < n)
            reap_some(e, 64, 100);
    }
    require(e, transport_kick(e->source, &e->err) == 0, "kick: %s", e->err.text);
}

void reap_until(struct ends *e, unsigned transfers)
{
    uint64_t deadline = clock_now() + PATIENCE_MS * NS_PER_MS;

    while (e->transfers_completed < transfers) {
        require(e, clock_now() < deadline, "only %u of %u transfers completed",
                e->transfers_completed, transfers);
        reap_some(e, 64, 100);
    }
}

void settle(struct ends *e, uint64_t id)
{
    uint64_t deadline = clock_now() + PATIENCE_MS * NS_PER_MS;

    require(e, transport_fence(e->source, id, &e->err) == 0, "fence: %s", e->err.text);
    while (e->last_fence < id) {
        require(e, clock_now() < deadline, "fence %llu did not complete", (unsigned long long)id);
        reap_some(e, 64, 100);
    }
}

int wait_for_error(struct transport *t, struct error *err)
{
    uint64_t deadline = clock_now() + PATIENCE_MS * NS_PER_MS;
    struct completion completions[64];
    int result = 0;

    error_clear(err);
    while (result >= 0 && clock_now() < deadline)
        result = transport_reap(t, completions, 64, 1000, err);
    return result < 0 ? result : 0;
}

int call_accept(struct transport *t, const struct address *at, struct error *err)
{
    (void)at;
    return transport_accept(t, PATIENCE_MS, err);
}

int call_connect(struct transport *t, const struct address *at, struct error *err)
{
    return transport_connect(t, at, PATIENCE_MS, err);
}

int call_reap(struct transport *t, const struct address *at, struct error *err)
{
    struct completion completion;
    int result;

    (void)at;
    do {
        result = transport_reap(t, &completion, 1, -1, err);
    } while (result >= 0);
    return result;
}

int call_shutdown(struct transport *t, const struct address *at, struct error *err)
{
    (void)at, (void)err;
    transport_shutdown(t);
    return 0;
}

static void *call_main(void *context)
{
    struct call *c = context;

    c->result = c->run(c->t, &c->at, &c->err);
    c->done_at = clock_now();
    return NULL;
}

void call_start(struct call *c, call_fn *run, struct transport *t, const struct address *at)
{
    *c = (struct call){.run = run, .t = t, .at = *at};
    cr_assert_eq(pthread_create(&c->thread, NULL, call_main, c), 0);
}

void call_join(struct call *c)
{
    pthread_join(c->thread, NULL);
}

void expect_result_of(struct ends *e, int result, int expected, const char *what)
{
    expect(e, result == expected, "%s: expected %d (%s), got %d (%s)", what, expected,
           strerror(-expected), result, result < 0 ? e->err.text : "");
    error_clear(&e->err);
}
