/* What the migration will take, said at its start and after each round, and what it teaches for
 * those to come.
 *
 * The policy itself reckons with nothing that was learnt: a migration that is repeated goes the
 * same way each time, and no bad record makes one give up. */
#include "migrate/source.h"

#include <string.h>

#include "migrate/rehearsal.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

enum {
    ASSUMED_ROUND_US = 1000, /* of a round besides pages and round trips: collect, last fence */
    ROUND_TRIPS = 2,         /* in a round: its announcement, its fence */
};

static const double assumed_spread = 0.1; /* of a bandwidth that one round has shown */

/* Of the rehearsal, if it tried what is about to be done. */
static const struct rehearsal_path *rehearsed_path(const struct migration *m)
{
    const struct rehearsal *r = m->options.rehearsal;

    if (!r || r->lanes != m->options.lanes || strcmp(r->host, m->options.destination.host) != 0)
        return NULL;
    return rehearsal_path(r, m->options.destination.scheme);
}

/* Under the lock, from `elapsed_ns` on: until the source is free. */
static void set_eta(struct migration *m, const struct prediction *p, uint64_t elapsed_ns)
{
    uint64_t end = p->total_ns.expected;

    m->status.eta_ns = !p->converges ? UINT64_MAX : end > elapsed_ns ? end - elapsed_ns : NS_PER_MS;
    m->eta_at = m->accepted_at + elapsed_ns;
}

static void keep(struct migration *m, const struct prediction *p, enum prediction_basis basis)
{
    if (m->measurement.prediction.basis)
        return;
    m->measurement.prediction.basis = basis;
    m->measurement.prediction.is = *p;
}

void source_recall(struct migration *m, const struct guest_description *guest)
{
    m->costs_key = costs_key_of(guest, &m->options);
    costs_recall(&m->costs_key, &m->costs);
}

void source_forecast(struct migration *m)
{
    const struct rehearsal *r = m->options.rehearsal;
    const struct rehearsal_path *path = rehearsed_path(m);
    struct prediction p;

    if (!path)
        return;
    prediction_make(&r->guest, &path->profile, &m->costs, &m->options.limits,
                    m->options.max_bandwidth, &p);
    keep(m, &p, PREDICTION_REHEARSED);
    m->measurement.prediction.age_ns =
        m->accepted_at > r->made_at ? m->accepted_at - r->made_at : 0;
    pthread_mutex_lock(&m->lock);
    set_eta(m, &p, clock_now() - m->accepted_at);
    pthread_mutex_unlock(&m->lock);
}

static struct path_profile measured_path(const struct migration *m, const struct policy_input *now)
{
    uint64_t round_trip = channel_round_trip(m->channel);

    return (struct path_profile){
        .bandwidth = now->bandwidth,
        .bandwidth_spread = assumed_spread,
        .setup_ns = m->measurement.setup_ns,
        .round_ns = ROUND_TRIPS * round_trip + ASSUMED_ROUND_US * NS_PER_US,
        .round_trip_ns = round_trip,
        .guest_share = 1,
    };
}

void source_refine(struct migration *m, const struct policy_input *now)
{
    const struct rehearsal_path *rehearsed = rehearsed_path(m);
    struct path_profile path = rehearsed ? rehearsed->profile : measured_path(m, now);
    struct round_measurement *round = &m->measurement.rounds[m->measurement.round_count - 1];
    struct prediction p;

    prediction_refine(rehearsed ? &m->options.rehearsal->guest : NULL, &path, &m->costs,
                      &m->options.limits, now, &p);
    round->predicted_total_ns = p.converges ? p.total_ns.expected : 0;
    keep(m, &p, PREDICTION_FIRST_ROUND);
    pthread_mutex_lock(&m->lock);
    set_eta(m, &p, now->elapsed_ns);
    pthread_mutex_unlock(&m->lock);
}

void source_learn(struct migration *m)
{
    const struct rehearsal_path *path = rehearsed_path(m);
    struct error err = {0};

    if (costs_learn(&m->costs_key, &m->measurement, path ? &path->profile : NULL, &err))
        log_line(LOG_INFO, "what this migration cost is not kept for predictions: %s", err.text);
}
