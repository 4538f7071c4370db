/* Addresses: the URI grammar, what counts as loopback, and sockets on loopback. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/base/address.h"
#include "transport/base/clock.h"

Test(address, parse_and_format)
{
    static const struct {
        const char *uri, *scheme, *host;
        unsigned port;
    } cases[] = {
        {"tcp://host:7000", "tcp", "host", 7000},
        {"rdma://10.0.0.1:1", "rdma", "10.0.0.1", 1},
        {"tcp://[::1]:65535", "tcp", "::1", 65535},
        {"tcp://[fe80::1%eth0]:0", "tcp", "fe80::1%eth0", 0},
        {"tcp://a-b.example_net:80", "tcp", "a-b.example_net", 80},
    };
    char text[320];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct address a;
        struct error err = {0};

        cr_assert_eq(address_parse(cases[i].uri, &a, &err), 0, "%s: %s", cases[i].uri, err.text);
        cr_expect_str_eq(a.scheme, cases[i].scheme, "%s: scheme %s", cases[i].uri, a.scheme);
        cr_expect_str_eq(a.host, cases[i].host, "%s: host %s", cases[i].uri, a.host);
        cr_expect_eq(a.port, cases[i].port, "%s: port %u", cases[i].uri, a.port);
        cr_expect_str_eq(address_format(&a, text, sizeof(text)), cases[i].uri, "got %s", text);
    }
}

Test(address, what_is_no_uri_is_refused)
{
    static const char *const cases[] = {
        "",
        "host",
        "host:7000",
        "tcp:host:7000",
        "tcp:/host:7000",
        "://host:7000",
        "tcp://:7000",
        "tcp://host",
        "tcp://host:",
        "tcp://host:x",
        "tcp://host:-1",
        "tcp://host:65536",
        "tcp://host:7000/",
        "tcp://::1:7000",
        "tcp://[::1]",
        "tcp://[::1]7000",
        "tcp://[::1:7000",
        "tcp://[]:7000",
        "tcp://[host]:7000",
        "tcp://ho st:7000",
        "tcp://user@host:7000",
        "muchtoolong://host:7000",
        "t\ncp://host:7000",
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct address a = {.port = 4711};
        struct error err = {0};
        int result = address_parse(cases[i], &a, &err);

        cr_expect_eq(result, -EINVAL, "\"%s\": expected -EINVAL, got %d", cases[i], result);
        cr_expect_eq(a.port, 4711, "\"%s\": the result was touched", cases[i]);
        cr_expect(strstr(err.text, "tcp://host:7000"), "the form is not shown: %s", err.text);
    }
}

Test(address, a_host_as_long_as_it_gets)
{
    char uri[300] = "tcp://";
    struct address a;

    memset(uri + 6, 'h', 255);
    strcpy(uri + 6 + 255, ":1");
    cr_expect_eq(address_parse(uri, &a, NULL), 0);
    cr_expect_eq(strlen(a.host), 255);
    strcpy(uri + 6 + 255, "h:1");
    cr_expect_eq(address_parse(uri, &a, NULL), -EINVAL);
}

Test(address, loopback)
{
    static const struct {
        const char *host;
        bool expected;
    } cases[] = {
        {"127.0.0.1", true},        {"127.255.0.1", true}, {"::1", true},
        {"::ffff:127.0.0.1", true}, {"0.0.0.0", false},    {"::", false},
        {"128.0.0.1", false},       {"10.0.0.1", false},   {"::2", false},
        {"::ffff:10.0.0.1", false}, {"", false},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct address a = {.scheme = "tcp"};

        strcpy(a.host, cases[i].host);
        cr_expect_eq(address_is_loopback(&a), cases[i].expected, "\"%s\": expected %s",
                     cases[i].host, cases[i].expected ? "loopback" : "not loopback");
    }
}

/* Listens on a free port of `host`; skips where the host has no such address. */
static int listen_on(const char *host, struct address *at)
{
    struct error err = {0};
    int fd;

    *at = (struct address){.scheme = "tcp"};
    strcpy(at->host, host);
    fd = address_listen(at, &at->port, &err);
    if (fd == -EADDRNOTAVAIL || fd == -EAFNOSUPPORT)
        cr_skip("this machine has no %s", host);
    cr_assert(fd >= 0, "%s", err.text);
    cr_assert_neq(at->port, 0, "no port was told");
    return fd;
}

static void check_connection(const char *host)
{
    struct address at, seen;
    struct error err = {0};
    int listener = listen_on(host, &at), on = 0;
    int fd = address_connect(&at, 5000, -1, &err);
    socklen_t size = sizeof(on);

    cr_assert(fd >= 0, "%s", err.text);
    cr_expect_not(fcntl(fd, F_GETFL) & O_NONBLOCK, "the socket does not block");
    cr_expect(fcntl(fd, F_GETFD) & FD_CLOEXEC, "the socket leaks into children");
    cr_expect(fcntl(listener, F_GETFD) & FD_CLOEXEC, "the listener leaks into children");
    cr_expect(!getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, &size) && on, "Nagle is on");
    cr_expect_eq(address_of_peer(fd, "tcp", &seen, &err), 0, "%s", err.text);
    cr_expect(!strcmp(seen.host, host) && seen.port == at.port && !strcmp(seen.scheme, "tcp"),
              "the peer is said to be %s://%s:%u", seen.scheme, seen.host, seen.port);
    cr_expect_eq(address_of_local(fd, "tcp", &seen, &err), 0, "%s", err.text);
    cr_expect(!strcmp(seen.host, host) && seen.port && seen.port != at.port,
              "this side is said to be %s:%u", seen.host, seen.port);
    close(fd);
    close(listener);
}

Test(address, connect_ipv4)
{
    check_connection("127.0.0.1");
}

/* As with a listener on [::]. */
Test(address, ipv4_is_ipv4_on_an_ipv6_socket)
{
    struct address at, seen;
    struct error err = {0};
    int listener = listen_on("::ffff:127.0.0.1", &at);
    int fd = address_connect(&at, 5000, -1, &err);

    cr_assert(fd >= 0, "%s", err.text);
    cr_expect_eq(address_of_peer(fd, "tcp", &seen, &err), 0, "%s", err.text);
    cr_expect(!strcmp(seen.host, "127.0.0.1") && seen.port == at.port,
              "the peer is said to be %s:%u", seen.host, seen.port);
    cr_expect_eq(address_of_local(fd, "tcp", &seen, &err), 0, "%s", err.text);
    cr_expect_str_eq(seen.host, "127.0.0.1");
    close(fd);
    close(listener);
}

Test(address, connect_ipv6)
{
    check_connection("::1");
}

Test(address, nobody_listens)
{
    struct address at;
    struct error err = {0};
    int result;

    close(listen_on("127.0.0.1", &at));
    result = address_connect(&at, 5000, -1, &err);
    cr_expect_eq(result, -ECONNREFUSED, "expected -ECONNREFUSED, got %d", result);
    cr_expect(strstr(err.text, "tcp://127.0.0.1:") && strstr(err.text, "nothing listens"),
              "unhelpful: %s", err.text);
}

Test(address, a_port_can_be_taken_once)
{
    struct address at;
    struct error err = {0};
    int listener = listen_on("127.0.0.1", &at);
    int result = address_listen(&at, NULL, &err);

    cr_expect_eq(result, -EADDRINUSE, "expected -EADDRINUSE, got %d", result);
    cr_expect(strstr(err.text, "cannot listen on tcp://127.0.0.1:"), "unhelpful: %s", err.text);
    close(listener);
}

/* Fills a listener's backlog, so that a further connect goes on for ever. Returns how many sockets
 * it took. */
static int fill_backlog(int listener, const struct address *at, int *fds, int max)
{
    int count = 0;

    cr_assert_eq(listen(listener, 0), 0);
    while (count < max && (fds[count] = address_connect(at, 300, -1, NULL)) >= 0)
        count++;
    return count;
}

Test(address, a_silent_peer_times_out)
{
    struct address at;
    struct error err = {0};
    int fds[8], listener = listen_on("127.0.0.1", &at), count = fill_backlog(listener, &at, fds, 8);
    uint64_t start = clock_now();
    int result = address_connect(&at, 200, -1, &err);

    cr_assert(count < 8, "the backlog did not fill");
    cr_expect_eq(result, -ETIMEDOUT, "expected -ETIMEDOUT, got %d", result);
    cr_expect(clock_now() - start >= 200 * NS_PER_MS, "gave up too early");
    cr_expect(clock_now() - start < 5 * NS_PER_S, "the time limit was not kept");
    while (count)
        close(fds[--count]);
    close(listener);
}

Test(address, connect_can_be_cancelled)
{
    struct address at;
    struct error err = {0};
    int fds[8], listener = listen_on("127.0.0.1", &at), count = fill_backlog(listener, &at, fds, 8);
    int cancel = eventfd(1, EFD_CLOEXEC), result = address_connect(&at, 60000, cancel, &err);

    cr_assert(count < 8, "the backlog did not fill");
    cr_expect_eq(result, -ECANCELED, "expected -ECANCELED, got %d (%s)", result, err.text);
    while (count)
        close(fds[--count]);
    close(cancel);
    close(listener);
}

/* A label of more than 63 letters is no name in the DNS, so no resolver is asked. */
Test(address, an_unknown_host_is_named)
{
    struct address at = {.scheme = "tcp", .port = 1};
    struct error err = {0};
    int result;

    memset(at.host, 'x', 70);
    result = address_connect(&at, 1000, -1, &err);
    cr_expect_lt(result, 0, "connected to a host that cannot be");
    cr_expect(strstr(err.text, at.host), "the host is not named: %s", err.text);
}

Test(address, a_file_is_no_socket)
{
    struct address at;
    struct error err = {0};
    int file = open("/dev/null", O_RDONLY | O_CLOEXEC);

    cr_expect_eq(address_of_peer(file, "tcp", &at, &err), -ENOTSOCK, "%s", err.text);
    close(file);
}

Test(address, deadlines)
{
    uint64_t now = clock_now();

    cr_expect_eq(clock_ms_until(0), 0);
    cr_expect_eq(clock_ms_until(now), 0);
    cr_expect_eq(clock_ms_until(UINT64_MAX), INT32_MAX);
    cr_expect_gt(clock_ms_until(now + 60 * NS_PER_S), 1000);
    clock_sleep_until(now);
    clock_sleep_until(now + 2 * NS_PER_MS);
    cr_expect(clock_now() >= now + 2 * NS_PER_MS, "woke up too early");
}
