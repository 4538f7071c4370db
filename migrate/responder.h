/* The session port: a small listener that each end of a session keeps, where whoever knows the
 * token can ask what the session's state is here, and where the source comes back to the
 * destination once the control channel is lost. */
#ifndef MIGRATE_RESPONDER_H
#define MIGRATE_RESPONDER_H

#include "migrate/proto.h"

struct responder_config {
    uint8_t token[TRANSPORT_TOKEN_SIZE];
    struct ownership *ownership; /* what is answered; outlives the responder */
    /* Called from the responder's thread with a connection that wants to go on with the session;
     * the callee owns `socket`. NULL: such connections are turned away. */
    void (*reconnect)(void *context, int socket, const struct hello *hello);
    void *context;
};

struct responder;

/* Listens on the local address of `control_socket`, any port, and answers in a thread of its own.
 */
int responder_start(int control_socket, const struct responder_config *config,
                    struct responder **out, struct error *err);
uint16_t responder_port(const struct responder *r);
/* Joins and frees; NULL is fine. Blocks at most a few milliseconds. */
void responder_stop(struct responder *r);

#endif
