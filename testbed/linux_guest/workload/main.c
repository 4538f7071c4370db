/* The guest's only program after init: starts the loads, reports every second, and does what it is
 * told on the console: "check", "stop-load", "start-load". */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "workload.h"

struct workload {
    struct options options;
    struct rest rest;
    struct ram *ram;
    struct disk *disk;
    struct readers *readers;
    struct ticker ticker;
    struct echo echo;
};

void say(const char *format, ...)
{
    char line[512] = "wander-linux: ";
    size_t prefix = strlen(line), size;
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line + prefix, sizeof line - prefix - 1, format, arguments);
    va_end(arguments);
    size = strlen(line);
    line[size++] = '\n';
    if (write(STDOUT_FILENO, line, size) != (ssize_t)size)
        return;
}

void give_up(const char *what)
{
    say("panic %s", what);
    sleep(1);
    reboot(RB_POWER_OFF);
    _exit(1);
}

void start_thread(void *(*run)(void *), void *argument)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, run, argument))
        give_up("a thread cannot be started");
    pthread_detach(thread);
}

void *take_memory(uint64_t size)
{
    void *memory =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (memory == MAP_FAILED)
        give_up("no memory: give the guest more, or wander.ram= less");
    return memory;
}

/* Sets *value if the command line has wander.NAME=NUMBER. */
static void read_option(const char *command_line, const char *name, uint64_t *value)
{
    char key[64];
    const char *found;

    snprintf(key, sizeof key, "wander.%s=", name);
    found = strstr(command_line, key);
    if (found)
        *value = strtoull(found + strlen(key), NULL, 10);
}

static void read_options(struct options *o)
{
    char text[4096] = "";
    int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);

    if (size < 0)
        give_up("/proc/cmdline cannot be read");
    close(file);
    text[size] = '\0';
    read_option(text, "ram", &o->ram);
    read_option(text, "ram_rate", &o->ram_rate);
    read_option(text, "disk", &o->disk);
    read_option(text, "disk_rate", &o->disk_rate);
    read_option(text, "readers", &o->readers);
    read_option(text, "echo", &o->echo);
    read_option(text, "tick", &o->tick);
}

static double uptime(void)
{
    struct timespec now;

    clock_gettime(CLOCK_BOOTTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void report(struct workload *w, uint64_t sequence)
{
    struct ram_account ram;
    struct disk_account disk;

    ram_account(w->ram, &ram);
    disk_account(w->disk, &disk);
    readers_account(w->readers, &disk);
    say("report seq=%llu uptime=%.3f ram_passes=%llu ram_pages=%llu ram_bad=%llu disk_writes=%llu "
        "disk_reads=%llu disk_bad=%llu echoed=%llu ticks=%llu gap_ms=%.1f",
        (unsigned long long)sequence, uptime(), (unsigned long long)ram.passes,
        (unsigned long long)ram.pages, (unsigned long long)ram.bad, (unsigned long long)disk.writes,
        (unsigned long long)disk.reads, (unsigned long long)disk.bad,
        (unsigned long long)atomic_load(&w->echo.answered),
        (unsigned long long)atomic_load(&w->ticker.ticks), (double)ticker_gap(&w->ticker) / 1e6);
}

static void *report_often(void *argument)
{
    struct workload *w = argument;

    for (uint64_t sequence = 1;; sequence++) {
        sleep(1);
        report(w, sequence);
    }
    return NULL;
}

static void check(struct workload *w, uint64_t number)
{
    uint64_t ram = ram_check(w->ram);
    uint64_t disk = disk_check(w->disk) + readers_check(w->readers);

    say("check number=%llu uptime=%.3f ram_pages=%llu ram_bad=%llu disk_blocks=%llu disk_bad=%llu",
        (unsigned long long)number, uptime(), (unsigned long long)(w->options.ram * (MIB / PAGE)),
        (unsigned long long)ram, (unsigned long long)disk_blocks(w->disk),
        (unsigned long long)disk);
}

static void set_rest(struct workload *w, bool resting)
{
    atomic_store(&w->rest.resting, resting);
    say("load resting=%d", resting);
}

static void obey(struct workload *w)
{
    char line[64];
    uint64_t checks = 0;

    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\r\n")] = '\0';
        if (!strcmp(line, "check"))
            check(w, ++checks);
        else if (!strcmp(line, "stop-load") || !strcmp(line, "start-load"))
            set_rest(w, !strcmp(line, "stop-load"));
        else if (line[0])
            say("unknown command");
    }
}

static void make_quiet(void)
{
    struct termios terminal;

    if (tcgetattr(STDIN_FILENO, &terminal))
        return;
    terminal.c_lflag &= ~(tcflag_t)(ECHO | ISIG);
    tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
}

int main(void)
{
    struct workload *w = calloc(1, sizeof *w);

    if (!w)
        return 1;
    signal(SIGHUP, SIG_IGN);
    make_quiet();
    w->options = (struct options){.ram = 128, .disk = 8, .tick = 1};
    read_options(&w->options);
    w->ram = ram_new(&w->options, &w->rest);
    w->disk = disk_new(&w->options, &w->rest);
    w->readers = readers_new(&w->options, &w->rest);
    ticker_start(&w->ticker, w->options.tick);
    echo_start(&w->echo, w->options.echo);
    say("ready uptime=%.3f ram_pages=%llu disk_blocks=%llu", uptime(),
        (unsigned long long)(w->options.ram * (MIB / PAGE)),
        (unsigned long long)disk_blocks(w->disk));
    ram_start(w->ram);
    disk_start(w->disk);
    readers_start(w->readers);
    start_thread(report_often, w);
    obey(w);
    while (true)
        pause();
}
