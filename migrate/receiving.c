/* The destination's way from an accepted connection to a guest that is complete. */
#include "migrate/destination.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "migrate/preflight.h"
#include "migrate/verify.h"
#include "transport/base/clock.h"
#include "transport/base/wire.h"

enum { LANES_MS = 12000, GUEST_MS = 10000 };

int destination_next_message(struct incoming *in, uint64_t deadline, struct message *out,
                             struct error *err)
{
    uint64_t seen = 0;

    for (;;) {
        if (atomic_load(&in->cancelled)) /* first: messages may never run out */
            return error_set(err, ECANCELED, "cancelled at the destination");
        int result = channel_poll(in->channel, out, err);
        if (result)
            return result < 0 ? result : 0;
        if (in->transport && transport_reap(in->transport, &(struct completion){0}, 1, 0, err) < 0)
            return -err->code;
        uint64_t now = clock_now(), look = now + DESTINATION_POLL_MS * NS_PER_MS;
        if (now >= deadline)
            return error_set(err, ETIMEDOUT,
                             "the source is alive but says nothing that was waited for");
        wakeup_wait(&in->wakeup, &seen, look < deadline ? look : deadline);
    }
}

static int expect(struct incoming *in, enum message_type wanted, int timeout_ms,
                  struct message *out, struct error *err)
{
    int result =
        destination_next_message(in, clock_now() + (uint64_t)timeout_ms * NS_PER_MS, out, err);

    if (result || out->type == wanted)
        return result;
    result = message_unexpected(out, message_name(wanted), err);
    message_free(out);
    return result;
}

static int read_hello(struct incoming *in, struct error *err)
{
    struct message m;
    int result = exchange_read(in->socket, &m, clock_now() + DESTINATION_GREETING_MS * NS_PER_MS,
                               in->cancel_event, err);

    if (result)
        return result;
    result = m.type == MESSAGE_HELLO ? hello_decode(&m, &in->hello, err)
                                     : message_unexpected(&m, "HELLO", err);
    message_free(&m);
    return result;
}

static int answer_query(struct incoming *in, struct error *err)
{
    struct answer answer = {.state = record_consult(in->hello.token, RECORD_DESTINATION)};
    uint8_t body[8];

    destination_set_phase(in, INCOMING_QUERY);
    return exchange_write(in->socket, MESSAGE_ANSWER, body, answer_encode(&answer, body),
                          clock_now() + DESTINATION_GREETING_MS * NS_PER_MS, err);
}

static int open_channel(struct incoming *in, struct error *err)
{
    struct welcome welcome = {.version = PROTO_VERSION_MAX, .epoch = in->hello.epoch};
    uint8_t body[PROTO_BODY_SIZE];
    char text[160];
    int result = address_of_peer(in->socket, "tcp", &in->source_peer, err);

    if (result)
        return result;
    in->source_peer.port = in->hello.session_port;
    in->epoch = in->hello.epoch;
    boot_id_read(welcome.boot_id);
    host_facts_read(in->socket, &in->measurement.host);
    result = channel_open(in->socket, &in->wakeup, &in->channel, err);
    in->socket = -1;
    if (result)
        return result;
    if (in->hello.version_max < PROTO_VERSION_MIN || in->hello.version_min > PROTO_VERSION_MAX) {
        snprintf(
            text, sizeof(text),
            "this host speaks protocol versions %d to %d, the source %u to %u: install the same "
            "version of wander on both",
            PROTO_VERSION_MIN, PROTO_VERSION_MAX, in->hello.version_min, in->hello.version_max);
        channel_send_text(in->channel, MESSAGE_REFUSE, text, err);
        return error_set(err, EPROTONOSUPPORT, "%s", text);
    }
    if (in->hello.version_max < welcome.version)
        welcome.version = in->hello.version_max;
    return channel_send(in->channel, MESSAGE_WELCOME, body, welcome_encode(&welcome, body), err);
}

static bool name_is_valid(const char *name)
{
    size_t length =
        strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");

    return length > 0 && name[length] == '\0' && name[0] != '.';
}

void destination_judge(struct incoming *in, struct guest_description *d, struct reasons *reasons)
{
    const struct guest_kind *kind = guest_kind_find(d->kind);
    uint64_t sum = 0;

    if (!kind)
        reasons_add(reasons, "this host knows no guests of the kind '%s'", d->kind);
    else if (in->options.kind[0] && strcmp(in->options.kind, d->kind))
        reasons_add(reasons, "this receiver takes only %s guests, not %s ones (its option --guest)",
                    in->options.kind, d->kind);
    if (in->options.name[0])
        memcpy(d->name, in->options.name, sizeof(d->name));
    if (!name_is_valid(d->name))
        reasons_add(
            reasons,
            "'%s' is no name for a guest (letters, digits, '.', '_' and '-'); use --name here",
            d->name);
    else if (in->options.name_check)
        in->options.name_check(in->options.name_context, d->name, in->hello.intent == HELLO_NEW,
                               reasons);
    if (in->hello.lanes == 0)
        reasons_add(reasons, "a migration needs at least one lane");
    for (uint32_t i = 0; i < d->region_count; i++)
        sum += d->regions[i].size;
    if (sum != d->memory_bytes)
        reasons_add(reasons, "the guest's regions do not add up to its memory");
    if (kind)
        kind->check(&in->host, d, reasons);
}

void destination_look_at_lanes(struct incoming *in, uint64_t memory_bytes,
                               struct transport_findings *findings)
{
    struct transport_params params =
        preflight_destination_params(&in->hello, in->options.pin_limit);
    uint64_t bytes = in->hello.present_bytes ? in->hello.present_bytes : memory_bytes;
    struct transport *probe;
    struct error err = {0};
    struct address at;

    if (address_of_local(channel_socket(in->channel), in->hello.scheme, &at, &err)) {
        *findings = (struct transport_findings){0};
        transport_findings_add(findings, true, "%s", err.text);
        return;
    }
    transport_check(in->hello.scheme, &params, &at, TRANSPORT_DESTINATION, bytes, findings);
    if (preflight_verdict(findings, NULL) || params.lanes == 0)
        return;
    if (transport_new(in->hello.scheme, &params, &probe, &err))
        transport_findings_add(findings, true, "%s", err.text);
    else
        transport_close(probe);
}

static void collect_reasons(struct incoming *in, struct guest_description *d,
                            struct reasons *reasons)
{
    struct transport_findings findings;

    destination_judge(in, d, reasons);
    destination_look_at_lanes(in, d->memory_bytes, &findings);
    for (unsigned i = 0; i < findings.count; i++)
        if (findings.all[i].fatal)
            reasons_add(reasons, "%s", findings.all[i].text);
}

static int refuse(struct incoming *in, struct reasons *reasons, struct error *err)
{
    int result = channel_send_text(in->channel, MESSAGE_REFUSE,
                                   reasons->text ? reasons->text : "no memory", err);

    return result
               ? result
               : error_set(err, EPERM, "refused: %s", reasons->text ? reasons->text : "no memory");
}

static int make_guest(struct incoming *in, const struct guest_description *d, struct error *err)
{
    struct guest *guest;
    int result = guest_kind_find(d->kind)->incoming(&in->host, d, &guest, err);

    if (result)
        return result;
    pthread_mutex_lock(&in->lock);
    in->guest = guest;
    memcpy(in->status.guest_name, d->name, sizeof(in->status.guest_name));
    pthread_mutex_unlock(&in->lock);
    if (guest->ops->monitor)
        cpu_watch_hypervisor(&in->cpu, guest->ops->monitor(guest)->pid, true);
    in->target.count = guest->ops->regions(guest, &in->target.regions);
    return 0;
}

static int make_lanes(struct incoming *in, uint16_t *port, struct error *err)
{
    struct transport_params params = {
        .epoch = in->epoch,
        .lanes = in->hello.lanes,
        .decode = page_decode,
        .decode_context = &in->target,
        .operation = in->hello.operation,
        .registration = in->hello.registration,
        .pin_limit = in->options.pin_limit,
    };
    struct address at;

    memcpy(params.token, in->hello.token, sizeof(params.token));
    int result = transport_new(in->hello.scheme, &params, &in->transport, err);
    if (!result && in->options.filter[0])
        result = transport_wrap(in->options.filter, &in->transport, err);
    for (unsigned i = 0; i < in->target.count && !result; i++) {
        const struct guest_region *region = &in->target.regions[i];
        result = transport_open_region(
            in->transport, &(struct transport_region){region->id, region->host, region->size}, err);
    }
    if (!result)
        result = address_of_local(channel_socket(in->channel), in->hello.scheme, &at, err);
    at.port = 0;
    return result ? result : transport_listen(in->transport, &at, port, err);
}

static void on_reconnect(void *incoming, int socket, const struct hello *hello)
{
    struct incoming *in = incoming;

    pthread_mutex_lock(&in->lock);
    int old = in->pending_socket;
    in->pending_socket = socket;
    in->pending_epoch = hello->epoch;
    pthread_mutex_unlock(&in->lock);
    if (old >= 0)
        close(old);
    wakeup_raise(&in->wakeup);
}

static int make_record(struct incoming *in, const char *guest_name, struct error *err)
{
    struct record_content content = {
        .role = RECORD_DESTINATION,
        .peer = in->source_peer,
        .state = OWNERSHIP_RECEIVING,
    };

    memcpy(content.token, in->hello.token, sizeof(content.token));
    memcpy(content.guest_name, guest_name, sizeof(content.guest_name));
    snprintf(content.guest_kind, sizeof(content.guest_kind), "%s", in->guest->ops->kind);
    if (in->guest->ops->monitor)
        content.monitor = *in->guest->ops->monitor(in->guest);
    int result = record_create(&content, &in->record, err);
    if (!result)
        ownership_attach(&in->ownership, in->record);
    return result;
}

static int accept_guest(struct incoming *in, const struct guest_description *d, struct error *err)
{
    struct responder_config config = {
        .ownership = &in->ownership,
        .reconnect = on_reconnect,
        .context = in,
    };
    struct accept_reply reply = {0};
    uint8_t body[4];
    int result = make_guest(in, d, err);

    memcpy(config.token, in->hello.token, sizeof(config.token));
    if (!result)
        result = make_lanes(in, &reply.lane_port, err);
    if (!result)
        result = make_record(in, d->name, err);
    if (!result)
        result = responder_start(channel_socket(in->channel), &config, &in->responder, err);
    if (result)
        return result;
    reply.session_port = responder_port(in->responder);
    destination_set_phase(in, INCOMING_RECEIVING);
    result = channel_send(in->channel, MESSAGE_ACCEPT, body, accept_encode(&reply, body), err);
    return result ? result : 1;
}

static int judge_guest(struct incoming *in, struct error *err)
{
    struct guest_description description = {0};
    struct reasons reasons = {0};
    struct message m;
    int result = expect(in, MESSAGE_GUEST, GUEST_MS, &m, err);

    if (result)
        return result;
    result = guest_decode(&m, &description, err);
    message_free(&m);
    if (!result)
        collect_reasons(in, &description, &reasons);
    if (result == 0 && reasons.count)
        result = refuse(in, &reasons, err);
    else if (result == 0)
        result = accept_guest(in, &description, err);
    reasons_free(&reasons);
    guest_description_free(&description);
    return result;
}

static int advise(struct incoming *in, const struct extents_message *m, struct error *err)
{
    if (m->region >= in->target.count)
        return error_set(err, EPROTO,
                         "the source announces memory of region %u, which the guest does not have",
                         m->region);
    const struct guest_region *region = &in->target.regions[m->region];
    for (uint32_t i = 0; i < m->count; i++) {
        const struct extent *e = &m->extents[i];
        if (e->offset > region->size || e->length > region->size - e->offset ||
            e->offset % GUEST_PAGE_SIZE)
            return error_set(err, EPROTO, "the source announces memory beyond the end of region %s",
                             region->name);
        if (in->advised == PROTO_MAX_ANNOUNCED)
            continue;
        prefault_add(in->prefault, m->region, e);
        in->advised++;
        madvise((char *)region->host + e->offset, e->length,
                MADV_HUGEPAGE); /* a hint: where it fails, small pages do */
    }
    return 0;
}

static int receive_extents(struct incoming *in, struct error *err)
{
    struct extents_message *extents = malloc(sizeof(*extents));
    int result = extents ? prefault_new(in->target.regions, in->target.count, &in->prefault, err)
                         : error_set(err, ENOMEM, "no memory for the guest's extents");

    while (!result) {
        struct message m;
        result = expect(in, MESSAGE_EXTENTS, GUEST_MS, &m, err);
        if (result)
            break;
        result = extents_decode(&m, extents, err);
        message_free(&m);
        if (!result)
            result = advise(in, extents, err);
        if (!result && extents->last)
            break;
    }
    free(extents);
    if (!result)
        prefault_start(in->prefault);
    return result;
}

int destination_greet(struct incoming *in, struct error *err)
{
    int result = read_hello(in, err);

    if (result)
        return result;
    if (in->hello.intent == HELLO_QUERY || in->hello.intent == HELLO_RECONNECT)
        return answer_query(in, err);
    pthread_mutex_lock(&in->lock);
    token_format(in->hello.token, in->status.session);
    pthread_mutex_unlock(&in->lock);
    result = open_channel(in, err);
    if (!result && in->hello.intent == HELLO_CHECK)
        return destination_answer_check(in, err);
    if (!result)
        result = judge_guest(in, err);
    if (result <= 0)
        return result;
    result = receive_extents(in, err);
    if (!result)
        result = transport_accept(in->transport, LANES_MS, err);
    return result ? result : 1;
}

static int on_prepare(struct incoming *in, struct error *err)
{
    int result = record_make_durable(in->record, err);

    in->is_durable = result == 0;
    return result ? result : channel_send(in->channel, MESSAGE_READY, NULL, 0, err);
}

static int on_round(struct incoming *in, const struct message *m, struct error *err)
{
    struct round_message round;
    int result = round_decode(m, &round, err);

    if (!result && !round.paused)
        cpu_watch_look(&in->cpu);
    if (!result)
        destination_say(in, round.paused ? "switchover" : "round %u: %llu pages", round.number,
                        (unsigned long long)round.pages);
    return result;
}

static int on_state(struct incoming *in, struct message *m, struct error *err)
{
    struct wire_reader r = wire_reader(m->body, m->size);

    if (in->state)
        return error_set(err, EPROTO, "the source sent the device state twice");
    prefault_stop(in->prefault);
    in->prefault = NULL;
    in->load_context.clock_offset_ns = (int64_t)wire_get_u64(&r);
    in->state_size = wire_reader_left(&r);
    in->state = malloc(in->state_size + 1);
    if (!in->state)
        return error_set(err, ENOMEM, "no memory for %zu bytes of device state", in->state_size);
    wire_get_bytes(&r, in->state, in->state_size);
    return 0;
}

static int on_load(struct incoming *in, struct error *err)
{
    uint64_t started = clock_now();
    uint8_t body[8];

    if (!in->is_durable)
        return error_set(err, EPROTO,
                         "the source wants the guest loaded without having said PREPARE");
    if (!in->state)
        return error_set(err, EPROTO,
                         "the source wants its device state loaded before it has sent it");
    int result = in->guest->ops->load(in->guest, in->state, in->state_size, &in->load_context, err);
    if (!result)
        result = ownership_move(&in->ownership, OWNERSHIP_RECEIVING, OWNERSHIP_PREPARED, err);
    if (result)
        return result;
    in->measurement.state_load_ns = clock_now() - started;
    /* From here on a lost channel is no longer this function's to report: PREPARED stands. */
    channel_send(in->channel, MESSAGE_PREPARED, body,
                 timing_encode(&(struct timing_message){.ns = in->measurement.state_load_ns}, body),
                 &(struct error){0});
    cpu_watch_glance(&in->cpu); /* the lanes end before the guest runs */
    return 1;
}

static int on_verify(struct incoming *in, const struct message *m, struct error *err)
{
    struct verify_message request;
    uint64_t *hashes = NULL;
    uint8_t *body = NULL;
    int result = verify_decode(m, &request, err);

    if (result)
        return result;
    hashes = malloc(request.count * sizeof(*hashes));
    body = malloc(request.count * sizeof(*hashes));
    result = hashes && body ? verify_hash(in->guest, &request, hashes, err)
                            : error_set(err, ENOMEM, "no memory for hashes");
    if (!result) {
        struct wire_writer w = wire_writer(body, request.count * sizeof(*hashes));
        for (uint32_t i = 0; i < request.count; i++)
            wire_put_u64(&w, hashes[i]);
        result =
            channel_send(in->channel, MESSAGE_HASHES, body, request.count * sizeof(*hashes), err);
    }
    free(hashes);
    free(body);
    return result;
}

static int handle(struct incoming *in, struct message *m, struct error *err)
{
    switch (m->type) {
    case MESSAGE_ROUND:
        return on_round(in, m, err);
    case MESSAGE_PREPARE:
        return on_prepare(in, err);
    case MESSAGE_STATE:
        return on_state(in, m, err);
    case MESSAGE_VERIFY:
        return on_verify(in, m, err);
    case MESSAGE_LOAD:
        return on_load(in, err);
    default:
        return message_unexpected(m, "ROUND, STATE, VERIFY or LOAD", err);
    }
}

int destination_receive(struct incoming *in, struct error *err)
{
    int result = 0;

    while (!result) {
        struct message m;
        result = destination_next_message(in, UINT64_MAX, &m, err);
        if (result)
            return result;
        result = handle(in, &m, err);
        message_free(&m);
    }
    return result < 0 ? result : 0;
}
