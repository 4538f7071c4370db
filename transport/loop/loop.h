/* The loop transport: both ends in one process, lanes are threads that memcpy. It is the reference of the
 * contract and the partner of tests that want no sockets. */
#ifndef TRANSPORT_LOOP_LOOP_H
#define TRANSPORT_LOOP_LOOP_H

#include "transport/transport.h"

/* Makes two ends joined to each other; listen, connect and accept only rendezvous (addresses are ignored, the
 * port is 1). `destination_params` may differ from `source_params` (token, epoch, lanes), so that refusals can
 * be tested; a mismatch fails connect and leaves accept waiting, as a foreign lane would. */
int loop_pair_new(const struct transport_params *source_params,
                  const struct transport_params *destination_params, struct transport **source,
                  struct transport **destination, struct error *err);

#endif
