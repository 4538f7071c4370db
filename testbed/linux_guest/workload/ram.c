/* Memory that is stamped over and over; each page is checked before it is stamped again, so that a
 * page lost, torn or mixed up on the way shows within a pass. */
#include <pthread.h>
#include <stdlib.h>

#include "migrate/guest/stamp.h"
#include "workload.h"

enum { BATCH = 64, DESCRIBED = 20 };

struct ram {
    uint8_t *memory;
    uint32_t *sequences; /* the newest of every page */
    uint64_t count;
    struct pace pace;
    struct rest *rest;
    pthread_mutex_t turn; /* whose turn it is to touch pages */
    _Atomic uint64_t passes, pages, bad;
};

static const char *const results[] = {
    [STAMP_GOOD] = "good",   [STAMP_MISPLACED] = "misplaced", [STAMP_TORN] = "torn",
    [STAMP_STALE] = "stale", [STAMP_CORRUPT] = "corrupt",
};

struct ram *ram_new(const struct options *o, struct rest *rest)
{
    struct ram *r = calloc(1, sizeof *r);

    if (!r)
        give_up("no memory");
    r->count = o->ram * (MIB / PAGE);
    r->rest = rest;
    r->pace.rate = o->ram_rate;
    pthread_mutex_init(&r->turn, NULL);
    r->memory = take_memory(r->count * PAGE);
    r->sequences = take_memory(r->count * sizeof *r->sequences);
    for (uint64_t i = 0; i < r->count; i++)
        stamp_write(r->memory + i * PAGE, (uint32_t)i, 0);
    return r;
}

static bool check_page(struct ram *r, uint64_t index)
{
    const uint8_t *page = r->memory + index * PAGE;
    enum stamp_result result = stamp_check(page, (uint32_t)index, r->sequences[index]);
    const uint64_t *words = (const uint64_t *)page;

    if (result == STAMP_GOOD)
        return true;
    if (atomic_fetch_add(&r->bad, 1) < DESCRIBED)
        say("bad what=ram page=%llu result=%s expected_sequence=%u word=%#llx check=%#llx "
            "tail=%#llx address=%p",
            (unsigned long long)index, results[result], r->sequences[index],
            (unsigned long long)words[0], (unsigned long long)words[1],
            (unsigned long long)words[511], (const void *)page);
    return false;
}

static void write_batch(struct ram *r, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        check_page(r, i);
        stamp_write(r->memory + i * PAGE, (uint32_t)i, ++r->sequences[i]);
    }
    atomic_fetch_add(&r->pages, count);
}

static void *write_pages(void *argument)
{
    struct ram *r = argument;
    uint64_t next = 0;

    while (true) {
        uint64_t count = r->count - next < BATCH ? r->count - next : BATCH;

        rest_while_told(r->rest);
        pace_keep(&r->pace, count);
        pthread_mutex_lock(&r->turn);
        write_batch(r, next, count);
        pthread_mutex_unlock(&r->turn);
        next += count;
        if (next == r->count) {
            next = 0;
            atomic_fetch_add(&r->passes, 1);
        }
    }
    return NULL;
}

void ram_start(struct ram *r)
{
    if (r->count)
        start_thread(write_pages, r);
}

uint64_t ram_check(struct ram *r)
{
    uint64_t bad = 0;

    pthread_mutex_lock(&r->turn);
    for (uint64_t i = 0; i < r->count; i++)
        bad += !check_page(r, i);
    pthread_mutex_unlock(&r->turn);
    return bad;
}

void ram_account(struct ram *r, struct ram_account *out)
{
    out->passes = atomic_load(&r->passes);
    out->pages = atomic_load(&r->pages);
    out->bad = atomic_load(&r->bad);
}
