/* The regions a transport has opened at its end. Shared by the transports. Changed by the engine's
 * thread alone; read by it without the lock, by lane threads with it. */
#ifndef TRANSPORT_REGIONS_H
#define TRANSPORT_REGIONS_H

#include <pthread.h>
#include <stdbool.h>

#include "transport/transport.h"

struct regions {
    pthread_rwlock_t lock;
    unsigned count;
    struct transport_region all[TRANSPORT_MAX_REGIONS];
};

void regions_init(struct regions *r);
void regions_destroy(struct regions *r);
int regions_open(struct regions *r, const struct transport_region *region, struct error *err);
int regions_close(struct regions *r, uint32_t id, struct error *err);

void regions_lock(struct regions *r); /* shared: any number of lanes at once */
void regions_unlock(struct regions *r);
/* Where [offset, offset+length) of region `id` lies in memory; NULL unless it is open and holds all
 * of it. Any values are safe. */
void *regions_resolve(const struct regions *r, uint32_t id, uint64_t offset, uint64_t length);
/* True when the bytes lie inside one open region. */
bool regions_contain(const struct regions *r, const void *bytes, size_t length);

#endif
