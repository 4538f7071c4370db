#include "migrate/page_sample.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/page/page.h"
#include "transport/base/clock.h"

static const uint64_t LONGEST_NS = NS_PER_S; /* a guest of nothing but zero pages has an end, too */

/* A present part of one chunk. */
struct part {
    const char *bytes;
    unsigned pages;
};

struct parts {
    struct part *all; /* owned */
    size_t count, capacity;
};

struct sifted {
    uint64_t zero_bytes, ns; /* over the parts that are mostly zero */
};

static int parts_add(struct parts *parts, const char *bytes, unsigned pages)
{
    if (parts->count == parts->capacity) {
        size_t larger = parts->capacity ? parts->capacity * 2 : 256;
        struct part *all = realloc(parts->all, larger * sizeof(*all));
        if (!all)
            return -ENOMEM;
        parts->all = all;
        parts->capacity = larger;
    }
    parts->all[parts->count++] = (struct part){bytes, pages};
    return 0;
}

static int add_extent(struct parts *parts, const struct guest_region *region,
                      const struct extent *extent)
{
    uint64_t at = extent->offset, end = extent->offset + extent->length;
    int result = 0;

    while (at < end && !result) {
        uint64_t next = (at / GUEST_CHUNK_SIZE + 1) * GUEST_CHUNK_SIZE;

        next = next < end ? next : end;
        result = parts_add(parts, (const char *)region->host + at,
                           (unsigned)((next - at) / GUEST_PAGE_SIZE));
        at = next;
    }
    return result;
}

static int find_parts(struct guest *guest, struct parts *parts, struct error *err)
{
    const struct guest_region *regions;
    unsigned count = guest->ops->regions(guest, &regions);
    int result = 0;

    for (unsigned i = 0; i < count && !result; i++) {
        struct extent_list present = {0};

        result = guest->ops->present(guest, regions[i].id, &present, err);
        for (size_t at = 0; at < present.count && !result; at++)
            if (add_extent(parts, &regions[i], &present.extents[at]))
                result = error_set(err, ENOMEM, "no memory to look at the guest's memory");
        extent_list_free(&present);
    }
    return result;
}

/* Copies a part's pages that are not zero, as long as there is room. */
static void copy_part(struct page_sample *sample, const struct part *part, struct sifted *sifted)
{
    bool is_zero[GUEST_CHUNK_PAGES];
    unsigned zeros = 0;
    uint64_t began = clock_now();

    for (unsigned i = 0; i < part->pages; i++)
        zeros += is_zero[i] = page_is_zero(part->bytes + (size_t)i * GUEST_PAGE_SIZE);
    if (zeros * 2 > part->pages) {
        sifted->ns += clock_now() - began;
        sifted->zero_bytes += (uint64_t)zeros * GUEST_PAGE_SIZE;
    }
    for (unsigned i = 0; i < part->pages && sample->size < sample->room; i++) {
        if (is_zero[i])
            continue;
        memcpy((char *)sample->memory + sample->size, part->bytes + (size_t)i * GUEST_PAGE_SIZE,
               GUEST_PAGE_SIZE);
        sample->size += GUEST_PAGE_SIZE;
    }
}

static size_t common_divisor(size_t a, size_t b)
{
    while (b) {
        size_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Steps of about the golden section come by everything, and at any time evenly. */
static size_t even_step(size_t count)
{
    size_t step = (size_t)((double)count * 0.618) + 1;

    while (common_divisor(step, count) > 1)
        step++;
    return step;
}

static void fill_up(struct page_sample *sample)
{
    char *memory = sample->memory;

    if (sample->size == 0) {
        memset(memory, 0x5a, GUEST_PAGE_SIZE);
        sample->size = GUEST_PAGE_SIZE;
    }
    for (uint64_t at = 0; sample->size < PAGE_SAMPLE_LEAST; at += GUEST_PAGE_SIZE) {
        memcpy(memory + sample->size, memory + at, GUEST_PAGE_SIZE);
        sample->size += GUEST_PAGE_SIZE;
    }
}

int page_sample_take(struct guest *guest, uint64_t room, struct page_sample *out, struct error *err)
{
    struct parts parts = {0};
    struct sifted sifted = {0};
    uint64_t deadline = clock_now() + LONGEST_NS;
    int result = find_parts(guest, &parts, err);

    *out = (struct page_sample){.room = room < PAGE_SAMPLE_LEAST ? PAGE_SAMPLE_LEAST : room};
    if (result)
        goto free_parts;
    out->memory = mmap(NULL, out->room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (out->memory == MAP_FAILED) {
        out->memory = NULL;
        result = error_set_errno(err, errno, "no memory for a sample of the guest's pages");
        goto free_parts;
    }
    size_t step = parts.count ? even_step(parts.count) : 0, at = 0;
    for (size_t i = 0; i < parts.count && out->size < out->room && clock_now() < deadline; i++) {
        copy_part(out, &parts.all[at], &sifted);
        at = (at + step) % parts.count;
    }
    if (sifted.zero_bytes >= GUEST_CHUNK_SIZE && sifted.ns)
        out->zero_bandwidth = (uint64_t)((double)sifted.zero_bytes * 1e9 / (double)sifted.ns);
    fill_up(out);
free_parts:
    free(parts.all);
    return result;
}

void page_sample_free(struct page_sample *sample)
{
    if (sample->memory)
        munmap(sample->memory, sample->room);
    sample->memory = NULL;
}
