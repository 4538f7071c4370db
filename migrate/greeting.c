/* The source's way from nothing to open lanes. */
#include "migrate/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/preflight.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"

static const uint64_t HUGE_PAGE = 2ull << 20;

static int open_control(struct migration *m, struct error *err)
{
    char uri[300];

    source_say(m, "connecting to %s", address_format(&m->options.destination, uri, sizeof(uri)));
    int socket = address_connect(&m->options.destination, SOURCE_CONNECT_MS, m->cancel_event, err);
    if (socket < 0) {
        error_prefix(err, "the destination cannot be reached");
        return socket;
    }
    host_facts_read(socket, &m->measurement.source_host);
    int result = channel_open(socket, &m->wakeup, &m->channel, err);
    if (result)
        return result;
    struct responder_config config = {.ownership = &m->ownership};
    memcpy(config.token, m->token, sizeof(config.token));
    return responder_start(channel_socket(m->channel), &config, &m->responder, err);
}

/* Processes of one boot read the same CLOCK_MONOTONIC: no estimate is as good as that. */
static bool share_clock(const char *boot_id)
{
    char ours[BOOT_ID_SIZE];

    boot_id_read(ours);
    return ours[0] && strcmp(ours, boot_id) == 0;
}

/* Whatever keeps lanes from working at this end: before the destination is told of anything, and
 * long before the guest is touched. */
static int look_ahead(struct migration *m, struct error *err)
{
    struct transport_params params = preflight_params(&m->options);
    struct transport_findings findings;
    struct address peer;

    if (!(transport_capabilities(m->transport) & TRANSPORT_PINS_MEMORY))
        return 0;
    int result = preflight_present_bytes(m->guest, &m->measurement.present_bytes, err);
    if (!result)
        result =
            address_of_peer(channel_socket(m->channel), m->options.destination.scheme, &peer, err);
    if (result)
        return result;
    transport_check(peer.scheme, &params, &peer, TRANSPORT_SOURCE, m->measurement.present_bytes,
                    &findings);
    for (unsigned i = 0; i < findings.count; i++)
        if (!findings.all[i].fatal)
            log_line(LOG_INFO, "%s", findings.all[i].text);
    return preflight_verdict(&findings, err);
}

static int say_hello(struct migration *m, struct error *err)
{
    struct hello hello = {
        .version_min = PROTO_VERSION_MIN,
        .version_max = PROTO_VERSION_MAX,
        .intent = HELLO_NEW,
        .epoch = m->epoch,
        .session_port = responder_port(m->responder),
    };
    uint8_t body[PROTO_BODY_SIZE];
    struct message reply;
    struct welcome welcome;

    memcpy(hello.token, m->token, sizeof(hello.token));
    preflight_hello(&m->options, m->measurement.present_bytes, &hello);
    int result = channel_send(m->channel, MESSAGE_HELLO, body, hello_encode(&hello, body), err);
    if (!result)
        result = source_receive(m, MESSAGE_WELCOME, SOURCE_CONNECT_MS, true, &reply, err);
    if (result)
        return result;
    result = welcome_decode(&reply, &welcome, err);
    message_free(&reply);
    m->clock_shared = !result && share_clock(welcome.boot_id);
    if (!result && (welcome.version < PROTO_VERSION_MIN || welcome.version > PROTO_VERSION_MAX))
        result = error_set(err, EPROTO,
                           "the destination chose protocol version %u, which was not offered",
                           welcome.version);
    return result;
}

static int describe_guest(struct migration *m, struct error *err)
{
    struct guest_description description = {0};
    struct measurement *out = &m->measurement;
    uint8_t *body = NULL;
    size_t size;
    int result = m->guest->ops->describe(m->guest, &description, err);

    if (!result)
        result = guest_encode(&description, &body, &size, err);
    if (!result)
        result = channel_send(m->channel, MESSAGE_GUEST, body, size, err);
    memcpy(out->guest_name, description.name, sizeof(out->guest_name));
    memcpy(out->guest_kind, description.kind, sizeof(out->guest_kind));
    memcpy(out->accel, description.accel, sizeof(out->accel));
    out->memory_bytes = description.memory_bytes;
    out->vcpus = description.vcpus;
    source_recall(m, &description);
    m->state_bytes = policy_first_state_bytes(description.vcpus);
    free(body);
    guest_description_free(&description);
    return result;
}

static int make_record(struct migration *m, struct error *err)
{
    struct record_content content = {
        .role = RECORD_SOURCE,
        .peer = m->session_peer,
        .peer_main = m->options.destination,
        .state = OWNERSHIP_OWNER,
    };

    memcpy(content.token, m->token, sizeof(content.token));
    memcpy(content.guest_name, m->measurement.guest_name, sizeof(content.guest_name));
    snprintf(content.guest_kind, sizeof(content.guest_kind), "%s", m->guest->ops->kind);
    if (m->guest->ops->monitor)
        content.monitor = *m->guest->ops->monitor(m->guest);
    int result = record_create(&content, &m->record, err);
    if (!result)
        ownership_attach(&m->ownership, m->record);
    return result;
}

/* ACCEPT tells where the lanes bind: on the host the control channel leads to. */
static int await_accept(struct migration *m, struct address *lanes, struct error *err)
{
    struct message reply;
    struct accept_reply accept;
    int result = source_receive(m, MESSAGE_ACCEPT, SOURCE_ACCEPT_MS, true, &reply, err);

    if (result)
        return result;
    result = accept_decode(&reply, &accept, err);
    message_free(&reply);
    if (!result)
        result =
            address_of_peer(channel_socket(m->channel), m->options.destination.scheme, lanes, err);
    if (result)
        return result;
    m->session_peer = *lanes;
    snprintf(m->session_peer.scheme, sizeof(m->session_peer.scheme), "tcp");
    m->session_peer.port = accept.session_port;
    lanes->port = accept.lane_port;
    return make_record(m, err);
}

static int start_tracking(struct migration *m, struct error *err)
{
    struct guest_ops const *ops = m->guest->ops;
    const char *name = m->options.tracker[0] ? m->options.tracker : NULL;
    int result = ops->prepare ? ops->prepare(m->guest, err) : 0;

    m->guest_prepared = true;
    if (!result)
        result = ops->tracker(m->guest, name, &m->tracker, err);
    if (result)
        return result;
    snprintf(m->measurement.tracker, sizeof(m->measurement.tracker), "%s", m->tracker->ops->name);
    result = m->tracker->ops->start(m->tracker, err);
    m->tracking_at = m->collected_at = clock_now();
    m->measurement.guest_work.pages_at_start = source_pages_written(m);
    return result;
}

static int flush_extents(struct migration *m, struct extents_message *message, bool last,
                         struct error *err)
{
    uint8_t body[PROTO_BODY_SIZE];

    if (message->count == 0 && !last)
        return 0;
    message->last = last;
    int result =
        channel_send(m->channel, MESSAGE_EXTENTS, body, extents_encode(message, body), err);
    message->count = 0;
    return result;
}

/* Tells which parts of the regions fill whole huge pages, so that the destination can back them
 * with such: first touch is what a destination spends most of its time on. */
static int announce_extents(struct migration *m, struct error *err)
{
    struct extents_message message = {0};
    const struct guest_region *regions;
    unsigned left = PROTO_MAX_ANNOUNCED;
    unsigned count = m->guest->ops->regions(m->guest, &regions);
    int result = 0;

    for (unsigned i = 0; i < count && !result; i++) {
        const struct extent_list *present = rounds_present(m->rounds, regions[i].id);
        message.region = regions[i].id;
        for (size_t at = 0; at < present->count && !result; at++) {
            uint64_t first = (present->extents[at].offset + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
            uint64_t end =
                (present->extents[at].offset + present->extents[at].length) / HUGE_PAGE * HUGE_PAGE;
            if (first >= end || left == 0)
                continue;
            left--;
            message.extents[message.count++] = (struct extent){first, end - first};
            if (message.count == PROTO_MAX_EXTENTS)
                result = flush_extents(m, &message, false, err);
        }
        if (!result)
            result = flush_extents(m, &message, false, err);
    }
    return result ? result : flush_extents(m, &message, true, err);
}

static int make_transport(struct migration *m, struct error *err)
{
    struct transport_params params = preflight_params(&m->options);
    const struct guest_region *regions;
    unsigned count = m->guest->ops->regions(m->guest, &regions);
    char rate[64];

    params.epoch = m->epoch;
    memcpy(params.token, m->token, sizeof(params.token));
    int result = transport_new(m->options.destination.scheme, &params, &m->transport, err);
    if (!result && m->options.filter[0])
        result = transport_wrap(m->options.filter, &m->transport, err);
    snprintf(rate, sizeof(rate), "rate=%llu", (unsigned long long)m->options.max_bandwidth);
    if (!result && m->options.max_bandwidth)
        result = transport_wrap(rate, &m->transport, err);
    for (unsigned i = 0; i < count && !result; i++) {
        struct transport_region region = {regions[i].id, regions[i].host, regions[i].size};
        result = transport_open_region(m->transport, &region, err);
    }
    return result;
}

static void on_progress(void *migration)
{
    source_notify(migration, false);
}

static int make_rounds(struct migration *m, struct error *err)
{
    struct rounds_config config = {
        .guest = m->guest,
        .tracker = m->tracker,
        .transport = m->transport,
        .max_bandwidth = m->options.max_bandwidth,
        .interrupted = source_interrupted,
        .progress = on_progress,
        .context = m,
    };
    int result = rounds_new(&config, &m->rounds, err);

    if (result)
        return result;
    m->measurement.present_bytes = rounds_present_bytes(m->rounds);
    m->measurement.hole_pages =
        (m->measurement.memory_bytes - m->measurement.present_bytes) / GUEST_PAGE_SIZE;
    return 0;
}

int source_greet(struct migration *m, struct error *err)
{
    struct address lanes;
    int result = open_control(m, err);

    if (!result)
        result = make_transport(m, err);
    if (!result)
        result = look_ahead(m, err);
    if (!result)
        result = say_hello(m, err);
    if (!result)
        result = describe_guest(m, err);
    if (!result)
        source_forecast(m); /* while the destination starts, and nothing is tracked yet */
    if (!result)
        result = await_accept(m, &lanes, err);
    if (!result)
        result = start_tracking(m, err);
    if (!result)
        result = make_rounds(m, err);
    if (!result)
        result = announce_extents(m, err);
    if (!result)
        result = transport_connect(m->transport, &lanes, SOURCE_LANES_MS, err);
    return result;
}
