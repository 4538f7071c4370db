/* A datagram for a datagram: what makes the guest's network busy, as much as its peer likes. */
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

#include "workload.h"

static void *answer(void *argument)
{
    struct echo *e = argument;
    char datagram[65536];

    while (true) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t size =
            recvfrom(e->socket, datagram, sizeof datagram, 0, (struct sockaddr *)&from, &length);

        if (size >= 0 &&
            sendto(e->socket, datagram, (size_t)size, 0, (struct sockaddr *)&from, length) == size)
            atomic_fetch_add(&e->answered, 1);
    }
    return NULL;
}

void echo_start(struct echo *e, uint64_t port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

    if (!port)
        return;
    e->socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (e->socket < 0 || bind(e->socket, (struct sockaddr *)&here, sizeof here))
        give_up("the port of wander.echo= cannot be had");
    start_thread(answer, e);
}
