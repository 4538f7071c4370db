/* The tcp transport: one TCP stream and one thread at each end per lane; pages go from guest RAM to the
 * socket and from the socket into guest RAM with no staging copy. */
#ifndef TRANSPORT_TCP_TCP_H
#define TRANSPORT_TCP_TCP_H

#include "transport/transport.h"

int tcp_transport_new(const struct transport_params *params, struct transport **out, struct error *err);

#endif
