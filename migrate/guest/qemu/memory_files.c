#include "migrate/guest/qemu/memory_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "transport/base/log.h"

/* Whether a process has the file mapped (proc_pid_maps(5)). A process that may not be looked at is
 * another user's, and cannot have opened our files. */
static bool maps_file(pid_t pid, const struct stat *file)
{
    char path[64], *line = NULL;
    size_t size = 0;
    bool found = false;

    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    while (maps && !found && getline(&line, &size, maps) > 0) {
        unsigned device_major, device_minor;
        unsigned long long inode;

        found = sscanf(line, "%*s %*s %*s %x:%x %llu", &device_major, &device_minor, &inode) == 3 &&
                inode == file->st_ino && device_major == major(file->st_dev) &&
                device_minor == minor(file->st_dev);
    }
    if (maps)
        fclose(maps);
    free(line);
    return found;
}

/* A process other than `owner` and this one that has region `i` mapped; 0: none. */
static pid_t other_user(const struct qemu_memory *m, unsigned i, pid_t owner)
{
    const struct dirent *entry;
    struct stat file;
    pid_t found = 0;
    DIR *processes = opendir("/proc");

    if (!processes)
        return 0;
    if (fstat(m->file[i], &file) == 0) {
        while (!found && (entry = readdir(processes))) {
            pid_t pid = atoi(entry->d_name);
            if (pid > 0 && pid != owner && pid != getpid() && maps_file(pid, &file))
                found = pid;
        }
    }
    closedir(processes);
    return found;
}

static int punch(const struct qemu_memory *m, unsigned i)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

    return fallocate(m->file[i], mode, 0, (off_t)m->regions[i].size) ? -errno : 0;
}

int qemu_memory_clear(const struct qemu_memory *m, pid_t owner, struct error *err)
{
    for (unsigned i = 0; i < m->count; i++) {
        pid_t other = other_user(m, i, owner);
        if (other)
            return error_set(err, EBUSY,
                             "%s, the memory of the guest that is to come, is in use by process "
                             "%d; give mem-path another name on this host",
                             m->path[i], other);
        int result = punch(m, i);
        if (result)
            return error_set_errno(err, -result, "emptying %s failed", m->path[i]);
    }
    return 0;
}

void qemu_memory_discard(const struct qemu_memory *m)
{
    for (unsigned i = 0; i < m->count; i++) {
        int result = other_user(m, i, 0) ? 0 : punch(m, i);
        if (result)
            log_line(LOG_WARNING,
                     "%s still holds the memory of a guest that is gone (%s); remove it",
                     m->path[i], strerror(-result));
    }
}
