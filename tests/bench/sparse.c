/* What a mostly untouched guest costs: a synthetic guest of 1 TiB with 64 MiB touched. Prints the
 * memory of the process beyond the touched pages, page tables included, and the time of an idle
 * round; exits 1 when the former reaches 200 MiB or the latter 0.1 s, 77 where this kernel cannot
 * track. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/synthetic/synthetic.h"
#include "migrate/guest/tracker.h"
#include "transport/base/clock.h"
#include "transport/base/options.h"

#define MIB          (1ull << 20)
#define MEMORY       (1ull << 40)
#define MEMORY_LIMIT (200 * MIB)
#define ROUND_LIMIT  (NS_PER_S / 10)

enum { ROUNDS = 20 };

static uint64_t status_bytes(const char *key)
{
    char line[256];
    uint64_t kib = 0;
    FILE *file = fopen("/proc/self/status", "re");

    while (file && fgets(line, sizeof(line), file)) {
        if (strncmp(line, key, strlen(key)) == 0 &&
            sscanf(line + strlen(key), ": %" SCNu64, &kib) == 1)
            break;
    }
    if (file)
        fclose(file);
    return kib * 1024;
}

/* One round over a guest that writes nothing. Returns how long it took, or 0 after an error. */
static uint64_t idle_round(struct tracker *t, struct error *err)
{
    uint64_t pages, page = 0, start = clock_now();

    if (t->ops->collect(t, &pages, err) < 0)
        return 0;
    if (pages || t->ops->next(t, 0, &page)) {
        error_set(err, EXIT_FAILURE, "%" PRIu64 " pages are dirty, and nobody wrote any", pages);
        return 0;
    }
    return clock_now() - start;
}

static int measure(struct guest *g, struct tracker *t, struct error *err)
{
    struct extent_list present = {0};
    uint64_t slowest = 0, beyond;
    char text[2][32];

    if (t->ops->start(t, err) < 0 || g->ops->present(g, 0, &present, err) < 0)
        return -1;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t ns = idle_round(t, err);
        if (ns == 0)
            return -1;
        slowest = ns > slowest ? ns : slowest;
    }
    beyond = status_bytes("VmRSS") + status_bytes("VmPTE") - extent_list_bytes(&present);
    printf("present                %s in %zu extents\n",
           format_size(extent_list_bytes(&present), text[0], sizeof(text[0])), present.count);
    printf("page tables            %s\n",
           format_size(status_bytes("VmPTE"), text[0], sizeof(text[0])));
    printf("beyond touched pages   %s (limit %s)\n", format_size(beyond, text[0], sizeof(text[0])),
           format_size(MEMORY_LIMIT, text[1], sizeof(text[1])));
    printf("slowest idle round     %.3f ms of %d (limit %.0f ms)\n", ns_to_ms(slowest), ROUNDS,
           ns_to_ms(ROUND_LIMIT));
    extent_list_free(&present);
    return beyond < MEMORY_LIMIT && slowest < ROUND_LIMIT ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(void)
{
    struct synthetic_config config = {.name = "sparse", .memory_bytes = MEMORY, .vcpus = 2};
    struct error err = {0};
    struct tracker *t;
    struct guest *g;
    int rc = -1;

    if (synthetic_probe(&err) < 0) {
        fprintf(stderr, "skipped: %s\n", err.text);
        return 77;
    }
    if (workload_parse("touch=64M", &config.workload, &err) == 0 &&
        synthetic_guest_new(&config, &g, &err) == 0) {
        if (g->ops->resume(g, &err) == 0 && g->ops->tracker(g, NULL, &t, &err) == 0) {
            rc = measure(g, t, &err);
            t->ops->close(t);
        }
        g->ops->destroy(g);
    }
    if (rc < 0)
        fprintf(stderr, "%s\n", err.text);
    return rc < 0 ? EXIT_FAILURE : rc;
}
