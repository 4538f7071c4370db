/* The functions that stand before the C library's, libaio's and liburing's. A read with O_DIRECT
 * puts its bytes into pages that were pinned when it began, past the page table: their pages are
 * marked once it has returned, whatever it returned (a read that failed may have written too).
 * Bytes that the kernel copies are seen without us. */
#undef _FORTIFY_SOURCE /* or the headers would define some of these themselves */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/uio.h>
#include <unistd.h>

#include "migrate/guest/qemu/preload/listener.h"
#include "migrate/guest/qemu/preload/session.h"

#define EXPORTED __attribute__((visibility("default")))

struct io_context;
struct io_uring;

/* Declared here: libaio's, liburing's and some of the C library's headers do not have to be. */
EXPORTED ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size);
EXPORTED ssize_t __pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t size);
EXPORTED ssize_t __pread64_chk(int fd, void *buffer, size_t count, off64_t offset, size_t size);
EXPORTED int io_setup(int events, struct io_context **context);
EXPORTED int io_uring_submit(struct io_uring *ring);

static void *find(_Atomic(void *) *found, const char *name)
{
    void *next = atomic_load_explicit(found, memory_order_relaxed);

    if (next)
        return next;
    next = dlsym(RTLD_NEXT, name);
    atomic_store_explicit(found, next, memory_order_relaxed);
    return next;
}

/* The function that this one stands before. */
#define NEXT(function)                                                                             \
    ({                                                                                             \
        static _Atomic(void *) found;                                                              \
        (typeof(&function))find(&found, #function);                                                \
    })

static ssize_t missing(void)
{
    errno = ENOSYS;
    return -1;
}

static ssize_t mark_buffer(ssize_t result, void *buffer, size_t count)
{
    session_mark(buffer, count);
    return result;
}

static ssize_t mark_vector(ssize_t result, const struct iovec *vector, int count)
{
    for (int i = 0; i < count; i++)
        session_mark(vector[i].iov_base, vector[i].iov_len);
    return result;
}

EXPORTED ssize_t read(int fd, void *buffer, size_t count)
{
    return mark_buffer(NEXT(read)(fd, buffer, count), buffer, count);
}

ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size)
{
    return mark_buffer(NEXT(__read_chk)(fd, buffer, count, size), buffer, count);
}

EXPORTED ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
{
    return mark_buffer(NEXT(pread)(fd, buffer, count, offset), buffer, count);
}

EXPORTED ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset)
{
    return mark_buffer(NEXT(pread64)(fd, buffer, count, offset), buffer, count);
}

ssize_t __pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t size)
{
    return mark_buffer(NEXT(__pread_chk)(fd, buffer, count, offset, size), buffer, count);
}

ssize_t __pread64_chk(int fd, void *buffer, size_t count, off64_t offset, size_t size)
{
    return mark_buffer(NEXT(__pread64_chk)(fd, buffer, count, offset, size), buffer, count);
}

EXPORTED ssize_t readv(int fd, const struct iovec *vector, int count)
{
    return mark_vector(NEXT(readv)(fd, vector, count), vector, count);
}

EXPORTED ssize_t preadv(int fd, const struct iovec *vector, int count, off_t offset)
{
    return mark_vector(NEXT(preadv)(fd, vector, count, offset), vector, count);
}

EXPORTED ssize_t preadv64(int fd, const struct iovec *vector, int count, off64_t offset)
{
    return mark_vector(NEXT(preadv64)(fd, vector, count, offset), vector, count);
}

EXPORTED ssize_t preadv2(int fd, const struct iovec *vector, int count, off_t offset, int flags)
{
    typeof(&preadv2) next = NEXT(preadv2);

    return next ? mark_vector(next(fd, vector, count, offset, flags), vector, count) : missing();
}

EXPORTED ssize_t preadv64v2(int fd, const struct iovec *vector, int count, off64_t offset,
                            int flags)
{
    typeof(&preadv64v2) next = NEXT(preadv64v2);

    return next ? mark_vector(next(fd, vector, count, offset, flags), vector, count) : missing();
}

int io_setup(int events, struct io_context **context)
{
    typeof(&io_setup) next = NEXT(io_setup);

    session_note(PRELOAD_SAW_NATIVE_AIO);
    return next ? next(events, context) : -ENOSYS;
}

int io_uring_submit(struct io_uring *ring)
{
    typeof(&io_uring_submit) next = NEXT(io_uring_submit);

    session_note(PRELOAD_SAW_IO_URING);
    return next ? next(ring) : -ENOSYS;
}

EXPORTED int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes,
                            void *(*start)(void *), void *restrict argument)
{
    pthread_create_fn *next = NEXT(pthread_create);

    listener_ensure(next);
    return next(thread, attributes, start, argument);
}
