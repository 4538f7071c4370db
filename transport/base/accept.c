#include "transport/base/address.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/socket.h>

int address_accept(int listener, struct error *err)
{
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))
        return -EAGAIN;
    if (fd < 0)
        return error_set_errno(err, errno, "accepting a connection failed");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}
