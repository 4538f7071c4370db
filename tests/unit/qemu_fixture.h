/* A process that stands in for a QEMU (tests/qemu_stand_in.c), and its RAM mapped here too. */
#ifndef TESTS_UNIT_QEMU_FIXTURE_H
#define TESTS_UNIT_QEMU_FIXTURE_H

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migrate/guest/qemu/memory.h"

#define MIB (1ull << 20)

struct stand_in {
    pid_t started, pid; /* they differ when it daemonises */
    FILE *commands, *answers;
    struct qemu_memory memory;
};

enum stand_in_options { PLAIN = 0, NO_LIBRARY = 1, DAEMONIZE = 2 };

static inline void stand_in_exec(const char *path, uint64_t size, unsigned options,
                                 const int pipes[4])
{
    char bytes[32];

    snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)size);
    dup2(pipes[0], STDIN_FILENO);
    dup2(pipes[3], STDOUT_FILENO);
    for (int i = 0; i < 4; i++)
        close(pipes[i]);
    unsetenv("LD_PRELOAD");
    if (!(options & NO_LIBRARY))
        setenv("LD_PRELOAD", QEMU_LIBRARY, 1);
    execl(QEMU_STAND_IN, QEMU_STAND_IN, path, bytes, options & DAEMONIZE ? "daemonize" : NULL,
          (char *)NULL);
    _exit(127);
}

/* `disk`: what its direct reads read; may be NULL. */
static inline struct stand_in stand_in_start(uint64_t size, unsigned options, const char *disk)
{
    struct stand_in s = {.memory = {.count = 1, .bytes = size}};
    char path[] = "/dev/shm/wander-test-XXXXXX";
    unsigned long long address;
    int pipes[4], pid;
    int file = mkstemp(path);

    cr_assert(file >= 0 && ftruncate(file, (off_t)size) == 0, "cannot make a file in /dev/shm: %s",
              strerror(errno));
    cr_assert(pipe2(pipes, O_CLOEXEC) == 0 && pipe2(pipes + 2, O_CLOEXEC) == 0);
    setenv("DISK", disk ? disk : "", 1);
    s.started = fork();
    if (s.started == 0)
        stand_in_exec(path, size, options, pipes);
    close(pipes[0]);
    close(pipes[3]);
    s.commands = fdopen(pipes[1], "w");
    s.answers = fdopen(pipes[2], "r");
    cr_assert_eq(fscanf(s.answers, "%d %llx", &pid, &address), 2, "the stand-in did not start");
    unlink(path);
    s.pid = pid;
    s.memory.file[0] = file;
    s.memory.address[0] = address;
    s.memory.regions[0] = (struct guest_region){.name = "ram", .size = size};
    s.memory.regions[0].host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    cr_assert_neq(s.memory.regions[0].host, MAP_FAILED);
    return s;
}

/* What the stand-in answers. */
static inline long tell(struct stand_in *s, const char *command, uint64_t page, uint64_t count)
{
    long answer = -1;

    fprintf(s->commands, "%s %llu %llu\n", command, (unsigned long long)page,
            (unsigned long long)count);
    fflush(s->commands);
    cr_assert_eq(fscanf(s->answers, "%ld", &answer), 1, "the stand-in ended at '%s'", command);
    return answer;
}

/* By itself, or by a signal. */
static inline void stand_in_end(struct stand_in *s, int by_signal)
{
    if (by_signal)
        kill(s->pid, by_signal);
    fclose(s->commands);
    fclose(s->answers);
    while (waitpid(s->started, NULL, 0) < 0 && errno == EINTR)
        ;
    munmap(s->memory.regions[0].host, s->memory.regions[0].size);
    close(s->memory.file[0]);
}

#endif
