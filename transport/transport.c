#include "transport/transport.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "transport/base/log.h"
#include "transport/tcp/tcp.h"
#ifdef WANDER_WITH_RDMA
#include "transport/rdma/check.h"
#include "transport/rdma/rdma.h"
#endif

typedef int transport_new_fn(const struct transport_params *params, struct transport **out,
                             struct error *err);

typedef void transport_check_fn(const struct transport_params *params, const struct address *at,
                                enum transport_end end, uint64_t bytes,
                                struct transport_findings *out);

#ifndef WANDER_WITH_RDMA
static int rdma_transport_new(const struct transport_params *params, struct transport **out,
                              struct error *err)
{
    (void)params, (void)out;
    return error_set(err, EPROTONOSUPPORT,
                     "this build of wander lacks RDMA (it was built with -DWITH_RDMA=OFF, or where "
                     "the libraries were not there): install libibverbs-dev and librdmacm-dev and "
                     "build again, or use tcp://");
}

static void rdma_check(const struct transport_params *params, const struct address *at,
                       enum transport_end end, uint64_t bytes, struct transport_findings *out)
{
    struct transport *none;
    struct error err = {0};

    (void)at, (void)end, (void)bytes;
    rdma_transport_new(params, &none, &err);
    transport_findings_add(out, true, "%s", err.text);
}
#endif

static const struct transport_scheme {
    const char *scheme;
    transport_new_fn *make;
    transport_check_fn *check; /* NULL: nothing to look at */
} schemes[] = {
    {"tcp", tcp_transport_new, NULL},
    {"rdma", rdma_transport_new, rdma_check},
};

enum { SCHEME_COUNT = sizeof schemes / sizeof *schemes };

/* NULL, and a text that names those there are. */
static const struct transport_scheme *find_scheme(const char *scheme, struct error *err)
{
    char known[128] = "";

    for (unsigned i = 0; i < SCHEME_COUNT; i++) {
        if (strcmp(schemes[i].scheme, scheme) == 0)
            return &schemes[i];
        strncat(known, i ? ", " : "", sizeof known - strlen(known) - 1);
        strncat(known, schemes[i].scheme, sizeof known - strlen(known) - 1);
        strncat(known, "://", sizeof known - strlen(known) - 1);
    }
    error_set(err, EPROTONOSUPPORT, "there is no transport for the scheme \"%s\"; there are: %s",
              scheme, known);
    return NULL;
}

int transport_scheme_check(const char *scheme, struct error *err)
{
    return find_scheme(scheme, err) ? 0 : -EPROTONOSUPPORT;
}

int transport_new(const char *scheme, const struct transport_params *params, struct transport **out,
                  struct error *err)
{
    const struct transport_scheme *found = find_scheme(scheme, err);

    if (!found)
        return -EPROTONOSUPPORT;
    if (params->lanes < 1 || params->lanes > TRANSPORT_MAX_LANES)
        return error_set(err, EINVAL, "%u lanes asked for; 1 to %d are possible", params->lanes,
                         TRANSPORT_MAX_LANES);
    if (params->dscp > 63)
        return error_set(err, EINVAL, "a DSCP is 0 to 63, not %u", params->dscp);
    return found->make(params, out, err);
}

void transport_findings_add(struct transport_findings *findings, bool fatal, const char *format,
                            ...)
{
    va_list arguments;

    if (findings->count == TRANSPORT_MAX_FINDINGS)
        return;
    struct transport_finding *finding = &findings->all[findings->count++];
    finding->fatal = fatal;
    va_start(arguments, format);
    vsnprintf(finding->text, sizeof finding->text, format, arguments);
    va_end(arguments);
}

void transport_check(const char *scheme, const struct transport_params *params,
                     const struct address *at, enum transport_end end, uint64_t bytes,
                     struct transport_findings *out)
{
    struct error err = {0};
    const struct transport_scheme *found = find_scheme(scheme, &err);

    *out = (struct transport_findings){0};
    if (!found)
        transport_findings_add(out, true, "%s", err.text);
    else if (found->check)
        found->check(params, at, end, bytes, out);
}

const char *transport_operation_name(enum transport_operation operation)
{
    return operation == TRANSPORT_READ ? "read" : "write";
}

const char *transport_registration_name(enum transport_registration registration)
{
    return registration == TRANSPORT_REGISTER_CHUNK ? "chunk" : "all";
}

/* Set-up calls and failures are traced; post, kick and reap are too many, their failures are not.
 */
static int traced(const struct transport *t, const char *operation, int result,
                  const struct error *err)
{
    if (result < 0)
        log_line(LOG_DEBUG, "%s: %s: %s", t->ops->name, operation, err->text);
    return result;
}

unsigned transport_capabilities(const struct transport *t)
{
    return t->ops->capabilities(t);
}

int transport_listen(struct transport *t, const struct address *at, uint16_t *port,
                     struct error *err)
{
    int result = t->ops->listen(t, at, port, err);

    if (!result)
        log_line(LOG_DEBUG, "%s: listening on %s port %u", t->ops->name, at->host, *port);
    return traced(t, "listen", result, err);
}

int transport_accept(struct transport *t, int timeout_ms, struct error *err)
{
    if (timeout_ms < 0)
        return error_set(err, EINVAL, "accept needs a time limit");
    return traced(t, "accept", t->ops->accept(t, timeout_ms, err), err);
}

int transport_connect(struct transport *t, const struct address *peer, int timeout_ms,
                      struct error *err)
{
    if (timeout_ms < 0)
        return error_set(err, EINVAL, "connect needs a time limit");
    return traced(t, "connect", t->ops->connect(t, peer, timeout_ms, err), err);
}

int transport_open_region(struct transport *t, const struct transport_region *region,
                          struct error *err)
{
    if (!region->base || !region->size || region->size > UINTPTR_MAX - (uintptr_t)region->base)
        return error_set(err, EINVAL, "region %u has no memory or no size", region->id);
    return traced(t, "open_region", t->ops->open_region(t, region, err), err);
}

int transport_close_region(struct transport *t, uint32_t id, struct error *err)
{
    return traced(t, "close_region", t->ops->close_region(t, id, err), err);
}

void transport_will_need(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    t->ops->will_need(t, region, offset, length);
}

void transport_done_with(struct transport *t, uint32_t region, uint64_t offset, uint64_t length)
{
    t->ops->done_with(t, region, offset, length);
}

static int check_transfer(const struct transfer *t, struct error *err)
{
    size_t limit = t->kind == TRANSFER_BLOB ? TRANSPORT_MAX_BLOB : TRANSPORT_MAX_TRANSFER;

    if (t->kind != TRANSFER_PLACE && t->kind != TRANSFER_BLOB)
        return error_set(err, EINVAL, "a transfer of unknown kind %d", (int)t->kind);
    if (t->lane_class != TRANSFER_BULK || t->notify)
        return error_set(err, EINVAL, "urgent and notifying transfers are reserved");
    if (!t->bytes || !t->length || t->length > limit)
        return error_set(err, EINVAL, "a transfer of %zu bytes; 1 to %zu are possible", t->length,
                         limit);
    if (t->offset > UINT64_MAX - t->length)
        return error_set(err, EINVAL, "a transfer beyond the end of its address space");
    return 0;
}

int transport_post(struct transport *t, const struct transfer *transfers, unsigned n,
                   struct error *err)
{
    for (unsigned i = 0; i < n; i++) {
        int result = check_transfer(&transfers[i], err);

        if (result < 0)
            return traced(t, "post", result, err);
    }
    return traced(t, "post", t->ops->post(t, transfers, n, err), err);
}

int transport_kick(struct transport *t, struct error *err)
{
    return traced(t, "kick", t->ops->kick(t, err), err);
}

int transport_fence(struct transport *t, uint64_t id, struct error *err)
{
    return traced(t, "fence", t->ops->fence(t, id, err), err);
}

int transport_reap(struct transport *t, struct completion *completions, unsigned max,
                   int timeout_ms, struct error *err)
{
    if (max && !completions)
        return error_set(err, EINVAL, "reap without room for completions");
    return traced(t, "reap", t->ops->reap(t, completions, max, timeout_ms, err), err);
}

void transport_stats(const struct transport *t, struct transport_stats *stats)
{
    t->ops->stats(t, stats);
}

bool transport_describe(const struct transport *t, struct transport_device *device)
{
    *device = (struct transport_device){0};
    return t->ops->describe(t, device);
}

void transport_shutdown(struct transport *t)
{
    t->ops->shutdown(t);
}

void transport_close(struct transport *t)
{
    if (t)
        t->ops->close(t);
}
