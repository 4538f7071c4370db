/* What the tests of dirty tracking and throttling track and throttle in the place of a QEMU: a
 * process that maps a shared file as its RAM and does with it what it reads on stdin, a line a
 * command, answering each with a line. Arguments: the file, its size in bytes, and "daemonize" to
 * fork first, as QEMU's -daemonize does: with a thread already there. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS = 4 };

/* Weak: there when the library is preloaded. */
extern int io_setup(int events, void **context) __attribute__((weak));
extern int io_uring_submit(void *ring) __attribute__((weak));

struct machine {
    int file;
    uint8_t *ram;
    uint64_t pages;
    char disk[256]; /* what direct readers read */
    atomic_bool stop;
    atomic_ullong counts[THREADS];
    unsigned running;
    pthread_t threads[THREADS];
};

static atomic_long signals; /* that arrived */

static void count_signal(int signal)
{
    (void)signal;
    atomic_fetch_add(&signals, 1);
}

/* Sends one to a thread and waits for it to arrive, a minute at most. */
static long send_signal(pid_t thread)
{
    long before = atomic_load(&signals);

    syscall(SYS_tgkill, getpid(), thread, SIGUSR1);
    for (int i = 0; i < 60000 && atomic_load(&signals) == before; i++)
        usleep(1000);
    return atomic_load(&signals);
}

struct job {
    struct machine *m;
    unsigned number;
};

static uint64_t next_random(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void *write_at_random(void *argument)
{
    struct job *job = argument;
    struct machine *m = job->m;
    uint64_t x = job->number * 0x9e3779b97f4a7c15ull + 1;

    while (!atomic_load(&m->stop)) {
        uint64_t r = next_random(&x);
        ((volatile uint64_t *)m->ram)[(r >> 20) % m->pages * 512 + r % 512] = r;
        atomic_fetch_add(&m->counts[job->number], 1);
    }
    free(job);
    return NULL;
}

static void *read_at_random(void *argument)
{
    struct job *job = argument;
    struct machine *m = job->m;
    uint64_t x = job->number * 0x9e3779b97f4a7c15ull + 1;
    int fd = open(m->disk, O_RDONLY | O_DIRECT);

    while (!atomic_load(&m->stop)) {
        uint64_t r = next_random(&x);
        struct iovec iov = {m->ram + (r >> 20) % m->pages * PAGE, PAGE};
        if (preadv(fd, &iov, 1, (off_t)(r % 64 * PAGE)) == PAGE)
            atomic_fetch_add(&m->counts[job->number], 1);
    }
    close(fd);
    free(job);
    return NULL;
}

/* Sleeps where only a fatal signal can wake it: a parent waits so for its vfork child. */
static void *sleep_in_the_kernel(void *argument)
{
    struct job *job = argument;

    while (!atomic_load(&job->m->stop)) {
        pid_t child = vfork();
        if (child == 0) {
            struct timespec second = {.tv_sec = 1};
            nanosleep(&second, NULL);
            _exit(0);
        }
        atomic_fetch_add(&job->m->counts[job->number], 1);
    }
    free(job);
    return NULL;
}

/* As busy as a vCPU. */
static void *count_up(void *argument)
{
    struct job *job = argument;

    while (!atomic_load(&job->m->stop))
        atomic_fetch_add_explicit(&job->m->counts[job->number], 1, memory_order_relaxed);
    free(job);
    return NULL;
}

struct start {
    void *(*main)(void *);
    struct job *job;
    atomic_int thread;
};

static void *tell_and_run(void *argument)
{
    struct start *start = argument;
    void *(*body)(void *) = start->main;
    struct job *job = start->job;

    atomic_store(&start->thread, gettid());
    return body(job);
}

static int start_thread(struct machine *m, void *(*body)(void *))
{
    struct start start = {.main = body, .job = malloc(sizeof(struct job))};

    if (!start.job || m->running == THREADS)
        return -1;
    *start.job = (struct job){m, m->running};
    pthread_create(&m->threads[m->running++], NULL, tell_and_run, &start);
    while (!atomic_load(&start.thread))
        usleep(100);
    return start.thread;
}

static void stop_threads(struct machine *m)
{
    atomic_store(&m->stop, true);
    for (unsigned i = 0; i < m->running; i++)
        pthread_join(m->threads[i], NULL);
    m->running = 0;
    atomic_store(&m->stop, false);
}

static long read_directly(struct machine *m, uint64_t page)
{
    struct iovec iov = {m->ram + page * PAGE, PAGE};
    int fd = open(m->disk, O_RDONLY | O_DIRECT);
    ssize_t got = fd < 0 ? -1 : preadv(fd, &iov, 1, PAGE);
    int code = errno;

    if (fd >= 0)
        close(fd);
    return got < 0 ? -code : got;
}

/* A read that moves nothing. */
static long read_nothing(struct machine *m, uint64_t page)
{
    int pipes[2];

    if (pipe2(pipes, O_NONBLOCK) < 0)
        return -errno;
    ssize_t got = read(pipes[0], m->ram + page * PAGE + 100, 2 * PAGE);
    close(pipes[0]);
    close(pipes[1]);
    return got;
}

static long advise(struct machine *m, uint64_t page, uint64_t count, int advice)
{
    return madvise(m->ram + page * PAGE, count * PAGE, advice) < 0 ? -errno : 0;
}

static long punch(struct machine *m, uint64_t page, uint64_t count)
{
    return fallocate(m->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * PAGE),
                     (off_t)(count * PAGE));
}

static void write_pages(struct machine *m, uint64_t page, uint64_t count)
{
    for (uint64_t i = page; i < page + count; i++)
        m->ram[i * PAGE + i % PAGE]++;
}

static long run(struct machine *m, const char *command, uint64_t page, uint64_t count)
{
    if (!strcmp(command, "write"))
        return write_pages(m, page, count), 0;
    if (!strcmp(command, "touch"))
        return *(volatile uint8_t *)(m->ram + page * PAGE);
    if (!strcmp(command, "drop"))
        return advise(m, page, count, MADV_DONTNEED);
    if (!strcmp(command, "page-out"))
        return advise(m, page, count, MADV_PAGEOUT);
    if (!strcmp(command, "punch"))
        return punch(m, page, count);
    if (!strcmp(command, "grow"))
        return pwrite(m->file, "x", 1, (off_t)(page * PAGE));
    if (!strcmp(command, "read-directly"))
        return read_directly(m, page);
    if (!strcmp(command, "read-nothing"))
        return read_nothing(m, page);
    if (!strcmp(command, "writer"))
        return start_thread(m, write_at_random);
    if (!strcmp(command, "reader"))
        return start_thread(m, read_at_random);
    if (!strcmp(command, "counter"))
        return start_thread(m, count_up);
    if (!strcmp(command, "sleeper"))
        return start_thread(m, sleep_in_the_kernel);
    if (!strcmp(command, "count"))
        return (long)atomic_load(&m->counts[page]);
    if (!strcmp(command, "signal"))
        return send_signal((pid_t)page);
    if (!strcmp(command, "signals"))
        return atomic_load(&signals);
    if (!strcmp(command, "stop"))
        return stop_threads(m), 0;
    if (!strcmp(command, "native-aio"))
        return io_setup ? (io_setup(1, NULL), 0) : -1;
    if (!strcmp(command, "io-uring"))
        return io_uring_submit ? (io_uring_submit(NULL), 0) : -1;
    return -1000;
}

static void *do_nothing(void *argument)
{
    return argument;
}

static void daemonize(void)
{
    pthread_t early;

    pthread_create(&early, NULL, do_nothing, NULL);
    pthread_join(early, NULL);
    usleep(100000); /* so that the thread for wander is there to be lost */
    if (fork() > 0)
        _exit(0);
}

int main(int argc, char **argv)
{
    struct machine m = {0};
    pthread_t first;
    char line[512], command[32];
    unsigned long long a, b;

    if (argc < 3)
        return 2;
    signal(SIGUSR1, count_signal);
    if (argc > 3 && !strcmp(argv[3], "daemonize"))
        daemonize();
    pthread_create(&first, NULL, do_nothing, NULL);
    pthread_join(first, NULL);
    m.pages = strtoull(argv[2], NULL, 10) / PAGE;
    m.file = open(argv[1], O_RDWR | O_CREAT, 0600);
    if (m.file < 0 || ftruncate(m.file, (off_t)(m.pages * PAGE)) < 0)
        return 1;
    m.ram = mmap(NULL, m.pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m.file, 0);
    if (m.ram == MAP_FAILED)
        return 1;
    snprintf(m.disk, sizeof(m.disk), "%s", getenv("DISK") ? getenv("DISK") : "");
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("%d %p\n", (int)getpid(), (void *)m.ram);
    while (fgets(line, sizeof(line), stdin)) {
        a = b = 0;
        if (sscanf(line, "%31s %llu %llu", command, &a, &b) < 1)
            break;
        printf("%ld\n", run(&m, command, a, b));
    }
    return 0;
}
