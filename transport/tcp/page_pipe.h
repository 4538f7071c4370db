/* Pages handed to a socket by reference instead of by copy: vmsplice(2) puts references into a
 * pipe, splice(2) moves them into the socket. The network reads the pages when it sends (or sends
 * again), over loopback the receiver reads them: so the bytes are still needed after the call,
 * until the peer says that it has them. */
#ifndef TRANSPORT_TCP_PAGE_PIPE_H
#define TRANSPORT_TCP_PAGE_PIPE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

struct page_pipe {
    int in, out; /* -1 when not open */
    size_t held; /* bytes in the pipe */
};

/* False when this process may have no pipe large enough to be worth it (fcntl(2), F_SETPIPE_SZ):
 * then copy. */
bool page_pipe_open(struct page_pipe *p);
void page_pipe_close(struct page_pipe *p);

/* Only while nothing is held: takes as much as fits of what the pieces hold. Bytes taken, or
 * -errno. */
ssize_t page_pipe_fill(struct page_pipe *p, const struct iovec *pieces, unsigned count);
/* Moves held bytes into a non-blocking socket. `more`: the caller has more for it at once. Bytes
 * moved, or -errno
 * (-EAGAIN: it takes nothing now). Raises SIGPIPE like write(2). */
ssize_t page_pipe_drain(struct page_pipe *p, int socket, bool more);

#endif
