/* Dirty tracking of another process through the preloaded library: what counts as dirty, that no
 * write is lost, and what becomes of sessions that end badly. */
#include "qemu_fixture.h"

#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "migrate/guest/qemu/preload/protocol.h"
#include "migrate/guest/qemu/tracking.h"
#include "migrate/guest/userfaultfd.h"
#include "transport/base/clock.h"

enum { PAGE = GUEST_PAGE_SIZE };

static void require_userfaultfd(void)
{
    struct error err = {0};

    if (userfaultfd_probe(&err) < 0)
        cr_skip_test("%s", err.text);
}

static struct tracker *track(struct stand_in *s)
{
    struct tracker *t;
    struct error err = {0};
    int rc;

    cr_assert_eq(qemu_tracker_new(s->pid, &s->memory, &t, &err), 0, "%s", err.text);
    rc = t->ops->start(t, &err);
    for (int i = 0; i < 100 && rc == -ENOENT; i++) { /* its thread is only just setting out */
        usleep(20000);
        error_clear(&err);
        rc = t->ops->start(t, &err);
    }
    cr_assert_eq(rc, 0, "%s", err.text);
    return t;
}

static uint64_t collect(struct tracker *t)
{
    struct error err = {0};
    uint64_t pages = 0;

    cr_assert_eq(t->ops->collect(t, &pages, &err), 0, "%s", err.text);
    return pages;
}

static unsigned take(struct tracker *t, uint64_t chunk, uint64_t bits[TRACKER_WORDS_PER_CHUNK])
{
    struct error err = {0};
    unsigned pages = 0;

    cr_assert_eq(t->ops->take(t, 0, chunk, bits, &err), 0, "%s", err.text);
    for (size_t i = 0; i < TRACKER_WORDS_PER_CHUNK; i++)
        pages += (unsigned)__builtin_popcountll(bits[i]);
    return pages;
}

/* Collects, takes all, and expects these pages and no others. */
static void expect_dirty(struct tracker *t, const char *when, unsigned count,
                         const uint64_t expected[])
{
    uint64_t bits[TRACKER_WORDS_PER_CHUNK], page = 0, pages = collect(t);
    unsigned found = 0;

    cr_expect_eq(pages, count, "%s: %zu pages are dirty, expected %u", when, (size_t)pages, count);
    while (t->ops->next(t, 0, &page)) {
        if (found < count)
            cr_expect_eq(page, expected[found], "%s: page %zu is dirty, expected %zu", when,
                         (size_t)page, (size_t)expected[found]);
        found++;
        page++;
    }
    cr_expect_eq(found, count, "%s: %u pages come, expected %u", when, found, count);
    for (page = 0; t->ops->next(t, 0, &page); page = (page / 256 + 1) * 256)
        take(t, page / 256, bits);
    cr_expect_eq(collect(t), 0, "%s: something is left after all was taken", when);
}

/* One thing after another, all over the same RAM: pages 0..511 held, the rest a hole. */
static const struct step {
    const char *command;
    uint64_t page, count;
    unsigned dirty;
    uint64_t pages[3];
} steps[] = {
    {"write", 5, 1, 1, {5}},
    {"touch", 6, 1, 0, {0}},
    {"write", 1000, 2, 2, {1000, 1001}},
    {"write", 1000, 1, 1, {1000}},
    {"read-nothing", 20, 1, 3, {20, 21, 22}}, /* nothing but the library's marks can tell */
    {"read-nothing", 2046, 1, 2, {2046, 2047}},
    {"drop", 0, 512, 0, {0}}, /* armed pages that leave the page table */
    {"touch", 7, 1, 0, {0}},
    {"write", 8, 1, 1, {8}},
    {"page-out", 0, 512, 0, {0}},
    {"punch", 300, 2, 2, {300, 301}},
    {"punch", 300, 2, 0, {0}}, /* zeros before and after */
    {"touch", 300, 1, 1, {300}},
    {"write", 301, 1, 1, {301}},
    {"grow", 1500, 1, 1, {1500}}, /* in the file, never mapped by the process */
    {"write", 1500, 1, 1, {1500}},
    {"grow", 100, 1, 0, {0}},
};

Test(qemu_tracking, steps)
{
    require_userfaultfd();
    struct stand_in s = stand_in_start(8 * MIB, PLAIN, NULL);
    char when[64];

    tell(&s, "write", 0, 512);
    struct tracker *t = track(&s);
    expect_dirty(t, "what was written before the start", 0, NULL);
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        snprintf(when, sizeof(when), "step %zu (%s %llu)", i, steps[i].command,
                 (unsigned long long)steps[i].page);
        cr_expect_geq(tell(&s, steps[i].command, steps[i].page, steps[i].count), -1, "%s", when);
        expect_dirty(t, when, steps[i].dirty, steps[i].pages);
    }
    t->ops->close(t);
    stand_in_end(&s, 0);
}

/* Written, and gone from the page table before anybody looked. */
Test(qemu_tracking, pages_that_left)
{
    static const char *const ways[] = {"drop", "page-out"};

    require_userfaultfd();
    for (size_t i = 0; i < 2; i++) {
        struct stand_in s = stand_in_start(8 * MIB, PLAIN, NULL);
        tell(&s, "write", 0, 100);
        struct tracker *t = track(&s);
        tell(&s, "write", 50, 1);
        tell(&s, "write", 99, 1);
        tell(&s, "write", 1700, 1); /* a hole until now, in a chunk of holes */
        tell(&s, ways[i], 0, 2048);
        expect_dirty(t, ways[i], 3, (const uint64_t[]){50, 99, 1700});
        /* As many come as go: the file's number of pages does not tell. */
        tell(&s, "punch", 60, 1);
        tell(&s, "write", 1900, 1);
        expect_dirty(t, "one came, one went", 2, (const uint64_t[]){60, 1900});
        t->ops->close(t);
        stand_in_end(&s, 0);
    }
}

static uint64_t page_table_kib(pid_t pid)
{
    char path[64], line[256];
    unsigned long long kib = 0;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *status = fopen(path, "r");
    cr_assert(status);
    while (fgets(line, sizeof(line), status)) {
        if (sscanf(line, "VmPTE: %llu kB", &kib) == 1)
            break;
    }
    fclose(status);
    return kib;
}

Test(qemu_tracking, holes_cost_nothing)
{
    require_userfaultfd();
    struct stand_in s = stand_in_start(64ull << 30, PLAIN, NULL);

    tell(&s, "write", 0, 256);
    tell(&s, "write", 8 << 20, 256);
    uint64_t before = page_table_kib(s.pid);
    struct tracker *t = track(&s);
    expect_dirty(t, "64 GiB of holes", 0, NULL);
    cr_expect_lt(page_table_kib(s.pid) - before, 64, "page tables grew by %zu KiB",
                 (size_t)(page_table_kib(s.pid) - before));
    t->ops->close(t);
    stand_in_end(&s, 0);
}

/* What the file system of the build directory reads without a cache. */
static void make_disk(char *path)
{
    static char bytes[64 * PAGE];
    int fd = mkstemp(path);

    cr_assert(fd >= 0, "%s: %s", path, strerror(errno));
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (char)(i * 2654435761u >> 13);
    cr_assert_eq(write(fd, bytes, sizeof(bytes)), (ssize_t)sizeof(bytes));
    fsync(fd);
    close(fd);
}

static void require_direct_reads(struct stand_in *s, const char *disk)
{
    long got = tell(s, "read-directly", 1, 0);

    if (got == PAGE)
        return;
    unlink(disk);
    stand_in_end(s, SIGKILL);
    cr_skip_test("the file system refuses O_DIRECT: %s", strerror((int)-got));
}

static uint64_t copy_round(struct tracker *t, const uint8_t *ram, uint8_t *copy)
{
    uint64_t bits[TRACKER_WORDS_PER_CHUNK], page = 0, copied = 0;

    collect(t);
    while (t->ops->next(t, 0, &page)) {
        uint64_t chunk = page / GUEST_CHUNK_PAGES;
        copied += take(t, chunk, bits);
        for (unsigned bit = 0; bit < GUEST_CHUNK_PAGES; bit++) {
            uint64_t offset = (chunk * GUEST_CHUNK_PAGES + bit) * PAGE;
            if (bits[bit / 64] >> bit % 64 & 1)
                memcpy(copy + offset, ram + offset, PAGE);
        }
        page = (chunk + 1) * GUEST_CHUNK_PAGES;
    }
    return copied;
}

/* `kind`: the stand-in's command for a thread that writes or reads into random pages. */
static void stress(const char *kind, unsigned threads, uint64_t size, unsigned rounds)
{
    char disk[] = "wander-disk-XXXXXX";
    uint64_t copied = 0, done = 0;

    require_userfaultfd();
    make_disk(disk);
    struct stand_in s = stand_in_start(size, PLAIN, disk);
    uint8_t *copy = calloc(1, size), *ram = s.memory.regions[0].host;
    if (!strcmp(kind, "reader"))
        require_direct_reads(&s, disk);
    struct tracker *t = track(&s);
    memcpy(copy, ram, size);
    for (unsigned i = 0; i < threads; i++)
        cr_assert_gt(tell(&s, kind, 0, 0), 0);
    for (unsigned round = 0; round < rounds;) {
        uint64_t pages = copy_round(t, ram, copy);
        copied += pages;
        round += pages > 0;
    }
    tell(&s, "stop", 0, 0);
    for (unsigned i = 0; i < threads; i++)
        done += (uint64_t)tell(&s, "count", i, 0);
    copied += copy_round(t, ram, copy);
    cr_log_info("%u times %s: %zu done, %zu pages copied", threads, kind, (size_t)done,
                (size_t)copied);
    cr_expect(done > 100 && copied > 100, "hardly anything happened: %zu done, %zu copied",
              (size_t)done, (size_t)copied);
    for (uint64_t page = 0; page < size / PAGE; page++)
        cr_assert_eq(memcmp(copy + page * PAGE, ram + page * PAGE, PAGE), 0,
                     "page %zu lost a write", (size_t)page);
    t->ops->close(t);
    free(copy);
    unlink(disk);
    stand_in_end(&s, 0);
}

Test(qemu_tracking, no_write_is_lost)
{
    stress("writer", 4, 32 * MIB, 40);
}

Test(qemu_tracking, no_write_is_lost_in_a_tight_place)
{
    stress("writer", 4, MIB, 1000);
}

Test(qemu_tracking, no_direct_read_is_lost)
{
    stress("reader", 4, MIB, 500);
}

static void expect_start(struct stand_in *s, int code, const char *text)
{
    struct tracker *t;
    struct error err = {0};
    int rc = 0;

    cr_assert_eq(qemu_tracker_new(s->pid, &s->memory, &t, &err), 0, "%s", err.text);
    rc = t->ops->start(t, &err);
    cr_expect_eq(rc, code, "start returns %d, expected %d: %s", rc, code, err.text);
    cr_expect(!text || strstr(err.text, text), "'%s' does not say '%s'", err.text, text);
    t->ops->close(t);
}

static void expect_reason(struct stand_in *s, const char *text)
{
    struct reasons reasons = {0};

    qemu_tracking_check(s->pid, &s->memory, &reasons);
    if (text)
        cr_expect(reasons.count == 1 && strstr(reasons.text, text), "'%s' does not say '%s'",
                  reasons.text ? reasons.text : "", text);
    else
        cr_expect_eq(reasons.count, 0, "unexpected: %s", reasons.text);
    reasons_free(&reasons);
}

Test(qemu_tracking, no_library)
{
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);

    require_userfaultfd();
    expect_start(&s, -ENOENT, "wander qemu-env");
    expect_reason(&s, "wander qemu-env");
    stand_in_end(&s, 0);
}

Test(qemu_tracking, a_process_that_is_gone)
{
    struct stand_in s = stand_in_start(MIB, PLAIN, NULL);

    stand_in_end(&s, SIGKILL);
    expect_reason(&s, "/pagemap");
}

/* A library of its own that listens where that of a QEMU should. */
Test(qemu_tracking, a_foreign_listener)
{
    struct stand_in s = stand_in_start(MIB, NO_LIBRARY, NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    int length = sprintf(address.sun_path + 1, PRELOAD_SOCKET_FORMAT, (int)s.pid);

    cr_assert_eq(bind(fd, (struct sockaddr *)&address,
                      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length)),
                 0);
    cr_assert_eq(listen(fd, 1), 0);
    expect_start(&s, -EPERM, "listens in the place");
    close(fd);
    stand_in_end(&s, 0);
}

Test(qemu_tracking, two_sessions)
{
    require_userfaultfd();
    struct stand_in s = stand_in_start(4 * MIB, PLAIN, NULL);

    tell(&s, "write", 0, 100);
    struct tracker *t = track(&s);
    expect_start(&s, -EBUSY, "another session");
    expect_reason(&s, "another session");
    tell(&s, "write", 9, 1);
    expect_dirty(t, "after another's attempts", 1, (const uint64_t[]){9});
    for (int i = 0; i < 50; i++) { /* one after another is no trouble */
        t->ops->stop(t);
        expect_reason(&s, NULL);
        struct error err = {0};
        cr_assert_eq(t->ops->start(t, &err), 0, "start %d: %s", i, err.text);
        expect_dirty(t, "started over", 0, NULL);
        tell(&s, "read-nothing", 9, 1);
        expect_dirty(t, "marked after starting over", 3, (const uint64_t[]){9, 10, 11});
    }
    t->ops->close(t);
    stand_in_end(&s, 0);
}

static int connect_to(pid_t pid)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = 20};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    int length = sprintf(address.sun_path + 1, PRELOAD_SOCKET_FORMAT, (int)pid);

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    cr_assert_eq(connect(fd, (struct sockaddr *)&address,
                         (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length)),
                 0, "%s", strerror(errno));
    return fd;
}

static void send_request(int socket, const void *request, size_t size, int fd)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec iov = {(void *)request, size};
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
    cr_assert_eq(sendmsg(socket, &message, MSG_NOSIGNAL), (ssize_t)size);
}

static const struct {
    const char *what;
    int error;
    size_t size;
    int seals, bytes; /* of the memfd; bytes 0: none goes along */
    struct preload_track track;
} requests[] = {
    {"too short", EBADMSG, 4, F_SEAL_SHRINK, PAGE, {PRELOAD_MAGIC, 1, {{PAGE, PAGE, 0}}}},
    {"no memfd", EBADMSG, sizeof(struct preload_track), 0, 0, {PRELOAD_MAGIC, 1, {{0, PAGE, 0}}}},
    {"magic", EBADMSG, sizeof(struct preload_track), F_SEAL_SHRINK, PAGE, {1, 1, {{0, PAGE, 0}}}},
    {"may shrink",
     EINVAL,
     sizeof(struct preload_track),
     0,
     PAGE,
     {PRELOAD_MAGIC, 1, {{PAGE, PAGE, 0}}}},
    {"no range", EINVAL, sizeof(struct preload_track), F_SEAL_SHRINK, PAGE, {PRELOAD_MAGIC, 0}},
    {"ranges",
     EINVAL,
     sizeof(struct preload_track),
     F_SEAL_SHRINK,
     PAGE,
     {PRELOAD_MAGIC, PRELOAD_MAX_RANGES + 1, {{PAGE, PAGE, 0}}}},
    {"beyond the marks",
     EINVAL,
     sizeof(struct preload_track),
     F_SEAL_SHRINK,
     PAGE,
     {PRELOAD_MAGIC, 1, {{0, (uint64_t)PAGE *(PAGE * 8 + 1), 0}}}},
    {"first bit beyond",
     EINVAL,
     sizeof(struct preload_track),
     F_SEAL_SHRINK,
     PAGE,
     {PRELOAD_MAGIC, 1, {{0, PAGE, 1ull << 63}}}},
    {"wraps",
     EINVAL,
     sizeof(struct preload_track),
     F_SEAL_SHRINK,
     PAGE,
     {PRELOAD_MAGIC, 1, {{UINT64_MAX - PAGE + 1, PAGE * 2, 0}}}},
};

static void expect_refused(pid_t pid, size_t i)
{
    struct preload_hello hello;
    struct preload_answer answer = {0};
    int socket = connect_to(pid), marks = -1;

    cr_assert_eq(recv(socket, &hello, sizeof(hello), 0), (ssize_t)sizeof(hello));
    if (requests[i].bytes) {
        marks = memfd_create("marks", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        cr_assert_eq(ftruncate(marks, requests[i].bytes), 0);
        fcntl(marks, F_ADD_SEALS, requests[i].seals);
    }
    send_request(socket, &requests[i].track, requests[i].size, marks);
    cr_expect_eq(recv(socket, &answer, sizeof(answer), 0), (ssize_t)sizeof(answer), "%s",
                 requests[i].what);
    cr_expect_eq(answer.error, requests[i].error, "%s: answered %d, expected %d", requests[i].what,
                 answer.error, requests[i].error);
    close(marks);
    close(socket);
}

/* Who connects and says nothing, or nonsense, keeps nobody out and ends nothing. */
Test(qemu_tracking, nonsense)
{
    require_userfaultfd();
    struct stand_in s = stand_in_start(4 * MIB, PLAIN, NULL);
    int silent[20];

    struct tracker *t = track(&s);
    for (size_t i = 0; i < 20; i++)
        silent[i] = connect_to(s.pid);
    for (size_t i = 0; i < 3; i++)
        expect_refused(s.pid, i);
    tell(&s, "write", 7, 1);
    expect_dirty(t, "in spite of the nonsense", 1, (const uint64_t[]){7});
    t->ops->close(t);
    for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++)
        expect_refused(s.pid, i);
    for (size_t i = 0; i < 20; i++)
        close(silent[i]);
    stand_in_end(&s, 0);
}

/* A session whose process is killed ends by itself, and another can begin. */
Test(qemu_tracking, a_tracker_that_dies)
{
    require_userfaultfd();
    struct stand_in s = stand_in_start(4 * MIB, PLAIN, NULL);

    tell(&s, "write", 0, 1024);
    pid_t child = fork();
    if (child == 0) {
        track(&s);
        kill(getpid(), SIGKILL);
    }
    waitpid(child, NULL, 0);
    tell(&s, "write", 0, 1024);
    cr_expect_eq(tell(&s, "read-nothing", 5, 1), -1);
    struct tracker *t = track(&s);
    tell(&s, "write", 7, 1);
    expect_dirty(t, "in the second session", 1, (const uint64_t[]){7});
    t->ops->close(t);
    stand_in_end(&s, 0);
}

static void expect_collect(struct tracker *t, int code, const char *text)
{
    struct error err = {0};
    uint64_t pages;
    int rc = t->ops->collect(t, &pages, &err);

    cr_expect_eq(rc, code, "collect returns %d, expected %d", rc, code);
    cr_expect(strstr(err.text, text), "'%s' does not say '%s'", err.text, text);
}

Test(qemu_tracking, a_qemu_that_dies)
{
    require_userfaultfd();
    struct stand_in s = stand_in_start(4 * MIB, PLAIN, NULL);
    struct tracker *t = track(&s);

    stand_in_end(&s, SIGKILL);
    expect_collect(t, -ECONNRESET, "has ended");
    t->ops->close(t);
}

/* What escapes the tracking ends it, and is remembered. */
Test(qemu_tracking, escapes)
{
    static const char *const cases[][2] = {{"native-aio", "native AIO"}, {"io-uring", "io_uring"}};

    require_userfaultfd();
    for (size_t i = 0; i < 2; i++) {
        struct stand_in s = stand_in_start(4 * MIB, PLAIN, NULL);
        struct tracker *t = track(&s);
        cr_expect_eq(tell(&s, cases[i][0], 0, 0), 0);
        expect_collect(t, -EOPNOTSUPP, cases[i][1]);
        t->ops->close(t);
        expect_start(&s, -EOPNOTSUPP, cases[i][1]);
        expect_reason(&s, "aio=threads");
        stand_in_end(&s, 0);
    }
}

/* The thread that waits for wander does not survive a fork, and is there again. */
Test(qemu_tracking, daemonized)
{
    require_userfaultfd();
    struct stand_in s = stand_in_start(4 * MIB, DAEMONIZE, NULL);

    cr_assert_neq(s.pid, s.started);
    tell(&s, "write", 0, 100);
    struct tracker *t = track(&s);
    tell(&s, "write", 7, 1);
    tell(&s, "read-nothing", 30, 1);
    expect_dirty(t, "after a fork", 4, (const uint64_t[]){7, 30, 31, 32});
    t->ops->close(t);
    stand_in_end(&s, SIGKILL);
}
