/* A slow disk whose device writes straight into the guest's memory, preloaded into a QEMU behind
 * wander's own library. A read past the page cache touches the guest's pages as it begins, as
 * pinning does; SLOW_READS_MS later its bytes come into them through the file SLOW_READS_RAM, so
 * that no page table sees it. Only then does it return. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

/* The guest's memory here. */
struct ram {
    char *start, *end;
    int file;
};

typedef ssize_t reader(int file, void *bytes, size_t size, off64_t at);

/* Looks for the file among the mappings; false as long as it is not there. */
static int find_ram(struct ram *out)
{
    const char *path = getenv("SLOW_READS_RAM");
    char line[512];
    FILE *maps = path ? fopen("/proc/self/maps", "re") : NULL;
    int found = 0;

    while (maps && !found && fgets(line, sizeof line, maps))
        found = strstr(line, path) &&
                sscanf(line, "%p-%p", (void **)&out->start, (void **)&out->end) == 2;
    if (maps)
        fclose(maps);
    if (found)
        out->file = open(path, O_RDWR | O_CLOEXEC);
    return found && out->file >= 0;
}

static const struct ram *the_ram(void)
{
    static _Atomic(struct ram *) known;
    struct ram *ram = atomic_load(&known), *expected = NULL;

    if (ram)
        return ram;
    ram = malloc(sizeof *ram);
    if (!ram || !find_ram(ram)) {
        free(ram);
        return NULL;
    }
    if (atomic_compare_exchange_strong(&known, &expected, ram))
        return ram;
    close(ram->file);
    free(ram);
    return expected;
}

static int inside(const struct ram *ram, const struct iovec *piece)
{
    char *start = piece->iov_base;

    return start >= ram->start && start + piece->iov_len <= ram->end;
}

static void touch(const struct iovec *piece)
{
    uintptr_t first = (uintptr_t)piece->iov_base / PAGE * PAGE;

    for (uintptr_t at = first; at < (uintptr_t)piece->iov_base + piece->iov_len; at += PAGE)
        atomic_fetch_or((_Atomic char *)at, 0);
}

static void land(const struct ram *ram, const struct iovec *piece, const char *bytes, size_t size)
{
    off64_t at = (char *)piece->iov_base - ram->start;

    if (!inside(ram, piece))
        memcpy(piece->iov_base, bytes, size);
    else if (pwrite64(ram->file, bytes, size, at) != (ssize_t)size)
        abort();
}

static ssize_t read_slowly(reader *next, const struct ram *ram, int file,
                           const struct iovec *pieces, int count, off64_t at)
{
    const char *text = getenv("SLOW_READS_MS");
    long ms = text ? atol(text) : 0;
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    size_t size = 0, done = 0;
    void *bytes;
    ssize_t result;

    for (int i = 0; i < count; i++) {
        size += pieces[i].iov_len;
        if (inside(ram, &pieces[i]))
            touch(&pieces[i]);
    }
    if (posix_memalign(&bytes, PAGE, size))
        abort();
    nanosleep(&time, NULL);
    result = next(file, bytes, size, at);
    for (int i = 0; i < count && result > (ssize_t)done; i++) {
        size_t left = (size_t)result - done;
        size_t part = pieces[i].iov_len < left ? pieces[i].iov_len : left;

        land(ram, &pieces[i], (char *)bytes + done, part);
        done += part;
    }
    free(bytes);
    return result;
}

/* Whether a read is to be slow: past the page cache, and the guest has its memory. */
static const struct ram *slow_for(int file)
{
    return fcntl(file, F_GETFL) & O_DIRECT ? the_ram() : NULL;
}

ssize_t pread64(int file, void *bytes, size_t size, off64_t at)
{
    reader *next = (reader *)dlsym(RTLD_NEXT, "pread64");
    const struct ram *ram = slow_for(file);
    struct iovec piece = {bytes, size};

    return ram ? read_slowly(next, ram, file, &piece, 1, at) : next(file, bytes, size, at);
}

ssize_t preadv64(int file, const struct iovec *pieces, int count, off64_t at)
{
    ssize_t (*next)(int, const struct iovec *, int, off64_t) = dlsym(RTLD_NEXT, "preadv64");
    const struct ram *ram = slow_for(file);

    if (!ram)
        return next(file, pieces, count, at);
    return read_slowly((reader *)dlsym(RTLD_NEXT, "pread64"), ram, file, pieces, count, at);
}
