#include "transport/filter/pass.h"

#include <errno.h>
#include <stdlib.h>

int filter_new(size_t size, const struct transport_ops *ops, struct transport *inner,
               struct filter **out, struct error *err)
{
    struct filter *f = calloc(1, size);

    if (!f)
        return error_set_errno(err, ENOMEM, "cannot make the filter \"%s\"", ops->name);
    f->transport.ops = ops;
    f->inner = inner;
    latch_init(&f->latch);
    *out = f;
    return 0;
}

struct transport *filter_detach(struct transport *t)
{
    struct filter *f = (struct filter *)t;
    struct transport *inner = f->inner;

    f->inner = NULL;
    transport_close(t);
    return inner;
}

int filter_sleep(struct filter *f, int timeout_ms, struct error *err)
{
    return latch_await_end(&f->latch, timeout_ms, err);
}

static struct transport *inner_of(const struct transport *t)
{
    return ((const struct filter *)t)->inner;
}

static int check_end(struct transport *t, struct error *err)
{
    return latch_check(&((struct filter *)t)->latch, err);
}

unsigned pass_capabilities(const struct transport *t)
{
    return transport_capabilities(inner_of(t));
}

int pass_listen(struct transport *t, const struct address *at, uint16_t *port, struct error *err)
{
    int result = check_end(t, err);

    return result ? result : transport_listen(inner_of(t), at, port, err);
}

int pass_accept(struct transport *t, int timeout_ms, struct error *err)
{
    int result = check_end(t, err);

    return result ? result : transport_accept(inner_of(t), timeout_ms, err);
}

int pass_connect(struct transport *t, const struct address *peer, int timeout_ms, struct error *err)
{
    int result = check_end(t, err);

    return result ? result : transport_connect(inner_of(t), peer, timeout_ms, err);
}

int pass_open_region(struct transport *t, const struct transport_region *region, struct error *err)
{
    int result = check_end(t, err);

    return result ? result : transport_open_region(inner_of(t), region, err);
}

int pass_close_region(struct transport *t, uint32_t id, struct error *err)
{
    int result = check_end(t, err);

    return result ? result : transport_close_region(inner_of(t), id, err);
}

void pass_will_need(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    transport_will_need(inner_of(t), region, offset, length);
}

void pass_done_with(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    transport_done_with(inner_of(t), region, offset, length);
}

int pass_post(struct transport *t, const struct transfer *transfers, unsigned n, struct error *err)
{
    int result = check_end(t, err);

    return result ? result : transport_post(inner_of(t), transfers, n, err);
}

int pass_kick(struct transport *t, struct error *err)
{
    int result = check_end(t, err);

    return result ? result : transport_kick(inner_of(t), err);
}

int pass_fence(struct transport *t, uint64_t id, struct error *err)
{
    int result = check_end(t, err);

    return result ? result : transport_fence(inner_of(t), id, err);
}

int pass_reap(struct transport *t, struct completion *completions, unsigned max, int timeout_ms,
              struct error *err)
{
    int result = check_end(t, err);

    return result ? result : transport_reap(inner_of(t), completions, max, timeout_ms, err);
}

void pass_stats(const struct transport *t, struct transport_stats *stats)
{
    transport_stats(inner_of(t), stats);
}

bool pass_describe(const struct transport *t, struct transport_device *device)
{
    return transport_describe(inner_of(t), device);
}

void pass_shutdown(struct transport *t)
{
    latch_shutdown(&((struct filter *)t)->latch);
    transport_shutdown(inner_of(t));
}

void pass_close(struct transport *t)
{
    struct filter *f = (struct filter *)t;

    transport_close(f->inner);
    latch_destroy(&f->latch);
    free(f);
}
