/* Bounded little-endian cursors: the only way bytes enter or leave a wire structure. An access
 * beyond the end sets `failed` and reads as zero, so a decoder checks once, at its end. */
#ifndef TRANSPORT_BASE_WIRE_H
#define TRANSPORT_BASE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wire_writer {
    uint8_t *at, *end;
    bool failed;
};

struct wire_reader {
    const uint8_t *at, *end;
    bool failed;
};

struct wire_writer wire_writer(void *buffer, size_t size);
struct wire_reader wire_reader(const void *bytes, size_t size);

void wire_put_u8(struct wire_writer *w, uint8_t value);
void wire_put_u16(struct wire_writer *w, uint16_t value);
void wire_put_u32(struct wire_writer *w, uint32_t value);
void wire_put_u64(struct wire_writer *w, uint64_t value);
void wire_put_bytes(struct wire_writer *w, const void *bytes, size_t size);
/* A fixed field of `size` bytes holding `text`, cut if longer than size-1, padded with zeros. */
void wire_put_text(struct wire_writer *w, const char *text, size_t size);

uint8_t wire_get_u8(struct wire_reader *r);
uint16_t wire_get_u16(struct wire_reader *r);
uint32_t wire_get_u32(struct wire_reader *r);
uint64_t wire_get_u64(struct wire_reader *r);
void wire_get_bytes(struct wire_reader *r, void *bytes, size_t size);
/* Reads a fixed field into `text` (which has `size` bytes); fails unless it holds a terminating
 * zero and only printable ASCII before it. */
void wire_get_text(struct wire_reader *r, char *text, size_t size);
/* A view of the next `size` bytes, or NULL (and failed) when there are fewer. */
const void *wire_get_view(struct wire_reader *r, size_t size);
/* True when every byte was read and nothing failed. */
bool wire_reader_done(const struct wire_reader *r);
size_t wire_reader_left(const struct wire_reader *r);

#endif
