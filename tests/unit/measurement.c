#include <criterion/criterion.h>

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "measurement_fixture.h"

static cJSON *document_of(const struct measurement *m, uint64_t gap_ns)
{
    char *text = measurement_to_json(m, gap_ns);
    cJSON *document;

    cr_assert(text, "no text");
    document = cJSON_Parse(text);
    cr_assert(document, "no JSON: %s", text);
    free(text);
    return document;
}

/* The schema as its document has it: rows "| `key` | type | null | meaning |". */
enum { MAX_ROWS = 256, CELL = 96 };

struct row {
    char key[CELL], type[CELL], null[CELL];
    bool seen;
};

struct schema {
    struct row rows[MAX_ROWS];
    size_t count;
};

static void read_schema(struct schema *schema)
{
    char path[4096], line[1024];
    const char *end = strstr(__FILE__, "tests/unit/measurement.c");
    FILE *file;

    cr_assert(end, "%s", __FILE__);
    snprintf(path, sizeof(path), "%.*smigrate/measurement.md", (int)(end - __FILE__), __FILE__);
    file = fopen(path, "r");
    cr_assert(file, "%s: %s", path, strerror(errno));
    schema->count = 0;
    while (fgets(line, sizeof(line), file)) {
        struct row row = {.seen = false};

        if (sscanf(line, "| `%95[^`]` | %95[^|] | %95[^|]|", row.key, row.type, row.null) != 3)
            continue;
        row.type[strcspn(row.type, " ")] = 0;
        cr_assert_lt(schema->count, (size_t)MAX_ROWS);
        schema->rows[schema->count++] = row;
    }
    fclose(file);
    cr_assert_gt(schema->count, (size_t)50, "only %zu rows in %s", schema->count, path);
}

static struct row *find_row(struct schema *schema, const char *key)
{
    for (size_t i = 0; i < schema->count; i++) {
        if (!strcmp(schema->rows[i].key, key))
            return &schema->rows[i];
    }
    return NULL;
}

static const char *type_of(const cJSON *item)
{
    if (cJSON_IsString(item))
        return "text";
    if (cJSON_IsBool(item))
        return "boolean";
    if (cJSON_IsArray(item))
        return "array";
    if (cJSON_IsObject(item))
        return "object";
    return cJSON_IsNull(item) ? "null" : "number";
}

static void check_value(const struct row *row, const cJSON *item)
{
    bool may_be_null = strncmp(row->null, "–", strlen("–")) != 0;
    bool is_integer = !strcmp(row->type, "integer");
    const char *type = is_integer ? "number" : row->type;

    if (cJSON_IsNull(item)) {
        cr_expect(may_be_null, "%s is null, its column \"null\" says never", row->key);
        return;
    }
    cr_expect_str_eq(type_of(item), type, "%s: the schema says %s, it is %s", row->key, row->type,
                     type_of(item));
    if (!cJSON_IsNumber(item))
        return;
    cr_expect_geq(item->valuedouble, 0, "%s is negative", row->key);
    cr_expect(!is_integer || item->valuedouble == (double)(uint64_t)item->valuedouble,
              "%s is no integer", row->key);
}

/* Walks a document: every key must have its row. */
static void check_object(struct schema *schema, const cJSON *object, const char *prefix)
{
    const cJSON *item, *element;

    cJSON_ArrayForEach(item, object)
    {
        char key[CELL * 2], below[CELL * 2 + 4];
        const char *side = !cJSON_IsObject(item)      ? NULL
                           : !strcmp(prefix, "host.") ? "host.SIDE"
                           : !strcmp(prefix, "cpu.")  ? "cpu.SIDE"
                                                      : NULL;
        bool is_end = !strcmp(prefix, "rdma.") && !strcmp(item->string, "destination");
        bool is_counter = !strcmp(prefix, "rdma.counters.");
        struct row *row;

        snprintf(key, sizeof(key), "%s%s", prefix, is_counter ? "NAME" : item->string);
        row = find_row(schema, key);
        cr_expect(row, "%s is printed and not documented", key);
        if (!row)
            continue;
        row->seen = true;
        check_value(row, item);
        snprintf(below, sizeof(below), "%s.", side ? side : is_end ? "rdma" : key);
        if (cJSON_IsObject(item))
            check_object(schema, item, below);
        snprintf(below, sizeof(below), "%s[].", key);
        if (cJSON_IsArray(item)) {
            cJSON_ArrayForEach(element, item) check_object(schema, element, below);
        }
    }
}

Test(measurement, every_key_is_documented_and_every_documented_key_is_there)
{
    struct measurement m = full_measurement();
    cJSON *document = document_of(&m, 23400000);
    static struct schema schema;

    read_schema(&schema);
    check_object(&schema, document, "");
    for (size_t i = 0; i < schema.count; i++)
        cr_expect(schema.rows[i].seen, "%s is documented and not printed", schema.rows[i].key);
    cJSON_Delete(document);
    measurement_free(&m);
}

/* One that failed before anything was known: the same keys, null where nothing is known. */
Test(measurement, a_failed_one_keeps_to_the_schema_too)
{
    struct measurement m = {.result = "failed", .error = "connecting failed: no route"};
    cJSON *document = document_of(&m, 0);
    static struct schema schema;

    read_schema(&schema);
    check_object(&schema, document, "");
    for (size_t i = 0; i < schema.count; i++) {
        const char *key = schema.rows[i].key;
        static const char *const absent[] = {"prediction.", "switchover.", "rounds[]",
                                             "rdma.",       "guest_work.", "cpu.SIDE"};
        bool inside = false;

        for (size_t j = 0; j < sizeof(absent) / sizeof(absent[0]); j++)
            inside |= strncmp(key, absent[j], strlen(absent[j])) == 0;

        cr_expect(schema.rows[i].seen || inside, "%s is documented and not printed", key);
    }
    cJSON_Delete(document);
    measurement_free(&m);
}

static const cJSON *item_at(const cJSON *document, const char *path)
{
    char part[CELL];
    int used;

    while (document && sscanf(path, "%95[^.]%n", part, &used) == 1) {
        document = part[0] == '#' ? cJSON_GetArrayItem(document, atoi(part + 1))
                                  : cJSON_GetObjectItemCaseSensitive(document, part);
        path += used;
        path += *path == '.';
    }
    return document;
}

struct value_case {
    const char *path;
    double number;
    const char *text; /* if set: this text */
};

static void check_values(const cJSON *document, const struct value_case *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const cJSON *item = item_at(document, cases[i].path);

        cr_expect(item, "%s is not there", cases[i].path);
        if (!item)
            continue;
        if (cases[i].text)
            cr_expect(cJSON_IsString(item) && !strcmp(item->valuestring, cases[i].text),
                      "%s: expected \"%s\", got \"%s\"", cases[i].path, cases[i].text,
                      cJSON_IsString(item) ? item->valuestring : type_of(item));
        else
            cr_expect(cJSON_IsNumber(item) && item->valuedouble == cases[i].number,
                      "%s: expected %.9f, got %s %.9f", cases[i].path, cases[i].number,
                      type_of(item), item->valuedouble);
    }
}

static const struct value_case figures[] = {
    {"schema", 2},
    {"result", .text = "completed"},
    {"session", .text = "00112233445566778899aabbccddeeff"},
    {"guest.name", .text = "g1"},
    {"guest.kind", .text = "lab"},
    {"guest.accel", .text = "kvm"},
    {"guest.memory_bytes", 536870912},
    {"guest.vcpus", 2},
    {"guest.tracker", .text = "dirty-log"},
    {"transport", .text = "tcp"},
    {"destination", .text = "tcp://[::1]:4711"},
    {"filter", .text = "rate=100M"},
    {"lanes", 4},
    {"total_ms", 1234.567891},
    {"setup_ms", 45.678912},
    {"downtime_ms", 23.456789},
    {"downtime.pause", 1.000001},
    {"downtime.final_copy", 12.000002},
    {"downtime.verify", 2.000003},
    {"downtime.state_save", 0.300004},
    {"downtime.state_transfer", 0.400005},
    {"downtime.state_load", 5.000011},
    {"downtime.resume", 0.600012},
    {"downtime_clock", .text = "source"},
    {"guest_gap_ms", 23.400001},
    {"round_trip_ms", 1.300014},
    {"pause_start_ms", 1111.111112},
    {"prediction.basis", .text = "predict"},
    {"prediction.age_ms", 5000.000001},
    {"prediction.total_ms", 1200.000002},
    {"prediction.total_low_ms", 1100.000003},
    {"prediction.total_high_ms", 1300.000004},
    {"prediction.downtime_ms", 22.000005},
    {"prediction.downtime_low_ms", 20.000007},
    {"prediction.downtime_high_ms", 31.000008},
    {"prediction.rounds", 21},
    {"prediction.bytes", 490000009},
    {"switchover.predicted_downtime_ms", 25.000006},
    {"switchover.predicted_last_bytes", 12582912},
    {"switchover.measured_last_bytes", 11534336},
    {"switchover.retries", 1},
    {"cpu.source.guest_s", 0.500000001},
    {"cpu.source.engine_s", 0.100000002},
    {"cpu.source.lanes_s", 0.300000003},
    {"cpu.source.other_s", 0.100000004},
    {"cpu.destination.guest_s", 0.200000005},
    {"cpu.destination.engine_s", 0.110000006},
    {"cpu.destination.lanes_s", 0.310000007},
    {"cpu.destination.other_s", 0.080000008},
    {"guest_work.pages_written_at_start", 70000007},
    {"guest_work.pages_written_at_pause", 80000008},
    {"guest_work.ms", 1060.000009},
    {"rounds.#0.pages", 100},
    {"rounds.#19.pages", 119},
    {"rounds.#19.zero_pages", 29},
    {"rounds.#19.skipped_pages", 19},
    {"rounds.#19.bytes", 446464},
    {"rounds.#19.wire_bytes", 450560},
    {"rounds.#19.start_ms", 19000.000001},
    {"rounds.#19.ms", 1.000019},
    {"rounds.#18.dirty_pages_after", 119},
    {"rounds.#18.predicted_downtime_ms", 30.000018},
    {"rounds.#18.predicted_total_ms", 1100.000018},
    {"rounds.#18.guest_pages_written", 70000018},
    {"rounds.#19.throttle_percent", 19},
    {"pages.raw", 100001},
    {"pages.zero", 2002},
    {"pages.hole", 30003},
    {"present_bytes", 400000004},
    {"guest_bytes", 500000005},
    {"wire_bytes", 510000006},
    {"state_bytes", 9009},
    {"goodput_bytes_per_s", 800000008},
    {"source_cpu_s", 1.000000007},
    {"destination_cpu_s", 0.700000010},
    {"destination_resident_growth_bytes", 410000013},
    {"verified_chunks", 382},
    {"limits.downtime_ms", 300},
    {"limits.max_time_ms", 10000},
    {"limits.on_timeout", .text = "force"},
    {"limits.throttle_max_percent", 80},
    {"limits.max_bandwidth_bytes_per_s", 104857600},
    {"limits.rdma_operation", .text = "read"},
    {"limits.rdma_registration", .text = "chunk"},
    {"limits.rdma_pin_limit_bytes", 67108864},
    {"limits.dscp", 46},
    {"rdma.device", .text = "rxe0"},
    {"rdma.port", 1},
    {"rdma.link_layer", .text = "Ethernet"},
    {"rdma.gid", .text = "::ffff:10.0.0.1"},
    {"rdma.gid_type", .text = "RoCE v2"},
    {"rdma.mtu", 4096},
    {"rdma.max_message_bytes", 1073741824},
    {"rdma.max_work_requests", 100},
    {"rdma.pin_limit_bytes", 300000000},
    {"rdma.operation", .text = "read"},
    {"rdma.registration", .text = "chunk"},
    {"rdma.work_requests", 4000},
    {"rdma.data_work_requests", 3000},
    {"rdma.data_bytes", 196608000},
    {"rdma.bytes_per_work_request", 65536},
    {"rdma.signalled", 500},
    {"rdma.signalled_share", 0.125},
    {"rdma.registrations", 40},
    {"rdma.registered_bytes", 600000000},
    {"rdma.registrations_per_gib", 85.899345},
    {"rdma.register_ms", 7.000008},
    {"rdma.pinned_peak_bytes", 200000000},
    {"rdma.counters.rcvd_seq_err.before", 1},
    {"rdma.counters.rcvd_seq_err.after", 9},
    {"rdma.counters.link_downed.after", 2},
    {"rdma.destination.device", .text = "mlx5_0"},
    {"rdma.destination.work_requests", 4001},
    {"rdma.destination.register_ms", 7.000009},
    {"rdma.destination.counters.rcvd_seq_err.after", 10},
    {"host.source.hostname", .text = "here"},
    {"host.destination.hostname", .text = "there"},
    {"host.source.kernel", .text = "Linux 6.12.1 x86_64"},
    {"host.source.cpu", .text = "A CPU (R) @ 3 GHz"},
    {"host.source.interface", .text = "eth0"},
    {"host.source.link_mbit_per_s", 100000},
    {"host.source.mtu_bytes", 9000},
    {"host.source.wander", .text = "0.1.0"},
};

Test(measurement, every_figure_is_at_its_place_and_in_its_unit)
{
    static const char *const true_keys[] = {"prediction.converges", "switchover.forced",
                                            "rounds.#19.paused", "verified"};
    struct measurement m = full_measurement();
    cJSON *document = document_of(&m, 23400001);

    check_values(document, figures, sizeof(figures) / sizeof(figures[0]));
    for (size_t i = 0; i < sizeof(true_keys) / sizeof(true_keys[0]); i++)
        cr_expect(cJSON_IsTrue(item_at(document, true_keys[i])), "%s is not true", true_keys[i]);
    cr_expect(cJSON_IsFalse(item_at(document, "rounds.#18.paused")));
    cr_expect(cJSON_IsFalse(item_at(document, "rdma.encrypted")));
    cr_expect_eq(cJSON_GetArraySize(item_at(document, "rounds")), 20);
    cJSON_Delete(document);
    measurement_free(&m);
}

Test(measurement, what_the_source_measured_itself_comes_first)
{
    static const struct value_case cases[] = {{"downtime.state_load", 7}, {"downtime.resume", 8}};
    struct measurement m = full_measurement();
    cJSON *document;

    m.downtime.state_load = 7 * NS_PER_MS;
    m.downtime.resume = 8 * NS_PER_MS;
    document = document_of(&m, 0);
    check_values(document, cases, 2);
    cJSON_Delete(document);
    measurement_free(&m);
}

static void expect_null(const cJSON *document, const char *path)
{
    const cJSON *item = item_at(document, path);

    cr_expect(item && cJSON_IsNull(item), "%s: expected null, got %s", path,
              item ? type_of(item) : "nothing");
}

Test(measurement, a_lost_report_is_null)
{
    static const char *const nulls[] = {"destination_cpu_s", "destination_resident_growth_bytes",
                                        "host.destination",  "downtime.state_load",
                                        "downtime.resume",   "rdma.destination",
                                        "cpu.destination"};
    struct measurement m = full_measurement();
    cJSON *document;

    m.destination_half.known = false; /* and yet full of figures: they must not show */
    document = document_of(&m, 0);
    for (size_t i = 0; i < sizeof(nulls) / sizeof(nulls[0]); i++)
        expect_null(document, nulls[i]);
    expect_null(document, "guest_gap_ms");
    cJSON_Delete(document);
    measurement_free(&m);
}

Test(measurement, what_did_not_happen_is_null)
{
    static const char *const nulls[] = {"session",
                                        "guest.kind",
                                        "setup_ms",
                                        "downtime_ms",
                                        "downtime.pause",
                                        "downtime.verify",
                                        "pause_start_ms",
                                        "round_trip_ms",
                                        "prediction",
                                        "switchover",
                                        "cpu.source",
                                        "cpu.destination",
                                        "guest_work",
                                        "state_bytes",
                                        "goodput_bytes_per_s",
                                        "limits.max_time_ms",
                                        "limits.max_bandwidth_bytes_per_s",
                                        "filter",
                                        "rdma",
                                        "host.source.cpu",
                                        "host.source.link_mbit_per_s",
                                        "host.source.mtu_bytes"};
    struct measurement m = {.result = "cancelled", .source_host.link_mbit = -1};
    cJSON *document = document_of(&m, 0);

    for (size_t i = 0; i < sizeof(nulls) / sizeof(nulls[0]); i++)
        expect_null(document, nulls[i]);
    cJSON_Delete(document);
}

Test(measurement, a_prediction_without_an_end_has_no_figures)
{
    static const char *const nulls[] = {"prediction.total_ms",
                                        "prediction.total_low_ms",
                                        "prediction.downtime_ms",
                                        "prediction.downtime_high_ms",
                                        "prediction.rounds",
                                        "prediction.bytes",
                                        "prediction.age_ms",
                                        "rounds.#0.predicted_total_ms",
                                        "rounds.#0.guest_pages_written"};
    static const struct value_case cases[] = {{"prediction.basis", .text = "first-round"}};
    struct measurement m = full_measurement();

    m.prediction.basis = PREDICTION_FIRST_ROUND;
    m.prediction.age_ns = 0;
    m.prediction.is.converges = false; /* and yet full of figures: they must not show */
    m.rounds[0].predicted_total_ns = 0;
    m.rounds[0].guest_pages_written = MEASUREMENT_UNKNOWN;
    cJSON *document = document_of(&m, 0);
    check_values(document, cases, 1);
    cr_expect(cJSON_IsFalse(item_at(document, "prediction.converges")));
    for (size_t i = 0; i < sizeof(nulls) / sizeof(nulls[0]); i++)
        expect_null(document, nulls[i]);
    cJSON_Delete(document);
    measurement_free(&m);
}

Test(measurement, an_end_that_keeps_no_account_of_roles_has_none)
{
    struct measurement m = full_measurement();

    m.destination_half.cpu.known = false;
    m.source_cpu.guest_ns = MEASUREMENT_UNKNOWN;
    cJSON *document = document_of(&m, 0);
    expect_null(document, "cpu.destination");
    expect_null(document, "cpu.source.guest_s");
    cJSON_Delete(document);
    measurement_free(&m);
}

Test(measurement, integers_are_printed_to_the_last_digit)
{
    struct measurement m = {.result = "completed",
                            .memory_bytes = UINT64_MAX,
                            .wire_bytes = (1ull << 53) + 1,
                            .total_ns = UINT64_MAX,
                            .source_cpu_ns = UINT64_MAX - 1};
    static const char *const wants[] = {"18446744073709551615", "9007199254740993",
                                        "18446744073709.551615", "18446744073.709551614"};
    char *text = measurement_to_json(&m, 0);

    for (size_t i = 0; i < sizeof(wants) / sizeof(wants[0]); i++)
        cr_expect(strstr(text, wants[i]), "%s is not in %s", wants[i], text);
    free(text);
}

Test(measurement, text_is_escaped_and_always_utf8)
{
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"plain", "plain"},
        {"quote \" backslash \\ newline \n", "quote \" backslash \\ newline \n"},
        {"\x01\x1b[31m", "\x01\x1b[31m"},
        {"gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80",
         "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80"},
        {"latin1 \xfc.", "latin1 ?."},
        {"cut \xe2\x82", "cut ??"},
        {"overlong \xc0\x80", "overlong ??"},
        {"surrogate \xed\xa0\x80", "surrogate ???"},
        {"beyond \xf4\x90\x80\x80", "beyond ????"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct measurement m = {.result = "failed"};
        cJSON *document;

        strcpy(m.error, cases[i].text);
        document = document_of(&m, 0);
        cr_expect_str_eq(cJSON_GetStringValue(item_at(document, "error")), cases[i].want,
                         "case %zu", i);
        cJSON_Delete(document);
    }
}

Test(measurement, rounds_grow_and_start_from_zero)
{
    struct measurement m = {0};

    for (unsigned i = 0; i < 1000; i++) {
        struct round_measurement *round = measurement_add_round(&m);

        cr_assert(round && !round->pages && !round->paused, "round %u is not empty", i);
        round->pages = i;
        round->paused = true;
    }
    cr_assert_eq(m.round_count, (size_t)1000);
    for (unsigned i = 0; i < 1000; i++)
        cr_assert_eq(m.rounds[i].pages, i, "round %u became %llu", i,
                     (unsigned long long)m.rounds[i].pages);
    measurement_free(&m);
    cr_assert(!m.rounds && !m.round_count);
    measurement_free(&m);
}
