/* Asks a QEMU for what the facts hold. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/qemu/facts_internal.h"

/* What QEMU says goes into messages for people, and to a peer that takes no other. */
static void add_text(cJSON *object, const char *name, const char *text)
{
    char clean[FACTS_MAX_TEXT];
    size_t i;

    for (i = 0; text[i] && i < sizeof clean - 1; i++)
        clean[i] = (unsigned char)text[i] < ' ' || text[i] == 0x7f ? '?' : text[i];
    clean[i] = '\0';
    cJSON_AddStringToObject(object, name, clean);
}

static void copy_number(cJSON *to, const char *name, const cJSON *from, const char *source)
{
    cJSON_AddNumberToObject(to, name, (double)facts_number(from, source));
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static int gather_version(struct qmp *q, cJSON *root, struct error *err)
{
    cJSON *answer;
    int ret = qmp_call(q, &answer, err, "query-version", NULL);

    if (ret < 0)
        return ret;
    const cJSON *version = cJSON_GetObjectItemCaseSensitive(answer, "qemu");
    copy_number(root, "major", version, "major");
    copy_number(root, "minor", version, "minor");
    add_text(root, "package", json_text(answer, "package"));
    cJSON_Delete(answer);
    return 0;
}

static int gather_machine(struct qmp *q, cJSON *root, struct error *err)
{
    char type[128], *suffix;
    cJSON *kvm, *name;
    int ret;

    if ((ret = qom_get_text(q, "/machine", "type", type, sizeof type, err)) < 0)
        return ret;
    if ((suffix = strstr(type, "-machine")) && strlen(suffix) == strlen("-machine"))
        *suffix = '\0';
    add_text(root, "machine", type);
    if ((ret = qmp_call(q, &kvm, err, "query-kvm", NULL)) < 0)
        return ret;
    add_text(root, "accel", json_true(kvm, "enabled") ? "kvm" : "tcg");
    cJSON_Delete(kvm);
    if ((ret = qmp_call(q, &name, err, "query-name", NULL)) < 0)
        return ret;
    add_text(root, "name", json_text(name, "name"));
    cJSON_Delete(name);
    return 0;
}

/* "feature-words" of x86: what the vCPU has, whatever the model's name promised. Others have none.
 */
static int gather_features(struct qmp *q, const char *path, cJSON *cpu, struct error *err)
{
    cJSON *features = cJSON_AddObjectToObject(cpu, "features"), *words;
    const cJSON *word;
    char name[64];
    int ret = qom_get(q, path, "feature-words", &words, err);

    cJSON_ArrayForEach(word, words)
    {
        uint64_t bits = facts_number(word, "features");
        snprintf(name, sizeof name, "CPUID 0x%llx.%llu %.3s",
                 (unsigned long long)facts_number(word, "cpuid-input-eax"),
                 (unsigned long long)facts_number(word, "cpuid-input-ecx"),
                 json_text(word, "cpuid-register"));
        if (bits && !cJSON_HasObjectItem(features, name))
            cJSON_AddNumberToObject(features, name, (double)bits);
    }
    cJSON_Delete(words);
    return ret;
}

static int gather_topology(struct qmp *q, cJSON *cpu, struct error *err)
{
    cJSON *smp;
    int ret = qom_get(q, "/machine", "smp", &smp, err);

    copy_number(cpu, "slots", smp, "maxcpus");
    copy_number(cpu, "sockets", smp, "sockets");
    copy_number(cpu, "dies", smp, "dies");
    copy_number(cpu, "cores", smp, "cores");
    copy_number(cpu, "threads", smp, "threads");
    cJSON_Delete(smp);
    return ret;
}

static int gather_cpu(struct qmp *q, cJSON *root, struct error *err)
{
    cJSON *cpu = cJSON_AddObjectToObject(root, "cpu"), *cpus;
    char path[128], type[128];
    int ret = qmp_call(q, &cpus, err, "query-cpus-fast", NULL);

    if (ret < 0)
        return ret;
    cJSON_AddNumberToObject(cpu, "count", cJSON_GetArraySize(cpus));
    snprintf(path, sizeof path, "%s", json_text(cJSON_GetArrayItem(cpus, 0), "qom-path"));
    cJSON_Delete(cpus);
    if ((ret = qom_get_text(q, path, "type", type, sizeof type, err)) < 0)
        return ret;
    add_text(cpu, "type", type);
    if ((ret = gather_topology(q, cpu, err)) < 0)
        return ret;
    return gather_features(q, path, cpu, err);
}

static int gather_memory(struct qmp *q, cJSON *root, struct error *err)
{
    cJSON *memory = cJSON_AddArrayToObject(root, "memory"), *backends;
    const cJSON *backend;
    int ret = qmp_call(q, &backends, err, "query-memdev", NULL);

    cJSON_ArrayForEach(backend, backends)
    {
        cJSON *item = cJSON_CreateObject();
        add_text(item, "id", json_text(backend, "id"));
        copy_number(item, "size", backend, "size");
        cJSON_AddItemToArray(memory, item);
    }
    cJSON_Delete(backends);
    return ret;
}

/* Properties that say where on its bus a device is. */
static const char *const places[] = {"addr", "channel", "scsi-id", "lun",
                                     "unit", "port",    "nr",      "iobase"};

static void describe_place(const char *place, const cJSON *value, char *out, size_t size)
{
    uint64_t number = cJSON_IsNumber(value) && value->valuedouble > 0 ? value->valuedouble : 0;
    const char *comma = out[0] ? "," : "";
    size_t used = strlen(out);

    if (cJSON_IsString(value) && value->valuestring[0])
        snprintf(out + used, size - used, "%s%s=%s", comma, place, value->valuestring);
    else if (cJSON_IsNumber(value) && strcmp(place, "addr") == 0 && number < 256)
        snprintf(out + used, size - used, "%s%02x.%x", comma, (unsigned)number >> 3,
                 (unsigned)number & 7);
    else if (cJSON_IsNumber(value))
        snprintf(out + used, size - used, "%s%s=%llu", comma, place, (unsigned long long)number);
}

static bool has_property(const cJSON *properties, const char *name)
{
    const cJSON *property;

    cJSON_ArrayForEach(property,
                       properties) if (strcmp(json_text(property, "name"), name) == 0) return true;
    return false;
}

static int gather_place(struct qmp *q, const char *path, char *out, size_t size, struct error *err)
{
    cJSON *properties, *value;
    int ret = qom_list(q, path, &properties, err);

    out[0] = '\0';
    for (size_t i = 0; i < sizeof places / sizeof places[0] && ret == 0; i++) {
        if (!has_property(properties, places[i]))
            continue;
        if ((ret = qom_get(q, path, places[i], &value, err)) == 0)
            describe_place(places[i], value, out, size);
        cJSON_Delete(value);
    }
    cJSON_Delete(properties);
    return ret;
}

/* Where QEMU keeps devices. What -vga, -nic and -serial make is among those of the board, of which
 * only the kinds and their number are asked: there are many, and each question takes its time. */
static const struct shelf {
    const char *path;
    bool named, board;
} shelves[] = {
    {"/machine/peripheral", true, false},
    {"/machine/peripheral-anon", false, false},
    {"/machine/unattached", false, true},
};

static int gather_device(struct qmp *q, const struct shelf *shelf, const char *name,
                         const char *type, cJSON *devices, struct error *err)
{
    char path[256], bus[256], place[128];
    int ret;

    snprintf(path, sizeof path, "%s/%s", shelf->path, name);
    if (shelf->board) {
        bus[0] = place[0] = '\0';
    } else if ((ret = qom_get_text(q, path, "parent_bus", bus, sizeof bus, err)) < 0 ||
               (ret = gather_place(q, path, place, sizeof place, err)) < 0) {
        return ret;
    }
    cJSON *device = cJSON_CreateObject();
    add_text(device, "id", shelf->named ? name : "");
    add_text(device, "type", type);
    add_text(device, "bus", last_part(bus));
    add_text(device, "address", place);
    cJSON_AddBoolToObject(device, "board", shelf->board);
    add_text(device, "path", path);
    cJSON_AddItemToArray(devices, device);
    return 0;
}

static bool parse_child(const cJSON *property, char type[128])
{
    return sscanf(json_text(property, "type"), "child<%127[^>]>", type) == 1 &&
           strcmp(type, "irq") != 0 && strcmp(type, "memory-region") != 0 &&
           !strstr(type, "-cpu") && !strstr(type, "apic"); /* vCPUs are counted by themselves */
}

static int gather_shelf(struct qmp *q, const struct shelf *shelf, cJSON *devices, struct error *err)
{
    const cJSON *property;
    cJSON *properties;
    char type[128];
    int ret = qom_list(q, shelf->path, &properties, err);

    cJSON_ArrayForEach(property, properties)
    {
        if (ret == 0 && parse_child(property, type))
            ret = gather_device(q, shelf, json_text(property, "name"), type, devices, err);
    }
    cJSON_Delete(properties);
    return ret;
}

static int gather_devices(struct qmp *q, cJSON *root, struct error *err)
{
    cJSON *devices = cJSON_AddArrayToObject(root, "devices");
    int ret = 0;

    for (size_t i = 0; i < sizeof shelves / sizeof shelves[0] && ret == 0; i++)
        ret = gather_shelf(q, &shelves[i], devices, err);
    return ret;
}

/* The device that a block device's "qdev" (it, or a part of it) belongs to. */
static const cJSON *device_of(const cJSON *root, const char *qdev)
{
    const cJSON *device;

    cJSON_ArrayForEach(device, cJSON_GetObjectItemCaseSensitive(root, "devices"))
    {
        const char *path = json_text(device, "path");
        size_t length = strlen(path);
        if (strncmp(qdev, path, length) == 0 && (qdev[length] == '\0' || qdev[length] == '/'))
            return device;
    }
    return NULL;
}

/* The image's file: QEMU gives its name, or for a node made of several "json:" and their options,
 * the file innermost. */
static void add_file(cJSON *disk, const cJSON *medium)
{
    const char *file = json_text(medium, "file");
    cJSON *options = strncmp(file, "json:", 5) == 0 ? cJSON_Parse(file + 5) : NULL;
    const cJSON *node = options;

    while (cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(node, "file")))
        node = cJSON_GetObjectItemCaseSensitive(node, "file");
    if (json_text(node, "filename")[0])
        file = json_text(node, "filename");
    add_text(disk, "file", file);
    cJSON_Delete(options);
}

static cJSON *describe_disk(const cJSON *root, const cJSON *block)
{
    const cJSON *medium = cJSON_GetObjectItemCaseSensitive(block, "inserted");
    const cJSON *cache = cJSON_GetObjectItemCaseSensitive(medium, "cache");
    const cJSON *device = device_of(root, json_text(block, "qdev"));
    cJSON *disk = cJSON_CreateObject();
    char name[FACTS_MAX_TEXT];

    snprintf(name, sizeof name, "%s", json_text(block, "qdev"));
    add_text(disk, "device", device ? facts_device_name(device, name, sizeof name) : name);
    add_text(disk, "format", json_text(medium, "drv"));
    copy_number(disk, "size", cJSON_GetObjectItemCaseSensitive(medium, "image"), "virtual-size");
    cJSON_AddBoolToObject(disk, "readonly", json_true(medium, "ro"));
    cJSON_AddBoolToObject(disk, "direct", json_true(cache, "direct"));
    cJSON_AddBoolToObject(disk, "unsafe", json_true(cache, "no-flush"));
    add_file(disk, medium);
    return disk;
}

static int gather_disks(struct qmp *q, cJSON *root, struct error *err)
{
    cJSON *disks = cJSON_AddArrayToObject(root, "disks"), *blocks;
    const cJSON *block;
    int ret = qmp_call(q, &blocks, err, "query-block", NULL);

    cJSON_ArrayForEach(block, blocks)
    {
        if (json_text(block, "qdev")[0])
            cJSON_AddItemToArray(disks, describe_disk(root, block));
    }
    cJSON_Delete(blocks);
    return ret;
}

/* A line of HMP's "info network": "[ \ ]ID: index=N,type=KIND,...". */
static void add_network(cJSON *networks, const char *line)
{
    const char *start = line + strspn(line, " \\"), *colon = strstr(start, ": ");
    const char *type = colon ? strstr(colon, ",type=") : NULL;
    char id[64], kind[64];

    if (!type || sscanf(type, ",type=%63[^,]", kind) != 1 || strcmp(kind, "nic") == 0)
        return;
    snprintf(id, sizeof id, "%.*s", (int)(colon - start), start);
    cJSON *network = cJSON_CreateObject();
    add_text(network, "id", id);
    add_text(network, "kind", kind);
    cJSON_AddItemToArray(networks, network);
}

/* QMP has no command of its own for this. */
static int gather_networks(struct qmp *q, cJSON *root, struct error *err)
{
    cJSON *networks = cJSON_AddArrayToObject(root, "networks"), *answer;
    char *next = NULL;
    int ret =
        qmp_call(q, &answer, err, "human-monitor-command", "{'command-line': 'info network'}");
    char *text = cJSON_GetStringValue(answer);

    for (char *line = text ? strtok_r(text, "\r\n", &next) : NULL; line;
         line = strtok_r(NULL, "\r\n", &next))
        add_network(networks, line);
    cJSON_Delete(answer);
    return ret;
}

int qemu_facts_gather(struct qmp *q, struct qemu_facts **out, struct error *err)
{
    static int (*const gatherers[])(struct qmp *, cJSON *, struct error *) = {
        gather_version, gather_machine, gather_cpu,     gather_memory,
        gather_devices, gather_disks,   gather_networks};
    struct qemu_facts *f = calloc(1, sizeof *f);
    int ret = 0;

    *out = NULL;
    if (!f || !(f->root = cJSON_CreateObject())) {
        free(f);
        return error_set(err, ENOMEM, "out of memory for the description of QEMU");
    }
    for (size_t i = 0; i < sizeof gatherers / sizeof gatherers[0] && ret == 0; i++)
        ret = gatherers[i](q, f->root, err);
    if (ret < 0) {
        qemu_facts_free(f);
        return error_prefix(err, "asking QEMU what it is made of failed");
    }
    *out = f;
    return 0;
}
