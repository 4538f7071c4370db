/* What the lab guest's image and its VMM agree on. Included by both; the image is freestanding.
 *
 * Boot: PVH (Xen's HVM direct boot ABI: 32-bit protected mode, EBX = struct hvm_start_info, its memory map and command line
 * are used), so `qemu-system-x86_64 -kernel` boots the same file. Application processors start by INIT/SIPI through
 * the local APIC. Under QEMU the ports below do not exist: a read of LAB_PORT_MAGIC that gives anything but LAB_MAGIC
 * says so, and the image falls back to the TSC as its clock and to spinning as its pacing.
 *
 * Memory: the image and all it needs (page tables, stacks, the sequence table) live below LAB_WORKLOAD_START; everything
 * above it, as the memory map gives it (RAM ends at 3 GiB at the latest and goes on at 4 GiB), is the workload's area, numbered through
 * as if it had no hole.
 *
 * Console (COM1, polled): every line begins with "wander-guest: " and a word, then key=value pairs:
 *   ready vcpus=N memory=BYTES hot=BYTES clock=vmm-port|tsc                 once, before the first write
 *   stat written=N rate=N                                                   about once a second (pages, pages/s); see
 *                                                                           LAB_PORT_WRITTEN
 *   moved move=N gap_ns=N                                                   after a migration (or a gap under QEMU)
 *   check move=N pages=N bad=N [page=N result=torn|stale|misplaced|corrupt]  after a self-check; the first bad one
 * and a fatal "panic ..." line. A received 'c' asks for a self-check of every page of the hot set ever stamped; each vCPU checks its
 * own share between two writes, and one line reports for all. After a migration a check is made without being asked. */
#ifndef MIGRATE_GUEST_LAB_ABI_H
#define MIGRATE_GUEST_LAB_ABI_H

#define LAB_PORT_SERIAL     0x3f8
#define LAB_PORT_CLOCK_LOW  0x600 /* in, 32 bit: low half of the clock in ns; latches the high half (per vCPU) */
#define LAB_PORT_CLOCK_HIGH 0x604 /* in, 32 bit: the latched half */
#define LAB_PORT_SLEEP      0x608 /* out, 32 bit: rest for up to so many ns; may return early */
#define LAB_PORT_MOVES      0x60c /* in, 32 bit: how many times this guest was resumed on another host */
#define LAB_PORT_MAGIC      0x610 /* in, 32 bit: LAB_MAGIC */
#define LAB_PORT_SLEPT      0x618 /* in, 32 bit: how long this vCPU's latest rest was, in ns, up to the pause if one ended it */
#define LAB_PORT_EXIT       0x614 /* out, 32 bit: the guest cannot go on; the VMM reports it and pauses it */
#define LAB_PORT_WRITTEN    0x61c /* out, 32 bit: low half of the pages written so far; about every 10 ms, one exit each */

#define LAB_MAGIC 0x52444e57u /* "WNDR" */

/* The clock is CLOCK_MONOTONIC of the host the guest was started on, carried along at each move, and goes on while the guest is
 * paused. */

#define LAB_IMAGE_START    0x00100000ull /* the ELF's load address */
#define LAB_SEQUENCE_TABLE 0x00800000ull /* u32 per hot page, up to LAB_WORKLOAD_START */
#define LAB_WORKLOAD_START 0x01000000ull
#define LAB_MAX_HOT_PAGES  ((LAB_WORKLOAD_START - LAB_SEQUENCE_TABLE) / 4)
#define LAB_LOW_RAM_END    0xc0000000ull /* 3 GiB */
#define LAB_HIGH_RAM_START 0x100000000ull

/* Command line: decimal numbers, all optional, unknown keys ignored:
 *   vcpus=N hot=PAGES hot_at=PAGES rate=PAGES_PER_S (0: as fast as it can) pattern=0..3 (enum workload_pattern)
 *   hot_share=PERCENT window=PAGES seed=N */

#endif
