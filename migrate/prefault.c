#include "migrate/prefault.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "transport/base/thread.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct prefault {
    const struct guest_region *regions;
    unsigned count;
    struct extent_list extents[GUEST_MAX_REGIONS];
    atomic_bool ending;
    bool started;
    pthread_t thread;
};

int prefault_new(const struct guest_region *regions, unsigned count, struct prefault **out,
                 struct error *err)
{
    struct prefault *p = calloc(1, sizeof(*p));

    if (!p)
        return error_set(err, ENOMEM, "no memory to prepare the guest's memory");
    p->regions = regions;
    p->count = count;
    *out = p;
    return 0;
}

void prefault_add(struct prefault *p, uint32_t region, const struct extent *extent)
{
    if (region < p->count && p->regions[region].backing == GUEST_NAMED_FILE)
        extent_list_add(&p->extents[region], extent->offset, extent->length);
}

/* False: the kernel cannot, or there is no room; the copy finds out by itself. */
static bool populate(struct prefault *p, const struct guest_region *region,
                     const struct extent *extent)
{
    for (uint64_t done = 0; done < extent->length; done += GUEST_CHUNK_SIZE) {
        uint64_t left = extent->length - done;
        char *at = (char *)region->host + extent->offset + done;

        if (atomic_load_explicit(&p->ending, memory_order_relaxed) ||
            madvise(at, left < GUEST_CHUNK_SIZE ? left : GUEST_CHUNK_SIZE, MADV_POPULATE_WRITE))
            return false;
    }
    return true;
}

static void *prefault_main(void *argument)
{
    struct prefault *p = argument;
    bool go_on = true;

    thread_set_name("prefault", -1);
    for (unsigned i = 0; i < p->count; i++)
        for (size_t at = 0; go_on && at < p->extents[i].count; at++)
            go_on = populate(p, &p->regions[i], &p->extents[i].extents[at]);
    return NULL;
}

void prefault_start(struct prefault *p)
{
    p->started = thread_start(&p->thread, prefault_main, p) == 0;
}

void prefault_stop(struct prefault *p)
{
    if (!p)
        return;
    atomic_store(&p->ending, true);
    if (p->started)
        pthread_join(p->thread, NULL);
    for (unsigned i = 0; i < p->count; i++)
        extent_list_free(&p->extents[i]);
    free(p);
}
