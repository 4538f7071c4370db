/* How a QEMU does its disks' I/O. QMP does not tell; the process does. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migrate/guest/qemu/facts_internal.h"

enum { SHOWN_BYTES = 120 }; /* of an argument, in a reason */

static const char *const methods[] = {"native", "io_uring"};

struct aio {
    pid_t pid;
    bool seen[2]; /* by method, told already */
    struct reasons *reasons;
};

/* "aio=native", "file.aio=native", and in JSON "aio": "native". */
bool facts_argument_aio(const char *argument, const char **method)
{
    for (const char *at = argument; (at = strstr(at, "aio"));) {
        at += strlen("aio");
        const char *value = at + strspn(at, "\" :=");
        if (value == at)
            continue;
        for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
            if (strncmp(value, methods[i], strlen(methods[i])) == 0) {
                *method = methods[i];
                return true;
            }
        }
    }
    return false;
}

static void refuse(struct aio *a, const char *method, const char *how)
{
    size_t i = strcmp(method, methods[0]) == 0 ? 0 : 1;

    if (a->seen[i])
        return;
    a->seen[i] = true;
    reasons_add(a->reasons,
                "a disk of the guest uses aio=%s (%s): it writes to the guest's RAM where no "
                "tracking sees it; start QEMU with aio=threads",
                method, how);
}

static void unreadable(struct aio *a, const char *what)
{
    reasons_add(a->reasons,
                "whether the guest's disks use aio=native or io_uring could not be seen: reading "
                "/proc/%d/%s failed (%s); run wander as QEMU's user, or as root",
                a->pid, what, strerror(errno));
}

static FILE *open_proc(struct aio *a, const char *what)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/%s", a->pid, what);
    FILE *file = fopen(path, "re");
    if (!file)
        unreadable(a, what);
    return file;
}

static void look_at_arguments(struct aio *a)
{
    FILE *file = open_proc(a, "cmdline");
    char *argument = NULL, how[SHOWN_BYTES + 32];
    const char *method;
    size_t size = 0;

    while (file && getdelim(&argument, &size, '\0', file) > 0) {
        snprintf(how, sizeof how, "its command line says %.*s", SHOWN_BYTES, argument);
        for (char *at = how; *at; at++)
            *at = (unsigned char)*at < ' ' ? ' ' : *at;
        if (facts_argument_aio(argument, &method))
            refuse(a, method, how);
    }
    free(argument);
    if (file)
        fclose(file);
}

/* io_setup(2) maps its ring under this name. */
static void look_at_mappings(struct aio *a)
{
    FILE *file = open_proc(a, "maps");
    char *line = NULL;
    size_t size = 0;

    while (file && getline(&line, &size, file) > 0)
        if (strstr(line, " /[aio]"))
            refuse(a, "native", "QEMU has set up Linux AIO");
    free(line);
    if (file)
        fclose(file);
}

static void look_at_descriptors(struct aio *a)
{
    const struct dirent *entry;
    char path[64], target[64];

    snprintf(path, sizeof path, "/proc/%d/fd", a->pid);
    DIR *folder = opendir(path);
    if (!folder) {
        unreadable(a, "fd");
        return;
    }
    while ((entry = readdir(folder))) {
        ssize_t length = readlinkat(dirfd(folder), entry->d_name, target, sizeof target - 1);
        target[length > 0 ? length : 0] = '\0';
        if (strcmp(target, "anon_inode:[io_uring]") == 0)
            refuse(a, "io_uring", "QEMU has set up an io_uring");
    }
    closedir(folder);
}

void facts_refuse_aio(pid_t pid, bool rings_are_disks, struct reasons *reasons)
{
    struct aio a = {.pid = pid, .reasons = reasons};

    look_at_arguments(&a);
    look_at_mappings(&a);
    if (rings_are_disks)
        look_at_descriptors(&a);
}
