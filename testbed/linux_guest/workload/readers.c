/* Threads that read blocks nobody writes any more, past the page cache, so that several reads are
 * under way at every moment. What they read is checked when its buffer is used next, and when the
 * tester asks: a page that a device wrote while nobody looked is found then. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block.h"
#include "workload.h"

enum { ZONE = MIB / BLOCK, BUFFERS = 64, MOST = 64, DESCRIBED = 20 };

struct reader {
    struct readers *all;
    struct block *pool;
    uint64_t held[BUFFERS]; /* the block in each buffer, plus one; 0: none, or one under way */
};

struct readers {
    int file;
    uint64_t first; /* block of the zone */
    unsigned count;
    struct rest *rest;
    pthread_mutex_t turn;
    struct reader each[MOST];
    _Atomic uint64_t reads, bad;
};

static void bad_buffer(struct readers *r, const char *when, uint64_t number, const struct block *b,
                       const char *result)
{
    if (atomic_fetch_add(&r->bad, 1) < DESCRIBED)
        say("bad what=readers when=%s block=%llu result=%s number=%llu sequence=%llu buffer=%p",
            when, (unsigned long long)number, result, (unsigned long long)b->number,
            (unsigned long long)b->sequence, (const void *)b);
}

static bool check_buffer(struct reader *reader, unsigned i, const char *when)
{
    uint64_t held = reader->held[i];
    const char *wrong = held ? block_check(&reader->pool[i], held - 1, 1) : NULL;

    if (wrong)
        bad_buffer(reader->all, when, held - 1, &reader->pool[i], wrong);
    return !wrong;
}

static void read_into(struct reader *reader, unsigned i, uint64_t number)
{
    struct readers *r = reader->all;

    pthread_mutex_lock(&r->turn);
    check_buffer(reader, i, "buffered-before");
    reader->held[i] = 0;
    pthread_mutex_unlock(&r->turn);
    if (pread(r->file, &reader->pool[i], BLOCK, (off_t)(number * BLOCK)) != BLOCK) {
        bad_buffer(r, "read", number, &reader->pool[i], "read-error");
        return;
    }
    pthread_mutex_lock(&r->turn);
    reader->held[i] = number + 1;
    check_buffer(reader, i, "read");
    pthread_mutex_unlock(&r->turn);
    atomic_fetch_add(&r->reads, 1);
}

static void *read_on(void *argument)
{
    struct reader *reader = argument;
    struct readers *r = reader->all;
    uint64_t number = (uint64_t)(reader - r->each);

    for (unsigned i = 0;; i = (i + 1) % BUFFERS) {
        rest_while_told(r->rest);
        number = (number + 7) % ZONE;
        read_into(reader, i, r->first + number);
    }
    return NULL;
}

static void write_zone(struct readers *r, struct block *b)
{
    for (uint64_t i = r->first; i < r->first + ZONE; i++) {
        block_fill(b, i, 1);
        if (pwrite(r->file, b, BLOCK, (off_t)(i * BLOCK)) != BLOCK)
            give_up("the disk cannot be written for wander.readers=");
    }
}

struct readers *readers_new(const struct options *o, struct rest *rest)
{
    struct readers *r = calloc(1, sizeof *r);

    if (!r)
        give_up("no memory");
    r->count = o->readers < MOST ? (unsigned)o->readers : MOST;
    r->rest = rest;
    r->first = o->disk * (MIB / BLOCK);
    pthread_mutex_init(&r->turn, NULL);
    if (!r->count)
        return r;
    r->file = open("/dev/vda", O_RDWR | O_DIRECT | O_CLOEXEC);
    if (r->file < 0)
        give_up("wander.readers= needs a disk");
    for (unsigned i = 0; i < r->count; i++)
        r->each[i] = (struct reader){.all = r, .pool = take_memory((uint64_t)BUFFERS * BLOCK)};
    write_zone(r, r->each[0].pool);
    return r;
}

void readers_start(struct readers *r)
{
    for (unsigned i = 0; i < r->count; i++)
        start_thread(read_on, &r->each[i]);
}

uint64_t readers_check(struct readers *r)
{
    uint64_t bad = 0;

    pthread_mutex_lock(&r->turn);
    for (unsigned i = 0; i < r->count; i++)
        for (unsigned k = 0; k < BUFFERS; k++)
            bad += !check_buffer(&r->each[i], k, "check");
    pthread_mutex_unlock(&r->turn);
    return bad;
}

void readers_account(struct readers *r, struct disk_account *add)
{
    add->reads += atomic_load(&r->reads);
    add->bad += atomic_load(&r->bad);
}
