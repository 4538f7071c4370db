#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/lab/devices.h"

#define LINE_PREFIX "wander-guest: "

/* The value behind " key=" in `line`, or NULL. */
static const char *find_value(const char *line, const char *key)
{
    char wanted[32];
    int length = snprintf(wanted, sizeof wanted, " %s=", key);
    const char *at = strstr(line, wanted);

    return at ? at + length : NULL;
}

/* Leaves *out alone when the key is not there or has no number. */
static void get_number(const char *line, const char *key, uint64_t *out)
{
    const char *text = find_value(line, key);

    if (text && *text >= '0' && *text <= '9')
        *out = strtoull(text, NULL, 10);
}

static void parse_ready(const char *line, struct guest_workload *account)
{
    const char *name = find_value(line, "clock");

    if (name)
        snprintf(account->gap_clock, sizeof account->gap_clock, "%.*s", (int)strcspn(name, " "),
                 name);
}

static void parse_stat(const char *line, struct guest_workload *account)
{
    get_number(line, "written", &account->pages_written);
    get_number(line, "rate", &account->rate);
}

static void parse_moved(const char *line, struct guest_workload *account)
{
    get_number(line, "move", &account->moves);
    get_number(line, "gap_ns", &account->gap_ns);
}

static void parse_check(const char *line, struct guest_workload *account)
{
    uint64_t bad = 0;

    account->checks++;
    get_number(line, "move", &account->check_moves);
    get_number(line, "pages", &account->checked_pages);
    get_number(line, "bad", &bad);
    account->bad_pages += bad;
}

static const struct {
    const char *word;
    void (*parse)(const char *line, struct guest_workload *account);
} words[] = {
    {"ready", parse_ready},
    {"stat", parse_stat},
    {"moved", parse_moved},
    {"check", parse_check},
};

void console_parse(const char *line, struct guest_workload *account)
{
    size_t length;

    if (strncmp(line, LINE_PREFIX, sizeof LINE_PREFIX - 1) != 0)
        return;
    line += sizeof LINE_PREFIX - 1;
    length = strcspn(line, " ");
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strlen(words[i].word) == length && strncmp(line, words[i].word, length) == 0)
            words[i].parse(line, account);
}
