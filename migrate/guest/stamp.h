/* Stamps: what a workload writes into a page and how it knows later that the page is whole and the
 * newest. Freestanding: the lab guest's image and the synthetic guest compile the same lines.
 *
 * The first 16 bytes hold a word (sequence << 32 | page index) and its check, the last 8 bytes the
 * check again. A torn page has two checks, a stale one a sequence older than its writer's table
 * says, a misplaced one another index. Three stores and one multiplication: an interpreted guest
 * can write hundreds of thousands a second. */
#ifndef MIGRATE_GUEST_STAMP_H
#define MIGRATE_GUEST_STAMP_H

#include <stdint.h>

enum stamp_result { STAMP_GOOD, STAMP_MISPLACED, STAMP_TORN, STAMP_STALE, STAMP_CORRUPT };

#define STAMP_MULTIPLIER 0x9e3779b97f4a7c15ull

/* A migration reads guest RAM while it is written, by design: ThreadSanitizer need not tell. */
#define STAMP_UNRECORDED __attribute__((no_sanitize("thread")))

static inline uint64_t stamp_word(uint32_t index, uint32_t sequence)
{
    return (uint64_t)sequence << 32 | index;
}

static inline STAMP_UNRECORDED void stamp_store(void *page, uint64_t word)
{
    volatile uint64_t *words = page;
    uint64_t check = word * STAMP_MULTIPLIER;

    words[0] = word;
    words[1] = check;
    words[511] = check;
}

static inline void stamp_write(void *page, uint32_t index, uint32_t sequence)
{
    stamp_store(page, stamp_word(index, sequence));
}

/* `expected` is the sequence that the page's only writer wrote last. Only its writer, or someone
 * while the writer rests, may check a page. */
static inline STAMP_UNRECORDED enum stamp_result stamp_check(const void *page, uint32_t index,
                                                             uint32_t expected)
{
    const volatile uint64_t *words = page;
    uint64_t word = words[0], check = words[1], tail = words[511];

    if (check != word * STAMP_MULTIPLIER)
        return STAMP_CORRUPT;
    if (tail != check)
        return STAMP_TORN;
    if ((uint32_t)word != index)
        return STAMP_MISPLACED;
    return (uint32_t)(word >> 32) == expected ? STAMP_GOOD : STAMP_STALE;
}

#endif
