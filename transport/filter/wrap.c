/* Filter specifications: "rate=100M,delay=5ms,fault=cut@17", leftmost outermost. */
#include <errno.h>
#include <string.h>

#include "transport/base/options.h"
#include "transport/filter/filter.h"
#include "transport/filter/pass.h"

enum { MAX_FILTERS = 16 };

struct filter_kind;

/* One filter of a specification, checked and not yet built. */
struct setting {
    const struct filter_kind *kind;
    uint64_t number;
    enum fault_action action;
};

struct filter_kind {
    const char *name;
    int (*parse)(const char *value, struct setting *setting, struct error *err);
    int (*make)(const struct setting *setting, struct transport *inner, struct transport **out,
                struct error *err);
};

static const struct {
    const char *name;
    enum fault_action action;
} fault_actions[] = {
    {"fail", FAULT_FAIL},
    {"stall", FAULT_STALL},
    {"cut", FAULT_CUT},
    {"skip", FAULT_SKIP},
};

static int rate_parse(const char *value, struct setting *setting, struct error *err)
{
    return parse_rate(value, &setting->number, err);
}

static int rate_make(const struct setting *setting, struct transport *inner, struct transport **out,
                     struct error *err)
{
    return rate_filter_new(inner, setting->number, out, err);
}

static int delay_parse(const char *value, struct setting *setting, struct error *err)
{
    return parse_time(value, &setting->number, err);
}

static int delay_make(const struct setting *setting, struct transport *inner,
                      struct transport **out, struct error *err)
{
    return delay_filter_new(inner, setting->number, out, err);
}

static int fault_parse(const char *value, struct setting *setting, struct error *err)
{
    size_t length = strcspn(value, "@");

    for (unsigned i = 0; value[length] && i < sizeof(fault_actions) / sizeof(fault_actions[0]);
         i++) {
        if (strlen(fault_actions[i].name) != length ||
            strncmp(fault_actions[i].name, value, length))
            continue;
        setting->action = fault_actions[i].action;
        return parse_number(value + length + 1, 1, UINT64_MAX, &setting->number, err);
    }
    return error_set(
        err, EINVAL,
        "\"%s\" is no fault: write fail@N, stall@N, cut@N or skip@N, N being the number "
        "of the operation",
        value);
}

static int fault_make(const struct setting *setting, struct transport *inner,
                      struct transport **out, struct error *err)
{
    return fault_filter_new(inner, setting->action, setting->number, out, err);
}

static const struct filter_kind kinds[] = {
    {.name = "rate", .parse = rate_parse, .make = rate_make},
    {.name = "delay", .parse = delay_parse, .make = delay_make},
    {.name = "fault", .parse = fault_parse, .make = fault_make},
};

static const struct filter_kind *kind_find(const char *name)
{
    for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (!strcmp(kinds[i].name, name))
            return &kinds[i];
    return NULL;
}

/* Fills up to MAX_FILTERS settings; returns how many there are. */
static int parse_spec(const char *spec, struct setting *settings, struct error *err)
{
    char name[16], value[64];
    int count = 0, result;

    while ((result = next_pair(&spec, name, sizeof(name), value, sizeof(value), err)) > 0) {
        struct setting *setting = &settings[count];

        if (count++ == MAX_FILTERS)
            return error_set(err, E2BIG, "more than %d filters", MAX_FILTERS);
        setting->kind = kind_find(name);
        if (!setting->kind)
            return error_set(err, EINVAL,
                             "there is no filter \"%s\"; there are: rate, delay, fault", name);
        result = setting->kind->parse(value, setting, err);
        if (result) {
            error_prefix(err, "filter %s", name);
            return result;
        }
    }
    return result ? result : count;
}

int transport_wrap_check(const char *spec, struct error *err)
{
    struct setting settings[MAX_FILTERS];
    int count = parse_spec(spec, settings, err);

    return count < 0 ? count : 0;
}

int transport_wrap(const char *spec, struct transport **transport, struct error *err)
{
    struct setting settings[MAX_FILTERS];
    struct transport *outer = *transport;
    int result, built = 0, count = parse_spec(spec, settings, err);

    if (count < 0)
        return count;
    for (; built < count; built++) {
        const struct setting *setting = &settings[count - 1 - built];

        result = setting->kind->make(setting, outer, &outer, err);
        if (result)
            goto detach_filters;
    }
    *transport = outer;
    return 0;

detach_filters:
    while (built--)
        outer = filter_detach(outer);
    return result;
}
