/* `wander check`: what would be refused, and whether lanes work, without moving anything. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/incoming.h"
#include "migrate/inquiry.h"
#include "migrate/preflight.h"
#include "migrate/trial.h"
#include "transport/base/clock.h"
#include "transport/base/options.h"

enum { CHECK_MS = 10000, TRIAL_MS = 5000 };

/* One `wander check` under way. */
struct check {
    const struct migration_options *options;
    struct guest *guest; /* or NULL */
    struct check_report *report;
    struct transport_params params;
    uint64_t bytes;
    struct inquiry inquiry;
    struct transport_findings here;
    struct found_message there;
};

void check_report_free(struct check_report *report)
{
    reasons_free(&report->ends);
    reasons_free(&report->refused);
    reasons_free(&report->notes);
}

/* One chunk through one lane, and the fence that says it has arrived. */
static int try_lane(struct check *c, const struct address *peer, void *memory, struct error *err)
{
    struct transport_params params = c->params;
    struct trial_config config = {
        .peer = peer,
        .params = &params,
        .filter = "",
        .memory = memory,
        .size = PREFLIGHT_TRIAL_BYTES,
        .piece_bytes = PREFLIGHT_TRIAL_BYTES,
        .least_bytes = PREFLIGHT_TRIAL_BYTES,
        .limit_ns = TRIAL_MS * NS_PER_MS,
    };
    struct trial_result result;

    params.lanes = 1;
    params.epoch = 1;
    memcpy(params.token, c->inquiry.token, sizeof(params.token));
    return trial_run(&config, TRIAL_MS, &result, err);
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
    int result =
        inquiry_lane_address(&c->inquiry, c->options->destination.scheme, &c->there, &peer, err);
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
    struct address peer;
    int result = address_of_peer(c->inquiry.socket, c->options->destination.scheme, &peer, err);

    if (result)
        return result;
    transport_check(peer.scheme, &c->params, &peer, TRANSPORT_SOURCE, c->bytes, &c->here);
    result = inquiry_greet(&c->inquiry, c->options, c->bytes, err);
    if (result <= 0) {
        report_end(c, "source", &c->here);
        return result;
    }
    result = c->guest ? inquiry_present(&c->inquiry, c->guest, err) : 0;
    if (result >= 0)
        result = inquiry_probe(&c->inquiry, NULL, &c->there, err);
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
    if (guest)
        result = preflight_present_bytes(guest, &c->bytes, err);
    if (!result)
        result =
            inquiry_open(&options->destination, CHECK_MS, -1, &report->refused, &c->inquiry, err);
    if (!result) {
        result = ask(c, err);
        inquiry_close(&c->inquiry);
    }
    free(c);
    return result;
}
