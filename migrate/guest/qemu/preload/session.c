/* The state is static: wrapped functions have no argument that could carry it. */
#include "migrate/guest/qemu/preload/session.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAGE_SHIFT = 12 };

static struct {
    _Atomic(struct session *) current;
    atomic_uint users; /* in a wrapper, and perhaps looking at `current` */
    _Atomic uint32_t flags;
} shared;

/* NULL: no session. Counted before the look, so that withdraw, which stores before it counts,
 * cannot miss a user who saw the session. */
static struct session *session_enter(void)
{
    if (!atomic_load_explicit(&shared.current, memory_order_acquire))
        return NULL;
    atomic_fetch_add(&shared.users, 1);
    struct session *s = atomic_load(&shared.current);
    if (!s)
        atomic_fetch_sub(&shared.users, 1);
    return s;
}

static void session_leave(void)
{
    atomic_fetch_sub(&shared.users, 1);
}

void session_publish(struct session *s)
{
    atomic_store(&shared.current, s);
}

void session_withdraw(void)
{
    atomic_store(&shared.current, NULL);
    while (atomic_load(&shared.users) > 0)
        usleep(100);
}

void session_forget(void)
{
    atomic_store(&shared.current, NULL);
    atomic_store(&shared.users, 0);
}

static void mark_bits(_Atomic uint64_t *marks, uint64_t first, uint64_t last)
{
    while (first <= last) {
        uint64_t end = (first | 63) < last ? (first | 63) : last;
        uint64_t count = end - first + 1;
        uint64_t bits = (count == 64 ? UINT64_MAX : (1ull << count) - 1) << first % 64;
        atomic_fetch_or(&marks[first / 64], bits);
        first = end + 1;
    }
}

static void mark_range(const struct session *s, const struct preload_range *range, uint64_t start,
                       uint64_t end)
{
    uint64_t range_end = range->address + range->bytes;

    start = start > range->address ? start : range->address;
    end = end < range_end ? end : range_end;
    if (start < end)
        mark_bits(s->marks, range->first_bit + ((start - range->address) >> PAGE_SHIFT),
                  range->first_bit + ((end - 1 - range->address) >> PAGE_SHIFT));
}

void session_mark(const void *base, size_t bytes)
{
    struct session *s = session_enter();
    uint64_t start = (uintptr_t)base;

    if (!s)
        return;
    uint64_t end = bytes < UINT64_MAX - start ? start + bytes : UINT64_MAX;
    for (unsigned i = 0; i < s->count; i++)
        mark_range(s, &s->ranges[i], start, end);
    session_leave();
}

void session_note(uint32_t flag)
{
    struct session *s;
    int before = errno;

    if (atomic_fetch_or(&shared.flags, flag) & flag || !(s = session_enter()))
        return;
    struct preload_hello hello = {
        .magic = PRELOAD_MAGIC, .version = PRELOAD_VERSION, .flags = session_flags()};
    send(s->socket, &hello, sizeof(hello), MSG_DONTWAIT | MSG_NOSIGNAL);
    session_leave();
    errno = before;
}

uint32_t session_flags(void)
{
    uint32_t busy = atomic_load(&shared.current) ? PRELOAD_BUSY : 0;

    return atomic_load(&shared.flags) | busy;
}
