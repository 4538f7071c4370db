/* What wander and the library preloaded into QEMU say to each other, over the abstract Unix socket
 * "\0wander-qemu-PID" (SOCK_SEQPACKET). Both check the other's credentials first: the library
 * serves only its own user and root, wander only a listener whose process is the QEMU it means.
 *
 *   library → wander   struct preload_hello
 *   wander → library   struct preload_track, with a memfd: the marks, one bit a page, regions one
 *                      after another, each beginning at a multiple of 64 bits; sealed against
 *                      shrinking
 *   library → wander   struct preload_answer, with a userfaultfd (not yet initialised: no
 *                      UFFDIO_API) when error is 0; EBUSY while another connection tracks
 *   library → wander   struct preload_hello, when a flag is set that was not while tracking
 *
 * A connection that got a userfaultfd is a tracking session, and there is one at a time; its end
 * undoes everything. Others may ask at any time: a hello costs nothing. */
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

/* What the process has used that moves data past the tracker. Native AIO: io_setup. io_uring:
 * io_uring_submit, which disks with aio=io_uring use; QEMU has a ring in every event loop besides,
 * to watch file descriptors, and that one goes by io_uring_submit_and_wait. PRELOAD_BUSY: a session
 * is tracking. */
enum { PRELOAD_SAW_NATIVE_AIO = 1 << 0, PRELOAD_SAW_IO_URING = 1 << 1, PRELOAD_BUSY = 1 << 2 };

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
