/* `wander check`: what would be refused, and whether lanes work, without moving anything. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "migrate/exchange.h"
#include "migrate/incoming.h"
#include "migrate/preflight.h"
#include "transport/base/clock.h"
#include "transport/base/options.h"

enum { CHECK_MS = 10000, TRIAL_MS = 5000 };

/* One `wander check` under way. */
struct check {
    const struct migration_options *options;
    struct guest *guest; /* or NULL */
    struct check_report *report;
    struct transport_params params;
    uint8_t token[TRANSPORT_TOKEN_SIZE];
    uint64_t bytes, deadline;
    int socket;
    struct transport_findings here;
    struct found_message there;
};

void check_report_free(struct check_report *report)
{
    reasons_free(&report->ends);
    reasons_free(&report->refused);
    reasons_free(&report->notes);
}

static int say_hello(struct check *c, struct error *err)
{
    struct hello hello = {
        .version_min = PROTO_VERSION_MIN,
        .version_max = PROTO_VERSION_MAX,
        .intent = HELLO_CHECK,
        .epoch = 1,
    };
    uint8_t body[PROTO_BODY_SIZE];

    memcpy(hello.token, c->token, sizeof(hello.token));
    preflight_hello(c->options, c->bytes, &hello);
    return exchange_write(c->socket, MESSAGE_HELLO, body, hello_encode(&hello, body), c->deadline,
                          err);
}

/* The next message that is no heartbeat. */
static int read_reply(struct check *c, struct message *out, struct error *err)
{
    for (;;) {
        int result = exchange_read(c->socket, out, c->deadline, -1, err);
        if (result || (out->type != MESSAGE_PING && out->type != MESSAGE_PONG))
            return result;
        message_free(out);
    }
}

/* 1: `wanted`, whose body is the caller's then; 0: REFUSE, and its reasons are in the report. */
static int take_reply(struct check *c, enum message_type wanted, struct message *reply,
                      struct error *err)
{
    char text[ERROR_TEXT_SIZE * 4];
    int result = read_reply(c, reply, err);

    if (result || reply->type == wanted)
        return result ? result : 1;
    if (reply->type == MESSAGE_REFUSE) {
        char *rest = message_text(reply, text, sizeof(text)), *line;
        while ((line = strsep(&rest, "\n")))
            if (*line)
                reasons_add(&c->report->refused, "destination: %s", line);
    } else {
        result = message_unexpected(reply, message_name(wanted), err);
    }
    message_free(reply);
    return result;
}

static int present_guest(struct check *c, struct error *err)
{
    struct guest_description description = {0};
    struct message reply;
    uint8_t *body = NULL;
    size_t size;
    int result = c->guest->ops->describe(c->guest, &description, err);

    if (!result)
        result = guest_encode(&description, &body, &size, err);
    if (!result)
        result = exchange_write(c->socket, MESSAGE_GUEST, body, size, c->deadline, err);
    free(body);
    guest_description_free(&description);
    if (!result)
        result = take_reply(c, MESSAGE_ACCEPT, &reply, err);
    if (result > 0)
        message_free(&reply);
    return result < 0 ? result : 0;
}

static int probe(struct check *c, struct error *err)
{
    struct message reply;
    int result = exchange_write(c->socket, MESSAGE_PROBE, NULL, 0, c->deadline, err);

    if (!result)
        result = take_reply(c, MESSAGE_FOUND, &reply, err);
    if (result <= 0)
        return result ? result : error_set(err, EPROTO, "the destination refuses to be asked");
    result = found_decode(&reply, &c->there, err);
    message_free(&reply);
    return result;
}

/* One chunk through one lane, and the fence that says it has arrived. */
static int run_lane(struct transport *t, const struct address *peer, const void *bytes,
                    struct error *err)
{
    uint64_t deadline = clock_now() + TRIAL_MS * NS_PER_MS;
    struct transfer transfer = {.bytes = bytes, .length = PREFLIGHT_TRIAL_BYTES};
    struct completion done;
    int result = transport_connect(t, peer, TRIAL_MS, err);

    if (!result) {
        transport_will_need(t, 0, 0, PREFLIGHT_TRIAL_BYTES);
        while ((result = transport_post(t, &transfer, 1, err)) == 0 && clock_now() < deadline)
            if ((result = transport_reap(t, &done, 1, 20, err)) < 0)
                break;
    }
    if (result == 1)
        result = transport_fence(t, 1, err);
    if (!result)
        result = transport_kick(t, err);
    while (!result) {
        int count = transport_reap(t, &done, 1, clock_ms_until(deadline), err);
        if (count > 0 && done.kind == COMPLETION_FENCE)
            return 0;
        if (count < 0)
            result = count;
        else if (clock_now() >= deadline)
            result = error_set(err, ETIMEDOUT, "it connected, and %d KiB did not arrive in %d s",
                               PREFLIGHT_TRIAL_BYTES >> 10, TRIAL_MS / 1000);
    }
    return result;
}

static int try_lane(struct check *c, const struct address *peer, void *memory, struct error *err)
{
    struct transport_region region = {.base = memory, .size = PREFLIGHT_TRIAL_BYTES};
    struct transport_params params = c->params;
    struct transport *transport;

    params.lanes = 1;
    params.epoch = 1;
    memcpy(params.token, c->token, sizeof(params.token));
    int result = transport_new(peer->scheme, &params, &transport, err);
    if (result)
        return result;
    result = transport_open_region(transport, &region, err);
    if (!result)
        result = run_lane(transport, peer, memory, err);
    transport_shutdown(transport);
    transport_close(transport);
    return result;
}

static int trial(struct check *c, struct error *err)
{
    char hint[200] = "";
    struct error why = {0};
    struct address peer;
    void *memory = mmap(NULL, PREFLIGHT_TRIAL_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return error_set(err, ENOMEM, "no memory for a trial lane");
    memset(memory, 0x5a, PREFLIGHT_TRIAL_BYTES);
    int result = address_of_peer(c->socket, c->options->destination.scheme, &peer, err);
    peer.port = c->there.lane_port;
    if (!result && try_lane(c, &peer, memory, &why)) {
        if (!strstr(why.text, "firewall"))
            snprintf(hint, sizeof(hint), "; see whether a firewall in between drops %s",
                     c->here.passage[0] ? c->here.passage
                                        : "the ports that the destination chooses");
        reasons_add(&c->report->refused,
                    "between them: a trial lane did not work: %s%s; and whether large packets get "
                    "through (MTU)",
                    why.text, hint);
    }
    munmap(memory, PREFLIGHT_TRIAL_BYTES);
    return result;
}

static void report_end(struct check *c, const char *end, const struct transport_findings *f)
{
    if (f->device[0])
        reasons_add(&c->report->ends, "%s: %s port %u, %s%s%s, MTU %u", end, f->device, f->port,
                    f->link_layer, f->gid_type[0] ? ", " : "", f->gid_type, f->mtu);
    for (unsigned i = 0; i < f->count; i++)
        reasons_add(f->all[i].fatal ? &c->report->refused : &c->report->notes, "%s: %s", end,
                    f->all[i].text);
}

static void report_both(struct check *c)
{
    const struct transport_findings *here = &c->here, *there = &c->there.findings;
    char bytes[32];

    report_end(c, "source", here);
    report_end(c, "destination", there);
    if (here->mtu && there->mtu && here->mtu != there->mtu)
        reasons_add(&c->report->notes,
                    "between them: the active MTU is %u at the source (%s) and %u at the "
                    "destination (%s): give both interfaces the same (ip link set dev INTERFACE "
                    "mtu 9000 at both, if the network carries that)",
                    here->mtu, here->device, there->mtu, there->device);
    if (!c->guest && (here->device[0] || there->device[0]))
        reasons_add(&c->report->ends,
                    "assumed: a guest with %s of touched memory; --guest asks for a real one",
                    format_size(c->bytes, bytes, sizeof(bytes)));
}

/* Everything that is said on the control connection, then the lane. */
static int ask(struct check *c, struct error *err)
{
    struct message reply;
    struct address peer;
    int result = address_of_peer(c->socket, c->options->destination.scheme, &peer, err);

    if (result)
        return result;
    transport_check(peer.scheme, &c->params, &peer, TRANSPORT_SOURCE, c->bytes, &c->here);
    result = say_hello(c, err);
    if (!result)
        result = take_reply(c, MESSAGE_WELCOME, &reply, err);
    if (result <= 0) {
        report_end(c, "source", &c->here);
        return result;
    }
    message_free(&reply);
    result = c->guest ? present_guest(c, err) : 0;
    if (!result)
        result = probe(c, err);
    if (result)
        return result;
    report_both(c);
    bool is_clear = preflight_verdict(&c->here, NULL) == 0 && c->there.lane_port;
    return is_clear ? trial(c, err) : 0;
}

int migration_check(struct guest *guest, const struct migration_options *options,
                    struct check_report *report, struct error *err)
{
    struct check *c = calloc(1, sizeof(*c));
    int result = 0;

    if (!c)
        return error_set(err, ENOMEM, "no memory for a check");
    *c = (struct check){
        .options = options,
        .guest = guest,
        .report = report,
        .params = preflight_params(options),
        .bytes = CHECK_BYTES,
    };
    if (getrandom(c->token, sizeof(c->token), 0) != sizeof(c->token))
        result = error_set_errno(err, errno, "making a session token failed");
    if (!result && guest)
        result = preflight_present_bytes(guest, &c->bytes, err);
    if (!result) {
        c->deadline = clock_now() + CHECK_MS * NS_PER_MS;
        result = c->socket = address_connect(&options->destination, CHECK_MS, -1, err);
        if (result < 0)
            error_prefix(err, "the destination cannot be reached");
    }
    if (result >= 0) {
        result = ask(c, err);
        close(c->socket);
    }
    free(c);
    return result;
}
