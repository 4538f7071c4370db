/* The session protocol: what the two ends of a migration say to each other on the control channel.
 *
 *   source                                         destination
 *     HELLO(new, versions, token, epoch, lanes) -->
 *                                               <-- WELCOME(version) | REFUSE(reasons)
 *     GUEST(description)                        -->
 *                                               <-- ACCEPT(ports) | REFUSE(all reasons)
 *     EXTENTS* (last one flagged)               -->     lanes are opened now
 *     ROUND(number) ... pages on the lanes      -->
 *     PREPARE                                   -->     "may start" is on disk now
 *                                               <-- READY
 *     --- the guest is paused ---
 *     STATE, last pages and their fence         -->
 *     VERIFY(range)                             -->     with --verify, repeated
 *                                               <-- HASHES
 *     LOAD                                      -->     state loaded and checked
 *                                               <-- PREPARED
 *     --- COMMITTING is recorded ---
 *     COMMIT                                    -->     STARTING is recorded, the guest runs,
 *                                                       STARTED is recorded
 *                                               <-- RUNNING | ABORTED(why)
 *     --- RELEASED ---
 *     RELEASE                                   -->     the record may go
 *                                               <-- REPORT
 *   PING and PONG both ways from the first message on. ABORT (source) and ERROR (either) end a
 * session before COMMIT.
 *
 * Who owns the guest:
 *
 *   source       OWNER --record--> COMMITTING --RUNNING--> RELEASED
 *                  ^                   |
 *                  +----- ABORTED -----+          nothing else leads back
 *
 *   destination  RECEIVING --LOAD--> PREPARED --COMMIT--> STARTING --it runs--> STARTED
 *                    |                  |                     | it cannot
 *                    |                  +------ABORT----> ABORTED
 *                    +---- any failure, silence -------------^
 *                COMMIT or ABORT: one compare-and-swap, recorded first. STARTED is not said before
 * it is certain that the guest runs: on hearing it the source lets its copy go.
 *
 * HELLO(check) asks without moving anything: GUEST may follow (ACCEPT with no ports, or REFUSE),
 * and then PROBE, which is answered with FOUND (what lanes would run over at the destination, what
 * is in their way, and a port). The source tries one lane there, and closes. From version 3 on
 * PROBE may ask for room instead, to rehearse in: FOUND then tells how much there is, and as many
 * lanes as HELLO names may send pages there, which are thrown away.
 *
 * A connection lost after PREPARED is made anew to the session port: HELLO(reconnect, token, next
 * epoch), WELCOME, then COMMIT or ABORT again; both may be repeated. Whoever knows the token may
 * ask any time, at the session port of either end or at the listener: HELLO(query, token),
 * ANSWER(state).
 *
 * Wire form: a 16-byte header (u32 magic, u16 type, u16 zero, u32 body size, u32 zero) and a body;
 * little-endian; sizes are bounded by type before a byte of a body is read. */
#ifndef MIGRATE_PROTO_H
#define MIGRATE_PROTO_H

#include <stddef.h>
#include <stdint.h>

#include "migrate/boot.h"
#include "migrate/guest/guest.h"
#include "migrate/ownership.h"
#include "transport/base/error.h"
#include "transport/transport.h"

enum {
    PROTO_MAGIC = 0x524e4457, /* "WDNR" */
    PROTO_HEADER_SIZE = 16,
    PROTO_VERSION_MIN = 2, /* the range this program speaks */
    PROTO_VERSION_MAX = 3,
    PROTO_VERSION_ROOM = 3, /* from here on PROBE may ask for room */
    PROTO_MAX_TEXT = 32 << 10,
    PROTO_MAX_EXTENTS = 2048, /* in one EXTENTS */
    PROTO_MAX_ANNOUNCED =
        8192, /* extents in all EXTENTS: each may split a mapping, of which a process has 65530 */
    PROTO_MAX_HASHES = 4096, /* in one HASHES */
};

enum message_type {
    MESSAGE_HELLO = 1,
    MESSAGE_WELCOME,
    MESSAGE_REFUSE,
    MESSAGE_GUEST,
    MESSAGE_ACCEPT,
    MESSAGE_EXTENTS,
    MESSAGE_ROUND,
    MESSAGE_PREPARE,
    MESSAGE_READY,
    MESSAGE_STATE,
    MESSAGE_LOAD,
    MESSAGE_PREPARED,
    MESSAGE_VERIFY,
    MESSAGE_HASHES,
    MESSAGE_COMMIT,
    MESSAGE_RUNNING,
    MESSAGE_ABORT,
    MESSAGE_ABORTED,
    MESSAGE_RELEASE,
    MESSAGE_REPORT,
    MESSAGE_ANSWER,
    MESSAGE_ERROR,
    MESSAGE_PING,
    MESSAGE_PONG,
    MESSAGE_PROBE,
    MESSAGE_FOUND,
    MESSAGE_TYPES
};

struct message {
    enum message_type type;
    uint32_t size;
    uint8_t *body; /* owned; NULL when size is 0 */
};

void message_free(struct message *message);
const char *message_name(enum message_type type);

/* Header alone. decode checks magic, type and the body size allowed for it: -EPROTO. */
void message_header_encode(enum message_type type, uint32_t size, uint8_t out[PROTO_HEADER_SIZE]);
int message_header_decode(const uint8_t in[PROTO_HEADER_SIZE], enum message_type *type,
                          uint32_t *size, struct error *err);

enum hello_intent { HELLO_NEW = 1, HELLO_CHECK, HELLO_RECONNECT, HELLO_QUERY };

struct hello {
    uint16_t version_min, version_max;
    uint8_t intent; /* enum hello_intent */
    uint32_t epoch;
    uint8_t token[TRANSPORT_TOKEN_SIZE];
    uint16_t session_port; /* where the source answers queries; 0: nowhere */
    uint32_t lanes;
    char scheme[8];         /* of the transport */
    uint8_t operation;      /* enum transport_operation */
    uint8_t registration;   /* enum transport_registration */
    uint64_t pin_limit;     /* bytes, of the source; 0: TRANSPORT_DEFAULT_PIN_LIMIT */
    uint64_t present_bytes; /* guest memory that lanes would carry at first; 0: not known */
};

struct welcome {
    uint16_t version;
    uint32_t epoch;
    char boot_id[BOOT_ID_SIZE]; /* of the destination: its clock is ours if it is the same */
};

struct accept_reply {
    uint16_t lane_port;    /* where the lanes bind */
    uint16_t session_port; /* where the session answers once the control channel is lost */
};

struct probe_message {
    uint64_t room; /* bytes that will be asked for; 0: one lane's trial (and no body) */
    enum guest_backing backing; /* what that room should be like */
};

struct found_message {
    uint16_t lane_port; /* where a lane can be tried; 0: nowhere, the findings say why */
    uint64_t room;      /* bytes of region 0 there; 0: PREFLIGHT_TRIAL_BYTES */
    struct transport_findings findings;
};

struct extents_message {
    uint32_t region;
    uint32_t last; /* 1: no more of these */
    uint32_t count;
    struct extent extents[PROTO_MAX_EXTENTS];
};

struct round_message {
    uint32_t number;
    uint32_t paused; /* 1 from sources of version 2, which announce the last round, too */
    uint64_t pages;
};

struct verify_message {
    uint32_t region;
    uint32_t unit;  /* bytes hashed at a time: GUEST_CHUNK_SIZE, or GUEST_PAGE_SIZE */
    uint64_t first; /* in units */
    uint32_t count; /* at most PROTO_MAX_HASHES */
};

/* For PREPARED and RUNNING: how long the destination's own part took. */
struct timing_message {
    uint64_t ns;
};

struct answer {
    uint32_t state; /* enum ownership_state */
    uint32_t epoch;
};

struct ping {
    uint64_t sent_at; /* the sender's clock_now */
};

struct pong {
    uint64_t ping_sent_at, now;
};

/* encode: writes the body into `out`, returns its size (the caller's buffer is PROTO_BODY_SIZE or
 * as said). decode: checks size, ranges and text; -EPROTO names the message. */
enum { PROTO_BODY_SIZE = 16 + 16 * PROTO_MAX_EXTENTS };

size_t hello_encode(const struct hello *m, uint8_t *out);
int hello_decode(const struct message *from, struct hello *m, struct error *err);
size_t welcome_encode(const struct welcome *m, uint8_t *out);
int welcome_decode(const struct message *from, struct welcome *m, struct error *err);
size_t accept_encode(const struct accept_reply *m, uint8_t *out);
int accept_decode(const struct message *from, struct accept_reply *m, struct error *err);
size_t probe_encode(const struct probe_message *m, uint8_t *out);
int probe_decode(const struct message *from, struct probe_message *m, struct error *err);
size_t found_encode(const struct found_message *m, uint8_t *out);
int found_decode(const struct message *from, struct found_message *m, struct error *err);
size_t extents_encode(const struct extents_message *m, uint8_t *out);
int extents_decode(const struct message *from, struct extents_message *m, struct error *err);
size_t round_encode(const struct round_message *m, uint8_t *out);
int round_decode(const struct message *from, struct round_message *m, struct error *err);
size_t verify_encode(const struct verify_message *m, uint8_t *out);
int verify_decode(const struct message *from, struct verify_message *m, struct error *err);
size_t timing_encode(const struct timing_message *m, uint8_t *out);
int timing_decode(const struct message *from, struct timing_message *m, struct error *err);
size_t answer_encode(const struct answer *m, uint8_t *out);
int answer_decode(const struct message *from, struct answer *m, struct error *err);
size_t ping_encode(const struct ping *m, uint8_t *out);
int ping_decode(const struct message *from, struct ping *m, struct error *err);
size_t pong_encode(const struct pong *m, uint8_t *out);
int pong_decode(const struct message *from, struct pong *m, struct error *err);

/* The description of a guest. encode allocates *out (the caller frees); decode fills `m`
 * (guest_description_free). */
int guest_encode(const struct guest_description *m, uint8_t **out, size_t *size, struct error *err);
int guest_decode(const struct message *from, struct guest_description *m, struct error *err);

/* Text bodies (REFUSE, ABORT, ABORTED, ERROR): printable, cut to `size`. Returns `out`. */
char *message_text(const struct message *from, char *out, size_t size);

/* -EPROTO: the peer said `got` where `wanted` belongs; an ERROR, REFUSE or ABORT is passed on in
 * its own words. */
int message_unexpected(const struct message *got, const char *wanted, struct error *err);

/* 32 hexadecimal digits of a token, and back (-EINVAL). */
void token_format(const uint8_t token[TRANSPORT_TOKEN_SIZE], char out[33]);
int token_parse(const char *text, uint8_t token[TRANSPORT_TOKEN_SIZE]);

#endif
