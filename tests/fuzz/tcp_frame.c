/* The parser of lane frames, fed with anything: whatever it lets through must be inside the open
 * regions and as long as the header says. Build with clang: -fsanitize=fuzzer,address, with
 * transport/tcp/frame.c, transport/regions.c and transport/base. The unit test tcp_frame includes
 * this file and drives it with seeded random input. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "transport/tcp/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FUZZ_REGION_SIZE = 1 << 21, FUZZ_REGIONS = 2 };

/* Region bases are addresses only: the parser must not touch memory. */
static const struct transport_region fuzz_regions[FUZZ_REGIONS] = {
    {.id = 0, .base = (void *)0x100000000, .size = FUZZ_REGION_SIZE},
    {.id = 7, .base = (void *)0x200001000, .size = FUZZ_REGION_SIZE / 2 + 4096},
};

static void fuzz_check_piece(const struct iovec *piece)
{
    for (unsigned i = 0; i < FUZZ_REGIONS; i++) {
        uintptr_t offset = (uintptr_t)piece->iov_base - (uintptr_t)fuzz_regions[i].base;

        if (offset < fuzz_regions[i].size && piece->iov_len <= fuzz_regions[i].size - offset)
            return;
    }
    abort();
}

static void fuzz_check_pieces(const struct iovec *pieces, unsigned count, uint32_t expected)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < count; i++) {
        fuzz_check_piece(&pieces[i]);
        total += pieces[i].iov_len;
    }
    if (!count || total != expected)
        abort();
}

static void fuzz_preface(const uint8_t *data, size_t size)
{
    struct preface expected = {.count = 4, .epoch = 1};
    struct error err = {0};
    uint16_t index = UINT16_MAX;

    if (size >= PREFACE_SIZE && preface_decode(data, &expected, &index) == ANSWER_WELCOME &&
        index >= 4)
        abort();
    if (size >= ANSWER_SIZE && bind_answer_decode(data, &err) > 0)
        abort();
}

static void fuzz_frame(const uint8_t *data, size_t size, struct regions *regions)
{
    struct frame_run runs[FRAME_MAX_RUNS];
    struct iovec pieces[FRAME_MAX_RUNS];
    struct frame_header header;
    struct error err = {0};
    int n;

    if (size < FRAME_HEADER_SIZE || frame_header_decode(data, &header, &err) < 0)
        return;
    if (header.count > FRAME_MAX_RUNS || header.bytes > FRAME_MAX_BYTES)
        abort();
    if ((size - FRAME_HEADER_SIZE) / FRAME_RUN_SIZE < header.count ||
        frame_runs_decode(&header, data + FRAME_HEADER_SIZE, runs, &err) < 0 ||
        header.type != FRAME_PLACE)
        return;
    n = frame_runs_resolve(runs, header.count, regions, pieces, &err);
    if (n >= 0)
        fuzz_check_pieces(pieces, (unsigned)n, header.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct regions regions;
    struct error err = {0};

    regions_init(&regions);
    for (unsigned i = 0; i < FUZZ_REGIONS; i++)
        regions_open(&regions, &fuzz_regions[i], &err);
    fuzz_preface(data, size);
    fuzz_frame(data, size, &regions);
    regions_destroy(&regions);
    return 0;
}
