/* KVM's dirty rings, one per vCPU: a page is entered when it is first written after being armed
 * (where KVM interprets the guest, at every store). Entries are harvested by collect, by a vCPU
 * whose ring is filling, and by a reaper; KVM_RESET_DIRTY_RINGS then arms the pages again.
 *
 * A harvested page is a mark in the bitmap. It is published only by collect, and only after the
 * reset: a page handed out before would miss the writes in between.
 *
 * KVM stops a vCPU whose ring is full when it enters the guest. A KVM that interprets may stay
 * there for long and overrun the ring, and then entries are lost. That shows: a ring can be filled
 * whole only by an overrun, since KVM stops short of it. The tracker then fails for good, rather
 * than the guest being corrupted. So it does when a reset armed fewer pages than were harvested. */
#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "migrate/guest/lab/dirty_bitmap.h"
#include "migrate/guest/lab/vm.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"
#include "transport/base/thread.h"

enum { REAPER_PERIOD_MS = 2 };

struct dirty_ring {
    struct tracker tracker;
    struct lab *lab;
    bool started;
    bool overrun; /* writes may be lost, for good; guarded by lab.tracker_lock, as is quit */
    bool quit;
    pthread_t reaper;
    struct dirty_bitmap maps[LAB_MAX_REGIONS];
};

static struct dirty_ring *of(struct tracker *t)
{
    return (struct dirty_ring *)t;
}

/* Takes the filled entries of one ring; tracker NULL: drops them. tracker_lock held. */
static void harvest_vcpu(struct dirty_ring *ring, const struct machine *m,
                         struct machine_vcpu *vcpu)
{
    for (;;) {
        struct kvm_dirty_gfn *entry = &vcpu->ring[vcpu->ring_harvested & (m->ring_entries - 1)];
        uint32_t flags = __atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE);

        if (!(flags & KVM_DIRTY_GFN_F_DIRTY) || flags & KVM_DIRTY_GFN_F_RESET)
            return;
        if (vcpu->ring_harvested - vcpu->ring_reset >= m->ring_entries - 1) {
            if (ring)
                ring->overrun = true;
            return;
        }
        if (ring && entry->slot < m->slot_count)
            dirty_bitmap_mark(&ring->maps[entry->slot], entry->offset, 1);
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        vcpu->ring_harvested++;
    }
}

static void harvest(struct dirty_ring *ring, struct machine *m)
{
    for (unsigned i = 0; i < m->vcpus; i++)
        if (m->vcpu[i].ring)
            harvest_vcpu(ring, m, &m->vcpu[i]);
}

/* Entries that were harvested and whose pages are not armed again. */
static uint32_t unarmed(const struct machine *m)
{
    uint32_t count = 0;

    for (unsigned i = 0; i < m->vcpus; i++)
        count += m->vcpu[i].ring_harvested - m->vcpu[i].ring_reset;
    return count;
}

/* A signal that is pending makes KVM give up in the middle, and from Linux 6.16 on only the count
 * that it returns tells; of the pages it has counted, the last ones may then be left unarmed. So
 * signals wait, the vCPUs' kicks above all. */
static int reset_uninterrupted(int vm)
{
    sigset_t all, before;
    int ret;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    do
        ret = ioctl(vm, KVM_RESET_DIRTY_RINGS, 0);
    while (ret < 0 && errno == EINTR);
    ret = ret < 0 ? -errno : ret;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return ret;
}

/* *whole: every page was armed. Where not, something interrupted KVM that no thread can hold off
 * (SIGSTOP, a debugger), or an entry was overrun after it was harvested. tracker_lock held. */
static int reset(struct machine *m, bool *whole, struct error *err)
{
    uint32_t wanted = unarmed(m);
    int ret = reset_uninterrupted(m->vm);

    if (ret < 0)
        return error_set_errno(err, -ret, "re-arming the pages in KVM's dirty rings failed");
    *whole = (uint32_t)ret >= wanted;
    for (unsigned i = 0; i < m->vcpus; i++)
        __atomic_store_n(&m->vcpu[i].ring_reset, m->vcpu[i].ring_harvested, __ATOMIC_RELAXED);
    return 0;
}

/* Without a ring there is nothing to lose: pages are armed when tracking starts. */
static int harvest_and_reset(struct dirty_ring *ring, struct machine *m, struct error *err)
{
    bool whole = true;
    int ret = 0;

    harvest(ring, m);
    if (!ring || !ring->overrun)
        ret = reset(m, &whole, err);
    if (ring && !whole)
        ring->overrun = true;
    if (ring && ring->overrun)
        return error_set(
            err, EOVERFLOW,
            "KVM overran a dirty ring of %u entries or was stopped while it re-armed pages, so "
            "writes may have been lost; use --tracker dirty-log",
            m->ring_entries);
    return ret;
}

/* True when the ring holds a quarter of its entries or more. Any thread. */
static bool is_filling(const struct machine *m, const struct machine_vcpu *vcpu)
{
    uint32_t at = __atomic_load_n(&vcpu->ring_reset, __ATOMIC_RELAXED) + m->ring_entries / 4;

    return __atomic_load_n(&vcpu->ring[at & (m->ring_entries - 1)].flags, __ATOMIC_RELAXED) != 0;
}

void dirty_ring_relieve(struct lab *lab, unsigned vcpu, bool full)
{
    struct error err = {0};
    bool overrun;

    if (!full && !is_filling(lab->machine, &lab->machine->vcpu[vcpu]))
        return;
    pthread_mutex_lock(&lab->tracker_lock);
    harvest_and_reset(lab->ring, lab->machine, &err);
    overrun = lab->ring && lab->ring->overrun;
    pthread_mutex_unlock(&lab->tracker_lock);
    if (overrun && full) /* it stays full until the tracker is closed: no use in spinning */
        clock_sleep_until(clock_now() + REAPER_PERIOD_MS * NS_PER_MS);
}

static bool any_filling(const struct machine *m)
{
    for (unsigned i = 0; i < m->vcpus; i++)
        if (is_filling(m, &m->vcpu[i]))
            return true;
    return false;
}

/* Empties rings that fill while their vCPUs stay in KVM. */
static void *reaper_main(void *argument)
{
    struct dirty_ring *ring = argument;
    struct lab *lab = ring->lab;
    struct error err = {0};
    bool quit = false;

    thread_set_name("tracker", -1);
    while (!quit) {
        clock_sleep_until(clock_now() + REAPER_PERIOD_MS * NS_PER_MS);
        pthread_mutex_lock(&lab->tracker_lock);
        quit = ring->quit;
        if (!quit && !ring->overrun && any_filling(lab->machine) &&
            harvest_and_reset(ring, lab->machine, &err) < 0)
            log_line(LOG_ERROR, "guest %s: %s", lab->name, err.text);
        pthread_mutex_unlock(&lab->tracker_lock);
    }
    return NULL;
}

/* What an earlier tracking left in the rings is of no interest. */
static int attach(struct dirty_ring *ring, struct error *err)
{
    struct lab *lab = ring->lab;
    int ret;

    pthread_mutex_lock(&lab->tracker_lock);
    ret = harvest_and_reset(NULL, lab->machine, err);
    ring->overrun = ring->quit = false;
    lab->ring = ring;
    pthread_mutex_unlock(&lab->tracker_lock);
    return ret;
}

static void detach(struct dirty_ring *ring)
{
    pthread_mutex_lock(&ring->lab->tracker_lock);
    ring->quit = true;
    ring->lab->ring = NULL;
    pthread_mutex_unlock(&ring->lab->tracker_lock);
}

static int ring_start(struct tracker *t, struct error *err)
{
    struct dirty_ring *ring = of(t);
    struct lab *lab = ring->lab;
    int ret;

    for (unsigned i = 0; i < lab->region_count; i++)
        dirty_bitmap_clear(&ring->maps[i]);
    if ((ret = attach(ring, err)) < 0 ||
        (ret = lab_start_thread(&ring->reaper, reaper_main, ring, err)) < 0)
        goto detach_ring;
    ret = machine_log_writes(lab->machine, true, err);
    ring->started = true;
    return ret;
detach_ring:
    detach(ring);
    return ret;
}

static int ring_collect(struct tracker *t, uint64_t *pages, struct error *err)
{
    struct dirty_ring *ring = of(t);
    struct lab *lab = ring->lab;
    int ret;

    *pages = 0;
    pthread_mutex_lock(&lab->tracker_lock);
    ret = harvest_and_reset(ring, lab->machine, err);
    if (ret == 0)
        for (unsigned i = 0; i < lab->region_count; i++)
            *pages += dirty_bitmap_publish(&ring->maps[i]);
    pthread_mutex_unlock(&lab->tracker_lock);
    return ret;
}

static bool ring_next(struct tracker *t, uint32_t region, uint64_t *page)
{
    return region < of(t)->lab->region_count && dirty_bitmap_next(&of(t)->maps[region], page);
}

static int check_chunk(const struct dirty_ring *ring, uint32_t region, uint64_t chunk,
                       struct error *err)
{
    if (region < ring->lab->region_count && chunk < dirty_bitmap_chunks(&ring->maps[region]))
        return 0;
    return error_set(err, EINVAL, "chunk %llu of region %u is not in the guest's RAM",
                     (unsigned long long)chunk, region);
}

/* The pages were armed again by collect. */
static int ring_take(struct tracker *t, uint32_t region, uint64_t chunk,
                     uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    int ret = check_chunk(of(t), region, chunk, err);

    if (ret == 0)
        dirty_bitmap_take(&of(t)->maps[region], chunk, bits);
    return ret;
}

/* Harvests without a reset: the pages stay unarmed, their marks wait for the next collect. */
static int ring_peek(struct tracker *t, uint32_t region, uint64_t chunk,
                     uint64_t bits[TRACKER_WORDS_PER_CHUNK], struct error *err)
{
    struct dirty_ring *ring = of(t);
    int ret = check_chunk(ring, region, chunk, err);

    if (ret < 0)
        return ret;
    pthread_mutex_lock(&ring->lab->tracker_lock);
    harvest(ring, ring->lab->machine);
    pthread_mutex_unlock(&ring->lab->tracker_lock);
    dirty_bitmap_peek(&ring->maps[region], chunk, bits);
    return 0;
}

static void ring_mark(struct tracker *t, uint32_t region, uint64_t page, uint64_t count)
{
    if (region < of(t)->lab->region_count)
        dirty_bitmap_mark(&of(t)->maps[region], page, count);
}

static void ring_stop(struct tracker *t)
{
    struct dirty_ring *ring = of(t);
    struct error err = {0};

    if (!ring->started)
        return;
    detach(ring);
    pthread_join(ring->reaper, NULL);
    if (machine_log_writes(ring->lab->machine, false, &err) < 0)
        log_line(LOG_WARNING, "%s", err.text);
    ring->started = false;
}

static void ring_close(struct tracker *t)
{
    struct dirty_ring *ring = of(t);
    struct lab *lab = ring->lab;
    struct error err = {0};

    ring_stop(t);
    pthread_mutex_lock(&lab->tracker_lock);
    lab->tracker = NULL;
    pthread_mutex_unlock(&lab->tracker_lock);
    /* An overrun ring stays full for ever, and the vCPU with it: the guest goes on without it. */
    if (ring->overrun && lab_change_tracking(lab, MACHINE_DIRTY_LOG, &err) < 0)
        log_line(LOG_ERROR, "%s", err.text);
    for (unsigned i = 0; i < LAB_MAX_REGIONS; i++)
        dirty_bitmap_free(&ring->maps[i]);
    free(ring);
}

static const struct tracker_ops dirty_ring_ops = {
    .name = "dirty-ring",
    .start = ring_start,
    .collect = ring_collect,
    .next = ring_next,
    .take = ring_take,
    .peek = ring_peek,
    .mark = ring_mark,
    .stop = ring_stop,
    .close = ring_close,
};

int dirty_ring_new(struct lab *lab, struct tracker **out, struct error *err)
{
    struct dirty_ring *ring = calloc(1, sizeof *ring);
    int ret = 0;

    if (!ring)
        return error_set(err, ENOMEM, "out of memory for a tracker");
    ring->tracker.ops = &dirty_ring_ops;
    ring->lab = lab;
    for (unsigned i = 0; i < lab->region_count && ret == 0; i++)
        ret = dirty_bitmap_init(&ring->maps[i], lab->regions[i].size, err);
    if (ret < 0) {
        ring_close(&ring->tracker);
        return ret;
    }
    *out = &ring->tracker;
    return 0;
}
