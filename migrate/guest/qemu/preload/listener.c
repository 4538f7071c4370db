/* Connections say hello and wait; one of them at a time may begin a session. */
#include "migrate/guest/qemu/preload/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "migrate/guest/qemu/preload/session.h"

enum { CONNECTIONS = 4, STACK_SIZE = 256 << 10, PAGE_SIZE = 4096 };

/* <linux/userfaultfd.h>; newer than some headers. */
#define USER_MODE_ONLY  1
#define USERFAULTFD_NEW _IO(0xAA, 0x00)

/* Static, for the child of a fork to close what it has no use for. -1: none. */
static struct {
    _Atomic pid_t owner; /* the process that has started its thread */
    _Atomic int listener;
    _Atomic int connections[CONNECTIONS];
    int tracking;   /* the index of the session's connection, or -1; the thread's */
    unsigned evict; /* the connection to give up next when there are too many; the thread's */
    struct session session;
    pthread_once_t once;
} state = {
    .listener = -1, .connections = {-1, -1, -1, -1}, .tracking = -1, .once = PTHREAD_ONCE_INIT};

static void close_slot(_Atomic int *slot)
{
    int fd = atomic_exchange(slot, -1);

    if (fd >= 0)
        close(fd);
}

static void forget(void)
{
    session_forget();
    close_slot(&state.listener);
    for (int i = 0; i < CONNECTIONS; i++)
        close_slot(&state.connections[i]);
    state.tracking = -1;
}

/* The child of a fork has neither the thread nor a session. Should it go on as a QEMU (-daemonize),
 * its next thread starts them again; another handler before this one may have made that thread. */
static void forget_in_child(void)
{
    if (atomic_load(&state.owner) == getpid())
        return;
    forget();
    atomic_store(&state.owner, 0);
}

static int open_listener(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int length = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, PRELOAD_SOCKET_FORMAT,
                          (int)getpid());
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -1;
    if (bind(fd, (struct sockaddr *)&address, size) == 0 && listen(fd, CONNECTIONS) == 0)
        return fd;
    close(fd);
    return -1;
}

static bool peer_is_trusted(int fd, struct ucred *peer)
{
    socklen_t size = sizeof(*peer);

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, peer, &size) == 0 &&
           (peer->uid == 0 || peer->uid == geteuid());
}

static void end_connection(int index)
{
    if (state.tracking == index) {
        session_withdraw();
        munmap((void *)state.session.marks, state.session.bytes);
        prctl(PR_SET_PTRACER, 0, 0, 0, 0);
        state.tracking = -1;
    }
    close_slot(&state.connections[index]);
}

/* A free slot, or that of a connection that does not track. */
static int obtain_slot(void)
{
    for (int i = 0; i < CONNECTIONS; i++) {
        if (atomic_load(&state.connections[i]) < 0)
            return i;
    }
    if ((int)(state.evict % CONNECTIONS) == state.tracking)
        state.evict++;
    int index = (int)(state.evict++ % CONNECTIONS);
    end_connection(index);
    return index;
}

static void accept_connection(int listener)
{
    struct preload_hello hello = {
        .magic = PRELOAD_MAGIC, .version = PRELOAD_VERSION, .flags = session_flags()};
    struct ucred peer;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0) {
        if (errno != EAGAIN)
            usleep(100000); /* out of descriptors, most likely */
        return;
    }
    if (!peer_is_trusted(fd, &peer) ||
        send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) != (ssize_t)sizeof(hello)) {
        close(fd);
        return;
    }
    atomic_store(&state.connections[obtain_slot()], fd);
}

/* Takes the descriptor that came with a message; closes any more than one. */
static int take_descriptor(struct msghdr *message)
{
    int taken = -1;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (taken < 0)
                taken = fd;
            else
                close(fd);
        }
    }
    return taken;
}

/* A wrong size is a wrong request: 0 and a descriptor, or -EBADMSG. */
static int receive_track(int fd, struct preload_track *track, int *marks)
{
    char control[CMSG_SPACE(4 * sizeof(int))] __attribute__((aligned(8)));
    struct iovec iov = {track, sizeof(*track)};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

    if (got < 0)
        return -errno;
    *marks = take_descriptor(&message);
    if (got == (ssize_t)sizeof(*track) && !(message.msg_flags & MSG_TRUNC) && *marks >= 0 &&
        track->magic == PRELOAD_MAGIC)
        return 0;
    if (*marks >= 0)
        close(*marks);
    return -EBADMSG;
}

static bool range_is_sound(const struct preload_range *range, uint64_t bits)
{
    uint64_t pages = range->bytes / PAGE_SIZE;

    return range->address % PAGE_SIZE == 0 && range->bytes % PAGE_SIZE == 0 && pages > 0 &&
           range->address <= UINT64_MAX - range->bytes && range->first_bit % 64 == 0 &&
           pages <= bits && range->first_bit <= bits - pages;
}

/* The memfd cannot shrink under us and has its pages, so that no mark ever faults in vain. */
static int map_marks(int fd, const struct preload_track *track, struct session *s)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &status) < 0 || status.st_size <= 0 ||
        status.st_size % 8 || track->count == 0 || track->count > PRELOAD_MAX_RANGES)
        return -EINVAL;
    for (unsigned i = 0; i < track->count; i++) {
        if (!range_is_sound(&track->ranges[i], (uint64_t)status.st_size * CHAR_BIT))
            return -EINVAL;
    }
    if (fallocate(fd, 0, 0, status.st_size) < 0)
        return -errno;
    s->bytes = (size_t)status.st_size;
    s->marks = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (s->marks == MAP_FAILED)
        return -errno;
    s->count = track->count;
    memcpy(s->ranges, track->ranges, sizeof(s->ranges));
    return 0;
}

static int open_userfaultfd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY);
    int code = errno;

    if (fd >= 0)
        return fd;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return -code;
    fd = ioctl(device, USERFAULTFD_NEW, O_CLOEXEC | O_NONBLOCK);
    code = errno;
    close(device);
    return fd < 0 ? -code : fd;
}

/* `fd` < 0: none goes along. */
static bool send_answer(int socket, int error, int fd)
{
    struct preload_answer answer = {.magic = PRELOAD_MAGIC, .error = error};
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec iov = {&answer, sizeof(answer)};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof(control);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof(answer);
}

/* Returns a userfaultfd, or -errno with nothing changed. */
static int begin_session(int index, int marks, const struct preload_track *track)
{
    struct ucred peer;
    int faults, rc = state.tracking >= 0 ? -EBUSY : map_marks(marks, track, &state.session);

    if (rc < 0)
        return rc;
    faults = open_userfaultfd();
    if (faults < 0) {
        munmap((void *)state.session.marks, state.session.bytes);
        return faults;
    }
    state.session.socket = state.connections[index];
    state.tracking = index;
    session_publish(&state.session);
    if (peer_is_trusted(state.session.socket,
                        &peer)) /* it may trace us where Yama asks for leave */
        prctl(PR_SET_PTRACER, peer.pid, 0, 0, 0);
    return faults;
}

static void track(int index)
{
    struct preload_track request;
    int socket = state.connections[index], marks = -1;
    int rc = receive_track(socket, &request, &marks);

    if (rc == -EAGAIN)
        return;
    if (rc == 0) {
        rc = begin_session(index, marks, &request);
        close(marks);
    }
    bool sent = send_answer(socket, rc < 0 ? -rc : 0, rc);
    if (rc >= 0)
        close(rc);
    if (rc < 0 || !sent)
        end_connection(index);
}

static void serve(int listener)
{
    struct pollfd wait[CONNECTIONS + 1] = {{.fd = listener, .events = POLLIN}};

    for (int i = 0; i < CONNECTIONS; i++)
        wait[i + 1] = (struct pollfd){.fd = state.connections[i], .events = POLLIN};
    if (poll(wait, CONNECTIONS + 1, -1) < 0)
        return;
    /* Ends first: who comes after the end of a session is not to find it there. */
    for (int i = 0; i < CONNECTIONS; i++) {
        if (wait[i + 1].revents && (state.tracking == i || !(wait[i + 1].revents & POLLIN)))
            end_connection(i);
    }
    for (int i = 0; i < CONNECTIONS; i++) {
        if (wait[i + 1].revents && atomic_load(&state.connections[i]) >= 0)
            track(i);
    }
    if (wait[0].revents)
        accept_connection(listener);
}

static void *listen_for_wander(void *unused)
{
    int fd = open_listener();

    (void)unused;
    pthread_setname_np(pthread_self(), "wander");
    if (fd < 0)
        return NULL;
    atomic_store(&state.listener, fd);
    for (;;)
        serve(fd);
    return NULL;
}

static bool wanted_here(void)
{
    const char *forced = getenv("WANDER_QEMU");

    return !strncmp(program_invocation_short_name, "qemu", 4) || (forced && !strcmp(forced, "1"));
}

static void prepare_for_forks(void)
{
    pthread_atfork(NULL, NULL, forget_in_child);
}

void listener_ensure(pthread_create_fn *create)
{
    pid_t owner, pid = getpid();
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;

    owner = atomic_exchange(&state.owner, pid);
    if (owner == pid || !wanted_here())
        return;
    if (owner != 0)
        forget();
    pthread_once(&state.once, prepare_for_forks);
    if (pthread_attr_init(&attributes) != 0)
        return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    create(&thread, &attributes, listen_for_wander, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}
