/* A state directory of its own for each test, and migrations to learn from. */
#ifndef TESTS_UNIT_COSTS_FIXTURE_H
#define TESTS_UNIT_COSTS_FIXTURE_H

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/costs.h"
#include "migrate/costs_file.h"
#include "transport/base/clock.h"

static char folder[64];

static inline void set_up(void)
{
    strcpy(folder, "/tmp/wander-costs-XXXXXX");
    cr_assert(mkdtemp(folder), "making a folder failed: %s", strerror(errno));
    setenv("XDG_STATE_HOME", folder, 1);
}

static inline void tear_down(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", folder);
    cr_expect_eq(system(command), 0);
}

static inline void file_path(const char *name, char out[128])
{
    snprintf(out, 128, "%s/wander/%s", folder, name);
}

static inline void put_file(const char *text)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/wander", folder);
    mkdir(path, 0700);
    file_path("costs.json", path);
    FILE *file = fopen(path, "w");
    cr_assert(file, "%s: %s", path, strerror(errno));
    fputs(text, file);
    fclose(file);
}

static inline struct costs_key example_key(void)
{
    return (struct costs_key){.guest_kind = "lab",
                              .accel = "kvm",
                              .vcpus = 2,
                              .transport = "tcp",
                              .operation = TRANSPORT_WRITE,
                              .registration = TRANSPORT_REGISTER_ALL,
                              .host = "there"};
}

/* 64 MiB in 64 ms, 1 MiB of it again in the pause: 12 ms of 20 ms downtime are not the pages'. */
static inline struct measurement example(struct round_measurement rounds[2])
{
    rounds[0] =
        (struct round_measurement){.pages = 16384, .bytes = 64 << 20, .ns = 512 * NS_PER_MS};
    rounds[1] = (struct round_measurement){.pages = 256, .bytes = 1 << 20, .paused = true};
    return (struct measurement){
        .result = "completed",
        .rounds = rounds,
        .round_count = 2,
        .setup_ns = 30 * NS_PER_MS,
        .pause_start_ns = 600 * NS_PER_MS,
        .downtime_ns = 20 * NS_PER_MS,
        .downtime = {.pause = 1 * NS_PER_MS, .final_copy = 15 * NS_PER_MS},
        .last_bytes = 1 << 20,
        .total_ns = 670 * NS_PER_MS,
    };
}

/* `bandwidth` 0: it was not rehearsed. */
static inline void learn(const struct costs_key *key, const struct measurement *m,
                         uint64_t bandwidth)
{
    struct path_profile path = {.bandwidth = bandwidth};
    struct error err = {0};

    cr_assert_eq(costs_learn(key, m, bandwidth ? &path : NULL, &err), 0, "%s", err.text);
}

/* One of `downtime_ms` besides its pages. */
static inline void learn_downtime(const struct costs_key *key, unsigned downtime_ms)
{
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);

    m.last_bytes = 0;
    m.downtime_ns = downtime_ms * NS_PER_MS;
    learn(key, &m, 0);
}

static inline void expect_ms(const char *what, uint64_t got_ns, double want_ms)
{
    cr_expect(got_ns / 1e6 > want_ms - 0.001 && got_ns / 1e6 < want_ms + 0.001,
              "%s: expected %.3f ms, got %.3f ms", what, want_ms, got_ns / 1e6);
}

#endif
