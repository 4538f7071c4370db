/* The control channel against a peer that this test plays by hand, and against itself. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migrate/channel.h"
#include "transport/base/clock.h"

struct fixture {
    struct wakeup wakeup;
    struct channel *channel;
    int peer; /* the other end of the socket */
};

static void open_one(struct fixture *f)
{
    struct error err = {0};
    int pair[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    wakeup_init(&f->wakeup);
    cr_assert_eq(channel_open(pair[0], &f->wakeup, &f->channel, &err), 0, "%s", err.text);
    f->peer = pair[1];
}

static void close_one(struct fixture *f)
{
    channel_close(f->channel);
    close(f->peer);
    wakeup_destroy(&f->wakeup);
}

static int next(struct fixture *f, int timeout_ms, struct message *out, struct error *err)
{
    uint64_t seen = 0, deadline = clock_now() + (uint64_t)timeout_ms * NS_PER_MS;
    int result;

    while ((result = channel_poll(f->channel, out, err)) == 0 && clock_now() < deadline)
        wakeup_wait(&f->wakeup, &seen, deadline);
    return result;
}

static void send_bytes(struct fixture *f, enum message_type type, const void *body, uint32_t size)
{
    uint8_t header[PROTO_HEADER_SIZE];

    message_header_encode(type, size, header);
    cr_assert_eq(write(f->peer, header, sizeof(header)), sizeof(header));
    cr_assert_eq(write(f->peer, body, size), size);
}

Test(channel, delivers_in_order_and_in_pieces)
{
    struct fixture f;
    struct error err = {0};
    struct message m;
    uint8_t header[PROTO_HEADER_SIZE];

    open_one(&f);
    send_bytes(&f, MESSAGE_READY, "", 0);
    message_header_encode(MESSAGE_ERROR, 4, header);
    for (size_t i = 0; i < sizeof(header); i++)
        cr_assert_eq(write(f.peer, header + i, 1), 1);
    cr_assert_eq(write(f.peer, "ab", 2), 2);
    cr_assert_eq(next(&f, 2000, &m, &err), 1);
    cr_expect_eq(m.type, MESSAGE_READY, "came %s", message_name(m.type));
    message_free(&m);
    cr_expect_eq(next(&f, 50, &m, &err), 0, "half a message was delivered");
    cr_assert_eq(write(f.peer, "cd", 2), 2);
    cr_assert_eq(next(&f, 2000, &m, &err), 1);
    cr_expect(m.size == 4 && memcmp(m.body, "abcd", 4) == 0);
    message_free(&m);
    close_one(&f);
}

Test(channel, what_came_before_the_end_is_still_read)
{
    struct fixture f;
    struct error err = {0};
    struct message m;

    open_one(&f);
    send_bytes(&f, MESSAGE_ERROR, "why", 3);
    shutdown(f.peer, SHUT_RDWR);
    while (!channel_lost(f.channel))
        usleep(1000);
    cr_assert_eq(next(&f, 2000, &m, &err), 1);
    cr_expect_eq(m.type, MESSAGE_ERROR);
    message_free(&m);
    cr_expect_eq(next(&f, 2000, &m, &err), -ECONNRESET, "came: %s", err.text);
    cr_expect_eq(channel_send(f.channel, MESSAGE_READY, NULL, 0, &err), -ECONNRESET);
    close_one(&f);
}

Test(channel, a_foreign_peer_is_told_from_a_broken_link)
{
    struct fixture f;
    struct error err = {0};
    struct message m;

    open_one(&f);
    cr_assert_gt(write(f.peer, "GET / HTTP/1.1\r\n\r\n", 18), 0);
    cr_expect_eq(next(&f, 2000, &m, &err), -EPROTO, "came: %s", err.text);
    close_one(&f);
}

Test(channel, a_silent_peer_is_noticed_within_five_seconds, .timeout = 30)
{
    struct fixture f;
    struct error err = {0};
    struct message m;
    uint64_t started = clock_now();

    open_one(&f);
    cr_expect_eq(next(&f, 20000, &m, &err), -ETIMEDOUT, "came: %s", err.text);
    uint64_t took = clock_now() - started;
    cr_expect(took >= 3 * NS_PER_S, "declared dead after only %.1f s", (double)took / 1e9);
    cr_expect(took <= 10 * NS_PER_S, "noticed after %.1f s", (double)took / 1e9);
    close_one(&f);
}

Test(channel, a_flood_ends_it)
{
    struct fixture f;
    struct error err = {0};
    struct message m;
    int result;

    open_one(&f);
    for (int i = 0; i < 2 * CHANNEL_MAX_QUEUE; i++) {
        uint8_t header[PROTO_HEADER_SIZE];
        message_header_encode(MESSAGE_READY, 0, header);
        if (send(f.peer, header, sizeof(header), MSG_NOSIGNAL) < 0)
            break;
    }
    while (!channel_lost(f.channel))
        usleep(1000);
    while ((result = next(&f, 2000, &m, &err)) == 1)
        message_free(&m);
    cr_expect_eq(result, -EPROTO, "came %d: %s", result, err.text);
    close_one(&f);
}

/* Device states that nobody takes must not fill the memory. */
Test(channel, a_flood_of_bytes_ends_it, .timeout = 30)
{
    struct fixture f;
    struct error err = {0};
    struct message m;
    struct timeval patience = {.tv_sec = 1};
    size_t size = 8 + GUEST_MAX_STATE, sent = 0;
    uint8_t *message = calloc(1, PROTO_HEADER_SIZE + size);
    int result;

    open_one(&f);
    setsockopt(f.peer, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    message_header_encode(MESSAGE_STATE, (uint32_t)size, message);
    for (int i = 0; i < 4; i++) {
        ssize_t now = send(f.peer, message, PROTO_HEADER_SIZE + size, MSG_NOSIGNAL);
        sent += now > 0 ? (size_t)now : 0;
    }
    cr_expect_lt(sent, 3 * size, "%zu bytes were taken", sent);
    while ((result = next(&f, 5000, &m, &err)) == 1)
        message_free(&m);
    cr_expect_eq(result, -EPROTO, "came %d: %s", result, err.text);
    free(message);
    close_one(&f);
}

static void *ping_without_pause(void *fixture)
{
    struct fixture *f = fixture;
    uint8_t pings[128][PROTO_HEADER_SIZE + 8] = {0}, pongs[4096];

    for (size_t i = 0; i < 128; i++)
        message_header_encode(MESSAGE_PING, 8, pings[i]);
    for (size_t at = 0;;) {
        ssize_t sent =
            send(f->peer, (uint8_t *)pings + at, sizeof(pings) - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN)
            return NULL;
        at = sent > 0 ? (at + (size_t)sent) % sizeof(pings) : at;
        while (recv(f->peer, pongs, sizeof(pongs), MSG_DONTWAIT) > 0)
            continue;
    }
}

Test(channel, a_peer_that_never_pauses_does_not_keep_it_open, .timeout = 30)
{
    struct fixture f;
    pthread_t pings;

    open_one(&f);
    pthread_create(&pings, NULL, ping_without_pause, &f);
    clock_sleep_until(clock_now() + 200 * NS_PER_MS);
    uint64_t started = clock_now();
    channel_close(f.channel);
    uint64_t took = clock_now() - started;
    cr_expect(took < NS_PER_S, "closing took %.1f s", (double)took / 1e9);
    pthread_join(pings, NULL);
    close(f.peer);
    wakeup_destroy(&f.wakeup);
}

Test(channel, two_channels_keep_each_other_alive_and_agree_on_time, .timeout = 30)
{
    struct fixture f;
    struct wakeup wakeup;
    struct channel *other;
    struct error err = {0};

    open_one(&f);
    wakeup_init(&wakeup);
    cr_assert_eq(channel_open(dup(f.peer), &wakeup, &other, &err), 0);
    /* Nobody pings before his first message: the greeting must come first. */
    cr_assert_eq(channel_send(f.channel, MESSAGE_READY, NULL, 0, &err), 0);
    cr_assert_eq(channel_send(other, MESSAGE_READY, NULL, 0, &err), 0);
    clock_sleep_until(clock_now() + (CHANNEL_DEAD_AFTER_MS + 1500) * NS_PER_MS);
    struct message none;
    cr_expect_eq(channel_poll(f.channel, &none, &err), 1);
    cr_expect_eq(channel_poll(other, &none, &err), 1);
    cr_expect_eq(channel_poll(f.channel, &none, &err), 0, "a live peer was declared dead: %s",
                 err.text);
    cr_expect_eq(channel_poll(other, &none, &err), 0, "a live peer was declared dead: %s",
                 err.text);
    int64_t offset = channel_clock_offset(f.channel);
    cr_expect(llabs(offset) < (int64_t)(50 * NS_PER_MS), "one clock, but an offset of %lld ns",
              (long long)offset);
    cr_expect_gt(channel_round_trip(f.channel), 0);
    channel_close(other);
    wakeup_destroy(&wakeup);
    close_one(&f);
}

/* Both ends write more than the sockets hold before either reads: neither may wait for the other
 * for ever. */
Test(channel, large_messages_cross, .timeout = 30)
{
    struct fixture f;
    struct wakeup wakeup;
    struct channel *other;
    struct error err = {0};
    size_t size = 8 + (4 << 20);
    void *body = calloc(1, size);
    struct message m;

    open_one(&f);
    wakeup_init(&wakeup);
    cr_assert_eq(channel_open(dup(f.peer), &wakeup, &other, &err), 0);
    cr_assert_eq(channel_send(f.channel, MESSAGE_STATE, body, size, &err), 0, "%s", err.text);
    cr_assert_eq(channel_send(other, MESSAGE_STATE, body, size, &err), 0, "%s", err.text);
    cr_assert_eq(next(&f, 5000, &m, &err), 1);
    cr_expect_eq(m.size, size);
    message_free(&m);
    channel_close(other);
    wakeup_destroy(&wakeup);
    free(body);
    close_one(&f);
}
