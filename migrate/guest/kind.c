/* The kinds of guests there are. In a file of its own: a program that only needs lists and
 * descriptions links no hypervisor. */
#include "migrate/guest/guest.h"

#include <string.h>

static const struct guest_kind *const kinds[] = {&lab_guest_kind, &synthetic_guest_kind,
                                                 &qemu_guest_kind};

const struct guest_kind *guest_kind_find(const char *name)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(kinds[i]->kind, name) == 0)
            return kinds[i];
    }
    return NULL;
}
