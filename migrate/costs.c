#include "migrate/costs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migrate/costs_file.h"
#include "migrate/numbers.h"
#include "transport/base/clock.h"

enum {
    SETTLED_BYTES = 16 << 20, /* of a first round whose rate is not that of its latencies */
    MAX_ZERO_PERCENT = 10,    /* of its pages: sifting them out takes time that no byte shows */
    TRUSTED_SAMPLES = 3,      /* fewer say nothing of how much they vary */
    NOTHING_LEFT_NS = 1,      /* of a downtime: all of it went to pages and round trips */
    MAX_SAMPLES = COSTS_KINDS * COSTS_SAMPLES,
};

/* Before anything was learnt. */
static const struct {
    const char *guest_kind;
    unsigned downtime_ms, downtime_spread_ms, finish_ms;
} estimates[] = {
    {"lab", 8, 4, 10},
    {"synthetic", 8, 4, 10},
    {"qemu", 30, 15, 40},
    {NULL, 20, 15, 20},
};

struct costs_key costs_key_of(const struct guest_description *guest,
                              const struct migration_options *options)
{
    struct costs_key key = {
        .vcpus = guest->vcpus,
        .operation = options->operation,
        .registration = options->registration,
    };

    snprintf(key.guest_kind, sizeof(key.guest_kind), "%s", guest->kind);
    snprintf(key.accel, sizeof(key.accel), "%s", guest->accel);
    snprintf(key.transport, sizeof(key.transport), "%s", options->destination.scheme);
    snprintf(key.host, sizeof(key.host), "%s", options->destination.host);
    return key;
}

typedef bool alike_fn(const struct costs_key *a, const struct costs_key *b);

static bool same_guest(const struct costs_key *a, const struct costs_key *b)
{
    return strcmp(a->guest_kind, b->guest_kind) == 0 && strcmp(a->accel, b->accel) == 0 &&
           a->vcpus == b->vcpus;
}

static bool same_but_host(const struct costs_key *a, const struct costs_key *b)
{
    return same_guest(a, b) && strcmp(a->transport, b->transport) == 0 &&
           a->operation == b->operation && a->registration == b->registration;
}

static bool same_kind(const struct costs_key *a, const struct costs_key *b)
{
    return same_but_host(a, b) && strcmp(a->host, b->host) == 0;
}

static struct cost_kind *find_kind(struct cost_book *book, const struct costs_key *key)
{
    for (unsigned i = 0; i < book->count; i++)
        if (same_kind(&book->kinds[i].key, key))
            return &book->kinds[i];
    return NULL;
}

static void estimate(const struct costs_key *key, struct fixed_costs *out)
{
    size_t i = 0;

    while (estimates[i].guest_kind && strcmp(estimates[i].guest_kind, key->guest_kind))
        i++;
    *out = (struct fixed_costs){
        .downtime_ns = estimates[i].downtime_ms * NS_PER_MS,
        .downtime_spread_ns = estimates[i].downtime_spread_ms * NS_PER_MS,
        .finish_ns = estimates[i].finish_ms * NS_PER_MS,
        .state_bytes = policy_first_state_bytes(key->vcpus),
        .bandwidth_ratio = 1,
    };
}

/* The values of one member of the samples (those of them that are not 0), sorted. */
static unsigned sorted(const struct cost_sample *samples, unsigned count, size_t member,
                       double *out)
{
    unsigned n = 0;

    for (unsigned i = 0; i < count; i++) {
        uint64_t value = *(const uint64_t *)((const char *)&samples[i] + member);
        if (value)
            out[n++] = (double)value;
    }
    sort_doubles(out, n);
    return n;
}

static uint64_t median(const struct cost_sample *samples, unsigned count, size_t member,
                       double *room)
{
    unsigned n = sorted(samples, count, member, room);

    return to_u64(quantile(room, n, 0.5));
}

static void summarize(const struct cost_sample *samples, unsigned count, double *room,
                      struct fixed_costs *out)
{
    unsigned ratios =
        sorted(samples, count, offsetof(struct cost_sample, bandwidth_millionths), room);

    out->samples = count;
    out->bandwidth_ratio = ratios >= TRUSTED_SAMPLES ? quantile(room, ratios, 0.5) / 1e6 : 1;
    out->setup_ns = count >= TRUSTED_SAMPLES
                        ? median(samples, count, offsetof(struct cost_sample, setup_ns), room)
                        : 0;
    out->finish_ns = median(samples, count, offsetof(struct cost_sample, finish_ns), room);
    unsigned n = sorted(samples, count, offsetof(struct cost_sample, downtime_ns), room);
    out->downtime_ns = to_u64(quantile(room, n, 0.5));
    out->downtime_spread_ns = to_u64((quantile(room, n, 0.95) - quantile(room, n, 0.05)) / 2);
}

/* What disturbs a move only adds: of few, a quick one is the best guess, over another transport or
 * to another host, too. Of ten or more not the very quickest, whose pages may have been taken for
 * slower than they were. */
static void take_quick(const struct cost_sample *samples, unsigned count, double *room,
                       struct fixed_costs *out)
{
    unsigned n = sorted(samples, count, offsetof(struct cost_sample, downtime_ns), room), none = 0;

    while (none < n && room[none] <= NOTHING_LEFT_NS)
        none++;
    if (none == n)
        return;
    out->downtime_ns = to_u64(room[none + (n - none) / 10]);
    if (out->downtime_spread_ns < out->downtime_ns / 4)
        out->downtime_spread_ns = out->downtime_ns / 4;
}

static unsigned gather(const struct cost_book *book, const struct costs_key *key, alike_fn *alike,
                       struct cost_sample *out)
{
    unsigned count = 0;

    for (unsigned i = 0; i < book->count; i++) {
        const struct cost_kind *kind = &book->kinds[i];
        if (!alike(&kind->key, key))
            continue;
        memcpy(out + count, kind->samples, kind->count * sizeof(*out));
        count += kind->count;
    }
    return count;
}

void costs_recall(const struct costs_key *key, struct fixed_costs *out)
{
    struct room {
        struct cost_book book;
        struct cost_sample samples[MAX_SAMPLES];
        double values[MAX_SAMPLES];
    } *room = malloc(sizeof(*room));

    estimate(key, out);
    if (!room)
        return;
    costs_file_read(&room->book);
    bool known = find_kind(&room->book, key);
    unsigned count = gather(&room->book, key, known ? same_kind : same_but_host, room->samples);
    if (count)
        summarize(room->samples, count, room->values, out);
    if (!known) { /* the way to this host is another */
        out->setup_ns = 0;
        out->bandwidth_ratio = 1;
    }
    if (count < TRUSTED_SAMPLES) {
        count = gather(&room->book, key, same_guest, room->samples);
        take_quick(room->samples, count, room->values, out);
    }
    free(room);
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static const struct round_measurement *first_round(const struct measurement *m)
{
    return m->round_count > 1 && !m->rounds[0].paused ? &m->rounds[0] : NULL;
}

/* bytes/s, but for `once_ns` of it; 0: no round was large enough to tell. */
static double first_bandwidth(const struct measurement *m, uint64_t once_ns)
{
    const struct round_measurement *round = first_round(m);

    return round && round->bytes >= SETTLED_BYTES && round->ns > once_ns
               ? (double)round->bytes * 1e9 / (double)(round->ns - once_ns)
               : 0;
}

/* bytes/s over the rounds after it, as the last one's pages go: they are there already, where the
 * first has to touch memory. 0: not enough of them to tell. */
static double later_bandwidth(const struct measurement *m)
{
    double bytes = 0, ns = 0;

    for (size_t i = 1; i < m->round_count; i++) {
        if (m->rounds[i].paused)
            continue;
        bytes += (double)m->rounds[i].bytes;
        ns += (double)m->rounds[i].ns;
    }
    return bytes >= SETTLED_BYTES && ns > 0 ? bytes * 1e9 / ns : 0;
}

/* A bandwidth that was capped, or a round full of zero pages, is not what the path can do. */
static uint64_t bandwidth_millionths(const struct measurement *m,
                                     const struct path_profile *rehearsed)
{
    const struct round_measurement *round = first_round(m);
    uint64_t once_ns = rehearsed ? rehearsed->first_ns + rehearsed->round_ns : 0;
    double ratio = rehearsed ? first_bandwidth(m, once_ns) / (double)rehearsed->bandwidth : 0;

    if (m->max_bandwidth || !round || round->zero_pages > round->pages / 100 * MAX_ZERO_PERCENT)
        return 0;
    return ratio > 0.01 && ratio < 100 ? (uint64_t)(ratio * 1e6) : 0;
}

/* Not the fixed costs': they are the path's, which a prediction knows. */
static uint64_t round_trips_ns(const struct measurement *m)
{
    return DOWNTIME_ROUND_TRIPS * m->round_trip_ns;
}

/* What the last round's pages took: at most the final copy, and what was not needed to find them
 * and to fence them is theirs. */
static uint64_t pages_ns(const struct measurement *m)
{
    double bandwidth = later_bandwidth(m);

    if (bandwidth <= 0)
        bandwidth = first_bandwidth(m, 0);
    if (bandwidth <= 0)
        bandwidth = (double)m->goodput;
    double ns = bandwidth > 0 ? (double)m->last_bytes * 1e9 / bandwidth : 0;
    return ns < (double)m->downtime.final_copy ? (uint64_t)ns : m->downtime.final_copy;
}

static struct cost_sample sample_of(const struct measurement *m,
                                    const struct path_profile *rehearsed)
{
    return (struct cost_sample){
        .setup_ns = m->setup_ns,
        .downtime_ns = less(m->downtime_ns, m->downtime.verify + pages_ns(m) + round_trips_ns(m)),
        .finish_ns = less(m->total_ns, m->pause_start_ns + m->downtime_ns),
        .bandwidth_millionths = bandwidth_millionths(m, rehearsed),
    };
}

/* As the newest of the book's kinds, the oldest making room. */
static struct cost_kind *make_newest(struct cost_book *book, const struct costs_key *key)
{
    struct cost_kind kind = {.key = *key}, *old = find_kind(book, key);

    if (old)
        kind = *old;
    else if (book->count == COSTS_KINDS)
        old = book->kinds;
    if (old) {
        size_t behind = (size_t)(&book->kinds[book->count] - (old + 1));
        memmove(old, old + 1, behind * sizeof(*old));
        book->count--;
    }
    book->kinds[book->count] = kind;
    return &book->kinds[book->count++];
}

static void add_sample(struct cost_kind *kind, const struct cost_sample *sample)
{
    if (kind->count == COSTS_SAMPLES)
        memmove(kind->samples, kind->samples + 1, --kind->count * sizeof(*sample));
    kind->samples[kind->count++] = *sample;
}

static bool teaches(const struct measurement *m)
{
    return strcmp(m->result, "completed") == 0 && !m->filter[0] && m->downtime_ns &&
           m->pause_start_ns;
}

int costs_learn(const struct costs_key *key, const struct measurement *m,
                const struct path_profile *rehearsed, struct error *err)
{
    struct cost_sample sample = sample_of(m, rehearsed);
    struct cost_book *book;

    if (!sample.downtime_ns)
        sample.downtime_ns = NOTHING_LEFT_NS;
    if (!teaches(m))
        return 0;
    int folder = costs_file_lock(err);
    if (folder < 0)
        return folder;
    book = malloc(sizeof(*book));
    int result = book ? 0 : error_set(err, ENOMEM, "no memory for the costs of past migrations");
    if (!result) {
        costs_file_read(book);
        add_sample(make_newest(book, key), &sample);
        result = costs_file_write(folder, book, err);
    }
    free(book);
    close(folder);
    return result;
}
