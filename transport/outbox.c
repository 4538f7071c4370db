#include "transport/outbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/base/clock.h"

static int lane_init(struct outbox_lane *lane, struct error *err)
{
    lane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (lane->wake_fd < 0)
        return error_set_errno(err, errno, "cannot make an eventfd for a lane");
    lane->entries = calloc(OUTBOX_ENTRIES, sizeof *lane->entries);
    if (!lane->entries) {
        close(lane->wake_fd);
        return error_set(err, ENOMEM, "no memory for a lane's queue");
    }
    return 0;
}

int outbox_init(struct outbox *o, unsigned lanes, uint64_t lane_bytes, struct latch *latch,
                struct error *err)
{
    memset(o, 0, sizeof *o);
    o->lane_bytes = lane_bytes;
    o->latch = latch;
    for (; o->lane_count < lanes; o->lane_count++) {
        int result = lane_init(&o->lanes[o->lane_count], err);

        if (result < 0) {
            outbox_destroy(o);
            return result;
        }
    }
    return 0;
}

void outbox_destroy(struct outbox *o)
{
    for (unsigned i = 0; i < o->lane_count; i++) {
        close(o->lanes[i].wake_fd);
        free(o->lanes[i].entries);
    }
    o->lane_count = 0;
}

static struct outbox_entry *entry_at(const struct outbox_lane *lane, uint64_t position)
{
    return &lane->entries[position % OUTBOX_ENTRIES];
}

static bool lane_has_room(const struct outbox *o, const struct outbox_lane *lane)
{
    return lane->posted - lane->reaped < OUTBOX_ENTRIES - OUTBOX_FENCES &&
           lane->posted_bytes - lane->sent_bytes < o->lane_bytes;
}

static struct outbox_lane *roomiest_lane(struct outbox *o)
{
    struct outbox_lane *best = &o->lanes[0];

    for (unsigned i = 1; i < o->lane_count; i++) {
        struct outbox_lane *lane = &o->lanes[i];

        if (!lane_has_room(o, lane))
            continue;
        if (!lane_has_room(o, best) ||
            lane->posted_bytes - lane->sent_bytes < best->posted_bytes - best->sent_bytes)
            best = lane;
    }
    return lane_has_room(o, best) ? best : NULL;
}

int outbox_check(const struct regions *regions, const struct transfer *t, struct error *err)
{
    if (t->kind == TRANSFER_PLACE && !regions_contain(regions, t->bytes, t->length))
        return error_set(err, EINVAL,
                         "%zu bytes for region %u offset %llu are not inside an open region of "
                         "this end",
                         t->length, t->region, (unsigned long long)t->offset);
    return 0;
}

/* Counted before it is visible, so that stats never see more completed than posted. */
static void lane_put(struct outbox *o, struct outbox_lane *lane, const struct transfer *t,
                     void *tag)
{
    *entry_at(lane, lane->posted) = (struct outbox_entry){
        .kind = (enum outbox_kind)t->kind,
        .region = t->region,
        .offset = t->offset,
        .bytes = t->bytes,
        .length = t->length,
        .cookie = t->cookie,
        .tag = tag,
    };
    lane->posted_bytes += t->length;
    o->posted_bytes += t->length;
    o->posted_transfers++;
    lane->posted++;
}

/* Gives one lane the first few of n transfers that it has room for, up to a quantum. */
static unsigned lane_post(struct outbox *o, struct outbox_lane *lane,
                          const struct transfer *transfers, void *const *tags, unsigned n)
{
    uint64_t before = lane->posted_bytes;
    unsigned taken = 0;

    while (taken < n && lane->posted_bytes - before < OUTBOX_QUANTUM && lane_has_room(o, lane)) {
        lane_put(o, lane, &transfers[taken], tags ? tags[taken] : NULL);
        taken++;
    }
    return taken;
}

unsigned outbox_put(struct outbox *o, const struct transfer *transfers, void *const *tags,
                    unsigned n)
{
    unsigned taken = 0;
    struct outbox_lane *lane;

    while (taken < n && (lane = roomiest_lane(o)))
        taken += lane_post(o, lane, transfers + taken, tags ? tags + taken : NULL, n - taken);
    o->starved = taken < n;
    return taken;
}

int outbox_post(struct outbox *o, const struct regions *regions, const struct transfer *transfers,
                unsigned n, struct error *err)
{
    int result = latch_check(o->latch, err);

    for (unsigned i = 0; !result && i < n; i++)
        result = outbox_check(regions, &transfers[i], err);
    return result < 0 ? result : (int)outbox_put(o, transfers, NULL, n);
}

void outbox_starve(struct outbox *o)
{
    o->starved = true;
}

void outbox_nudge(struct outbox *o)
{
    o->nudged = true;
    latch_wake(o->latch);
}

int outbox_fence(struct outbox *o, uint64_t id, struct error *err)
{
    int result = latch_check(o->latch, err);

    if (result < 0)
        return result;
    if (o->fences_posted - o->fences_reaped == OUTBOX_FENCES)
        return error_set(err, EAGAIN, "fence %llu: %d fences are outstanding already; reap first",
                         (unsigned long long)id, OUTBOX_FENCES);
    if (o->fences_posted && id <= o->fences[(o->fences_posted - 1) % OUTBOX_FENCES])
        return error_set(err, EINVAL, "fence %llu is not greater than the one before it",
                         (unsigned long long)id);
    o->fences[o->fences_posted % OUTBOX_FENCES] = id;
    o->fences_posted++;
    for (unsigned i = 0; i < o->lane_count; i++) {
        struct outbox_lane *lane = &o->lanes[i];

        *entry_at(lane, lane->posted) = (struct outbox_entry){.kind = OUTBOX_FENCE, .offset = id};
        lane->posted++;
    }
    outbox_kick(o);
    return 0;
}

/* Collects a lane's completions; *retired is set when entries became free, silent ones included. */
static unsigned lane_collect(struct outbox_lane *lane, struct completion *completions, unsigned max,
                             bool *retired)
{
    uint64_t sent = lane->sent;
    unsigned n = 0;

    for (; lane->reaped < sent; lane->reaped++) {
        const struct outbox_entry *entry = entry_at(lane, lane->reaped);

        *retired = true;
        if (!entry->cookie)
            continue;
        if (n == max)
            break;
        completions[n++] =
            (struct completion){.kind = COMPLETION_TRANSFER, .cookie = entry->cookie};
    }
    return n;
}

static uint64_t fences_acknowledged(const struct outbox *o)
{
    uint64_t least = UINT64_MAX;

    for (unsigned i = 0; i < o->lane_count; i++)
        if (o->lanes[i].acknowledged < least)
            least = o->lanes[i].acknowledged;
    return least;
}

/* Fences are counted before transfers are collected: what a counted fence covers is then among
 * them, and comes out first. */
static unsigned collect(struct outbox *o, struct completion *completions, unsigned max,
                        bool *retired)
{
    uint64_t fences = fences_acknowledged(o);
    unsigned n = 0;

    for (unsigned i = 0; i < o->lane_count; i++)
        n += lane_collect(&o->lanes[i], completions + n, max - n, retired);
    for (; n < max && o->fences_reaped < fences; o->fences_reaped++)
        completions[n++] = (struct completion){
            .kind = COMPLETION_FENCE, .fence = o->fences[o->fences_reaped % OUTBOX_FENCES]};
    return n;
}

static bool something_to_collect(void *context)
{
    struct outbox *o = context;

    for (unsigned i = 0; i < o->lane_count; i++)
        if (o->lanes[i].reaped < o->lanes[i].sent)
            return true;
    return o->nudged || o->fences_reaped < fences_acknowledged(o);
}

int outbox_reap(struct outbox *o, struct completion *completions, unsigned max, int timeout_ms,
                struct error *err)
{
    uint64_t deadline = clock_now() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * NS_PER_MS;

    outbox_kick(o);
    for (;;) {
        int left = timeout_ms < 0 ? -1 : clock_ms_until(deadline);
        int result = latch_check(o->latch, err);
        bool retired = false;
        unsigned n;

        if (result < 0)
            return result;
        n = collect(o, completions, max, &retired);
        if (n || left == 0 || !max)
            return (int)n;
        if (atomic_exchange(&o->nudged, false))
            retired = true;
        if (o->starved && retired)
            return 0;
        latch_wait(o->latch, something_to_collect, o, left);
    }
}

void outbox_wake(struct outbox_lane *lane)
{
    uint64_t one = 1;

    /* An eventfd write fails only when its counter is about to overflow: then it is readable
     * anyway. */
    if (atomic_load(&lane->asleep) && atomic_exchange(&lane->asleep, 0) &&
        write(lane->wake_fd, &one, sizeof one) < 0)
        return;
}

void outbox_kick(struct outbox *o)
{
    for (unsigned i = 0; i < o->lane_count; i++)
        if (latch_ended(o->latch) || o->lanes[i].posted != o->lanes[i].seen)
            outbox_wake(&o->lanes[i]);
}

unsigned outbox_pending(const struct outbox_lane *lane)
{
    return (unsigned)(lane->posted - lane->sent);
}

const struct outbox_entry *outbox_entry(const struct outbox_lane *lane, unsigned i)
{
    return entry_at(lane, lane->sent + i);
}

void outbox_sent(struct outbox *o, struct outbox_lane *lane, unsigned n)
{
    uint64_t bytes = 0, fences = 0;

    for (unsigned i = 0; i < n; i++) {
        const struct outbox_entry *entry = outbox_entry(lane, i);

        bytes += entry->length;
        fences += entry->kind == OUTBOX_FENCE;
    }
    lane->fences_sent += fences;
    lane->sent_bytes += bytes;
    lane->sent_transfers += n - fences;
    lane->sent += n;
    latch_wake(o->latch);
}

int outbox_acknowledge(struct outbox *o, struct outbox_lane *lane, uint64_t id, struct error *err)
{
    if (!outbox_awaits(lane) || o->fences[lane->acknowledged % OUTBOX_FENCES] != id)
        return error_set(err, EPROTO, "the peer acknowledged fence %llu out of order",
                         (unsigned long long)id);
    lane->acknowledged++;
    latch_wake(o->latch);
    return 0;
}

bool outbox_awaits(const struct outbox_lane *lane)
{
    return lane->acknowledged < lane->fences_sent;
}

bool outbox_fall_asleep(struct outbox_lane *lane, unsigned known)
{
    lane->seen = lane->sent + known;
    lane->asleep = 1;
    if (lane->posted == lane->seen)
        return true;
    lane->asleep = 0;
    return false;
}

void outbox_wake_up(struct outbox_lane *lane)
{
    uint64_t count;

    lane->asleep = 0;
    while (read(lane->wake_fd, &count, sizeof count) > 0)
        ;
}

void outbox_stats(const struct outbox *o, struct transport_stats *stats)
{
    uint64_t completed = 0, fences = o->fences_reaped;

    for (unsigned i = 0; i < o->lane_count; i++)
        completed += o->lanes[i].sent_transfers;
    stats->completed = completed;
    stats->posted_bytes = o->posted_bytes;
    stats->outstanding = o->posted_transfers - completed + o->fences_posted - fences;
}
