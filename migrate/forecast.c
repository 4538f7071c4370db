/* What the migration will take, said at its start and after each round, and what it teaches for
 * those to come.
 *
 * The policy itself reckons with nothing that was learnt: a migration that is repeated goes the
 * same way each time, and no bad record makes one give up. */
#include "migrate/source.h"

#include "migrate/rehearsal.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

enum {
    ASSUMED_ROUND_US = 1000,    /* of a round besides pages and round trips: collect, last fence */
    ROUND_TRIPS = 2,            /* in a round: its announcement, its fence */
    LESSON_MS = 10 * 60 * 1000, /* a rehearsal that is older tells of another hour's load */
};

static const double assumed_spread = 0.1; /* of a bandwidth that one round has shown */

/* Of the rehearsal, if it tried what is about to be done. */
static const struct rehearsal_path *rehearsed_path(const struct migration *m)
{
    const struct rehearsal *r = m->options.rehearsal;

    return r ? rehearsal_path(r, &m->options) : NULL;
}

/* `end_ns`: when the source is free, from the accepted command on; UINT64_MAX: never. */
static void set_eta(struct migration *m, uint64_t end_ns, uint64_t elapsed_ns)
{
    pthread_mutex_lock(&m->lock);
    m->status.eta_ns = end_ns == UINT64_MAX  ? UINT64_MAX
                       : end_ns > elapsed_ns ? end_ns - elapsed_ns
                                             : NS_PER_MS;
    m->eta_at = m->accepted_at + elapsed_ns;
    pthread_mutex_unlock(&m->lock);
}

static uint64_t end_of(const struct prediction *p)
{
    return p->converges ? p->total_ns.expected : UINT64_MAX;
}

static void keep(struct migration *m, const struct prediction *p, enum prediction_basis basis)
{
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
    set_eta(m, end_of(&p), clock_now() - m->accepted_at);
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
        .lanes = m->options.lanes,
    };
}

/* Before the switchover without the guest's curve, which takes long to make and tells of rounds
 * that will not be. */
void source_refine(struct migration *m, const struct policy_input *now, bool last)
{
    const struct rehearsal_path *rehearsed = rehearsed_path(m);
    const struct dirty_profile *guest = rehearsed && !last ? &m->options.rehearsal->guest : NULL;
    struct path_profile path = rehearsed ? rehearsed->profile : measured_path(m, now);
    struct prediction p;
    uint64_t end_ns;

    if (m->measurement.prediction.basis) {
        end_ns = prediction_end(guest, &path, &m->costs, &m->options.limits,
                                m->options.max_bandwidth, now);
    } else {
        prediction_refine(guest, &path, &m->costs, &m->options.limits, m->options.max_bandwidth,
                          now, &p);
        keep(m, &p, PREDICTION_FIRST_ROUND);
        end_ns = end_of(&p);
    }
    m->measurement.rounds[m->measurement.round_count - 1].predicted_total_ns =
        end_ns == UINT64_MAX ? 0 : end_ns;
    set_eta(m, end_ns, now->elapsed_ns);
}

void source_learn(struct migration *m)
{
    const struct rehearsal *r = m->options.rehearsal;
    const struct rehearsal_path *path = rehearsed_path(m);
    struct error err = {0};

    if (path && m->accepted_at > r->made_at + LESSON_MS * NS_PER_MS)
        path = NULL;
    if (m->asked_again) /* the downtime is that of asking */
        return;
    if (costs_learn(&m->costs_key, &m->measurement, path ? &path->profile : NULL, &err))
        log_line(LOG_INFO, "what this migration cost is not kept for predictions: %s", err.text);
}
