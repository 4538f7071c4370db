/* Of which moves a rehearsal tells anything. */
#include <criterion/criterion.h>
#include <string.h>

#include "migrate/rehearsal.h"

static struct migration_options example(void)
{
    return (struct migration_options){
        .destination = {"tcp", "there", 7000}, .lanes = 2, .filter = "delay=1ms"};
}

#define OTHER(name, change)                                                                        \
    static void name(struct migration_options *o)                                                  \
    {                                                                                              \
        change;                                                                                    \
    }

OTHER(nothing, (void)o)
OTHER(port, o->destination.port++)
OTHER(limits, o->limits.downtime_ns = 1)
OTHER(host, strcpy(o->destination.host, "elsewhere"))
OTHER(lanes, o->lanes++)
OTHER(cap, o->max_bandwidth = 1 << 20)
OTHER(filter, o->filter[0] = '\0')
OTHER(tracker, strcpy(o->tracker, "dirty-ring"))
OTHER(operation, o->operation = TRANSPORT_READ)
OTHER(registration, o->registration = TRANSPORT_REGISTER_CHUNK)
OTHER(pin_limit, o->pin_limit = 1 << 20)
OTHER(dscp, o->dscp = 8)
OTHER(unusable, strcpy(o->destination.scheme, "rdma"))
OTHER(untried, strcpy(o->destination.scheme, "loop"))

Test(rehearsal, tells_of_what_was_tried_just_so)
{
    static const struct {
        const char *name;
        void (*change)(struct migration_options *o);
        bool tells;
    } cases[] = {
        {"nothing", nothing, true},        {"port", port, true},
        {"limits", limits, true},          {"host", host, false},
        {"lanes", lanes, false},           {"--max-bandwidth", cap, false},
        {"filter", filter, false},         {"tracker", tracker, false},
        {"operation", operation, false},   {"registration", registration, false},
        {"--pin-limit", pin_limit, false}, {"dscp", dscp, false},
        {"unusable", unusable, false},     {"untried", untried, false},
    };
    struct rehearsal r = {.options = example(),
                          .path_count = 2,
                          .paths = {{.scheme = "tcp", .usable = true}, {.scheme = "rdma"}}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct migration_options options = example();

        cases[i].change(&options);
        const struct rehearsal_path *path = rehearsal_path(&r, &options);
        cr_expect_eq(path, cases[i].tells ? &r.paths[0] : NULL, "%s differs: expected %s",
                     cases[i].name, cases[i].tells ? "the path" : "no path");
    }
}
