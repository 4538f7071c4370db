/* What the VMM tells at boot: hvm_start_info, its memory map and command line (Xen's
 * public/arch-x86/hvm/start_info.h), read once, before any memory below 1 MiB is reused. */
#ifndef LAB_IMAGE_BOOT_INFO_H
#define LAB_IMAGE_BOOT_INFO_H

#include <stdint.h>

/* The command line's numbers, as ../abi.h names them. */
struct parameters {
    uint64_t vcpus, hot, hot_at, rate, pattern, hot_share, window, seed;
};

/* The workload's area: pages from LAB_WORKLOAD_START to the hole, and from 4 GiB on. */
struct memory {
    uint64_t low_pages, high_pages;
    uint64_t bytes; /* all RAM of the memory map */
};

/* Panics where there is no memory map, or a key's value is no number. */
void boot_info_read(uint64_t start_info, struct parameters *parameters, struct memory *memory);

#endif
