#include "migrate/costs_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/measurement_fields.h"
#include "migrate/record.h"
#include "transport/base/clock.h"

enum {
    LOCK_MS = 100, /* the migration is not over before */
    LOCK_RETRY_MS = 2,
    MAX_FILE_SIZE = 1 << 20, /* a full one has some 150 KiB */
    SCHEMA = 1,
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const uint64_t longest_ns = 3600 * NS_PER_S; /* of anything that can be believed */
/* A bandwidth that was learnt is this many millionths of the rehearsed, or 0. */
static const uint64_t least_ratio = 10000, most_ratio = 100000000;
static const char file_name[] = "costs.json", new_name[] = "costs.json.new";

/* A key as the file has it. */
struct key_text {
    struct costs_key key;
    char operation[16], registration[16];
};

#define KEY(member, key, kind)    FIELD(struct key_text, member, key, kind, NEVER_NULL)
#define SAMPLE(member, key, kind) FIELD(struct cost_sample, member, key, kind, NEVER_NULL)

static const struct field key_fields[] = {
    KEY(key.guest_kind, "guest", FIELD_TEXT), KEY(key.accel, "accel", FIELD_TEXT),
    KEY(key.vcpus, "vcpus", FIELD_UNSIGNED),  KEY(key.transport, "transport", FIELD_TEXT),
    KEY(operation, "operation", FIELD_TEXT),  KEY(registration, "registration", FIELD_TEXT),
    KEY(key.host, "host", FIELD_TEXT),
};

static const struct field sample_fields[] = {
    SAMPLE(setup_ns, "setup_ns", FIELD_U64),
    SAMPLE(downtime_ns, "downtime_ns", FIELD_U64),
    SAMPLE(finish_ns, "finish_ns", FIELD_U64),
    SAMPLE(bandwidth_millionths, "bandwidth_millionths", FIELD_U64),
};

static bool read_key(const cJSON *json, struct costs_key *out)
{
    struct key_text text = {0};

    if (!cJSON_IsObject(json) ||
        fields_read(json, &text, key_fields, COUNT(key_fields), &(struct error){0}))
        return false;
    bool reads = strcmp(text.operation, transport_operation_name(TRANSPORT_READ)) == 0;
    bool chunks =
        strcmp(text.registration, transport_registration_name(TRANSPORT_REGISTER_CHUNK)) == 0;
    *out = text.key;
    out->operation = reads ? TRANSPORT_READ : TRANSPORT_WRITE;
    out->registration = chunks ? TRANSPORT_REGISTER_CHUNK : TRANSPORT_REGISTER_ALL;
    return true;
}

static bool read_sample(const cJSON *json, struct cost_sample *out)
{
    return cJSON_IsObject(json) &&
           fields_read(json, out, sample_fields, COUNT(sample_fields), &(struct error){0}) == 0 &&
           out->setup_ns <= longest_ns && out->downtime_ns && out->downtime_ns <= longest_ns &&
           out->finish_ns <= longest_ns &&
           (!out->bandwidth_millionths ||
            (out->bandwidth_millionths >= least_ratio && out->bandwidth_millionths <= most_ratio));
}

static void read_kind(const cJSON *json, struct cost_book *book)
{
    const cJSON *samples = cJSON_GetObjectItemCaseSensitive(json, "samples"), *item;
    struct cost_kind kind = {0};

    if (book->count == COSTS_KINDS || !read_key(json, &kind.key))
        return;
    cJSON_ArrayForEach(item, samples)
    {
        struct cost_sample sample = {0};
        if (kind.count < COSTS_SAMPLES && read_sample(item, &sample))
            kind.samples[kind.count++] = sample;
    }
    if (kind.count)
        book->kinds[book->count++] = kind;
}

static char *read_text(int file, size_t *size)
{
    struct stat status;

    if (fstat(file, &status) || !S_ISREG(status.st_mode) || status.st_size > MAX_FILE_SIZE)
        return NULL;
    char *text = malloc((size_t)status.st_size + 1);
    ssize_t got = text ? pread(file, text, (size_t)status.st_size, 0) : -1;
    if (got < 0) {
        free(text);
        return NULL;
    }
    *size = (size_t)got;
    return text;
}

void costs_file_read(struct cost_book *out)
{
    const cJSON *item;
    char path[512];
    size_t size = 0;

    memset(out, 0, sizeof(*out));
    int result =
        record_state_folder(path, sizeof(path) - sizeof(file_name) - 1, &(struct error){0});
    if (result)
        return;
    strcat(strcat(path, "/"), file_name);
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0)
        return;
    char *text = read_text(file, &size);
    cJSON *json = text ? cJSON_ParseWithLength(text, size) : NULL;
    const cJSON *schema = cJSON_GetObjectItemCaseSensitive(json, "schema");
    if (cJSON_IsNumber(schema) && schema->valuedouble == SCHEMA)
        cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(json, "kinds"))
            read_kind(item, out);
    cJSON_Delete(json);
    free(text);
    close(file);
}

int costs_file_lock(struct error *err)
{
    uint64_t deadline = clock_now() + LOCK_MS * NS_PER_MS;
    char path[512];
    int result = record_state_folder(path, sizeof(path), err);

    if (result)
        return result;
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return error_set_errno(err, errno, "opening the state directory %s failed", path);
    while (flock(folder, LOCK_EX | LOCK_NB)) {
        if (errno != EWOULDBLOCK || clock_now() >= deadline) {
            result = error_set(err, ETIMEDOUT,
                               "another process keeps the state directory %s locked", path);
            close(folder);
            return result;
        }
        clock_sleep_until(clock_now() + LOCK_RETRY_MS * NS_PER_MS);
    }
    return folder;
}

/* An object with these fields, added to `array`; NULL without memory. */
static cJSON *append(cJSON *array, const void *base, const struct field *fields, size_t count)
{
    cJSON *object = cJSON_CreateObject();

    if (object && fields_add(object, base, fields, count) && cJSON_AddItemToArray(array, object))
        return object;
    cJSON_Delete(object);
    return NULL;
}

static bool add_kind(cJSON *kinds, const struct cost_kind *kind)
{
    struct key_text text = {.key = kind->key};

    snprintf(text.operation, sizeof(text.operation), "%s",
             transport_operation_name(kind->key.operation));
    snprintf(text.registration, sizeof(text.registration), "%s",
             transport_registration_name(kind->key.registration));
    cJSON *object = append(kinds, &text, key_fields, COUNT(key_fields));
    cJSON *samples = object ? cJSON_AddArrayToObject(object, "samples") : NULL;
    for (unsigned i = 0; samples && i < kind->count; i++)
        if (!append(samples, &kind->samples[i], sample_fields, COUNT(sample_fields)))
            return false;
    return samples;
}

static char *book_to_text(const struct cost_book *book)
{
    cJSON *json = cJSON_CreateObject();
    bool good = cJSON_AddNumberToObject(json, "schema", SCHEMA);
    cJSON *kinds = good ? cJSON_AddArrayToObject(json, "kinds") : NULL;

    good = kinds;
    for (unsigned i = 0; good && i < book->count; i++)
        good = add_kind(kinds, &book->kinds[i]);
    char *text = good ? cJSON_PrintUnformatted(json) : NULL;
    cJSON_Delete(json);
    return text;
}

/* No fsync: after a crash of the host an empty file costs no more than one that is not there. */
int costs_file_write(int folder, const struct cost_book *book, struct error *err)
{
    char *text = book_to_text(book);
    int result = 0;

    if (!text)
        return error_set(err, ENOMEM, "no memory for the costs of past migrations");
    int file =
        openat(folder, new_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0) {
        result = error_set_errno(err, errno, "making %s in the state directory failed", new_name);
        goto free_text;
    }
    ssize_t size = (ssize_t)strlen(text);
    errno = ENOSPC; /* of a write that took less than all */
    if (write(file, text, (size_t)size) != size)
        result = error_set_errno(err, errno, "writing %s in the state directory failed", new_name);
    else if (renameat(folder, new_name, folder, file_name))
        result =
            error_set_errno(err, errno, "replacing %s in the state directory failed", file_name);
    close(file);
free_text:
    free(text);
    return result;
}
