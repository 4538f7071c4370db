/* The switchover, up to PREPARED: the only time the guest stands still. */
#include "migrate/source.h"

#include <errno.h>
#include <stdlib.h>

#include "migrate/verify.h"
#include "transport/base/clock.h"
#include "transport/base/wire.h"

static void note_work(struct migration *m)
{
    struct guest_work *work = &m->measurement.guest_work;

    work->known = work->pages_at_start != MEASUREMENT_UNKNOWN;
    work->pages_at_pause = source_pages_written(m);
    work->ns = m->paused_at - m->tracking_at;
}

static int pause_guest(struct migration *m, struct error *err)
{
    m->paused_at = clock_now();
    m->measurement.pause_start_ns = m->paused_at - m->accepted_at;
    m->guest_paused = true;
    int result = m->guest->ops->pause(m->guest, err);
    m->measurement.downtime.pause = clock_now() - m->paused_at;
    note_work(m);
    return result;
}

/* State first and the last collect after it: whatever saving the state wrote into RAM is sent as
 * well. */
static int save_state(struct migration *m, struct error *err)
{
    uint64_t started = clock_now();

    m->state.size = 0;
    int result = m->guest->ops->save(m->guest, &m->state, err);
    m->saved_at = clock_now();
    m->measurement.downtime.state_save = m->saved_at - started;
    m->measurement.state_bytes = m->state_bytes = m->state.size;
    if (!result && m->state.size > GUEST_MAX_STATE)
        result =
            error_set(err, EFBIG,
                      "the guest's device state has %zu bytes, more than the %d that are possible",
                      m->state.size, GUEST_MAX_STATE);
    return result;
}

static int resume_for_another_round(struct migration *m, struct error *err)
{
    int result = m->guest->ops->resume(m->guest, err);

    if (result)
        return result;
    m->guest_paused = false;
    m->measurement.switchover_retries++;
    m->pause_delay_ns = 2 * m->pause_delay_ns + (clock_now() - m->paused_at);
    source_say(m, "more was dirty than foretold: the guest goes on for another round");
    source_set_phase(m, MIGRATION_PRECOPY);
    return 1;
}

static int send_state(struct migration *m, struct error *err)
{
    uint8_t *body = malloc(8 + m->state.size);

    if (!body)
        return error_set(err, ENOMEM, "no memory for %zu bytes of device state", m->state.size);
    struct wire_writer w = wire_writer(body, 8 + m->state.size);
    wire_put_u64(&w, m->clock_shared ? 0 : (uint64_t)channel_clock_offset(m->channel));
    wire_put_bytes(&w, m->state.bytes, m->state.size);
    int result = channel_send(m->channel, MESSAGE_STATE, body, 8 + m->state.size, err);
    free(body);
    return result;
}

static int send_last_round(struct migration *m, struct error *err)
{
    uint64_t started = clock_now();
    struct transport_stats before;

    transport_stats(m->transport, &before);
    int result = send_state(m, err);
    if (!result)
        result = rounds_send_last(m->rounds, err);
    m->measurement.downtime.final_copy = clock_now() - m->saved_at;
    m->measurement.last_bytes = rounds_counts(m->rounds)->bytes;
    return result ? result : source_finish_round(m, started, before.wire_bytes, true, err);
}

static int load_there(struct migration *m, struct error *err)
{
    uint64_t started = clock_now();
    struct message reply;
    struct timing_message timing = {0};
    int result = channel_send(m->channel, MESSAGE_LOAD, NULL, 0, err);

    cpu_watch_glance(&m->cpu);
    if (!result)
        result = source_receive(m, MESSAGE_PREPARED, SOURCE_REPLY_MS, true, &reply, err);
    if (result)
        return result;
    result = timing_decode(&reply, &timing, err);
    message_free(&reply);
    uint64_t all = clock_now() - started;
    m->measurement.downtime.state_load = timing.ns < all ? timing.ns : all;
    m->measurement.downtime.state_transfer = all - m->measurement.downtime.state_load;
    return result;
}

static int ask_hashes(void *migration, const struct verify_message *request, struct error *err)
{
    struct migration *m = migration;
    uint8_t body[24];

    return channel_send(m->channel, MESSAGE_VERIFY, body, verify_encode(request, body), err);
}

static int receive_hashes(void *migration, uint64_t *out, uint32_t count, struct error *err)
{
    struct message reply;
    int result = source_receive(migration, MESSAGE_HASHES, 4 * SOURCE_REPLY_MS, true, &reply, err);

    if (result)
        return result;
    struct wire_reader r = wire_reader(reply.body, reply.size);
    for (uint32_t i = 0; i < count; i++)
        out[i] = wire_get_u64(&r);
    if (!wire_reader_done(&r))
        result = error_set(err, EPROTO,
                           "the destination sent %u bytes of hashes where %u hashes were asked for",
                           reply.size, count);
    message_free(&reply);
    return result;
}

static int verify(struct migration *m, struct error *err)
{
    struct verify_peer peer = {.ask = ask_hashes, .hashes = receive_hashes, .context = m};
    uint64_t started = clock_now();

    if (!m->options.verify)
        return 0;
    source_say(m, "comparing all memory at both ends");
    int result = verify_compare(m->guest, &peer, &m->measurement.verified_chunks, err);
    m->measurement.downtime.verify = clock_now() - started;
    m->measurement.verified = result == 0;
    return result;
}

/* Whether what was collected still fits; notes what was foretold. */
static bool fits(struct migration *m, const struct policy_decision *decision)
{
    struct measurement *out = &m->measurement;
    struct policy_input input = source_policy_input(m);
    uint64_t bytes = m->dirty_pages * GUEST_PAGE_SIZE;
    uint64_t predicted = policy_predict_downtime(&input, bytes);

    if (!decision->forced &&
        (bytes > decision->predicted_last_bytes || predicted > m->options.limits.downtime_ns))
        return false;
    out->forced = decision->forced;
    out->predicted_downtime_ns = predicted;
    out->predicted_last_bytes = decision->forced ? bytes : decision->predicted_last_bytes;
    return true;
}

int source_switch_over(struct migration *m, const struct policy_decision *decision,
                       struct error *err)
{
    bool look_first = m->guest->ops->save_costs;

    source_enter_phase(m, MIGRATION_SWITCHOVER);
    int result = pause_guest(m, err);
    if (!result && look_first)
        result = source_collect(m, err);
    if (!result && look_first && !fits(m, decision))
        return resume_for_another_round(m, err);
    if (!result)
        result = save_state(m, err);
    if (!result)
        result = source_collect(m, err);
    if (result)
        return result;
    if (!look_first && !fits(m, decision))
        return resume_for_another_round(m, err);
    result = send_last_round(m, err);
    if (!result) /* before the load: KVM itself writes the guest's clock page in it */
        result = verify(m, err);
    if (!result)
        result = load_there(m, err);
    m->prepared_at = clock_now();
    return result;
}
