/* Rounds until the policy says that the guest can be switched over, and it could be. */
#include "migrate/source.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "transport/base/clock.h"

struct policy_input source_policy_input(struct migration *m)
{
    return (struct policy_input){
        .rounds = m->history,
        .round_count = m->history_count,
        .elapsed_ns = clock_now() - m->accepted_at,
        .bandwidth = policy_bandwidth(m->history, m->history_count),
        .state_bytes = m->state_bytes,
        .fixed_ns = m->fixed_ns + DOWNTIME_ROUND_TRIPS * channel_round_trip(m->channel),
        .pause_delay_ns = m->pause_delay_ns,
    };
}

int source_collect(struct migration *m, struct error *err)
{
    int result = m->tracker->ops->collect(m->tracker, &m->dirty_pages, err);

    m->collected_at = clock_now();
    return result;
}

static void remember_round(struct migration *m, const struct policy_round *round)
{
    if (m->history_count == SOURCE_HISTORY) {
        memmove(m->history, m->history + 1, sizeof(*m->history) * (SOURCE_HISTORY - 1));
        m->history_count--;
    }
    m->history[m->history_count++] = *round;
    m->best_bandwidth = policy_best_bandwidth(m->best_bandwidth, round);
}

int source_finish_round(struct migration *m, uint64_t started, uint64_t wire_before, bool paused,
                        struct error *err)
{
    struct measurement *total = &m->measurement;
    const struct round_counts *counts = rounds_counts(m->rounds);
    struct round_measurement *round = measurement_add_round(total);
    uint64_t ended = clock_now(), collected_before = m->collected_at;
    struct transport_stats stats;

    if (!round)
        return error_set(err, ENOMEM, "no memory to note a round");
    int result = 0;

    if (!paused) { /* lanes end with COMMIT; what is written meanwhile is the collect's to find */
        cpu_watch_look(&m->cpu);
        result = source_collect(m, err);
    }
    transport_stats(m->transport, &stats);
    *round = (struct round_measurement){
        .pages = counts->pages,
        .zero_pages = counts->zero_pages,
        .skipped_pages = counts->skipped_pages,
        .bytes = counts->bytes,
        .wire_bytes = stats.wire_bytes - wire_before,
        .start_ns = started - m->accepted_at,
        .ns = ended - started,
        .dirty_pages_after = paused ? 0 : m->dirty_pages,
        .guest_pages_written = source_pages_written(m),
        .throttle = m->throttle,
        .paused = paused,
    };
    total->raw_pages += counts->bytes / GUEST_PAGE_SIZE;
    total->zero_pages += counts->zero_pages;
    total->guest_bytes += counts->bytes;
    total->wire_bytes = stats.wire_bytes;
    total->round_trip_ns = channel_round_trip(m->channel);
    if (paused || result)
        return result;
    remember_round(m, &(struct policy_round){
                          .pages = counts->pages,
                          .bytes = counts->bytes,
                          .ns = ended - started,
                          .dirty_pages_after = m->dirty_pages,
                          .dirty_ns = m->collected_at - collected_before,
                          .throttle = m->throttle,
                      });
    return 0;
}

static int announce_round(struct migration *m, uint64_t pages, struct error *err)
{
    struct round_message message = {
        .number = (uint32_t)m->measurement.round_count,
        .pages = pages,
    };
    uint8_t body[16];

    pthread_mutex_lock(&m->lock);
    m->status.round = message.number;
    m->status.round_bytes = pages * GUEST_PAGE_SIZE;
    m->status.round_bytes_done = 0;
    pthread_mutex_unlock(&m->lock);
    return channel_send(m->channel, MESSAGE_ROUND, body, round_encode(&message, body), err);
}

static uint64_t wire_bytes(struct migration *m)
{
    struct transport_stats stats;

    transport_stats(m->transport, &stats);
    return stats.wire_bytes;
}

/* Both ends note durably, before anything is paused, that the guest may change hands from here on:
 * so no fsync is left for the downtime. The answer comes while the first round is under way. */
static int prepare(struct migration *m, struct error *err)
{
    int result = channel_send(m->channel, MESSAGE_PREPARE, NULL, 0, err);

    return result ? result : record_make_durable(m->record, err);
}

static int await_ready(struct migration *m, struct error *err)
{
    struct message reply;
    int result = source_receive(m, MESSAGE_READY, SOURCE_REPLY_MS, true, &reply, err);

    if (!result)
        message_free(&reply);
    return result;
}

static int first_round(struct migration *m, struct error *err)
{
    uint64_t started = clock_now(), wire = wire_bytes(m);
    int result = announce_round(m, m->measurement.present_bytes / GUEST_PAGE_SIZE, err);

    m->measurement.setup_ns = started - m->accepted_at;
    if (!result)
        result = rounds_send_present(m->rounds, err);
    if (!result)
        result = await_ready(m, err);
    return result ? result : source_finish_round(m, started, wire, false, err);
}

static int another_round(struct migration *m, struct error *err)
{
    uint64_t started = clock_now(), wire = wire_bytes(m);
    struct policy_pace pace =
        policy_pace(m->best_bandwidth, channel_round_trip(m->channel), m->options.lanes);
    int result = announce_round(m, m->dirty_pages, err);

    if (!result)
        result = rounds_send_dirty(m->rounds, &pace, err);
    return result ? result : source_finish_round(m, started, wire, false, err);
}

static int set_throttle(struct migration *m, unsigned percent, struct error *err)
{
    if (percent == m->throttle)
        return 0;
    int result = m->guest->ops->throttle(m->guest, percent, err);
    if (!result)
        m->throttle = percent;
    return result;
}

static void show_decision(struct migration *m, const struct policy_decision *decision,
                          const struct policy_input *input)
{
    const struct policy_round *last = &m->history[m->history_count - 1];

    m->measurement.rounds[m->measurement.round_count - 1].predicted_downtime_ns =
        decision->predicted_downtime_ns;
    pthread_mutex_lock(&m->lock);
    m->status.bandwidth = input->bandwidth;
    m->status.dirty_rate = last->dirty_ns
                               ? (uint64_t)((double)last->dirty_pages_after * GUEST_PAGE_SIZE *
                                            1e9 / (double)last->dirty_ns)
                               : 0;
    m->status.predicted_downtime_ns = decision->predicted_downtime_ns;
    m->status.throttle = decision->throttle;
    pthread_mutex_unlock(&m->lock);
    source_refine(m, input, decision->action == POLICY_SWITCH_OVER);
    source_say(m, "%s", decision->why);
}

int source_precopy(struct migration *m, struct error *err)
{
    source_set_phase(m, MIGRATION_PRECOPY);
    int result = prepare(m, err);

    if (!result)
        result = first_round(m, err);
    while (!result) {
        struct policy_input input = source_policy_input(m);
        struct policy_decision decision = policy_decide(&input, &m->options.limits);
        show_decision(m, &decision, &input);
        if (decision.action == POLICY_GIVE_UP)
            return error_set(err, ETIME, "%s", decision.why);
        result = set_throttle(m, decision.throttle, err);
        if (!result && decision.action == POLICY_SWITCH_OVER) {
            result = source_switch_over(m, &decision, err);
            if (result <= 0)
                return result;
        }
        if (result >= 0)
            result = another_round(m, err);
    }
    return result;
}
