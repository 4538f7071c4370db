/* What a source asks a destination without moving anything: HELLO(check), and what may follow it.
 * Blocking, on a connection of its own, with one deadline for everything. */
#ifndef MIGRATE_INQUIRY_H
#define MIGRATE_INQUIRY_H

#include "migrate/migration.h"
#include "migrate/proto.h"

struct inquiry {
    int socket;
    uint64_t deadline;       /* clock_now */
    int cancel_fd;           /* becomes readable: give up; -1: never */
    struct reasons *refused; /* the caller's: what the destination refuses, a line each */
    uint8_t token[TRANSPORT_TOKEN_SIZE];
    unsigned version; /* of the protocol, as the destination chose; after inquiry_greet */
};

/* Connects. -errno with a text; nothing is to be closed then. Once `cancel_fd` (or -1) becomes
 * readable this and whatever is asked afterwards is -ECANCELED. */
int inquiry_open(const struct address *destination, int timeout_ms, int cancel_fd,
                 struct reasons *refused, struct inquiry *out, struct error *err);
/* HELLO. 1: welcome; 0: refused, see the reasons; -errno. */
int inquiry_greet(struct inquiry *q, const struct migration_options *options,
                  uint64_t present_bytes, struct error *err);
/* Presents a guest. 1: it could come; 0: refused, see the reasons; -errno. */
int inquiry_present(struct inquiry *q, struct guest *guest, struct error *err);
/* Asks what lanes would run over there, and for a place to try them: with `wanted` NULL for one
 * lane's trial, else for room. -EPROTONOSUPPORT when the destination is too old to give any. */
int inquiry_probe(struct inquiry *q, const struct probe_message *wanted, struct found_message *out,
                  struct error *err);
/* The shortest of some round trips of this connection. */
int inquiry_round_trip(struct inquiry *q, uint64_t *ns, struct error *err);
/* Where the lanes that PROBE was answered with bind. */
int inquiry_lane_address(const struct inquiry *q, const char *scheme,
                         const struct found_message *found, struct address *out, struct error *err);
void inquiry_close(struct inquiry *q);

#endif
