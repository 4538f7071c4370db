/* Preloaded into a QEMU behind wander's own library: every read past the page cache takes
 * SLOW_READS_MS longer, half of it before and half of it after its bytes have come. So a round of a
 * migration passes while reads are under way, and while they have come and nobody was told yet. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>

static void sleep_half(int file)
{
    const char *text = getenv("SLOW_READS_MS");
    long half_us = text ? atol(text) * 500 : 0;
    struct timespec time = {half_us / 1000000, half_us % 1000000 * 1000};

    if (fcntl(file, F_GETFL) & O_DIRECT)
        nanosleep(&time, NULL);
}

ssize_t pread64(int file, void *bytes, size_t size, off64_t at)
{
    ssize_t (*next)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
    ssize_t result;

    sleep_half(file);
    result = next(file, bytes, size, at);
    sleep_half(file);
    return result;
}

ssize_t preadv64(int file, const struct iovec *pieces, int count, off64_t at)
{
    ssize_t (*next)(int, const struct iovec *, int, off64_t) = dlsym(RTLD_NEXT, "preadv64");
    ssize_t result;

    sleep_half(file);
    result = next(file, pieces, count, at);
    sleep_half(file);
    return result;
}
