/* Verification of two memories that differ in known places. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/verify.h"

enum { PAGES = 2 * GUEST_CHUNK_PAGES + 3 };

struct puppet {
    struct guest guest;
    struct guest_region region;
};

struct pair {
    struct puppet here, there;
    struct verify_message asked;
    unsigned questions;
};

static unsigned puppet_regions(struct guest *g, const struct guest_region **out)
{
    *out = &((struct puppet *)g)->region;
    return 1;
}

/* Two extents in one chunk, then the rest: chunks must be asked for once. */
static int puppet_present(struct guest *g, uint32_t region, struct extent_list *out,
                          struct error *err)
{
    static const struct extent extents[] = {
        {0, GUEST_PAGE_SIZE},
        {5 * GUEST_PAGE_SIZE, 4 * GUEST_PAGE_SIZE},
        {100 * GUEST_PAGE_SIZE, (PAGES - 100) * GUEST_PAGE_SIZE},
    };

    (void)g;
    (void)region;
    (void)err;
    for (size_t i = 0; i < sizeof(extents) / sizeof(*extents); i++)
        if (extent_list_add(out, extents[i].offset, extents[i].length))
            return -ENOMEM;
    return 0;
}

static const struct guest_ops puppet_ops = {
    .kind = "puppet",
    .regions = puppet_regions,
    .present = puppet_present,
};

static int ask(void *context, const struct verify_message *request, struct error *err)
{
    struct pair *p = context;

    (void)err;
    p->asked = *request;
    p->questions++;
    return 0;
}

static int hashes(void *context, uint64_t *out, uint32_t count, struct error *err)
{
    struct pair *p = context;

    cr_expect_eq(count, p->asked.count);
    return verify_hash(&p->there.guest, &p->asked, out, err);
}

static void open_pair(struct pair *p)
{
    struct guest_region region = {.name = "ram", .size = PAGES * GUEST_PAGE_SIZE};

    *p = (struct pair){.here = {{&puppet_ops}, region}, .there = {{&puppet_ops}, region}};
    p->here.region.host = calloc(PAGES, GUEST_PAGE_SIZE);
    p->there.region.host = calloc(PAGES, GUEST_PAGE_SIZE);
    cr_assert(p->here.region.host && p->there.region.host);
}

static void close_pair(struct pair *p)
{
    free(p->here.region.host);
    free(p->there.region.host);
}

static int compare(struct pair *p, uint64_t *chunks, struct error *err)
{
    struct verify_peer peer = {.ask = ask, .hashes = hashes, .context = p};

    return verify_compare(&p->here.guest, &peer, chunks, err);
}

Test(verify, equal_memories)
{
    struct pair p;
    struct error err = {0};
    uint64_t chunks = 0;

    open_pair(&p);
    cr_expect_eq(compare(&p, &chunks, &err), 0, "%s", err.text);
    cr_expect_eq(chunks, 3, "%llu chunks", (unsigned long long)chunks);
    cr_expect_eq(p.questions, 2, "%u questions", p.questions);
    close_pair(&p);
}

Test(verify, each_difference_is_named)
{
    static const struct {
        uint64_t first;
        uint32_t pages;
        const char *named;
    } cases[] = {
        {0, 1, "ram+0x0 (1 page)"},
        {7, 3, "ram+0x7000 (3 pages)"},
        {GUEST_CHUNK_PAGES - 1, 1, "ram+0xff000 (1 page)"},
        {GUEST_CHUNK_PAGES, GUEST_CHUNK_PAGES, "ram+0x100000 (256 pages)"},
        {PAGES - 1, 1, "ram+0x202000 (1 page)"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct pair p;
        struct error err = {0};
        uint64_t chunks;

        open_pair(&p);
        for (uint32_t page = 0; page < cases[i].pages; page++)
            ((char *)p.there.region.host)[(cases[i].first + page) * GUEST_PAGE_SIZE + 77] = 1;
        cr_expect_eq(compare(&p, &chunks, &err), -EBADMSG);
        cr_expect(strstr(err.text, cases[i].named), "case %zu: expected '%s', came '%s'", i,
                  cases[i].named, err.text);
        close_pair(&p);
    }
}

Test(verify, many_differences_fit_the_text)
{
    struct pair p;
    struct error err = {0};
    uint64_t chunks;

    open_pair(&p);
    for (uint64_t page = 0; page < PAGES; page += 2)
        ((char *)p.here.region.host)[page * GUEST_PAGE_SIZE] = 1;
    cr_expect_eq(compare(&p, &chunks, &err), -EBADMSG);
    cr_expect(strstr(err.text, "3 of 3 chunks") && strstr(err.text, "…"), "came '%s'", err.text);
    close_pair(&p);
}

Test(verify, ranges_from_a_peer_stay_inside)
{
    static const struct verify_message bad[] = {
        {.region = 1, .unit = GUEST_PAGE_SIZE, .first = 0, .count = 1},
        {.region = 0, .unit = GUEST_PAGE_SIZE, .first = PAGES, .count = 1},
        {.region = 0, .unit = GUEST_PAGE_SIZE, .first = PAGES - 1, .count = 2},
        {.region = 0, .unit = GUEST_CHUNK_SIZE, .first = 3, .count = 1},
    };
    struct pair p;
    uint64_t out[2];

    open_pair(&p);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        cr_expect_eq(verify_hash(&p.here.guest, &bad[i], out, &(struct error){0}), -EPROTO,
                     "case %zu was hashed", i);
    close_pair(&p);
}
