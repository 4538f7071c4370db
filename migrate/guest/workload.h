/* The controlled workload that lab and synthetic guests run: what is touched, what is written how
 * fast, in which order. One specification text, "--workload", for both. */
#ifndef MIGRATE_GUEST_WORKLOAD_H
#define MIGRATE_GUEST_WORKLOAD_H

#include <stdint.h>

#include "migrate/guest/guest.h"
#include "migrate/guest/workload_pattern.h"

enum workload_content {
    CONTENT_ZERO,
    CONTENT_CONSTANT,
    CONTENT_COMPRESSIBLE,
    CONTENT_INCOMPRESSIBLE
};

/* All sizes in bytes, multiples of the page size; offsets count from the start of the area the
 * guest leaves to the workload (behind its own image). */
struct workload {
    uint64_t touch;                /* filled with `content` before the guest starts; default 0 */
    enum workload_content content; /* default incompressible */
    uint64_t hot;    /* working set that is written over and over; 0: idle; default 0 */
    uint64_t hot_at; /* where it begins; default 0 */
    uint64_t rate; /* pages written per second, all vCPUs together; UINT64_MAX: as fast as it can */
    enum workload_pattern pattern; /* default sequential */
    /* hotcold: percent of writes that go to the first tenth of `hot`; default 90 */
    unsigned hot_share;
    uint64_t window; /* window: bytes of `hot` written at a time; moves on by one window a second */
    uint64_t seed;   /* of the random pattern and of content; default 1 */
};

/* Defaults, then "key=value,…" over them. Keys: touch content hot at rate pattern hot-share window
 * seed; rate is pages/s ("5000"), bytes/s ("20M/s": bytes divided by the page size) or "max". An
 * unknown key is -EINVAL and lists the known ones. NULL or "" gives the defaults. */
int workload_parse(const char *spec, struct workload *out, struct error *err);
/* The specification that parses to the same workload. Returns `out`. */
char *workload_format(const struct workload *workload, char *out, size_t size);
/* -EINVAL when it does not fit into `available` bytes (what the guest leaves to the workload). */
int workload_check(const struct workload *workload, uint64_t available, struct error *err);

/* Fills `size` bytes (a multiple of the page size) with bulk content, from the host's side; the
 * bytes depend on content kind, seed and page index only. CONTENT_ZERO touches without leaving
 * anything but zeros. */
void workload_fill(void *memory, uint64_t first_page, uint64_t size, enum workload_content content,
                   uint64_t seed);

/* The next page of the hot set to write, given a counter that goes up by one a write. Pure; integer
 * arithmetic only: the lab guest compiles the same source. `vcpu` of `vcpus` writes its own
 * interleaved share, so that no two write the same page. Returns a page index within the hot set.
 */
uint64_t workload_page(const struct workload *workload, uint64_t counter, unsigned vcpu,
                       unsigned vcpus, uint64_t elapsed_ms);

#endif
