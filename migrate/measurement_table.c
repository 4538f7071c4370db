#include "migrate/measurement.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "migrate/measurement_fields.h"
#include "transport/base/clock.h"
#include "transport/base/options.h"

enum { BAR_WIDTH = 30 };

static const double bytes_per_mib = 1 << 20, bytes_per_gib = 1 << 30;

static void print_heading(FILE *out, const struct measurement *m)
{
    char memory[32];

    format_size(m->memory_bytes, memory, sizeof(memory));
    if (!m->guest_kind[0]) { /* failed before the guest was described */
        fprintf(out, "guest to %s\n", m->destination);
        return;
    }
    fprintf(out, "%s guest \"%s\" (%s, %s%s%u vCPU%s, %s) to %s, %u lane%s%s%s\n", m->guest_kind,
            m->guest_name, m->accel, m->tracker, m->tracker[0] ? ", " : "", m->vcpus,
            m->vcpus == 1 ? "" : "s", memory, m->destination, m->lanes, m->lanes == 1 ? "" : "s",
            m->filter[0] ? ", filter " : "", m->filter);
}

static void print_result(FILE *out, const struct measurement *m)
{
    fprintf(out, "result        %s%s%s\n\n", m->result, m->error[0] ? ": " : "", m->error);
}

static double mib_per_s(uint64_t bytes, uint64_t ns)
{
    return ns ? (double)bytes / bytes_per_mib / ((double)ns / (double)NS_PER_S) : 0;
}

static void print_round(FILE *out, const struct round_measurement *r, size_t number)
{
    char name[24], predicted[32] = "-";

    snprintf(name, sizeof(name), r->paused ? "paused" : "%zu", number);
    if (r->predicted_downtime_ns)
        snprintf(predicted, sizeof(predicted), "%.1f", ns_to_ms(r->predicted_downtime_ns));
    fprintf(out, "%6s %11" PRIu64 " %10.1f %10.1f %9.1f %11" PRIu64 " %13s %8u%%\n", name, r->pages,
            (double)r->bytes / bytes_per_mib, ns_to_ms(r->ns), mib_per_s(r->bytes, r->ns),
            r->dirty_pages_after, predicted, r->throttle);
}

static void print_rounds(FILE *out, const struct measurement *m)
{
    if (!m->round_count)
        return;
    fprintf(out, "%6s %11s %10s %10s %9s %11s %13s %9s\n", "round", "pages", "MiB", "ms", "MiB/s",
            "dirty after", "predicted ms", "throttle");
    for (size_t i = 0; i < m->round_count; i++)
        print_round(out, &m->rounds[i], i);
    fputc('\n', out);
}

/* A share of `whole` in at most BAR_WIDTH characters, rounded to the nearest. */
static void print_bar(FILE *out, uint64_t part, uint64_t whole)
{
    double share = whole ? (double)part / (double)whole : 0;
    int width = share < 1 ? (int)(share * BAR_WIDTH + 0.5) : BAR_WIDTH;

    while (width-- > 0)
        fputc('#', out);
    fputc('\n', out);
}

static void print_downtime(FILE *out, const struct measurement *m)
{
    const struct destination_measurement *d = &m->destination_half;
    const struct {
        const char *name;
        uint64_t ns;
    } parts[] = {
        {"pause", m->downtime.pause},
        {"final copy", m->downtime.final_copy},
        {"verify", m->downtime.verify},
        {"state save", m->downtime.state_save},
        {"state transfer", m->downtime.state_transfer},
        {"state load", first_known_ns(m->downtime.state_load, d, d->state_load_ns)},
        {"resume", first_known_ns(m->downtime.resume, d, d->resume_ns)},
    };

    fprintf(out, "downtime      %10.3f ms (limit %.1f, predicted %.1f%s)\n",
            ns_to_ms(m->downtime_ns), ns_to_ms(m->limits.downtime_ns),
            ns_to_ms(m->predicted_downtime_ns), m->forced ? ", forced" : "");
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (!parts[i].ns)
            continue;
        fprintf(out, "  %-14s%8.3f ms  ", parts[i].name, ns_to_ms(parts[i].ns));
        print_bar(out, parts[i].ns, m->downtime_ns);
    }
}

/* What was said beforehand beside what came of it. */
static void print_prediction(FILE *out, const struct measurement *m)
{
    const struct prediction *p = &m->prediction.is;
    const char *when =
        m->prediction.basis == PREDICTION_REHEARSED ? "before it began" : "after the first round";

    if (!m->prediction.basis)
        return;
    if (!p->converges) {
        fprintf(out, "predicted     that it does not converge (%s); measured %.1f ms\n", when,
                ns_to_ms(m->total_ns));
        return;
    }
    fprintf(out, "predicted     %10.3f ms in total (%.1f to %.1f, %s), measured %.1f\n",
            ns_to_ms(p->total_ns.expected), ns_to_ms(p->total_ns.low), ns_to_ms(p->total_ns.high),
            when, ns_to_ms(m->total_ns));
    if (m->downtime_ns)
        fprintf(out, "predicted     %10.3f ms of downtime (%.1f to %.1f), measured %.1f\n",
                ns_to_ms(p->downtime_ns.expected), ns_to_ms(p->downtime_ns.low),
                ns_to_ms(p->downtime_ns.high), ns_to_ms(m->downtime_ns));
}

static void print_times(FILE *out, const struct measurement *m, uint64_t gap_ns)
{
    fprintf(out, "total time    %10.3f ms\n", ns_to_ms(m->total_ns));
    print_prediction(out, m);
    if (m->setup_ns)
        fprintf(out, "set-up        %10.3f ms\n", ns_to_ms(m->setup_ns));
    if (m->downtime_ns)
        print_downtime(out, m);
    if (gap_ns)
        fprintf(out, "guest gap     %10.3f ms (measured by the guest)\n", ns_to_ms(gap_ns));
    if (m->switchover_retries)
        fprintf(out, "retries       %10u pauses undone: more was dirty than foretold\n",
                m->switchover_retries);
}

static void print_volume(FILE *out, const struct measurement *m)
{
    char wire[32], guest[32], goodput[32];
    double overhead =
        m->guest_bytes ? 100 * ((double)m->wire_bytes / (double)m->guest_bytes - 1) : 0;

    format_size(m->wire_bytes, wire, sizeof(wire));
    format_size(m->guest_bytes, guest, sizeof(guest));
    format_rate((double)m->goodput, goodput, sizeof(goodput));
    fprintf(out, "pages         %10" PRIu64 " raw, %" PRIu64 " zero, %" PRIu64 " never touched\n",
            m->raw_pages, m->zero_pages, m->hole_pages);
    fprintf(out, "on the wire   %10s for %s of guest memory (%+.2f %%)\n", wire, guest, overhead);
    if (m->goodput)
        fprintf(out, "goodput       %10s\n", goodput);
    if (m->verified)
        fprintf(out, "verified      %10" PRIu64 " chunks equal at both ends\n", m->verified_chunks);
}

static void print_device(FILE *out, const struct measurement *m)
{
    const struct transport_device *d = &m->source_device.device;

    if (!m->source_device.known)
        return;
    fprintf(out, "RDMA          %s port %u, %s%s%s, MTU %u; data is%s encrypted\n", d->name,
            d->port, d->link_layer, d->gid_type[0] ? ", " : "", d->gid_type, d->mtu,
            m->source_device.encrypted ? "" : " not");
}

static void print_cpu(FILE *out, const struct measurement *m)
{
    const struct destination_measurement *d = &m->destination_half;
    double source_s = (double)m->source_cpu_ns / (double)NS_PER_S;
    double both_s = source_s + (double)d->cpu_ns / (double)NS_PER_S;

    if (!d->known) {
        fprintf(out, "CPU           %10.3f s at the source, not known at the destination\n",
                source_s);
        return;
    }
    fprintf(out, "CPU           %10.3f s at the source, %.3f s at the destination", source_s,
            both_s - source_s);
    if (m->guest_bytes)
        fprintf(out, ", %.3f s per GiB", both_s * bytes_per_gib / (double)m->guest_bytes);
    fputc('\n', out);
}

static void print_cpu_roles(FILE *out, const char *where, const struct cpu_measurement *cpu)
{
    if (!cpu->known)
        return;
    fprintf(out, "  %-12s%10.3f s engine, %.3f s lanes, %.3f s other", where,
            (double)cpu->engine_ns / (double)NS_PER_S, (double)cpu->lanes_ns / (double)NS_PER_S,
            (double)cpu->other_ns / (double)NS_PER_S);
    if (cpu->guest_ns != MEASUREMENT_UNKNOWN)
        fprintf(out, ", %.3f s guest", (double)cpu->guest_ns / (double)NS_PER_S);
    fputc('\n', out);
}

char *measurement_to_table(const struct measurement *m, uint64_t gap_ns)
{
    char *text = NULL;
    size_t size;
    int failed;
    FILE *out = open_memstream(&text, &size);

    if (!out)
        return NULL;
    print_heading(out, m);
    print_result(out, m);
    print_rounds(out, m);
    print_times(out, m, gap_ns);
    if (m->round_count)
        print_volume(out, m);
    print_device(out, m);
    print_cpu(out, m);
    print_cpu_roles(out, "source", &m->source_cpu);
    print_cpu_roles(out, "destination", &m->destination_half.cpu);
    failed = ferror(out);
    failed |= fclose(out);
    if (!failed)
        return text;
    free(text);
    return NULL;
}
