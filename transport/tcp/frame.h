/* What goes over a lane's stream. All integers little-endian.
 *
 *   source                                                   destination
 *     preface  magic version index count epoch token  ---->
 *              <----  answer  magic status                   (other than 0: turned away, closed)
 *     PLACE    header, count runs, the bytes of the runs  -->  into guest RAM
 *     BLOB     header, count runs, the bytes of the runs  -->  to the decoder, one call a run
 *     FENCE    header                                     -->
 *              <----  ACKNOWLEDGE header                     all before it on this lane is applied
 *
 * A header and its runs are read whole and checked whole before a byte of what follows is applied.
 * These functions are pure: bytes in, structs out. */
#ifndef TRANSPORT_TCP_FRAME_H
#define TRANSPORT_TCP_FRAME_H

#include <stdint.h>
#include <sys/uio.h>

#include "transport/base/error.h"
#include "transport/regions.h"

enum {
    FRAME_HEADER_SIZE = 24, /* magic u32, type u16, zero u16, count u32, bytes u32, fence u64 */
    FRAME_RUN_SIZE = 16,    /* region u32, length u32, offset u64 */
    FRAME_MAX_RUNS = 512,
    FRAME_MAX_BYTES = TRANSPORT_MAX_TRANSFER,
    ANSWER_SIZE = 8,        /* magic u32, status u32 */
    /* magic u64, version u16, index u16, count u16, zero u16, epoch u32, zero u32, token */
    PREFACE_SIZE = 40,
};

enum frame_type { FRAME_PLACE = 1, FRAME_BLOB, FRAME_FENCE, FRAME_ACKNOWLEDGE };

struct frame_header {
    enum frame_type type;
    uint32_t count; /* PLACE, BLOB: runs, 1..FRAME_MAX_RUNS; else 0 */
    uint32_t bytes; /* PLACE, BLOB: sum of their lengths, at most FRAME_MAX_BYTES; else 0 */
    uint64_t fence; /* FENCE, ACKNOWLEDGE: its id; else 0 */
};

struct frame_run {
    uint32_t region; /* BLOB: 0 */
    uint32_t length; /* at least 1; BLOB: at most TRANSPORT_MAX_BLOB */
    uint64_t offset; /* BLOB: 0 */
};

void frame_header_encode(const struct frame_header *header, uint8_t out[FRAME_HEADER_SIZE]);
/* -EPROTO unless every field is as said above. */
int frame_header_decode(const uint8_t bytes[FRAME_HEADER_SIZE], struct frame_header *out,
                        struct error *err);

void frame_run_encode(const struct frame_run *run, uint8_t out[FRAME_RUN_SIZE]);
/* Decodes header->count runs from count * FRAME_RUN_SIZE bytes. `header` has been decoded before.
 * -EPROTO unless each run is as said above and their lengths add up to header->bytes. */
int frame_runs_decode(const struct frame_header *header, const uint8_t *bytes,
                      struct frame_run *out, struct error *err);
/* Where decoded PLACE runs land: at most `count` pieces of open regions, adjacent runs as one;
 * returns how many. -EPROTO when one is not inside an open region. Takes the lock of `regions`. */
int frame_runs_resolve(const struct frame_run *runs, unsigned count, struct regions *regions,
                       struct iovec *out, struct error *err);

enum answer {
    ANSWER_WELCOME,
    ANSWER_FOREIGN,  /* no lane's preface, or another version of it */
    ANSWER_SESSION,  /* another token */
    ANSWER_EPOCH,    /* another epoch */
    ANSWER_LANES,    /* another number of lanes */
    ANSWER_OCCUPIED, /* this lane is bound already */
    ANSWER_COUNT
};

struct preface {
    uint16_t index, count;
    uint32_t epoch;
    uint8_t token[TRANSPORT_TOKEN_SIZE];
};

void preface_encode(const struct preface *preface, uint8_t out[PREFACE_SIZE]);
/* ANSWER_WELCOME when it is a lane of the session that `expected` describes (its index is ignored),
 * and *index, below expected->count, says which; else why not. The token is compared in constant
 * time. */
enum answer preface_decode(const uint8_t bytes[PREFACE_SIZE], const struct preface *expected,
                           uint16_t *index);

void bind_answer_encode(enum answer answer, uint8_t out[ANSWER_SIZE]);
/* 0 for ANSWER_WELCOME, -ECONNREFUSED with the reason for others, -EPROTO for what is no answer. */
int bind_answer_decode(const uint8_t bytes[ANSWER_SIZE], struct error *err);

#endif
