/* Every move between ownership states, legal or not, and what a record says of a process that is
 * gone. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migrate/ownership.h"
#include "migrate/proto.h"
#include "migrate/record.h"

#define O OWNERSHIP_OWNER
#define C OWNERSHIP_COMMITTING
#define R OWNERSHIP_RELEASED
#define V OWNERSHIP_RECEIVING
#define P OWNERSHIP_PREPARED
#define S OWNERSHIP_STARTED
#define A OWNERSHIP_ABORTED
#define G OWNERSHIP_STARTING

static const bool legal[OWNERSHIP_STATES][OWNERSHIP_STATES] = {
    [O][C] = true, [C][R] = true, [C][O] = true, [V][P] = true, [V][A] = true,
    [P][G] = true, [P][A] = true, [G][S] = true, [G][A] = true,
};

Test(ownership, only_the_legal_moves_are_made)
{
    for (int from = O; from < OWNERSHIP_STATES; from++) {
        for (int to = O; to < OWNERSHIP_STATES; to++) {
            struct ownership o;
            struct error err = {0};
            ownership_init(&o, (enum ownership_state)from);
            int result =
                ownership_move(&o, (enum ownership_state)from, (enum ownership_state)to, &err);
            int expected = legal[from][to] ? 0 : -EINVAL;
            enum ownership_state after =
                legal[from][to] ? (enum ownership_state)to : (enum ownership_state)from;
            cr_expect_eq(result, expected, "%s -> %s: expected %d, came %d", ownership_name(from),
                         ownership_name(to), expected, result);
            cr_expect_eq(ownership_get(&o), after, "%s -> %s: left in %s", ownership_name(from),
                         ownership_name(to), ownership_name(ownership_get(&o)));
            ownership_destroy(&o);
        }
    }
}

Test(ownership, a_move_from_another_state_is_stale)
{
    struct ownership o;
    struct error err = {0};

    ownership_init(&o, OWNERSHIP_ABORTED);
    cr_expect_eq(ownership_move(&o, OWNERSHIP_PREPARED, OWNERSHIP_STARTING, &err), -ESTALE);
    cr_expect_eq(ownership_get(&o), OWNERSHIP_ABORTED);
    cr_expect(strstr(err.text, "aborted"), "the text must say what the state is, it says: %s",
              err.text);
    ownership_destroy(&o);
}

Test(ownership, names_go_both_ways)
{
    for (int state = O; state < OWNERSHIP_STATES; state++)
        cr_expect_eq(ownership_from_name(ownership_name((enum ownership_state)state)),
                     (enum ownership_state)state);
    cr_expect_eq(ownership_from_name("dancing"), OWNERSHIP_NONE);
}

static char folder[64];

static void use_private_state(void)
{
    strcpy(folder, "/tmp/wander-record-XXXXXX");
    cr_assert(mkdtemp(folder));
    setenv("XDG_STATE_HOME", folder, 1);
}

static void remove_private_state(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(record, .init = use_private_state, .fini = remove_private_state);

static struct record_content content(enum ownership_state state)
{
    struct record_content c = {.role = RECORD_DESTINATION, .guest_name = "g", .state = state};

    memset(c.token, 0xab, sizeof(c.token));
    c.peer = (struct address){.scheme = "tcp", .host = "127.0.0.1", .port = 1};
    return c;
}

static void record_path(char *out, size_t size)
{
    char token[33];

    token_format(content(P).token, token);
    snprintf(out, size, "%s/wander/sessions/%s.destination", folder, token);
}

/* A process that makes the record, goes to `state` and dies; with `durable`, after the pessimistic
 * mark. */
static void leave_behind(enum ownership_state state, bool durable)
{
    pid_t child = fork();
    int status;

    if (child == 0) {
        struct record_content c = content(OWNERSHIP_RECEIVING);
        struct record *r;
        struct error err = {0};
        if (record_create(&c, &r, &err) || (durable && record_make_durable(r, &err)) ||
            record_set_state(r, state, &err))
            _exit(1);
        _exit(0);
    }
    waitpid(child, &status, 0);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0,
              "the child could not write its record");
}

/* As if the host had been booted since. */
static void forge_boot_id(void)
{
    char path[256], text[2049] = "";

    record_path(path, sizeof(path));
    int file = open(path, O_RDWR);
    cr_assert(file >= 0 && pread(file, text, 2048, 0) == 2048);
    char *at = strstr(text, "\"boot_id\":\"");
    cr_assert(at, "no boot id in %s", text);
    at[11] = at[11] == 'f' ? '0' : 'f';
    cr_assert_eq(pwrite(file, text, 2048, 0), 2048);
    close(file);
}

Test(record, verdicts_on_the_dead)
{
    static const struct {
        enum ownership_state left;
        bool durable, other_boot;
        enum ownership_state verdict;
    } cases[] = {
        {OWNERSHIP_RECEIVING, false, false, OWNERSHIP_ABORTED},
        {OWNERSHIP_RECEIVING, true, false, OWNERSHIP_ABORTED},
        {OWNERSHIP_PREPARED, true, false, OWNERSHIP_ABORTED},
        {OWNERSHIP_STARTED, true, false, OWNERSHIP_STARTED_DEAD},
        {OWNERSHIP_ABORTED, true, false, OWNERSHIP_ABORTED},
        {OWNERSHIP_RECEIVING, false, true, OWNERSHIP_ABORTED},
        {OWNERSHIP_RECEIVING, true, true, OWNERSHIP_UNKNOWN},
        {OWNERSHIP_PREPARED, true, true, OWNERSHIP_UNKNOWN},
        {OWNERSHIP_STARTING, true, false, OWNERSHIP_STARTED_DEAD},
        {OWNERSHIP_STARTING, true, true, OWNERSHIP_STARTED_DEAD},
        {OWNERSHIP_STARTED, true, true, OWNERSHIP_STARTED_DEAD},
        {OWNERSHIP_ABORTED, true, true, OWNERSHIP_ABORTED},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char path[256];
        leave_behind(cases[i].left, cases[i].durable);
        if (cases[i].other_boot)
            forge_boot_id();
        enum ownership_state verdict = record_consult(content(P).token, RECORD_DESTINATION);
        cr_expect_eq(verdict, cases[i].verdict, "case %zu, left %s: expected %s, came %s", i,
                     ownership_name(cases[i].left), ownership_name(cases[i].verdict),
                     ownership_name(verdict));
        enum ownership_state again = record_consult(content(P).token, RECORD_DESTINATION);
        cr_expect_eq(again, verdict, "case %zu: asked twice, answered %s and %s", i,
                     ownership_name(verdict), ownership_name(again));
        record_path(path, sizeof(path));
        unlink(path);
    }
}

Test(record, the_living_are_believed)
{
    struct record_content c = content(OWNERSHIP_RECEIVING);
    struct record *r, *second;
    struct error err = {0};

    cr_assert_eq(record_create(&c, &r, &err), 0, "%s", err.text);
    cr_assert_eq(record_set_state(r, OWNERSHIP_PREPARED, &err), 0, "%s", err.text);
    pid_t child = fork();
    if (child == 0)
        _exit(record_consult(c.token, RECORD_DESTINATION) == OWNERSHIP_PREPARED ? 0 : 1);
    int status;
    waitpid(child, &status, 0);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0,
              "another process was not told PREPARED");
    cr_expect_eq(record_create(&c, &second, &err), -EEXIST);
    record_remove(r);
    cr_expect_eq(record_consult(c.token, RECORD_DESTINATION), OWNERSHIP_UNKNOWN);
}

static void *ask_often(void *unused)
{
    uintptr_t wrong = 0;

    (void)unused;
    for (int i = 0; i < 2000; i++)
        wrong += record_consult(content(P).token, RECORD_DESTINATION) != OWNERSHIP_STARTED_DEAD;
    return (void *)wrong;
}

/* One asker must not be taken for the living process by the other. */
Test(record, two_who_ask_at_once_are_told_the_same)
{
    pthread_t other;
    void *wrong;

    leave_behind(OWNERSHIP_STARTED, true);
    pthread_create(&other, NULL, ask_often, NULL);
    void *mine = ask_often(NULL);
    pthread_join(other, &wrong);
    cr_expect_eq((uintptr_t)wrong + (uintptr_t)mine, 0,
                 "%zu answers said that a dead process lives",
                 (size_t)((uintptr_t)wrong + (uintptr_t)mine));
}

Test(record, rubbish_is_unknown)
{
    static const char *const rubbish[] = {"", "{", "{\"state\":\"started\"}", "null", "\xff\xfe"};
    char path[256];

    leave_behind(OWNERSHIP_PREPARED, true);
    record_path(path, sizeof(path));
    for (size_t i = 0; i < sizeof(rubbish) / sizeof(*rubbish); i++) {
        char text[2048];
        memset(text, ' ', sizeof(text));
        memcpy(text, rubbish[i], strlen(rubbish[i]));
        int file = open(path, O_WRONLY | O_TRUNC);
        cr_assert_eq(write(file, text, sizeof(text)), sizeof(text));
        close(file);
        enum ownership_state verdict = record_consult(content(P).token, RECORD_DESTINATION);
        cr_expect_eq(verdict, OWNERSHIP_UNKNOWN, "rubbish %zu was taken for %s", i,
                     ownership_name(verdict));
    }
}
