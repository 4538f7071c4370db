/* What `wander receive` and the processes it starts agree on. */
#ifndef TOOLS_RECEIVE_H
#define TOOLS_RECEIVE_H

/* Descriptors that a session's process is born with. */
enum {
    SESSION_SOCKET = 3, /* the accepted control connection */
    SESSION_EVENTS = 4, /* to the listener: lines as guest_process.h has them */
    SESSION_ONCE = 5,   /* --once: a file that the one session locks which takes the guest */
};

enum { SESSION_MAX_EVENT = 2048 }; /* bytes of one line */

#endif
