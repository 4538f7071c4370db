/* The synthetic guest: the lab guest's workload as threads of this process, tracked with
 * userfaultfd write-protection (WP_ASYNC) and PAGEMAP_SCAN, Linux 6.7 and newer. For machines with
 * no usable /dev/kvm, and for tests. */
#ifndef MIGRATE_GUEST_SYNTHETIC_SYNTHETIC_H
#define MIGRATE_GUEST_SYNTHETIC_SYNTHETIC_H

#include "migrate/guest/guest.h"
#include "migrate/guest/workload.h"

struct synthetic_config {
    char name[GUEST_NAME_SIZE];
    /* multiple of the page size; mapped without reservation: 1 TiB is fine */
    uint64_t memory_bytes;
    unsigned vcpus;
    struct workload workload;
};

int synthetic_probe(struct error *err);
int synthetic_guest_new(const struct synthetic_config *config, struct guest **out,
                        struct error *err);

#endif
