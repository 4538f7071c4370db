/* Hints and descriptions go through every filter unchanged. */
#include <criterion/criterion.h>
#include <string.h>

#include "transport/transport.h"

struct inner {
    struct transport transport;
    uint64_t needed[3], done[3];
    bool closed;
};

static void note_need(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    uint64_t *needed = ((struct inner *)t)->needed;

    needed[0] = region, needed[1] = offset, needed[2] = length;
}

static void note_done(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    uint64_t *done = ((struct inner *)t)->done;

    done[0] = region, done[1] = offset, done[2] = length;
}

static bool tell(const struct transport *t, struct transport_device *device)
{
    (void)t;
    strcpy(device->name, "rxe7");
    device->mtu = 2048;
    return true;
}

static unsigned capabilities(const struct transport *t)
{
    (void)t;
    return TRANSPORT_ONE_SIDED | TRANSPORT_PINS_MEMORY;
}

static void nothing(struct transport *t)
{
    (void)t;
}

static void note_close(struct transport *t)
{
    ((struct inner *)t)->closed = true;
}

static const struct transport_ops ops = {
    .name = "inner",
    .capabilities = capabilities,
    .will_need = note_need,
    .done_with = note_done,
    .describe = tell,
    .shutdown = nothing,
    .close = note_close,
};

Test(filter_hints, go_through_every_filter)
{
    static const char *const specs[] = {"rate=100M", "delay=1ms", "fault=cut@9",
                                        "rate=1G,delay=1ms,fault=stall@9"};

    for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++) {
        struct inner inner = {.transport.ops = &ops};
        struct transport *outer = &inner.transport;
        struct transport_device device;
        struct error err = {0};

        cr_assert_eq(transport_wrap(specs[i], &outer, &err), 0, "%s: %s", specs[i], err.text);
        transport_will_need(outer, 3, 4096, 8192);
        transport_done_with(outer, 5, 1 << 20, 12288);
        cr_expect(inner.needed[0] == 3 && inner.needed[1] == 4096 && inner.needed[2] == 8192,
                  "%s: the hint became %llu, %llu, %llu", specs[i],
                  (unsigned long long)inner.needed[0], (unsigned long long)inner.needed[1],
                  (unsigned long long)inner.needed[2]);
        cr_expect(inner.done[0] == 5 && inner.done[1] == 1 << 20 && inner.done[2] == 12288,
                  "%s: done_with did not come through", specs[i]);
        cr_expect(transport_describe(outer, &device) && !strcmp(device.name, "rxe7") &&
                      device.mtu == 2048,
                  "%s: the device is said to be '%s'", specs[i], device.name);
        cr_expect_eq(transport_capabilities(outer), capabilities(outer), "%s", specs[i]);
        transport_close(outer);
        cr_expect(inner.closed, "%s: what is inside was not closed", specs[i]);
    }
}
