/* Extent lists, state buffers, reasons. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "migrate/guest/guest.h"

struct extent_case {
    const char *name;
    struct extent add[4], expect[4];
    size_t added, expected;
};

static const struct extent_case extent_cases[] = {
    {"one", {{0, 4096}}, {{0, 4096}}, 1, 1},
    {"adjacent ones become one", {{0, 4096}, {4096, 8192}}, {{0, 12288}}, 2, 1},
    {"a hole keeps them apart", {{0, 4096}, {8192, 4096}}, {{0, 4096}, {8192, 4096}}, 2, 2},
    {"an empty one adds nothing", {{0, 4096}, {9000, 0}, {4096, 4096}}, {{0, 8192}}, 3, 1},
};

Test(extents, merge)
{
    for (size_t i = 0; i < sizeof(extent_cases) / sizeof(extent_cases[0]); i++) {
        const struct extent_case *c = &extent_cases[i];
        struct extent_list list = {0};
        uint64_t bytes = 0;
        for (size_t j = 0; j < c->added; j++)
            cr_assert_eq(extent_list_add(&list, c->add[j].offset, c->add[j].length), 0, "%s",
                         c->name);
        cr_assert_eq(list.count, c->expected, "%s: %zu extents, expected %zu", c->name, list.count,
                     c->expected);
        for (size_t j = 0; j < c->expected; j++) {
            cr_assert_eq(list.extents[j].offset, c->expect[j].offset, "%s: offset %zu", c->name, j);
            cr_assert_eq(list.extents[j].length, c->expect[j].length, "%s: length %zu", c->name, j);
            bytes += c->expect[j].length;
        }
        cr_assert_eq(extent_list_bytes(&list), bytes, "%s: %zu bytes, expected %zu", c->name,
                     (size_t)extent_list_bytes(&list), (size_t)bytes);
        extent_list_free(&list);
        cr_assert(list.count == 0 && list.extents == NULL, "%s: free leaves an empty list",
                  c->name);
    }
}

Test(extents, many)
{
    struct extent_list list = {0};

    for (uint64_t i = 0; i < 100000; i++)
        cr_assert_eq(extent_list_add(&list, i * 8192, 4096), 0);
    cr_assert_eq(list.count, 100000, "%zu extents", list.count);
    cr_assert_eq(list.extents[99999].offset, 99999ull * 8192);
    extent_list_free(&list);
}

Test(state, append_up_to_the_bound)
{
    static uint8_t block[1 << 20];
    struct guest_state state = {0};

    memset(block, 0xa5, sizeof(block));
    cr_assert_eq(guest_state_append(&state, NULL, 0), 0);
    cr_assert_eq(guest_state_append(&state, "abc", 3), 0);
    for (size_t i = 0; i < GUEST_MAX_STATE / sizeof(block) - 1; i++)
        cr_assert_eq(guest_state_append(&state, block, sizeof(block)), 0, "block %zu", i);
    cr_assert_eq(guest_state_append(&state, block, sizeof(block)), -EFBIG);
    cr_assert_eq(guest_state_append(&state, block, SIZE_MAX), -EFBIG);
    cr_assert_eq(guest_state_append(&state, block, sizeof(block) - 3), 0, "exactly full");
    cr_assert_eq(state.size, GUEST_MAX_STATE, "%zu bytes", state.size);
    cr_assert_eq(memcmp(state.bytes, "abc\xa5", 4), 0);
    guest_state_free(&state);
    cr_assert(state.bytes == NULL && state.size == 0 && state.capacity == 0);
}

Test(reasons, one_line_each)
{
    struct reasons reasons = {0};

    reasons_add(&reasons, "too %s", "big");
    reasons_add(&reasons, "%d is not %d", 1, 2);
    cr_assert_eq(reasons.count, 2);
    cr_assert_str_eq(reasons.text, "too big\n1 is not 2");
    reasons_free(&reasons);
    cr_assert(reasons.text == NULL && reasons.count == 0);
}

Test(description, free_twice)
{
    struct guest_description description = {.platform = malloc(16), .platform_size = 16};

    guest_description_free(&description);
    guest_description_free(&description);
    cr_assert(description.platform == NULL && description.platform_size == 0);
}
