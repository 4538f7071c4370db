/* Descriptions and states of synthetic guests, as a hostile peer would write them. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/synthetic/synthetic.h"

#define MIB (1ull << 20)

static struct guest *make_guest(unsigned vcpus, const char *spec)
{
    struct synthetic_config config = {.name = "test", .memory_bytes = 16 * MIB, .vcpus = vcpus};
    struct error err = {0};
    struct guest *g;

    cr_assert_eq(workload_parse(spec, &config.workload, &err), 0, "%s", err.text);
    cr_assert_eq(synthetic_guest_new(&config, &g, &err), 0, "%s", err.text);
    return g;
}

static struct guest_description describe(struct guest *g)
{
    struct guest_description d;
    struct error err = {0};

    cr_assert_eq(g->ops->describe(g, &d, &err), 0, "%s", err.text);
    return d;
}

struct lie {
    const char *name, *word;
    void (*tell)(struct guest_description *d);
    unsigned reasons;
};

static void put_u64(struct guest_description *d, size_t offset, uint64_t value)
{
    for (size_t i = 0; i < 8; i++)
        d->platform[offset + i] = (uint8_t)(value >> 8 * i);
}

/* Offsets in the platform: see the top of state.c. */
enum { AT_CONTENT = 4, AT_TOUCH = 8, AT_HOT = 16, AT_HOT_AT = 24, AT_PATTERN = 40 };

static void no_vcpus(struct guest_description *d)
{
    d->vcpus = 0;
}

static void many_vcpus(struct guest_description *d)
{
    d->vcpus = UINT32_MAX;
}

static void other_kind(struct guest_description *d)
{
    memset(d->kind, 'x', sizeof(d->kind));
}

static void no_regions(struct guest_description *d)
{
    d->region_count = 0;
}

static void many_regions(struct guest_description *d)
{
    d->region_count = UINT32_MAX;
}

static void other_sum(struct guest_description *d)
{
    d->regions[0].size += 4096;
}

static void odd_size(struct guest_description *d)
{
    d->memory_bytes = d->regions[0].size = 16 * MIB + 1;
}

static void no_memory(struct guest_description *d)
{
    d->memory_bytes = d->regions[0].size = 0;
}

static void no_platform(struct guest_description *d)
{
    guest_description_free(d);
}

static void short_platform(struct guest_description *d)
{
    d->platform_size--;
}

static void other_version(struct guest_description *d)
{
    d->platform[0] = 9;
}

static void other_content(struct guest_description *d)
{
    d->platform[AT_CONTENT] = 77;
}

static void other_pattern(struct guest_description *d)
{
    d->platform[AT_PATTERN] = 77;
}

static void touch_beyond(struct guest_description *d)
{
    put_u64(d, AT_TOUCH, 17 * MIB);
}

static void hot_overflows(struct guest_description *d)
{
    put_u64(d, AT_HOT_AT, UINT64_MAX - 4095);
}

static void hot_huge(struct guest_description *d)
{
    put_u64(d, AT_HOT, UINT64_MAX & ~4095ull);
}

static void touch_more_than_there_is(struct guest_description *d)
{
    d->memory_bytes = d->regions[0].size = 1ull << 50;
    put_u64(d, AT_TOUCH, 1ull << 49);
}

static void everything(struct guest_description *d)
{
    other_kind(d);
    no_vcpus(d);
    many_regions(d);
    odd_size(d);
}

static const struct lie lies[] = {
    {"no vCPUs", "vCPUs", no_vcpus, 1},
    {"many vCPUs", "vCPUs", many_vcpus, 1},
    {"kind without an end", "kind", other_kind, 1},
    {"no regions", "region", no_regions, 1},
    {"many regions", "region", many_regions, 1},
    {"sum of regions", "region", other_sum, 1},
    {"odd size", "multiple", odd_size, 1},
    {"no memory", "memory", no_memory, 2},
    {"no platform", "truncated", no_platform, 1},
    {"short platform", "truncated", short_platform, 1},
    {"version", "version", other_version, 1},
    {"content", "content", other_content, 1},
    {"pattern", "pattern", other_pattern, 1},
    {"touch beyond memory", "touch", touch_beyond, 1},
    {"hot set overflows", "hot", hot_overflows, 1},
    {"hot set huge", "hot", hot_huge, 1},
    {"touches more than there is", "available", touch_more_than_there_is, 1},
    {"everything at once", "kind", everything, 4},
};

Test(synthetic_state, hostile_descriptions)
{
    struct guest *g = make_guest(2, "touch=1M,hot=1M");

    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct guest_description d = describe(g);
        struct reasons reasons = {0};
        struct error err = {0};
        struct guest *to;
        lies[i].tell(&d);
        synthetic_guest_kind.check(&(struct guest_host){0}, &d, &reasons);
        cr_expect_eq(reasons.count, lies[i].reasons, "%s: %u reasons, expected %u: %s",
                     lies[i].name, reasons.count, lies[i].reasons,
                     reasons.text ? reasons.text : "(none)");
        cr_expect(reasons.text && strstr(reasons.text, lies[i].word),
                  "%s: '%s' does not mention %s", lies[i].name, reasons.text ? reasons.text : "",
                  lies[i].word);
        cr_expect_eq(synthetic_guest_kind.incoming(&(struct guest_host){0}, &d, &to, &err), -EINVAL,
                     "%s", lies[i].name);
        reasons_free(&reasons);
        guest_description_free(&d);
    }
    g->ops->destroy(g);
}

static struct guest_state saved(struct guest *g)
{
    struct guest_state state = {0};
    struct error err = {0};

    cr_assert_eq(g->ops->save(g, &state, &err), 0, "%s", err.text);
    return state;
}

static int load(struct guest *g, const uint8_t *bytes, size_t size)
{
    /* A copy of its own size, so that a sanitizer sees the first byte read beyond. */
    uint8_t *copy = malloc(size ? size : 1);
    struct guest_load_context context = {0};
    struct error err = {0};

    memcpy(copy, bytes, size);
    int rc = g->ops->load(g, copy, size, &context, &err);
    cr_expect_eq(rc < 0, err.text[0] != '\0', "%d with the text '%s'", rc, err.text);
    free(copy);
    return rc;
}

Test(synthetic_state, hostile_states)
{
    struct guest *g = make_guest(3, "hot=8K"); /* the third vCPU owns nothing */
    struct guest_state state = saved(g);
    static const size_t told_apart[] = {0, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 52, 56, 64};

    for (size_t size = 0; size < state.size; size++)
        cr_expect_eq(load(g, state.bytes, size), -EBADMSG, "cut to %zu bytes", size);
    uint8_t *longer = calloc(1, state.size + 1);
    memcpy(longer, state.bytes, state.size);
    cr_expect_eq(load(g, longer, state.size + 1), -EBADMSG, "a byte too many");
    free(longer);
    for (size_t i = 0; i < sizeof(told_apart) / sizeof(told_apart[0]); i++) {
        state.bytes[told_apart[i]] ^= 1;
        cr_expect_eq(load(g, state.bytes, state.size), -EBADMSG, "byte %zu", told_apart[i]);
        state.bytes[told_apart[i]] ^= 1;
    }
    state.bytes[state.size - 1] = 1;
    cr_expect_eq(load(g, state.bytes, state.size), -EBADMSG, "writes of a vCPU that owns no page");
    state.bytes[state.size - 1] = 0;
    cr_expect_eq(load(g, state.bytes, state.size), 0);
    guest_state_free(&state);
    g->ops->destroy(g);
}

Test(synthetic_state, save_and_load_only_at_rest)
{
    struct guest *g = make_guest(1, "hot=8K");
    struct guest_state state = saved(g), other = {0};
    struct error err = {0};

    cr_assert_eq(g->ops->resume(g, &err), 0);
    cr_expect_eq(g->ops->save(g, &other, &err), -EBUSY);
    cr_expect_eq(load(g, state.bytes, state.size), -EBUSY, "it runs");
    error_clear(&err);
    cr_assert_eq(g->ops->pause(g, &err), 0, "%s", err.text);
    cr_expect_eq(load(g, state.bytes, state.size), -EBUSY, "it has run");
    guest_state_free(&state);
    g->ops->destroy(g);
}

static void start_pause_and_load(void)
{
    struct guest *g = make_guest(1, "hot=8K"), *incoming;
    struct guest_description d = describe(g);
    struct error err = {0};

    cr_assert_eq(g->ops->resume(g, &err), 0, "%s", err.text);
    cr_assert_eq(g->ops->pause(g, &err), 0, "%s", err.text);
    struct guest_state state = saved(g);
    cr_assert_eq(synthetic_guest_kind.incoming(&(struct guest_host){0}, &d, &incoming, &err), 0,
                 "%s", err.text);
    cr_expect_eq(load(incoming, state.bytes, state.size), 0, "a state saved right after the start");
    incoming->ops->destroy(incoming);
    g->ops->destroy(g);
    guest_state_free(&state);
    guest_description_free(&d);
}

/* Most of these are paused again before a vCPU has looked at the clock. */
Test(synthetic_state, paused_as_soon_as_started)
{
    for (int i = 0; i < 50; i++)
        start_pause_and_load();
}

Test(synthetic_state, tracker_names)
{
    struct guest *g = make_guest(1, "hot=8K");
    struct error err = {0};
    struct tracker *t;

    cr_expect_eq(g->ops->tracker(g, "dirty-log", &t, &err), -EINVAL);
    cr_expect(strstr(err.text, "userfaultfd"), "%s", err.text);
    g->ops->destroy(g);
}
