#include "migrate/guest/qemu/tracking.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "migrate/guest/pagemap.h"
#include "migrate/guest/qemu/preload/protocol.h"
#include "migrate/guest/userfaultfd.h"

enum { ANSWER_SECONDS = 3 };

struct qemu_source {
    struct userfaultfd_source source;
    pid_t pid;
    const struct qemu_memory *memory;
    int session; /* -1: none */
    _Atomic uint64_t *marks;
    size_t marks_bytes;
};

static struct qemu_source *of(struct userfaultfd_source *s)
{
    return (struct qemu_source *)s;
}

static int no_library(pid_t pid, int code, struct error *err)
{
    if (code == ECONNREFUSED || code == ENOENT)
        return error_set(err, ENOENT,
                         "QEMU (process %d) runs without libwander-qemu.so, which tracks its dirty "
                         "pages: start it with the environment that `wander qemu-env` prints",
                         (int)pid);
    return error_set_errno(err, code, "cannot reach the library preloaded into QEMU (process %d)",
                           (int)pid);
}

/* Anybody can bind a name: what listens there has to be the process meant. */
static int check_listener(int fd, pid_t pid, struct error *err)
{
    struct ucred peer = {0};
    socklen_t size = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid == pid)
        return 0;
    return error_set(err, EPERM,
                     "process %d listens in the place of the library preloaded into QEMU (process "
                     "%d): find out what it is, end it, and start QEMU again",
                     (int)peer.pid, (int)pid);
}

static int connect_library(pid_t pid, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = ANSWER_SECONDS};
    int length = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, PRELOAD_SOCKET_FORMAT,
                          (int)pid);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
    int rc, fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return no_library(pid, errno, err);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, (struct sockaddr *)&address, size) < 0)
        rc = no_library(pid, errno, err);
    else
        rc = check_listener(fd, pid, err);
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

static int bad_answer(pid_t pid, ssize_t got, struct error *err)
{
    int code = errno;

    if (got < 0 && (code == EAGAIN || code == EWOULDBLOCK))
        return error_set(err, ETIMEDOUT,
                         "the library preloaded into QEMU (process %d) does not answer within %d "
                         "s: is the process stopped (SIGCONT it) or the host overloaded?",
                         (int)pid, ANSWER_SECONDS);
    return error_set(err, EPROTO,
                     "the library preloaded into QEMU (process %d) %s: start QEMU again with the "
                     "libwander-qemu.so of this version of wander",
                     (int)pid, got <= 0 ? "ended the connection" : "answers in another language");
}

static int receive_hello(int fd, pid_t pid, uint32_t *flags, struct error *err)
{
    struct preload_hello hello;
    ssize_t got = recv(fd, &hello, sizeof(hello), 0);

    if (got != (ssize_t)sizeof(hello) || hello.magic != PRELOAD_MAGIC ||
        hello.version != PRELOAD_VERSION)
        return bad_answer(pid, got, err);
    *flags = hello.flags;
    return 0;
}

static const struct {
    uint32_t flag;
    const char *what;
} escapes[] = {{PRELOAD_SAW_NATIVE_AIO, "native AIO, whose reads escape the dirty tracking: start "
                                        "it with aio=threads for every disk"},
               {PRELOAD_SAW_IO_URING, "io_uring, whose reads escape the dirty tracking: start it "
                                      "with aio=threads for every disk"}};

static int refuse_escapes(pid_t pid, uint32_t flags, struct error *err)
{
    for (size_t i = 0; i < sizeof(escapes) / sizeof(escapes[0]); i++) {
        if (flags & escapes[i].flag)
            return error_set(err, EOPNOTSUPP, "QEMU (process %d) uses %s", (int)pid,
                             escapes[i].what);
    }
    return 0;
}

static uint64_t words_of(const struct guest_region *region)
{
    return (region->size / GUEST_PAGE_SIZE + 63) / 64;
}

/* The marks: sealed, because either side would die of a file that shrinks under it. */
static int make_marks(struct qemu_source *q, struct error *err)
{
    int fd = memfd_create("wander-marks", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    q->marks_bytes = 0;
    for (unsigned i = 0; i < q->memory->count; i++)
        q->marks_bytes += words_of(&q->memory->regions[i]) * 8;
    if (fd < 0)
        return error_set_errno(err, errno, "cannot make the marks of direct I/O (memfd_create)");
    if (ftruncate(fd, (off_t)q->marks_bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ||
        fallocate(fd, 0, 0, (off_t)q->marks_bytes) < 0)
        goto close_file;
    q->marks = mmap(NULL, q->marks_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (q->marks == MAP_FAILED)
        goto close_file;
    return fd;

close_file:
    error_set_errno(err, errno, "cannot make %zu bytes of marks of direct I/O", q->marks_bytes);
    close(fd);
    q->marks = NULL;
    return -err->code;
}

static int send_track(const struct qemu_source *q, int marks, struct error *err)
{
    struct preload_track track = {.magic = PRELOAD_MAGIC, .count = q->memory->count};
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec iov = {&track, sizeof(track)};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    uint64_t bit = 0;

    for (unsigned i = 0; i < q->memory->count; i++) {
        const struct guest_region *region = &q->memory->regions[i];
        track.ranges[i] = (struct preload_range){q->memory->address[i], region->size, bit};
        bit += words_of(region) * 64;
    }
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &marks, sizeof(marks));
    if (sendmsg(q->session, &message, MSG_NOSIGNAL) == (ssize_t)sizeof(track))
        return 0;
    return bad_answer(q->pid, -1, err);
}

static bool is_userfaultfd(int fd)
{
    char path[64], target[64] = {0};

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return readlink(path, target, sizeof(target) - 1) > 0 &&
           !strcmp(target, "anon_inode:[userfaultfd]");
}

static int refused(pid_t pid, int code, struct error *err)
{
    if (code == EBUSY)
        return error_set(err, EBUSY,
                         "another session tracks QEMU (process %d): wait for it to end, or cancel "
                         "it",
                         (int)pid);
    return error_set_errno(err, code,
                           "QEMU (process %d) cannot open a userfaultfd or map the marks: allow "
                           "the system call userfaultfd in its seccomp filter, or give it access "
                           "to /dev/userfaultfd",
                           (int)pid);
}

/* Returns a userfaultfd of QEMU's. */
static int receive_answer(const struct qemu_source *q, struct error *err)
{
    struct preload_answer answer;
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct iovec iov = {&answer, sizeof(answer)};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(q->session, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
    int fd = -1;

    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    if (got != (ssize_t)sizeof(answer) || answer.magic != PRELOAD_MAGIC || answer.error < 0 ||
        (answer.error == 0 && (fd < 0 || !is_userfaultfd(fd))))
        bad_answer(q->pid, got, err);
    else if (answer.error > 0)
        refused(q->pid, answer.error, err);
    else
        return fd;
    if (fd >= 0)
        close(fd);
    return -err->code;
}

static void close_session(struct userfaultfd_source *s)
{
    struct qemu_source *q = of(s);

    if (q->session >= 0)
        close(q->session);
    if (q->marks)
        munmap((void *)q->marks, q->marks_bytes);
    q->session = -1;
    q->marks = NULL;
}

static int open_session(struct userfaultfd_source *s, struct error *err)
{
    struct qemu_source *q = of(s);
    uint32_t flags = 0;
    int rc, marks = -1;

    q->session = rc = connect_library(q->pid, err);
    if (rc < 0)
        return rc;
    rc = receive_hello(q->session, q->pid, &flags, err);
    if (rc == 0)
        rc = refuse_escapes(q->pid, flags, err);
    if (rc == 0)
        rc = marks = make_marks(q, err);
    if (rc >= 0)
        rc = send_track(q, marks, err);
    if (rc == 0)
        rc = receive_answer(q, err);
    if (marks >= 0)
        close(marks);
    if (rc < 0)
        close_session(s);
    return rc;
}

static void place_region(const struct userfaultfd_source *s, const struct guest_region *region,
                         unsigned index, struct userfaultfd_place *out)
{
    const struct qemu_source *q = (const struct qemu_source *)s;
    uint64_t word = 0;

    (void)region;
    for (unsigned i = 0; i < index; i++)
        word += words_of(&q->memory->regions[i]);
    *out = (struct userfaultfd_place){.address = q->memory->address[index],
                                      .file = q->memory->file[index],
                                      .marks = q->marks + word};
}

/* The library says nothing while all is well. */
static int check_session(struct userfaultfd_source *s, struct error *err)
{
    struct qemu_source *q = of(s);
    struct pollfd wait = {.fd = q->session, .events = POLLIN};
    struct preload_hello hello;

    if (poll(&wait, 1, 0) == 0)
        return 0;
    if (recv(q->session, &hello, sizeof(hello), MSG_DONTWAIT) == (ssize_t)sizeof(hello)) {
        int rc = refuse_escapes(q->pid, hello.flags, err);
        return rc < 0 ? rc : bad_answer(q->pid, sizeof(hello), err);
    }
    return error_set(
        err, ECONNRESET,
        "QEMU (process %d) has ended, or the library in it has dropped the tracking of "
        "its dirty pages",
        (int)q->pid);
}

static void free_source(struct userfaultfd_source *s)
{
    close_session(s);
    close(s->pagemap);
    free(s);
}

static const struct userfaultfd_source_ops qemu_source_ops = {.open = open_session,
                                                              .place = place_region,
                                                              .check = check_session,
                                                              .close = close_session,
                                                              .free = free_source};

static int open_pagemap(pid_t pid, struct error *err)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? error_set_errno(err, errno,
                                    "cannot open %s to track QEMU's dirty pages; run wander as the "
                                    "user that runs QEMU, or as root",
                                    path)
                  : fd;
}

static int source_new(pid_t pid, const struct qemu_memory *memory, struct qemu_source **out,
                      struct error *err)
{
    struct qemu_source *q = calloc(1, sizeof(*q));
    int pagemap;

    if (!q)
        return error_set_errno(err, ENOMEM, "cannot make a tracker");
    pagemap = open_pagemap(pid, err);
    if (pagemap < 0) {
        free(q);
        return pagemap;
    }
    *q = (struct qemu_source){.source = {.ops = &qemu_source_ops, .pagemap = pagemap},
                              .pid = pid,
                              .memory = memory,
                              .session = -1};
    *out = q;
    return 0;
}

int qemu_tracker_new(pid_t pid, const struct qemu_memory *memory, struct tracker **out,
                     struct error *err)
{
    struct qemu_source *q;
    int rc = source_new(pid, memory, &q, err);

    if (rc < 0)
        return rc;
    rc = userfaultfd_tracker_over(&q->source, memory->regions, memory->count, out, err);
    if (rc < 0)
        free_source(&q->source);
    return rc;
}

static void add_error(struct reasons *reasons, struct error *err)
{
    if (err->code)
        reasons_add(reasons, "%s", err->text);
    error_clear(err);
}

static int try_scan(int pagemap, struct error *err)
{
    struct pagemap_run run;
    uint64_t at = 0;
    int rc = pagemap_scan(pagemap, &at, GUEST_PAGE_SIZE, PAGEMAP_POPULATED, &run, 1);

    return rc < 0 ? error_set_errno(err, -rc,
                                    "cannot track dirty pages: PAGEMAP_SCAN does not work on this "
                                    "kernel; use Linux 6.7 or newer")
                  : 0;
}

/* All of what start does, but for the arming. */
void qemu_tracking_check(pid_t pid, const struct qemu_memory *memory, struct reasons *reasons)
{
    struct qemu_source *q;
    struct error err = {0};
    int faults;

    if (memory->count == 0)
        return;
    if (source_new(pid, memory, &q, &err) < 0) {
        add_error(reasons, &err);
        return;
    }
    try_scan(q->source.pagemap, &err);
    add_error(reasons, &err);
    faults = open_session(&q->source, &err);
    if (faults >= 0) {
        userfaultfd_enable(faults, &err);
        close(faults);
    }
    add_error(reasons, &err);
    free_source(&q->source);
}
