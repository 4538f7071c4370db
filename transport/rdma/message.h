/* What goes over a lane beside the pages: small messages by SEND, and the bytes that say who a lane
 * is when it binds. Little-endian, explicit; whatever comes from a peer is checked here.
 *
 *   source                                     destination
 *   REGISTER piece, range        ->            registers its own memory there
 *                                <-            REGISTERED piece, address, key
 *   (RDMA WRITE …)               ->            with TRANSPORT_WRITE
 *   PUBLISH runs                 ->            with TRANSPORT_READ: pulls them (… RDMA READ)
 *                                <-            PULLED count of runs, in order
 *   BLOB bytes                   ->            decodes them
 *   FENCE id                     ->            once all before it has been applied:
 *                                <-            FENCED id
 *   DEREGISTER piece             ->            deregisters it
 *                                <-            DEREGISTERED piece
 *   CREDIT                      <->            only to give credits back
 *
 * Every message gives credits back: so many receives have been posted anew since the last one. */
#ifndef TRANSPORT_RDMA_MESSAGE_H
#define TRANSPORT_RDMA_MESSAGE_H

#include "transport/transport.h"

enum rdma_message_type {
    RDMA_CREDIT = 1,
    RDMA_REGISTER,
    RDMA_REGISTERED,
    RDMA_DEREGISTER,
    RDMA_DEREGISTERED,
    RDMA_PUBLISH,
    RDMA_PULLED,
    RDMA_BLOB,
    RDMA_FENCE,
    RDMA_FENCED,
};

enum {
    RDMA_HEADER_SIZE = 8, /* type u8, 0 u8, credits u16, length of what follows u32 */
    RDMA_RUN_SIZE = 32,
    RDMA_MAX_RUNS = 128, /* in a PUBLISH */
    /* largest message each way */
    RDMA_TO_DESTINATION_SIZE = RDMA_HEADER_SIZE + TRANSPORT_MAX_BLOB,
    RDMA_TO_SOURCE_SIZE = 64,
    RDMA_MAX_PIECES = 1 << 22,

    RDMA_VERSION = 1,
    RDMA_BINDING_SIZE = 40, /* librdmacm carries 56 with a request */
    RDMA_ANSWER_SIZE = 24,
};

/* A range of the source's memory for the destination to pull into `piece` at `offset`. */
struct rdma_run {
    uint32_t piece;
    uint32_t key;
    uint64_t offset; /* from the start of the piece */
    uint64_t address;
    uint32_t length;
};

struct rdma_message {
    enum rdma_message_type type;
    uint16_t credits;
    uint32_t piece;      /* (DE)REGISTER(ED) */
    uint32_t region;     /* REGISTER */
    uint64_t offset;     /* REGISTER: where the piece lies in the region */
    uint64_t length;     /* REGISTER */
    uint64_t address;    /* REGISTERED */
    uint32_t key;        /* REGISTERED */
    uint64_t fence;      /* FENCE, FENCED */
    uint32_t count;      /* PUBLISH: runs; PULLED: runs */
    const void *bytes;   /* BLOB: the payload. PUBLISH: runs, to be read with rdma_run_decode */
    uint32_t byte_count; /* BLOB */
};

/* Writes all but the payload (BLOB: the caller puts byte_count bytes right behind) and returns the
 * size of what was written: RDMA_HEADER_SIZE for a BLOB. For a PUBLISH, whose runs the caller has
 * written with rdma_run_encode behind the header already, the header alone: also RDMA_HEADER_SIZE.
 * `out` has room for RDMA_TO_SOURCE_SIZE bytes. */
size_t rdma_message_encode(const struct rdma_message *m, uint8_t *out);
/* `size` bytes as they came; `m->bytes` points into `in`. -EPROTO with a text when anything is not
 * exactly as written above (unknown type, wrong length, a piece of RDMA_MAX_PIECES or more, a
 * length of 0, a range that overflows, no runs or too many, a PULLED of 0, an empty BLOB). */
int rdma_message_decode(const uint8_t *in, size_t size, struct rdma_message *m, struct error *err);
const char *rdma_message_name(enum rdma_message_type type); /* "FENCE"; "?" for an unknown one */

void rdma_run_encode(const struct rdma_run *run, uint8_t out[RDMA_RUN_SIZE]);
/* -EPROTO: no length, more than TRANSPORT_MAX_TRANSFER, a piece of RDMA_MAX_PIECES or more, an
 * overflow. */
int rdma_run_decode(const uint8_t in[RDMA_RUN_SIZE], struct rdma_run *run, struct error *err);

/* Who a lane is: goes with the source's request to connect. */
struct rdma_binding {
    uint8_t token[TRANSPORT_TOKEN_SIZE];
    uint32_t epoch;
    uint8_t lane, lanes;
    enum transport_operation operation;
    enum transport_registration registration;
    uint16_t
        receives; /* posted at the source for this lane: the destination's credits; 2 or more */
};

enum rdma_refusal {
    RDMA_ACCEPTED,
    RDMA_REFUSED_VERSION,
    RDMA_REFUSED_STRANGER, /* another token or epoch */
    RDMA_REFUSED_LANE,     /* no such lane, or it is bound already */
    RDMA_REFUSED_MISMATCH, /* another number of lanes, or other settings than the lanes before */
    RDMA_REFUSED_TROUBLE,  /* the destination could not make the lane; its own log says why */
};

/* The destination's word: with its acceptance or with its refusal. */
struct rdma_answer {
    enum rdma_refusal refusal;
    uint16_t
        receives; /* posted at the destination for this lane: the source's credits; 2 or more */
    uint32_t most_pieces; /* registered at once, at most; 1 or more */
    uint64_t piece_limit; /* bytes that they may have together */
};

void rdma_binding_encode(const struct rdma_binding *b, uint8_t out[RDMA_BINDING_SIZE]);
/* `size`: what librdmacm gave, which may be longer than was sent, padded with zeros. Returns
 * RDMA_ACCEPTED, RDMA_REFUSED_STRANGER for what no wander sent, or RDMA_REFUSED_VERSION. */
enum rdma_refusal rdma_binding_decode(const void *in, size_t size, struct rdma_binding *b);
void rdma_answer_encode(const struct rdma_answer *a, uint8_t out[RDMA_ANSWER_SIZE]);
/* -EPROTO for what no wander sent. */
int rdma_answer_decode(const void *in, size_t size, struct rdma_answer *a, struct error *err);
const char *rdma_refusal_text(enum rdma_refusal refusal); /* "…", in words */

#endif
