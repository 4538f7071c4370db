/* Requests and progress, to lines and back; hostile lines. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/control_protocol.h"

static int parse(const char *line, struct control_request *out, struct error *err)
{
    return control_request_parse(line, strlen(line), out, err);
}

static const struct bad_case {
    const char *line, *mentions;
} bad[] = {
    {"", "JSON object"},
    {"null", "JSON object"},
    {"[]", "JSON object"},
    {"\"status\"", "JSON object"},
    {"{\"command\":\"status\"", "JSON object"},
    {"{\"command\":\"status\"} {}", "JSON object"},
    {"{\"command\":\"status\"}x", "JSON object"},
    {"{}", "command"},
    {"{\"command\":1}", "command"},
    {"{\"command\":null}", "command"},
    {"{\"command\":\"fly\"}", "fly"},
    {"{\"command\":\"Status\"}", "Status"},
    {"{\"command\":\"status\",\"x\":1}", "'x'"},
    {"{\"command\":\"migrate\"}", "uri"},
    {"{\"command\":\"migrate\",\"uri\":1}", "uri"},
    {"{\"command\":\"migrate\",\"uri\":\"nowhere\"}", "uri"},
    {"{\"command\":\"migrate\",\"uri\":\"\"}", "uri"},
    {"{\"command\":\"migrate\",\"uri\":\"smoke://h:1\"}", "scheme"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"uri\":\"tcp://h:2\"}", "twice"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"lanes\":0}", "lanes"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"lanes\":65}", "lanes"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"lanes\":1.5}", "lanes"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"lanes\":\"2\"}", "lanes"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"max_bandwidth\":-1}", "max_bandwidth"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"dscp\":64}", "dscp"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"rdma_operation\":\"send\"}",
     "rdma_operation"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"rdma_registration\":1}",
     "rdma_registration"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"max_bandwidth\":1e300}", "max_bandwidth"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"max_time_ns\":1e999}", "max_time_ns"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"downtime_limit_ns\":0}",
     "downtime_limit_ns"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"verify\":1}", "verify"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"on_timeout\":\"explode\"}", "on_timeout"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"on_timeout\":{}}", "on_timeout"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"throttle_max\":100}", "throttle_max"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://"
     "h:1\",\"tracker\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}",
     "tracker"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"filter\":\"frob=1\"}", "filter"},
    {"{\"command\":\"resolve\"}", "action"},
    {"{\"command\":\"resolve\",\"action\":\"both\"}", "action"},
    {"{\"command\":\"resolve\",\"action\":\"resume\",\"force\":\"yes\"}", "force"},
    {"{\"command\":\"workload\",\"check\":\"yes\"}", "check"},
    {"{\"command\":\"check\"}", "uri"},
    {"{\"command\":\"predict\"}", "uri"},
    {"{\"command\":\"predict\",\"uri\":\"tcp://h:1\",\"sample_ns\":-1}", "sample_ns"},
    {"{\"command\":\"predict\",\"uri\":\"tcp://h:1\",\"sample_ns\":60000000001}", "sample_ns"},
    {"{\"command\":\"predict\",\"uri\":\"tcp://h:1\",\"lanes\":0}", "lanes"},
    {"{\"command\":\"migrate\",\"uri\":\"tcp://h:1\",\"sample_ns\":1}", "'sample_ns'"},
};

Test(control_protocol, refuses_what_is_no_request)
{
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct control_request request;
        struct error err = {0};
        int rc = parse(bad[i].line, &request, &err);

        cr_expect_eq(rc, -EINVAL, "%s: expected -EINVAL, got %d", bad[i].line, rc);
        cr_expect(strstr(err.text, bad[i].mentions),
                  "%s: expected the text to mention %s, got '%s'", bad[i].line, bad[i].mentions,
                  err.text);
    }
}

Test(control_protocol, takes_defaults_for_what_is_left_out)
{
    struct control_request request;
    struct migration_options defaults;
    struct error err = {0};

    migration_options_defaults(&defaults);
    cr_assert_eq(parse("{\"command\":\"migrate\",\"uri\":\"tcp://h:1\"} \r", &request, &err), 0,
                 "%s", err.text);
    cr_expect_eq(request.command, CONTROL_MIGRATE);
    cr_expect_eq(request.migrate.limits.downtime_ns, defaults.limits.downtime_ns);
    cr_expect_eq(request.migrate.lanes, MIGRATION_DEFAULT_LANES, "lanes are %u",
                 request.migrate.lanes);
    cr_expect_eq(request.migrate.destination.port, 1);
}

Test(control_protocol, requests_come_back_as_they_were)
{
    struct control_request back, request = {
                                     .command = CONTROL_MIGRATE,
                                     .migrate =
                                         {
                                             .destination = {"tcp", "::1", 4444},
                                             .limits = {.downtime_ns = 20000001,
                                                        .max_time_ns = 9000000000,
                                                        .on_timeout = ON_TIMEOUT_FORCE,
                                                        .throttle_max = 99},
                                             .max_bandwidth = (1ull << 53) - 1,
                                             .lanes = 64,
                                             .verify = true,
                                             .operation = TRANSPORT_READ,
                                             .registration = TRANSPORT_REGISTER_CHUNK,
                                             .pin_limit = 64 << 20,
                                             .dscp = 46,
                                             .tracker = "dirty-ring",
                                             .filter = "rate=100M,delay=5ms",
                                         },
                                 };
    struct error err = {0};
    char *line = control_request_format(&request);

    cr_assert(line);
    cr_assert_not(strchr(line, '\n'), "a request has to be one line: %s", line);
    cr_assert_eq(parse(line, &back, &err), 0, "%s: %s", line, err.text);
    cr_expect_str_eq(back.migrate.destination.host, "::1", "%s", line);
    cr_expect_eq(back.migrate.destination.port, 4444, "%s", line);
    cr_expect_eq(back.migrate.limits.downtime_ns, request.migrate.limits.downtime_ns, "%s", line);
    cr_expect_eq(back.migrate.limits.max_time_ns, request.migrate.limits.max_time_ns, "%s", line);
    cr_expect_eq(back.migrate.limits.on_timeout, ON_TIMEOUT_FORCE, "%s", line);
    cr_expect_eq(back.migrate.limits.throttle_max, 99, "%s", line);
    cr_expect_eq(back.migrate.max_bandwidth, request.migrate.max_bandwidth, "%s", line);
    cr_expect_eq(back.migrate.lanes, 64, "%s", line);
    cr_expect(back.migrate.verify, "%s", line);
    cr_expect_eq(back.migrate.operation, TRANSPORT_READ, "%s", line);
    cr_expect_eq(back.migrate.registration, TRANSPORT_REGISTER_CHUNK, "%s", line);
    cr_expect_eq(back.migrate.pin_limit, 64 << 20, "%s", line);
    cr_expect_eq(back.migrate.dscp, 46, "%s", line);
    cr_expect_str_eq(back.migrate.tracker, "dirty-ring", "%s", line);
    cr_expect_str_eq(back.migrate.filter, request.migrate.filter, "%s", line);
    free(line);
}

Test(control_protocol, every_command_comes_back)
{
    for (unsigned i = 0; i < CONTROL_COMMANDS; i++) {
        struct control_request back, request = {
                                         .command = i,
                                         .migrate.destination = {"tcp", "h", 1},
                                         .migrate.lanes = 1,
                                         .migrate.limits.downtime_ns = 1,
                                         .action = RESOLVE_DESTROY,
                                         .force = true,
                                         .self_check = true,
                                         .rehearsal = {.sample_ns = 7, .only = true},
                                     };
        struct error err = {0};
        char *line = control_request_format(&request);

        cr_assert_eq(parse(line, &back, &err), 0, "%s: %s", line, err.text);
        cr_expect_eq(back.command, i, "%s", line);
        cr_expect_eq(back.action, i == CONTROL_RESOLVE ? RESOLVE_DESTROY : 0, "%s", line);
        cr_expect_eq(back.self_check, i == CONTROL_WORKLOAD, "%s", line);
        cr_expect_eq(back.rehearsal.sample_ns, i == CONTROL_PREDICT ? 7 : 0, "%s", line);
        cr_expect_eq(back.rehearsal.only, i == CONTROL_PREDICT, "%s", line);
        free(line);
    }
}

Test(control_protocol, long_lines_are_refused)
{
    size_t size = CONTROL_MAX_LINE + 1;
    char *line = malloc(size);
    struct control_request request;
    struct error err = {0};

    memset(line, ' ', size);
    memcpy(line, "{\"command\":\"status\"}", 20);
    cr_expect_eq(control_request_parse(line, size - 1, &request, &err), 0, "64 KiB: %s", err.text);
    cr_expect_eq(control_request_parse(line, size, &request, &err), -EINVAL);
    cr_expect(strstr(err.text, "65536"), "%s", err.text);
    free(line);
}

/* Every cut and every flipped byte of a good line: refused or a request, never a crash (sanitizers
 * look on). */
Test(control_protocol, survives_mangled_lines)
{
    static const char good[] =
        "{\"command\":\"migrate\",\"uri\":\"tcp://[::1]:1\",\"lanes\":3,\"verify\":true}";
    size_t size = strlen(good);
    struct control_request request;
    unsigned accepted = 0;

    for (size_t cut = 0; cut < size; cut++) {
        char *copy = malloc(cut + 1);

        memcpy(copy, good, cut);
        accepted += control_request_parse(copy, cut, &request, NULL) == 0;
        free(copy);
    }
    cr_expect_eq(accepted, 0, "%u cut lines were taken for requests", accepted);
    for (size_t at = 0; at < size; at++)
        for (unsigned byte = 0; byte < 256; byte++) {
            char copy[sizeof(good)];

            memcpy(copy, good, sizeof(good));
            copy[at] = (char)byte;
            if (control_request_parse(copy, size, &request, NULL) == 0)
                cr_assert(request.migrate.lanes >= 1 && request.migrate.lanes <= 64, "%s", copy);
        }
}

Test(control_protocol, progress_comes_back_as_it_was)
{
    struct migration_status back, status = {
                                      .phase = MIGRATION_SWITCHOVER,
                                      .session = "0123456789abcdef0123456789abcdef",
                                      .round = 7,
                                      .elapsed_ns = 1,
                                      .eta_ns = UINT64_MAX,
                                      .round_bytes = 2,
                                      .round_bytes_done = 3,
                                      .guest_bytes = 4,
                                      .wire_bytes = 5,
                                      .bandwidth = 6,
                                      .dirty_rate = 8,
                                      .predicted_downtime_ns = 9,
                                      .throttle = 20,
                                      .message = "said \"so\"\n",
                                  };
    static const uint64_t etas[] = {0, 5, UINT64_MAX};

    for (size_t i = 0; i < 3; i++) {
        struct error err = {0};
        cJSON *json;

        status.eta_ns = etas[i];
        json = control_progress_to_json(&status);
        cr_assert_eq(control_progress_from_json(json, &back, &err), 0, "%s", err.text);
        cr_expect_eq(memcmp(&back, &status, sizeof(back)), 0, "round %u, eta %lu, wire %lu",
                     back.round, back.eta_ns, back.wire_bytes);
        cJSON_Delete(json);
    }
}

Test(control_protocol, progress_of_a_stranger_is_checked)
{
    static const char *const lines[] = {"{}", "{\"phase\":1}", "{\"phase\":\"flying\"}"};
    struct migration_status status;

    for (size_t i = 0; i < 3; i++) {
        struct error err = {0};
        cJSON *json = cJSON_Parse(lines[i]);

        cr_expect_eq(control_progress_from_json(json, &status, &err), -EPROTO, "%s", lines[i]);
        cJSON_Delete(json);
    }
}

static const struct reply_case {
    const char *line;
    int expected;
} replies[] = {
    {"{\"message\":\"done\"}", 0},
    {"{\"error\":\"no\"}", -EREMOTEIO},
    {"{\"error\":\"wait\",\"retry\":true}", -EAGAIN},
    {"{\"error\":1}", 0}, /* an error is a text */
    {"[]", -EPROTO},
    {"", -EPROTO},
};

Test(control_protocol, replies_are_told_apart)
{
    for (size_t i = 0; i < sizeof(replies) / sizeof(replies[0]); i++) {
        struct error err = {0};
        cJSON *json = NULL;
        int rc = control_reply_parse(replies[i].line, strlen(replies[i].line), &json, &err);

        cr_expect_eq(rc, replies[i].expected, "%s: expected %d, got %d", replies[i].line,
                     replies[i].expected, rc);
        cJSON_Delete(json);
    }
}
