#include "migrate/guest/workload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "migrate/guest/workload_pattern.h"
#include "transport/base/options.h"

static const char *const pattern_names[] = {"sequential", "random", "hotcold", "window", NULL};
static const char *const content_names[] = {"zero", "constant", "compressible", "incompressible",
                                            NULL};

static int parse_name(const char *const *names, const char *text, unsigned *value,
                      struct error *err)
{
    char known[128] = "";

    for (unsigned i = 0; names[i]; i++) {
        if (strcmp(names[i], text) == 0) {
            *value = i;
            return 0;
        }
        snprintf(known + strlen(known), sizeof(known) - strlen(known), " %s", names[i]);
    }
    return error_set(err, EINVAL, "'%s' is unknown; known are:%s", text, known);
}

static int parse_bytes(const char *text, uint64_t *value, struct error *err)
{
    if (strcmp(text, "0") == 0) {
        *value = 0;
        return 0;
    }
    return parse_size(text, value, err);
}

static int parse_touch(struct workload *w, const char *text, struct error *err)
{
    return parse_bytes(text, &w->touch, err);
}

static int parse_content(struct workload *w, const char *text, struct error *err)
{
    unsigned value = w->content;
    int rc = parse_name(content_names, text, &value, err);

    w->content = value;
    return rc;
}

static int parse_hot(struct workload *w, const char *text, struct error *err)
{
    return parse_bytes(text, &w->hot, err);
}

static int parse_at(struct workload *w, const char *text, struct error *err)
{
    return parse_bytes(text, &w->hot_at, err);
}

/* Digits alone are pages/s; anything else but "max" is bytes/s. */
static int parse_write_rate(struct workload *w, const char *text, struct error *err)
{
    size_t length = strlen(text);

    if (strcmp(text, "max") == 0) {
        w->rate = UINT64_MAX;
        return 0;
    }
    if (length > 0 && strspn(text, "0123456789") == length)
        return parse_number(text, 0, UINT64_MAX - 1, &w->rate, err);
    int rc = parse_rate(text, &w->rate, err);
    if (rc < 0)
        return rc;
    w->rate /= GUEST_PAGE_SIZE;
    if (w->rate == 0)
        return error_set(err, EINVAL, "'%s' is less than one page (%d bytes) per second", text,
                         GUEST_PAGE_SIZE);
    return 0;
}

static int parse_pattern(struct workload *w, const char *text, struct error *err)
{
    unsigned value = w->pattern;
    int rc = parse_name(pattern_names, text, &value, err);

    w->pattern = value;
    return rc;
}

static int parse_hot_share(struct workload *w, const char *text, struct error *err)
{
    uint64_t value = w->hot_share;
    int rc = parse_number(text, 0, 100, &value, err);

    w->hot_share = (unsigned)value;
    return rc;
}

static int parse_window(struct workload *w, const char *text, struct error *err)
{
    return parse_bytes(text, &w->window, err);
}

static int parse_seed(struct workload *w, const char *text, struct error *err)
{
    return parse_number(text, 0, UINT64_MAX, &w->seed, err);
}

struct workload_key {
    const char *name;
    int (*parse)(struct workload *w, const char *text, struct error *err);
};

static const struct workload_key keys[] = {
    {"touch", parse_touch},
    {"content", parse_content},
    {"hot", parse_hot},
    {"at", parse_at},
    {"rate", parse_write_rate},
    {"pattern", parse_pattern},
    {"hot-share", parse_hot_share},
    {"window", parse_window},
    {"seed", parse_seed},
};

static int parse_pair(struct workload *w, const char *key, const char *value, struct error *err)
{
    char known[128] = "";

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (strcmp(keys[i].name, key) == 0) {
            int rc = keys[i].parse(w, value, err);
            return rc < 0 ? error_prefix(err, "workload %s", key) : 0;
        }
        snprintf(known + strlen(known), sizeof(known) - strlen(known), " %s", keys[i].name);
    }
    return error_set(err, EINVAL, "workload: unknown key '%s'; known are:%s", key, known);
}

int workload_parse(const char *spec, struct workload *out, struct error *err)
{
    struct error local = {0};
    char key[32], value[64];
    const char *cursor = spec ? spec : "";
    int rc;

    *out = (struct workload){
        .content = CONTENT_INCOMPRESSIBLE, .rate = UINT64_MAX, .hot_share = 90, .seed = 1};
    while (*cursor &&
           (rc = next_pair(&cursor, key, sizeof(key), value, sizeof(value), &local)) != 0) {
        if (rc > 0)
            rc = parse_pair(out, key, value, &local);
        if (rc < 0)
            return error_set(err, -rc, "%s", local.text);
    }
    return workload_check(out, UINT64_MAX, err);
}

static void append(char *out, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void append(char *out, size_t size, const char *format, ...)
{
    size_t used = strlen(out);
    va_list args;

    va_start(args, format);
    vsnprintf(out + used, size - used, format, args);
    va_end(args);
}

char *workload_format(const struct workload *w, char *out, size_t size)
{
    if (size == 0)
        return out;
    out[0] = '\0';
    append(out, size, "touch=%" PRIu64 ",content=%s,hot=%" PRIu64 ",at=%" PRIu64, w->touch,
           content_names[w->content], w->hot, w->hot_at);
    if (w->rate == UINT64_MAX)
        append(out, size, ",rate=max");
    else
        append(out, size, ",rate=%" PRIu64, w->rate);
    append(out, size, ",pattern=%s,hot-share=%u,window=%" PRIu64 ",seed=%" PRIu64,
           pattern_names[w->pattern], w->hot_share, w->window, w->seed);
    return out;
}

static int check_multiple(const char *name, uint64_t bytes, struct error *err)
{
    if (bytes % GUEST_PAGE_SIZE == 0)
        return 0;
    return error_set(err, EINVAL,
                     "workload %s: %" PRIu64 " bytes is no multiple of the page size, %d", name,
                     bytes, GUEST_PAGE_SIZE);
}

static int check_sizes(const struct workload *w, struct error *err)
{
    int rc;

    if ((rc = check_multiple("touch", w->touch, err)) < 0 ||
        (rc = check_multiple("hot", w->hot, err)) < 0 ||
        (rc = check_multiple("at", w->hot_at, err)) < 0 ||
        (rc = check_multiple("window", w->window, err)) < 0)
        return rc;
    if (w->hot / GUEST_PAGE_SIZE > UINT32_MAX)
        return error_set(err, EINVAL,
                         "workload hot: stamps number pages with 32 bits, so it must be below 16T");
    return 0;
}

static int check_choices(const struct workload *w, struct error *err)
{
    if (w->content > CONTENT_INCOMPRESSIBLE || w->pattern > WORKLOAD_WINDOW)
        return error_set(err, EINVAL, "workload: content %d or pattern %d is unknown",
                         (int)w->content, (int)w->pattern);
    if (w->hot_share > 100)
        return error_set(err, EINVAL, "workload hot-share: %u is more than 100 percent",
                         w->hot_share);
    if (w->rate == 0)
        return error_set(err, EINVAL, "workload rate: 0 pages/s; for an idle guest use hot=0");
    if (w->hot > 0 && w->pattern == WORKLOAD_WINDOW && (w->window == 0 || w->window > w->hot))
        return error_set(err, EINVAL,
                         "workload window: %" PRIu64 " bytes; pattern=window needs one above 0 and "
                         "within hot (%" PRIu64 " bytes)",
                         w->window, w->hot);
    return 0;
}

int workload_check(const struct workload *w, uint64_t available, struct error *err)
{
    int rc;

    if ((rc = check_sizes(w, err)) < 0 || (rc = check_choices(w, err)) < 0)
        return rc;
    if (w->touch > available)
        return error_set(err, EINVAL,
                         "workload touch: %" PRIu64 " bytes do not fit into the %" PRIu64
                         " that the guest leaves to its workload; give it more memory",
                         w->touch, available);
    if (w->hot > available || w->hot_at > available - w->hot)
        return error_set(err, EINVAL,
                         "workload hot: %" PRIu64 " bytes at %" PRIu64
                         " do not fit into the %" PRIu64
                         " that the guest leaves to its workload; give it more memory",
                         w->hot, w->hot_at, available);
    return 0;
}

/* The finaliser of MurmurHash3: every bit of `x` reaches every bit of the result. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 33) * 0xff51afd7ed558ccdull;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ull;
    return x ^ x >> 33;
}

enum { PAGE_WORDS = GUEST_PAGE_SIZE / sizeof(uint64_t) };

/* Counter-based: no word waits for the one before it. */
static void fill_noise(uint64_t *words, size_t count, uint64_t key)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t x = key + i * 0x9e3779b97f4a7c15ull;
        x = (x ^ x >> 32) * 0xd6e8feb86659fd93ull;
        words[i] = x ^ x >> 32;
    }
}

/* 5 words of every 16 are noise: about 3 : 1 with zstd, whose matches have a price too. */
static void fill_compressible(uint64_t *words, uint64_t key)
{
    enum { GROUP = 16, NOISE = 5 };
    uint64_t plain = key * 0x0101010101010101ull | 1;

    for (size_t i = 0; i < PAGE_WORDS; i += GROUP) {
        fill_noise(words + i, NOISE, key + i);
        for (size_t j = NOISE; j < GROUP; j++)
            words[i + j] = plain;
    }
}

void workload_fill(void *memory, uint64_t first_page, uint64_t size, enum workload_content content,
                   uint64_t seed)
{
    uint8_t *bytes = memory;

    for (uint64_t i = 0; i < size / GUEST_PAGE_SIZE; i++, bytes += GUEST_PAGE_SIZE) {
        uint64_t key = mix(mix(seed) + first_page + i);
        switch (content) {
        case CONTENT_ZERO:
            memset(bytes, 0, GUEST_PAGE_SIZE);
            break;
        case CONTENT_CONSTANT:
            memset(bytes, (int)(key | 1) & 0xff, GUEST_PAGE_SIZE);
            break;
        case CONTENT_COMPRESSIBLE:
            fill_compressible((uint64_t *)bytes, key);
            break;
        case CONTENT_INCOMPRESSIBLE:
            fill_noise((uint64_t *)bytes, PAGE_WORDS, key);
            break;
        }
    }
}

uint64_t workload_page(const struct workload *w, uint64_t counter, unsigned vcpu, unsigned vcpus,
                       uint64_t elapsed_ms)
{
    return workload_pattern_page(w->pattern, w->hot / GUEST_PAGE_SIZE, w->hot_share,
                                 w->window / GUEST_PAGE_SIZE, w->seed, counter, vcpu, vcpus,
                                 elapsed_ms);
}
