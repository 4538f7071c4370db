/* Predictions for people, from answers as they come and from hostile ones. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/rehearsal.h"
#include "tools/prediction_view.h"
#include "transport/base/clock.h"

static struct rehearsal example(void)
{
    struct rehearsal r = {.options = {.destination = {"tcp", "there", 1}, .lanes = 2},
                          .path_count = 2};

    r.guest.window_count = 2;
    r.guest.windows[0].ns = NS_PER_S;
    r.guest.windows[1].ns = 2 * NS_PER_S;
    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        r.guest.present[band] = 256;
    r.guest.windows[0].pages[3] = r.guest.windows[1].pages[3] = 256;
    r.guest.zero_pages = 64 * 64;
    strcpy(r.paths[0].scheme, "tcp");
    r.paths[0].usable = true;
    r.paths[0].profile = (struct path_profile){
        .bandwidth = 100 << 20, .round_trip_ns = 2 * NS_PER_MS, .guest_share = 1};
    r.paths[0].costs = (struct fixed_costs){.samples = 3, .bandwidth_ratio = 1};
    r.paths[0].prediction = (struct prediction){
        .converges = true,
        .total_ns = {1500 * NS_PER_MS, 1200 * NS_PER_MS, 2 * NS_PER_S},
        .downtime_ns = {20 * NS_PER_MS, 10 * NS_PER_MS, 30 * NS_PER_MS},
        .rounds = 4,
        .bytes = 70 << 20,
    };
    strcpy(r.paths[1].scheme, "rdma");
    strcpy(r.paths[1].error, "no card");
    return r;
}

/* As text, which the caller frees. */
static char *as_text(const struct rehearsal *r)
{
    cJSON *json = rehearsal_to_json(r);
    char *text = cJSON_Print(json);

    cJSON_Delete(json);
    return text;
}

/* What is printed of it; the caller frees. */
static char *print(const struct rehearsal *r, bool *good)
{
    char *json = as_text(r), *text = NULL;
    cJSON *answer = cJSON_Parse(json);
    size_t size;
    FILE *out = open_memstream(&text, &size);
    struct error err = {0};

    cr_assert(answer, "no JSON: %s", json);
    cr_assert_eq(prediction_print(out, answer, &err), 0, "%s", err.text);
    fclose(out);
    *good = prediction_is_good(answer);
    cJSON_Delete(answer);
    free(json);
    return text;
}

static void expect_text(const char *text, const char *wanted)
{
    cr_expect(strstr(text, wanted), "expected \"%s\" in:\n%s", wanted, text);
}

Test(prediction_view, tells_what_was_seen_and_what_follows)
{
    struct rehearsal r = example();
    bool good;
    char *text = print(&r, &good);

    cr_expect(good, "tcp was asked for and converges");
    expect_text(text, "64.0 MiB touched, 25 % of it zero pages");
    expect_text(text, "it wrote to 1.0 MiB");
    expect_text(text, "100.0 MiB/s");
    expect_text(text, "1.5 s (1.2 s..2.0 s)");
    expect_text(text, "20.0 ms (10.0 ms..30.0 ms)");
    expect_text(text, "learnt from 3 migrations");
    expect_text(text, "rdma: cannot be used: no card");
    free(text);
}

Test(prediction_view, tells_once_what_an_end_would_need)
{
    static const struct {
        const char *why, *wanted;
    } cases[] = {
        {"will not converge: needs 10 Gbit/s", "\ntcp: will not converge: needs 10 Gbit/s\n"},
        {"", "\ntcp: will not converge\n"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct rehearsal r = example();
        bool good;

        r.paths[0].prediction = (struct prediction){.needed_bandwidth = 1250000000};
        strcpy(r.paths[0].prediction.why, cases[i].why);
        char *text = print(&r, &good);
        cr_expect(!good, "case %zu: nothing good follows from that", i);
        expect_text(text, cases[i].wanted);
        free(text);
    }
}

Test(prediction_view, what_was_asked_for_decides)
{
    struct rehearsal r = example();
    struct rehearsal_path first = r.paths[0];
    bool good;

    r.paths[0] = r.paths[1];
    r.paths[1] = first;
    free(print(&r, &good));
    cr_expect(!good, "rdma was asked for and cannot be used");
}

static int print_line(const char *line, struct error *err)
{
    cJSON *answer = cJSON_Parse(line);
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    int result = prediction_print(out, answer, err);

    fclose(out);
    if (result)
        cr_expect_eq(size, 0, "%.80s: refused, but this was printed: %s", line, text);
    prediction_is_good(answer);
    free(text);
    cJSON_Delete(answer);
    return result;
}

/* Whatever member is missing or of another type: an error, or a text without it. */
Test(prediction_view, hostile_answers)
{
    static const char *const bad[] = {"{}", "[]", "{\"guest\":{},\"paths\":[]}",
                                      "{\"guest\":null,\"paths\":[{\"usable\":true}]}"};
    struct rehearsal r = example(), unwatched = example();
    unwatched.guest.window_count = 0;
    char *json = as_text(&r), *without = as_text(&unwatched);
    struct error err = {0};

    cr_expect_eq(print_line(without, &err), -EPROTO, "a guest that nobody watched was shown");
    free(without);

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        cr_expect_eq(print_line(bad[i], &err), -EPROTO, "%s was taken", bad[i]);
    for (size_t at = 0; json[at]; at++) {
        char was = json[at];

        if (was < '0' || was > '~')
            continue;
        json[at] = was >= 'a' ? 'x' : was == '[' ? '{' : '9';
        int result = print_line(json, &err);
        cr_assert(result == 0 || result == -EPROTO, "byte %zu: came %d", at, result);
        json[at] = was;
    }
    free(json);
}
