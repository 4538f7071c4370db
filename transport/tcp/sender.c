/* The source's end of a lane: makes frames of what waits in the outbox, sends them from where the
 * bytes are, and reads acknowledgements meanwhile. The socket is never waited on in one direction
 * only: a lane that cannot send still hears the peer. */
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "transport/base/clock.h"
#include "transport/base/thread.h"
#include "transport/tcp/lane.h"
#include "transport/tcp/page_pipe.h"

enum { BY_REFERENCE_MIN = 16 << 10 };

struct tcp_sender {
    struct tcp_lane *lane;
    struct tcp *tcp;
    struct outbox_lane *queue;
    /* The frame under way: pieces[first..first+count), the first of a frame is its head. */
    unsigned first, count, entries;
    struct iovec pieces[1 + FRAME_MAX_RUNS];
    uint8_t head[FRAME_HEADER_SIZE + FRAME_MAX_RUNS * FRAME_RUN_SIZE];
    enum frame_type type;
    uint32_t bytes;
    struct page_pipe pages; /* holds what has left `pieces` and is not in the socket */
    /* The acknowledgement being read. */
    size_t heard;
    uint8_t acknowledgement[FRAME_HEADER_SIZE];
    /* When the peer last took something, and how much it had taken then. */
    uint64_t moved_at, delivered;
};

/* A frame while it is put together. */
struct frame_builder {
    struct tcp_sender *sender;
    struct frame_header header;
    struct frame_run last; /* the run that may still grow */
};

static bool extends_last(const struct frame_builder *b, const struct outbox_entry *entry)
{
    const struct iovec *piece = &b->sender->pieces[b->sender->count - 1];

    return b->header.count && entry->kind == OUTBOX_PLACE && entry->region == b->last.region &&
           entry->offset == b->last.offset + b->last.length &&
           entry->bytes == (const uint8_t *)piece->iov_base + piece->iov_len;
}

static void write_last(struct frame_builder *b)
{
    uint8_t *at = b->sender->head + FRAME_HEADER_SIZE + (b->header.count - 1) * FRAME_RUN_SIZE;

    frame_run_encode(&b->last, at);
}

/* Adds an entry, as a run of its own or to the last one; false when the frame is full. */
static bool add_entry(struct frame_builder *b, const struct outbox_entry *entry)
{
    struct tcp_sender *s = b->sender;
    bool place = entry->kind == OUTBOX_PLACE;

    if (b->header.bytes + entry->length > FRAME_MAX_BYTES)
        return false;
    if (extends_last(b, entry)) {
        b->last.length += (uint32_t)entry->length;
        s->pieces[s->count - 1].iov_len += entry->length;
    } else {
        if (b->header.count == FRAME_MAX_RUNS)
            return false;
        b->last = (struct frame_run){place ? entry->region : 0, (uint32_t)entry->length,
                                     place ? entry->offset : 0};
        s->pieces[s->count++] = (struct iovec){(void *)entry->bytes, entry->length};
        b->header.count++;
    }
    write_last(b);
    b->header.bytes += (uint32_t)entry->length;
    return true;
}

static void add_entries(struct frame_builder *b, enum outbox_kind kind, unsigned pending)
{
    struct tcp_sender *s = b->sender;

    while (s->entries < pending) {
        const struct outbox_entry *entry = outbox_entry(s->queue, s->entries);

        if (entry->kind != kind || !add_entry(b, entry))
            return;
        s->entries++;
    }
}

/* Makes the next frame of the entries at the head of the queue that are of one kind. `pending` is
 * not 0. */
static void build_frame(struct tcp_sender *s, unsigned pending)
{
    static const enum frame_type types[] = {
        [OUTBOX_PLACE] = FRAME_PLACE,
        [OUTBOX_BLOB] = FRAME_BLOB,
        [OUTBOX_FENCE] = FRAME_FENCE,
    };
    const struct outbox_entry *entry = outbox_entry(s->queue, 0);
    struct frame_builder b = {.sender = s, .header.type = types[entry->kind]};

    s->first = 0;
    s->count = 1;
    s->entries = 0;
    if (entry->kind == OUTBOX_FENCE) {
        b.header.fence = entry->offset;
        s->entries = 1;
    } else {
        add_entries(&b, entry->kind, pending);
    }
    s->type = b.header.type;
    s->bytes = b.header.bytes;
    frame_header_encode(&b.header, s->head);
    s->pieces[0] = (struct iovec){s->head, FRAME_HEADER_SIZE + b.header.count * FRAME_RUN_SIZE};
}

static bool frame_under_way(const struct tcp_sender *s)
{
    return s->count || s->pages.held;
}

static void advance(struct tcp_sender *s, size_t bytes)
{
    while (s->count && bytes >= s->pieces[s->first].iov_len) {
        bytes -= s->pieces[s->first].iov_len;
        s->first++;
        s->count--;
    }
    if (s->count) {
        struct iovec *piece = &s->pieces[s->first];

        piece->iov_base = (uint8_t *)piece->iov_base + bytes;
        piece->iov_len -= bytes;
    }
}

static int closed_by_peer(const struct tcp_sender *s, struct error *err)
{
    return error_set(err, ECONNRESET, "lane %u closed by peer", s->lane->index);
}

/* Small frames are copied: at 16 KiB both ways cost the same CPU time, below it taking references
 * costs more. */
static bool by_reference(const struct tcp_sender *s)
{
    return s->pages.in >= 0 && s->type == FRAME_PLACE && s->bytes >= BY_REFERENCE_MIN;
}

static ssize_t send_copy(struct tcp_sender *s)
{
    bool head_only = s->first == 0 && by_reference(s);
    struct msghdr message = {
        .msg_iov = &s->pieces[s->first],
        .msg_iovlen = head_only ? 1 : s->count,
    };
    ssize_t n = sendmsg(s->lane->socket, &message,
                        MSG_DONTWAIT | MSG_NOSIGNAL | (head_only ? MSG_MORE : 0));

    if (n < 0)
        return -errno;
    advance(s, (size_t)n);
    return n;
}

static ssize_t send_references(struct tcp_sender *s)
{
    if (!s->pages.held) {
        ssize_t n = page_pipe_fill(&s->pages, &s->pieces[s->first], s->count);

        s->lane->system_calls++;
        if (n < 0)
            return n;
        advance(s, (size_t)n);
    }
    return page_pipe_drain(&s->pages, s->lane->socket, s->count != 0);
}

static int send_failed(const struct tcp_sender *s, int code, struct error *err)
{
    if (code == EAGAIN || code == EINTR)
        return 0;
    if (code == EPIPE || code == ECONNRESET)
        return closed_by_peer(s, err);
    return error_set_errno(err, code, "lane %u: cannot send", s->lane->index);
}

/* Sends what the socket takes. 1: something went, 0: it takes nothing now. */
static int send_some(struct tcp_sender *s, struct error *err)
{
    bool payload = s->pages.held || s->first > 0;
    ssize_t n = payload && by_reference(s) ? send_references(s) : send_copy(s);

    s->lane->system_calls++;
    if (n < 0)
        return send_failed(s, (int)-n, err);
    s->lane->wire_bytes += (uint64_t)n;
    if (frame_under_way(s))
        return 1;
    s->lane->frames++;
    outbox_sent(&s->tcp->outbox, s->queue, s->entries);
    return 1;
}

static int apply_acknowledgement(struct tcp_sender *s, struct error *err)
{
    struct frame_header header;
    int result = frame_header_decode(s->acknowledgement, &header, err);

    s->heard = 0;
    s->moved_at = clock_now();
    if (!result && header.type != FRAME_ACKNOWLEDGE)
        result = error_set(err, EPROTO, "the destination sent other than acknowledgements");
    if (!result)
        result = outbox_acknowledge(&s->tcp->outbox, s->queue, header.fence, err);
    return result < 0 ? error_prefix(err, "lane %u", s->lane->index) : 0;
}

/* Reads acknowledgements as long as there are any. */
static int hear(struct tcp_sender *s, struct error *err)
{
    for (;;) {
        ssize_t n = recv(s->lane->socket, s->acknowledgement + s->heard,
                         FRAME_HEADER_SIZE - s->heard, MSG_DONTWAIT);

        s->lane->system_calls++;
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return 0;
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return closed_by_peer(s, err);
        if (n < 0)
            return error_set_errno(err, errno, "lane %u: lost", s->lane->index);
        s->heard += (size_t)n;
        if (s->heard == FRAME_HEADER_SIZE && apply_acknowledgement(s, err) < 0)
            return -err->code;
    }
}

/* The peer is dead when it took no byte and acknowledged no fence for dead_after_ms while it should
 * have. */
static int check_alive(struct tcp_sender *s, struct error *err)
{
    uint64_t now = clock_now(), delivered = s->lane->wire_bytes;
    unsigned limit = s->tcp->params.dead_after_ms;
    int unacknowledged = 0;

    if (ioctl(s->lane->socket, SIOCOUTQ, &unacknowledged) == 0)
        delivered -= (uint64_t)unacknowledged;
    if (delivered != s->delivered) {
        s->delivered = delivered;
        s->moved_at = now;
    }
    if (now - s->moved_at < limit * NS_PER_MS)
        return 0;
    return error_set(err, ETIMEDOUT,
                     "lane %u: the peer acknowledged nothing for %u ms; it or the network is dead",
                     s->lane->index, limit);
}

/* Waits until the socket takes bytes (a frame is under way), or for work, or for the peer. */
static int wait(struct tcp_sender *s, struct error *err)
{
    bool blocked = frame_under_way(s), waits = blocked || outbox_awaits(s->queue);
    struct pollfd fds[] = {
        {.fd = s->lane->socket, .events = POLLIN | (blocked ? POLLOUT : 0)},
        {.fd = blocked ? -1 : s->queue->wake_fd, .events = POLLIN},
    };

    if (!blocked && !outbox_fall_asleep(s->queue, 0))
        return 0;
    if (!latch_ended(&s->tcp->latch) &&
        poll(fds, 2, waits ? (int)(s->tcp->params.dead_after_ms / 8 + 1) : -1) < 0 &&
        errno != EINTR)
        return error_set_errno(err, errno, "lane %u: cannot wait", s->lane->index);
    if (!blocked)
        outbox_wake_up(s->queue);
    if (!waits)
        s->moved_at = clock_now();
    else if (check_alive(s, err) < 0)
        return -err->code;
    return fds[0].revents & ~POLLOUT ? hear(s, err) : 0;
}

static int sender_step(struct tcp_sender *s, struct error *err)
{
    bool idle = !frame_under_way(s);
    unsigned pending = outbox_pending(s->queue);
    int result;

    if (idle && !pending)
        return wait(s, err);
    if (idle)
        build_frame(s, pending);
    result = send_some(s, err);
    if (result < 0)
        return result;
    if (result == 0)
        return wait(s, err);
    return outbox_awaits(s->queue) ? hear(s, err) : 0;
}

void *tcp_sender_main(void *context)
{
    struct tcp_lane *lane = context;
    struct tcp_sender *s = calloc(1, sizeof *s);
    struct error err = {0};

    thread_set_name("lane", (int)lane->index);
    if (!s) {
        error_set(&err, ENOMEM, "lane %u: no memory to send", lane->index);
    } else {
        s->lane = lane;
        s->tcp = lane->tcp;
        s->queue = &lane->tcp->outbox.lanes[lane->index];
        s->moved_at = clock_now();
        page_pipe_open(&s->pages);
    }
    while (!err.code && !latch_ended(&lane->tcp->latch))
        sender_step(s, &err);
    if (err.code)
        tcp_fail(lane->tcp, &err);
    if (s)
        page_pipe_close(&s->pages);
    free(s);
    return NULL;
}
