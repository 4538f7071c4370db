#include "transport/regions.h"

#include <errno.h>
#include <string.h>

void regions_init(struct regions *r)
{
    memset(r, 0, sizeof *r);
    pthread_rwlock_init(&r->lock, NULL);
}

void regions_destroy(struct regions *r)
{
    pthread_rwlock_destroy(&r->lock);
}

static const struct transport_region *regions_find(const struct regions *r, uint32_t id)
{
    for (unsigned i = 0; i < r->count; i++)
        if (r->all[i].id == id)
            return &r->all[i];
    return NULL;
}

int regions_open(struct regions *r, const struct transport_region *region, struct error *err)
{
    if (regions_find(r, region->id))
        return error_set(err, EEXIST, "region %u is open already", region->id);
    if (r->count == TRANSPORT_MAX_REGIONS)
        return error_set(err, EINVAL, "region %u cannot be opened: %d regions are the limit",
                         region->id, TRANSPORT_MAX_REGIONS);
    pthread_rwlock_wrlock(&r->lock);
    r->all[r->count++] = *region;
    pthread_rwlock_unlock(&r->lock);
    return 0;
}

int regions_close(struct regions *r, uint32_t id, struct error *err)
{
    const struct transport_region *found = regions_find(r, id);

    if (!found)
        return error_set(err, EINVAL, "region %u cannot be closed: it is not open", id);
    pthread_rwlock_wrlock(&r->lock);
    r->all[found - r->all] = r->all[--r->count];
    pthread_rwlock_unlock(&r->lock);
    return 0;
}

void regions_lock(struct regions *r)
{
    pthread_rwlock_rdlock(&r->lock);
}

void regions_unlock(struct regions *r)
{
    pthread_rwlock_unlock(&r->lock);
}

void *regions_resolve(const struct regions *r, uint32_t id, uint64_t offset, uint64_t length)
{
    const struct transport_region *region = regions_find(r, id);

    if (!region || offset > region->size || length > region->size - offset)
        return NULL;
    return (uint8_t *)region->base + offset;
}

bool regions_contain(const struct regions *r, const void *bytes, size_t length)
{
    for (unsigned i = 0; i < r->count; i++) {
        uint64_t offset = (uintptr_t)bytes - (uintptr_t)r->all[i].base;

        if (offset <= r->all[i].size && length <= r->all[i].size - offset)
            return true;
    }
    return false;
}
