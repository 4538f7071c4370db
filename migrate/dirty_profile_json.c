#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/dirty_profile.h"
#include "migrate/measurement_fields.h"

#define PROFILE(member, key) FIELD(struct dirty_profile, member, key, FIELD_U64, NEVER_NULL)

static const struct field profile_fields[] = {
    PROFILE(zero_pages, "zero_pages"),
    PROFILE(collect_ns, "collect_ns"),
};

enum { PROFILE_FIELDS = sizeof(profile_fields) / sizeof(profile_fields[0]) };

/* More would overflow the bytes of a guest. */
static const uint64_t most_pages = 1ull << 40;
static const double longest_ns = 0x1p50;

static bool add_number(cJSON *array, uint64_t value)
{
    cJSON *item = cJSON_CreateNumber((double)value);

    if (item && cJSON_AddItemToArray(array, item))
        return true;
    cJSON_Delete(item);
    return false;
}

static bool add_present(cJSON *json, const struct dirty_profile *p)
{
    cJSON *array = cJSON_AddArrayToObject(json, "present_pages");
    bool complete = array;

    for (unsigned band = 0; band < PROFILE_BANDS; band++)
        complete = complete && add_number(array, p->present[band]);
    return complete;
}

static bool add_windows(cJSON *json, const struct dirty_profile *p)
{
    cJSON *ns = cJSON_AddArrayToObject(json, "windows_ns");
    cJSON *chunks = cJSON_AddArrayToObject(json, "dirty_chunks");
    bool complete = ns && chunks;

    for (unsigned i = 0; i < p->window_count; i++)
        complete = complete && add_number(ns, p->windows[i].ns) &&
                   add_number(chunks, p->windows[i].chunks);
    return complete;
}

static bool add_curve(cJSON *curves, const struct dirty_profile *p, unsigned band)
{
    char key[8];

    snprintf(key, sizeof(key), "%u", band);
    cJSON *array = cJSON_AddArrayToObject(curves, key);
    bool complete = array;
    for (unsigned i = 0; i < p->window_count; i++)
        complete = complete && add_number(array, p->windows[i].pages[band]);
    return complete;
}

static bool add_curves(cJSON *json, const struct dirty_profile *p)
{
    cJSON *curves = cJSON_AddObjectToObject(json, "dirty_pages");
    bool complete = curves;

    for (unsigned band = 0; band < PROFILE_BANDS && p->window_count; band++) {
        if (p->windows[p->window_count - 1].pages[band])
            complete = complete && add_curve(curves, p, band);
    }
    return complete;
}

/* What people want to know; not read back. */
static bool add_summary(cJSON *json, const struct dirty_profile *p)
{
    return cJSON_AddNumberToObject(json, "dirty_pages_per_s", dirty_profile_rate(p)) &&
           cJSON_AddNumberToObject(json, "hot_pages", (double)dirty_profile_hot_pages(p));
}

cJSON *dirty_profile_to_json(const struct dirty_profile *p)
{
    cJSON *json = cJSON_CreateObject();

    if (json && fields_add(json, p, profile_fields, PROFILE_FIELDS) && add_summary(json, p) &&
        add_present(json, p) && add_windows(json, p) && add_curves(json, p))
        return json;
    cJSON_Delete(json);
    return NULL;
}

static int read_number(const cJSON *item, const char *what, double max, uint64_t *out,
                       struct error *err)
{
    double value = cJSON_IsNumber(item) ? item->valuedouble : -1;

    if (!(value >= 0 && value <= max) || (double)(uint64_t)value != value)
        return error_set(err, EPROTO, "%s holds what is no whole number from 0 to %.0f", what, max);
    *out = (uint64_t)value;
    return 0;
}

static int check_array(const cJSON *array, const char *what, int low, int high, struct error *err)
{
    int count = cJSON_IsArray(array) ? cJSON_GetArraySize(array) : -1;

    if (count >= low && count <= high)
        return 0;
    return error_set(err, EPROTO, "%s is no array of %d to %d numbers", what, low, high);
}

static int read_present(const cJSON *json, struct dirty_profile *out, struct error *err)
{
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(json, "present_pages"), *item;
    int result = check_array(array, "present_pages", PROFILE_BANDS, PROFILE_BANDS, err);
    unsigned band = 0;

    if (result)
        return result;
    cJSON_ArrayForEach(item, array)
    {
        result = read_number(item, "present_pages", (double)most_pages / PROFILE_BANDS,
                             &out->present[band++], err);
        if (result)
            return result;
    }
    if (out->zero_pages > dirty_profile_present(out))
        return error_set(err, EPROTO, "zero_pages are more than are present");
    return 0;
}

static int read_windows(const cJSON *json, struct dirty_profile *out, struct error *err)
{
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(json, "windows_ns"), *item;
    int result = check_array(array, "windows_ns", 1, PROFILE_WINDOWS, err);
    uint64_t before = 0;

    if (result)
        return result;
    cJSON_ArrayForEach(item, array)
    {
        struct dirty_window *window = &out->windows[out->window_count++];
        result = read_number(item, "windows_ns", longest_ns, &window->ns, err);
        if (!result && window->ns <= before)
            result = error_set(err, EPROTO, "windows_ns do not grow");
        if (result)
            return result;
        before = window->ns;
    }
    return 0;
}

static int read_chunks(const cJSON *json, struct dirty_profile *out, struct error *err)
{
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(json, "dirty_chunks"), *item;
    int count = (int)out->window_count;
    int result = check_array(array, "dirty_chunks", count, count, err);
    uint64_t before = 0;
    unsigned i = 0;

    if (result)
        return result;
    cJSON_ArrayForEach(item, array)
    {
        uint64_t *chunks = &out->windows[i++].chunks;
        result = read_number(item, "dirty_chunks", (double)most_pages, chunks, err);
        if (!result && *chunks < before)
            result = error_set(err, EPROTO, "dirty_chunks fall");
        if (result)
            return result;
        before = *chunks;
    }
    return 0;
}

/* A band's number as a key: 0 to 63, as it is printed. */
static int read_band(const char *key, unsigned *band, struct error *err)
{
    char text[8];

    for (*band = 0; key && *band < PROFILE_BANDS; ++*band) {
        snprintf(text, sizeof(text), "%u", *band);
        if (strcmp(text, key) == 0)
            return 0;
    }
    return error_set(err, EPROTO, "dirty_pages has a key that is no band from 0 to %d",
                     PROFILE_BANDS - 1);
}

static int read_curve(const cJSON *curve, struct dirty_profile *out, struct error *err)
{
    int count = (int)out->window_count;
    int result = check_array(curve, "a curve of dirty_pages", count, count, err);
    uint64_t before = 0;
    const cJSON *item;
    unsigned band, i = 0;

    if (!result)
        result = read_band(curve->string, &band, err);
    if (result)
        return result;
    cJSON_ArrayForEach(item, curve)
    {
        uint64_t *pages = &out->windows[i++].pages[band];
        result = read_number(item, "dirty_pages", (double)out->present[band], pages, err);
        if (!result && *pages < before)
            result = error_set(err, EPROTO, "dirty_pages of band %u fall", band);
        if (result)
            return result;
        before = *pages;
    }
    return 0;
}

static int read_curves(const cJSON *json, struct dirty_profile *out, struct error *err)
{
    const cJSON *curves = cJSON_GetObjectItemCaseSensitive(json, "dirty_pages"), *curve;

    if (!cJSON_IsObject(curves))
        return error_set(err, EPROTO, "dirty_pages is no object");
    cJSON_ArrayForEach(curve, curves)
    {
        int result = read_curve(curve, out, err);
        if (result)
            return result;
    }
    return 0;
}

int dirty_profile_from_json(const cJSON *json, struct dirty_profile *out, struct error *err)
{
    int result;

    memset(out, 0, sizeof(*out));
    if (!cJSON_IsObject(json))
        return error_set(err, EPROTO, "the profile of the guest's dirtying is no object");
    result = fields_read(json, out, profile_fields, PROFILE_FIELDS, err);
    if (!result)
        result = read_present(json, out, err);
    if (!result)
        result = read_windows(json, out, err);
    if (!result && cJSON_GetObjectItemCaseSensitive(json, "dirty_chunks"))
        result = read_chunks(json, out, err);
    return result ? result : read_curves(json, out, err);
}
