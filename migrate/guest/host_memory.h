/* What this host has left for guests. */
#ifndef MIGRATE_GUEST_HOST_MEMORY_H
#define MIGRATE_GUEST_HOST_MEMORY_H

#include <stdint.h>

/* MemAvailable of /proc/meminfo (proc(5)) in bytes, UINT64_MAX where it does not say. Any thread.
 */
uint64_t host_memory_available(void);

#endif
