/* The DSCP of lanes, read back from their sockets. */
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#include "transport/transport.h"

enum { LANES = 3, DSCP = 46, DESCRIPTORS = 256 };

static void *accept_lanes(void *transport)
{
    struct error err = {0};

    cr_expect_eq(transport_accept(transport, 5000, &err), 0, "%s", err.text);
    return NULL;
}

/* How many of this process's connected sockets have a traffic class of DSCP and 0. */
static void count_sockets(int level, int option, unsigned *marked, unsigned *plain)
{
    *marked = *plain = 0;
    for (int fd = 3; fd < DESCRIPTORS; fd++) {
        struct sockaddr_storage at;
        socklen_t size = sizeof(at);
        int class = -1;

        if (getpeername(fd, (struct sockaddr *)&at, &size) < 0 || at.ss_family == AF_UNIX)
            continue;
        size = sizeof(class);
        if (getsockopt(fd, level, option, &class, &size) < 0)
            continue;
        *marked += class >> 2 == DSCP;
        *plain += class >> 2 == 0;
    }
}

static void expect_marked(const char *host, int level, int option)
{
    struct transport_params from = {.epoch = 1, .lanes = LANES, .dscp = DSCP};
    struct transport_params to = {.epoch = 1, .lanes = LANES};
    struct address at = {.scheme = "tcp"};
    struct transport *source, *destination;
    struct error err = {0};
    unsigned marked, plain;
    pthread_t accepting;

    strcpy(at.host, host);
    cr_assert_eq(transport_new("tcp", &from, &source, &err), 0, "%s", err.text);
    cr_assert_eq(transport_new("tcp", &to, &destination, &err), 0, "%s", err.text);
    cr_assert_eq(transport_listen(destination, &at, &at.port, &err), 0, "%s", err.text);
    pthread_create(&accepting, NULL, accept_lanes, destination);
    cr_assert_eq(transport_connect(source, &at, 5000, &err), 0, "%s", err.text);
    pthread_join(accepting, NULL);
    count_sockets(level, option, &marked, &plain);
    cr_expect_eq(marked, LANES, "%s: expected %d sockets of DSCP %d, came %u", host, LANES, DSCP,
                 marked);
    cr_expect_eq(plain, LANES, "%s: expected %d without, the destination's; came %u", host, LANES,
                 plain);
    transport_close(source);
    transport_close(destination);
}

Test(tcp_dscp, is_set_on_the_sources_lanes)
{
    expect_marked("127.0.0.1", IPPROTO_IP, IP_TOS);
    expect_marked("::1", IPPROTO_IPV6, IPV6_TCLASS);
}

Test(tcp_dscp, has_six_bits)
{
    struct transport_params params = {.lanes = 1, .dscp = 64};
    struct transport *transport;
    struct error err = {0};

    cr_expect_eq(transport_new("tcp", &params, &transport, &err), -EINVAL, "%d", err.code);
    cr_expect(strstr(err.text, "64"), "%s", err.text);
}
