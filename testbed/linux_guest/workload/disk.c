/* The disk: every pass reads each block, checks it, and writes it anew; passes with O_DIRECT and
 * through the page cache take turns for both. What was read stays in a pool of buffers and is
 * checked again when its buffer is used next: by then the guest may have moved, and a page that the
 * device wrote unseen is missing. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block.h"
#include "workload.h"

enum { SLOTS = 256, DESCRIBED = 20 };

#define DEVICE "/dev/vda"

/* What a buffer of the pool holds; sequence 0: nothing yet. */
struct slot {
    uint64_t number, sequence;
};

struct disk {
    int direct, cached;
    uint64_t count;
    uint64_t *sequences; /* the newest of every block */
    struct block *pool, *outgoing;
    struct slot slots[SLOTS];
    unsigned next;
    struct pace pace;
    struct rest *rest;
    pthread_mutex_t turn;
    _Atomic uint64_t writes, reads, bad;
};

/* How a pass reaches the disk. */
struct way {
    int read, write;
};

static void bad_block(struct disk *d, const char *when, uint64_t number, uint64_t sequence,
                      const struct block *b, const char *result)
{
    if (atomic_fetch_add(&d->bad, 1) < DESCRIBED)
        say("bad what=disk when=%s block=%llu result=%s expected_sequence=%llu number=%llu "
            "sequence=%llu buffer=%p",
            when, (unsigned long long)number, result, (unsigned long long)sequence,
            (unsigned long long)b->number, (unsigned long long)b->sequence, (const void *)b);
}

static void check_slot(struct disk *d, unsigned i)
{
    const struct slot *s = &d->slots[i];
    const char *wrong = s->sequence ? block_check(&d->pool[i], s->number, s->sequence) : NULL;

    if (wrong)
        bad_block(d, "buffered-before", s->number, s->sequence, &d->pool[i], wrong);
}

/* Reads a block into the buffer that was unused for longest. */
static bool read_block(struct disk *d, int file, uint64_t number)
{
    unsigned i = d->next;
    struct block *b = &d->pool[i];
    uint64_t sequence = d->sequences[number];
    const char *wrong = "read-error";

    d->next = (d->next + 1) % SLOTS;
    check_slot(d, i);
    d->slots[i].sequence = 0;
    if (pread(file, b, BLOCK, (off_t)(number * BLOCK)) == BLOCK)
        wrong = block_check(b, number, sequence);
    atomic_fetch_add(&d->reads, 1);
    if (wrong)
        bad_block(d, file == d->direct ? "direct" : "cached", number, sequence, b, wrong);
    else
        d->slots[i] = (struct slot){number, sequence};
    return !wrong;
}

static void write_block(struct disk *d, int file, uint64_t number)
{
    uint64_t sequence = d->sequences[number] + 1;

    block_fill(d->outgoing, number, sequence);
    d->sequences[number] = sequence;
    if (pwrite(file, d->outgoing, BLOCK, (off_t)(number * BLOCK)) != BLOCK)
        bad_block(d, "write", number, sequence, d->outgoing, strerror(errno));
    atomic_fetch_add(&d->writes, 1);
}

/* So that the next reads come from the disk. */
static void forget_cached(struct disk *d)
{
    if (fdatasync(d->cached))
        bad_block(d, "flush", 0, 0, d->outgoing, strerror(errno));
    posix_fadvise(d->cached, 0, 0, POSIX_FADV_DONTNEED);
}

static void pass(struct disk *d, struct way way)
{
    for (uint64_t i = 0; i < d->count; i++) {
        rest_while_told(d->rest);
        pace_keep(&d->pace, 1);
        pthread_mutex_lock(&d->turn);
        read_block(d, way.read, i);
        write_block(d, way.write, i);
        pthread_mutex_unlock(&d->turn);
    }
    pthread_mutex_lock(&d->turn);
    forget_cached(d);
    pthread_mutex_unlock(&d->turn);
}

static void *work(void *argument)
{
    struct disk *d = argument;

    while (true) {
        pass(d, (struct way){.read = d->direct, .write = d->cached});
        pass(d, (struct way){.read = d->cached, .write = d->direct});
    }
    return NULL;
}

struct disk *disk_new(const struct options *o, struct rest *rest)
{
    struct disk *d = calloc(1, sizeof *d);
    off_t size;

    if (!d)
        give_up("no memory");
    d->direct = open(DEVICE, O_RDWR | O_DIRECT | O_CLOEXEC);
    d->cached = open(DEVICE, O_RDWR | O_CLOEXEC);
    if (!o->disk || d->direct < 0 || d->cached < 0)
        return NULL;
    size = lseek(d->direct, 0, SEEK_END);
    if (size < (off_t)(o->disk * MIB))
        give_up("the disk is smaller than wander.disk= says");
    d->count = o->disk * (MIB / BLOCK);
    d->rest = rest;
    d->pace.rate = o->disk_rate;
    pthread_mutex_init(&d->turn, NULL);
    d->sequences = take_memory(d->count * sizeof *d->sequences);
    d->pool = take_memory((uint64_t)SLOTS * BLOCK);
    d->outgoing = take_memory(BLOCK);
    for (uint64_t i = 0; i < d->count; i++)
        write_block(d, d->direct, i);
    return d;
}

void disk_start(struct disk *d)
{
    if (d)
        start_thread(work, d);
}

uint64_t disk_check(struct disk *d)
{
    uint64_t bad = 0;

    if (!d)
        return 0;
    pthread_mutex_lock(&d->turn);
    bad = atomic_load(&d->bad);
    forget_cached(d);
    for (unsigned i = 0; i < SLOTS; i++)
        check_slot(d, i);
    for (uint64_t i = 0; i < d->count; i++)
        read_block(d, d->direct, i);
    bad = atomic_load(&d->bad) - bad;
    pthread_mutex_unlock(&d->turn);
    return bad;
}

uint64_t disk_blocks(const struct disk *d)
{
    return d ? d->count : 0;
}

void disk_account(struct disk *d, struct disk_account *out)
{
    *out = (struct disk_account){0};
    if (!d)
        return;
    out->writes = atomic_load(&d->writes);
    out->reads = atomic_load(&d->reads);
    out->bad = atomic_load(&d->bad);
}
