/* What one migration cost: filled by the source's session thread, read by reports. One JSON
 * document. */
#ifndef MIGRATE_MEASUREMENT_H
#define MIGRATE_MEASUREMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migrate/guest/guest.h"
#include "migrate/policy.h"
#include "migrate/prediction.h"
#include "transport/transport.h"

enum { MEASUREMENT_SCHEMA = 2, MEASUREMENT_MAX_TEXT = 64 };

/* Of a figure that may be 0: nobody knows it. Printed as null. */
#define MEASUREMENT_UNKNOWN UINT64_MAX

struct round_measurement {
    uint64_t pages, zero_pages; /* handed out; of them zero */
    uint64_t skipped_pages;     /* dirty again before they were sent: left to the next round */
    uint64_t bytes, wire_bytes; /* guest bytes sent; bytes on the wire */
    uint64_t start_ns, ns;      /* since the accepted command; duration */
    uint64_t dirty_pages_after;
    uint64_t predicted_downtime_ns; /* at its end, of a switchover there and then */
    uint64_t predicted_total_ns;    /* at its end; 0: no end was foreseen */
    uint64_t guest_pages_written;   /* at its end, in all the guest's life; or UNKNOWN */
    unsigned throttle;
    bool paused; /* the last round, with the guest stopped */
};

struct host_facts {
    char kernel[MEASUREMENT_MAX_TEXT * 2], cpu[MEASUREMENT_MAX_TEXT * 2],
        hostname[MEASUREMENT_MAX_TEXT];
    char interface[MEASUREMENT_MAX_TEXT]; /* of the control channel; "lo" */
    int64_t link_mbit;                    /* -1: unknown */
    int mtu;                              /* 0: unknown */
    char version[MEASUREMENT_MAX_TEXT];   /* of wander */
};

/* The device below the lanes of one end, for transports that have one. */
struct device_measurement {
    bool known;         /* false: there is none, or nobody could say */
    bool encrypted;     /* what the lanes carry */
    uint64_t pin_limit; /* of that end, in bytes */
    struct transport_device device;
};

/* CPU time of one end by what it was spent for, see cpu_account.h. */
struct cpu_measurement {
    bool known;
    uint64_t guest_ns; /* or MEASUREMENT_UNKNOWN */
    uint64_t engine_ns, lanes_ns, other_ns;
};

enum prediction_basis {
    PREDICTION_NONE,
    PREDICTION_REHEARSED,   /* before anything was sent */
    PREDICTION_FIRST_ROUND, /* from what the first round showed */
};

/* What the whole migration was said to take. */
struct measurement_prediction {
    enum prediction_basis basis;
    uint64_t age_ns; /* of the rehearsal, when the migration began */
    struct prediction is;
};

/* The workload's own account. */
struct guest_work {
    bool known;
    uint64_t pages_at_start, pages_at_pause; /* written in all the guest's life */
    uint64_t ns;                             /* from the start of tracking to the pause */
};

/* The destination's half; comes in REPORT. */
struct destination_measurement {
    bool known; /* false: REPORT was lost, all of it is null */
    uint64_t cpu_ns;
    struct cpu_measurement cpu; /* not known: the peer is older than that */
    uint64_t state_load_ns, resume_ns;
    uint64_t running_at_us; /* CLOCK_MONOTONIC there, when the first vCPU set out; 0: not known */
    uint64_t guest_gap_ns;  /* the pause as the guest measured it; 0: it did not say */
    uint64_t resident_growth_bytes; /* of the destination process, since the session began */
    struct host_facts host;
    struct device_measurement device;
};

struct measurement {
    char result[24]; /* "completed", "failed", "cancelled", "in-doubt" */
    char error[ERROR_TEXT_SIZE];
    char session[33], guest_name[GUEST_NAME_SIZE];
    char guest_kind[GUEST_KIND_SIZE], accel[GUEST_KIND_SIZE], tracker[24];
    uint64_t memory_bytes;
    unsigned vcpus;
    char transport[16], destination[320], filter[128];
    unsigned lanes;

    uint64_t total_ns, setup_ns;
    uint64_t round_trip_ns;  /* the shortest that the control channel has seen */
    uint64_t pause_start_ns; /* of the pause that became the downtime, since the accepted command */
    uint64_t downtime_ns;    /* source's clock, pause -> RUNNING received; or, on one clock, until a
                                vCPU ran */
    bool downtime_clock_shared; /* source and destination read one clock */
    struct {
        uint64_t pause, final_copy, verify, state_save, state_transfer, state_load, resume;
    } downtime;
    struct measurement_prediction prediction;
    uint64_t predicted_downtime_ns, predicted_last_bytes, last_bytes; /* at the switchover */
    unsigned switchover_retries; /* pauses undone because more was dirty than foretold */
    bool forced;

    struct round_measurement *rounds; /* owned */
    size_t round_count, round_capacity;

    uint64_t raw_pages, zero_pages, hole_pages; /* holes: never touched, never read */
    uint64_t present_bytes;                     /* touched at the start */
    uint64_t guest_bytes, wire_bytes;
    uint64_t source_cpu_ns;
    struct cpu_measurement source_cpu;
    struct guest_work guest_work;
    uint64_t goodput; /* bytes/s of guest bytes over the rounds with the guest running */
    uint64_t state_bytes;
    bool verified;
    uint64_t verified_chunks;

    struct policy_limits limits;
    uint64_t max_bandwidth; /* 0: unlimited */
    enum transport_operation operation;
    enum transport_registration registration;
    uint64_t pin_limit; /* of the source */
    unsigned dscp;
    struct host_facts source_host;
    struct device_measurement source_device;
    struct destination_measurement destination_half;
};

/* Room for one more round at the end, zeroed; NULL without memory. */
struct round_measurement *measurement_add_round(struct measurement *m);
void measurement_free(struct measurement *m);

/* Asks `transport` for its device, while it is there; NULL is fine. `pin_limit` 0: the default. */
void device_note(const struct transport *transport, uint64_t pin_limit,
                 struct device_measurement *out);

/* The JSON document (schema: migrate/measurement.md), indented; the caller frees. `gap_ns` from the
 * guest or 0 for null. NULL without memory. Every figure not known is null, never guessed. */
char *measurement_to_json(const struct measurement *m, uint64_t gap_ns);
/* The table for a terminal: every round, total time, downtime by part. The caller frees. */
char *measurement_to_table(const struct measurement *m, uint64_t gap_ns);

/* The destination's half as the body of REPORT and back. The text comes from a peer: checked,
 * -EPROTO. */
char *destination_measurement_encode(const struct destination_measurement *d);
int destination_measurement_decode(const char *text, size_t size,
                                   struct destination_measurement *out, struct error *err);

/* Facts of this host; `socket` (or -1) names the interface. Reads /proc and /sys; blocks briefly.
 */
void host_facts_read(int socket, struct host_facts *out);
/* Resident bytes of this process, page tables not counted. */
uint64_t process_resident_bytes(void);

#endif
