#include "block.h"

#include <stddef.h>

static uint32_t crc_of_byte(uint32_t byte)
{
    for (int bit = 0; bit < 8; bit++)
        byte = byte >> 1 ^ (byte & 1 ? 0xedb88320u : 0);
    return byte;
}

static uint32_t crc32_add(const uint32_t table[256], uint32_t crc, const void *bytes, size_t size)
{
    const uint8_t *p = bytes;

    for (size_t i = 0; i < size; i++)
        crc = table[(crc ^ p[i]) & 0xff] ^ crc >> 8;
    return crc;
}

static uint32_t block_sum(const struct block *b)
{
    uint32_t table[256], crc;

    for (uint32_t i = 0; i < 256; i++)
        table[i] = crc_of_byte(i);
    crc = crc32_add(table, ~0u, b, offsetof(struct block, sum));
    return ~crc32_add(table, crc, b->body, sizeof b->body);
}

void block_fill(struct block *b, uint64_t number, uint64_t sequence)
{
    uint32_t state = (uint32_t)(number * 2654435761u + sequence * 40503u) | 1;

    b->magic = BLOCK_MAGIC;
    b->number = number;
    b->sequence = sequence;
    for (size_t i = 0; i < sizeof b->body / sizeof b->body[0]; i++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        b->body[i] = state;
    }
    b->sum = block_sum(b);
}

const char *block_check(const struct block *b, uint64_t number, uint64_t sequence)
{
    if (b->magic != BLOCK_MAGIC)
        return "no-block";
    if (b->sum != block_sum(b))
        return "checksum";
    if (b->number != number)
        return "misplaced";
    return b->sequence == sequence ? NULL : "stale";
}
