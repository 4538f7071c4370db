/* Which network interface a connection runs over. */
#ifndef TRANSPORT_BASE_INTERFACE_H
#define TRANSPORT_BASE_INTERFACE_H

#include <net/if.h>

#include "transport/base/error.h"

/* The name of the interface that carries the local address of a connected socket (getifaddrs(3)),
 * "lo" for loopback. -ENODEV when none does, -ENOTSOCK and the like from getsockname(2). Any
 * thread. */
int interface_of_socket(int socket, char name[IF_NAMESIZE], struct error *err);

#endif
