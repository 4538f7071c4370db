/* Single messages on a connection that is no control channel (yet): greetings and queries.
 * Blocking, with deadlines. */
#ifndef MIGRATE_EXCHANGE_H
#define MIGRATE_EXCHANGE_H

#include "migrate/proto.h"

/* Reads exactly one message, not a byte more; *out is the caller's (message_free). -ETIMEDOUT at
 * `deadline` (clock_now), -ECONNRESET, -EPROTO; -ECANCELED when `cancel_fd` (or -1) becomes
 * readable. */
int exchange_read(int socket, struct message *out, uint64_t deadline, int cancel_fd,
                  struct error *err);
int exchange_write(int socket, enum message_type type, const void *body, size_t size,
                   uint64_t deadline, struct error *err);

/* What the other end of a session says it is: connects to `peer`, HELLO(query), ANSWER. 0 and
 * *state, or -errno when nobody answers within timeout_ms. Blocks. */
int exchange_ask(const struct address *peer, const uint8_t token[TRANSPORT_TOKEN_SIZE],
                 int timeout_ms, int cancel_fd, enum ownership_state *state, struct error *err);

/* Gives a session up at the other end, over a connection of its own: HELLO(reconnect), ABORT, until
 * ABORTED comes. Only for whoever knows that the guest was kept. 0, or -errno when the other end
 * did not say so within timeout_ms. Blocks. */
int exchange_abort(const struct address *peer, const uint8_t token[TRANSPORT_TOKEN_SIZE],
                   int timeout_ms, struct error *err);

#endif
