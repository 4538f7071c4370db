#include "transport/tcp/page_pipe.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { PIPE_BYTES = 1 << 20 };

bool page_pipe_open(struct page_pipe *p)
{
    int fds[2];

    *p = (struct page_pipe){-1, -1, 0};
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return false;
    p->out = fds[0];
    p->in = fds[1];
    if (fcntl(p->in, F_SETPIPE_SZ, PIPE_BYTES) >= PIPE_BYTES)
        return true;
    page_pipe_close(p);
    return false;
}

void page_pipe_close(struct page_pipe *p)
{
    if (p->in < 0)
        return;
    close(p->in);
    close(p->out);
    *p = (struct page_pipe){-1, -1, 0};
}

ssize_t page_pipe_fill(struct page_pipe *p, const struct iovec *pieces, unsigned count)
{
    ssize_t n = vmsplice(p->in, pieces, count, SPLICE_F_NONBLOCK);

    if (n < 0)
        return -errno;
    p->held += (size_t)n;
    return n;
}

ssize_t page_pipe_drain(struct page_pipe *p, int socket, bool more)
{
    ssize_t n = splice(p->out, NULL, socket, NULL, p->held,
                       SPLICE_F_MOVE | SPLICE_F_NONBLOCK | (more ? SPLICE_F_MORE : 0));

    if (n < 0)
        return -errno;
    p->held -= (size_t)n;
    return n;
}
