/* A block of the disk as the workload writes it: the test reads the same layout from the image. */
#ifndef LINUX_GUEST_BLOCK_H
#define LINUX_GUEST_BLOCK_H

#include <stdint.h>

#define BLOCK_MAGIC 0x6b636f6c62646e77ull

enum { BLOCK = 16384 };

struct block {
    uint64_t magic, number, sequence;
    uint32_t sum; /* CRC-32 of all but itself */
    uint32_t body[(BLOCK - 28) / 4];
};

_Static_assert(sizeof(struct block) == BLOCK, "a block has no padding");

void block_fill(struct block *b, uint64_t number, uint64_t sequence);
/* NULL when it is block `number` as it was written with `sequence`, else what it is instead. */
const char *block_check(const struct block *b, uint64_t number, uint64_t sequence);

#endif
