/* Binding lanes to a session: who connects says which lane of which session and epoch it is, and is
 * answered.
 *
 * Everybody who reaches the port may connect. A connection that says nothing, or too little, has a
 * time limit of its own and holds up nobody: all are served by one poll. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "transport/base/address.h"
#include "transport/base/clock.h"
#include "transport/base/log.h"
#include "transport/tcp/lane.h"

enum { MAX_GUESTS = 128, GUEST_TIME_MS = 2000 };

/* A connection that has not proved yet that it is a lane. */
struct guest {
    int socket;
    uint64_t deadline;
    size_t got;
    uint8_t preface[PREFACE_SIZE];
};

struct reception {
    struct tcp *tcp;
    struct preface expected;
    unsigned bound, guest_count;
    struct guest guests[MAX_GUESTS]; /* oldest first */
    struct pollfd fds[2 + MAX_GUESTS];
};

static int set_blocking(int socket, bool blocking)
{
    int flags = fcntl(socket, F_GETFL);

    return fcntl(socket, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

static int set_option(int socket, int level, int name, int value, const char *what,
                      struct error *err)
{
    if (setsockopt(socket, level, name, &value, sizeof value) < 0)
        return error_set_errno(err, errno, "cannot set %s of a lane", what);
    return 0;
}

/* tcp(7), socket(7). Buffer sizes are left to the kernel: it grows them to tcp_rmem and tcp_wmem (6
 * and 4 MiB by default), while SO_SNDBUF and SO_RCVBUF stop that and are capped by rmem_max and
 * wmem_max (208 KiB). */
static int set_options(int socket, unsigned dead_after_ms, struct error *err)
{
    unsigned seconds = dead_after_ms / 1000;
    int idle = seconds > 3 ? (int)seconds - 2 : 1;
    struct timeval limit = {dead_after_ms / 1000, dead_after_ms % 1000 * 1000};
    int result = set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY", err);

    if (!result)
        result = set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE", err);
    if (!result)
        result = set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, idle, "TCP_KEEPIDLE", err);
    if (!result)
        result = set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, 1, "TCP_KEEPINTVL", err);
    if (!result)
        result = set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT,
                            (int)(dead_after_ms < INT_MAX ? dead_after_ms : INT_MAX),
                            "TCP_USER_TIMEOUT", err);
    if (!result && setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0)
        result = error_set_errno(err, errno, "cannot set SO_RCVTIMEO of a lane");
    return result;
}

/* ip(7), ipv6(7): the DSCP is the upper six bits of the traffic class. An IPv6 socket may carry
 * IPv4 (a mapped address), whose packets have the other option. */
static int set_dscp(int socket, unsigned dscp, struct error *err)
{
    struct sockaddr_storage at;
    socklen_t size = sizeof at;
    int class = (int)(dscp << 2), result = 0;

    if (!dscp)
        return 0;
    if (getsockname(socket, (struct sockaddr *)&at, &size) < 0)
        return error_set_errno(err, errno, "cannot tell the address family of a lane");
    if (at.ss_family == AF_INET6)
        result = set_option(socket, IPPROTO_IPV6, IPV6_TCLASS, class, "IPV6_TCLASS (DSCP)", err);
    return result ? result : set_option(socket, IPPROTO_IP, IP_TOS, class, "IP_TOS (DSCP)", err);
}

/* From here on shutdown reaches the socket. */
static void lane_take(struct tcp_lane *lane, int socket, size_t wire_bytes)
{
    pthread_mutex_lock(&lane->tcp->lock);
    lane->socket = socket;
    pthread_mutex_unlock(&lane->tcp->lock);
    lane->wire_bytes += wire_bytes;
}

static struct preface preface_of(const struct tcp *tcp, unsigned index)
{
    struct preface preface = {
        .index = (uint16_t)index,
        .count = (uint16_t)tcp->params.lanes,
        .epoch = tcp->params.epoch,
    };

    memcpy(preface.token, tcp->params.token, sizeof preface.token);
    return preface;
}

/* Reads exactly `size` bytes before the deadline or the shutdown. */
static int read_before(struct tcp *tcp, int socket, void *bytes, size_t size, uint64_t deadline,
                       struct error *err)
{
    struct pollfd fds[] = {{.fd = socket, .events = POLLIN},
                           {.fd = tcp->stop_fd, .events = POLLIN}};

    for (size_t got = 0; got < size;) {
        int ready = poll(fds, 2, clock_ms_until(deadline));
        ssize_t n;

        if (latch_check(&tcp->latch, err) < 0)
            return -err->code;
        if (ready == 0)
            return error_set(err, ETIMEDOUT, "the peer took the connection and did not answer");
        n = recv(socket, (uint8_t *)bytes + got, size - got, MSG_DONTWAIT);
        if (n == 0)
            return error_set(err, ECONNRESET, "the peer closed the connection without an answer");
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return error_set_errno(err, errno, "no answer from the peer");
        got += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static int introduce(struct tcp *tcp, int socket, unsigned index, uint64_t deadline,
                     struct error *err)
{
    struct preface preface = preface_of(tcp, index);
    uint8_t bytes[PREFACE_SIZE], answer[ANSWER_SIZE];
    int result;

    preface_encode(&preface, bytes);
    if (send(socket, bytes, sizeof bytes, MSG_NOSIGNAL) != (ssize_t)sizeof bytes)
        return error_set_errno(err, errno, "cannot introduce the lane");
    result = read_before(tcp, socket, answer, sizeof answer, deadline, err);
    return result < 0 ? result : bind_answer_decode(answer, err);
}

static int connect_lane(struct tcp_lane *lane, const struct address *peer, uint64_t deadline,
                        struct error *err)
{
    struct tcp *tcp = lane->tcp;
    int socket = address_connect(peer, clock_ms_until(deadline), tcp->stop_fd, err);
    int result = socket;

    if (socket < 0)
        return latch_ended(&tcp->latch) ? (error_clear(err), latch_check(&tcp->latch, err))
                                        : socket;
    result = set_options(socket, tcp->params.dead_after_ms, err);
    if (!result)
        result = set_dscp(socket, tcp->params.dscp, err);
    if (!result)
        result = introduce(tcp, socket, lane->index, deadline, err);
    if (!result && set_blocking(socket, false) < 0)
        result = error_set_errno(err, errno, "cannot make the socket non-blocking");
    if (result < 0) {
        close(socket);
        return latch_ended(&tcp->latch) ? result : error_prefix(err, "lane %u", lane->index);
    }
    lane_take(lane, socket, PREFACE_SIZE);
    return 0;
}

int tcp_bind_source(struct tcp *tcp, const struct address *peer, int timeout_ms, struct error *err)
{
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    int result = 0;

    for (unsigned i = 0; i < tcp->params.lanes && !result; i++)
        result = connect_lane(&tcp->lanes[i], peer, deadline, err);
    return result;
}

static void guest_forget(struct reception *r, unsigned index)
{
    r->guest_count--;
    memmove(&r->guests[index], &r->guests[index + 1], (r->guest_count - index) * sizeof *r->guests);
}

static void guest_turn_away(struct reception *r, unsigned index, const char *why)
{
    log_line(LOG_INFO, "turned a connection to the lane port away: %s", why);
    close(r->guests[index].socket);
    guest_forget(r, index);
}

static void guests_welcome(struct reception *r)
{
    for (;;) {
        int socket = accept4(r->tcp->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (socket < 0)
            return;
        if (r->guest_count == MAX_GUESTS)
            guest_turn_away(r, 0, "too many at once, this one was the oldest");
        r->guests[r->guest_count++] = (struct guest){
            .socket = socket,
            .deadline = clock_now() + GUEST_TIME_MS * NS_PER_MS,
        };
    }
}

static int guest_answer(int socket, enum answer answer)
{
    uint8_t bytes[ANSWER_SIZE];

    bind_answer_encode(answer, bytes);
    return send(socket, bytes, sizeof bytes, MSG_NOSIGNAL) == (ssize_t)sizeof bytes ? 0 : -errno;
}

static void guest_judge(struct reception *r, unsigned index)
{
    struct guest *guest = &r->guests[index];
    struct error err = {0};
    uint16_t at = 0;
    enum answer answer = preface_decode(guest->preface, &r->expected, &at);

    if (answer == ANSWER_WELCOME && r->tcp->lanes[at].socket >= 0)
        answer = ANSWER_OCCUPIED;
    if (answer == ANSWER_WELCOME &&
        (set_blocking(guest->socket, true) < 0 ||
         set_options(guest->socket, r->tcp->params.dead_after_ms, &err) < 0)) {
        guest_turn_away(r, index, err.text);
        return;
    }
    if (guest_answer(guest->socket, answer) < 0 || answer != ANSWER_WELCOME) {
        guest_turn_away(r, index, "it is no lane of this session and epoch, or is gone already");
        return;
    }
    lane_take(&r->tcp->lanes[at], guest->socket, ANSWER_SIZE);
    r->bound++;
    guest_forget(r, index);
}

static void guest_hear(struct reception *r, unsigned index)
{
    struct guest *guest = &r->guests[index];
    ssize_t n = recv(guest->socket, guest->preface + guest->got, PREFACE_SIZE - guest->got, 0);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        guest_turn_away(r, index, "it closed without a word");
        return;
    }
    guest->got += (size_t)n;
    if (guest->got == PREFACE_SIZE)
        guest_judge(r, index);
}

/* A lane that hangs up before all are bound leaves its place to another. */
static void drop_lost_lanes(struct reception *r)
{
    for (unsigned i = 0; i < r->tcp->params.lanes; i++) {
        struct tcp_lane *lane = &r->tcp->lanes[i];
        struct pollfd fd = {.fd = lane->socket, .events = POLLRDHUP};

        if (lane->socket < 0 || poll(&fd, 1, 0) <= 0)
            continue;
        /* In this order: a shutdown from elsewhere must not hit whoever gets the number next. */
        lane_take(lane, -1, 0);
        close(fd.fd);
        r->bound--;
    }
}

/* Fills r->fds; returns until when to poll at most. */
static uint64_t reception_poll_set(struct reception *r, uint64_t deadline)
{
    r->fds[0] = (struct pollfd){.fd = r->tcp->stop_fd, .events = POLLIN};
    r->fds[1] = (struct pollfd){.fd = r->tcp->listener, .events = POLLIN};
    for (unsigned i = 0; i < r->guest_count; i++)
        r->fds[2 + i] = (struct pollfd){.fd = r->guests[i].socket, .events = POLLIN};
    if (r->guest_count && r->guests[0].deadline < deadline)
        return r->guests[0].deadline;
    return deadline;
}

/* Newest first: forgetting one moves only those already served. */
static void guests_serve(struct reception *r)
{
    for (unsigned i = r->guest_count; i-- > 0;) {
        if (r->fds[2 + i].revents)
            guest_hear(r, i);
        else if (clock_now() >= r->guests[i].deadline)
            guest_turn_away(r, i, "it said too little for too long");
    }
}

static int reception_run(struct reception *r, uint64_t deadline, int timeout_ms, struct error *err)
{
    while (r->bound < r->tcp->params.lanes) {
        uint64_t until = reception_poll_set(r, deadline);

        if (poll(r->fds, 2 + r->guest_count, clock_ms_until(until)) < 0 && errno != EINTR)
            return error_set_errno(err, errno, "cannot wait for lanes");
        if (latch_check(&r->tcp->latch, err) < 0)
            return -err->code;
        guests_serve(r);
        if (r->fds[1].revents)
            guests_welcome(r);
        drop_lost_lanes(r);
        if (r->bound < r->tcp->params.lanes && clock_now() >= deadline)
            return error_set(err, ETIMEDOUT,
                             "%u of %u lanes were opened by the source within %d ms", r->bound,
                             r->tcp->params.lanes, timeout_ms);
    }
    return 0;
}

int tcp_bind_destination(struct tcp *tcp, int timeout_ms, struct error *err)
{
    uint64_t deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    struct reception r = {.tcp = tcp, .expected = preface_of(tcp, 0)};
    int result;

    for (unsigned i = 0; i < tcp->params.lanes; i++)
        r.bound += tcp->lanes[i].socket >= 0;
    result = reception_run(&r, deadline, timeout_ms, err);
    for (unsigned i = 0; i < r.guest_count; i++)
        close(r.guests[i].socket);
    return result;
}
