/* A measurement with everything in it, for the tests of its forms. */
#ifndef TESTS_UNIT_MEASUREMENT_FIXTURE_H
#define TESTS_UNIT_MEASUREMENT_FIXTURE_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "migrate/measurement.h"
#include "transport/base/clock.h"

static inline void fill_host(struct host_facts *host, const char *name)
{
    *host = (struct host_facts){.link_mbit = 100000, .mtu = 9000};
    snprintf(host->hostname, sizeof(host->hostname), "%s", name);
    strcpy(host->kernel, "Linux 6.12.1 x86_64");
    strcpy(host->cpu, "A CPU (R) @ 3 GHz");
    strcpy(host->interface, "eth0");
    strcpy(host->version, "0.1.0");
}

/* Figures all unlike, and two error counters. */
static inline struct device_measurement example_device(const char *name, uint64_t more)
{
    struct device_measurement d = {
        .known = true,
        .pin_limit = 300000000 + more,
        .device =
            {
                .port = 1,
                .mtu = 4096,
                .max_message = (1 << 30) + more,
                .max_work_requests = 100 + more,
                .work_requests = 4000 + more,
                .data_work_requests = 3000 + more,
                .data_bytes = (3000 + more) << 16,
                .signalled = 500 + more,
                .registrations = 40 + more,
                .registered_bytes = 600000000 + more,
                .register_ns = 7000008 + more,
                .pinned_peak_bytes = 200000000 + more,
                .operation = TRANSPORT_READ,
                .registration = TRANSPORT_REGISTER_CHUNK,
                .counter_count = 2,
                .counters = {{"rcvd_seq_err", 1 + more, 9 + more}, {"link_downed", 0, 2}},
            },
    };

    strcpy(d.device.name, name);
    strcpy(d.device.link_layer, "Ethernet");
    strcpy(d.device.gid, "::ffff:10.0.0.1");
    strcpy(d.device.gid_type, "RoCE v2");
    return d;
}

/* 20 of them, the last one paused. */
static inline void add_example_rounds(struct measurement *m)
{
    for (uint64_t i = 0; i < 20; i++) {
        struct round_measurement *round = measurement_add_round(m);

        cr_assert(round);
        *round = (struct round_measurement){
            .pages = 100 + i,
            .zero_pages = 10 + i,
            .skipped_pages = i,
            .bytes = (90 + i) << 12,
            .wire_bytes = (91 + i) << 12,
            .start_ns = i * NS_PER_S + 1,
            .ns = NS_PER_MS + i,
            .dirty_pages_after = i == 19 ? 0 : 101 + i,
            .predicted_downtime_ns = i == 19 ? 0 : 30 * NS_PER_MS + i,
            .predicted_total_ns = i == 19 ? 0 : 1100 * NS_PER_MS + i,
            .guest_pages_written = 70000000 + i,
            .throttle = (unsigned)i,
            .paused = i == 19,
        };
    }
}

/* A migration that went well, with no two figures alike. */
static inline struct measurement full_measurement(void)
{
    struct measurement m = {
        .result = "completed",
        .session = "00112233445566778899aabbccddeeff",
        .guest_name = "g1",
        .guest_kind = "lab",
        .accel = "kvm",
        .tracker = "dirty-log",
        .memory_bytes = 512 << 20,
        .vcpus = 2,
        .transport = "tcp",
        .destination = "tcp://[::1]:4711",
        .filter = "rate=100M",
        .lanes = 4,
        .total_ns = 1234567891,
        .setup_ns = 45678912,
        .downtime_ns = 23456789,
        .downtime = {1000001, 12000002, 2000003, 300004, 400005, 0, 0},
        .round_trip_ns = 1300014,
        .pause_start_ns = 1111111112,
        .prediction = {.basis = PREDICTION_REHEARSED,
                       .age_ns = 5000000001,
                       .is = {.converges = true,
                              .total_ns = {1200000002, 1100000003, 1300000004},
                              .downtime_ns = {22000005, 20000007, 31000008},
                              .rounds = 21,
                              .bytes = 490000009}},
        .predicted_downtime_ns = 25000006,
        .predicted_last_bytes = 12 << 20,
        .last_bytes = 11 << 20,
        .switchover_retries = 1,
        .forced = true,
        .raw_pages = 100001,
        .zero_pages = 2002,
        .hole_pages = 30003,
        .present_bytes = 400000004,
        .guest_bytes = 500000005,
        .wire_bytes = 510000006,
        .source_cpu_ns = 1000000007,
        .source_cpu = {true, 500000001, 100000002, 300000003, 100000004},
        .guest_work = {true, 70000007, 80000008, 1060000009},
        .goodput = 800000008,
        .state_bytes = 9009,
        .verified = true,
        .verified_chunks = 382,
        .limits = {.downtime_ns = 300 * NS_PER_MS,
                   .max_time_ns = 10 * NS_PER_S,
                   .on_timeout = ON_TIMEOUT_FORCE,
                   .throttle_max = 80},
        .max_bandwidth = 104857600,
        .operation = TRANSPORT_READ,
        .registration = TRANSPORT_REGISTER_CHUNK,
        .pin_limit = 67108864,
        .dscp = 46,
        .destination_half = {.known = true,
                             .cpu_ns = 700000010,
                             .cpu = {true, 200000005, 110000006, 310000007, 80000008},
                             .state_load_ns = 5000011,
                             .resume_ns = 600012,
                             .resident_growth_bytes = 410000013},
    };

    fill_host(&m.source_host, "here");
    fill_host(&m.destination_half.host, "there");
    m.source_device = example_device("rxe0", 0);
    m.destination_half.device = example_device("mlx5_0", 1);
    add_example_rounds(&m);
    return m;
}

#endif
