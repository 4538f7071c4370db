/* Pieces against a model that knows every unit of the regions: random operations, and after each
 * what has to hold. A failure prints seed and step. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "transport/rdma/pieces.h"

enum {
    UNIT = 512,
    GRAIN = 32, /* all in units from here on */
    UNITS = 16 * GRAIN,
    LONGEST = 40, /* transfer: touches up to three grains */
    REGIONS = 3,
    MAX_SHADOWS = 4096,
    MAX_TRANSFERS = 24,
    STEPS = 20000,
};

enum shadow_state { FREE, LIVE, DOOMED, TOLD };

/* What the model knows of a piece, by its id. */
struct shadow {
    enum shadow_state state;
    unsigned region, from, to, users, awaited;
    long stamp; /* the lower, the earlier it should go */
    struct rdma_piece *piece;
};

struct range {
    unsigned region, from, to;
    struct rdma_piece *first;
};

struct setting {
    const char *what;
    uint64_t limit; /* units; 0: none */
    uint32_t max_count;
    bool eager;
};

static struct {
    const struct setting *setting;
    struct rdma_pieces *pieces;
    bool expected[REGIONS][UNITS];
    struct shadow shadows[MAX_SHADOWS];
    unsigned shadow_end; /* ids there were */
    struct range transfers[MAX_TRANSFERS];
    unsigned transfer_count, made, evictions, successes, retries;
    struct range now; /* what pieces_use is asked for; to 0: nothing */
    bool forgetting;
    long hottest, coldest;
    uint64_t seed, random;
    unsigned step;
} m;

#define HOLDS(condition, format, ...)                                                              \
    cr_assert(condition, "%s, seed %#llx, step %u: " format, m.setting->what,                      \
              (unsigned long long)m.seed, m.step, ##__VA_ARGS__)

static unsigned random_below(unsigned end)
{
    m.random ^= m.random >> 12;
    m.random ^= m.random << 25;
    m.random ^= m.random >> 27;
    return (unsigned)((m.random * 0x2545f4914f6cdd1dull >> 33) % end);
}

static bool overlaps(const struct shadow *s, const struct range *r)
{
    return s->region == r->region && s->from < r->to && r->from < s->to;
}

static bool is_wanted(unsigned region, unsigned unit)
{
    return m.expected[region][unit] ||
           (m.now.to && m.now.region == region && unit >= m.now.from && unit < m.now.to);
}

/* The live piece that holds a unit. */
static struct shadow *shadow_at(unsigned region, unsigned unit)
{
    for (unsigned i = 0; i < m.shadow_end; i++) {
        struct shadow *s = &m.shadows[i];

        if (s->state == LIVE && s->region == region && s->from <= unit && unit < s->to)
            return s;
    }
    return NULL;
}

/* It could have been longer at this end. */
static bool stops_short(unsigned region, unsigned inside, unsigned outside)
{
    return outside < UNITS && outside / GRAIN == inside / GRAIN && m.expected[region][inside] &&
           m.expected[region][outside] && !shadow_at(region, outside);
}

static void acquire(void *context, struct rdma_piece *piece)
{
    struct shadow *s = &m.shadows[piece->id];
    struct range range = {piece->region, (unsigned)(piece->offset / UNIT),
                          (unsigned)((piece->offset + piece->length) / UNIT), NULL};
    bool may_bridge = m.setting->eager && m.setting->max_count < 1000 && !m.now.to;

    (void)context;
    HOLDS(piece->id < MAX_SHADOWS, "id %u is not needed for so few pieces", piece->id);
    if (piece->id >= m.shadow_end)
        m.shadow_end = piece->id + 1;
    HOLDS(s->state == FREE || (s->state == TOLD && !s->awaited), "id %u is in use", piece->id);
    HOLDS(piece->length && range.from / GRAIN == (range.to - 1) / GRAIN,
          "%u..%u crosses a grain's end", range.from, range.to);
    HOLDS(!stops_short(range.region, range.from, range.from - 1) &&
              !stops_short(range.region, range.to - 1, range.to),
          "%u..%u does not cover what is expected beside it", range.from, range.to);
    for (unsigned unit = range.from; unit < range.to; unit++) {
        HOLDS(!shadow_at(range.region, unit), "%u..%u overlaps another piece at %u", range.from,
              range.to, unit);
        HOLDS(may_bridge || is_wanted(range.region, unit), "%u..%u holds the hole at %u",
              range.from, range.to, unit);
    }
    HOLDS(is_wanted(range.region, range.from) && is_wanted(range.region, range.to - 1),
          "%u..%u begins or ends with a hole", range.from, range.to);
    *s = (struct shadow){LIVE, range.region, range.from, range.to, 0, 2, ++m.hottest, piece};
    m.made++;
}

static void release(void *context, struct rdma_piece *piece)
{
    struct shadow *s = &m.shadows[piece->id];

    (void)context;
    HOLDS((s->state == LIVE || s->state == DOOMED) && !s->users && !s->awaited,
          "piece %u goes in state %d with %u users, awaited %u", piece->id, (int)s->state, s->users,
          s->awaited);
    HOLDS(m.forgetting || s->state == DOOMED || !overlaps(s, &m.now),
          "piece %u goes for the transfer that needs it", piece->id);
    for (unsigned i = 0; i < m.shadow_end && !m.forgetting && s->state == LIVE; i++) {
        const struct shadow *o = &m.shadows[i];

        HOLDS(o->state != LIVE || o->users || o->awaited || o->stamp >= s->stamp ||
                  overlaps(o, &m.now),
              "piece %u goes before %u, used longer ago", piece->id, i);
    }
    m.evictions += s->state == LIVE && !m.forgetting;
    s->state = TOLD;
    s->awaited = 2;
}

static struct range random_range(unsigned longest)
{
    struct range r = {.region = random_below(REGIONS), .from = random_below(UNITS)};
    unsigned length = 1 + random_below(longest);

    r.to = r.from + length < UNITS ? r.from + length : UNITS;
    return r;
}

static void do_expect(void)
{
    struct range r = random_range(random_below(4) ? 6 : 2 * GRAIN);
    struct error err = {0};

    HOLDS(pieces_expect(m.pieces, r.region, (uint64_t)r.from * UNIT,
                        (uint64_t)(r.to - r.from) * UNIT, &err) == 0,
          "%s", err.text);
    memset(&m.expected[r.region][r.from], true, r.to - r.from);
}

/* All pieces of a transfer, in order: their users change by `change`, or they get a new stamp. */
static void walk(const struct range *r, int change)
{
    struct shadow *s;

    for (unsigned at = r->from; at < r->to && (s = shadow_at(r->region, at)); at = s->to) {
        if (change)
            s->users += (unsigned)change;
        else
            s->stamp = ++m.hottest;
    }
}

static void check_chain(const struct range *r)
{
    struct rdma_piece *piece = r->first;

    for (unsigned at = r->from; at < r->to; piece = piece->follower) {
        struct shadow *s = shadow_at(r->region, at);

        HOLDS(s && piece == s->piece, "unit %u of %u..%u is in no piece of the chain", at, r->from,
              r->to);
        at = s->to;
    }
}

static void check_trimmed(void)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < m.shadow_end; i++)
        bytes += m.shadows[i].state == LIVE ? m.shadows[i].to - m.shadows[i].from : 0;
    for (unsigned i = 0; i < m.shadow_end && m.setting->limit && bytes * 4 > m.setting->limit * 3;
         i++) {
        const struct shadow *s = &m.shadows[i];

        HOLDS(s->state != LIVE || s->users || s->awaited || overlaps(s, &m.now),
              "piece %u is idle while %llu units of %llu are in use", i, (unsigned long long)bytes,
              (unsigned long long)m.setting->limit);
    }
}

static int do_use(struct range *r)
{
    unsigned made = m.made;
    struct error err = {0};
    int result;

    m.now = *r;
    result = pieces_use(m.pieces, r->region, (uint64_t)r->from * UNIT,
                        (uint64_t)(r->to - r->from) * UNIT, &r->first, &err);
    HOLDS(result == 0 || result == -EAGAIN || (result == -EINVAL && m.setting->max_count < LONGEST),
          "using %u..%u: %d %s", r->from, r->to, result, err.text);
    walk(r, 0);
    if (!result) {
        check_chain(r);
        walk(r, 1);
        m.transfers[m.transfer_count++] = *r;
        m.successes++;
    }
    if (!result && m.made != made)
        check_trimmed();
    m.now.to = 0;
    return result;
}

static void do_complete(void)
{
    unsigned i = m.transfer_count ? random_below(m.transfer_count) : 0;
    struct range *r = &m.transfers[i];

    if (!m.transfer_count)
        return;
    pieces_unuse(r->first, (uint64_t)r->from * UNIT, (uint64_t)(r->to - r->from) * UNIT);
    walk(r, -1);
    *r = m.transfers[--m.transfer_count];
}

/* An end answers for up to `most` pieces. */
static void do_answer(unsigned most)
{
    unsigned start = random_below(m.shadow_end + 1);

    for (unsigned i = 0; i < m.shadow_end && most; i++) {
        struct shadow *s = &m.shadows[(start + i) % m.shadow_end];

        if (s->state == FREE || !s->awaited)
            continue;
        atomic_fetch_sub(&s->piece->awaited, 1);
        s->awaited--;
        most--;
    }
}

static void do_cool(void)
{
    struct range r = random_range(3 * GRAIN);
    struct shadow *s;

    pieces_cool(m.pieces, r.region, (uint64_t)r.from * UNIT, (uint64_t)(r.to - r.from) * UNIT);
    for (unsigned at = r.from; at < r.to; at = s ? s->to : at + 1)
        if ((s = shadow_at(r.region, at)))
            s->stamp = --m.coldest;
}

static void do_forget(void)
{
    unsigned region = random_below(REGIONS);

    for (unsigned i = 0; i < m.transfer_count; i++)
        if (m.transfers[i].region == region)
            return;
    m.forgetting = true;
    pieces_forget(m.pieces, region);
    m.forgetting = false;
    memset(m.expected[region], false, UNITS);
    for (unsigned i = 0; i < m.shadow_end; i++) {
        struct shadow *s = &m.shadows[i];

        if (s->state != LIVE || s->region != region)
            continue;
        HOLDS(s->awaited, "piece %u of a forgotten region was not told to go", i);
        s->state = DOOMED;
    }
}

static void do_plan(void)
{
    struct error err = {0};
    unsigned made = m.made;

    HOLDS(pieces_plan(m.pieces, &err) == 0, "%s", err.text);
    HOLDS(m.setting->eager || m.made == made, "a plan was made without being asked for");
    for (unsigned unit = 0; unit < REGIONS * UNITS && m.setting->eager; unit++)
        HOLDS(m.setting->limit || m.setting->max_count < 1000 ||
                  !m.expected[unit / UNITS][unit % UNITS] || shadow_at(unit / UNITS, unit % UNITS),
              "region %u, unit %u is expected and in no piece", unit / UNITS, unit % UNITS);
}

static void do_collect(void)
{
    unsigned count = 0;
    uint64_t units = 0;

    for (unsigned i = 0; i < m.shadow_end; i++)
        if (m.shadows[i].state == TOLD && !m.shadows[i].awaited)
            m.shadows[i].state = FREE;
    pieces_collect(m.pieces);
    for (unsigned i = 0; i < m.shadow_end; i++) {
        const struct shadow *s = &m.shadows[i];

        count += s->state != FREE;
        units += s->state != FREE ? s->to - s->from : 0;
        HOLDS(s->state != DOOMED || s->awaited, "piece %u was not told to go when it could", i);
        if (s->state != FREE)
            HOLDS(pieces_find(m.pieces, i) == s->piece &&
                      atomic_load(&s->piece->users) == s->users &&
                      atomic_load(&s->piece->awaited) == s->awaited,
                  "piece %u: expected %u users, awaited %u, got %u and %u", i, s->users, s->awaited,
                  atomic_load(&s->piece->users), atomic_load(&s->piece->awaited));
    }
    HOLDS(pieces_count(m.pieces) == count && pieces_bytes(m.pieces) == units * UNIT,
          "expected %u pieces of %llu units, got %u of %llu bytes", count,
          (unsigned long long)units, pieces_count(m.pieces),
          (unsigned long long)pieces_bytes(m.pieces));
}

/* Once everything else is done, whatever fits gets its room. */
static void do_finish(void)
{
    struct range r = random_range(LONGEST);
    int result = -EAGAIN;

    while (m.transfer_count)
        do_complete();
    for (unsigned i = 0; i < 40 && result == -EAGAIN; i++) {
        do_answer(UINT32_MAX);
        do_answer(UINT32_MAX);
        result = do_use(&r);
        m.retries += result == -EAGAIN;
    }
    HOLDS(result != -EAGAIN, "%u..%u never finds room", r.from, r.to);
}

static void do_something(void)
{
    struct range r = random_range(random_below(3) ? 8 : LONGEST);
    unsigned what = random_below(1000);

    if (what < 60)
        do_expect();
    else if (what < 400 && m.transfer_count < MAX_TRANSFERS)
        do_use(&r);
    else if (what < 650)
        do_complete();
    else if (what < 900)
        do_answer(1 + random_below(4));
    else if (what < 930)
        do_cool();
    else if (what < 940)
        do_forget();
    else if (what < 960)
        do_plan();
    else if (what < 980)
        do_finish();
    do_collect();
    HOLDS(pieces_count(m.pieces) <= m.setting->max_count, "%u pieces", pieces_count(m.pieces));
    HOLDS(!m.setting->limit || pieces_bytes(m.pieces) <= m.setting->limit * UNIT, "%llu bytes",
          (unsigned long long)pieces_bytes(m.pieces));
}

static void run(const struct setting *setting, uint64_t seed)
{
    const struct pieces_config config = {
        .grain = GRAIN * UNIT,
        .limit = setting->limit ? setting->limit * UNIT : UINT64_MAX,
        .max_count = setting->max_count,
        .eager = setting->eager,
        .owner = {acquire, release, NULL},
    };
    struct error err = {0};

    memset(&m, 0, sizeof m);
    m.setting = setting;
    m.seed = m.random = seed;
    cr_assert_eq(pieces_new(&config, &m.pieces, &err), 0, "%s", err.text);
    for (m.step = 0; m.step < STEPS; m.step++)
        do_something();
    cr_expect_gt(m.successes, STEPS / 50, "%s: only %u transfers of %d steps found room",
                 setting->what, m.successes, STEPS);
    cr_expect(m.evictions || (!setting->limit && setting->max_count >= 1000),
              "%s: nothing ever had to go", setting->what);
    pieces_free(m.pieces);
}

Test(rdma_pieces_random, what_has_to_hold_holds, .timeout = 240)
{
    static const struct setting settings[] = {
        {"no limit", 0, 1u << 22, false},
        {"limit of 8 grains", 8 * GRAIN, 1u << 22, false},
        {"limit of 3 grains", 3 * GRAIN, 1u << 22, false},
        {"few pieces", 0, 12, false},
        {"few and small", 5 * GRAIN, 45, false},
        {"eager", 0, 1u << 22, true},
        {"eager, few pieces", 0, 20, true},
        {"eager, limit", 6 * GRAIN, 1u << 22, true},
    };

    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        run(&settings[i], 0x77616e646572ull + i);
}
