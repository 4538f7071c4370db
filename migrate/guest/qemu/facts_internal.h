/* What the parts of the facts share: they are a JSON document, the same in memory and on the wire.
 *
 *   { "major", "minor", "package",
 *     "machine", "accel", "name",
 *     "cpu": { "type", "count", "slots", "sockets", "dies", "cores", "threads",
 *              "features": { "CPUID 0x1.0 ECX": bits, ... } },
 *     "memory":   [ { "id", "size" } ],
 *     "devices":  [ { "id", "type", "bus", "address", "board", "path" } ],
 *     "disks":    [ { "device", "format", "size", "readonly", "direct", "unsafe", "file" } ],
 *     "networks": [ { "id", "kind" } ] }
 *
 * A device's `bus` and `address` are where it is plugged in, `board` means that no -device made it,
 * `path` is where QEMU keeps it (for asking, of no meaning elsewhere; so is a disk's `file`). A
 * disk's `device` is its device's name for people: the id, or type and place. */
#ifndef MIGRATE_GUEST_QEMU_FACTS_INTERNAL_H
#define MIGRATE_GUEST_QEMU_FACTS_INTERNAL_H

#include "migrate/guest/qemu/facts.h"
#include "migrate/guest/qemu/qom.h"

enum {
    FACTS_VERSION = 1,
    FACTS_MAX_ITEMS = 1024, /* of a list */
    FACTS_MAX_TEXT = 512,
};

struct qemu_facts {
    cJSON *root; /* owned; of the form above, whoever made it */
};

/* A list of the facts, and a member of an object as number (0 when it is not there). */
const cJSON *facts_list(const struct qemu_facts *f, const char *name);
uint64_t facts_number(const cJSON *object, const char *name);
/* A device's name for people, into `out`, which is returned. */
char *facts_device_name(const cJSON *device, char *out, size_t size);

/* How the process does its disks' I/O, as far as its command line, mappings and descriptors show. A
 * reason for each way that writes to pinned guest RAM behind the tracker. `rings_are_disks`: this
 * QEMU has io_uring for nothing but disks. */
void facts_refuse_aio(pid_t pid, bool rings_are_disks, struct reasons *reasons);
/* Pure: whether a command line's argument asks for such I/O; *method then is "native" or
 * "io_uring". */
bool facts_argument_aio(const char *argument, const char **method);

#endif
