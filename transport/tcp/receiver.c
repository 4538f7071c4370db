/* The destination's end of a lane: reads frames, checks them, applies them, acknowledges fences. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "transport/base/thread.h"
#include "transport/tcp/lane.h"

struct tcp_receiver {
    struct tcp_lane *lane;
    uint8_t run_bytes[FRAME_MAX_RUNS * FRAME_RUN_SIZE];
    struct frame_run runs[FRAME_MAX_RUNS];
    struct iovec pieces[FRAME_MAX_RUNS];
    uint8_t payload[FRAME_MAX_BYTES]; /* of BLOB frames */
};

static int receiver_lost(const struct tcp_lane *lane, ssize_t result, bool in_frame,
                         struct error *err)
{
    if (result == 0 || errno == ECONNRESET)
        return error_set(err, ECONNRESET, "lane %u closed by peer%s", lane->index,
                         in_frame ? " in the middle of a frame" : "");
    if (errno == EAGAIN)
        return error_set(err, ETIMEDOUT, "lane %u: nothing came for %u ms in the middle of a frame",
                         lane->index, lane->tcp->params.dead_after_ms);
    return error_set_errno(err, errno, "lane %u: cannot receive", lane->index);
}

static void pieces_advance(struct iovec **pieces, unsigned *count, size_t bytes)
{
    while (*count && bytes >= (*pieces)->iov_len) {
        bytes -= (*pieces)->iov_len;
        (*pieces)++;
        (*count)--;
    }
    if (*count) {
        (*pieces)->iov_base = (uint8_t *)(*pieces)->iov_base + bytes;
        (*pieces)->iov_len -= bytes;
    }
}

/* Reads all pieces full. SO_RCVTIMEO is the lane's limit: what arrives slowly goes on, silence ends
 * it, except between frames, where a source may have nothing to say. */
static int receive_pieces(struct tcp_lane *lane, struct iovec *pieces, unsigned count,
                          bool in_frame, struct error *err)
{
    while (count) {
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
        ssize_t n = recvmsg(lane->socket, &message, MSG_WAITALL);

        lane->system_calls++;
        if (n < 0 && (errno == EINTR || (errno == EAGAIN && !in_frame)))
            continue;
        if (n <= 0)
            return receiver_lost(lane, n, in_frame, err);
        in_frame = true;
        pieces_advance(&pieces, &count, (size_t)n);
    }
    return 0;
}

static int receive_bytes(struct tcp_lane *lane, void *bytes, size_t size, bool in_frame,
                         struct error *err)
{
    struct iovec piece = {bytes, size};

    return receive_pieces(lane, &piece, 1, in_frame, err);
}

static int receive_runs(struct tcp_receiver *r, const struct frame_header *header,
                        struct error *err)
{
    int result =
        receive_bytes(r->lane, r->run_bytes, (size_t)header->count * FRAME_RUN_SIZE, true, err);

    return result < 0 ? result : frame_runs_decode(header, r->run_bytes, r->runs, err);
}

static int apply_place(struct tcp_receiver *r, const struct frame_header *header, struct error *err)
{
    int result = receive_runs(r, header, err);

    if (!result)
        result = frame_runs_resolve(r->runs, header->count, &r->lane->tcp->regions, r->pieces, err);
    return result < 0 ? result : receive_pieces(r->lane, r->pieces, (unsigned)result, true, err);
}

static int apply_blob(struct tcp_receiver *r, const struct frame_header *header, struct error *err)
{
    const struct transport_params *params = &r->lane->tcp->params;
    const uint8_t *at = r->payload;
    int result;

    if (!params->decode)
        return error_set(err, EPROTO, "the peer sent a blob and there is no decoder");
    result = receive_runs(r, header, err);
    if (!result)
        result = receive_bytes(r->lane, r->payload, header->bytes, true, err);
    for (unsigned i = 0; i < header->count && result >= 0; i++) {
        result = params->decode(params->decode_context, at, r->runs[i].length, err);
        at += r->runs[i].length;
    }
    return result < 0 ? error_set(err, -result, "the decoder refused a blob") : 0;
}

static int acknowledge(struct tcp_lane *lane, uint64_t fence, struct error *err)
{
    struct frame_header header = {.type = FRAME_ACKNOWLEDGE, .fence = fence};
    uint8_t bytes[FRAME_HEADER_SIZE];

    frame_header_encode(&header, bytes);
    for (size_t sent = 0; sent < sizeof bytes;) {
        ssize_t n = send(lane->socket, bytes + sent, sizeof bytes - sent, MSG_NOSIGNAL);

        lane->system_calls++;
        if (n < 0 && errno != EINTR)
            return error_set_errno(err, errno, "lane %u: cannot acknowledge a fence", lane->index);
        sent += n > 0 ? (size_t)n : 0;
    }
    lane->wire_bytes += sizeof bytes;
    return 0;
}

static int apply_frame(struct tcp_receiver *r, const struct frame_header *header, struct error *err)
{
    switch (header->type) {
    case FRAME_PLACE:
        return apply_place(r, header, err);
    case FRAME_BLOB:
        return apply_blob(r, header, err);
    case FRAME_FENCE:
        return acknowledge(r->lane, header->fence, err);
    case FRAME_ACKNOWLEDGE:
        break;
    }
    return error_set(err, EPROTO, "the peer acknowledged a fence that was never set");
}

static int receive_frame(struct tcp_receiver *r, struct error *err)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    struct frame_header header;
    int result = receive_bytes(r->lane, bytes, sizeof bytes, false, err);

    if (result < 0)
        return result;
    result = frame_header_decode(bytes, &header, err);
    if (!result)
        result = apply_frame(r, &header, err);
    r->lane->frames++;
    return result;
}

void *tcp_receiver_main(void *context)
{
    struct tcp_lane *lane = context;
    struct tcp_receiver *r = malloc(sizeof *r);
    struct error err = {0};

    thread_set_name("lane", (int)lane->index);
    if (!r)
        error_set(&err, ENOMEM, "lane %u: no memory to receive", lane->index);
    else
        r->lane = lane;
    while (!err.code && !latch_ended(&lane->tcp->latch))
        if (receive_frame(r, &err) < 0 && err.code == EPROTO)
            error_prefix(&err, "lane %u", lane->index);
    if (err.code)
        tcp_fail(lane->tcp, &err);
    free(r);
    return NULL;
}
