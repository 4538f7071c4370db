/* Feeds bytes to the decoder of page blobs. It may refuse them, then no byte of the guest has
 * changed; if it takes them, nothing but whole pages of zeros was written, inside the regions.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address -D_GNU_SOURCE -I. tests/fuzz/page_blob.c
 * migrate/page/[a-z]*.c \ transport/base/error.c transport/base/wire.c -o page_blob && ./page_blob
 * -max_len=4200
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/page/page.h"

enum { FUZZ_REGIONS = 2, FUZZ_PAGES = 8, FUZZ_FILL = 0xa5 };

static _Alignas(GUEST_PAGE_SIZE) uint8_t fuzz_ram[FUZZ_REGIONS][FUZZ_PAGES][GUEST_PAGE_SIZE];

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static bool is_filled_with(const uint8_t *page, uint8_t value)
{
    return page[0] == value && !memcmp(page, page + 1, GUEST_PAGE_SIZE - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    const struct guest_region regions[FUZZ_REGIONS] = {
        {.id = 0, .size = sizeof(fuzz_ram[0]), .host = fuzz_ram[0]},
        {.id = 1, .size = sizeof(fuzz_ram[1]), .host = fuzz_ram[1]},
    };
    struct page_target target = {regions, FUZZ_REGIONS};
    struct error err = {0};
    unsigned zeros = 0;
    int result;

    memset(fuzz_ram, FUZZ_FILL, sizeof(fuzz_ram));
    result = page_decode(&target, bytes, size, &err);
    for (unsigned i = 0; i < FUZZ_REGIONS * FUZZ_PAGES; i++) {
        const uint8_t *page = fuzz_ram[i / FUZZ_PAGES][i % FUZZ_PAGES];

        if (is_filled_with(page, 0))
            zeros++;
        else if (!is_filled_with(page, FUZZ_FILL))
            abort();
    }
    if ((result == 0) != (zeros > 0) || (result < 0 && !err.text[0]))
        abort();
    return 0;
}
