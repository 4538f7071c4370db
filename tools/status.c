/* wander status: what the guests of this user are doing. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/commands.h"
#include "tools/control_client.h"
#include "tools/progress.h"
#include "tools/runtime.h"
#include "transport/base/clock.h"
#include "transport/base/options.h"

enum { WATCH_MS = 500, LIST_TIMEOUT_MS = 2000 };

struct status_values {
    bool json, watch;
    bool headless; /* the table's head was printed already */
};

static const struct cli_option options[] = {
    {"json", NULL, "as JSON: an object for one guest, an array for all", cli_flag,
     CLI_FIELD(struct status_values, json)},
    {"watch", NULL, "again every 500 ms, until the guest has gone (without GUEST: until Ctrl-C)",
     cli_flag, CLI_FIELD(struct status_values, watch)},
    {0},
};

static int ask(const char *name, cJSON **out, struct error *err)
{
    struct control_request request = {.command = CONTROL_STATUS};

    return control_call(name, &request, LIST_TIMEOUT_MS, out, err);
}

/* What is going on, in a few words. */
static void detail(const cJSON *status, char *out, size_t size)
{
    const cJSON *migration = cJSON_GetObjectItemCaseSensitive(status, "migration");
    const cJSON *incoming = cJSON_GetObjectItemCaseSensitive(status, "incoming");
    struct migration_status progress;

    if (migration && control_progress_from_json(migration, &progress, NULL) == 0)
        progress_line(&progress, out, size);
    else if (incoming)
        snprintf(out, size, "%s", control_text(status, "message"));
    else
        snprintf(
            out, size, "%s",
            control_text(cJSON_GetObjectItemCaseSensitive(status, "last_migration"), "message"));
}

static void print_row(const char *name, const cJSON *status)
{
    const cJSON *guest = cJSON_GetObjectItemCaseSensitive(status, "guest");
    const cJSON *workload = cJSON_GetObjectItemCaseSensitive(status, "workload");
    char memory[32] = "-", vcpus[16] = "-", rate[24] = "-", more[512];

    if (cJSON_IsObject(guest)) {
        format_size(control_number(guest, "memory_bytes", 0), memory, sizeof(memory));
        snprintf(vcpus, sizeof(vcpus), "%u", (unsigned)control_number(guest, "vcpus", 0));
    }
    if (cJSON_IsObject(workload))
        snprintf(rate, sizeof(rate), "%llu",
                 (unsigned long long)control_number(workload, "rate", 0));
    detail(status, more, sizeof(more));
    printf("%-16s %-10s %-10s %-6s %10s %5s %10s  %s\n", name, control_text(status, "state"),
           cJSON_IsObject(guest) ? control_text(guest, "kind") : "-",
           cJSON_IsObject(guest) ? control_text(guest, "accel") : "-", memory, vcpus, rate, more);
}

static void print_head(void)
{
    printf("%-16s %-10s %-10s %-6s %10s %5s %10s  %s\n", "GUEST", "STATE", "KIND", "ACCEL",
           "MEMORY", "VCPUS", "PAGES/S", "DETAIL");
}

static int print_json(cJSON *json)
{
    char *text = cJSON_Print(json);

    if (text)
        printf("%s\n", text);
    cJSON_free(text);
    return text ? 0 : -ENOMEM;
}

/* A guest may end between the listing and the question: then it is left out. A silent one gets a
 * row that says so. */
static int show_all(const struct status_values *values, struct error *err)
{
    char(*names)[GUEST_NAME_SIZE];
    cJSON *array = cJSON_CreateArray();
    size_t count;
    int rc = runtime_names(&names, &count, err);

    if (rc == 0 && !values->json && !values->headless)
        print_head();
    for (size_t i = 0; rc == 0 && i < count; i++) {
        struct error own = {0};
        cJSON *status = NULL;

        if (ask(names[i], &status, &own) == 0 && values->json)
            cJSON_AddItemToArray(array, status);
        else if (status)
            print_row(names[i], status);
        else if (own.code == ETIMEDOUT)
            fprintf(stderr, "%s: %s\n", names[i], own.text);
        if (!values->json)
            cJSON_Delete(status);
    }
    if (rc == 0 && values->json)
        rc = print_json(array);
    cJSON_Delete(array);
    free(names);
    return rc;
}

static int show_one(const char *name, const struct status_values *values, struct error *err)
{
    cJSON *status;
    int rc = ask(name, &status, err);

    if (rc < 0)
        return rc;
    if (values->json) {
        rc = print_json(status);
    } else {
        if (!values->headless)
            print_head();
        print_row(control_text(status, "name"), status);
    }
    cJSON_Delete(status);
    return rc;
}

static bool has_gone(int code)
{
    return code == ENOENT || code == ECONNRESET;
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct status_values values = {0};
    const char *arguments[CLI_MAX_ARGUMENTS], *name;
    int code = cli_begin(self, argc, argv, &values, arguments);
    bool redraw = values.watch && !values.json && isatty(STDOUT_FILENO);

    if (code >= 0)
        return code;
    name = arguments[0];
    for (bool seen = false;; seen = true) {
        struct error err = {0};
        int rc;

        if (redraw)
            fputs("\033[H\033[J", stdout);
        rc = name ? show_one(name, &values, &err) : show_all(&values, &err);
        if (rc < 0 && seen && name && has_gone(err.code)) {
            printf("guest %s has gone from here\n", name);
            return EXIT_CODE_DONE;
        }
        if (rc < 0)
            return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
        if (!values.watch)
            return EXIT_CODE_DONE;
        /* SIGPIPE is ignored: without this it would go on for a reader that has left. */
        if (fflush(stdout) != 0 || ferror(stdout))
            return cli_fail(self, EXIT_CODE_FAILED, "nobody reads what this prints any more");
        values.headless = !redraw;
        clock_sleep_until(clock_now() + WATCH_MS * NS_PER_MS);
    }
}

const struct cli_command status_command = {
    .name = "status",
    .arguments = "[GUEST]",
    .summary = "show what a guest, or every guest of this user, is doing",
    .details =
        "States: starting, running, paused, migrating, in-doubt, stuck, moved, ending; and at a\n"
        "destination receiving, prepared, in-doubt.\n",
    .max_arguments = 1,
    .options = options,
    .run = run,
};
