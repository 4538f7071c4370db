/* Where a peer listens: a URI, and the socket calls that every TCP user of the project shares. */
#ifndef TRANSPORT_BASE_ADDRESS_H
#define TRANSPORT_BASE_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "transport/base/error.h"

struct address {
    char scheme[8]; /* "tcp", "rdma" */
    char host[256]; /* name or literal, without brackets */
    uint16_t port;  /* 0: any (listeners) */
};

/* "tcp://host:port", IPv6 literals in brackets. -EINVAL with a text that shows the form expected.
 */
int address_parse(const char *uri, struct address *out, struct error *err);
/* The URI form into `out`; returns `out`. */
char *address_format(const struct address *address, char *out, size_t size);
/* True when every address the host resolves to is loopback (127/8, ::1). Blocks on the resolver. */
bool address_is_loopback(const struct address *address);

/* Connects, trying every resolved address, IPv4 and IPv6, within timeout_ms in all; `cancel_fd` (or
 * -1) becoming readable ends it with -ECANCELED. Returns a blocking, close-on-exec socket with
 * TCP_NODELAY. Blocks; not for the thread that serves the control socket. */
int address_connect(const struct address *address, int timeout_ms, int cancel_fd,
                    struct error *err);
/* Binds and listens (SO_REUSEADDR, close-on-exec); fills *port with the port really bound (may be
 * NULL). */
int address_listen(const struct address *address, uint16_t *port, struct error *err);
/* Takes one connection that waits at `listener` (make it non-blocking, or poll first),
 * close-on-exec, TCP_NODELAY. -EAGAIN when none waits. */
int address_accept(int listener, struct error *err);
/* The numeric address of the peer or of this side of a connected socket, with `scheme` copied in;
 * IPv4 is written as such, on an IPv6 socket too.
 */
int address_of_peer(int socket, const char *scheme, struct address *out, struct error *err);
int address_of_local(int socket, const char *scheme, struct address *out, struct error *err);

#endif
