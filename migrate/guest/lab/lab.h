/* The lab guest: a small KVM virtual machine for one purpose, dirtying memory in an exactly controlled way.
 * No devices but a serial port (0x3f8), an exit port and the clock port of abi.h. */
#ifndef MIGRATE_GUEST_LAB_LAB_H
#define MIGRATE_GUEST_LAB_LAB_H

#include "migrate/guest/guest.h"
#include "migrate/guest/workload.h"

struct lab_config {
    char name[GUEST_NAME_SIZE];
    uint64_t memory_bytes; /* multiple of 1 MiB, at least 16 MiB */
    unsigned vcpus;        /* 1..GUEST_MAX_VCPUS */
    struct workload workload;
};

/* 0 when /dev/kvm can be opened, has what is needed and really executes; else -errno and a text that says what is
 * missing and the remedy. */
int lab_probe(struct error *err);
/* Makes the VM with its image and bulk content loaded, paused; guest_ops.resume starts it. */
int lab_guest_new(const struct lab_config *config, struct guest **out, struct error *err);
/* Bytes of RAM that the workload may use in a guest of this size. */
uint64_t lab_workload_bytes(uint64_t memory_bytes);
/* The guest image (an ELF with a PVH note), embedded in the program. */
const void *lab_image(size_t *size);

#endif
