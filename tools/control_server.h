/* The control socket's server side: clients, lines, bounded queues. All on the loop's thread;
 * nothing blocks. */
#ifndef TOOLS_CONTROL_SERVER_H
#define TOOLS_CONTROL_SERVER_H

#include <uv.h>

#include "tools/control_protocol.h"

struct control_server;

/* A checked request of the client with this number (never 0, never used again). The request lives
 * during the call. */
typedef void control_handler_fn(void *context, uint64_t client,
                                const struct control_request *request);
/* The client with this number has hung up, or was dropped. */
typedef void control_gone_fn(void *context, uint64_t client);

/* Serves the listening `socket`: on success it is the server's. Peers of another user (SO_PEERCRED,
 * unix(7)) are turned away. Requests that are none get an error and reach no handler. */
int control_server_start(uv_loop_t *loop, int socket, control_handler_fn *handler,
                         control_gone_fn *gone, void *context, struct control_server **out,
                         struct error *err);
/* Sends a line; takes `message`. Nothing happens when the client has gone; a client that does not
 * read its lines is dropped. */
void control_server_send(struct control_server *server, uint64_t client, cJSON *message);
/* True when the client has not read all it was sent: what can be left out should be. */
bool control_server_is_behind(const struct control_server *server, uint64_t client);
/* {"error": text} */
void control_server_error(struct control_server *server, uint64_t client, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* No new clients; those there get what is queued, for a second at most. The server is freed by the
 * loop. */
void control_server_stop(struct control_server *server);

#endif
