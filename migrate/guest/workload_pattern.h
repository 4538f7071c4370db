/* Which page of the hot set a workload writes next: the arithmetic that the synthetic guest and the
 * lab guest's image share. Freestanding, pure, integers only.
 *
 * The hot set is dealt out page by page: vCPU v of n owns the pages v, v+n, v+2n, …, so that every
 * page has one writer. A page has a place within its owner's share: page = place * n + v. */
#ifndef MIGRATE_GUEST_WORKLOAD_PATTERN_H
#define MIGRATE_GUEST_WORKLOAD_PATTERN_H

#include <stdint.h>

enum workload_pattern { WORKLOAD_SEQUENTIAL, WORKLOAD_RANDOM, WORKLOAD_HOTCOLD, WORKLOAD_WINDOW };

/* What workload_pattern_page gives a vCPU that owns no page. */
#define WORKLOAD_NO_PAGE UINT64_MAX

/* How many of the first `pages` pages belong to vCPU `vcpu` (< vcpus) of `vcpus`. */
static inline uint64_t workload_pattern_share(uint64_t pages, unsigned vcpu, unsigned vcpus)
{
    return pages > vcpu ? (pages - vcpu - 1) / vcpus + 1 : 0;
}

/* 64 bits that look random, the upper ones best. Two multiplications: an interpreted guest computes
 * it for each page. */
static inline uint64_t workload_pattern_hash(uint64_t seed, uint64_t counter)
{
    uint64_t x = (counter + seed * 0xd1342543de82ef95ull) * 0x9e3779b97f4a7c15ull;

    return (x ^ x >> 32) * 0xbf58476d1ce4e5b9ull;
}

/* A number below `bound`, taken from the upper bits of `hash`. */
static inline uint64_t workload_pattern_scale(uint64_t hash, uint64_t bound)
{
    return (uint64_t)((unsigned __int128)hash * bound >> 64);
}

/* How much of a share lies in the first tenth of the hot set. */
static inline uint64_t workload_pattern_tenth(uint64_t hot_pages, unsigned vcpu, unsigned vcpus)
{
    return workload_pattern_share((hot_pages + 9) / 10, vcpu, vcpus);
}

/* A place within `share`; `hot_share` percent of the draws are among its first `hot` places. */
static inline uint64_t workload_pattern_hotcold(uint64_t share, uint64_t hot, uint32_t hot_share,
                                                uint64_t hash)
{
    /* Odd, so the product's upper half is a fresh draw. */
    uint64_t place = hash * 0x94d049bb133111ebull;

    if (hot == share || (hot && workload_pattern_scale(hash, 100) < hot_share))
        return workload_pattern_scale(place, hot);
    return hot + workload_pattern_scale(place, share - hot);
}

/* The share's part of the window, at least one page. A window of 0 is the whole hot set. */
static inline uint64_t workload_pattern_window(uint64_t window_pages, uint64_t share,
                                               unsigned vcpus)
{
    uint64_t window = window_pages / vcpus;

    if (!window_pages || window > share)
        return share;
    return window ? window : 1;
}

/* The page (index within the hot set) that vCPU `vcpu` of `vcpus` writes as its `counter`-th;
 * WORKLOAD_NO_PAGE if it owns none. Sequential and window go through neighbouring places; random
 * and hotcold draw one for each counter, with repetition. The window moves on by its own size each
 * second of `elapsed_ms`. */
static inline uint64_t workload_pattern_page(uint32_t pattern, uint64_t hot_pages,
                                             uint32_t hot_share, uint64_t window_pages,
                                             uint64_t seed, uint64_t counter, unsigned vcpu,
                                             unsigned vcpus, uint64_t elapsed_ms)
{
    uint64_t share = workload_pattern_share(hot_pages, vcpu, vcpus);
    uint64_t hash = workload_pattern_hash(seed + vcpu, counter);
    uint64_t window, place;

    if (!share)
        return WORKLOAD_NO_PAGE;
    switch (pattern) {
    case WORKLOAD_RANDOM:
        place = workload_pattern_scale(hash, share);
        break;
    case WORKLOAD_HOTCOLD:
        place = workload_pattern_hotcold(share, workload_pattern_tenth(hot_pages, vcpu, vcpus),
                                         hot_share, hash);
        break;
    case WORKLOAD_WINDOW:
        window = workload_pattern_window(window_pages, share, vcpus);
        place = (elapsed_ms / 1000 * window + counter % window) % share;
        break;
    default:
        place = counter % share;
    }
    return place * vcpus + vcpu;
}

/* How many writes from `counter` on go to places one behind the other, the first included, while
 * the window stays where it is; 0 for a vCPU that owns no page. Lets an inner loop step instead of
 * asking for each page. */
static inline uint64_t workload_pattern_run(uint32_t pattern, uint64_t hot_pages,
                                            uint64_t window_pages, uint64_t counter, unsigned vcpu,
                                            unsigned vcpus, uint64_t elapsed_ms)
{
    uint64_t share = workload_pattern_share(hot_pages, vcpu, vcpus);
    uint64_t window, place, in_window;

    if (!share)
        return 0;
    switch (pattern) {
    case WORKLOAD_SEQUENTIAL:
        return share - counter % share;
    case WORKLOAD_WINDOW:
        window = workload_pattern_window(window_pages, share, vcpus);
        place = (elapsed_ms / 1000 * window + counter % window) % share;
        in_window = window - counter % window;
        return in_window < share - place ? in_window : share - place;
    default:
        return 1;
    }
}

#endif
