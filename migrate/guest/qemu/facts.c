#include "migrate/guest/qemu/facts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/qemu/facts_internal.h"
#include "transport/base/wire.h"

void qemu_facts_free(struct qemu_facts *f)
{
    if (!f)
        return;
    cJSON_Delete(f->root);
    free(f);
}

const cJSON *facts_list(const struct qemu_facts *f, const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(f->root, name);
}

uint64_t facts_number(const cJSON *object, const char *name)
{
    uint64_t value = 0;

    json_number(object, name, &value);
    return value;
}

char *facts_device_name(const cJSON *device, char *out, size_t size)
{
    const char *id = json_text(device, "id"), *address = json_text(device, "address");

    if (id[0] || !json_text(device, "bus")[0])
        snprintf(out, size, "%s", id[0] ? id : json_text(device, "type"));
    else
        snprintf(out, size, "%s at %s%s%s", json_text(device, "type"), json_text(device, "bus"),
                 address[0] ? " " : "", address);
    return out;
}

const char *qemu_facts_accel(const struct qemu_facts *f)
{
    return json_text(f->root, "accel");
}

unsigned qemu_facts_vcpus(const struct qemu_facts *f)
{
    return (unsigned)facts_number(facts_list(f, "cpu"), "count");
}

const char *qemu_facts_name(const struct qemu_facts *f)
{
    return json_text(f->root, "name");
}

int qemu_facts_encode(const struct qemu_facts *f, uint8_t **out, uint32_t *size, struct error *err)
{
    char *text = cJSON_PrintUnformatted(f->root);
    size_t length = text ? strlen(text) : 0;
    int ret = 0;

    *out = NULL;
    if (text && length > GUEST_MAX_PLATFORM - sizeof(uint32_t))
        ret = error_set(err, EFBIG,
                        "the description of this QEMU has %zu bytes, and %d are the most; give it "
                        "fewer devices",
                        length, GUEST_MAX_PLATFORM);
    else if (!text || !(*out = malloc(length + sizeof(uint32_t))))
        ret = error_set(err, ENOMEM, "out of memory for the description of QEMU");
    if (ret == 0) {
        struct wire_writer w = wire_writer(*out, length + sizeof(uint32_t));
        wire_put_u32(&w, FACTS_VERSION);
        wire_put_bytes(&w, text, length);
        *size = (uint32_t)(length + sizeof(uint32_t));
    }
    cJSON_free(text);
    return ret;
}

/* Members and their types: a document without them, or with others in their place, is refused
 * whole. */
struct field {
    const char *name;
    enum { TEXT, NUMBER, FLAG } type;
};

static const struct field root_fields[] = {{"major", NUMBER},
                                           {"minor", NUMBER},
                                           {"package", TEXT},
                                           {"machine", TEXT},
                                           {"accel", TEXT},
                                           {"name", TEXT},
                                           {NULL}};
static const struct field cpu_fields[] = {
    {"type", TEXT},   {"count", NUMBER}, {"slots", NUMBER},   {"sockets", NUMBER},
    {"dies", NUMBER}, {"cores", NUMBER}, {"threads", NUMBER}, {NULL}};
static const struct field memory_fields[] = {{"id", TEXT}, {"size", NUMBER}, {NULL}};
static const struct field device_fields[] = {
    {"id", TEXT},    {"type", TEXT}, {"bus", TEXT}, {"address", TEXT},
    {"board", FLAG}, {"path", TEXT}, {NULL}};
static const struct field disk_fields[] = {
    {"device", TEXT}, {"format", TEXT}, {"size", NUMBER}, {"readonly", FLAG},
    {"direct", FLAG}, {"unsafe", FLAG}, {"file", TEXT},   {NULL}};
static const struct field network_fields[] = {{"id", TEXT}, {"kind", TEXT}, {NULL}};

static const struct {
    const char *name;
    const struct field *fields;
} lists[] = {
    {"memory", memory_fields},
    {"devices", device_fields},
    {"disks", disk_fields},
    {"networks", network_fields},
};

static bool is_text(const cJSON *value)
{
    const char *text = cJSON_GetStringValue(value);

    if (!text || strlen(text) >= FACTS_MAX_TEXT)
        return false;
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            return false;
    return true;
}

static bool has_fields(const cJSON *object, const struct field *fields)
{
    uint64_t number;
    bool good = cJSON_IsObject(object);

    for (; good && fields->name; fields++) {
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, fields->name);
        good = fields->type == TEXT     ? is_text(value)
               : fields->type == NUMBER ? json_number(object, fields->name, &number)
                                        : cJSON_IsBool(value);
    }
    return good;
}

static bool is_list_of(const cJSON *list, const struct field *fields)
{
    const cJSON *item;
    unsigned count = 0;

    if (!cJSON_IsArray(list))
        return false;
    cJSON_ArrayForEach(item, list)
    {
        if (++count > FACTS_MAX_ITEMS || !has_fields(item, fields))
            return false;
    }
    return true;
}

/* Names that people will read, and numbers. */
static bool are_features(const cJSON *features)
{
    const cJSON *item;
    unsigned count = 0;

    if (!cJSON_IsObject(features))
        return false;
    cJSON_ArrayForEach(item, features)
    {
        if (++count > FACTS_MAX_ITEMS || !cJSON_IsNumber(item) || strlen(item->string) > 40 ||
            strspn(item->string, "0123456789abcdefxABCDEX.PUI ") != strlen(item->string))
            return false;
    }
    return true;
}

static bool is_whole(const cJSON *root)
{
    const cJSON *cpu = cJSON_GetObjectItemCaseSensitive(root, "cpu");

    if (!has_fields(root, root_fields) || !has_fields(cpu, cpu_fields) ||
        !are_features(cJSON_GetObjectItemCaseSensitive(cpu, "features")))
        return false;
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
        if (!is_list_of(cJSON_GetObjectItemCaseSensitive(root, lists[i].name), lists[i].fields))
            return false;
    return true;
}

/* A copy with a zero behind it: the parser then stops at the first zero, wherever that is. */
static cJSON *parse(const uint8_t *bytes, size_t size)
{
    char *text = strndup((const char *)bytes, size);
    cJSON *root = NULL;

    if (text && strlen(text) == size)
        root = cJSON_ParseWithOpts(text, NULL, true);
    free(text);
    return root;
}

int qemu_facts_decode(const void *bytes, size_t size, struct qemu_facts **out, struct error *err)
{
    struct wire_reader r = wire_reader(bytes, size);
    uint32_t version = wire_get_u32(&r);
    struct qemu_facts *f;

    *out = NULL;
    if (r.failed || size > GUEST_MAX_PLATFORM)
        return error_set(err, EBADMSG, "the description of the peer's QEMU has %zu bytes", size);
    if (version != FACTS_VERSION)
        return error_set(err, EBADMSG,
                         "the description of the peer's QEMU has format %u, and this wander knows "
                         "%d; use the same version of wander on both hosts",
                         version, FACTS_VERSION);
    if (!(f = calloc(1, sizeof *f)))
        return error_set(err, ENOMEM, "out of memory for the description of the peer's QEMU");
    f->root = parse(r.at, wire_reader_left(&r));
    if (!f->root || !is_whole(f->root)) {
        qemu_facts_free(f);
        return error_set(err, EBADMSG,
                         "the description of the peer's QEMU is damaged; use the same version of "
                         "wander on both hosts");
    }
    *out = f;
    return 0;
}
