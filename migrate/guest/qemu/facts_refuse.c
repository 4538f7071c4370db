/* What keeps a guest from being moved at all, whatever the destination. */
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "migrate/guest/qemu/facts_internal.h"
#include "migrate/guest/qemu/run_state.h"

enum { NAME_SIZE = 256, XFS_MAGIC = 0x58465342 };

/* By the beginning of a device's type. */
static const struct {
    const char *type, *why, *remedy;
} devices[] = {
    {"vfio-", "its hardware writes to the guest's RAM where no tracking sees it",
     "unplug it before the move (device_del) and plug it in again after, or use an emulated "
     "device"},
    {"vhost-user-", "another process writes to the guest's RAM where no tracking sees it",
     "use a device that QEMU itself emulates (virtio-blk-pci, virtio-net-pci, ...)"},
    {"vhost-vdpa", "its hardware writes to the guest's RAM where no tracking sees it",
     "use an emulated device (virtio-net-pci, virtio-blk-pci)"},
    {"vhost-scsi", "the kernel pins the guest's RAM for it and writes where no tracking sees it",
     "use virtio-scsi-pci with scsi-hd"},
    {"scsi-block", "the kernel reads from its disk into the guest's RAM where no tracking sees it",
     "use scsi-hd on the same disk"},
    {"scsi-generic", "the kernel reads from it into the guest's RAM where no tracking sees it",
     "use scsi-hd on the same disk, or unplug it before the move (device_del)"},
    {"virtio-mem", "it takes RAM away from the guest and gives it back while it runs",
     "give the guest all its RAM with -m and leave the device out"},
    {"virtio-pmem", "its memory is a file that is not moved", "use a disk (virtio-blk-pci)"},
    {"nvdimm", "its memory is a file that is not moved", "use a disk (virtio-blk-pci)"},
    {"ivshmem", "its memory is shared with other guests of this host", "leave it out"},
    {"sgx-epc", "its memory cannot be read from outside the processor", "leave it out"},
};

static bool begins_with(const char *text, const char *beginning)
{
    return strncmp(text, beginning, strlen(beginning)) == 0;
}

static void refuse_type(const cJSON *device, struct reasons *reasons)
{
    char name[NAME_SIZE];

    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++)
        if (begins_with(json_text(device, "type"), devices[i].type))
            reasons_add(reasons, "the guest's device %s (%s) cannot be moved: %s; %s",
                        facts_device_name(device, name, sizeof name), json_text(device, "type"),
                        devices[i].why, devices[i].remedy);
}

static int refuse_balloon(struct qmp *q, const cJSON *device, struct reasons *reasons,
                          struct reasons *notes, struct error *err)
{
    char name[NAME_SIZE];
    bool reports;
    int ret;

    if (!begins_with(json_text(device, "type"), "virtio-balloon"))
        return 0;
    ret = qom_get_bool(q, json_text(device, "path"), "free-page-reporting", &reports, err);
    facts_device_name(device, name, sizeof name);
    if (reports)
        reasons_add(reasons,
                    "the guest's balloon %s gives free pages back to the host at any time "
                    "(free-page-reporting=on), under the feet of a move; start QEMU without it",
                    name);
    else if (ret == 0 && notes)
        reasons_add(notes, "leave the size of the balloon %s alone until the guest has moved",
                    name);
    return ret;
}

static int refuse_devices(struct qmp *q, const struct qemu_facts *f, struct reasons *reasons,
                          struct reasons *notes, struct error *err)
{
    const cJSON *device, *network;
    int ret = 0;

    cJSON_ArrayForEach(device, facts_list(f, "devices"))
    {
        refuse_type(device, reasons);
        if (ret == 0)
            ret = refuse_balloon(q, device, reasons, notes, err);
    }
    cJSON_ArrayForEach(network, facts_list(f, "networks"))
    {
        const char *kind = json_text(network, "kind");
        if (strcmp(kind, "vhost-user") == 0 || strcmp(kind, "vhost-vdpa") == 0)
            reasons_add(reasons,
                        "the guest's network %s is of the kind %s, which writes to the guest's RAM "
                        "where no tracking sees it; use -netdev tap",
                        json_text(network, "id"), kind);
    }
    return ret;
}

/* Drivers of disks by their whole names, among them those of libblkio. */
static const struct {
    const char *name, *why;
} drivers[] = {
    {"nvme", "the disk's hardware writes"},
    {"nvme-io_uring", "the kernel writes, through pinned pages,"},
    {"io_uring", "the kernel writes, through pinned pages,"},
    {"virtio-blk-vfio-pci", "the disk's hardware writes"},
    {"virtio-blk-vhost-vdpa", "the disk's hardware writes"},
    {"virtio-blk-vhost-user", "another process writes"},
};

static void refuse_driver(const cJSON *node, struct reasons *reasons)
{
    const char *driver = json_text(node, "drv");

    for (size_t i = 0; i < sizeof drivers / sizeof drivers[0]; i++)
        if (strcmp(driver, drivers[i].name) == 0)
            reasons_add(reasons,
                        "the guest's disk with the block node %s has the driver %s: %s to the "
                        "guest's RAM where no tracking sees it; open it by its path with the "
                        "driver file or host_device and aio=threads",
                        json_text(node, "node-name"), driver, drivers[i].why);
}

/* All nodes, however deep beneath a device. */
static int refuse_drivers(struct qmp *q, struct reasons *reasons, struct error *err)
{
    const cJSON *node;
    cJSON *answer;
    int ret = qmp_call(q, &answer, err, "query-named-block-nodes", "{'flat': true}");

    cJSON_ArrayForEach(node, answer)
    {
        refuse_driver(node, reasons);
    }
    cJSON_Delete(answer);
    return ret;
}

/* States of query-status in which a guest must not be taken, and what to do. */
static const struct {
    const char *status, *remedy;
} states[] = {
    {"io-error", "mend its disk, let it go on (cont), then move it"},
    {"internal-error", "it has to be reset or ended"},
    {"guest-panicked", "it has to be reset or ended"},
    {"shutdown", "it has shut down; start it on the other host"},
    {"watchdog", "reset it or let it go on (cont), then move it"},
    {"inmigrate", "it waits for a guest from elsewhere; move it from where it runs"},
    {"postmigrate", "it was moved away or saved; if nobody else has it, let it go on (cont) first"},
    {"finish-migrate", "wait until the migration under way has ended"},
    {"save-vm", "wait until its snapshot is saved"},
    {"restore-vm", "wait until its snapshot is restored"},
    {"colo", "end its replication first"},
};

static int refuse_state(struct qmp *q, struct reasons *reasons, struct error *err)
{
    char status[32];
    int ret = qemu_run_state(q, status, sizeof status, err);

    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++)
        if (strcmp(status, states[i].status) == 0)
            reasons_add(reasons, "the guest is in the state %s: %s", status, states[i].remedy);
    return ret;
}

static int refuse_migration(struct qmp *q, struct reasons *reasons, struct error *err)
{
    const cJSON *blocker;
    cJSON *answer;
    int ret = qmp_call(q, &answer, err, "query-migrate", NULL);

    if (!qemu_migration_is_over(json_text(answer, "status")))
        reasons_add(reasons,
                    "another migration of this guest is under way (query-migrate says %s); wait "
                    "for its end, or end it (migrate_cancel)",
                    json_text(answer, "status"));
    cJSON_ArrayForEach(blocker, cJSON_GetObjectItemCaseSensitive(answer, "blocked-reasons"))
    {
        const char *text = cJSON_GetStringValue(blocker);
        reasons_add(reasons, "QEMU itself refuses to move the guest: %s; take away what it names",
                    text ? text : "(no text)");
    }
    cJSON_Delete(answer);
    return ret;
}

static int refuse_jobs(struct qmp *q, struct reasons *reasons, struct error *err)
{
    const cJSON *job;
    cJSON *answer;
    int ret = qmp_call(q, &answer, err, "query-block-jobs", NULL);

    cJSON_ArrayForEach(job, answer)
    {
        reasons_add(
            reasons,
            "a block job (%s, %s) is at work on the guest's disks; wait for its end, or end it "
            "(block-job-cancel)",
            json_text(job, "type"), json_text(job, "device"));
    }
    cJSON_Delete(answer);
    return ret;
}

static bool is_local(long type)
{
    static const long local[] = {EXT4_SUPER_MAGIC, XFS_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC,
                                 OVERLAYFS_SUPER_MAGIC};

    for (size_t i = 0; i < sizeof local / sizeof local[0]; i++)
        if (type == local[i])
            return true;
    return false;
}

/* The file as QEMU sees it, for this process; false: not a file's path. */
static bool disk_path(pid_t pid, const cJSON *disk, char *out, size_t size)
{
    const char *file = json_text(disk, "file");

    if (!file[0] || strchr(file, ':') || begins_with(file, "/dev/"))
        return false;
    snprintf(out, size, "/proc/%d/%s%s%s", pid, file[0] == '/' ? "root" : "cwd",
             file[0] == '/' ? "" : "/", file);
    return true;
}

static void refuse_disk(pid_t pid, const cJSON *disk, struct reasons *reasons,
                        struct reasons *notes)
{
    const char *name = json_text(disk, "device"), *file = json_text(disk, "file");
    struct statfs filesystem;
    struct stat status;
    char path[FACTS_MAX_TEXT + 64];

    if (!disk_path(pid, disk, path, sizeof path))
        return;
    if (stat(path, &status) < 0) {
        if (!json_true(disk, "readonly"))
            reasons_add(reasons,
                        "the guest's disk %s is in %s, a file without a name: QEMU would lose what "
                        "was written to it; start QEMU without -snapshot (snapshot=on)",
                        name, file);
        return;
    }
    if (notes && statfs(path, &filesystem) == 0 && S_ISREG(status.st_mode) &&
        is_local(filesystem.f_type))
        reasons_add(notes,
                    "the guest's disk %s (%s) seems to be on storage of this host alone; the other "
                    "host must have the very same file, on shared storage",
                    name, file);
}

static void note_cache(const cJSON *disk, struct reasons *notes)
{
    const char *name = json_text(disk, "device");

    if (!notes || json_true(disk, "readonly") || !json_text(disk, "format")[0])
        return;
    if (json_true(disk, "unsafe"))
        reasons_add(notes,
                    "the guest's disk %s is never flushed (cache=unsafe): between hosts that loses "
                    "data; use cache=none",
                    name);
    else if (!json_true(disk, "direct"))
        reasons_add(notes,
                    "the guest's disk %s goes through this host's page cache (cache=writeback or "
                    "writethrough): between hosts that is safe only on storage that keeps caches "
                    "coherent; use cache=none",
                    name);
}

/* From 10.2 on QEMU's event loops have an io_uring each, disks or no disks. */
static bool rings_are_disks(const struct qemu_facts *f)
{
    uint64_t major = facts_number(f->root, "major"), minor = facts_number(f->root, "minor");

    return major < 10 || (major == 10 && minor < 2);
}

int qemu_facts_refuse(struct qmp *q, pid_t pid, const struct qemu_facts *f, struct reasons *reasons,
                      struct reasons *notes, struct error *err)
{
    const cJSON *disk;
    int ret;

    if ((ret = refuse_state(q, reasons, err)) < 0 ||
        (ret = refuse_migration(q, reasons, err)) < 0 || (ret = refuse_jobs(q, reasons, err)) < 0 ||
        (ret = refuse_devices(q, f, reasons, notes, err)) < 0 ||
        (ret = refuse_drivers(q, reasons, err)) < 0)
        return error_prefix(err, "asking QEMU what keeps its guest from being moved failed");
    facts_refuse_aio(pid, rings_are_disks(f), reasons);
    if (notes && !rings_are_disks(f))
        reasons_add(notes,
                    "in this QEMU, disks added while it runs (blockdev-add) with aio=io_uring "
                    "cannot be told from others: the guest must have none");
    cJSON_ArrayForEach(disk, facts_list(f, "disks"))
    {
        refuse_disk(pid, disk, reasons, notes);
        note_cache(disk, notes);
    }
    return 0;
}
