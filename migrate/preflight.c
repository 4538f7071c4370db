#include "migrate/preflight.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int preflight_present_bytes(struct guest *guest, uint64_t *bytes, struct error *err)
{
    const struct guest_region *regions;
    unsigned count = guest->ops->regions(guest, &regions);
    int result = 0;

    *bytes = 0;
    for (unsigned i = 0; i < count && !result; i++) {
        struct extent_list present = {0};

        result = guest->ops->present(guest, regions[i].id, &present, err);
        *bytes += extent_list_bytes(&present);
        extent_list_free(&present);
    }
    return result;
}

struct transport_params preflight_params(const struct migration_options *options)
{
    return (struct transport_params){
        .lanes = options->lanes,
        .operation = options->operation,
        .registration = options->registration,
        .pin_limit = options->pin_limit,
        .dscp = options->dscp,
    };
}

static uint64_t limit_or_default(uint64_t limit)
{
    return limit ? limit : (uint64_t)TRANSPORT_DEFAULT_PIN_LIMIT;
}

struct transport_params preflight_destination_params(const struct hello *hello, uint64_t pin_limit)
{
    uint64_t own = limit_or_default(pin_limit), theirs = limit_or_default(hello->pin_limit);

    return (struct transport_params){
        .lanes = hello->lanes,
        .operation = hello->operation,
        .registration = hello->registration,
        .pin_limit = own < theirs ? own : theirs,
    };
}

void preflight_hello(const struct migration_options *options, uint64_t present_bytes,
                     struct hello *hello)
{
    memcpy(hello->scheme, options->destination.scheme, sizeof(hello->scheme));
    hello->lanes = options->lanes;
    hello->operation = (uint8_t)options->operation;
    hello->registration = (uint8_t)options->registration;
    hello->pin_limit = options->pin_limit;
    hello->present_bytes = present_bytes;
}

int preflight_verdict(const struct transport_findings *findings, struct error *err)
{
    char text[ERROR_TEXT_SIZE] = "";

    for (unsigned i = 0; i < findings->count; i++) {
        size_t used = strlen(text);

        if (findings->all[i].fatal)
            snprintf(text + used, sizeof(text) - used, "%s%s", used ? "; " : "",
                     findings->all[i].text);
    }
    return text[0] ? error_set(err, ENOTSUP, "%s", text) : 0;
}
