#include "migrate/rounds.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/page/page.h"
#include "transport/base/clock.h"

enum {
    BLOBS = 16,
    REAP_MAX = 64,
    REAP_MS = 20,
    STALL_S = 5,    /* nothing completed for so long although something is under way */
    NO_ROOM_S = 10, /* nothing taken for so long: a low rate limit makes a chunk wait for seconds */
};

struct region_state {
    struct guest_region region;
    struct extent_list present;
    uint64_t *placed; /* a bit per page: not zero at the destination, maybe. Mapped lazily, so holes
                         cost nothing */
    size_t placed_size;
};

struct rounds {
    struct rounds_config config;
    struct region_state regions[GUEST_MAX_REGIONS];
    unsigned region_count;
    struct round_counts counts;

    struct policy_pace pace;
    uint64_t next_fence, completed_fence;
    uint64_t unfenced_bytes;

    struct page_blob blobs[BLOBS];
    struct page_blob *free_blobs[BLOBS];
    unsigned free_count;
    struct page_blob *blob; /* being filled, or NULL */
    uint32_t blob_region;

    uint64_t last_progress_call, last_completed, last_wire_bytes, last_completion;
};

static int map_placed(struct region_state *state, struct error *err)
{
    size_t words = (state->region.size / GUEST_PAGE_SIZE + 63) / 64;

    state->placed_size = words * sizeof(uint64_t);
    void *map = mmap(NULL, state->placed_size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return error_set_errno(err, errno, "no memory for the page bitmap of region %s",
                               state->region.name);
    state->placed = map;
    return 0;
}

int rounds_new(const struct rounds_config *config, struct rounds **out, struct error *err)
{
    struct rounds *r = calloc(1, sizeof(*r));
    const struct guest_region *regions;
    int result = 0;

    if (!r)
        return error_set(err, ENOMEM, "no memory for the rounds");
    r->config = *config;
    r->region_count = config->guest->ops->regions(config->guest, &regions);
    r->last_completion = clock_now();
    for (unsigned i = 0; i < BLOBS; i++)
        r->free_blobs[r->free_count++] = &r->blobs[i];
    for (unsigned i = 0; i < r->region_count && !result; i++) {
        r->regions[i].region = regions[i];
        result = map_placed(&r->regions[i], err);
        if (!result)
            result = config->guest->ops->present(config->guest, regions[i].id,
                                                 &r->regions[i].present, err);
    }
    if (result) {
        rounds_free(r);
        return result;
    }
    *out = r;
    return 0;
}

void rounds_free(struct rounds *r)
{
    if (!r)
        return;
    for (unsigned i = 0; i < r->region_count; i++) {
        extent_list_free(&r->regions[i].present);
        if (r->regions[i].placed)
            munmap(r->regions[i].placed, r->regions[i].placed_size);
    }
    free(r);
}

const struct extent_list *rounds_present(const struct rounds *r, uint32_t region)
{
    return &r->regions[region].present;
}

uint64_t rounds_present_bytes(const struct rounds *r)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < r->region_count; i++)
        bytes += extent_list_bytes(&r->regions[i].present);
    return bytes;
}

const struct round_counts *rounds_counts(const struct rounds *r)
{
    return &r->counts;
}

static int check_stall(struct rounds *r, struct error *err)
{
    struct transport_stats stats;
    uint64_t now = clock_now();

    transport_stats(r->config.transport, &stats);
    if (stats.completed != r->last_completed || stats.wire_bytes != r->last_wire_bytes) {
        r->last_completed = stats.completed;
        r->last_wire_bytes = stats.wire_bytes;
        r->last_completion = now;
    }
    bool waiting = stats.outstanding || r->completed_fence < r->next_fence;
    uint64_t limit_s = waiting ? STALL_S : NO_ROOM_S;
    if (r->config.max_bandwidth)
        limit_s += 2 * TRANSPORT_MAX_TRANSFER / r->config.max_bandwidth;
    if (now - r->last_completion > limit_s * NS_PER_S)
        return error_set(
            err, ETIMEDOUT,
            "the lanes have moved nothing for %llu s although the control channel is alive; "
            "see whether the path between the hosts drops large packets (MTU)",
            (unsigned long long)limit_s);
    return 0;
}

/* Waits for completions, at most REAP_MS, and keeps everyone informed meanwhile. */
static int reap(struct rounds *r, int timeout_ms, struct error *err)
{
    struct completion done[REAP_MAX];
    int count = transport_reap(r->config.transport, done, REAP_MAX, timeout_ms, err);
    uint64_t now;

    if (count < 0)
        return count;
    for (int i = 0; i < count; i++) {
        if (done[i].kind == COMPLETION_FENCE) {
            r->completed_fence = done[i].fence;
            r->last_completion = clock_now();
        } else {
            r->free_blobs[r->free_count++] = done[i].cookie;
        }
    }
    now = clock_now();
    if (now - r->last_progress_call > REAP_MS * NS_PER_MS) {
        r->last_progress_call = now;
        int result = check_stall(r, err);
        if (result)
            return result;
        r->config.progress(r->config.context);
    }
    return r->config.interrupted(r->config.context, err);
}

static int post_all(struct rounds *r, const struct transfer *transfers, unsigned count,
                    struct error *err)
{
    while (count > 0) {
        int taken = transport_post(r->config.transport, transfers, count, err);
        if (taken < 0)
            return taken;
        transfers += taken;
        count -= (unsigned)taken;
        if (count == 0)
            break;
        int result = transport_kick(r->config.transport, err);
        if (!result)
            result = reap(r, REAP_MS, err);
        if (result)
            return result;
    }
    return transport_kick(r->config.transport, err);
}

static int flush_blob(struct rounds *r, struct error *err)
{
    if (!r->blob)
        return 0;
    struct transfer transfer = {
        .kind = TRANSFER_BLOB,
        .region = r->blob_region,
        .bytes = r->blob->bytes,
        .length = r->blob->size,
        .cookie = r->blob,
    };
    r->blob = NULL;
    return post_all(r, &transfer, 1, err);
}

static int add_zero_run(struct rounds *r, uint32_t region, uint64_t page, uint32_t pages,
                        struct error *err)
{
    int result = 0;

    for (;;) {
        if (r->blob && r->blob_region == region && page_blob_add(r->blob, page, pages))
            return 0;
        result = flush_blob(r, err);
        while (!result && r->free_count == 0)
            result = reap(r, REAP_MS, err);
        if (result)
            return result;
        r->blob = r->free_blobs[--r->free_count];
        r->blob_region = region;
        page_blob_begin(r->blob, PAGE_ENCODING_ZERO, region);
    }
}

static int post_fence(struct rounds *r, struct error *err)
{
    int result = flush_blob(r, err);

    r->next_fence += !result;
    while (!result &&
           (result = transport_fence(r->config.transport, r->next_fence, err)) == -EAGAIN) {
        error_clear(err);
        result = reap(r, REAP_MS, err);
    }
    r->unfenced_bytes = 0;
    return result ? result : transport_kick(r->config.transport, err);
}

static bool get_bit(const uint64_t *bits, uint64_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

static void set_bit(uint64_t *bits, uint64_t i)
{
    bits[i / 64] |= 1ull << (i % 64);
}

/* The last chunk of a region may be cut. */
static uint64_t chunk_size(const struct guest_region *region, uint64_t chunk)
{
    uint64_t left = region->size - chunk * GUEST_CHUNK_SIZE;

    return left < GUEST_CHUNK_SIZE ? left : GUEST_CHUNK_SIZE;
}

/* Sorts the pages of a chunk that are set in `bits`: zero ones that matter into the blob, the
 * others into runs. */
static int send_chunk(struct rounds *r, struct region_state *state, uint64_t chunk,
                      const uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    struct transfer runs[GUEST_CHUNK_PAGES / 2 + 1];
    unsigned count = 0;
    uint64_t first = chunk * GUEST_CHUNK_PAGES, bytes = 0;
    const char *base = (const char *)state->region.host + first * GUEST_PAGE_SIZE;
    bool in_run = false;

    for (unsigned i = 0; i < GUEST_CHUNK_PAGES; i++) {
        if (i % 64 == 0 && bits[i / 64] == 0) {
            i += 63;
            in_run = false;
            continue;
        }
        if (!get_bit(bits, i)) {
            in_run = false;
            continue;
        }
        const char *page = base + (size_t)i * GUEST_PAGE_SIZE;
        r->counts.pages++;
        if (page_is_zero(page)) {
            in_run = false;
            r->counts.zero_pages++;
            int result = get_bit(state->placed, first + i)
                             ? add_zero_run(r, state->region.id, first + i, 1, err)
                             : 0;
            if (result)
                return result;
            continue;
        }
        set_bit(state->placed, first + i);
        if (!in_run)
            runs[count++] = (struct transfer){
                .kind = TRANSFER_PLACE,
                .region = state->region.id,
                .offset = (first + i) * GUEST_PAGE_SIZE,
                .bytes = page,
            };
        in_run = true;
        runs[count - 1].length += GUEST_PAGE_SIZE;
        bytes += GUEST_PAGE_SIZE;
    }
    r->counts.bytes += bytes;
    r->unfenced_bytes += bytes;
    int result = count ? post_all(r, runs, count, err) : 0;
    transport_done_with(r->config.transport, state->region.id, first * GUEST_PAGE_SIZE,
                        chunk_size(&state->region, chunk));
    if (!result && policy_fence_is_due(&r->pace, r->unfenced_bytes))
        result = post_fence(r, err);
    return result ? result : reap(r, 0, err);
}

static int finish_round(struct rounds *r, struct error *err)
{
    int result = post_fence(r, err);

    while (!result && r->completed_fence < r->next_fence)
        result = reap(r, REAP_MS, err);
    return result;
}

/* `pace` NULL: all at once. */
static void begin_round(struct rounds *r, const struct policy_pace *pace)
{
    static const struct policy_pace at_once = {POLICY_FENCE_BYTES, UINT64_MAX};

    r->counts = (struct round_counts){0};
    r->last_completion = clock_now();
    r->pace = pace ? *pace : at_once;
}

static int await_room(struct rounds *r, struct error *err)
{
    int result = 0;

    while (!result && r->next_fence - r->completed_fence >= r->pace.fences)
        result = reap(r, REAP_MS, err);
    return result;
}

/* The bits of `extent` that fall into `chunk`, ORed into `bits`. */
static void extent_bits(const struct extent *extent, uint64_t chunk,
                        uint64_t bits[TRACKER_WORDS_PER_CHUNK])
{
    uint64_t first = chunk * GUEST_CHUNK_PAGES, last = first + GUEST_CHUNK_PAGES;
    uint64_t from = extent->offset / GUEST_PAGE_SIZE,
             to = (extent->offset + extent->length) / GUEST_PAGE_SIZE;

    from = from > first ? from : first;
    to = to < last ? to : last;
    for (uint64_t page = from; page < to; page++)
        set_bit(bits, page - first);
}

static int send_region_present(struct rounds *r, struct region_state *state, struct error *err)
{
    const struct extent_list *list = &state->present;
    uint64_t next_chunk = 0;
    size_t at = 0;

    while (at < list->count) {
        const struct extent *extent = &list->extents[at];
        uint64_t bits[TRACKER_WORDS_PER_CHUNK] = {0}, chunk = extent->offset / GUEST_CHUNK_SIZE;

        chunk = chunk > next_chunk ? chunk : next_chunk;
        if (extent->offset + extent->length <= chunk * GUEST_CHUNK_SIZE) {
            at++;
            continue;
        }
        /* Neighbours that share the chunk go with it. */
        for (size_t i = at;
             i < list->count && list->extents[i].offset < (chunk + 1) * GUEST_CHUNK_SIZE; i++)
            extent_bits(&list->extents[i], chunk, bits);
        int result = send_chunk(r, state, chunk, bits, err);
        if (result)
            return result;
        next_chunk = chunk + 1;
    }
    return 0;
}

/* All at once and before anything is posted, so that registration can run ahead. */
static void announce_present(struct rounds *r)
{
    for (unsigned i = 0; i < r->region_count; i++) {
        const struct extent_list *list = &r->regions[i].present;

        for (size_t at = 0; at < list->count; at++)
            transport_will_need(r->config.transport, r->regions[i].region.id,
                                list->extents[at].offset, list->extents[at].length);
    }
}

int rounds_send_present(struct rounds *r, struct error *err)
{
    int result = 0;

    begin_round(r, NULL);
    announce_present(r);
    for (unsigned i = 0; i < r->region_count && !result; i++)
        result = send_region_present(r, &r->regions[i], err);
    return result ? result : finish_round(r, err);
}

/* Leaves out the pages that are dirty again already: they come with the next collect. */
static int skip_again_dirty(struct rounds *r, uint32_t region, uint64_t chunk,
                            uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    uint64_t again[TRACKER_WORDS_PER_CHUNK] = {0};
    const struct tracker_ops *ops = r->config.tracker->ops;

    if (!ops->peek)
        return 0;
    int result = ops->peek(r->config.tracker, region, chunk, again, err);
    for (int i = 0; !result && i < TRACKER_WORDS_PER_CHUNK; i++) {
        r->counts.skipped_pages += (unsigned)__builtin_popcountll(bits[i] & again[i]);
        bits[i] &= ~again[i];
    }
    return result;
}

static int send_region_dirty(struct rounds *r, struct region_state *state, bool paused,
                             struct error *err)
{
    struct tracker *tracker = r->config.tracker;
    uint64_t page = 0;

    while (tracker->ops->next(tracker, state->region.id, &page)) {
        uint64_t bits[TRACKER_WORDS_PER_CHUNK] = {0}, chunk = page / GUEST_CHUNK_PAGES;
        int result = await_room(r, err);
        if (!result)
            result = tracker->ops->take(tracker, state->region.id, chunk, bits, err);
        if (!result && !paused)
            result = skip_again_dirty(r, state->region.id, chunk, bits, err);
        if (!result)
            result = send_chunk(r, state, chunk, bits, err);
        if (result)
            return result;
        page = (chunk + 1) * GUEST_CHUNK_PAGES;
    }
    return 0;
}

static int send_regions_dirty(struct rounds *r, bool paused, struct error *err)
{
    int result = 0;

    for (unsigned i = 0; i < r->region_count && !result; i++)
        result = send_region_dirty(r, &r->regions[i], paused, err);
    return result ? result : finish_round(r, err);
}

int rounds_send_dirty(struct rounds *r, const struct policy_pace *pace, struct error *err)
{
    begin_round(r, pace);
    return send_regions_dirty(r, false, err);
}

int rounds_send_last(struct rounds *r, struct error *err)
{
    begin_round(r, NULL);
    return send_regions_dirty(r, true, err);
}
