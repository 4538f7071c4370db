/* The file of what migrations cost: what is kept, believed, and written beside others. */
#include <inttypes.h>
#include <sys/file.h>
#include <sys/wait.h>

#include "tests/unit/costs_fixture.h"

TestSuite(costs_file, .init = set_up, .fini = tear_down);

Test(costs_file, the_kind_that_was_not_used_for_longest_goes)
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

Test(costs_file, what_cannot_be_believed_counts_as_not_known)
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

Test(costs_file, more_than_there_may_be_is_left_out)
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

Test(costs_file, a_damaged_file_is_replaced)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    put_file("{\"schema\":1,\"kinds\":[{\"guest");
    learn_downtime(&key, 10);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u, "%u samples", costs.samples);
}

Test(costs_file, nothing_but_a_file_is_read)
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

Test(costs_file, writers_at_the_same_time_lose_nothing)
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

Test(costs_file, what_keeps_from_writing_is_told)
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
