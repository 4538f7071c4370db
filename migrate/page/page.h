/* Page encodings: how the bytes of a page travel when they do not travel as they are. So far: zero.
 * A blob holds runs of pages of one region, all in one encoding; it is built at the source and
 * decoded on a lane thread of the destination. */
#ifndef MIGRATE_PAGE_PAGE_H
#define MIGRATE_PAGE_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migrate/guest/guest.h"
#include "transport/base/error.h"

enum { PAGE_BLOB_SIZE = 4096 };

enum page_encoding { PAGE_ENCODING_ZERO = 1 };

/* True when all 4096 bytes are zero. Reads one cache line of a page that is not; `page` is page
 * aligned. */
bool page_is_zero(const void *page);

/* A blob being built. Wire form, little-endian: u8 encoding, u8 0, u16 runs, u32 region, then per
 * run u64 first page, u32 pages, u32 0. */
struct page_blob {
    uint8_t bytes[PAGE_BLOB_SIZE];
    size_t size;
    unsigned runs;
};

void page_blob_begin(struct page_blob *blob, enum page_encoding encoding, uint32_t region);
/* Adds a run (joined to the last one where adjacent); false when it was not added, because the blob
 * is full or the run does not lie behind the last one: then it takes a new blob. An empty blob
 * takes any run; `pages` is at least 1. */
bool page_blob_add(struct page_blob *blob, uint64_t first_page, uint32_t pages);

/* Where a decoder may write: the regions of the destination's guest, indexed by id. */
struct page_target {
    const struct guest_region *regions;
    unsigned count;
};

/* A transport_decode_fn with a `const struct page_target *` as context: applies a blob. Every run
 * is checked against its region before a byte is written. A run of zeros over memory that was never
 * touched leaves it untouched where that can be told cheaply (mincore is no such thing; reading an
 * anonymous hole maps the zero page and costs no memory). -EPROTO. */
int page_decode(void *context, const void *bytes, size_t size, struct error *err);

#endif
