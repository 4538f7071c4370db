/* What wander and the library preloaded into QEMU say to each other, over the abstract Unix socket
 * "\0wander-qemu-PID" (SOCK_SEQPACKET). Both check the other's credentials first: the library
 * serves only its own user and root, wander only a listener whose process is the QEMU it means. One
 * connection is one tracking session; its end undoes everything.
 *
 *   library → wander   struct preload_hello
 *   wander → library   struct preload_track, with a memfd: the marks, one bit a page, regions one
 * after another, each beginning at a multiple of 64 bits library → wander   struct preload_answer,
 * with a userfaultfd (not yet initialised: no UFFDIO_API) when error is 0 */
#ifndef MIGRATE_GUEST_QEMU_PRELOAD_PROTOCOL_H
#define MIGRATE_GUEST_QEMU_PRELOAD_PROTOCOL_H

#include <stdint.h>

#define PRELOAD_SOCKET_FORMAT "wander-qemu-%d" /* after the leading zero byte; the pid */

enum { PRELOAD_MAGIC = 0x57515052, PRELOAD_VERSION = 1, PRELOAD_MAX_RANGES = 16 };

struct preload_hello {
    uint32_t magic, version;
    uint32_t flags; /* PRELOAD_SAW_... */
    uint32_t reserved;
};

/* What the process has used that moves data past the tracker. */
enum { PRELOAD_SAW_NATIVE_AIO = 1 << 0, PRELOAD_SAW_IO_URING = 1 << 1 };

struct preload_range {
    uint64_t address, bytes; /* in QEMU's address space */
    uint64_t first_bit;      /* of its marks */
};

struct preload_track {
    uint32_t magic, count;
    struct preload_range ranges[PRELOAD_MAX_RANGES];
};

struct preload_answer {
    uint32_t magic;
    int32_t error; /* 0, or an errno */
};

#endif
