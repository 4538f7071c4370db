/* wander simulate: predictions from what was measured earlier, for programs that plan many moves.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/prediction.h"
#include "tools/commands.h"
#include "transport/base/clock.h"

enum { MAX_BANDWIDTHS = 1024 };

static const double longest_ms = 1e12;

/* One line of the input. */
struct question {
    struct dirty_profile guest;
    struct path_profile path;
    struct fixed_costs costs;
    struct policy_limits limits;
    unsigned bandwidth_count;
    uint64_t bandwidths[MAX_BANDWIDTHS]; /* bytes/s, 0: no limit */
};

static const cJSON *get(const cJSON *json, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(json, key);
}

/* Null and a missing key count as 0. What is not a number fails the comparison, NaN included. */
static int read_number(const cJSON *item, const char *what, double max, double *out,
                       struct error *err)
{
    double value = cJSON_IsNumber(item) ? item->valuedouble : -1;

    if (!item || cJSON_IsNull(item))
        value = 0;
    if (!(value >= 0 && value <= max))
        return error_set(err, EPROTO, "%s is no number from 0 to %.0f", what, max);
    *out = value;
    return 0;
}

static int read_ms(const cJSON *json, const char *key, uint64_t *ns, struct error *err)
{
    double ms = 0;
    int result = read_number(get(json, key), key, longest_ms, &ms, err);

    *ns = (uint64_t)(ms * (double)NS_PER_MS);
    return result;
}

static int read_on_timeout(const cJSON *item, enum on_timeout *out, struct error *err)
{
    const char *text = cJSON_GetStringValue(item);

    *out = text && strcmp(text, "force") == 0 ? ON_TIMEOUT_FORCE : ON_TIMEOUT_CANCEL;
    if (!item || cJSON_IsNull(item) || *out == ON_TIMEOUT_FORCE ||
        (text && strcmp(text, "cancel") == 0))
        return 0;
    return error_set(err, EPROTO, "on_timeout is neither \"cancel\" nor \"force\"");
}

static int read_limits(const cJSON *json, struct policy_limits *out, struct error *err)
{
    double throttle = 0;
    int result = 0;

    if (!cJSON_IsObject(json))
        return error_set(err, EPROTO, "limits is no object");
    result = read_ms(json, "downtime_ms", &out->downtime_ns, err);
    if (!result)
        result = read_ms(json, "max_time_ms", &out->max_time_ns, err);
    if (!result)
        result = read_on_timeout(get(json, "on_timeout"), &out->on_timeout, err);
    if (!result)
        result = read_number(get(json, "throttle_max_percent"), "throttle_max_percent", 99,
                             &throttle, err);
    out->throttle_max = (unsigned)throttle;
    return result;
}

static int read_bandwidth(const cJSON *item, struct question *out, struct error *err)
{
    double bandwidth = 0;
    int result = read_number(item, "a bandwidth", 0x1p53, &bandwidth, err);

    if (!result && out->bandwidth_count == MAX_BANDWIDTHS)
        result = error_set(err, EPROTO, "more than %d bandwidths", MAX_BANDWIDTHS);
    if (!result)
        out->bandwidths[out->bandwidth_count++] = (uint64_t)bandwidth;
    return result;
}

static int read_bandwidths(const cJSON *json, struct question *out, struct error *err)
{
    const cJSON *list = get(json, "bandwidths"), *item;
    int result = 0;

    out->bandwidth_count = 0;
    if (!list || cJSON_IsNull(list))
        return read_bandwidth(get(json, "max_bandwidth_bytes_per_s"), out, err);
    if (!cJSON_IsArray(list))
        return error_set(err, EPROTO, "bandwidths is no array");
    cJSON_ArrayForEach(item, list)
    {
        if (!result)
            result = read_bandwidth(item, out, err);
    }
    return result;
}

static int read_question(const cJSON *json, struct question *out, struct error *err)
{
    int result = dirty_profile_from_json(get(json, "guest"), &out->guest, err);

    if (!result)
        result = path_profile_from_json(get(json, "path"), &out->path, err);
    if (!result)
        result = fixed_costs_from_json(get(json, "costs"), &out->costs, err);
    if (!result)
        result = read_limits(get(json, "limits"), &out->limits, err);
    return result ? result : read_bandwidths(json, out, err);
}

static int print_answer(const struct question *q, struct error *err)
{
    cJSON *list = cJSON_CreateArray();
    char *text = NULL;

    for (unsigned i = 0; list && i < q->bandwidth_count; i++) {
        struct prediction p;
        prediction_make(&q->guest, &q->path, &q->costs, &q->limits, q->bandwidths[i], &p);
        cJSON *item = prediction_to_json(&p);
        if (!item || !cJSON_AddItemToArray(list, item))
            goto free_list;
    }
    text = cJSON_PrintUnformatted(list);
free_list:
    cJSON_Delete(list);
    if (!text)
        return error_set(err, ENOMEM, "no memory for the answer");
    puts(text);
    cJSON_free(text);
    return 0;
}

static int answer(const char *line, struct question *q, struct error *err)
{
    cJSON *json = cJSON_Parse(line);
    int result = json ? read_question(json, q, err) : error_set(err, EPROTO, "this is no JSON");

    cJSON_Delete(json);
    return result ? result : print_answer(q, err);
}

static int answer_lines(FILE *in, struct error *err)
{
    struct question *q = malloc(sizeof(*q));
    char *line = NULL;
    size_t size = 0;
    int result = q ? 0 : error_set(err, ENOMEM, "no memory for a question");

    for (unsigned number = 1; !result && getline(&line, &size, in) > 0; number++) {
        result = answer(line, q, err);
        if (result)
            error_prefix(err, "line %u", number);
    }
    if (!result && ferror(in))
        result = error_set_errno(err, errno, "reading standard input failed");
    free(line);
    free(q);
    return result;
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct error err = {0};
    int code = cli_begin(self, argc, argv, NULL, arguments);

    if (code >= 0)
        return code;
    setvbuf(stdout, NULL, _IOFBF, 0);
    if (answer_lines(stdin, &err) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "%s", err.text);
    if (fflush(stdout))
        return cli_fail(self, EXIT_CODE_FAILED, "writing the answers failed");
    return EXIT_CODE_DONE;
}

const struct cli_command simulate_command = {
    .name = "simulate",
    .arguments = "",
    .summary = "predict moves from lines of JSON on standard input",
    .details = "Each line: {\"guest\": …, \"path\": …, \"costs\": … as 'wander predict --json' has "
               "them,\n\"limits\": {\"downtime_ms\", \"max_time_ms\", \"on_timeout\", "
               "\"throttle_max_percent\"},\n\"max_bandwidth_bytes_per_s\" or \"bandwidths\": "
               "[…]}. One line of answers for each.\n",
    .hidden = true,
    .run = run,
};
