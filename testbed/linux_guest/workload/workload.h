/* What the small Linux guest does: it stamps and checks memory, writes and re-reads a disk, echoes
 * datagrams and watches its own clock, and reports once a second on its console. Every line that it
 * says begins with "wander-linux: ", a word, and then key=value pairs. */
#ifndef LINUX_GUEST_WORKLOAD_H
#define LINUX_GUEST_WORKLOAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { PAGE = 4096, MIB = 1 << 20 };

/* From the kernel's command line: wander.NAME=NUMBER. */
struct options {
    uint64_t ram;       /* MiB that are stamped and checked */
    uint64_t ram_rate;  /* pages a second; 0: as fast as it goes */
    uint64_t disk;      /* MiB at the beginning of /dev/vda that are written and re-read */
    uint64_t disk_rate; /* blocks a second; 0: as fast as they go */
    uint64_t readers;   /* threads that read the MiB behind it all the time */
    uint64_t echo;      /* UDP port to answer on; 0: none */
    uint64_t tick;      /* ms between two ticks */
};

/* One line on the console. Any thread. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Says why, and ends the guest. */
void give_up(const char *what) __attribute__((noreturn));

uint64_t now_ns(void); /* CLOCK_MONOTONIC */
/* Starts a thread that is never joined. */
void start_thread(void *(*run)(void *), void *argument);

/* Zeroed, page-aligned memory of one's own. */
void *take_memory(uint64_t size);

/* A promise to do so many things a second. */
struct pace {
    uint64_t rate, done, began_ns;
};

/* Sleeps until `more` things are due. Time that was missed is not made up for. */
void pace_keep(struct pace *p, uint64_t more);

/* Whether the loops rest, on the tester's word. */
struct rest {
    atomic_bool resting;
};

void rest_while_told(struct rest *r);

struct ram;

/* Takes the memory and stamps all of it; nothing is written yet after that. */
struct ram *ram_new(const struct options *o, struct rest *rest);
void ram_start(struct ram *r);
/* Checks every page while the writer waits; how many were bad. */
uint64_t ram_check(struct ram *r);

struct ram_account {
    uint64_t passes, pages, bad;
};

void ram_account(struct ram *r, struct ram_account *out);

struct disk;

/* Opens the disk and writes every block once; NULL when there is none. */
struct disk *disk_new(const struct options *o, struct rest *rest);
void disk_start(struct disk *d);
/* Reads every block while the writer waits; how many were bad. */
uint64_t disk_check(struct disk *d);
uint64_t disk_blocks(const struct disk *d);

struct disk_account {
    uint64_t writes, reads, bad;
};

void disk_account(struct disk *d, struct disk_account *out); /* all 0 for NULL */

struct readers;

/* Writes what will be read; none when the options say none. */
struct readers *readers_new(const struct options *o, struct rest *rest);
void readers_start(struct readers *r);
/* Checks all that was read and is still there; how many were bad. */
uint64_t readers_check(struct readers *r);
void readers_account(struct readers *r, struct disk_account *add);

/* A thread before all others that wakes every few milliseconds. */
struct ticker {
    uint64_t interval_ns;
    _Atomic uint64_t ticks, gap_ns;
};

void ticker_start(struct ticker *t, uint64_t interval_ms);
/* The longest time between two ticks since this was called last. */
uint64_t ticker_gap(struct ticker *t);

/* Answers every datagram with itself; counts them. */
struct echo {
    int socket;
    _Atomic uint64_t answered;
};

void echo_start(struct echo *e, uint64_t port);

#endif
