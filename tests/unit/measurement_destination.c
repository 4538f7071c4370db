#include <criterion/criterion.h>

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "measurement_fixture.h"

static struct destination_measurement known_half(void)
{
    struct destination_measurement d = {.known = true,
                                        .cpu_ns = (1ull << 53) - 1,
                                        .cpu = {true, 11, 12, 13, 14},
                                        .state_load_ns = 2,
                                        .resume_ns = 3,
                                        .running_at_us = 6,
                                        .guest_gap_ns = 5,
                                        .resident_growth_bytes = 4};

    fill_host(&d.host, "there");
    d.device = example_device("mlx5_0", 0);
    return d;
}

static void expect_same_device(const struct device_measurement *want,
                               const struct device_measurement *got)
{
    const struct transport_device *w = &want->device, *g = &got->device;

    cr_expect_eq(got->known, want->known);
    cr_expect_eq(got->pin_limit, want->pin_limit);
    cr_expect_eq(g->counter_count, w->counter_count);
    for (unsigned i = 0; i < w->counter_count && i < g->counter_count; i++) {
        cr_expect_str_eq(g->counters[i].name, w->counters[i].name);
        cr_expect(g->counters[i].before == w->counters[i].before &&
                      g->counters[i].after == w->counters[i].after,
                  "counter %s differs", w->counters[i].name);
    }
    cr_expect(!strcmp(g->name, w->name) && !strcmp(g->link_layer, w->link_layer) &&
                  !strcmp(g->gid, w->gid) && !strcmp(g->gid_type, w->gid_type),
              "texts differ: %s, %s, %s, %s", g->name, g->link_layer, g->gid, g->gid_type);
    cr_expect(
        g->port == w->port && g->mtu == w->mtu && g->max_message == w->max_message &&
            g->max_work_requests == w->max_work_requests && g->work_requests == w->work_requests &&
            g->data_work_requests == w->data_work_requests && g->data_bytes == w->data_bytes &&
            g->signalled == w->signalled && g->registrations == w->registrations &&
            g->registered_bytes == w->registered_bytes && g->register_ns == w->register_ns &&
            g->pinned_peak_bytes == w->pinned_peak_bytes && g->operation == w->operation &&
            g->registration == w->registration,
        "figures differ");
}

static void expect_same_half(const struct destination_measurement *want,
                             const struct destination_measurement *got)
{
    cr_expect(got->known);
    cr_expect_eq(got->cpu_ns, want->cpu_ns, "expected %" PRIu64 ", got %" PRIu64, want->cpu_ns,
                 got->cpu_ns);
    cr_expect(got->cpu.known == want->cpu.known && got->cpu.guest_ns == want->cpu.guest_ns &&
                  got->cpu.engine_ns == want->cpu.engine_ns &&
                  got->cpu.lanes_ns == want->cpu.lanes_ns &&
                  got->cpu.other_ns == want->cpu.other_ns,
              "CPU by role differs: guest %" PRIu64 ", engine %" PRIu64, got->cpu.guest_ns,
              got->cpu.engine_ns);
    cr_expect_eq(got->state_load_ns, want->state_load_ns);
    cr_expect_eq(got->resume_ns, want->resume_ns);
    cr_expect_eq(got->running_at_us, want->running_at_us);
    cr_expect_eq(got->guest_gap_ns, want->guest_gap_ns);
    cr_expect_eq(got->resident_growth_bytes, want->resident_growth_bytes);
    cr_expect_str_eq(got->host.hostname, want->host.hostname);
    cr_expect_str_eq(got->host.kernel, want->host.kernel);
    cr_expect_str_eq(got->host.cpu, want->host.cpu);
    cr_expect_str_eq(got->host.interface, want->host.interface);
    cr_expect_str_eq(got->host.version, want->host.version);
    cr_expect_eq(got->host.link_mbit, want->host.link_mbit, "expected %" PRId64 ", got %" PRId64,
                 want->host.link_mbit, got->host.link_mbit);
    cr_expect_eq(got->host.mtu, want->host.mtu, "expected %d, got %d", want->host.mtu,
                 got->host.mtu);
    expect_same_device(&want->device, &got->device);
}

Test(measurement_destination, the_destinations_half_comes_back)
{
    struct destination_measurement halves[] = {known_half(), known_half(), {.known = true}};
    struct error err = {0};

    halves[1].host.link_mbit = -1;
    halves[1].host.mtu = 0;
    for (size_t i = 0; i < sizeof(halves) / sizeof(halves[0]); i++) {
        struct destination_measurement got = {0};
        char *text = destination_measurement_encode(&halves[i]);

        cr_assert_eq(destination_measurement_decode(text, strlen(text), &got, &err), 0, "%s: %s",
                     err.text, text);
        expect_same_half(&halves[i], &got);
        free(text);
    }
}

static void expect_refused(const char *text, size_t size, const char *want)
{
    struct destination_measurement got, before;
    struct error err = {0};
    int result, shown = size < 300 ? (int)size : 300;

    memset(&got, 0x5a, sizeof(got));
    before = got;
    result = destination_measurement_decode(text, size, &got, &err);
    cr_expect_eq(result, -EPROTO, "%.*s: expected -EPROTO, got %d", shown, text, result);
    cr_expect(strstr(err.text, want), "%.*s: expected \"%s\" in \"%s\"", shown, text, want,
              err.text);
    cr_expect_not(memcmp(&got, &before, sizeof(got)), "%.*s: wrote a result", shown, text);
}

/* A valid half in which one piece of text is put in another's place. */
Test(measurement_destination, a_hostile_half_is_refused)
{
    static const struct {
        const char *old, *new, *want;
    } cases[] = {
        {"\"resume_ns\":3", "\"resume_ns\":-3", "resume_ns is no whole number"},
        {"\"resume_ns\":3", "\"resume_ns\":3.5", "resume_ns is no whole number"},
        {"\"resume_ns\":3", "\"resume_ns\":1e999", "resume_ns is no whole number"},
        {"\"resume_ns\":3", "\"resume_ns\":-1e999", "resume_ns is no whole number"},
        {"\"resume_ns\":3", "\"resume_ns\":NaN", "no JSON"},
        {"\"resume_ns\":3", "\"resume_ns\":18446744073709551615", "resume_ns is no whole number"},
        {"\"resume_ns\":3", "\"resume_ns\":9007199254740994", "resume_ns is no whole number"},
        {"\"resume_ns\":3", "\"resume_ns\":\"3\"", "resume_ns is no whole number"},
        {"\"resume_ns\":3", "\"resume_ns\":true", "resume_ns is no whole number"},
        {"\"resume_ns\":3", "\"resume_ns\":null", "resume_ns is null"},
        {"\"resume_ns\":3", "\"resume_ns\":[3]", "resume_ns is no whole number"},
        {"\"resume_ns\":3", "\"resume_NS\":3", "resume_ns is missing"},
        {"\"host\":{", "\"hose\":{", "host is no object"},
        {"\"cpu\":{", "\"cpu\":[],\"x\":{", "cpu is no object"},
        {"\"lanes_ns\":13", "\"lanes_ns\":-1", "lanes_ns is no whole number"},
        {"\"lanes_ns\":13", "\"lanes_ns\":null", "lanes_ns is null"},
        {"\"engine_ns\"", "\"engines_ns\"", "engine_ns is missing"},
        {"\"mtu_bytes\":9000", "\"mtu_bytes\":4294967296", "mtu_bytes is no whole number"},
        {"\"mtu_bytes\":9000", "\"mtu_bytes\":2147483648", "mtu_bytes is no whole number"},
        {"\"link_mbit_per_s\":100000", "\"link_mbit_per_s\":-2", "link_mbit_per_s is no whole"},
        {"\"there\"", "7", "hostname is no text"},
        {"\"there\"", "{}", "hostname is no text"},
        {"there", "the\\nre", "hostname is not printable"},
        {"there", "the\\u0000re\"", "no JSON"},
        {"there", "\\u001b[31m", "hostname is not printable"},
        {"there", "gr\xc3\xbc\xc3\x9f", "hostname is not printable"},
        {"there", "0123456789012345678901234567890123456789012345678901234567890123",
         "hostname is no text"},
        {"{\"cpu_ns\"", "[{\"cpu_ns\"", "no JSON object"},
        {"{\"cpu_ns\"", "{{\"cpu_ns\"", "no JSON object"},
        {"}}}}", "}}}} {}", "no JSON object"},
        {"\"device\":{\"", "\"vice\":{\"", "device is no object"},
        {"\"device\":{\"", "\"device\":[],\"x\":{\"", "device is no object"},
        {"\"port\":1", "\"port\":4294967296", "port is no whole number"},
        {"mlx5_0", "mlx5\\n0", "device is not printable"},
        {"\"operation\":\"read\"", "\"operation\":\"backwards\"", "operation is no text"},
        {"\"chunk\"", "\"chunks\"", "operation or registration"},
        {"\"counters\":{", "\"counters\":[],\"x\":{", "counters is no object"},
        {"link_downed", "link downed", "counters has a name"},
        {"link_downed", "", "counters has a name"},
        {"link_downed", "a123456789012345678901234567890123456789012345678", "counters has a name"},
        {"\"link_downed\":{", "\"link_downed\":{\"before\":-1},\"x\":{", "before is no whole"},
    };
    struct destination_measurement d = known_half();
    char *valid = destination_measurement_encode(&d);

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *at = strstr(valid, cases[i].old);
        char text[2048];

        cr_assert(at, "%s is not in %s", cases[i].old, valid);
        snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - valid), valid, cases[i].new,
                 at + strlen(cases[i].old));
        expect_refused(text, strlen(text), cases[i].want);
    }
    free(valid);
}

Test(measurement_destination, a_half_of_an_older_peer_lacks_the_roles_and_is_taken)
{
    struct destination_measurement d = known_half(), got = {0};
    struct error err = {0};
    char *text = destination_measurement_encode(&d), older[2048];
    char *at = strstr(text, "\"cpu\":{"), *end = strchr(at, '}');

    snprintf(older, sizeof(older), "%.*s%s", (int)(at - text), text, end + 2);
    cr_assert_eq(destination_measurement_decode(older, strlen(older), &got, &err), 0, "%s: %s",
                 err.text, older);
    d.cpu = (struct cpu_measurement){0};
    expect_same_half(&d, &got);
    free(text);
}

Test(measurement_destination, a_guest_whose_cpu_time_nobody_knows_stays_unknown)
{
    struct destination_measurement d = known_half(), got = {0};
    struct error err = {0};

    d.cpu.guest_ns = MEASUREMENT_UNKNOWN;
    char *text = destination_measurement_encode(&d);
    cr_assert_eq(destination_measurement_decode(text, strlen(text), &got, &err), 0, "%s: %s",
                 err.text, text);
    expect_same_half(&d, &got);
    free(text);
}

/* The largest device there can be has room in a REPORT. */
Test(measurement_destination, as_many_counters_as_there_can_be_fit)
{
    struct destination_measurement d = known_half(), got = {0};
    struct transport_device *device = &d.device.device;
    struct error err = {0};

    for (device->counter_count = 0; device->counter_count < TRANSPORT_MAX_COUNTERS;
         device->counter_count++) {
        struct transport_counter *counter = &device->counters[device->counter_count];

        memset(counter->name, 'a', sizeof(counter->name) - 1);
        snprintf(counter->name, 4, "%03u", device->counter_count);
        counter->name[3] = '_';
        counter->before = counter->after = 1ull << 53;
    }
    char *text = destination_measurement_encode(&d);
    cr_assert_eq(destination_measurement_decode(text, strlen(text), &got, &err), 0, "%s", err.text);
    expect_same_half(&d, &got);
    char *more = strstr(text, "\"counters\":{") + strlen("\"counters\":{"), longer[16384];
    snprintf(longer, sizeof(longer), "%.*s\"x\":{\"before\":0,\"after\":0},%s", (int)(more - text),
             text, more);
    expect_refused(longer, strlen(longer), "too many");
    free(text);
}

Test(measurement_destination, every_truncation_of_a_half_is_refused)
{
    struct destination_measurement d = known_half();
    char *valid = destination_measurement_encode(&d);

    for (size_t size = 0; size < strlen(valid); size++) {
        char *cut = malloc(size ? size : 1); /* of just that size, for AddressSanitizer */

        memcpy(cut, valid, size);
        expect_refused(cut, size, "no JSON object");
        free(cut);
    }
    free(valid);
}

Test(measurement_destination, a_half_of_any_size_and_depth_is_refused)
{
    enum { SIZE = 1 << 20 };
    char *text = malloc(SIZE);

    memset(text, '[', SIZE);
    expect_refused(text, 16384, "no JSON object");
    memset(text, ' ', SIZE);
    expect_refused(text, SIZE, "at most 16384");
    free(text);
}

Test(measurement_destination, survives_random_changes_to_a_half)
{
    struct destination_measurement d = known_half();
    char *valid = destination_measurement_encode(&d);
    size_t size = strlen(valid);

    for (unsigned seed = 0; seed < 20000; seed++) {
        struct destination_measurement got = {0};
        struct error err = {0};
        char *text = malloc(size);

        srand48(seed);
        memcpy(text, valid, size);
        for (long i = lrand48() % 4; i >= 0; i--)
            text[(size_t)lrand48() % size] = (char)lrand48();
        int result = destination_measurement_decode(text, size, &got, &err);
        cr_assert((result == 0 && got.known) || (result == -EPROTO && err.text[0]),
                  "seed %u: %d, \"%s\"", seed, result, err.text);
        cr_assert_lt(strlen(got.host.hostname), sizeof(got.host.hostname));
        free(text);
    }
    free(valid);
}

Test(measurement_destination, facts_of_this_host_are_there_and_fit_to_travel)
{
    struct destination_measurement d = {.known = true}, got;
    struct error err = {0};
    char *text;

    host_facts_read(-1, &d.host);
    cr_expect(!strncmp(d.host.kernel, "Linux ", 6), "kernel \"%s\"", d.host.kernel);
    cr_expect(d.host.hostname[0] && d.host.version[0]);
    cr_expect_str_eq(d.host.version, WANDER_VERSION);
    cr_expect_eq(d.host.link_mbit, -1);
    cr_expect_eq(d.host.mtu, 0);
    text = destination_measurement_encode(&d);
    cr_assert_eq(destination_measurement_decode(text, strlen(text), &got, &err), 0, "%s: %s",
                 err.text, text);
    expect_same_half(&d, &got);
    free(text);
}

Test(measurement_destination, resident_bytes_grow_with_touched_memory)
{
    enum { SIZE = 64 << 20 };
    uint64_t before = process_resident_bytes(), after;
    char *memory = malloc(SIZE);

    for (size_t i = 0; i < SIZE; i += 4096)
        ((volatile char *)memory)[i] = 1;
    after = process_resident_bytes();
    cr_expect_gt(before, 0u);
    cr_expect_geq(after, before + SIZE / 10 * 9, "64 MiB touched, from %" PRIu64 " to %" PRIu64,
                  before, after);
    free(memory);
}

Test(measurement_destination, a_connection_names_its_interface)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct host_facts host;

    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0, "%s", strerror(errno));
    host_facts_read(fd, &host);
    cr_expect_str_eq(host.interface, "lo", "expected lo, got \"%s\"", host.interface);
    cr_expect_eq(host.link_mbit, -1, "lo has no speed, got %" PRId64, host.link_mbit);
    cr_expect_gt(host.mtu, 1000, "MTU of lo: %d", host.mtu);
    close(fd);
}
