/* Page tables, and where the pages of the hot set are. */
#ifndef LAB_IMAGE_MEMORY_H
#define LAB_IMAGE_MEMORY_H

#include <stdint.h>

#include "boot_info.h"
#include "migrate/guest/lab/abi.h"

enum { PAGE_SIZE = 4096 };

/* The hot set: `pages` pages from `base` on; those from index `split` on lie `skip` bytes further
 * up (the hole). */
struct hot_set {
    uint64_t pages, base, split, skip;
};

/* Maps all RAM above 4 GiB one to one; what is below, the boot assembler has mapped. */
void memory_map_high(uint64_t pages);
/* Panics when the hot set does not lie within the workload's area. */
void hot_set_place(struct hot_set *hot, const struct memory *memory, uint64_t at, uint64_t pages);

static inline void *hot_set_page(const struct hot_set *hot, uint64_t index)
{
    uint64_t address = hot->base + index * PAGE_SIZE;

    return (void *)(index < hot->split ? address : address + hot->skip);
}

/* The sequence number that each hot page was last stamped with; 0: never. */
static inline uint32_t *sequence_table(void)
{
    return (uint32_t *)LAB_SEQUENCE_TABLE;
}

#endif
