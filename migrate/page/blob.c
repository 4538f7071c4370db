#include "migrate/page/page.h"

#include <errno.h>
#include <string.h>

#include "transport/base/wire.h"

enum {
    HEADER_SIZE = 8,
    RUN_SIZE = 16,
    RUNS_OFFSET = 2, /* of the u16 runs in the header */
    MAX_RUNS = (PAGE_BLOB_SIZE - HEADER_SIZE) / RUN_SIZE,
};

struct run {
    uint64_t first;
    uint32_t pages;
};

static uint64_t run_end(struct run run)
{
    return run.first + run.pages;
}

void page_blob_begin(struct page_blob *blob, enum page_encoding encoding, uint32_t region)
{
    struct wire_writer w = wire_writer(blob->bytes, sizeof(blob->bytes));

    wire_put_u8(&w, (uint8_t)encoding);
    wire_put_u8(&w, 0);
    wire_put_u16(&w, 0);
    wire_put_u32(&w, region);
    blob->size = HEADER_SIZE;
    blob->runs = 0;
}

static struct run get_run(const uint8_t *at)
{
    struct wire_reader r = wire_reader(at, RUN_SIZE);
    struct run run = {.first = wire_get_u64(&r)};

    run.pages = wire_get_u32(&r);
    return run;
}

static void put_run(struct page_blob *blob, size_t at, struct run run)
{
    struct wire_writer w = wire_writer(blob->bytes + at, RUN_SIZE);

    wire_put_u64(&w, run.first);
    wire_put_u32(&w, run.pages);
    wire_put_u32(&w, 0);
}

static void put_run_count(struct page_blob *blob)
{
    struct wire_writer w = wire_writer(blob->bytes + RUNS_OFFSET, sizeof(uint16_t));

    wire_put_u16(&w, (uint16_t)blob->runs);
}

bool page_blob_add(struct page_blob *blob, uint64_t first_page, uint32_t pages)
{
    struct run run = {first_page, pages};

    if (blob->runs) {
        size_t at = blob->size - RUN_SIZE;
        struct run last = get_run(blob->bytes + at);

        if (first_page < run_end(last))
            return false;
        if (first_page == run_end(last) && pages <= UINT32_MAX - last.pages) {
            last.pages += pages;
            put_run(blob, at, last);
            return true;
        }
    }
    if (blob->runs == MAX_RUNS)
        return false;
    put_run(blob, blob->size, run);
    blob->size += RUN_SIZE;
    blob->runs++;
    put_run_count(blob);
    return true;
}

/* Reads the header, leaves the reader at the runs. */
static int decode_header(struct wire_reader *r, const struct page_target *target,
                         const struct guest_region **region, unsigned *runs, struct error *err)
{
    size_t size = wire_reader_left(r);
    unsigned encoding = wire_get_u8(r), reserved = wire_get_u8(r);
    uint32_t id;

    *runs = wire_get_u16(r);
    id = wire_get_u32(r);
    if (r->failed || !*runs || size > PAGE_BLOB_SIZE ||
        wire_reader_left(r) != (size_t)*runs * RUN_SIZE)
        return error_set(err, EPROTO, "page blob of %zu bytes does not hold the %u runs it says",
                         size, *runs);
    if (encoding != PAGE_ENCODING_ZERO || reserved)
        return error_set(err, EPROTO,
                         "page blob in encoding %u (flags %u), which is not known here", encoding,
                         reserved);
    if (id >= target->count || !target->regions[id].host)
        return error_set(err, EPROTO, "page blob for region %u, the guest has %u", id,
                         target->count);
    *region = &target->regions[id];
    return 0;
}

/* The next run, if it lies inside the region and behind `*end`, where the one before it ended. Runs
 * that may not overlap bound the work that one blob can ask for. */
static int decode_run(struct wire_reader *r, const struct guest_region *region, uint64_t *end,
                      struct run *run, struct error *err)
{
    uint64_t total = region->size >> GUEST_PAGE_SHIFT;
    uint32_t reserved;

    run->first = wire_get_u64(r);
    run->pages = wire_get_u32(r);
    reserved = wire_get_u32(r);
    if (r->failed || reserved || !run->pages)
        return error_set(err, EPROTO, "page blob with a malformed run (%u pages, flags %u)",
                         run->pages, reserved);
    if (run->first >= total || run->pages > total - run->first)
        return error_set(err, EPROTO, "page blob: %u pages from page %llu on, region %u has %llu",
                         run->pages, (unsigned long long)run->first, region->id,
                         (unsigned long long)total);
    if (run->first < *end)
        return error_set(err, EPROTO, "page blob: run at page %llu overlaps the one before it",
                         (unsigned long long)run->first);
    *end = run_end(*run);
    return 0;
}

static int check_runs(struct wire_reader runs, const struct guest_region *region, unsigned count,
                      struct error *err)
{
    uint64_t end = 0;
    struct run run;

    for (unsigned i = 0; i < count; i++) {
        int result = decode_run(&runs, region, &end, &run, err);
        if (result)
            return result;
    }
    return 0;
}

/* Reading before writing: a hole of anonymous memory reads as the shared zero page and stays a
 * hole, where a store would allocate. A hole in a shared file does get its page by the reading;
 * nothing cheap tells it from a swapped-out page (not pagemap, not mincore), and dropping pages
 * (MADV_REMOVE) would part them from a network card's registration. The source sends zeros only for
 * pages that are touched over there, so this end holds at most as many. */
static void zero_run(const struct guest_region *region, struct run run)
{
    uint8_t *page = (uint8_t *)region->host + (run.first << GUEST_PAGE_SHIFT);

    for (uint32_t i = 0; i < run.pages; i++, page += GUEST_PAGE_SIZE) {
        if (!page_is_zero(page))
            memset(page, 0, GUEST_PAGE_SIZE);
    }
}

int page_decode(void *context, const void *bytes, size_t size, struct error *err)
{
    const struct page_target *target = context;
    const struct guest_region *region = NULL;
    struct wire_reader r = wire_reader(bytes, size);
    unsigned runs;
    int result;

    result = decode_header(&r, target, &region, &runs, err);
    if (result)
        return result;
    result = check_runs(r, region, runs, err);
    if (result)
        return result;
    for (unsigned i = 0; i < runs; i++) {
        struct run run = get_run(wire_get_view(&r, RUN_SIZE));

        zero_run(region, run);
    }
    return 0;
}
