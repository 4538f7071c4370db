#include "tools/runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "transport/base/clock.h"

enum {
    FILE_NAME_SIZE = GUEST_NAME_SIZE + 8,
    BACKLOG = 64,
    CONNECT_S = 2,
    NAME_MS = 1500,
    NAME_RETRY_MS = 20,
};

int guest_name_check(const char *name, struct error *err)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t length = strlen(name);

    if (length == 0 || length >= GUEST_NAME_SIZE || strspn(name, allowed) != length)
        return error_set(err, EINVAL, "'%.80s' is no guest name: 1 to %d of A-Z a-z 0-9 . _ - are",
                         name, GUEST_NAME_SIZE - 1);
    return 0;
}

static int runtime_path(char *out, size_t size, struct error *err)
{
    const char *own = getenv("WANDER_RUNTIME_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
    int length;

    if (own && own[0])
        length = snprintf(out, size, "%s", own);
    else if (xdg && xdg[0])
        length = snprintf(out, size, "%s/wander", xdg);
    else
        length = snprintf(out, size, "/run/wander");
    if ((size_t)length >= size)
        return error_set(err, ENAMETOOLONG,
                         "the runtime directory's path has %d characters, too many", length);
    return 0;
}

/* Opens the directory; makes it when `create`. It must be ours alone: who can write here can
 * command guests. */
static int runtime_open(bool create, struct error *err)
{
    char path[3072];
    struct stat st;
    int fd, rc = runtime_path(path, sizeof(path), err);

    if (rc < 0)
        return rc;
    if (create && mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_set_errno(
            err, errno,
            "cannot make the runtime directory %.200s (set WANDER_RUNTIME_DIR to a "
            "place that can be made)",
            path);
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot open the runtime directory %.200s", path);
    if (fstat(fd, &st) < 0 || st.st_uid != geteuid() || (st.st_mode & 077)) {
        close(fd);
        return error_set(
            err, EPERM,
            "the runtime directory %.200s must belong to user %u with mode 0700: control "
            "sockets are private",
            path, (unsigned)geteuid());
    }
    return fd;
}

int runtime_directory(char *out, size_t size, struct error *err)
{
    int fd = runtime_open(true, err);

    if (fd < 0)
        return fd;
    close(fd);
    return runtime_path(out, size, err);
}

/* Through /proc/self/fd, so that the directory's length does not count against sun_path. */
static void socket_address(int directory, const char *name, struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(out->sun_path, sizeof(out->sun_path), "/proc/self/fd/%d/%.*s.sock", directory,
             GUEST_NAME_SIZE - 1, name);
}

static void file_name(const char *name, const char *suffix, char out[FILE_NAME_SIZE])
{
    snprintf(out, FILE_NAME_SIZE, "%.*s%s", GUEST_NAME_SIZE - 1, name, suffix);
}

/* The holder before us may have unlinked the file that we locked: then it is nobody's, and we try
 * again. */
static bool lock_is_current(int directory, const char *file, int lock)
{
    struct stat held, named;

    return fstat(lock, &held) == 0 && fstatat(directory, file, &named, 0) == 0 &&
           held.st_ino == named.st_ino;
}

static int try_lock(int directory, const char *name, struct error *err)
{
    char file[FILE_NAME_SIZE];

    file_name(name, ".lock", file);
    for (;;) {
        int lock = openat(directory, file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

        if (lock < 0)
            return error_set_errno(err, errno, "cannot open %s in the runtime directory", file);
        if (flock(lock, LOCK_EX | LOCK_NB) < 0) {
            int code = errno;

            close(lock);
            if (code == EWOULDBLOCK)
                return error_set(err, EADDRINUSE,
                                 "the name '%s' is in use on this host: choose another with --name",
                                 name);
            return error_set_errno(err, code, "cannot lock %s in the runtime directory", file);
        }
        if (lock_is_current(directory, file, lock))
            return lock;
        close(lock);
    }
}

static int take_lock(int directory, const char *name, struct error *err)
{
    uint64_t until = clock_now() + NAME_MS * NS_PER_MS;
    int lock;

    while ((lock = try_lock(directory, name, err)) == -EADDRINUSE && clock_now() < until) {
        clock_sleep_until(clock_now() + NAME_RETRY_MS * NS_PER_MS);
        error_clear(err);
    }
    return lock;
}

static int listen_at(int directory, const char *name, struct error *err)
{
    char file[FILE_NAME_SIZE];
    struct sockaddr_un address;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return error_set_errno(err, errno, "cannot make a control socket");
    file_name(name, ".sock", file);
    socket_address(directory, name, &address);
    unlinkat(directory, file, 0);
    if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        fchmodat(directory, file, 0600, 0) < 0 || listen(fd, BACKLOG) < 0) {
        int code = errno;

        close(fd);
        return error_set_errno(err, code, "cannot listen on %s in the runtime directory", file);
    }
    return fd;
}

int name_claim(const char *name, struct name_claim *out, struct error *err)
{
    int rc = guest_name_check(name, err);

    if (rc < 0)
        return rc;
    rc = out->directory = runtime_open(true, err);
    if (rc < 0)
        return rc;
    rc = out->lock = take_lock(out->directory, name, err);
    if (rc < 0)
        goto close_directory;
    rc = out->socket = listen_at(out->directory, name, err);
    if (rc < 0)
        goto close_lock;
    snprintf(out->name, sizeof(out->name), "%s", name);
    return 0;

close_lock:
    close(out->lock);
close_directory:
    close(out->directory);
    return rc;
}

void name_release(struct name_claim *claim)
{
    char file[FILE_NAME_SIZE];

    if (claim->socket >= 0)
        close(claim->socket);
    file_name(claim->name, ".sock", file);
    unlinkat(claim->directory, file, 0);
    file_name(claim->name, ".lock", file);
    unlinkat(claim->directory, file, 0);
    close(claim->lock);
    close(claim->directory);
}

/* A stopped process accepts nothing: once its queue is full connecting would wait for ever. -EAGAIN
 * after CONNECT_S then, as for a later send that nobody reads. */
static int connect_at(int directory, const char *name, int flags)
{
    struct timeval limit = {.tv_sec = CONNECT_S};
    struct sockaddr_un address;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    socket_address(directory, name, &address);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int code = errno;

        close(fd);
        return -code;
    }
    return fd;
}

/* "; there are: a, b" after a text that says that one is missing. */
static int no_such_guest(const char *name, struct error *err)
{
    char list[400] = "";
    char(*names)[GUEST_NAME_SIZE];
    size_t count = 0, used = 0;

    if (runtime_names(&names, &count, NULL) == 0) {
        for (size_t i = 0; i < count && used < sizeof(list); i++)
            used +=
                (size_t)snprintf(list + used, sizeof(list) - used, "%s%s", i ? ", " : "", names[i]);
        free(names);
    }
    if (count == 0)
        return error_set(err, ENOENT,
                         "there is no guest '%s' here, nor any other (start one with wander lab)",
                         name);
    return error_set(err, ENOENT, "there is no guest '%s' here; there are: %s", name, list);
}

int runtime_connect(const char *name, struct error *err)
{
    int directory, fd, rc = guest_name_check(name, err);

    if (rc < 0)
        return rc;
    directory = runtime_open(false, err);
    if (directory == -ENOENT) {
        error_clear(err);
        return no_such_guest(name, err);
    }
    if (directory < 0)
        return directory;
    fd = connect_at(directory, name, 0);
    close(directory);
    if (fd == -EAGAIN)
        return error_set(err, ETIMEDOUT, "the process of guest '%s' does not answer", name);
    if (fd == -ENOENT || fd == -ECONNREFUSED)
        return no_such_guest(name, err);
    if (fd < 0)
        return error_set_errno(err, -fd, "cannot reach the control socket of guest '%s'", name);
    return fd;
}

static bool is_live_socket(int directory, const struct dirent *entry, char name[GUEST_NAME_SIZE])
{
    size_t length = strlen(entry->d_name);
    int fd;

    if (length <= 5 || length >= GUEST_NAME_SIZE + 5 ||
        strcmp(entry->d_name + length - 5, ".sock") != 0)
        return false;
    memcpy(name, entry->d_name, length - 5);
    name[length - 5] = '\0';
    fd = connect_at(directory, name, SOCK_NONBLOCK);
    if (fd >= 0)
        close(fd);
    return fd >= 0 || fd == -EAGAIN; /* full: there is somebody, who does not answer */
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

static int collect_names(DIR *stream, char (**names)[GUEST_NAME_SIZE], size_t *count,
                         struct error *err)
{
    struct dirent *entry;

    while ((entry = readdir(stream))) {
        char name[GUEST_NAME_SIZE];
        void *larger;

        if (!is_live_socket(dirfd(stream), entry, name))
            continue;
        larger = realloc(*names, (*count + 1) * sizeof(**names));
        if (!larger)
            return error_set(err, ENOMEM, "no memory for the list of guests");
        *names = larger;
        memcpy((*names)[(*count)++], name, sizeof(name));
    }
    return 0;
}

int runtime_names(char (**names)[GUEST_NAME_SIZE], size_t *count, struct error *err)
{
    struct error own = {0};
    int rc, directory = runtime_open(false, &own);
    DIR *stream;

    *names = NULL;
    *count = 0;
    if (directory == -ENOENT)
        return 0;
    if (directory < 0)
        return error_set(err, own.code, "%s", own.text);
    stream = fdopendir(directory);
    if (!stream) {
        close(directory);
        return error_set_errno(err, errno, "cannot list the runtime directory");
    }
    rc = collect_names(stream, names, count, err);
    closedir(stream);
    if (rc < 0) {
        free(*names);
        *names = NULL;
        return rc;
    }
    if (*count)
        qsort(*names, *count, sizeof(**names), compare_names);
    return 0;
}
