/* --verify: XXH3 of every touched chunk on both sides, with the guest stopped, between the last
 * fence and COMMIT. A chunk that differs is looked at page by page, so that the error names the
 * pages. */
#ifndef MIGRATE_VERIFY_H
#define MIGRATE_VERIFY_H

#include "migrate/guest/guest.h"
#include "migrate/proto.h"

/* Hashes what `request` asks for into out[request->count] (XXH3, 64 bits; the last unit of a region
 * may be short). -EPROTO when the range is not inside a region of the guest. */
int verify_hash(struct guest *guest, const struct verify_message *request, uint64_t *out,
                struct error *err);

/* Asks the peer for the hashes of a range: sends VERIFY, and later receives HASHES into
 * out[request->count]. */
struct verify_peer {
    int (*ask)(void *context, const struct verify_message *request, struct error *err);
    int (*hashes)(void *context, uint64_t *out, uint32_t count, struct error *err);
    void *context;
};

/* Compares all that was ever touched in the paused guest with the peer. 0 and *chunks compared;
 * -EBADMSG names the pages that differ; other errors as the peer's calls give them. */
int verify_compare(struct guest *guest, const struct verify_peer *peer, uint64_t *chunks,
                   struct error *err);

#endif
