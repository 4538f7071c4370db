#include "tools/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int atomic_file_open(const char *path, struct atomic_file *out, struct error *err)
{
    char target[PATH_MAX];
    struct stat st;

    *out = (struct atomic_file){0};
    if (realpath(path, target)) /* what a link leads to is replaced, not the link */
        path = target;
    if (strlen(path) >= sizeof(out->path))
        return error_set(err, ENAMETOOLONG, "the path is too long");
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        out->fd = open(path, O_WRONLY | O_CLOEXEC);
    } else {
        snprintf(out->temporary, sizeof(out->temporary), "%s.tmp.%d", path, (int)getpid());
        out->fd = open(out->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    }
    if (out->fd < 0) {
        int code = errno;

        *out = (struct atomic_file){0};
        return error_set_errno(err, code, "cannot write %.300s", path);
    }
    snprintf(out->path, sizeof(out->path), "%s", path);
    return 0;
}

static int write_all(int fd, const char *text)
{
    size_t size = strlen(text);

    while (size > 0) {
        ssize_t written = write(fd, text, size);

        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return -errno;
        text += written;
        size -= (size_t)written;
    }
    return 0;
}

int atomic_file_commit(struct atomic_file *file, const char *text, struct error *err)
{
    int rc = write_all(file->fd, text);

    if (rc == 0 && file->temporary[0]) {
        if (fsync(file->fd) < 0 || rename(file->temporary, file->path) < 0)
            rc = -errno;
        else
            file->temporary[0] = '\0';
    }
    if (rc < 0)
        return error_set_errno(err, -rc, "cannot write %.300s", file->path);
    return 0;
}

void atomic_file_close(struct atomic_file *file)
{
    if (!file->path[0])
        return;
    close(file->fd);
    if (file->temporary[0])
        unlink(file->temporary);
    *file = (struct atomic_file){0};
}
