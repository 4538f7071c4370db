/* The control channel: messages both ways over one TCP connection, with heartbeats. A thread of its
 * own reads, answers pings, sends heartbeats every half second and declares the peer dead after
 * four seconds without a byte. */
#ifndef MIGRATE_CHANNEL_H
#define MIGRATE_CHANNEL_H

#include <stdbool.h>
#include <stdint.h>

#include "migrate/proto.h"
#include "migrate/wakeup.h"

enum { CHANNEL_HEARTBEAT_MS = 500, CHANNEL_DEAD_AFTER_MS = 4000, CHANNEL_MAX_QUEUE = 64 };
enum {
    CHANNEL_MAX_QUEUED_BYTES = GUEST_MAX_STATE + (8 << 20)
}; /* one device state, and whatever else comes at once */

struct channel;

/* Takes over `socket` (closed by channel_close; also when opening fails). `wakeup` is raised for
 * every message and when the channel is lost. */
int channel_open(int socket, struct wakeup *wakeup, struct channel **out, struct error *err);
/* Sends one message; `body` is copied or gone to the kernel on return. Any thread. Blocks at most
 * until the peer is declared dead: -ETIMEDOUT; -ECONNRESET and kin when the channel is lost. */
int channel_send(struct channel *c, enum message_type type, const void *body, size_t size,
                 struct error *err);
int channel_send_text(struct channel *c, enum message_type type, const char *text,
                      struct error *err);
/* Takes the next message that has arrived, if any: 1 and *out (message_free), 0 none, -errno when
 * the channel is lost and nothing is left to read. Never blocks. One thread. */
int channel_poll(struct channel *c, struct message *out, struct error *err);
/* True when the peer is gone; any thread. */
bool channel_lost(struct channel *c);
/* CLOCK_MONOTONIC of the peer minus ours, ns, by the round trip that was shortest; 0 before the
 * first. */
int64_t channel_clock_offset(struct channel *c);
/* The shortest round trip seen, ns; 0 before the first. */
uint64_t channel_round_trip(struct channel *c);
/* The socket, for what can be asked of it (its addresses, its interface). Owned by the channel. */
int channel_socket(const struct channel *c);
/* Joins the thread, closes, frees. NULL is fine. Blocks for as long as a send under way. */
void channel_close(struct channel *c);
/* The same, but gives the peer up to 200 ms to read what was said to it and to close in turn. */
void channel_close_heard(struct channel *c);

#endif
