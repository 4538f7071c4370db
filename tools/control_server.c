#include "tools/control_server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/base/log.h"

enum {
    MAX_CLIENTS = 64,
    MAX_QUEUED = 1 << 20, /* bytes a client may leave unread before it is dropped */
    FLUSH_MS = 1000,
};

struct client {
    LIST_ENTRY(client) entry;
    struct control_server *server;
    uint64_t number;
    uv_pipe_t pipe;
    uv_shutdown_t shutdown;
    bool overlong; /* the rest of a line that was too long is thrown away */
    size_t used;
    char line[CONTROL_MAX_LINE + 1]; /* the line so far; one more byte shows that it is too long */
};

struct control_server {
    uv_pipe_t listener;
    uv_timer_t flush;
    control_handler_fn *handler;
    control_gone_fn *gone;
    void *context;
    LIST_HEAD(, client) clients;
    unsigned client_count;
    unsigned handles; /* of its own that are not closed yet */
    uint64_t last_number;
    bool stopping;
};

struct outgoing {
    uv_write_t request;
    char *text;
};

static void free_when_empty(struct control_server *server)
{
    if (server->handles == 0 && server->client_count == 0)
        free(server);
}

static void on_own_close(uv_handle_t *handle)
{
    struct control_server *server = handle->data;

    server->handles--;
    free_when_empty(server);
}

static void on_client_close(uv_handle_t *handle)
{
    struct client *client = handle->data;
    struct control_server *server = client->server;

    free(client);
    server->client_count--;
    if (server->stopping && server->client_count == 0 &&
        !uv_is_closing((uv_handle_t *)&server->flush))
        uv_close((uv_handle_t *)&server->flush, on_own_close);
    free_when_empty(server);
}

static void drop_client(struct client *client)
{
    if (uv_is_closing((uv_handle_t *)&client->pipe))
        return;
    client->server->gone(client->server->context, client->number);
    client->number = 0;
    LIST_REMOVE(client, entry);
    uv_close((uv_handle_t *)&client->pipe, on_client_close);
}

static struct client *find_client(const struct control_server *server, uint64_t number)
{
    struct client *client;

    LIST_FOREACH(client, &server->clients, entry)
    if (client->number == number)
        return client;
    return NULL;
}

static void on_written(uv_write_t *request, int status)
{
    struct outgoing *out = (struct outgoing *)request;
    (void)status;

    cJSON_free(out->text);
    free(out);
}

static int queue_text(struct client *client, char *text)
{
    struct outgoing *out = calloc(1, sizeof(*out));
    uv_buf_t line = uv_buf_init(text, (unsigned)strlen(text) + 1);
    int rc;

    if (!out)
        return -ENOMEM;
    text[line.len - 1] =
        '\n'; /* in the place of the terminating zero: nobody reads it as a string again */
    out->text = text;
    rc = uv_write(&out->request, (uv_stream_t *)&client->pipe, &line, 1, on_written);
    if (rc < 0)
        free(out);
    return rc;
}

static void send_to(struct client *client, const cJSON *message)
{
    char *text;

    if (uv_stream_get_write_queue_size((uv_stream_t *)&client->pipe) > MAX_QUEUED) {
        log_line(LOG_INFO, "a control client that does not read was dropped");
        drop_client(client);
        return;
    }
    text = cJSON_PrintUnformatted(message);
    if (!text || queue_text(client, text) < 0) {
        cJSON_free(text);
        drop_client(client);
    }
}

void control_server_send(struct control_server *server, uint64_t number, cJSON *message)
{
    struct client *client = server ? find_client(server, number) : NULL;

    if (client)
        send_to(client, message);
    cJSON_Delete(message);
}

bool control_server_is_behind(const struct control_server *server, uint64_t number)
{
    const struct client *client = server ? find_client(server, number) : NULL;

    return client && uv_stream_get_write_queue_size((const uv_stream_t *)&client->pipe) > 0;
}

void control_server_error(struct control_server *server, uint64_t number, const char *format, ...)
{
    cJSON *message = cJSON_CreateObject();
    char text[ERROR_TEXT_SIZE];
    va_list list;

    va_start(list, format);
    vsnprintf(text, sizeof(text), format, list);
    va_end(list);
    cJSON_AddStringToObject(message, "error", text);
    control_server_send(server, number, message);
}

static void serve_line(struct client *client, size_t size)
{
    struct control_server *server = client->server;
    struct control_request request;
    struct error err = {0};

    if (control_request_parse(client->line, size, &request, &err) < 0)
        control_server_error(server, client->number, "%s", err.text);
    else
        server->handler(server->context, client->number, &request);
}

/* Takes the bytes up to the newline, or all; returns how many. */
static size_t take_bytes(struct client *client, const char *bytes, size_t size)
{
    const char *newline = memchr(bytes, '\n', size);
    size_t length = newline ? (size_t)(newline - bytes) : size;
    size_t room = sizeof(client->line) - client->used, kept = length < room ? length : room;

    memcpy(client->line + client->used, bytes, kept);
    client->used += kept;
    if (client->used > CONTROL_MAX_LINE && !client->overlong) {
        client->overlong = true;
        control_server_error(client->server, client->number, "a request may have at most %d bytes",
                             CONTROL_MAX_LINE);
    }
    if (!newline)
        return size;
    if (!client->overlong)
        serve_line(client, client->used);
    client->used = 0;
    client->overlong = false;
    return length + 1;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    (void)handle;
    buffer->base = malloc(suggested);
    buffer->len = buffer->base ? suggested : 0;
}

static void on_read(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer)
{
    struct client *client = stream->data;
    size_t at = 0;

    if (size < 0)
        drop_client(client);
    while (size > 0 && at < (size_t)size && !uv_is_closing((uv_handle_t *)stream))
        at += take_bytes(client, buffer->base + at, (size_t)size - at);
    free(buffer->base);
}

static bool peer_is_ours(uv_pipe_t *pipe)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);
    uv_os_fd_t fd;

    if (uv_fileno((uv_handle_t *)pipe, &fd) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return false;
    return peer.uid == geteuid() || peer.uid == 0;
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct control_server *server = listener->data;
    struct client *client = status < 0 ? NULL : calloc(1, sizeof(*client));

    if (!client)
        return;
    client->server = server;
    client->number = ++server->last_number;
    uv_pipe_init(listener->loop, &client->pipe, 0);
    client->pipe.data = client;
    LIST_INSERT_HEAD(&server->clients, client, entry);
    server->client_count++;
    if (uv_accept(listener, (uv_stream_t *)&client->pipe) < 0 || !peer_is_ours(&client->pipe) ||
        server->client_count > MAX_CLIENTS ||
        uv_read_start((uv_stream_t *)&client->pipe, on_alloc, on_read) < 0)
        drop_client(client);
}

static int open_listener(struct control_server *server, int socket)
{
    int rc = uv_pipe_open(&server->listener, socket);

    return rc < 0 ? rc : uv_listen((uv_stream_t *)&server->listener, MAX_CLIENTS, on_connection);
}

int control_server_start(uv_loop_t *loop, int socket, control_handler_fn *handler,
                         control_gone_fn *gone, void *context, struct control_server **out,
                         struct error *err)
{
    struct control_server *server = calloc(1, sizeof(*server));
    int rc;

    if (!server)
        return error_set(err, ENOMEM, "no memory for the control server");
    server->handler = handler;
    server->gone = gone;
    server->context = context;
    LIST_INIT(&server->clients);
    uv_pipe_init(loop, &server->listener, 0);
    uv_timer_init(loop, &server->flush);
    server->listener.data = server->flush.data = server;
    server->handles = 2;
    rc = open_listener(server, socket);
    if (rc < 0) {
        control_server_stop(server);
        return error_set_errno(err, -rc, "cannot serve the control socket");
    }
    *out = server;
    return 0;
}

static void on_flushed(uv_shutdown_t *request, int status)
{
    (void)status;
    drop_client(request->handle->data);
}

static void on_flush_timeout(uv_timer_t *timer)
{
    struct control_server *server = timer->data;

    while (!LIST_EMPTY(&server->clients))
        drop_client(LIST_FIRST(&server->clients));
}

void control_server_stop(struct control_server *server)
{
    struct client *client, *next;

    server->stopping = true;
    uv_close((uv_handle_t *)&server->listener, on_own_close);
    for (client = LIST_FIRST(&server->clients); client; client = next) {
        next = LIST_NEXT(client, entry);
        if (uv_shutdown(&client->shutdown, (uv_stream_t *)&client->pipe, on_flushed) < 0)
            drop_client(client);
    }
    if (server->client_count)
        uv_timer_start(&server->flush, on_flush_timeout, FLUSH_MS, 0);
    else
        uv_close((uv_handle_t *)&server->flush, on_own_close);
}
