#include "transport/base/interface.h"

#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static bool is_same_ipv4(const struct sockaddr *a, const struct sockaddr *b)
{
    const struct sockaddr_in *x = (const void *)a, *y = (const void *)b;

    return x->sin_addr.s_addr == y->sin_addr.s_addr;
}

static bool is_same_ipv6(const struct sockaddr *a, const struct sockaddr *b)
{
    const struct sockaddr_in6 *x = (const void *)a, *y = (const void *)b;

    return IN6_ARE_ADDR_EQUAL(&x->sin6_addr, &y->sin6_addr) &&
           (!x->sin6_scope_id || !y->sin6_scope_id || x->sin6_scope_id == y->sin6_scope_id);
}

static bool is_same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    if (!a || a->sa_family != b->sa_family)
        return false;
    if (a->sa_family == AF_INET)
        return is_same_ipv4(a, b);
    return a->sa_family == AF_INET6 && is_same_ipv6(a, b);
}

/* A dual-stack socket shows IPv4 as ::ffff:a.b.c.d; interfaces carry it as IPv4. */
static void unmap_ipv4(struct sockaddr_storage *address)
{
    const struct sockaddr_in6 *mapped = (const void *)address;
    struct sockaddr_in plain = {.sin_family = AF_INET};

    if (address->ss_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&mapped->sin6_addr))
        return;
    memcpy(&plain.sin_addr, &mapped->sin6_addr.s6_addr[12], sizeof(plain.sin_addr));
    memcpy(address, &plain, sizeof(plain));
}

static bool is_loopback_ipv4(const struct sockaddr_storage *address)
{
    const struct sockaddr_in *ipv4 = (const void *)address;

    return address->ss_family == AF_INET && ntohl(ipv4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

int interface_of_socket(int socket, char name[IF_NAMESIZE], struct error *err)
{
    struct sockaddr_storage local;
    socklen_t size = sizeof(local);
    struct ifaddrs *all;
    int result;

    if (getsockname(socket, (struct sockaddr *)&local, &size) < 0)
        return error_set_errno(err, errno, "cannot tell the local address of a connection");
    unmap_ipv4(&local);
    if (is_loopback_ipv4(&local)) { /* 127.0.0.2 is on no interface's list */
        snprintf(name, IF_NAMESIZE, "lo");
        return 0;
    }
    if (getifaddrs(&all) < 0)
        return error_set_errno(err, errno, "cannot list the network interfaces");
    result = -ENODEV;
    for (const struct ifaddrs *i = all; i && result; i = i->ifa_next) {
        if (!is_same_address(i->ifa_addr, (const struct sockaddr *)&local))
            continue;
        snprintf(name, IF_NAMESIZE, "%s", i->ifa_name);
        result = 0;
    }
    freeifaddrs(all);
    if (result)
        error_set(err, ENODEV, "no network interface carries the local address of the connection");
    return result;
}
