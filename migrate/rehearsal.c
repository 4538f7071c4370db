#include "migrate/rehearsal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "migrate/costs.h"
#include "migrate/exchange.h"
#include "migrate/guest/tracker.h"
#include "migrate/inquiry.h"
#include "migrate/numbers.h"
#include "migrate/page_sample.h"
#include "migrate/preflight.h"
#include "migrate/trial.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

enum {
    REACH_MS = 5000,
    PATH_MS = 45000, /* all that is asked for one path: the destination may start a hypervisor */
    LANES_MS = 5000,
    PIECE_BYTES = 4 << 20,
    LEAST_BYTES = 4 << 20,
    ENOUGH_MS = 1500,
    LIMIT_MS = 5000,
    AGAIN_MS = 500,
    FENCES = 5,
    TELLING_PAGES = 64, /* fewer say nothing of how much the guest gets done */
};

static const char *const schemes[] = {"tcp", "rdma"};

/* A rehearsal under way. */
struct rehearsing {
    struct guest *guest;
    struct migration_options options; /* its scheme is that of the path being tried */
    int cancel_fd;
    struct rehearsal *out;
    struct guest_description description;
    struct tracker *tracker;
    struct page_sample sample;
    uint64_t tracking_ns;            /* what it took to prepare the guest and begin to track it */
    uint64_t rearmed_at, stopped_at; /* of the trial under way */
    uint64_t pages_meanwhile;
};

static int guest_interrupted(void *rehearsing, struct error *err)
{
    struct rehearsing *r = rehearsing;

    struct pollfd cancel = {.fd = r->cancel_fd, .events = POLLIN};

    if (guest_ended(r->guest))
        return error_set(err, ESRCH, "the guest has ended by itself");
    return poll(&cancel, 1, 0) > 0 ? error_set(err, ECANCELED, "the prediction was cancelled") : 0;
}

/* Any question will do: what is asked is whether a destination answers, before seconds are spent on
 * watching the guest. */
static int reach(const struct address *destination, int cancel_fd, struct error *err)
{
    uint8_t token[TRANSPORT_TOKEN_SIZE];
    enum ownership_state state;

    if (getrandom(token, sizeof(token), 0) != sizeof(token))
        return error_set_errno(err, errno, "making a session token failed");
    int result = exchange_ask(destination, token, REACH_MS, cancel_fd, &state, err);
    if (result && result != -ECANCELED)
        error_prefix(err, "the destination cannot be reached");
    return result;
}

static int start_tracking(struct rehearsing *r, struct error *err)
{
    const struct guest_ops *ops = r->guest->ops;
    const char *name = r->options.tracker[0] ? r->options.tracker : NULL;
    uint64_t began = clock_now();
    int result = ops->prepare ? ops->prepare(r->guest, err) : 0;

    if (!result)
        result = ops->tracker(r->guest, name, &r->tracker, err);
    if (!result)
        result = r->tracker->ops->start(r->tracker, err);
    r->tracking_ns = clock_now() - began;
    return result;
}

/* Whether or not start_tracking came to its end. */
static void stop_tracking(struct rehearsing *r)
{
    if (r->guest->ops->restore)
        r->guest->ops->restore(r->guest);
    if (r->tracker)
        r->tracker->ops->close(r->tracker);
    r->tracker = NULL;
}

static int before_sending(void *rehearsing, struct error *err)
{
    struct rehearsing *r = rehearsing;
    int result = guest_interrupted(r, err);

    if (!result)
        result = dirty_profile_rearm(r->guest, r->tracker, NULL, err);
    r->rearmed_at = clock_now();
    return result;
}

static int after_sending(void *rehearsing, struct error *err)
{
    struct rehearsing *r = rehearsing;
    int result = r->tracker->ops->collect(r->tracker, &r->pages_meanwhile, err);

    r->stopped_at = clock_now();
    return result;
}

/* The share of its undisturbed time after which the guest had written as much as it did while pages
 * were sent. A guest that is idle, or has written all it writes in a fraction of that time, does
 * not show it. */
static double guest_share(const struct dirty_profile *guest, uint64_t pages, uint64_t ns)
{
    double all = dirty_profile_pages(guest, (double)ns), low = 0.05, high = 1;

    if (all < TELLING_PAGES || (double)pages >= all ||
        dirty_profile_pages(guest, (double)ns / 2) > all * 0.9)
        return 1;
    while (high - low > 0.001) {
        double middle = (low + high) / 2;

        if (dirty_profile_pages(guest, (double)ns * middle) < (double)pages)
            low = middle;
        else
            high = middle;
    }
    return high;
}

static int run_trial(struct rehearsing *r, const struct inquiry *q,
                     const struct found_message *found, struct path_profile *path,
                     struct error *err)
{
    struct transport_params params = preflight_params(&r->options);
    struct trial_result trial;
    struct address peer;
    struct trial_config config = {
        .peer = &peer,
        .params = &params,
        .filter = r->options.filter,
        .max_bandwidth = r->options.max_bandwidth,
        .memory = r->sample.memory,
        .size = found->room < r->sample.size ? found->room : r->sample.size,
        .piece_bytes = PIECE_BYTES,
        .least_bytes = LEAST_BYTES,
        .enough_ns = ENOUGH_MS * NS_PER_MS,
        .limit_ns = LIMIT_MS * NS_PER_MS,
        .again_ns = AGAIN_MS * NS_PER_MS,
        .fences = FENCES,
        .before = before_sending,
        .after = after_sending,
        .interrupted = guest_interrupted,
        .context = r,
    };

    params.epoch = 1;
    memcpy(params.token, q->token, sizeof(params.token));
    int result = inquiry_lane_address(q, r->options.destination.scheme, found, &peer, err);
    if (!result)
        result = trial_run(&config, LANES_MS, &trial, err);
    if (result)
        return result;
    uint64_t asked_ns = path->setup_ns;
    path->setup_ns += trial.connect_ns + r->tracking_ns;
    path->tracked_ns = trial.connect_ns;
    path_profile_weigh(&trial, r->out->guest.collect_ns, path);
    log_line(
        LOG_DEBUG,
        "rehearsal over %s: questions %.1f ms, tracking %.1f ms, lanes %.1f ms, %u pieces with "
        "%.1f MiB in %.1f ms, the first in %.1f ms",
        r->options.destination.scheme, ns_to_ms(asked_ns), ns_to_ms(r->tracking_ns),
        ns_to_ms(trial.connect_ns), trial.piece_count, (double)trial.bytes / (1 << 20),
        ns_to_ms(trial.ns), ns_to_ms(trial.pieces[0].at_ns));
    path->zero_bandwidth = r->sample.zero_bandwidth;
    path->guest_share =
        guest_share(&r->out->guest, r->pages_meanwhile, r->stopped_at - r->rearmed_at);
    return 0;
}

/* What keeps lanes from working at this end, as a migration finds it before it says HELLO. */
static int look_here(struct rehearsing *r, const struct inquiry *q, uint64_t present_bytes,
                     struct error *err)
{
    struct transport_params params = preflight_params(&r->options);
    struct transport_findings here;
    struct address peer;
    int result = address_of_peer(q->socket, r->options.destination.scheme, &peer, err);

    if (result)
        return result;
    transport_check(peer.scheme, &params, &peer, TRANSPORT_SOURCE, present_bytes, &here);
    return preflight_verdict(&here, err);
}

/* The refusals as one line. */
static int refused(const struct reasons *reasons, struct error *err)
{
    int result = error_set(err, EPERM, "it would be refused: %.700s",
                           reasons->text ? reasons->text : "without a reason");

    for (char *c = err->text; *c; c++)
        if (*c == '\n')
            *c = c[1] ? ';' : ' ';
    return result;
}

/* The questions that a migration begins with, in its order; their time is its set-up. */
static int ask(struct rehearsing *r, struct inquiry *q, struct found_message *found,
               struct path_profile *path, struct error *err)
{
    uint64_t present_bytes = dirty_profile_present(&r->out->guest) * GUEST_PAGE_SIZE;
    uint64_t chunks = (r->sample.size + GUEST_CHUNK_SIZE - 1) / GUEST_CHUNK_SIZE;
    struct probe_message wanted = {.room = chunks * GUEST_CHUNK_SIZE,
                                   .backing = r->description.regions[0].backing};
    uint64_t began = clock_now();
    int result = look_here(r, q, present_bytes, err);

    if (!result)
        result = inquiry_greet(q, &r->options, present_bytes, err);
    if (result > 0)
        result = inquiry_present(q, r->guest, err);
    path->setup_ns += clock_now() - began;
    if (result <= 0)
        return result ? result : refused(q->refused, err);
    result = inquiry_round_trip(q, &path->round_trip_ns, err);
    if (result)
        return result;
    began = clock_now();
    result = inquiry_probe(q, &wanted, found, err);
    path->setup_ns += clock_now() - began;
    if (!result)
        result = preflight_verdict(&found->findings, err);
    if (result && found->findings.count)
        error_prefix(err, "destination");
    if (!result && !found->lane_port)
        result =
            error_set(err, EPROTO, "the destination gives no place to try lanes and no reason");
    return result;
}

static int try_path(struct rehearsing *r, struct path_profile *path, struct error *err)
{
    struct reasons reasons = {0};
    struct found_message found = {0};
    struct inquiry q;
    uint64_t began = clock_now();

    path->lanes = r->options.lanes;
    int result = inquiry_open(&r->options.destination, PATH_MS, r->cancel_fd, &reasons, &q, err);

    if (result)
        return result;
    path->setup_ns = clock_now() - began;
    result = ask(r, &q, &found, path, err);
    if (!result)
        result = run_trial(r, &q, &found, path, err);
    inquiry_close(&q);
    reasons_free(&reasons);
    return result;
}

static void rehearse_path(struct rehearsing *r, const char *scheme)
{
    struct rehearsal_path *path = &r->out->paths[r->out->path_count++];
    struct error err = {0};

    snprintf(path->scheme, sizeof(path->scheme), "%s", scheme);
    snprintf(r->options.destination.scheme, sizeof(r->options.destination.scheme), "%s", scheme);
    struct costs_key key = costs_key_of(&r->description, &r->options);
    costs_recall(&key, &path->costs);
    path->usable = try_path(r, &path->profile, &err) == 0;
    snprintf(path->error, sizeof(path->error), "%s", err.text);
}

static int watch(struct rehearsing *r, uint64_t ns, struct error *err)
{
    return dirty_profile_sample(r->guest, r->tracker, ns, guest_interrupted, r, &r->out->guest,
                                err);
}

static int begin(struct rehearsing *r, uint64_t sample_ns, struct error *err)
{
    int result = start_tracking(r, err);

    if (!result)
        result = watch(r, sample_ns ? sample_ns : REHEARSAL_SAMPLE_MS * NS_PER_MS, err);
    return result ? result : page_sample_take(r->guest, REHEARSAL_BYTES, &r->sample, err);
}

static uint64_t longest_first_round_ns(const struct rehearsing *r)
{
    double longest = 0, most = REHEARSAL_LONGEST_MS * (double)NS_PER_MS;
    double bytes = (double)dirty_profile_present(&r->out->guest) * GUEST_PAGE_SIZE;

    for (unsigned i = 0; i < r->out->path_count; i++) {
        const struct rehearsal_path *path = &r->out->paths[i];
        if (path->usable)
            longest = larger(longest, bytes * 1e9 / (double)path->profile.bandwidth);
    }
    return to_u64(smaller(longest, most));
}

/* What is dirty at the end of a first round that takes longer than the guest was watched could only
 * be guessed. */
static int watch_on(struct rehearsing *r, struct error *err)
{
    uint64_t watched_ns = REHEARSAL_SAMPLE_MS * NS_PER_MS, ns = longest_first_round_ns(r);

    if (ns <= watched_ns || dirty_profile_pages(&r->out->guest, (double)watched_ns) < TELLING_PAGES)
        return 0;
    return watch(r, ns, err);
}

static void foretell(struct rehearsing *r)
{
    for (unsigned i = 0; i < r->out->path_count; i++) {
        struct rehearsal_path *path = &r->out->paths[i];
        if (path->usable)
            prediction_make(&r->out->guest, &path->profile, &path->costs, &r->options.limits,
                            r->options.max_bandwidth, &path->prediction);
    }
}

static int try_paths(struct rehearsing *r, const char *asked, bool only, struct error *err)
{
    rehearse_path(r, asked);
    int result = guest_interrupted(r, err);
    for (unsigned i = 0; i < sizeof(schemes) / sizeof(*schemes) && !result && !only; i++) {
        if (strcmp(schemes[i], asked))
            rehearse_path(r, schemes[i]);
        result = guest_interrupted(r, err);
    }
    return result;
}

int migration_rehearse(struct guest *guest, const struct migration_options *options,
                       const struct rehearsal_wish *wish, int cancel_fd, struct rehearsal *out,
                       struct error *err)
{
    struct rehearsing r = {.guest = guest, .options = *options, .cancel_fd = cancel_fd, .out = out};
    int result = reach(&options->destination, cancel_fd, err);

    *out = (struct rehearsal){.options = *options};
    out->options.rehearsal = NULL;
    if (!result)
        result = guest->ops->describe(guest, &r.description, err);
    if (result)
        return result;
    result = begin(&r, wish->sample_ns, err);
    if (!result)
        result = try_paths(&r, options->destination.scheme, wish->only, err);
    if (!result && !wish->sample_ns)
        result = watch_on(&r, err);
    if (!result)
        foretell(&r);
    page_sample_free(&r.sample);
    stop_tracking(&r);
    guest_description_free(&r.description);
    out->made_at = clock_now();
    return result;
}

static bool tries(const struct migration_options *a, const struct migration_options *b)
{
    return strcmp(a->destination.host, b->destination.host) == 0 && a->lanes == b->lanes &&
           a->max_bandwidth == b->max_bandwidth && strcmp(a->filter, b->filter) == 0 &&
           strcmp(a->tracker, b->tracker) == 0 && a->operation == b->operation &&
           a->registration == b->registration && a->pin_limit == b->pin_limit && a->dscp == b->dscp;
}

const struct rehearsal_path *rehearsal_path(const struct rehearsal *r,
                                            const struct migration_options *options)
{
    for (unsigned i = 0; tries(&r->options, options) && i < r->path_count; i++)
        if (r->paths[i].usable && strcmp(r->paths[i].scheme, options->destination.scheme) == 0)
            return &r->paths[i];
    return NULL;
}
