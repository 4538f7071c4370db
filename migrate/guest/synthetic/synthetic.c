/* The synthetic guest: its RAM, its description, and the table of what can be done with it. */
#include "migrate/guest/synthetic/synthetic.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/guest/host_memory.h"
#include "migrate/guest/pagemap.h"
#include "migrate/guest/synthetic/internal.h"
#include "migrate/guest/userfaultfd.h"
#include "transport/base/clock.h"
#include "transport/base/thread.h"

#define PAUSE_LIMIT (2 * NS_PER_S)

static struct synthetic *of(struct guest *g)
{
    return (struct synthetic *)g;
}

static uint64_t table_stride(const struct workload *w, unsigned vcpus)
{
    uint64_t entries = (synthetic_hot_pages(w) + vcpus - 1) / vcpus;

    return (entries * sizeof(uint32_t) + GUEST_PAGE_SIZE - 1) / GUEST_PAGE_SIZE * GUEST_PAGE_SIZE;
}

/* What a workload will have touched in the end, at most. */
static uint64_t touched_bytes(const struct workload *w, unsigned vcpus)
{
    uint64_t hot_end = w->hot_at + w->hot;
    uint64_t beyond = hot_end <= w->touch ? 0 : w->hot_at >= w->touch ? w->hot : hot_end - w->touch;

    return table_stride(w, vcpus) * vcpus + w->touch + beyond;
}

/* All that keeps such a guest from being made here, sizes first: the rest computes with them. */
static void check_config(uint64_t memory, unsigned vcpus, const struct workload *w,
                         struct reasons *reasons)
{
    struct error err = {0};

    if (vcpus < 1 || vcpus > GUEST_MAX_VCPUS)
        reasons_add(reasons, "the guest has %u vCPUs; 1 to %d are possible", vcpus,
                    GUEST_MAX_VCPUS);
    if (memory == 0 || memory % GUEST_PAGE_SIZE)
        reasons_add(reasons, "the guest has %" PRIu64 " bytes of memory; give a multiple of %d",
                    memory, GUEST_PAGE_SIZE);
    if (workload_check(w, UINT64_MAX, &err) < 0) {
        reasons_add(reasons, "%s", err.text);
        return;
    }
    if (vcpus < 1 || vcpus > GUEST_MAX_VCPUS)
        return;
    uint64_t table = table_stride(w, vcpus) * vcpus, available = host_memory_available();
    if (table > memory || workload_check(w, memory - table, &err) < 0) {
        reasons_add(
            reasons, "%s",
            err.code ? err.text
                     : "the guest's memory does not hold the table of its hot set; give it more");
        return;
    }
    if (touched_bytes(w, vcpus) > available)
        reasons_add(reasons,
                    "the guest touches %" PRIu64 " bytes of memory, this host has %" PRIu64
                    " available; free some, or make touch and hot smaller",
                    touched_bytes(w, vcpus), available);
}

static void check_regions(const struct guest_description *d, struct reasons *reasons)
{
    const struct guest_region *r = &d->regions[0];

    if (d->region_count != 1)
        reasons_add(reasons, "a synthetic guest has 1 region of memory, this one has %u",
                    d->region_count);
    else if (r->id != 0 || r->size != d->memory_bytes || strcmp(r->name, "ram") != 0)
        reasons_add(reasons,
                    "region %u has %" PRIu64
                    " bytes; a synthetic guest has only region 0, \"ram\", with all of "
                    "its %" PRIu64 " bytes",
                    r->id, r->size, d->memory_bytes);
}

static void synthetic_check(struct guest_host *host, const struct guest_description *d,
                            struct reasons *reasons)
{
    (void)host;
    struct error err = {0};
    struct workload w = {0};

    if (strncmp(d->kind, synthetic_guest_kind.kind, sizeof(d->kind)) != 0)
        reasons_add(reasons, "the guest is of kind %.*s, not synthetic", (int)sizeof(d->kind),
                    d->kind);
    check_regions(d, reasons);
    if (synthetic_platform_decode(d->platform, d->platform_size, &w, &err) < 0)
        reasons_add(reasons, "%s", err.text);
    else
        check_config(d->memory_bytes, d->vcpus, &w, reasons);
}

static int map_memory(struct synthetic *s, uint64_t size, struct error *err)
{
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED)
        return error_set_errno(err, errno,
                               "cannot map %" PRIu64 " bytes of guest memory; see ulimit -v and "
                               "vm.overcommit_memory",
                               size);
    /* A page touched later must not bring 511 neighbours with it: memory and dirty pages would
     * follow. */
    madvise(base, size, MADV_NOHUGEPAGE);
    s->region = (struct guest_region){.name = "ram", .size = size, .host = base};
    return 0;
}

/* Lays out the table and the hot set, and deals out the hot pages. */
static void lay_out(struct synthetic *s)
{
    uint8_t *base = s->region.host;

    s->table_stride = table_stride(&s->workload, s->vcpu_count);
    s->hot = base + s->table_stride * s->vcpu_count + s->workload.hot_at;
    for (unsigned i = 0; i < s->vcpu_count; i++) {
        struct vcpu *v = &s->vcpus[i];
        v->guest = s;
        v->number = i;
        v->sequences = (uint32_t *)(base + s->table_stride * i);
        v->share = workload_pattern_share(synthetic_hot_pages(&s->workload), i, s->vcpu_count);
    }
}

/* Huge pages where all of it is touched anyway: quicker, and the kernel splits one at its first
 * tracked write. */
static void touch(struct synthetic *s)
{
    const struct workload *w = &s->workload;
    uint8_t *area = (uint8_t *)s->region.host + s->table_stride * s->vcpu_count;

    if (w->touch == 0)
        return;
    madvise(area, w->touch, MADV_HUGEPAGE);
    workload_fill(area, 0, w->touch, w->content, w->seed);
    madvise(area, w->touch, MADV_NOHUGEPAGE);
}

static void make_lock(struct synthetic *s)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void join_vcpus(struct synthetic *s)
{
    pthread_mutex_lock(&s->lock);
    s->ending = true;
    synthetic_changed(s);
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < s->vcpus_started; i++)
        pthread_join(s->vcpus[i].thread, NULL);
}

/* They park at once: the guest is on hold from the start. */
static int start_vcpus(struct synthetic *s, struct error *err)
{
    int code = 0;

    while (code == 0 && s->vcpus_started < s->vcpu_count) {
        struct vcpu *v = &s->vcpus[s->vcpus_started];
        code = thread_start(&v->thread, vcpu_run, v);
        s->vcpus_started += code == 0;
    }
    return code ? error_set_errno(err, -code, "cannot start vCPU %u as a thread", s->vcpus_started)
                : 0;
}

static void free_guest(struct synthetic *s)
{
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s->vcpus);
    free(s);
}

static struct synthetic *allocate(const struct synthetic_config *config)
{
    struct synthetic *s = calloc(1, sizeof(*s));

    if (!s)
        return NULL;
    s->vcpus = aligned_alloc(_Alignof(struct vcpu), config->vcpus * sizeof(struct vcpu));
    if (!s->vcpus) {
        free(s);
        return NULL;
    }
    memset(s->vcpus, 0, config->vcpus * sizeof(struct vcpu));
    make_lock(s);
    snprintf(s->name, sizeof(s->name), "%.*s", GUEST_NAME_SIZE - 1, config->name);
    s->workload = config->workload;
    s->vcpu_count = config->vcpus;
    s->hold = true;
    synthetic_changed(s);
    return s;
}

static int make(const struct synthetic_config *config, bool incoming, struct guest **out,
                struct error *err);

int synthetic_probe(struct error *err)
{
    return userfaultfd_probe(err);
}

int synthetic_guest_new(const struct synthetic_config *config, struct guest **out,
                        struct error *err)
{
    struct reasons reasons = {0};

    check_config(config->memory_bytes, config->vcpus, &config->workload, &reasons);
    if (reasons.count) {
        error_set(err, EINVAL, "cannot make guest %.*s: %s", GUEST_NAME_SIZE - 1, config->name,
                  reasons.text ? reasons.text : "out of memory");
        reasons_free(&reasons);
        return -EINVAL;
    }
    return make(config, false, out, err);
}

static int synthetic_incoming(struct guest_host *host, const struct guest_description *d,
                              struct guest **out, struct error *err)
{
    struct synthetic_config config = {.memory_bytes = d->memory_bytes, .vcpus = d->vcpus};
    struct reasons reasons = {0};
    int rc;

    synthetic_check(host, d, &reasons);
    if (reasons.count) {
        error_set(err, EINVAL, "cannot make the incoming guest: %s",
                  reasons.text ? reasons.text : "out of memory");
        reasons_free(&reasons);
        return -EINVAL;
    }
    rc = synthetic_platform_decode(d->platform, d->platform_size, &config.workload, err);
    if (rc < 0)
        return rc;
    snprintf(config.name, sizeof(config.name), "%.*s", GUEST_NAME_SIZE - 1, d->name);
    return make(&config, true, out, err);
}

static int synthetic_describe(struct guest *g, struct guest_description *out, struct error *err)
{
    const struct synthetic *s = of(g);

    *out = (struct guest_description){.accel = "none",
                                      .vcpus = s->vcpu_count,
                                      .memory_bytes = s->region.size,
                                      .region_count = 1,
                                      .regions = {s->region},
                                      .platform_size = SYNTHETIC_PLATFORM_SIZE};
    snprintf(out->kind, sizeof(out->kind), "%s", synthetic_guest_kind.kind);
    snprintf(out->name, sizeof(out->name), "%s", s->name);
    out->regions[0].host = NULL;
    out->platform = malloc(SYNTHETIC_PLATFORM_SIZE);
    if (!out->platform)
        return error_set_errno(err, ENOMEM, "cannot describe guest %s", s->name);
    synthetic_platform_encode(&s->workload, out->platform);
    return 0;
}

static unsigned synthetic_regions(struct guest *g, const struct guest_region **out)
{
    *out = &of(g)->region;
    return 1;
}

static int synthetic_present(struct guest *g, uint32_t region, struct extent_list *out,
                             struct error *err)
{
    const struct synthetic *s = of(g);

    if (region != 0)
        return error_set(err, EINVAL, "guest %s has no region %u", s->name, region);
    return pagemap_present(s->region.host, s->region.size, out, err);
}

static int synthetic_tracker(struct guest *g, const char *name, struct tracker **out,
                             struct error *err)
{
    if (name && strcmp(name, "userfaultfd") != 0)
        return error_set(err, EINVAL, "a synthetic guest has no tracker '%s'; it has userfaultfd",
                         name);
    return userfaultfd_tracker_new(&of(g)->region, 1, out, err);
}

/* Under the lock. False: some vCPU still runs after PAUSE_LIMIT. */
static bool wait_parked(struct synthetic *s)
{
    uint64_t deadline = clock_now() + PAUSE_LIMIT;
    struct timespec at = {.tv_sec = (time_t)(deadline / NS_PER_S),
                          .tv_nsec = (long)(deadline % NS_PER_S)};

    while (s->parked < s->vcpu_count) {
        if (pthread_cond_timedwait(&s->changed, &s->lock, &at) == ETIMEDOUT)
            return s->parked == s->vcpu_count;
    }
    return true;
}

static int synthetic_pause(struct guest *g, struct error *err)
{
    struct synthetic *s = of(g);
    unsigned parked;

    pthread_mutex_lock(&s->lock);
    bool held_before = s->hold;
    s->hold = true;
    synthetic_changed(s);
    bool done = wait_parked(s);
    parked = s->parked;
    if (!done) {
        s->hold = held_before;
        synthetic_changed(s);
    }
    pthread_mutex_unlock(&s->lock);
    if (done)
        return 0;
    return error_set(
        err, ETIMEDOUT,
        "only %u of %u vCPUs of guest %s paused within 2 s; is this host overloaded? It runs "
        "on, try again",
        parked, s->vcpu_count, s->name);
}

static int synthetic_resume(struct guest *g, struct error *err)
{
    struct synthetic *s = of(g);

    (void)err;
    pthread_mutex_lock(&s->lock);
    if (s->started_at == 0)
        s->started_at = s->last_seen = clock_now() + (uint64_t)s->clock_delta;
    s->ran = true;
    s->resumed_at = s->hold ? 0 : s->resumed_at;
    s->hold = false;
    synthetic_changed(s);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static uint64_t synthetic_resumed_at(struct guest *g)
{
    struct synthetic *s = of(g);

    pthread_mutex_lock(&s->lock);
    uint64_t at = s->resumed_at;
    pthread_mutex_unlock(&s->lock);
    return at;
}

static bool synthetic_paused(struct guest *g)
{
    struct synthetic *s = of(g);

    pthread_mutex_lock(&s->lock);
    bool paused = s->hold && s->parked == s->vcpu_count;
    pthread_mutex_unlock(&s->lock);
    return paused;
}

static int synthetic_throttle(struct guest *g, unsigned percent, struct error *err)
{
    if (percent > 99)
        return error_set(err, EINVAL, "cannot throttle by %u percent; 0 to 99 are possible",
                         percent);
    atomic_store_explicit(&of(g)->throttle, percent, memory_order_relaxed);
    return 0;
}

static void synthetic_workload(struct guest *g, struct guest_workload *out)
{
    struct synthetic *s = of(g);

    pthread_mutex_lock(&s->lock);
    *out = s->account;
    if (s->hold)
        out->rate = 0;
    pthread_mutex_unlock(&s->lock);
    out->pages_written = synthetic_written(s);
}

static int synthetic_request_check(struct guest *g, struct error *err)
{
    struct synthetic *s = of(g);

    (void)err;
    pthread_mutex_lock(&s->lock);
    s->check_wanted = true;
    synthetic_changed(s);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static void synthetic_console(struct guest *g, char *out, size_t size)
{
    struct synthetic *s = of(g);

    pthread_mutex_lock(&s->lock);
    snprintf(out, size, "%s", s->console);
    pthread_mutex_unlock(&s->lock);
}

static void synthetic_destroy(struct guest *g)
{
    struct synthetic *s = of(g);

    join_vcpus(s);
    munmap(s->region.host, s->region.size);
    free_guest(s);
}

static const struct guest_ops synthetic_ops = {
    .kind = "synthetic",
    .describe = synthetic_describe,
    .regions = synthetic_regions,
    .present = synthetic_present,
    .tracker = synthetic_tracker,
    .pause = synthetic_pause,
    .resume = synthetic_resume,
    .paused = synthetic_paused,
    .resumed_at = synthetic_resumed_at,
    .save = synthetic_save,
    .load = synthetic_load,
    .throttle = synthetic_throttle,
    .workload = synthetic_workload,
    .request_check = synthetic_request_check,
    .console = synthetic_console,
    .destroy = synthetic_destroy,
};

const struct guest_kind synthetic_guest_kind = {
    .kind = "synthetic",
    .check = synthetic_check,
    .incoming = synthetic_incoming,
};

/* The configuration was checked. An incoming guest's content comes with its pages. Returns with all
 * vCPUs parked. */
static int make(const struct synthetic_config *config, bool incoming, struct guest **out,
                struct error *err)
{
    struct synthetic *s = allocate(config);
    int rc;

    if (!s)
        return error_set_errno(err, ENOMEM, "cannot make guest %s", config->name);
    s->guest.ops = &synthetic_ops;
    rc = map_memory(s, config->memory_bytes, err);
    if (rc < 0)
        goto free_guest;
    lay_out(s);
    if (!incoming)
        touch(s);
    rc = start_vcpus(s, err);
    if (rc < 0 || (rc = synthetic_pause(&s->guest, err)) < 0)
        goto join_vcpus;
    *out = &s->guest;
    return 0;

join_vcpus:
    join_vcpus(s);
    munmap(s->region.host, s->region.size);
free_guest:
    free_guest(s);
    return rc;
}
