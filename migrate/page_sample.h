/* A sample of a guest's touched pages: copies of some, spread evenly over what is present, with
 * zero pages sifted out as a round does. */
#ifndef MIGRATE_PAGE_SAMPLE_H
#define MIGRATE_PAGE_SAMPLE_H

#include "migrate/guest/guest.h"

enum { PAGE_SAMPLE_LEAST = 8 << 20 }; /* bytes: pages of a smaller guest go in more than once */

struct page_sample {
    void *memory; /* owned; page aligned */
    uint64_t room, size;
    uint64_t zero_bandwidth; /* bytes/s at which zero pages were sifted out; 0: too few to tell */
};

/* Copies at most `room` bytes (whole pages, at least PAGE_SAMPLE_LEAST). The guest may run, with a
 * tracker started. Blocks for a second at most. -ENOMEM, and what `present` may fail with. */
int page_sample_take(struct guest *guest, uint64_t room, struct page_sample *out,
                     struct error *err);
void page_sample_free(struct page_sample *sample);

#endif
