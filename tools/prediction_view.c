#include "tools/prediction_view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/rehearsal.h"
#include "tools/control_protocol.h"
#include "transport/base/clock.h"
#include "transport/base/options.h"

enum { PLOT_WIDTH = 60, PLOT_HEIGHT = 8, LABEL_WIDTH = 12, COLUMN_WIDTH = 26, CELL_SIZE = 80 };

/* One transport's column. */
struct column {
    const char *transport, *error; /* the answer's; error "" when it is usable */
    struct path_profile path;
    struct fixed_costs costs;
    const cJSON *prediction;
    bool usable, converges;
};

struct view {
    struct dirty_profile guest;
    unsigned count;
    struct column columns[REHEARSAL_MAX_PATHS];
};

static const cJSON *member(const cJSON *json, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(json, key);
}

static double number(const cJSON *json, const char *key)
{
    const cJSON *item = member(json, key);

    return cJSON_IsNumber(item) && item->valuedouble > 0 ? item->valuedouble : 0;
}

static uint64_t time_of(const cJSON *prediction, const char *key)
{
    double ns = number(prediction, key) * 1e6;

    return ns < 0x1p63 ? (uint64_t)ns : UINT64_MAX;
}

static int read_column(const cJSON *json, struct column *c, struct error *err)
{
    int result = 0;

    c->transport = control_text(json, "transport");
    c->error = control_text(json, "error");
    c->usable = cJSON_IsTrue(member(json, "usable"));
    if (!c->usable)
        return 0;
    c->prediction = member(json, "prediction");
    c->converges = cJSON_IsTrue(member(c->prediction, "converges"));
    result = path_profile_from_json(member(json, "path"), &c->path, err);
    return result ? result : fixed_costs_from_json(member(json, "costs"), &c->costs, err);
}

static int read_view(const cJSON *answer, struct view *v, struct error *err)
{
    const cJSON *paths = member(answer, "paths"), *path;
    int result = dirty_profile_from_json(member(answer, "guest"), &v->guest, err);

    cJSON_ArrayForEach(path, paths)
    {
        if (!result && v->count < REHEARSAL_MAX_PATHS)
            result = read_column(path, &v->columns[v->count++], err);
    }
    if (!result && v->guest.window_count == 0)
        result = error_set(err, EPROTO, "the guest's process answered without having watched");
    if (!result && v->count == 0)
        result = error_set(err, EPROTO, "the guest's process answered with no transport at all");
    return result;
}

static const char *size_of(double pages, char *out, size_t size)
{
    return format_size((uint64_t)(pages * GUEST_PAGE_SIZE), out, size);
}

/* A column's height is what gets dirty in that time. */
static void print_plot(FILE *out, const struct dirty_profile *guest, double longest_ns)
{
    double most = dirty_profile_pages(guest, longest_ns);
    char top[CELL_SIZE], end[CELL_SIZE], line[PLOT_WIDTH + 1];

    size_of(most, top, sizeof(top));
    fprintf(out, "\nwritten, each page counted once, over the time watched:\n");
    for (unsigned row = PLOT_HEIGHT; row > 0; row--) {
        for (unsigned x = 0; x < PLOT_WIDTH; x++) {
            double pages = dirty_profile_pages(guest, longest_ns * (x + 1) / PLOT_WIDTH);
            line[x] = pages * PLOT_HEIGHT >= most * (row - 0.5) ? '#' : ' ';
        }
        line[PLOT_WIDTH] = '\0';
        fprintf(out, "%*s |%s\n", LABEL_WIDTH, row == PLOT_HEIGHT ? top : "", line);
    }
    memset(line, '-', PLOT_WIDTH);
    fprintf(out, "%*s +%s\n", LABEL_WIDTH, "0", line);
    fprintf(out, "%*s  0%*s\n", LABEL_WIDTH, "", PLOT_WIDTH - 1,
            format_time((uint64_t)longest_ns, end, sizeof(end)));
}

static void print_guest(FILE *out, const struct dirty_profile *guest)
{
    double present = (double)dirty_profile_present(guest);
    double longest = (double)guest->windows[guest->window_count - 1].ns, seen;
    char touched[CELL_SIZE], hot[CELL_SIZE], rate[CELL_SIZE], time[CELL_SIZE], all[CELL_SIZE];

    seen = dirty_profile_pages(guest, longest);
    fprintf(out, "guest: %s touched, %.0f %% of it zero pages\n",
            size_of(present, touched, sizeof(touched)),
            present > 0 ? 100 * (double)guest->zero_pages / present : 0);
    format_time((uint64_t)longest, time, sizeof(time));
    if (seen < 1) {
        fprintf(out, "watched for %s: it wrote nothing\n", time);
        return;
    }
    fprintf(out, "watched for %s: it wrote to %s; hot set %s, dirty rate %s while none is dirty\n",
            time, size_of(seen, all, sizeof(all)),
            size_of((double)dirty_profile_hot_pages(guest), hot, sizeof(hot)),
            format_rate(dirty_profile_rate(guest) * GUEST_PAGE_SIZE, rate, sizeof(rate)));
    print_plot(out, guest, longest);
}

static void range_cell(const cJSON *p, const char *expected, const char *low, const char *high,
                       char *out)
{
    char text[CELL_SIZE], from[CELL_SIZE], to[CELL_SIZE];

    snprintf(out, CELL_SIZE, "%s (%s..%s)", format_time(time_of(p, expected), text, sizeof(text)),
             format_time(time_of(p, low), from, sizeof(from)),
             format_time(time_of(p, high), to, sizeof(to)));
}

static void bandwidth_cell(const struct column *c, char *out)
{
    format_rate((double)c->path.bandwidth, out, CELL_SIZE);
}

static void round_trip_cell(const struct column *c, char *out)
{
    format_time(c->path.round_trip_ns, out, CELL_SIZE);
}

static void converges_cell(const struct column *c, char *out)
{
    bool forced = cJSON_IsTrue(member(c->prediction, "forced"));

    snprintf(out, CELL_SIZE, "%s", !c->converges ? "no" : forced ? "by force" : "yes");
}

static void total_cell(const struct column *c, char *out)
{
    range_cell(c->prediction, "total_ms", "total_low_ms", "total_high_ms", out);
}

static void downtime_cell(const struct column *c, char *out)
{
    range_cell(c->prediction, "downtime_ms", "downtime_low_ms", "downtime_high_ms", out);
}

static void rounds_cell(const struct column *c, char *out)
{
    snprintf(out, CELL_SIZE, "%.0f", number(c->prediction, "rounds"));
}

static void bytes_cell(const struct column *c, char *out)
{
    format_size((uint64_t)number(c->prediction, "bytes"), out, CELL_SIZE);
}

static void throttle_cell(const struct column *c, char *out)
{
    snprintf(out, CELL_SIZE, "%.0f %%", number(c->prediction, "throttle_percent"));
}

static const struct row {
    const char *label;
    void (*cell)(const struct column *c, char *out);
    bool only_converging;
} rows[] = {
    {"bandwidth", bandwidth_cell, false}, {"round trip", round_trip_cell, false},
    {"converges", converges_cell, false}, {"total time", total_cell, true},
    {"downtime", downtime_cell, true},    {"rounds", rounds_cell, true},
    {"bytes", bytes_cell, true},          {"throttled", throttle_cell, true},
};

static void print_table(FILE *out, const struct view *v)
{
    fprintf(out, "\n%-*s", LABEL_WIDTH, "");
    for (unsigned i = 0; i < v->count; i++)
        fprintf(out, "  %*s", COLUMN_WIDTH, v->columns[i].transport);
    fprintf(out, "\n");
    for (size_t row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
        fprintf(out, "%-*s", LABEL_WIDTH, rows[row].label);
        for (unsigned i = 0; i < v->count; i++) {
            const struct column *c = &v->columns[i];
            char cell[CELL_SIZE] = "-";
            if (c->usable && (c->converges || !rows[row].only_converging))
                rows[row].cell(c, cell);
            fprintf(out, "  %*s", COLUMN_WIDTH, cell);
        }
        fprintf(out, "\n");
    }
}

static void print_sentences(FILE *out, const struct column *c)
{
    if (!c->usable) {
        fprintf(out, "%s: cannot be used: %s\n", c->transport, c->error);
        return;
    }
    const char *why = control_text(c->prediction, "why");
    if (!c->converges)
        fprintf(out, "%s: %s\n", c->transport, why[0] ? why : "will not converge");
    if (c->costs.samples)
        fprintf(out, "%s: what a move costs besides pages was learnt from %u migration%s\n",
                c->transport, c->costs.samples, c->costs.samples > 1 ? "s" : "");
    else
        fprintf(out,
                "%s: what a move costs besides pages is a built-in estimate: no such migration "
                "was seen yet\n",
                c->transport);
}

int prediction_print(FILE *out, const cJSON *answer, struct error *err)
{
    struct view *v = calloc(1, sizeof(*v));
    int result = v ? read_view(answer, v, err) : error_set(err, ENOMEM, "no memory for the answer");

    if (!result) {
        print_guest(out, &v->guest);
        print_table(out, v);
        fprintf(out, "\n");
        for (unsigned i = 0; i < v->count; i++)
            print_sentences(out, &v->columns[i]);
    }
    free(v);
    return result;
}

bool prediction_is_good(const cJSON *answer)
{
    const cJSON *first = cJSON_GetArrayItem(member(answer, "paths"), 0);

    return cJSON_IsTrue(member(first, "usable")) &&
           cJSON_IsTrue(member(member(first, "prediction"), "converges"));
}
