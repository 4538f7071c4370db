/* Whether a guest of one QEMU can go on in another. Pure. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/qemu/facts_internal.h"

enum { NAME_SIZE = 256 };

static bool same_text(const cJSON *a, const cJSON *b, const char *name)
{
    return strcmp(json_text(a, name), json_text(b, name)) == 0;
}

static bool same_release(const cJSON *a, const cJSON *b)
{
    return facts_number(a, "major") == facts_number(b, "major") &&
           facts_number(a, "minor") == facts_number(b, "minor");
}

static bool newer(const cJSON *a, const cJSON *b)
{
    uint64_t left = facts_number(a, "major"), right = facts_number(b, "major");

    return left > right || (left == right && facts_number(a, "minor") > facts_number(b, "minor"));
}

/* "pc-q35-7.2", "virt-9.0", and distributions' own; not "microvm", which changes with QEMU. */
static bool is_versioned(const char *machine)
{
    return strncmp(machine, "pc-", 3) == 0 || strchr(machine, '.');
}

static void compare_versions(const cJSON *guest, const cJSON *here, struct reasons *reasons)
{
    unsigned major = facts_number(guest, "major"), minor = facts_number(guest, "minor");
    unsigned here_major = facts_number(here, "major"), here_minor = facts_number(here, "minor");

    if (newer(guest, here))
        reasons_add(reasons,
                    "the guest runs in QEMU %u.%u, and QEMU %u.%u here cannot read a newer one's "
                    "state; install QEMU %u.%u or newer here",
                    major, minor, here_major, here_minor, major, minor);
    else if (!same_release(guest, here) && !is_versioned(json_text(guest, "machine")))
        reasons_add(reasons,
                    "the machine type %s has no version, so its state cannot go from QEMU %u.%u to "
                    "%u.%u; use the same QEMU on both hosts",
                    json_text(guest, "machine"), major, minor, here_major, here_minor);
}

static void compare_machines(const cJSON *guest, const cJSON *here, struct reasons *reasons)
{
    if (!same_text(guest, here, "machine"))
        reasons_add(reasons,
                    "the guest's machine type is %s and here it is %s; start QEMU here with "
                    "-machine %s",
                    json_text(guest, "machine"), json_text(here, "machine"),
                    json_text(guest, "machine"));
    if (!same_text(guest, here, "accel"))
        reasons_add(reasons,
                    "the guest runs with the accelerator %s and here it is %s; start QEMU here "
                    "with -accel %s",
                    json_text(guest, "accel"), json_text(here, "accel"), json_text(guest, "accel"));
}

static void compare_features(const cJSON *guest, const cJSON *here, struct reasons *reasons)
{
    const cJSON *had = cJSON_GetObjectItemCaseSensitive(guest, "features");
    const cJSON *have = cJSON_GetObjectItemCaseSensitive(here, "features");
    const cJSON *word;

    cJSON_ArrayForEach(word, had)
    {
        uint64_t missing = facts_number(had, word->string) & ~facts_number(have, word->string);
        if (missing)
            reasons_add(reasons,
                        "the guest's processor has features that it would lack here: %s bits "
                        "%#llx; use on both hosts a -cpu model that both processors have",
                        word->string, (unsigned long long)missing);
    }
}

static void compare_topology(const cJSON *guest, const cJSON *here, struct reasons *reasons)
{
    static const char *const members[] = {"slots", "sockets", "dies", "cores", "threads"};
    char had[128] = "", have[128] = "";
    bool same = true;

    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        unsigned a = facts_number(guest, members[i]), b = facts_number(here, members[i]);
        const char *option = i == 0 ? "maxcpus" : members[i];
        size_t used = strlen(had), other = strlen(have);
        same = same && a == b;
        snprintf(had + used, sizeof had - used, "%s%s=%u", i ? "," : "", option, a);
        snprintf(have + other, sizeof have - other, "%s%s=%u", i ? "," : "", option, b);
    }
    if (!same)
        reasons_add(reasons,
                    "the guest's vCPUs are laid out as %s and here as %s; give QEMU here "
                    "the -smp of the guest",
                    had, have);
}

static void compare_cpus(const cJSON *guest, const cJSON *here, struct reasons *reasons)
{
    const cJSON *a = cJSON_GetObjectItemCaseSensitive(guest, "cpu");
    const cJSON *b = cJSON_GetObjectItemCaseSensitive(here, "cpu");

    if (facts_number(a, "count") != facts_number(b, "count"))
        reasons_add(reasons, "the guest has %llu vCPUs and QEMU here %llu; start it with -smp %llu",
                    (unsigned long long)facts_number(a, "count"),
                    (unsigned long long)facts_number(b, "count"),
                    (unsigned long long)facts_number(a, "count"));
    else
        compare_topology(a, b, reasons);
    if (!same_text(a, b, "type"))
        reasons_add(reasons,
                    "the guest's processor is %s and here it is %s; start QEMU here with the same "
                    "-cpu",
                    json_text(a, "type"), json_text(b, "type"));
    else if (same_text(guest, here, "accel"))
        compare_features(a, b, reasons);
}

/* The item of a list whose `key` has this text, or NULL. */
static const cJSON *find(const cJSON *list, const char *key, const char *text)
{
    const cJSON *item;

    cJSON_ArrayForEach(item, list)
    {
        if (strcmp(json_text(item, key), text) == 0)
            return item;
    }
    return NULL;
}

static void compare_memory(const cJSON *guest, const cJSON *here, struct reasons *reasons)
{
    const cJSON *item, *other;

    cJSON_ArrayForEach(item, guest)
    {
        unsigned long long size = facts_number(item, "size");
        other = find(here, "id", json_text(item, "id"));
        if (!other)
            reasons_add(reasons,
                        "the guest's RAM %s has no counterpart here; start QEMU here with -object "
                        "memory-backend-file,id=%s,size=%llu,...",
                        json_text(item, "id"), json_text(item, "id"), size);
        else if (facts_number(other, "size") != size)
            reasons_add(reasons,
                        "the guest's RAM %s has %llu bytes and here %llu; give it the "
                        "same size",
                        json_text(item, "id"), size,
                        (unsigned long long)facts_number(other, "size"));
    }
    cJSON_ArrayForEach(item, here)
    {
        if (!find(guest, "id", json_text(item, "id")))
            reasons_add(reasons,
                        "QEMU here has RAM %s that the guest does not have; leave out its -object",
                        json_text(item, "id"));
    }
}

/* Devices are matched one to one: `taken` are those here that have their counterpart. */
struct matching {
    const cJSON **here;
    bool *taken;
    unsigned count;
};

static const cJSON *take(struct matching *m, unsigned i)
{
    m->taken[i] = true;
    return m->here[i];
}

static const cJSON *take_equal(struct matching *m, const cJSON *device)
{
    for (unsigned i = 0; i < m->count; i++)
        if (!m->taken[i] && same_text(m->here[i], device, "id") &&
            same_text(m->here[i], device, "type") && same_text(m->here[i], device, "bus") &&
            same_text(m->here[i], device, "address"))
            return take(m, i);
    return NULL;
}

/* What stands in a device's stead: has its id, or else sits in its place. */
static const cJSON *take_similar(struct matching *m, const cJSON *device)
{
    for (unsigned i = 0; i < m->count; i++)
        if (!m->taken[i] && json_text(device, "id")[0] && same_text(m->here[i], device, "id"))
            return take(m, i);
    for (unsigned i = 0; i < m->count; i++)
        if (!m->taken[i] && json_text(device, "address")[0] &&
            same_text(m->here[i], device, "bus") && same_text(m->here[i], device, "address"))
            return take(m, i);
    return NULL;
}

static void refuse_device(const cJSON *device, const cJSON *other, struct reasons *reasons)
{
    char name[NAME_SIZE], other_name[NAME_SIZE];

    facts_device_name(device, name, sizeof name);
    if (!other)
        reasons_add(reasons,
                    "the guest's device %s (%s) is missing here; add it to the command line of "
                    "QEMU here, or unplug it from the guest",
                    name, json_text(device, "type"));
    else if (!same_text(device, other, "type"))
        reasons_add(reasons,
                    "the guest's device %s is a %s and here a %s; give QEMU here the same -device",
                    name, json_text(device, "type"), json_text(other, "type"));
    else if (!same_text(device, other, "id"))
        reasons_add(reasons,
                    "the guest's device %s (%s) is called %s here; give it the same id (or none)",
                    name, json_text(device, "type"),
                    facts_device_name(other, other_name, sizeof other_name));
    else
        reasons_add(reasons,
                    "the guest's device %s (%s) sits at %s %s and here at %s %s; give it the same "
                    "bus= and addr= here, or all devices in the same order",
                    name, json_text(device, "type"), json_text(device, "bus"),
                    json_text(device, "address"), json_text(other, "bus"),
                    json_text(other, "address"));
}

static void match_devices(const cJSON *guest, struct matching *m, bool *matched, bool with_board,
                          struct reasons *reasons)
{
    const cJSON *device;
    unsigned i = 0;

    cJSON_ArrayForEach(device, guest)
    {
        matched[i++] = take_equal(m, device);
    }
    i = 0;
    cJSON_ArrayForEach(device, guest)
    {
        if (!matched[i++] && (with_board || !json_true(device, "board")))
            refuse_device(device, take_similar(m, device), reasons);
    }
    for (i = 0; i < m->count; i++) {
        char name[NAME_SIZE];
        if (!m->taken[i] && (with_board || !json_true(m->here[i], "board")))
            reasons_add(reasons,
                        "QEMU here has a device %s (%s) that the guest does not have; leave it out "
                        "(-nodefaults leaves out what QEMU adds by itself)",
                        facts_device_name(m->here[i], name, sizeof name),
                        json_text(m->here[i], "type"));
    }
}

/* Releases differ in what the board is made of inside, and know how to translate it. */
static void compare_devices(const cJSON *guest, const cJSON *here, bool with_board,
                            struct reasons *reasons)
{
    unsigned theirs = cJSON_GetArraySize(guest), ours = cJSON_GetArraySize(here);
    struct matching m = {.here = calloc(ours + 1, sizeof *m.here),
                         .taken = calloc(ours + 1, sizeof *m.taken)};
    bool *matched = calloc(theirs + 1, sizeof *matched);
    const cJSON *device;

    if (m.here && m.taken && matched) {
        cJSON_ArrayForEach(device, here)
        {
            m.here[m.count++] = device;
        }
        match_devices(guest, &m, matched, with_board, reasons);
    } else {
        reasons_add(reasons, "out of memory for comparing the guest's devices");
    }
    free(matched);
    free(m.taken);
    free(m.here);
}

static void compare_disk(const cJSON *disk, const cJSON *here, struct reasons *reasons)
{
    const char *name = json_text(disk, "device");

    if (!here)
        reasons_add(reasons,
                    "the guest's disk %s has no counterpart here; give QEMU here the same "
                    "drives",
                    name);
    else if (!same_text(disk, here, "format"))
        reasons_add(reasons,
                    "the guest's disk %s has the format %s and here %s; open the same image in the "
                    "same format (format=, driver=)",
                    name, json_text(disk, "format")[0] ? json_text(disk, "format") : "(no medium)",
                    json_text(here, "format")[0] ? json_text(here, "format") : "(no medium)");
    else if (facts_number(disk, "size") != facts_number(here, "size"))
        reasons_add(reasons,
                    "the guest's disk %s has %llu bytes and here %llu; open the same image, on "
                    "storage that both hosts share",
                    name, (unsigned long long)facts_number(disk, "size"),
                    (unsigned long long)facts_number(here, "size"));
    else if (json_true(disk, "readonly") != json_true(here, "readonly"))
        reasons_add(reasons, "the guest's disk %s is %s and here %s; give readonly= the same value",
                    name, json_true(disk, "readonly") ? "read-only" : "writable",
                    json_true(here, "readonly") ? "read-only" : "writable");
}

/* Disks whose device is missing were named with it; one too many here is named by its device. */
static void compare_disks(const cJSON *guest, const cJSON *here, struct reasons *reasons)
{
    const cJSON *disk;

    cJSON_ArrayForEach(disk, guest)
    {
        compare_disk(disk, find(here, "device", json_text(disk, "device")), reasons);
    }
    cJSON_ArrayForEach(disk, here)
    {
        if (!find(guest, "device", json_text(disk, "device")))
            reasons_add(
                reasons,
                "QEMU here has a disk %s that the guest does not have; give QEMU here the same "
                "drives",
                json_text(disk, "device"));
    }
}

void qemu_facts_compare(const struct qemu_facts *source, const struct qemu_facts *here,
                        struct reasons *reasons)
{
    bool with_board =
        same_release(source->root, here->root) && same_text(source->root, here->root, "machine");

    compare_versions(source->root, here->root, reasons);
    compare_machines(source->root, here->root, reasons);
    compare_cpus(source->root, here->root, reasons);
    compare_memory(facts_list(source, "memory"), facts_list(here, "memory"), reasons);
    compare_devices(facts_list(source, "devices"), facts_list(here, "devices"), with_board,
                    reasons);
    compare_disks(facts_list(source, "disks"), facts_list(here, "disks"), reasons);
}
