/* What the conformance tests share: every transport and every filter around it as one table of set-ups, both ends of
 * a connection in one process, and memory at both ends.
 *
 * CONFORMS(suite, test) defines a test that runs once for each set-up, each run a process of its own:
 *
 *     CONFORMS(placement, one_page)
 *     {
 *         struct ends e;
 *
 *         ends_connected(&e, *setup, 1);
 *         …
 *         ends_close(&e);
 *     }
 *
 * A transport joins by a row in the table `transports` of harness.c. */
#ifndef TESTS_CONFORMANCE_HARNESS_H
#define TESTS_CONFORMANCE_HARNESS_H

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "transport/base/clock.h"
#include "transport/transport.h"

enum {
    PATIENCE_MS = 20000,      /* for what must come, however slow the machine is */
    UNTOUCHED = 0xee,         /* destination memory nobody wrote */
    SHUTDOWN_LIMIT_MS = 2000, /* the contract's second, and one for a busy machine */
};

#define CONFORMS(suite, test)              CONFORMS_WHERE(suite, test, setups_all)
#define CONFORMS_SEPARABLE(suite, test)    CONFORMS_WHERE(suite, test, setups_separable)
#define CONFORMS_STREAM(suite, test)       CONFORMS_WHERE(suite, test, setups_stream)
#define CONFORMS_WHERE(suite, test, where)                                                         \
    ParameterizedTestParameters(suite, test)                                                       \
    {                                                                                              \
        return where();                                                                            \
    }                                                                                              \
    ParameterizedTest(unsigned *setup, suite, test, .timeout = 120)

/* Assertions that name the set-up; `e` is a struct ends *. Test thread only. */
#define expect(e, condition, format, ...)                                                          \
    cr_expect(condition, "[%s] " format, (e)->name, ##__VA_ARGS__)
#define require(e, condition, format, ...)                                                         \
    cr_assert(condition, "[%s] " format, (e)->name, ##__VA_ARGS__)
#define expect_result(e, call, expected)                                                           \
    expect_result_of(e, call, expected, #call)

struct criterion_test_params setups_all(void);
/* Only those whose ends can live in different processes and whose listener others can reach. */
struct criterion_test_params setups_separable(void);
/* Only those whose lanes are TCP connections. */
struct criterion_test_params setups_stream(void);

struct call;

/* Both ends. Zero-initialisation is not needed: ends_make fills it. */
struct ends {
    char name[96]; /* of the set-up */
    unsigned setup;
    struct transport_params source_params, destination_params;
    struct transport *source, *destination; /* NULL once closed */
    struct address at;                      /* where the destination listens */
    struct error err;                       /* of the newest call that failed */
    unsigned transfers_completed, fences_completed;
    uint64_t last_fence;
    bool fences_in_order;
};

struct transport_params params_default(unsigned lanes);
/* Two ends that do not know each other yet; the caller may change params before. */
void ends_make(struct ends *e, unsigned setup, const struct transport_params *source,
               const struct transport_params *destination);
/* One more source for the same destination (separable set-ups), wrapped likewise. */
struct transport *source_make(struct ends *e, const struct transport_params *params);
struct transport *destination_make(struct ends *e, const struct transport_params *params);
void ends_listen(struct ends *e);
/* Listens, accepts and connects. */
void ends_connect(struct ends *e);
/* The accepting half runs in a thread already; connects and joins it. */
void ends_meet(struct ends *e, struct call *accepting);
/* ends_make with default params, and ends_connect. */
void ends_connected(struct ends *e, unsigned setup, unsigned lanes);
void ends_close(struct ends *e);

/* A region at both ends, each between two pages that may not be touched. */
struct memory {
    uint32_t id;
    uint64_t size;
    uint8_t *source, *destination; /* source: pseudo-random bytes; destination: UNTOUCHED */
};

void memory_make(struct memory *m, uint32_t id, uint64_t size);
void memory_open(struct ends *e, const struct memory *m); /* at both ends */
void memory_free(struct memory *m);
/* How many bytes of [offset, offset+length) at the destination are not as expected. */
uint64_t memory_missing(const struct memory *m, uint64_t offset, uint64_t length);
uint64_t memory_touched(const struct memory *m, uint64_t offset, uint64_t length);

struct transfer place(const struct memory *m, uint64_t offset, size_t length, unsigned *counter);

/* The cookies of all transfers are `unsigned *` counters: a completion adds one. */
int reap_some(struct ends *e, unsigned max, int timeout_ms);
/* Posts all of them, reaping when there is no room. */
void post_all(struct ends *e, const struct transfer *transfers, unsigned n);
/* Reaps until so many transfers with cookies have completed since ends_make. */
void reap_until(struct ends *e, unsigned transfers);
/* Fence `id`, and reaps until it has completed. */
void settle(struct ends *e, uint64_t id);
/* Reaps at one end until it fails, at most PATIENCE_MS: the error, 0 when none came. */
int wait_for_error(struct transport *t, struct error *err);

/* A call in a thread of its own. */
typedef int call_fn(struct transport *t, const struct address *at, struct error *err);
struct call {
    call_fn *run;
    struct transport *t;
    struct address at;
    pthread_t thread;
    int result;
    struct error err;
    uint64_t done_at;
};

int call_accept(struct transport *t, const struct address *at, struct error *err);
int call_connect(struct transport *t, const struct address *at, struct error *err);
int call_reap(struct transport *t, const struct address *at, struct error *err); /* no time limit */
int call_shutdown(struct transport *t, const struct address *at, struct error *err);
void call_start(struct call *c, call_fn *run, struct transport *t, const struct address *at);
void call_join(struct call *c);

void expect_result_of(struct ends *e, int result, int expected, const char *what);

#endif
