/* What migrations cost besides pages: what is learnt and recalled. */
#include "tests/unit/costs_fixture.h"

TestSuite(costs, .init = set_up, .fini = tear_down);

Test(costs, nothing_known_gives_estimates_by_kind)
{
    static const char *const kinds[] = {"lab", "synthetic", "qemu", "other"};
    struct costs_key key = example_key();

    for (size_t i = 0; i < 4; i++) {
        struct fixed_costs costs;
        strcpy(key.guest_kind, kinds[i]);
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, 0u, "%s: %u samples", kinds[i], costs.samples);
        cr_expect_eq(costs.setup_ns, 0u, "%s: the path knows the set-up", kinds[i]);
        cr_expect(costs.downtime_ns && costs.downtime_spread_ns && costs.finish_ns);
        cr_expect_float_eq(costs.bandwidth_ratio, 1, 1e-9);
        cr_expect_eq(costs.state_bytes, policy_first_state_bytes(key.vcpus), "%s: %llu bytes",
                     kinds[i], (unsigned long long)costs.state_bytes);
    }
}

Test(costs, one_migration_teaches_what_was_not_its_pages)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct fixed_costs costs;

    learn(&key, &m, 100 << 20);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u);
    expect_ms("set-up, which one does not show", costs.setup_ns, 0);
    expect_ms("downtime", costs.downtime_ns, 12);
    expect_ms("spread of one", costs.downtime_spread_ns, 3);
    expect_ms("finish", costs.finish_ns, 50);
    cr_expect_float_eq(costs.bandwidth_ratio, 1, 1e-9, "one shows no ratio; came %f",
                       costs.bandwidth_ratio);
}

/* 64 MiB in 512 ms, of which 112 ms are no page's: 160 MiB/s where 100 were rehearsed. */
Test(costs, a_few_migrations_show_how_the_bandwidth_differs_from_the_rehearsed)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct path_profile path = {
        .bandwidth = 100 << 20, .first_ns = 110 * NS_PER_MS, .round_ns = 2 * NS_PER_MS};
    struct fixed_costs costs;
    struct error err = {0};

    for (int i = 0; i < 3; i++)
        cr_assert_eq(costs_learn(&key, &m, &path, &err), 0, "%s", err.text);
    costs_recall(&key, &costs);
    cr_expect_float_eq(costs.bandwidth_ratio, 1.6, 1e-3, "ratio %f", costs.bandwidth_ratio);
    expect_ms("set-up", costs.setup_ns, 30);
    strcpy(key.host, "elsewhere");
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 3u, "elsewhere: %u samples", costs.samples);
    expect_ms("downtime elsewhere", costs.downtime_ns, 12);
    expect_ms("finish elsewhere", costs.finish_ns, 50);
    expect_ms("set-up elsewhere", costs.setup_ns, 0);
    cr_expect_float_eq(costs.bandwidth_ratio, 1, 1e-9, "ratio elsewhere %f", costs.bandwidth_ratio);
}

Test(costs, a_verification_is_no_cost_of_those_to_come)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct fixed_costs costs;

    m.verified = true;
    m.downtime.verify = 300 * NS_PER_MS;
    m.downtime_ns += m.downtime.verify;
    m.total_ns += m.downtime.verify;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u);
    expect_ms("downtime", costs.downtime_ns, 12);
    expect_ms("finish", costs.finish_ns, 50);
}

Test(costs, pages_take_no_more_than_the_final_copy)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct fixed_costs costs;

    m.last_bytes = 64 << 20;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    expect_ms("downtime", costs.downtime_ns, 5);
}

/* 1 MiB takes 8 ms as the first round went, and 4 ms as the second did. */
Test(costs, the_last_pages_go_as_the_later_rounds_did)
{
    struct costs_key key = example_key();
    struct round_measurement two[2], rounds[3];
    struct measurement m = example(two);
    struct fixed_costs costs;

    rounds[0] = two[0];
    rounds[1] = (struct round_measurement){.bytes = 16 << 20, .ns = 64 * NS_PER_MS};
    rounds[2] = two[1];
    m.rounds = rounds;
    m.round_count = 3;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    expect_ms("downtime", costs.downtime_ns, 16);
}

Test(costs, round_trips_are_the_paths_and_not_learnt)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct fixed_costs costs;

    m.round_trip_ns = 2 * NS_PER_MS;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    expect_ms("downtime", costs.downtime_ns, 12 - DOWNTIME_ROUND_TRIPS * 2);
    m.round_trip_ns = 100 * NS_PER_MS; /* more than there is */
    key.vcpus++;
    learn(&key, &m, 0);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u, "%u samples", costs.samples);
    expect_ms("downtime", costs.downtime_ns, 0);
}

Test(costs, medians_and_the_central_ninety_percent)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    for (unsigned i = 11; i > 0; i--)
        learn_downtime(&key, 10 * i);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 11u);
    expect_ms("median", costs.downtime_ns, 60);
    expect_ms("spread", costs.downtime_spread_ns, 45);
}

static void differ_guest(struct costs_key *k)
{
    strcpy(k->guest_kind, "qemu");
}

static void differ_accel(struct costs_key *k)
{
    strcpy(k->accel, "tcg");
}

static void differ_vcpus(struct costs_key *k)
{
    k->vcpus = 3;
}

static void differ_transport(struct costs_key *k)
{
    strcpy(k->transport, "rdma");
}

static void differ_operation(struct costs_key *k)
{
    k->operation = TRANSPORT_READ;
}

static void differ_registration(struct costs_key *k)
{
    k->registration = TRANSPORT_REGISTER_CHUNK;
}

static void differ_host(struct costs_key *k)
{
    strcpy(k->host, "elsewhere");
}

Test(costs, of_two_the_quicker_counts)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    learn_downtime(&key, 200);
    learn_downtime(&key, 20);
    costs_recall(&key, &costs);
    expect_ms("downtime", costs.downtime_ns, 20);
    learn_downtime(&key, 200);
    costs_recall(&key, &costs);
    expect_ms("downtime of three", costs.downtime_ns, 200);
}

Test(costs, few_moves_over_one_path_are_told_from_those_over_others)
{
    struct costs_key key = example_key(), other = example_key(), guest = example_key();
    struct fixed_costs costs;

    strcpy(other.transport, "rdma");
    guest.vcpus++;
    learn_downtime(&guest, 5);
    learn_downtime(&key, 200);
    learn_downtime(&other, 40);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 1u);
    expect_ms("downtime", costs.downtime_ns, 40);
    expect_ms("spread", costs.downtime_spread_ns, 10);
    differ_operation(&key);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 0u);
    expect_ms("downtime of none", costs.downtime_ns, 40);
    key = example_key();
    learn_downtime(&key, 220);
    learn_downtime(&key, 210);
    costs_recall(&key, &costs);
    expect_ms("downtime of three", costs.downtime_ns, 210);
}

/* A downtime that its pages may have taken, all of it. */
Test(costs, a_downtime_of_which_nothing_was_left_is_no_quick_one)
{
    struct costs_key key = example_key();
    struct round_measurement rounds[2];
    struct measurement m = example(rounds);
    struct fixed_costs costs;

    m.downtime_ns = 1 * NS_PER_MS;
    m.downtime.final_copy = 1 * NS_PER_MS;
    m.last_bytes = 100 << 20;
    learn(&key, &m, 0);
    learn_downtime(&key, 30);
    costs_recall(&key, &costs);
    expect_ms("downtime", costs.downtime_ns, 30);
}

Test(costs, the_newest_samples_stay)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    for (unsigned i = 0; i < COSTS_SAMPLES; i++)
        learn_downtime(&key, 500);
    for (unsigned i = 0; i < COSTS_SAMPLES; i++)
        learn_downtime(&key, 10);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, (unsigned)COSTS_SAMPLES, "%u samples", costs.samples);
    expect_ms("median", costs.downtime_ns, 10);
    expect_ms("spread", costs.downtime_spread_ns, 0);
}

Test(costs, kinds_do_not_mix_but_hosts_stand_in_for_one_another)
{
    static const struct {
        const char *what;
        void (*change)(struct costs_key *);
        bool known;
    } cases[] = {
        {"guest", differ_guest, false},
        {"accel", differ_accel, false},
        {"vcpus", differ_vcpus, false},
        {"transport", differ_transport, false},
        {"operation", differ_operation, false},
        {"registration", differ_registration, false},
        {"host", differ_host, true},
    };
    struct costs_key first = example_key();

    learn_downtime(&first, 77);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct costs_key key = example_key();
        struct fixed_costs costs;

        cases[i].change(&key);
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, cases[i].known ? 1u : 0u, "%s differs: %u samples",
                     cases[i].what, costs.samples);
    }
}

Test(costs, the_very_host_goes_before_others)
{
    struct costs_key key = example_key(), other = example_key();
    struct fixed_costs costs;

    differ_host(&other);
    learn_downtime(&other, 500);
    learn_downtime(&other, 500);
    learn_downtime(&key, 20);
    learn_downtime(&key, 25);
    learn_downtime(&key, 30);
    costs_recall(&key, &costs);
    cr_expect_eq(costs.samples, 3u);
    expect_ms("downtime", costs.downtime_ns, 25);
}

Test(costs, what_teaches_nothing_leaves_no_file)
{
    struct costs_key key = example_key();
    struct fixed_costs costs;

    for (int i = 0; i < 5; i++) {
        struct round_measurement rounds[2];
        struct measurement m = example(rounds);

        if (i == 0)
            strcpy(m.result, "failed");
        if (i == 1)
            strcpy(m.result, "cancelled");
        if (i == 2)
            m.downtime_ns = 0;
        if (i == 3)
            strcpy(m.filter, "delay=10ms");
        if (i == 4)
            m.pause_start_ns = 0;
        learn(&key, &m, 0);
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, 0u, "case %d taught something", i);
    }
}

Test(costs, a_bandwidth_is_learnt_only_where_the_round_shows_it)
{
    for (int i = 0; i < 5; i++) {
        struct costs_key key = example_key();
        struct round_measurement rounds[2];
        struct measurement m = example(rounds);
        struct fixed_costs costs;
        uint64_t rehearsed = 64 << 20;

        key.vcpus = 10 + (unsigned)i;
        if (i == 0)
            rehearsed = 0;
        if (i == 1)
            m.max_bandwidth = 1 << 20;
        if (i == 2)
            rounds[0].zero_pages = 4000;
        if (i == 3)
            rounds[0].bytes = 1 << 20;
        if (i == 4)
            rehearsed = 1;
        for (int n = 0; n < 3; n++)
            learn(&key, &m, rehearsed);
        costs_recall(&key, &costs);
        cr_expect_eq(costs.samples, 3u, "case %d: %u samples", i, costs.samples);
        cr_expect_float_eq(costs.bandwidth_ratio, 1, 1e-9, "case %d: ratio %f", i,
                           costs.bandwidth_ratio);
    }
}
