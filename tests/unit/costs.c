/* What migrations cost besides pages: what is learnt, kept, recalled, and believed. */
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migrate/costs.h"
#include "migrate/costs_file.h"
#include "transport/base/clock.h"

static char folder[64];

static void set_up(void)
{
    strcpy(folder, "/tmp/wander-costs-XXXXXX");
    cr_assert(mkdtemp(folder), "making a folder failed: %s", strerror(errno));
    setenv("XDG_STATE_HOME", folder, 1);
}

static void tear_down(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", folder);
    cr_expect_eq(system(command), 0);
}

TestSuite(costs, .init = set_up, .fini = tear_down);

static void file_path(const char *name, char out[128])
{
    snprintf(out, 128, "%s/wander/%s", folder, name);
}

static void put_file(const char *text)
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

static struct costs_key example_key(void)
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
static struct measurement example(struct round_measurement rounds[2])
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
static void learn(const struct costs_key *key, const struct measurement *m, uint64_t bandwidth)
{
    struct path_profile path = {.bandwidth = bandwidth};
    struct error err = {0};

    cr_assert_eq(costs_learn(key, m, bandwidth ? &path : NULL, &err), 0, "%s", err.text);
}

/* One of `downtime_ms` besides its pages. */
static void learn_downtime(const struct costs_key *key, unsigned downtime_ms)
{
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);

    m.last_bytes = 0;
    m.downtime_ns = downtime_ms * NS_PER_MS;
    learn(key, &m, 0);
}

static void expect_ms(const char *what, uint64_t got_ns, double want_ms)
{
    cr_expect(got_ns / 1e6 > want_ms - 0.001 && got_ns / 1e6 < want_ms + 0.001,
              "%s: expected %.3f ms, got %.3f ms", what, want_ms, got_ns / 1e6);
}

Test(costs, nothing_known_gives_estimates_by_kind)
{
    static const char *const kinds[] = {"lab", "synthetic", "qemu", "other"};
    struct costs_key key = example_key();

    for (size_t i = 0; i < 4; i++) {
        struct fixed_costs costs;
        strcpy(key.guest_kind, kinds[i]);
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, 0u, "%s: %u samples", kinds[i], costs.samples);
        cr_expect_eq(costs.setup_ns, 0u, "%s: the path knows the set-up", kinds[i]);
        cr_expect(costs.downtime_ns && costs.downtime_spread_ns && costs.finish_ns);
        cr_expect_float_eq(costs.bandwidth_ratio, 1, 1e-9);
        cr_expect_eq(costs.state_bytes, policy_first_state_bytes(key.vcpus), "%s: %llu bytes",
                     kinds[i], (unsigned long long)costs.state_bytes);
    }
}

Test(costs, one_migration_teaches_what_was_not_its_pages)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct fixed_costs costs;

    learn(&key, &m, 100 << 20);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u);
    expect_ms("set-up, which one does not show", costs.setup_ns, 0);
    expect_ms("downtime", costs.downtime_ns, 12);
    expect_ms("spread of one", costs.downtime_spread_ns, 3);
    expect_ms("finish", costs.finish_ns, 50);
    cr_expect_float_eq(costs.bandwidth_ratio, 1, 1e-9, "one shows no ratio; came %f",
                       costs.bandwidth_ratio);
}

/* 64 MiB in 512 ms, of which 112 ms are no page's: 160 MiB/s where 100 were rehearsed. */
Test(costs, a_few_migrations_show_how_the_bandwidth_differs_from_the_rehearsed)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct path_profile path = {
        .bandwidth = 100 << 20, .first_ns = 110 * NS_PER_MS, .round_ns = 2 * NS_PER_MS};
    struct fixed_costs costs;
    struct error err = {0};

    for (int i = 0; i < 3; i++)
        cr_assert_eq(costs_learn(&key, &m, &path, &err), 0, "%s", err.text);
    costs_recall(&key, &costs);
    cr_expect_float_eq(costs.bandwidth_ratio, 1.6, 1e-3, "ratio %f", costs.bandwidth_ratio);
    expect_ms("set-up", costs.setup_ns, 30);
    strcpy(key.host, "elsewhere");
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 3u, "elsewhere: %u samples", costs.samples);
    expect_ms("downtime elsewhere", costs.downtime_ns, 12);
    expect_ms("finish elsewhere", costs.finish_ns, 50);
    expect_ms("set-up elsewhere", costs.setup_ns, 0);
    cr_expect_float_eq(costs.bandwidth_ratio, 1, 1e-9, "ratio elsewhere %f", costs.bandwidth_ratio);
}

Test(costs, a_verification_is_no_cost_of_those_to_come)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct fixed_costs costs;

    m.verified = true;
    m.downtime.verify = 300 * NS_PER_MS;
    m.downtime_ns += m.downtime.verify;
    m.total_ns += m.downtime.verify;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u);
    expect_ms("downtime", costs.downtime_ns, 12);
    expect_ms("finish", costs.finish_ns, 50);
}

Test(costs, pages_take_no_more_than_the_final_copy)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct fixed_costs costs;

    m.last_bytes = 64 << 20;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    expect_ms("downtime", costs.downtime_ns, 5);
}

/* 1 MiB takes 8 ms as the first round went, and 4 ms as the second did. */
Test(costs, the_last_pages_go_as_the_later_rounds_did)
{
    struct costs_key key = example_key();
    struct round_measurement two[2], rounds[3];
    struct measurement m = example(two);
    struct fixed_costs costs;

    rounds[0] = two[0];
    rounds[1] = (struct round_measurement){.bytes = 16 << 20, .ns = 64 * NS_PER_MS};
    rounds[2] = two[1];
    m.rounds = rounds;
    m.round_count = 3;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    expect_ms("downtime", costs.downtime_ns, 16);
}

Test(costs, round_trips_are_the_paths_and_not_learnt)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct fixed_costs costs;

    m.round_trip_ns = 2 * NS_PER_MS;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    expect_ms("downtime", costs.downtime_ns, 12 - DOWNTIME_ROUND_TRIPS * 2);
    m.round_trip_ns = 100 * NS_PER_MS; /* more than there is */
    key.vcpus++;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u, "%u samples", costs.samples);
    expect_ms("downtime", costs.downtime_ns, 0);
}

Test(costs, medians_and_the_central_ninety_percent)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    for (unsigned i = 11; i > 0; i--)
        learn_downtime(&key, 10 * i);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 11u);
    expect_ms("median", costs.downtime_ns, 60);
    expect_ms("spread", costs.downtime_spread_ns, 45);
}

Test(costs, of_two_the_quicker_counts)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    learn_downtime(&key, 200);
    learn_downtime(&key, 20);
    costs_recall(&key, &costs);
    expect_ms("downtime", costs.downtime_ns, 20);
    learn_downtime(&key, 200);
    costs_recall(&key, &costs);
    expect_ms("downtime of three", costs.downtime_ns, 200);
}

Test(costs, few_moves_over_one_path_are_told_from_those_over_others)
{
    struct costs_key key = example_key(), other = example_key(), guest = example_key();
    struct fixed_costs costs;

    strcpy(other.transport, "rdma");
    guest.vcpus++;
    learn_downtime(&guest, 5);
    learn_downtime(&key, 200);
    learn_downtime(&other, 40);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u);
    expect_ms("downtime", costs.downtime_ns, 40);
    expect_ms("spread", costs.downtime_spread_ns, 80);
    learn_downtime(&key, 220);
    learn_downtime(&key, 210);
    costs_recall(&key, &costs);
    expect_ms("downtime of three", costs.downtime_ns, 210);
}

Test(costs, the_newest_samples_stay)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    for (unsigned i = 0; i < COSTS_SAMPLES; i++)
        learn_downtime(&key, 500);
    for (unsigned i = 0; i < COSTS_SAMPLES; i++)
        learn_downtime(&key, 10);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, (unsigned)COSTS_SAMPLES, "%u samples", costs.samples);
    expect_ms("median", costs.downtime_ns, 10);
    expect_ms("spread", costs.downtime_spread_ns, 0);
}

static void differ_guest(struct costs_key *k)
{
    strcpy(k->guest_kind, "qemu");
}

static void differ_accel(struct costs_key *k)
{
    strcpy(k->accel, "tcg");
}

static void differ_vcpus(struct costs_key *k)
{
    k->vcpus = 3;
}

static void differ_transport(struct costs_key *k)
{
    strcpy(k->transport, "rdma");
}

static void differ_operation(struct costs_key *k)
{
    k->operation = TRANSPORT_READ;
}

static void differ_registration(struct costs_key *k)
{
    k->registration = TRANSPORT_REGISTER_CHUNK;
}

static void differ_host(struct costs_key *k)
{
    strcpy(k->host, "elsewhere");
}

Test(costs, kinds_do_not_mix_but_hosts_stand_in_for_one_another)
{
    static const struct {
        const char *what;
        void (*change)(struct costs_key *);
        bool known;
    } cases[] = {
        {"guest", differ_guest, false},
        {"accel", differ_accel, false},
        {"vcpus", differ_vcpus, false},
        {"transport", differ_transport, false},
        {"operation", differ_operation, false},
        {"registration", differ_registration, false},
        {"host", differ_host, true},
    };
    struct costs_key first = example_key();

    learn_downtime(&first, 77);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct costs_key key = example_key();
        struct fixed_costs costs;

        cases[i].change(&key);
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, cases[i].known ? 1u : 0u, "%s differs: %u samples",
                     cases[i].what, costs.samples);
    }
}

Test(costs, the_very_host_goes_before_others)
{
    struct costs_key key = example_key(), other = example_key();
    struct fixed_costs costs;

    differ_host(&other);
    learn_downtime(&other, 500);
    learn_downtime(&other, 500);
    learn_downtime(&key, 20);
    learn_downtime(&key, 25);
    learn_downtime(&key, 30);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 3u);
    expect_ms("downtime", costs.downtime_ns, 25);
}

Test(costs, what_teaches_nothing_leaves_no_file)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    for (int i = 0; i < 5; i++) {
        struct round_measurement rounds[2];
        struct measurement m = example(rounds);

        if (i == 0)
            strcpy(m.result, "failed");
        if (i == 1)
            strcpy(m.result, "cancelled");
        if (i == 2)
            m.downtime_ns = 0;
        if (i == 3)
            strcpy(m.filter, "delay=10ms");
        if (i == 4)
            m.pause_start_ns = 0;
        learn(&key, &m, 0);
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, 0u, "case %d taught something", i);
    }
}

Test(costs, a_bandwidth_is_learnt_only_where_the_round_shows_it)
{
    for (int i = 0; i < 5; i++) {
        struct costs_key key = example_key();
        struct round_measurement rounds[2];
        struct measurement m = example(rounds);
        struct fixed_costs costs;
        uint64_t rehearsed = 64 << 20;

        key.vcpus = 10 + (unsigned)i;
        if (i == 0)
            rehearsed = 0;
        if (i == 1)
            m.max_bandwidth = 1 << 20;
        if (i == 2)
            rounds[0].zero_pages = 4000;
        if (i == 3)
            rounds[0].bytes = 1 << 20;
        if (i == 4)
            rehearsed = 1;
        for (int n = 0; n < 3; n++)
            learn(&key, &m, rehearsed);
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, 3u, "case %d: %u samples", i, costs.samples);
        cr_expect_float_eq(costs.bandwidth_ratio, 1, 1e-9, "case %d: ratio %f", i,
                           costs.bandwidth_ratio);
    }
}

Test(costs, the_kind_that_was_not_used_for_longest_goes)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    strcpy(key.transport, "rdma");
    for (unsigned i = 0; i < COSTS_KINDS; i++) {
        key.vcpus = i + 1;
        learn_downtime(&key, 10);
    }
    key.vcpus = 1;
    learn_downtime(&key, 10);
    key.vcpus = COSTS_KINDS + 1;
    learn_downtime(&key, 10);
    for (unsigned i = 0; i <= COSTS_KINDS; i++) {
        unsigned wanted = i == 0 ? 2 : i == 1 ? 0 : 1;
        key.vcpus = i + 1;
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, wanted, "kind %u: expected %u samples, got %u", i, wanted,
                     costs.samples);
    }
}

#define KIND                                                                                       \
    "\"guest\":\"lab\",\"accel\":\"kvm\",\"vcpus\":2,\"transport\":\"tcp\","                       \
    "\"operation\":\"write\",\"registration\":\"all\",\"host\":\"there\""
#define RATIO(millionths)                                                                          \
    "{\"setup_ns\":1,\"downtime_ns\":2,\"finish_ns\":3,\"bandwidth_millionths\":" millionths "}"
#define SAMPLE      RATIO("0")
#define BOOK(kinds) "{\"schema\":1,\"kinds\":[" kinds "]}"

Test(costs, what_cannot_be_believed_counts_as_not_known)
{
    static const struct {
        const char *text;
        unsigned samples;
    } cases[] = {
        {BOOK("{" KIND ",\"samples\":[" SAMPLE "]}"), 1}, /* as it should be */
        {"", 0},
        {"{", 0},
        {"[]", 0},
        {"null", 0},
        {"{\"schema\":2,\"kinds\":[{" KIND ",\"samples\":[" SAMPLE "]}]}", 0},
        {"{\"schema\":1,\"kinds\":{}}", 0},
        {BOOK("7"), 0},
        {BOOK("{" KIND "}"), 0},
        {BOOK("{" KIND ",\"samples\":7}"), 0},
        {BOOK("{" KIND ",\"samples\":[]}"), 0},
        {BOOK("{" KIND ",\"samples\":[7,null,[]," SAMPLE "]}"), 1},
        {BOOK("{\"guest\":\"lab\",\"samples\":[" SAMPLE "]}"), 0},
        {BOOK("{" KIND ",\"samples\":[" RATIO("9999") "," RATIO("10000") "]}"), 1},
        {BOOK("{" KIND ",\"samples\":[" RATIO("100000001") "," RATIO("100000000") "]}"), 1},
        {BOOK("7,{" KIND ",\"samples\":[" SAMPLE "," SAMPLE "]}"), 2},
        {BOOK("{" KIND ",\"samples\":[{\"setup_ns\":1,\"downtime_ns\":-2,\"finish_ns\":3,"
              "\"bandwidth_millionths\":0}]}"),
         0},
        {BOOK("{" KIND ",\"samples\":[{\"setup_ns\":1,\"downtime_ns\":0,\"finish_ns\":3,"
              "\"bandwidth_millionths\":0}]}"),
         0},
        {BOOK("{" KIND ",\"samples\":[{\"setup_ns\":1,\"downtime_ns\":1e15,\"finish_ns\":3,"
              "\"bandwidth_millionths\":0}]}"),
         0},
        {BOOK("{" KIND ",\"samples\":[{\"setup_ns\":1,\"downtime_ns\":NaN,\"finish_ns\":3,"
              "\"bandwidth_millionths\":0}]}"),
         0},
        {BOOK("{" KIND ",\"samples\":[{\"setup_ns\":1,\"downtime_ns\":\"2\",\"finish_ns\":3,"
              "\"bandwidth_millionths\":0}]}"),
         0},
    };
    struct costs_key key = example_key();

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fixed_costs costs;

        put_file(cases[i].text);
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, cases[i].samples, "%s: expected %u samples, got %u",
                     cases[i].text, cases[i].samples, costs.samples);
    }
}

Test(costs, more_than_there_may_be_is_left_out)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    struct cost_book *book = malloc(sizeof(*book));

    fputs("{\"schema\":1,\"kinds\":[", out);
    for (int i = 0; i < 2 * COSTS_KINDS; i++) {
        fprintf(out, "%s{" KIND ",\"samples\":[", i ? "," : "");
        for (int j = 0; j < 2 * COSTS_SAMPLES; j++)
            fprintf(out, "%s" SAMPLE, j ? "," : "");
        fputs("]}", out);
    }
    fputs("]}", out);
    fclose(out);
    put_file(text);
    costs_file_read(book);
    cr_expect_eq(book->count, (unsigned)COSTS_KINDS, "%u kinds", book->count);
    cr_expect_eq(book->kinds[0].count, (unsigned)COSTS_SAMPLES, "%u samples", book->kinds[0].count);
    free(book);
    free(text);
}

Test(costs, a_damaged_file_is_replaced)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    put_file("{\"schema\":1,\"kinds\":[{\"guest");
    learn_downtime(&key, 10);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u, "%u samples", costs.samples);
}

Test(costs, nothing_but_a_file_is_read)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;
    char path[128], target[128];

    put_file("");
    file_path("costs.json", path);
    unlink(path);
    cr_assert_eq(mkfifo(path, 0600), 0);
    costs_recall(&key, &costs); /* an open that waited for a writer would hang here */
    cr_expect_eq(costs.samples, 0u);
    unlink(path);
    file_path("elsewhere", target);
    put_file(BOOK("{" KIND ",\"samples\":[" SAMPLE "]}"));
    rename(path, target);
    cr_assert_eq(symlink(target, path), 0);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 0u, "a symbolic link was followed");
}

Test(costs, writers_at_the_same_time_lose_nothing)
{
    enum { WRITERS = 8 };
    pid_t children[WRITERS];
    struct costs_key key = example_key();
    struct fixed_costs costs;

    for (unsigned i = 0; i < WRITERS; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            struct round_measurement rounds[2];
            struct measurement m = example(rounds);
            int result = 0, learnt = 0;
            while (learnt < 2 && (result == 0 || result == -ETIMEDOUT)) {
                result = costs_learn(&key, &m, NULL, &(struct error){0});
                learnt += result == 0;
            }
            _exit(learnt < 2);
        }
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        int status = -1;
        waitpid(children[i], &status, 0);
        cr_expect_eq(status, 0, "writer %u ended with %d", i, status);
    }
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 2u * WRITERS, "%u samples", costs.samples);
}

Test(costs, what_keeps_from_writing_is_told)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct error err = {0};
    char path[128];

    int folder_lock = costs_file_lock(&err);
    cr_assert_geq(folder_lock, 0, "%s", err.text);
    cr_expect_eq(costs_learn(&key, &m, NULL, &err), -ETIMEDOUT);
    cr_expect(strstr(err.text, "locked"), "\"%s\"", err.text);
    close(folder_lock);
    error_clear(&err);
    file_path("costs.json.new", path);
    cr_assert_eq(mkdir(path, 0700), 0);
    cr_expect_eq(costs_learn(&key, &m, NULL, &err), -EISDIR, "%s", err.text);
    cr_expect(strstr(err.text, "costs.json.new"), "\"%s\"", err.text);
    error_clear(&err);
    setenv("XDG_STATE_HOME", "/proc/nowhere", 1);
    cr_expect_lt(costs_learn(&key, &m, NULL, &err), 0);
    cr_expect(err.text[0]);
    setenv("XDG_STATE_HOME", folder, 1);
}
