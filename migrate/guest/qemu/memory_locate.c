/* Where a QEMU process has its guest's RAM mapped (proc_pid_maps(5)). */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "migrate/guest/qemu/memory.h"

struct mapping {
    uint64_t begin, end, offset, inode;
    dev_t device;
    bool shared;
};

struct found {
    uint64_t address, covered;
};

static bool parse_mapping(const char *line, struct mapping *out)
{
    unsigned long long begin, end, offset, inode;
    unsigned major_number, minor_number;
    char mode[5];

    if (sscanf(line, "%llx-%llx %4s %llx %x:%x %llu", &begin, &end, mode, &offset, &major_number,
               &minor_number, &inode) != 7)
        return false;
    *out = (struct mapping){begin,
                            end,
                            offset,
                            inode,
                            makedev(major_number, minor_number),
                            strncmp(mode, "rw-s", 4) == 0};
    return true;
}

/* A region may lie in several mappings: madvise(2) splits them. They must continue one another. */
static void match(const struct qemu_memory *m, const struct stat *files, const struct mapping *at,
                  struct found *found)
{
    for (unsigned i = 0; i < m->count; i++) {
        uint64_t size = m->regions[i].size;
        uint64_t begin = at->offset, end = begin + (at->end - at->begin);

        if (!at->shared || at->inode != files[i].st_ino || at->device != files[i].st_dev)
            continue;
        end = end > size ? size : end;
        uint64_t address = at->begin - at->offset;
        if (begin >= end || (found[i].covered && found[i].address != address))
            continue;
        found[i].address = address;
        found[i].covered += end - begin;
    }
}

/* 0 when the process maps all of it, -ESRCH when not, or why it cannot be looked at. */
static int look_into(const struct qemu_memory *m, const struct stat *files, pid_t pid,
                     struct found *found)
{
    struct mapping mapping;
    char path[64], *line = NULL;
    size_t size = 0;
    FILE *maps;

    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    if (!(maps = fopen(path, "re")))
        return -errno;
    memset(found, 0, sizeof *found * GUEST_MAX_REGIONS);
    while (getline(&line, &size, maps) > 0)
        if (parse_mapping(line, &mapping))
            match(m, files, &mapping, found);
    free(line);
    fclose(maps);
    for (unsigned i = 0; i < m->count; i++)
        if (found[i].covered != m->regions[i].size)
            return -ESRCH;
    return 0;
}

/* This program maps the files as well, in whichever of its processes. */
static bool is_ours(pid_t pid)
{
    struct stat ours, theirs;
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    return pid == getpid() || (stat("/proc/self/exe", &ours) == 0 && stat(path, &theirs) == 0 &&
                               ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino);
}

static pid_t search(const struct qemu_memory *m, const struct stat *files, struct found *found)
{
    const struct dirent *entry;
    DIR *processes = opendir("/proc");
    pid_t pid = 0;

    while (processes && (entry = readdir(processes))) {
        pid = atoi(entry->d_name);
        if (pid > 0 && !is_ours(pid) && look_into(m, files, pid, found) == 0)
            break;
        pid = 0;
    }
    if (processes)
        closedir(processes);
    return pid;
}

int qemu_memory_locate(struct qemu_memory *m, pid_t hint, pid_t *pid, struct error *err)
{
    struct found found[GUEST_MAX_REGIONS];
    struct stat files[GUEST_MAX_REGIONS];
    int ret = -ESRCH;

    for (unsigned i = 0; i < m->count; i++)
        if (fstat(m->file[i], &files[i]) < 0)
            return error_set_errno(err, errno, "looking at %s failed", m->path[i]);
    if (m->count == 0)
        return error_set(err, ESRCH, "no RAM to look for");
    *pid = hint;
    if (hint > 0)
        ret = look_into(m, files, hint, found);
    if (ret < 0 && (*pid = search(m, files, found)) == 0)
        return ret == -EACCES
                   ? error_set(err, EACCES,
                               "this user may not look at QEMU's memory (process %d); run wander "
                               "as the user and group of QEMU, or as root",
                               hint)
                   : error_set(err, ESRCH,
                               "no process that this user may look at has %s mapped, the file of "
                               "the guest's RAM; was it replaced while QEMU ran, or does QEMU run "
                               "in a container? run wander where, and as whom, QEMU runs",
                               m->path[0]);
    for (unsigned i = 0; i < m->count; i++)
        m->address[i] = found[i].address;
    return 0;
}
