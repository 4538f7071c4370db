/* What of the synthetic guest is not RAM, as bytes. All little-endian.
 *
 * Platform: u16 version, u16 0, u32 content, u64 touch, hot, hot_at, rate, u32 pattern, u32
 * hot_share, u64 window, seed. State: u32 magic, u16 version, u16 vcpus, platform, u64 clock_delta,
 * started_at, last_seen, moves, gap_ns, checks, check_moves, checked_pages, bad_pages, then a u64
 * for each vCPU: the pages it has written, which is also its position in its sequence of pages. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/synthetic/internal.h"
#include "transport/base/wire.h"

enum { PLATFORM_VERSION = 1, STATE_VERSION = 1, STATE_MAGIC = 0x534e4457 /* "WDNS" */ };
enum { STATE_FIXED_SIZE = 8 + SYNTHETIC_PLATFORM_SIZE + 9 * 8 };

struct state {
    struct workload workload;
    unsigned vcpus;
    int64_t clock_delta;
    uint64_t started_at, last_seen;
    struct guest_workload account;
    uint64_t written[GUEST_MAX_VCPUS];
};

static void put_platform(struct wire_writer *w, const struct workload *workload)
{
    wire_put_u16(w, PLATFORM_VERSION);
    wire_put_u16(w, 0);
    wire_put_u32(w, workload->content);
    wire_put_u64(w, workload->touch);
    wire_put_u64(w, workload->hot);
    wire_put_u64(w, workload->hot_at);
    wire_put_u64(w, workload->rate);
    wire_put_u32(w, workload->pattern);
    wire_put_u32(w, workload->hot_share);
    wire_put_u64(w, workload->window);
    wire_put_u64(w, workload->seed);
}

static int get_platform(struct wire_reader *r, struct workload *out, struct error *err)
{
    unsigned version = wire_get_u16(r), reserved = wire_get_u16(r);
    uint32_t content = wire_get_u32(r), pattern;

    out->touch = wire_get_u64(r);
    out->hot = wire_get_u64(r);
    out->hot_at = wire_get_u64(r);
    out->rate = wire_get_u64(r);
    pattern = wire_get_u32(r);
    out->hot_share = wire_get_u32(r);
    out->window = wire_get_u64(r);
    out->seed = wire_get_u64(r);
    if (r->failed)
        return error_set(err, EBADMSG, "the workload's description is truncated");
    if (version != PLATFORM_VERSION || reserved != 0)
        return error_set(
            err, EBADMSG,
            "the workload's description has version %u, this program knows %d; use the same "
            "version of wander on both hosts",
            version, PLATFORM_VERSION);
    if (content > CONTENT_INCOMPRESSIBLE || pattern > WORKLOAD_WINDOW)
        return error_set(err, EBADMSG, "the workload's content %u or pattern %u is unknown",
                         content, pattern);
    out->content = content;
    out->pattern = pattern;
    return 0;
}

void synthetic_platform_encode(const struct workload *workload,
                               uint8_t out[SYNTHETIC_PLATFORM_SIZE])
{
    struct wire_writer w = wire_writer(out, SYNTHETIC_PLATFORM_SIZE);

    put_platform(&w, workload);
}

int synthetic_platform_decode(const void *bytes, size_t size, struct workload *out,
                              struct error *err)
{
    struct wire_reader r = wire_reader(bytes, size);
    int rc = get_platform(&r, out, err);

    if (rc == 0 && !wire_reader_done(&r))
        return error_set(err, EBADMSG, "the workload's description has %zu bytes too many",
                         wire_reader_left(&r));
    return rc;
}

static size_t state_encode(const struct state *s, uint8_t *out, size_t size)
{
    struct wire_writer w = wire_writer(out, size);

    wire_put_u32(&w, STATE_MAGIC);
    wire_put_u16(&w, STATE_VERSION);
    wire_put_u16(&w, (uint16_t)s->vcpus);
    put_platform(&w, &s->workload);
    wire_put_u64(&w, (uint64_t)s->clock_delta);
    wire_put_u64(&w, s->started_at);
    wire_put_u64(&w, s->last_seen);
    wire_put_u64(&w, s->account.moves);
    wire_put_u64(&w, s->account.gap_ns);
    wire_put_u64(&w, s->account.checks);
    wire_put_u64(&w, s->account.check_moves);
    wire_put_u64(&w, s->account.checked_pages);
    wire_put_u64(&w, s->account.bad_pages);
    for (unsigned i = 0; i < s->vcpus; i++)
        wire_put_u64(&w, s->written[i]);
    return (size_t)(w.at - out);
}

static int get_header(struct wire_reader *r, struct state *s, struct error *err)
{
    uint32_t magic = wire_get_u32(r);
    unsigned version = wire_get_u16(r);

    s->vcpus = wire_get_u16(r);
    if (r->failed || magic != STATE_MAGIC)
        return error_set(err, EBADMSG, "these bytes are no state of a synthetic guest");
    if (version != STATE_VERSION)
        return error_set(err, EBADMSG,
                         "the state has version %u, this program knows %d; use the same version of "
                         "wander on both hosts",
                         version, STATE_VERSION);
    if (s->vcpus < 1 || s->vcpus > GUEST_MAX_VCPUS)
        return error_set(err, EBADMSG, "the state is of %u vCPUs; 1 to %d are possible", s->vcpus,
                         GUEST_MAX_VCPUS);
    return get_platform(r, &s->workload, err);
}

static int state_decode(const void *bytes, size_t size, struct state *s, struct error *err)
{
    struct wire_reader r = wire_reader(bytes, size);
    int rc = get_header(&r, s, err);

    if (rc < 0)
        return rc;
    s->clock_delta = (int64_t)wire_get_u64(&r);
    s->started_at = wire_get_u64(&r);
    s->last_seen = wire_get_u64(&r);
    s->account.moves = wire_get_u64(&r);
    s->account.gap_ns = wire_get_u64(&r);
    s->account.checks = wire_get_u64(&r);
    s->account.check_moves = wire_get_u64(&r);
    s->account.checked_pages = wire_get_u64(&r);
    s->account.bad_pages = wire_get_u64(&r);
    for (unsigned i = 0; i < s->vcpus; i++)
        s->written[i] = wire_get_u64(&r);
    if (!wire_reader_done(&r))
        return error_set(err, EBADMSG, "the state has %zu bytes, which is not what %u vCPUs need",
                         size, s->vcpus);
    return 0;
}

static void gather(const struct synthetic *g, struct state *s)
{
    s->workload = g->workload;
    s->vcpus = g->vcpu_count;
    s->clock_delta = g->clock_delta;
    s->started_at = g->started_at;
    s->last_seen = g->last_seen;
    s->account = g->account;
    for (unsigned i = 0; i < g->vcpu_count; i++)
        s->written[i] = atomic_load_explicit(&g->vcpus[i].written, memory_order_relaxed);
}

int synthetic_save(struct guest *guest, struct guest_state *out, struct error *err)
{
    struct synthetic *g = (struct synthetic *)guest;
    uint8_t bytes[STATE_FIXED_SIZE + GUEST_MAX_VCPUS * 8];
    struct state s;

    pthread_mutex_lock(&g->lock);
    bool parked = g->hold && g->parked == g->vcpu_count;
    if (parked)
        gather(g, &s);
    pthread_mutex_unlock(&g->lock);
    if (!parked)
        return error_set(
            err, EBUSY, "cannot save the state of guest %s while it runs; pause it first", g->name);
    int rc = guest_state_append(out, bytes, state_encode(&s, bytes, sizeof(bytes)));
    return rc < 0 ? error_set_errno(err, -rc, "cannot keep the state of guest %s", g->name) : 0;
}

/* The state must be of the guest that was described before: the RAM was laid out for that one. */
static int check_state(const struct synthetic *g, const struct state *s, struct error *err)
{
    uint8_t here[SYNTHETIC_PLATFORM_SIZE], there[SYNTHETIC_PLATFORM_SIZE];

    synthetic_platform_encode(&g->workload, here);
    synthetic_platform_encode(&s->workload, there);
    if (s->vcpus != g->vcpu_count)
        return error_set(err, EBADMSG, "the state is of %u vCPUs, the guest described has %u",
                         s->vcpus, g->vcpu_count);
    if (memcmp(here, there, sizeof(here)) != 0)
        return error_set(err, EBADMSG, "the state is of another workload than the guest described");
    if (s->started_at > s->last_seen)
        return error_set(err, EBADMSG, "the state's clock was last seen before it started");
    for (unsigned i = 0; i < s->vcpus; i++) {
        if (s->written[i] && g->vcpus[i].share == 0)
            return error_set(err, EBADMSG,
                             "the state's vCPU %u has written %llu pages and owns none", i,
                             (unsigned long long)s->written[i]);
    }
    return 0;
}

static void apply(struct synthetic *g, const struct state *s, int64_t clock_offset_ns)
{
    /* In unsigned arithmetic: a hostile sum may wrap, and harms nobody. */
    g->clock_delta = (int64_t)((uint64_t)s->clock_delta - (uint64_t)clock_offset_ns);
    g->started_at = s->started_at;
    g->last_seen = s->last_seen;
    g->gap_pending = s->last_seen != 0;
    g->account = s->account;
    g->account.moves++;
    g->account.gap_ns = 0; /* of an earlier move: this one's is yet to be measured */
    for (unsigned i = 0; i < g->vcpu_count; i++)
        atomic_store_explicit(&g->vcpus[i].written, s->written[i], memory_order_relaxed);
}

int synthetic_load(struct guest *guest, const void *bytes, size_t size,
                   const struct guest_load_context *context, struct error *err)
{
    struct synthetic *g = (struct synthetic *)guest;
    struct state s = {0};
    int rc = state_decode(bytes, size, &s, err);

    if (rc < 0 || (rc = check_state(g, &s, err)) < 0)
        return error_prefix(err, "cannot load the state of guest %s", g->name);
    pthread_mutex_lock(&g->lock);
    bool fresh = !g->ran;
    if (fresh)
        apply(g, &s, context->clock_offset_ns);
    pthread_mutex_unlock(&g->lock);
    return fresh ? 0
                 : error_set(err, EBUSY,
                             "cannot load a state into guest %s: it has run here already", g->name);
}
