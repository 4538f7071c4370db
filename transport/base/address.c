#include "transport/base/address.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "transport/base/clock.h"
#include "transport/base/options.h"

enum { LISTEN_BACKLOG = 128 };

/* Splits off what comes before `separator`; returns what is behind it, or NULL. */
static const char *take_until(const char *text, const char *separator, char *out, size_t size)
{
    const char *end = strstr(text, separator);

    if (!end || end == text || (size_t)(end - text) >= size)
        return NULL;
    memcpy(out, text, (size_t)(end - text));
    out[end - text] = '\0';
    return end + strlen(separator);
}

static bool only_of(const char *text, const char *allowed)
{
    return text[strspn(text, allowed)] == '\0';
}

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define DIGITS  "0123456789"

/* Returns what is behind "host:", or NULL. */
static const char *parse_host(const char *text, struct address *out)
{
    if (text[0] != '[') {
        text = take_until(text, ":", out->host, sizeof(out->host));
        return text && only_of(out->host, LETTERS DIGITS ".-_") ? text : NULL;
    }
    text = take_until(text + 1, "]:", out->host, sizeof(out->host));
    return text && strchr(out->host, ':') && only_of(out->host, LETTERS DIGITS ":.%-_") ? text
                                                                                        : NULL;
}

int address_parse(const char *uri, struct address *out, struct error *err)
{
    struct address parsed = {0};
    const char *text = take_until(uri, "://", parsed.scheme, sizeof(parsed.scheme));
    uint64_t port;

    if (text && only_of(parsed.scheme, LETTERS DIGITS))
        text = parse_host(text, &parsed);
    else
        text = NULL;
    if (!text || parse_number(text, 0, UINT16_MAX, &port, NULL))
        return error_set(err, EINVAL,
                         "\"%s\" is not an address: write scheme://host:port, for example "
                         "tcp://host:7000 or tcp://[::1]:7000",
                         uri);
    parsed.port = (uint16_t)port;
    *out = parsed;
    return 0;
}

char *address_format(const struct address *address, char *out, size_t size)
{
    bool literal6 = strchr(address->host, ':') != NULL;

    snprintf(out, size, "%s://%s%s%s:%u", address->scheme, literal6 ? "[" : "", address->host,
             literal6 ? "]" : "", address->port);
    return out;
}

static int resolve_errno(int result)
{
    switch (result) {
    case EAI_SYSTEM:
        return errno ? errno : EIO;
    case EAI_AGAIN:
        return EAGAIN;
    case EAI_MEMORY:
        return ENOMEM;
    default:
        return ENOENT;
    }
}

static int resolve(const struct address *address, int flags, struct addrinfo **found,
                   struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV};
    char port[8];
    int result, code;

    snprintf(port, sizeof(port), "%u", address->port);
    result = getaddrinfo(address->host, port, &hints, found);
    if (!result)
        return 0;
    code = resolve_errno(result);
    return error_set(err, code, "cannot find the host \"%s\": %s; check its name", address->host,
                     result == EAI_SYSTEM ? strerror(code) : gai_strerror(result));
}

static bool is_loopback(const struct sockaddr *sa)
{
    const struct in6_addr *in6;

    if (sa->sa_family == AF_INET) {
        uint32_t in4 = ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr);
        return in4 >> 24 == IN_LOOPBACKNET;
    }
    if (sa->sa_family != AF_INET6)
        return false;
    in6 = &((const struct sockaddr_in6 *)sa)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(in6) ||
           (IN6_IS_ADDR_V4MAPPED(in6) && in6->s6_addr[12] == IN_LOOPBACKNET);
}

bool address_is_loopback(const struct address *address)
{
    struct addrinfo *found;
    bool loopback = true;

    if (resolve(address, 0, &found, NULL))
        return false;
    for (const struct addrinfo *at = found; at; at = at->ai_next)
        loopback = loopback && is_loopback(at->ai_addr);
    freeaddrinfo(found);
    return loopback;
}

/* Waits for a connect that is under way: 0, -ETIMEDOUT, -ECANCELED or what became of it. */
static int wait_connected(int socket, uint64_t deadline, int cancel_fd)
{
    struct pollfd polled[] = {
        {.fd = socket, .events = POLLOUT},
        {.fd = cancel_fd, .events = POLLIN},
    };
    int ready, code = 0;
    socklen_t size = sizeof(code);

    do {
        ready = poll(polled, 2, clock_ms_until(deadline));
    } while (ready < 0 && errno == EINTR);
    if (ready < 0)
        return -errno;
    if (polled[1].revents)
        return -ECANCELED;
    if (!polled[0].revents)
        return -ETIMEDOUT;
    if (getsockopt(socket, SOL_SOCKET, SO_ERROR, &code, &size))
        return -errno;
    return -code;
}

static int make_blocking(int socket)
{
    int on = 1;

    if (fcntl(socket, F_SETFL, 0) || setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
        return -errno;
    return 0;
}

/* Connects to one resolved address: the socket or -errno. */
static int connect_one(const struct addrinfo *to, uint64_t deadline, int cancel_fd)
{
    int result = 0;
    int fd = socket(to->ai_family, to->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, to->ai_protocol);

    if (fd < 0)
        return -errno;
    if (connect(fd, to->ai_addr, to->ai_addrlen))
        result = errno == EINPROGRESS ? wait_connected(fd, deadline, cancel_fd) : -errno;
    if (!result)
        result = make_blocking(fd);
    if (!result)
        return fd;
    close(fd);
    return result;
}

/* Each address gets an equal share of the time that is left, so that one that swallows packets does
 * not keep the others from being tried. */
static int connect_any(const struct addrinfo *found, uint64_t deadline, int cancel_fd)
{
    unsigned left = 0;
    int result = -ETIMEDOUT;

    for (const struct addrinfo *at = found; at; at = at->ai_next)
        left++;
    for (const struct addrinfo *at = found; at; at = at->ai_next, left--) {
        uint64_t now = clock_now();
        uint64_t share = now < deadline ? (deadline - now) / left : 0;

        result = connect_one(at, now + share, cancel_fd);
        if (result >= 0 || result == -ECANCELED)
            break;
    }
    return result;
}

static const char *connect_advice(int code)
{
    switch (code) {
    case ECONNREFUSED:
        return "; nothing listens there: start the receiver, or check the port";
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return "; check the address, the route and any firewall";
    default:
        return "";
    }
}

int address_connect(const struct address *address, int timeout_ms, int cancel_fd, struct error *err)
{
    uint64_t deadline = clock_now() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * NS_PER_MS;
    struct addrinfo *found;
    char uri[300], reason[128];
    int fd, result = resolve(address, 0, &found, err);

    if (result)
        return result;
    fd = connect_any(found, deadline, cancel_fd);
    freeaddrinfo(found);
    if (fd >= 0)
        return fd;
    return error_set(err, -fd, "cannot connect to %s: %s%s",
                     address_format(address, uri, sizeof(uri)),
                     strerror_r(-fd, reason, sizeof(reason)), connect_advice(-fd));
}

static int listen_one(const struct addrinfo *at)
{
    int on = 1, result;
    int fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);

    if (fd < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
        bind(fd, at->ai_addr, at->ai_addrlen) || listen(fd, LISTEN_BACKLOG)) {
        result = -errno;
        close(fd);
        return result;
    }
    return fd;
}

static int bound_port(int fd, uint16_t *port)
{
    struct address bound;
    int result;

    if (!port)
        return 0;
    result = address_of_local(fd, "", &bound, NULL);
    if (!result)
        *port = bound.port;
    return result;
}

int address_listen(const struct address *address, uint16_t *port, struct error *err)
{
    struct addrinfo *found;
    char uri[300];
    int fd = -EADDRNOTAVAIL, result = resolve(address, AI_PASSIVE, &found, err);

    if (result)
        return result;
    for (const struct addrinfo *at = found; at && fd < 0; at = at->ai_next)
        fd = listen_one(at);
    freeaddrinfo(found);
    if (fd < 0)
        return error_set_errno(err, -fd, "cannot listen on %s",
                               address_format(address, uri, sizeof(uri)));
    result = bound_port(fd, port);
    if (!result)
        return fd;
    close(fd);
    return error_set_errno(err, -result, "cannot tell which port was bound");
}

/* A connection over IPv4 to a listener on [::] has addresses like ::ffff:10.0.0.1, which name no
 * address that an interface or an RDMA device has. */
static void unmap_ipv4(const struct sockaddr_storage *name, char *host)
{
    const struct sockaddr_in6 *ipv6 = (const void *)name;
    char *ipv4 = strrchr(host, ':');

    if (name->ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&ipv6->sin6_addr) && ipv4)
        memmove(host, ipv4 + 1, strlen(ipv4));
}

static int address_of_name(const struct sockaddr_storage *name, socklen_t size, const char *scheme,
                           struct address *out, struct error *err)
{
    struct address found = {0};
    char port[8];
    uint64_t number;

    if (getnameinfo((const struct sockaddr *)name, size, found.host, sizeof(found.host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) ||
        parse_number(port, 0, UINT16_MAX, &number, NULL))
        return error_set(err, EAFNOSUPPORT, "a socket's address is neither IPv4 nor IPv6");
    unmap_ipv4(name, found.host);
    found.port = (uint16_t)number;
    snprintf(found.scheme, sizeof(found.scheme), "%s", scheme);
    *out = found;
    return 0;
}

int address_of_peer(int socket, const char *scheme, struct address *out, struct error *err)
{
    struct sockaddr_storage name;
    socklen_t size = sizeof(name);

    if (getpeername(socket, (struct sockaddr *)&name, &size))
        return error_set_errno(err, errno, "cannot read the address of a connection's peer");
    return address_of_name(&name, size, scheme, out, err);
}

int address_of_local(int socket, const char *scheme, struct address *out, struct error *err)
{
    struct sockaddr_storage name;
    socklen_t size = sizeof(name);

    if (getsockname(socket, (struct sockaddr *)&name, &size))
        return error_set_errno(err, errno, "cannot read the local address of a socket");
    return address_of_name(&name, size, scheme, out, err);
}
