/* This process's own memory, for the userfaultfd tracker. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "migrate/guest/pagemap.h"
#include "migrate/guest/userfaultfd.h"

/* Newer than the headers of Debian 12. */
#define OPEN_USER_MODE_ONLY 1
#define DEVICE_NEW_IOCTL    _IO(0xAA, 0x00)

/* The system call first: with USER_MODE_ONLY it asks for no privilege. Where a container forbids
 * it, the device may still be there. Kernel-mode writes are tracked all the same: WP_ASYNC hands no
 * fault to anyone. */
static int userfaultfd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | OPEN_USER_MODE_ONLY);
    int code = errno;

    if (fd >= 0)
        return fd;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return -code;
    fd = ioctl(device, DEVICE_NEW_IOCTL, O_CLOEXEC | O_NONBLOCK);
    code = errno;
    close(device);
    return fd < 0 ? -code : fd;
}

static int open_own(struct userfaultfd_source *source, struct error *err)
{
    int fd = userfaultfd();

    (void)source;
    if (fd >= 0)
        return fd;
    return error_set_errno(err, -fd,
                           "cannot open a userfaultfd to track dirty pages; allow the system call "
                           "userfaultfd (seccomp) or give access to /dev/userfaultfd");
}

static void place_own(const struct userfaultfd_source *source, const struct guest_region *region,
                      unsigned index, struct userfaultfd_place *out)
{
    (void)source;
    (void)index;
    *out = (struct userfaultfd_place){.address = (uintptr_t)region->host, .file = -1};
}

static void close_own(struct userfaultfd_source *source)
{
    (void)source;
}

static void free_own(struct userfaultfd_source *source)
{
    close(source->pagemap);
    free(source);
}

static const struct userfaultfd_source_ops own_memory_ops = {
    .open = open_own, .place = place_own, .close = close_own, .free = free_own};

static int open_pagemap(struct error *err)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    return fd < 0
               ? error_set_errno(err, errno, "cannot open /proc/self/pagemap (is /proc mounted?)")
               : fd;
}

int userfaultfd_probe(struct error *err)
{
    struct pagemap_run run;
    uint64_t at = 0;
    int rc, fd = open_own(NULL, err);

    if (fd < 0)
        return fd;
    rc = userfaultfd_enable(fd, err);
    close(fd);
    if (rc < 0)
        return rc;
    fd = open_pagemap(err);
    if (fd < 0)
        return fd;
    rc = pagemap_scan(fd, &at, GUEST_PAGE_SIZE, PAGEMAP_POPULATED, &run, 1);
    close(fd);
    return rc < 0
               ? error_set_errno(err, -rc,
                                 "cannot track dirty pages: PAGEMAP_SCAN does not work here; use "
                                 "Linux 6.7 or newer")
               : 0;
}

int userfaultfd_tracker_new(const struct guest_region *regions, unsigned count,
                            struct tracker **out, struct error *err)
{
    struct userfaultfd_source *own = calloc(1, sizeof(*own));
    int rc;

    if (!own)
        return error_set_errno(err, ENOMEM, "cannot make a tracker");
    own->ops = &own_memory_ops;
    own->pagemap = rc = open_pagemap(err);
    if (rc < 0)
        goto free_source;
    rc = userfaultfd_tracker_over(own, regions, count, out, err);
    if (rc < 0)
        goto close_pagemap;
    return 0;

close_pagemap:
    close(own->pagemap);
free_source:
    free(own);
    return rc;
}
