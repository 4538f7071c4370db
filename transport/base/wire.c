#include "transport/base/wire.h"

#include <string.h>

struct wire_writer wire_writer(void *buffer, size_t size)
{
    uint8_t *start = buffer;

    return (struct wire_writer){.at = start, .end = start + size};
}

struct wire_reader wire_reader(const void *bytes, size_t size)
{
    const uint8_t *start = bytes;

    return (struct wire_reader){.at = start, .end = start + size};
}

/* Takes the next `size` bytes, or NULL; once failed, always failed. */
static uint8_t *wire_claim(struct wire_writer *w, size_t size)
{
    uint8_t *at = w->at;

    if (w->failed || (size_t)(w->end - at) < size) {
        w->failed = true;
        return NULL;
    }
    w->at += size;
    return at;
}

static void wire_put(struct wire_writer *w, uint64_t value, size_t size)
{
    uint8_t *at = wire_claim(w, size);

    for (size_t i = 0; at && i < size; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

void wire_put_u8(struct wire_writer *w, uint8_t value)
{
    wire_put(w, value, sizeof(value));
}

void wire_put_u16(struct wire_writer *w, uint16_t value)
{
    wire_put(w, value, sizeof(value));
}

void wire_put_u32(struct wire_writer *w, uint32_t value)
{
    wire_put(w, value, sizeof(value));
}

void wire_put_u64(struct wire_writer *w, uint64_t value)
{
    wire_put(w, value, sizeof(value));
}

void wire_put_bytes(struct wire_writer *w, const void *bytes, size_t size)
{
    uint8_t *at = wire_claim(w, size);

    if (at && size)
        memcpy(at, bytes, size);
}

void wire_put_text(struct wire_writer *w, const char *text, size_t size)
{
    uint8_t *at = wire_claim(w, size);
    size_t length;

    if (!at || !size)
        return;
    length = strnlen(text, size - 1);
    memcpy(at, text, length);
    memset(at + length, 0, size - length);
}

const void *wire_get_view(struct wire_reader *r, size_t size)
{
    const uint8_t *at = r->at;

    if (r->failed || wire_reader_left(r) < size) {
        r->failed = true;
        return NULL;
    }
    r->at += size;
    return at;
}

static uint64_t wire_get(struct wire_reader *r, size_t size)
{
    const uint8_t *at = wire_get_view(r, size);
    uint64_t value = 0;

    for (size_t i = 0; at && i < size; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

uint8_t wire_get_u8(struct wire_reader *r)
{
    return (uint8_t)wire_get(r, sizeof(uint8_t));
}

uint16_t wire_get_u16(struct wire_reader *r)
{
    return (uint16_t)wire_get(r, sizeof(uint16_t));
}

uint32_t wire_get_u32(struct wire_reader *r)
{
    return (uint32_t)wire_get(r, sizeof(uint32_t));
}

uint64_t wire_get_u64(struct wire_reader *r)
{
    return wire_get(r, sizeof(uint64_t));
}

void wire_get_bytes(struct wire_reader *r, void *bytes, size_t size)
{
    const void *at = wire_get_view(r, size);

    if (!size)
        return;
    if (at)
        memcpy(bytes, at, size);
    else
        memset(bytes, 0, size);
}

/* True for a terminated field that holds nothing but printable ASCII before its zero. */
static bool is_printable_text(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (!text[i])
            return true;
        if (text[i] < 0x20 || text[i] > 0x7e)
            return false;
    }
    return false;
}

void wire_get_text(struct wire_reader *r, char *text, size_t size)
{
    wire_get_bytes(r, text, size);
    if (is_printable_text(text, size))
        return;
    r->failed = true;
    if (size)
        text[0] = '\0';
}

bool wire_reader_done(const struct wire_reader *r)
{
    return !r->failed && r->at == r->end;
}

size_t wire_reader_left(const struct wire_reader *r)
{
    return (size_t)(r->end - r->at);
}
