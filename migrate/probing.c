/* The destination's answers to `wander check` and to rehearsals. */
#include "migrate/destination.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migrate/guest/host_memory.h"
#include "migrate/preflight.h"
#include "migrate/rehearsal.h"
#include "transport/base/clock.h"

enum {
    QUESTION_MS = 10000,
    LANE_MS = 6000,
    ROOM_MS = 20000, /* a rehearsal's lanes, at most */
    ROOM_SHARE = 4,  /* of the free memory, the part that a rehearsal may have */
};

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

/* Where the source may send to: one lane's trial, or room to rehearse in. Nobody reads it. */
struct scratch {
    void *memory;
    uint64_t size;
    struct guest_region region; /* the same, as a guest's memory would be prepared */
    struct prefault *prefault;
};

/* Never more than a share of what is free here, whatever the source asks for. */
static uint64_t room_for(const struct probe_message *wanted)
{
    uint64_t room = wanted->room, most = host_memory_available() / ROOM_SHARE;

    if (room == 0)
        return PREFLIGHT_TRIAL_BYTES;
    room = room < REHEARSAL_BYTES ? room : REHEARSAL_BYTES;
    room = room < most ? room : most;
    return room / GUEST_CHUNK_SIZE * GUEST_CHUNK_SIZE;
}

static void *map_scratch(const struct probe_message *wanted, uint64_t size)
{
    if (wanted->backing != GUEST_NAMED_FILE)
        return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int file = memfd_create("rehearsal", MFD_CLOEXEC);
    if (file < 0)
        return MAP_FAILED;
    void *memory = ftruncate(file, (off_t)size)
                       ? MAP_FAILED
                       : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return memory;
}

/* Made as a guest's memory is, so that its pages cost here what theirs do. */
static int open_scratch(struct scratch *s, const struct probe_message *wanted, struct error *err)
{
    *s = (struct scratch){.size = room_for(wanted)};
    if (s->size == 0)
        return error_set(err, ENOMEM, "this host has no memory to spare for a rehearsal");
    void *memory = map_scratch(wanted, s->size);
    if (memory == MAP_FAILED)
        return error_set_errno(err, errno, "no memory for a trial of lanes");
    s->memory = memory;
    s->region = (struct guest_region){.size = s->size, .host = memory, .backing = wanted->backing};
    if (wanted->room == 0)
        return 0;
    madvise(memory, s->size, MADV_HUGEPAGE);
    if (prefault_new(&s->region, 1, &s->prefault, err))
        return -err->code;
    prefault_add(s->prefault, 0, &(struct extent){0, s->size});
    return 0;
}

static void close_scratch(struct scratch *s)
{
    prefault_stop(s->prefault);
    if (s->memory)
        munmap(s->memory, s->size);
}

/* An end for lanes, listening; what keeps it from that is a finding. */
static struct transport *open_trial(struct incoming *in, const struct probe_message *wanted,
                                    struct scratch *scratch, struct found_message *found)
{
    struct transport_params params =
        preflight_destination_params(&in->hello, in->options.pin_limit);
    struct transport *transport = NULL;
    struct error err = {0};
    struct address at;

    if (wanted->room == 0)
        params.lanes = 1;
    params.epoch = in->hello.epoch;
    memcpy(params.token, in->hello.token, sizeof(params.token));
    int result = open_scratch(scratch, wanted, &err);
    if (!result)
        result = transport_new(in->hello.scheme, &params, &transport, &err);
    if (!result)
        result = transport_open_region(
            transport, &(struct transport_region){.base = scratch->memory, .size = scratch->size},
            &err);
    if (!result)
        result = address_of_local(channel_socket(in->channel), in->hello.scheme, &at, &err);
    if (!result) {
        at.port = 0;
        result = transport_listen(transport, &at, &found->lane_port, &err);
    }
    if (!result) {
        found->room = wanted->room ? scratch->size : 0;
        return transport;
    }
    transport_findings_add(&found->findings, true, "%s", err.text);
    transport_close(transport);
    return NULL;
}

/* Until the source closes its lanes. How that went is the source's to tell. */
static void serve_trial(struct incoming *in, struct transport *transport, struct prefault *prefault,
                        uint64_t deadline)
{
    struct completion none;
    struct error err = {0};
    int result;

    if (prefault)
        prefault_start(prefault);
    result = transport_accept(transport, LANE_MS, &err);
    while (result == 0 && clock_now() < deadline && !atomic_load(&in->cancelled))
        result = transport_reap(transport, &none, 1, DESTINATION_POLL_MS, &err);
    transport_shutdown(transport);
    transport_close(transport);
}

static int answer_probe(struct incoming *in, const struct message *m, struct error *err)
{
    struct found_message found = {0};
    struct probe_message wanted;
    struct scratch scratch = {0};
    struct transport *transport = NULL;
    int result = probe_decode(m, &wanted, err);
    uint8_t *body = result ? NULL : malloc(PROTO_BODY_SIZE);

    if (!body)
        return result ? result : error_set(err, ENOMEM, "no memory for an answer");
    destination_look_at_lanes(in, 0, &found.findings);
    if (preflight_verdict(&found.findings, NULL) == 0)
        transport = open_trial(in, &wanted, &scratch, &found);
    result = channel_send(in->channel, MESSAGE_FOUND, body, found_encode(&found, body), err);
    if (result)
        transport_close(transport); /* nobody knows of it */
    else if (transport)
        serve_trial(in, transport, scratch.prefault,
                    clock_now() + (wanted.room ? ROOM_MS : LANE_MS) * NS_PER_MS);
    close_scratch(&scratch);
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
            result = answer_probe(in, &m, err);
        else if (m.type == MESSAGE_GUEST)
            result = answer_guest(in, &m, err);
        else
            result = message_unexpected(&m, "GUEST or PROBE", err);
        message_free(&m);
        if (result || was_probe)
            return result;
    }
}
