#include "migrate/verify.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

enum { RUNS_NAMED = 8 };

struct comparison {
    struct guest *guest;
    const struct verify_peer *peer;
    uint64_t ours[PROTO_MAX_HASHES], theirs[PROTO_MAX_HASHES];
    uint64_t chunks, bad_chunks, bad_runs;
    char named[512]; /* the first runs of pages that differ */
};

int verify_hash(struct guest *guest, const struct verify_message *request, uint64_t *out,
                struct error *err)
{
    const struct guest_region *regions;
    unsigned count = guest->ops->regions(guest, &regions);

    if (request->region >= count)
        return error_set(err, EPROTO, "asked to verify region %u, but the guest has %u",
                         request->region, count);
    const struct guest_region *region = &regions[request->region];
    uint64_t units = (region->size + request->unit - 1) / request->unit;
    if (request->first >= units || request->count > units - request->first)
        return error_set(err, EPROTO, "asked to verify beyond the end of region %s", region->name);
    for (uint32_t i = 0; i < request->count; i++) {
        uint64_t offset = (request->first + i) * request->unit, left = region->size - offset;
        out[i] = XXH3_64bits((const char *)region->host + offset,
                             left < request->unit ? left : request->unit);
    }
    return 0;
}

/* Both sides hash at the same time: ask first, then hash, then listen. */
static int fetch(struct comparison *c, const struct verify_message *request, struct error *err)
{
    int result = c->peer->ask(c->peer->context, request, err);

    if (!result)
        result = verify_hash(c->guest, request, c->ours, err);
    return result ? result : c->peer->hashes(c->peer->context, c->theirs, request->count, err);
}

static void name_run(struct comparison *c, const struct guest_region *region, uint64_t first,
                     uint32_t pages)
{
    size_t used = strlen(c->named);

    if (++c->bad_runs <= RUNS_NAMED)
        snprintf(c->named + used, sizeof(c->named) - used, "%s%s+0x%llx (%u page%s)",
                 used ? ", " : "", region->name, (unsigned long long)(first * GUEST_PAGE_SIZE),
                 pages, pages == 1 ? "" : "s");
}

static int name_pages(struct comparison *c, const struct guest_region *region, uint64_t chunk,
                      struct error *err)
{
    uint64_t pages = region->size / GUEST_PAGE_SIZE - chunk * GUEST_CHUNK_PAGES;
    struct verify_message request = {
        .region = region->id,
        .unit = GUEST_PAGE_SIZE,
        .first = chunk * GUEST_CHUNK_PAGES,
        .count = pages < GUEST_CHUNK_PAGES ? (uint32_t)pages : GUEST_CHUNK_PAGES,
    };
    uint32_t run = 0;
    int result = fetch(c, &request, err);

    if (result)
        return result;
    for (uint32_t i = 0; i <= request.count; i++) {
        if (i < request.count && c->ours[i] != c->theirs[i]) {
            run++;
        } else if (run) {
            name_run(c, region, request.first + i - run, run);
            run = 0;
        }
    }
    return 0;
}

static int compare_chunks(struct comparison *c, const struct guest_region *region, uint64_t first,
                          uint64_t count, struct error *err)
{
    uint64_t bad[RUNS_NAMED];
    unsigned bad_count = 0;

    while (count > 0) {
        struct verify_message request = {
            .region = region->id,
            .unit = GUEST_CHUNK_SIZE,
            .first = first,
            .count = count < PROTO_MAX_HASHES ? (uint32_t)count : PROTO_MAX_HASHES,
        };
        int result = fetch(c, &request, err);
        if (result)
            return result;
        for (uint32_t i = 0; i < request.count; i++) {
            if (c->ours[i] == c->theirs[i])
                continue;
            c->bad_chunks++;
            if (bad_count < RUNS_NAMED)
                bad[bad_count++] = first + i;
        }
        c->chunks += request.count;
        first += request.count;
        count -= request.count;
    }
    for (unsigned i = 0; i < bad_count && c->bad_runs < RUNS_NAMED; i++) {
        int result = name_pages(c, region, bad[i], err);
        if (result)
            return result;
    }
    return 0;
}

static int compare_region(struct comparison *c, const struct guest_region *region,
                          struct error *err)
{
    struct extent_list present = {0};
    int result = c->guest->ops->present(c->guest, region->id, &present, err);
    uint64_t next = 0; /* first chunk not compared yet */

    for (size_t i = 0; i < present.count && !result; i++) {
        uint64_t first = present.extents[i].offset / GUEST_CHUNK_SIZE;
        uint64_t end =
            (present.extents[i].offset + present.extents[i].length - 1) / GUEST_CHUNK_SIZE + 1;
        first = first > next ? first : next;
        if (first < end)
            result = compare_chunks(c, region, first, end - first, err);
        next = end > next ? end : next;
    }
    extent_list_free(&present);
    return result;
}

int verify_compare(struct guest *guest, const struct verify_peer *peer, uint64_t *chunks,
                   struct error *err)
{
    struct comparison c = {.guest = guest, .peer = peer};
    const struct guest_region *regions;
    unsigned count = guest->ops->regions(guest, &regions);
    int result = 0;

    for (unsigned i = 0; i < count && !result; i++)
        result = compare_region(&c, &regions[i], err);
    *chunks = c.chunks;
    if (!result && c.bad_chunks)
        result = error_set(err, EBADMSG,
                           "verification failed: %llu of %llu chunks differ at the destination: "
                           "%s%s",
                           (unsigned long long)c.bad_chunks, (unsigned long long)c.chunks, c.named,
                           c.bad_runs > RUNS_NAMED ? ", …" : "");
    return result;
}
