/* The control server with real sockets: bad lines, many clients, clients that do not read. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/control_client.h"
#include "tools/control_server.h"
#include "tools/runtime.h"
#include "transport/base/clock.h"

/* A server in a thread of its own that answers every request with its command and the client's
 * number; "console" with a lot of text, "quit" stops it. */
struct fixture {
    char directory[64];
    uv_loop_t loop;
    struct name_claim claim;
    struct control_server *server;
    pthread_t thread;
    unsigned gone; /* a bit for each client that is */
};

static char big[100000];

static void on_gone(void *context, uint64_t client)
{
    struct fixture *f = context;

    f->gone |= client < 8 ? 1u << client : 0;
}

static void answer(void *context, uint64_t client, const struct control_request *request)
{
    struct fixture *f = context;
    cJSON *json = cJSON_CreateObject();

    cJSON_AddNumberToObject(json, "command", request->command);
    cJSON_AddNumberToObject(json, "client", (double)client);
    cJSON_AddNumberToObject(json, "gone", f->gone);
    cJSON_AddBoolToObject(json, "first_is_behind", control_server_is_behind(f->server, 1));
    if (request->command == CONTROL_CONSOLE)
        cJSON_AddStringToObject(json, "console", big);
    control_server_send(f->server, client, json);
    if (request->command == CONTROL_QUIT)
        control_server_stop(f->server);
}

static void *serve(void *context)
{
    struct fixture *f = context;

    uv_run(&f->loop, UV_RUN_DEFAULT);
    return NULL;
}

static void start(struct fixture *f)
{
    struct error err = {0};

    memset(big, 'x', sizeof(big) - 1);
    snprintf(f->directory, sizeof(f->directory), "/tmp/wander-control-XXXXXX");
    cr_assert(mkdtemp(f->directory));
    setenv("WANDER_RUNTIME_DIR", f->directory, 1);
    cr_assert_eq(name_claim("guest", &f->claim, &err), 0, "%s", err.text);
    uv_loop_init(&f->loop);
    cr_assert_eq(
        control_server_start(&f->loop, f->claim.socket, answer, on_gone, f, &f->server, &err), 0,
        "%s", err.text);
    f->claim.socket = -1;
    cr_assert_eq(pthread_create(&f->thread, NULL, serve, f), 0);
}

/* Asks the server to stop; it must free all it has, clients that read nothing included. */
static void finish(struct fixture *f)
{
    struct control_request quit = {.command = CONTROL_QUIT};
    struct error err = {0};
    cJSON *reply = NULL;

    cr_assert_eq(control_call("guest", &quit, 5000, &reply, &err), 0, "%s", err.text);
    cJSON_Delete(reply);
    pthread_join(f->thread, NULL);
    cr_expect_eq(uv_loop_close(&f->loop), 0, "the server left handles open");
    name_release(&f->claim);
    cr_expect_eq(rmdir(f->directory), 0, "files were left in %s", f->directory);
}

static void send_text(const struct control_connection *c, const char *text, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(c->socket, text, size, MSG_NOSIGNAL);

        cr_assert_gt(sent, 0, "send: %s", strerror(errno));
        text += sent;
        size -= (size_t)sent;
    }
}

static void expect_answer(struct control_connection *c, int expected, const char *mentions)
{
    struct error err = {0};
    cJSON *reply = NULL;
    int rc = control_receive(c, 5000, -1, &reply, &err);

    cr_assert_eq(rc, expected, "expected %d, got %d: %s", expected, rc, err.text);
    cr_expect(strstr(err.text, mentions), "expected '%s' in '%s'", mentions, err.text);
    cJSON_Delete(reply);
}

Test(control_server, answers_bad_lines_and_goes_on, .timeout = 60)
{
    static const char status[] = "{\"command\":\"status\"}\n";
    struct control_connection c;
    struct error err = {0};
    char *longest = malloc(3 * CONTROL_MAX_LINE);
    struct fixture f;

    start(&f);
    cr_assert_eq(control_open("guest", &c, &err), 0, "%s", err.text);
    send_text(&c, "nonsense\n", 9);
    expect_answer(&c, -EREMOTEIO, "JSON object");
    send_text(&c, "{\"command\":\"fly\"}\n{\"comm", 24);
    expect_answer(&c, -EREMOTEIO, "fly");
    send_text(&c, "and\":\"status\"}\n", 15);
    expect_answer(&c, 0, "");
    memset(longest, '{', 3 * CONTROL_MAX_LINE);
    send_text(&c, longest, 3 * CONTROL_MAX_LINE);
    expect_answer(&c, -EREMOTEIO, "65536");
    send_text(&c, "}\n", 2); /* the rest of the long line: skipped, no second error */
    send_text(&c, status, strlen(status));
    expect_answer(&c, 0, "");
    send_text(&c, "{\"command\":\"status\"", 19); /* leaves in the middle of a line */
    control_close(&c);
    finish(&f);
    free(longest);
}

Test(control_server, two_clients_get_their_own_answers, .timeout = 60)
{
    struct control_request request = {.command = CONTROL_STATUS};
    struct control_connection c[2];
    struct error err = {0};
    struct fixture f;
    cJSON *reply;

    start(&f);
    for (int i = 0; i < 2; i++)
        cr_assert_eq(control_open("guest", &c[i], &err), 0, "%s", err.text);
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 2; i++) {
            cr_assert_eq(control_send(&c[i], &request, &err), 0, "%s", err.text);
            cr_assert_eq(control_receive(&c[i], 5000, -1, &reply, &err), 0, "%s", err.text);
            cr_expect_eq(control_number(reply, "client", 0), (uint64_t)i + 1,
                         "client %d was taken for another", i);
            cJSON_Delete(reply);
        }
    control_close(&c[1]);
    cr_assert_eq(control_call("guest", &request, 5000, &reply, &err), 0, "%s", err.text);
    cr_expect_eq(control_number(reply, "gone", 0), 1u << 2, "expected to hear of client 2's end");
    cJSON_Delete(reply);
    control_close(&c[0]);
    finish(&f);
}

/* Asks by another connection, as often as it takes, until the server says that it dropped a client.
 */
static void wait_until_gone(unsigned client)
{
    struct control_request request = {.command = CONTROL_STATUS};
    uint64_t deadline = clock_now() + 30 * NS_PER_S, gone = 0;
    struct error err = {0};
    cJSON *reply = NULL;

    while (!(gone & 1u << client) && clock_now() < deadline) {
        cr_assert_eq(control_call("guest", &request, 5000, &reply, &err), 0, "%s", err.text);
        gone = control_number(reply, "gone", 0);
        cJSON_Delete(reply);
        usleep(10000);
    }
    cr_assert(gone & 1u << client,
              "expected client %u to be dropped; the bits of those that are: %#lx", client,
              (unsigned long)gone);
}

/* 64 MB of answers that nobody reads: the client goes, the others are served. */
Test(control_server, drops_a_client_that_does_not_read, .timeout = 60)
{
    static const char request[] = "{\"command\":\"console\"}\n";
    struct control_connection c;
    struct error err = {0};
    struct fixture f;
    int sent = 0;

    start(&f);
    cr_assert_eq(control_open("guest", &c, &err), 0, "%s", err.text);
    for (int i = 0; i < 640 && sent >= 0; i++)
        sent = (int)send(c.socket, request, strlen(request), MSG_NOSIGNAL);
    wait_until_gone(1);
    for (int rc = 0; rc == 0;) {
        cJSON *reply = NULL;

        rc = control_receive(&c, 5000, -1, &reply, &err);
        cJSON_Delete(reply);
    }
    cr_expect_eq(err.code, ECONNRESET, "expected the connection to be closed, got: %s", err.text);
    control_close(&c);
    finish(&f);
}

static void expect_first_behind(bool behind)
{
    struct control_request request = {.command = CONTROL_STATUS};
    struct error err = {0};
    cJSON *reply = NULL;

    cr_assert_eq(control_call("guest", &request, 5000, &reply, &err), 0, "%s", err.text);
    cr_expect_eq(cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(reply, "first_is_behind")), behind,
                 "expected the first client %s", behind ? "to be behind" : "to have read all");
    cJSON_Delete(reply);
}

Test(control_server, knows_who_is_behind, .timeout = 60)
{
    static const char request[] = "{\"command\":\"console\"}\n";
    struct control_connection c;
    struct error err = {0};
    struct fixture f;

    start(&f);
    cr_assert_eq(control_open("guest", &c, &err), 0, "%s", err.text);
    send_text(&c, request, strlen(request));
    expect_answer(&c, 0, "");
    expect_first_behind(false);
    for (int i = 0; i < 8; i++)
        send_text(&c, request, strlen(request));
    /* Answered in turn: once the second client has its answer, these have theirs. */
    expect_first_behind(true);
    for (int i = 0; i < 8; i++)
        expect_answer(&c, 0, "");
    expect_first_behind(false);
    control_close(&c);
    finish(&f);
}

Test(control_server, stops_although_a_client_does_not_read, .timeout = 60)
{
    static const char request[] = "{\"command\":\"console\"}\n";
    struct control_connection c;
    struct error err = {0};
    struct fixture f;

    start(&f);
    cr_assert_eq(control_open("guest", &c, &err), 0, "%s", err.text);
    for (int i = 0; i < 8; i++)
        send_text(&c, request, strlen(request));
    finish(&f);
    control_close(&c);
}

static void *give_back(void *claim)
{
    clock_sleep_until(clock_now() + 100 * NS_PER_MS);
    name_release(claim);
    return NULL;
}

Test(control_server, a_name_that_is_being_given_back_is_waited_for, .timeout = 60)
{
    char directory[] = "/tmp/wander-runtime-XXXXXX";
    struct name_claim claim, other;
    struct error err = {0};
    pthread_t holder;

    cr_assert(mkdtemp(directory));
    setenv("WANDER_RUNTIME_DIR", directory, 1);
    cr_assert_eq(name_claim("b", &claim, &err), 0, "%s", err.text);
    pthread_create(&holder, NULL, give_back, &claim);
    cr_expect_eq(name_claim("b", &other, &err), 0, "%s", err.text);
    pthread_join(holder, NULL);
    name_release(&other);
    rmdir(directory);
}

Test(control_server, a_name_is_held_until_it_is_given_back, .timeout = 60)
{
    char directory[] = "/tmp/wander-runtime-XXXXXX", path[128];
    char(*names)[GUEST_NAME_SIZE];
    struct name_claim claim, other;
    struct error err = {0};
    size_t count;

    cr_assert(mkdtemp(directory));
    setenv("WANDER_RUNTIME_DIR", directory, 1);
    cr_assert_eq(name_claim("b", &claim, &err), 0, "%s", err.text);
    cr_expect_eq(name_claim("b", &other, &err), -EADDRINUSE);
    cr_expect(strstr(err.text, "in use"), "%s", err.text);
    error_clear(&err);
    cr_expect_eq(runtime_connect("a", &err), -ENOENT);
    cr_expect(strstr(err.text, "there are: b"), "expected the names there are: '%s'", err.text);
    cr_expect_eq(runtime_names(&names, &count, NULL), 0);
    cr_expect(count == 1 && strcmp(names[0], "b") == 0, "%zu names", count);
    free(names);
    name_release(&claim);
    error_clear(&err);

    /* What a dead process leaves is replaced. */
    snprintf(path, sizeof(path), "%s/b.lock", directory);
    fclose(fopen(path, "w"));
    snprintf(path, sizeof(path), "%s/b.sock", directory);
    fclose(fopen(path, "w"));
    cr_expect_eq(name_claim("b", &claim, &err), 0, "%s", err.text);
    name_release(&claim);

    cr_expect_eq(chmod(directory, 0755), 0);
    cr_expect_eq(name_claim("b", &claim, &err), -EPERM, "others may look into %s", directory);
    cr_expect_eq(rmdir(directory), 0);
}
