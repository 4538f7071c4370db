/* The destination's answers to `wander check`. */
#include "migrate/destination.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/preflight.h"
#include "transport/base/clock.h"

enum { QUESTION_MS = 10000, LANE_MS = 6000 };

static int answer_guest(struct incoming *in, const struct message *m, struct error *err)
{
    struct guest_description description = {0};
    struct reasons reasons = {0};
    uint8_t body[4];
    int result = guest_decode(m, &description, err);

    if (result)
        return result;
    destination_judge(in, &description, &reasons);
    if (reasons.count)
        result = channel_send_text(in->channel, MESSAGE_REFUSE,
                                   reasons.text ? reasons.text : "no memory", err);
    else
        result = channel_send(in->channel, MESSAGE_ACCEPT, body,
                              accept_encode(&(struct accept_reply){0}, body), err);
    reasons_free(&reasons);
    guest_description_free(&description);
    return result;
}

/* An end for one lane, listening; what keeps it from that is a finding. */
static struct transport *open_trial(struct incoming *in, void *memory, struct found_message *found)
{
    struct transport_params params =
        preflight_destination_params(&in->hello, in->options.pin_limit);
    struct transport_region region = {.base = memory, .size = PREFLIGHT_TRIAL_BYTES};
    struct transport *transport = NULL;
    struct error err = {0};
    struct address at;

    params.lanes = 1;
    params.epoch = in->hello.epoch;
    memcpy(params.token, in->hello.token, sizeof(params.token));
    int result = transport_new(in->hello.scheme, &params, &transport, &err);
    if (!result)
        result = transport_open_region(transport, &region, &err);
    if (!result)
        result = address_of_local(channel_socket(in->channel), in->hello.scheme, &at, &err);
    if (!result) {
        at.port = 0;
        result = transport_listen(transport, &at, &found->lane_port, &err);
    }
    if (!result)
        return transport;
    transport_findings_add(&found->findings, true, "%s", err.text);
    transport_close(transport);
    return NULL;
}

/* Until the source closes its lane. How that went is the source's to tell. */
static void serve_trial(struct transport *transport)
{
    struct completion none;
    struct error err = {0};

    if (transport_accept(transport, LANE_MS, &err) == 0)
        transport_reap(transport, &none, 1, LANE_MS, &err);
    transport_shutdown(transport);
    transport_close(transport);
}

static int answer_probe(struct incoming *in, struct error *err)
{
    struct found_message found = {0};
    struct transport *transport = NULL;
    uint8_t *body = malloc(PROTO_BODY_SIZE);
    void *memory = mmap(NULL, PREFLIGHT_TRIAL_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int result = -ENOMEM;

    if (!body || memory == MAP_FAILED) {
        error_set(err, ENOMEM, "no memory for a trial lane");
        goto free_memory;
    }
    destination_look_at_lanes(in, 0, &found.findings);
    if (preflight_verdict(&found.findings, NULL) == 0)
        transport = open_trial(in, memory, &found);
    result = channel_send(in->channel, MESSAGE_FOUND, body, found_encode(&found, body), err);
    if (transport)
        serve_trial(transport);
free_memory:
    if (memory != MAP_FAILED)
        munmap(memory, PREFLIGHT_TRIAL_BYTES);
    free(body);
    return result;
}

int destination_answer_check(struct incoming *in, struct error *err)
{
    destination_set_phase(in, INCOMING_QUERY);
    for (;;) {
        struct message m;
        int result = destination_next_message(in, clock_now() + QUESTION_MS * NS_PER_MS, &m, err);

        if (result)
            return result;
        bool was_probe = m.type == MESSAGE_PROBE;
        if (was_probe)
            result = answer_probe(in, err);
        else if (m.type == MESSAGE_GUEST)
            result = answer_guest(in, &m, err);
        else
            result = message_unexpected(&m, "GUEST or PROBE", err);
        message_free(&m);
        if (result || was_probe)
            return result;
    }
}
