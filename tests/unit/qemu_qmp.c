/* The monitor's client: against a scripted server that misbehaves, and against QEMU itself. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "migrate/guest/qemu/qmp.h"
#include "migrate/guest/qemu/qmp_inbox.h"
#include "tests/unit/qemu_real.h"

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
#define SHORT_MS 300

/* What the server does, a step each, in order. */
enum act {
    ACT_END,
    ACT_READ,  /* waits for a line and remembers its id */
    ACT_SAY,   /* writes `text`; $ID is the id of the line read last */
    ACT_FLOOD, /* events until nobody listens, `text` each time */
    ACT_BIG,   /* an answer of `size` bytes */
    ACT_HOLD,  /* silence until the client goes */
};

struct step {
    enum act act;
    const char *text;
    size_t size;
};

#define NEGOTIATE                                                                                  \
    {ACT_SAY, GREETING}, {ACT_READ},                                                               \
    {                                                                                              \
        ACT_SAY, "{\"return\": {}, \"id\": \"$ID\"}\r\n"                                           \
    }

struct server {
    int listener, client;
    const struct step *steps;
    char id[128], path[108];
    pthread_t thread;
};

static bool say(int fd, const char *text, size_t size)
{
    return send(fd, text, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static void say_with_id(struct server *s, const char *text)
{
    const char *mark = strstr(text, "$ID");
    char line[4096];

    if (mark)
        snprintf(line, sizeof line, "%.*s%s%s", (int)(mark - text), text, s->id, mark + 3);
    say(s->client, mark ? line : text, strlen(mark ? line : text));
}

static void read_line(struct server *s)
{
    char line[4096] = "", *id;
    size_t used = 0;

    while (used < sizeof line - 1 && read(s->client, line + used, 1) == 1 && line[used] != '\n')
        used++;
    if ((id = strstr(line, "\"id\":\"")))
        sscanf(id + 6, "%127[^\"]", s->id);
}

static void say_big(struct server *s, size_t size)
{
    char *text = malloc(size);

    memset(text, 'x', size);
    say(s->client, "{\"return\": \"", 12);
    say(s->client, text, size);
    free(text);
    say_with_id(s, "\", \"id\": \"$ID\"}\r\n");
}

static void *serve(void *server)
{
    struct server *s = server;
    char byte;

    s->client = accept(s->listener, NULL, NULL);
    for (const struct step *step = s->steps; step->act != ACT_END; step++) {
        if (step->act == ACT_READ)
            read_line(s);
        else if (step->act == ACT_SAY)
            say_with_id(s, step->text);
        else if (step->act == ACT_BIG)
            say_big(s, step->size);
        else if (step->act == ACT_FLOOD)
            while (say(s->client, step->text, strlen(step->text)))
                ;
        else
            while (read(s->client, &byte, 1) > 0)
                ;
    }
    close(s->client);
    return NULL;
}

static void start_server(struct server *s, const struct step *steps)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(s->path, sizeof s->path, "/tmp/wander-test-qmp-%d.sock", getpid());
    strcpy(address.sun_path, s->path);
    unlink(s->path);
    s->steps = steps;
    s->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(s->listener, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(s->listener, 1), 0);
    cr_assert_eq(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void stop_server(struct server *s)
{
    pthread_join(s->thread, NULL);
    close(s->listener);
    unlink(s->path);
}

struct bad_case {
    const char *name;
    struct step steps[8];
    int connect, command; /* what comes of them; command only when connect is 0 */
    const char *text;
};

static const struct bad_case bad_cases[] = {
    {"nothing wrong",
     {NEGOTIATE, {ACT_READ}, {ACT_SAY, "{\"return\": 1, \"id\": \"$ID\"}\r\n"}, {ACT_HOLD}},
     0,
     0,
     ""},
    {"an event and other clients' answers before ours",
     {NEGOTIATE,
      {ACT_READ},
      {ACT_SAY, "{\"event\": \"STOP\"}\r\n{\"return\": 2, \"id\": \"wander-1-1\"}\r\n"
                "{\"return\": 3}\r\n{\"error\": {\"desc\": \"not ours\"}}\r\n"},
      {ACT_SAY, "{\"return\": 1, \"id\": \"$ID\"}\r\n"},
      {ACT_HOLD}},
     0,
     0,
     ""},
    {"an error",
     {NEGOTIATE,
      {ACT_READ},
      {ACT_SAY,
       "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\tsuch \\u001b[2Jthing\"},"
       " \"id\": \"$ID\"}\r\n"},
      {ACT_HOLD}},
     0,
     -EREMOTEIO,
     "query-status: no such  [2Jthing"},
    {"an error without words",
     {NEGOTIATE, {ACT_READ}, {ACT_SAY, "{\"error\": 7, \"id\": \"$ID\"}\r\n"}, {ACT_HOLD}},
     0,
     -EREMOTEIO,
     "no reason"},
    {"neither result nor error",
     {NEGOTIATE, {ACT_READ}, {ACT_SAY, "{\"id\": \"$ID\"}\r\n"}, {ACT_HOLD}},
     0,
     -EREMOTEIO,
     "neither"},
    {"only a wrong id",
     {NEGOTIATE, {ACT_READ}, {ACT_SAY, "{\"return\": 1, \"id\": \"$ID0\"}\r\n"}, {ACT_HOLD}},
     0,
     -ETIMEDOUT,
     "did not answer query-status"},
    {"an id that is no text",
     {NEGOTIATE, {ACT_READ}, {ACT_SAY, "{\"return\": 1, \"id\": [1]}\r\n"}, {ACT_HOLD}},
     0,
     -ETIMEDOUT,
     "did not answer query-status"},
    {"silence", {NEGOTIATE, {ACT_HOLD}}, 0, -ETIMEDOUT, "did not answer query-status"},
    {"the end instead of an answer",
     {NEGOTIATE, {ACT_READ}, {ACT_END}},
     0,
     -ECONNRESET,
     "closed its monitor's connection"},
    {"the end within a line",
     {NEGOTIATE, {ACT_READ}, {ACT_SAY, "{\"return\": 1, \"id\": \"$ID\""}, {ACT_END}},
     0,
     -ECONNRESET,
     "closed its monitor's connection"},
    {"garbage", {NEGOTIATE, {ACT_SAY, "hello\r\n"}, {ACT_HOLD}}, 0, -EPROTO, "is not QMP"},
    {"an array", {NEGOTIATE, {ACT_SAY, "[1, 2]\r\n"}, {ACT_HOLD}}, 0, -EPROTO, "is not QMP"},
    {"a huge answer", {NEGOTIATE, {ACT_READ}, {ACT_BIG, NULL, 8 << 20}, {ACT_HOLD}}, 0, 0, ""},
    {"an endless line",
     {NEGOTIATE, {ACT_READ}, {ACT_BIG, NULL, 17 << 20}, {ACT_HOLD}},
     0,
     -EPROTO,
     "more than 16 MiB"},
    {"events without end",
     {NEGOTIATE, {ACT_READ}, {ACT_FLOOD, "{\"event\": \"RTC_CHANGE\", \"data\": {}}\r\n"}},
     0,
     -ETIMEDOUT,
     "did not answer query-status"},
    {"strangers' answers without end",
     {NEGOTIATE, {ACT_READ}, {ACT_FLOOD, "{\"return\": {}}\r\n"}},
     0,
     -ETIMEDOUT,
     "did not answer query-status"},
    {"another has the monitor", {{ACT_HOLD}}, -EBUSY, 0, "second monitor"},
    {"no QMP",
     {{ACT_SAY, "QEMU 7.2.22 monitor - type 'help'\r\n"}, {ACT_HOLD}},
     -EPROTO,
     0,
     "not QMP"},
    {"JSON, but no greeting", {{ACT_SAY, "{}\r\n"}, {ACT_HOLD}}, -EPROTO, 0, "does not speak QMP"},
    {"the end at once", {{ACT_END}}, -ECONNRESET, 0, "no greeting"},
};

static void check_bad_case(const struct bad_case *c)
{
    struct server s = {0};
    struct error err = {0};
    struct qmp *q = NULL;
    cJSON *out;
    int ret;

    start_server(&s, c->steps);
    ret = qmp_connect(s.path, &q, &err);
    cr_expect_eq(ret, c->connect, "%s: connecting gave %d, expected %d (%s)", c->name, ret,
                 c->connect, err.text);
    if (ret == 0) {
        ret = qmp_command(q, "query-status", NULL, -1, c->command == 0 ? 60000 : SHORT_MS, &out,
                          &err);
        cr_expect_eq(ret, c->command, "%s: the command gave %d, expected %d (%s)", c->name, ret,
                     c->command, err.text);
        cr_expect_eq(out != NULL, ret == 0, "%s: a result with an error, or none without", c->name);
        cJSON_Delete(out);
    }
    cr_expect(strstr(err.text, c->text), "%s: the text is '%s', expected '%s' in it", c->name,
              err.text, c->text);
    qmp_close(q);
    stop_server(&s);
}

Test(qemu_qmp, survives_what_a_server_can_do)
{
    for (size_t i = 0; i < sizeof bad_cases / sizeof bad_cases[0]; i++)
        check_bad_case(&bad_cases[i]);
}

Test(qemu_qmp, a_dead_connection_says_why_every_time)
{
    static const struct step steps[] = {NEGOTIATE, {ACT_READ}, {ACT_END}};
    struct server s = {0};
    struct error err = {0};
    struct qmp *q;

    start_server(&s, steps);
    cr_assert_eq(qmp_connect(s.path, &q, &err), 0, "%s", err.text);
    cr_expect(!qmp_lost(q), "a living connection is said to be lost");
    cr_expect_eq(qmp_call(q, NULL, &err, "stop", NULL), -ECONNRESET);
    error_clear(&err);
    cr_expect_eq(qmp_call(q, NULL, &err, "cont", NULL), -ECONNRESET);
    cr_expect(strstr(err.text, "cont was not sent") && strstr(err.text, "closed"), "'%s'",
              err.text);
    error_clear(&err);
    cr_expect_eq(qmp_await(q, (const char *const[]){"STOP", NULL}, 60000, &err), -ECONNRESET);
    cr_expect(qmp_lost(q), "a lost connection is not said to be");
    qmp_close(q);
    stop_server(&s);
}

/* With no time at all an event that is there already is still found. */
Test(qemu_qmp, what_has_come_is_not_late)
{
    static const struct step steps[] = {
        {ACT_SAY, GREETING},
        {ACT_READ},
        {ACT_SAY, "{\"return\": {}, \"id\": \"$ID\"}\r\n{\"event\": \"STOP\"}\r\n"},
        {ACT_HOLD},
        {ACT_END}};
    struct server s = {0};
    struct error err = {0};
    struct qmp *q;

    start_server(&s, steps);
    cr_assert_eq(qmp_connect(s.path, &q, &err), 0, "%s", err.text);
    cr_expect_eq(qmp_await(q, (const char *const[]){"STOP", NULL}, 0, &err), 0, "%s", err.text);
    qmp_close(q);
    stop_server(&s);
}

Test(qemu_qmp, keeps_the_newest_event_of_a_name)
{
    static const struct step steps[] = {
        NEGOTIATE,
        {ACT_SAY, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}\r\n"},
        {ACT_SAY, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"active\"}}\r\n"},
        {ACT_SAY, "{\"event\": \"BLOCK_JOB_READY\", \"data\": {}}\r\n"
                  "{\"event\": \"BLOCK_JOB_READY\"}\r\n{\"event\": \"STOP\"}\r\n"},
        {ACT_HOLD},
        {ACT_END}};
    const char *const names[] = {"RESUME", "STOP", NULL};
    struct server s = {0};
    struct error err = {0};
    struct qmp *q;
    cJSON *data;

    start_server(&s, steps);
    cr_assert_eq(qmp_connect(s.path, &q, &err), 0, "%s", err.text);
    cr_expect_eq(qmp_await(q, names, 60000, &err), 1, "STOP is number 1: %s", err.text);
    cr_assert(qmp_seen(q, "MIGRATION", &data), "MIGRATION was not noted");
    cr_expect_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(data, "status")), "active");
    cJSON_Delete(data);
    qmp_forget(q, "MIGRATION");
    cr_expect(!qmp_seen(q, "MIGRATION", &data), "a forgotten event is still there");
    cr_expect_null(data);
    cr_assert(qmp_seen(q, "BLOCK_JOB_READY", &data), "BLOCK_JOB_READY was not noted");
    cr_expect_null(data, "the newest has no data, an older one's were given");
    cJSON_Delete(data);
    qmp_forget(q, "STOP");
    cr_expect_eq(qmp_await(q, names, SHORT_MS, &err), -ETIMEDOUT);
    qmp_close(q);
    stop_server(&s);
}

Test(qemu_qmp, has_room_for_new_events_only_at_the_cost_of_old_ones)
{
    struct qmp_inbox in = {0};
    char name[QMP_EVENT_NAME_SIZE];

    for (int i = 0; i < QMP_MAX_EVENTS + 1; i++) {
        cJSON *message = cJSON_CreateObject();
        snprintf(name, sizeof name, "EVENT_%d", i);
        cJSON_AddStringToObject(message, "event", name);
        qmp_inbox_note(&in, message);
        cJSON_Delete(message);
    }
    cr_expect_null(qmp_inbox_event(&in, "EVENT_0"), "the oldest stayed");
    cr_expect_not_null(qmp_inbox_event(&in, "EVENT_1"), "the second went");
    cr_expect_not_null(qmp_inbox_event(&in, name), "the newest is not there");
    qmp_inbox_free(&in);
}

Test(qemu_qmp, data_too_long_to_keep_leave_no_older_ones)
{
    struct qmp_inbox in = {0};

    for (int i = 0; i < 2; i++) {
        cJSON *message = cJSON_CreateObject();
        cJSON_AddStringToObject(message, "event", "EVENT");
        cJSON_AddObjectToObject(message, "data");
        in.line = i == 0 ? QMP_MAX_EVENT_DATA : QMP_MAX_EVENT_DATA + 1;
        qmp_inbox_note(&in, message);
        cJSON_Delete(message);
        struct qmp_event *event = qmp_inbox_event(&in, "EVENT");
        cr_assert_not_null(event);
        cr_expect_eq(event->data != NULL, i == 0, "event %d: data %p", i, (void *)event->data);
    }
    qmp_inbox_free(&in);
}

Test(qemu_qmp, says_what_is_wrong_with_a_path)
{
    struct error err = {0};
    struct qmp *q;
    char path[200] = "/tmp/";

    cr_expect_eq(qmp_connect("/nowhere/qmp.sock", &q, &err), -ENOENT);
    cr_expect(strstr(err.text, "/nowhere/qmp.sock"), "'%s'", err.text);
    error_clear(&err);
    memset(path + 5, 'x', sizeof path - 6);
    cr_expect_eq(qmp_connect(path, &q, &err), -ENAMETOOLONG);
    cr_expect(strstr(err.text, "shorter"), "'%s'", err.text);
}

Test(qemu_qmp, arguments_that_are_no_json_are_not_sent)
{
    static const struct step steps[] = {NEGOTIATE, {ACT_HOLD}, {ACT_END}};
    struct server s = {0};
    struct error err = {0};
    struct qmp *q;

    start_server(&s, steps);
    cr_assert_eq(qmp_connect(s.path, &q, &err), 0, "%s", err.text);
    cr_expect_eq(qmp_call(q, NULL, &err, "getfd", "{'fdname': %d", 1), -EINVAL);
    qmp_close(q);
    stop_server(&s);
}

/* QEMU itself. */

Test(qemu_qmp, talks_to_qemu, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct error err = {0};
    int ends[2];
    cJSON *out;

    fixture_start(&qemu, NULL);
    cr_expect_eq(qmp_peer(qemu.qmp), qemu.pid, "the peer is %d, not QEMU's %d", qmp_peer(qemu.qmp),
                 qemu.pid);
    cr_assert_eq(qmp_call(qemu.qmp, &out, &err, "query-status", NULL), 0, "%s", err.text);
    cr_expect_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(out, "status")), "prelaunch");
    cJSON_Delete(out);
    cr_expect_eq(qmp_call(qemu.qmp, NULL, &err, "device_del", "{'id': 'none%d'}", 1), -EREMOTEIO);
    cr_expect(strstr(err.text, "device_del: ") && strstr(err.text, "none1"), "'%s'", err.text);
    error_clear(&err);
    cr_assert_eq(pipe(ends), 0);
    out = cJSON_CreateObject();
    cJSON_AddStringToObject(out, "fdname", "state");
    cr_expect_eq(qmp_command(qemu.qmp, "getfd", out, ends[1], QMP_TIMEOUT_MS, NULL, &err), 0, "%s",
                 err.text);
    cr_expect_eq(qmp_call(qemu.qmp, NULL, &err, "cont", NULL), 0, "%s", err.text);
    cr_expect_eq(qmp_await(qemu.qmp, (const char *const[]){"RESUME", NULL}, 60000, &err), 0, "%s",
                 err.text);
    kill(qemu.pid, SIGKILL);
    cr_expect_eq(qmp_await(qemu.qmp, (const char *const[]){"STOP", NULL}, 60000, &err),
                 -ECONNRESET);
    cr_expect(qmp_lost(qemu.qmp));
    fixture_stop(&qemu);
}

Test(qemu_qmp, a_second_client_is_told_to_use_another_monitor, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct error err = {0};
    struct qmp *second;

    fixture_start(&qemu, NULL);
    cr_expect_eq(qmp_connect(qemu.socket, &second, &err), -EBUSY, "%s", err.text);
    cr_expect(strstr(err.text, "second monitor"), "'%s'", err.text);
    fixture_stop(&qemu);
}

/* What a predecessor that died may have left: half a command sent, half an answer read. */
static const char *const leavings[] = {
    "",
    "{",
    "{\"execute\": \"query-st",
    "{\"execute\": \"device_add\", \"arguments\": {\"id\": [\"",
    "{\"execute\": \"query-status\", \"id\": \"somebody\"}\n",
};

Test(qemu_qmp, takes_over_a_connection_in_whatever_state, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct error err = {0};
    struct qmp *heir;
    char some[7];
    cJSON *out;

    fixture_start(&qemu, NULL);
    for (size_t i = 0; i < sizeof leavings / sizeof leavings[0]; i++) {
        error_clear(&err);
        cr_assert(say(qmp_socket(qemu.qmp), leavings[i], strlen(leavings[i])) || !leavings[i][0]);
        if (strchr(leavings[i], '\n')) {
            cr_assert_eq(fixture_wait_readable(qmp_socket(qemu.qmp)), 0);
            cr_assert_eq(read(qmp_socket(qemu.qmp), some, sizeof some), (ssize_t)sizeof some);
        }
        cr_assert_eq(qmp_adopt(dup(qmp_socket(qemu.qmp)), &heir, &err), 0, "%s", err.text);
        cr_expect_eq(qmp_call(heir, &out, &err, "query-status", NULL), 0, "after '%s': %s",
                     leavings[i], err.text);
        cr_expect(cJSON_HasObjectItem(out, "status"), "after '%s' came another answer",
                  leavings[i]);
        cJSON_Delete(out);
        qmp_close(heir);
    }
    fixture_stop(&qemu);
}
