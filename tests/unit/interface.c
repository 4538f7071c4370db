#include <criterion/criterion.h>

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/base/interface.h"

static int bound_socket(int family, const char *address)
{
    struct sockaddr_in ipv4 = {.sin_family = AF_INET};
    struct sockaddr_in6 ipv6 = {.sin6_family = AF_INET6};
    bool is_ipv4 = family == AF_INET;
    int fd = socket(family, SOCK_DGRAM, 0), result;

    inet_pton(family, address, is_ipv4 ? (void *)&ipv4.sin_addr : (void *)&ipv6.sin6_addr);
    result =
        bind(fd, is_ipv4 ? (void *)&ipv4 : (void *)&ipv6, is_ipv4 ? sizeof(ipv4) : sizeof(ipv6));
    if (result < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

Test(interface, loopback_by_every_address)
{
    static const struct {
        int family;
        const char *address;
    } cases[] = {
        {AF_INET, "127.0.0.1"},
        {AF_INET, "127.0.0.2"},
        {AF_INET6, "::ffff:127.0.0.1"},
        {AF_INET6, "::1"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char name[IF_NAMESIZE] = "";
        struct error err = {0};
        int fd = bound_socket(cases[i].family, cases[i].address);

        if (fd < 0 && cases[i].family == AF_INET6) {
            cr_log_info("%s: no IPv6 on this machine", cases[i].address);
            continue;
        }
        cr_expect_eq(interface_of_socket(fd, name, &err), 0, "%s: %s", cases[i].address, err.text);
        cr_expect_str_eq(name, "lo", "%s: expected lo, got \"%s\"", cases[i].address, name);
        close(fd);
    }
}

Test(interface, what_is_no_connection_is_refused)
{
    char name[IF_NAMESIZE];
    struct error err = {0};
    int fd = socket(AF_INET, SOCK_DGRAM, 0); /* bound to no address */

    cr_expect_eq(interface_of_socket(fd, name, &err), -ENODEV, "got: %s", err.text);
    close(fd);
    error_clear(&err);
    cr_expect_eq(interface_of_socket(-1, name, &err), -EBADF, "got: %s", err.text);
    cr_expect(err.text[0], "no text");
}
