/* What all guests share: their end, extent lists, state buffers, descriptions, reasons. */
#include "migrate/guest/guest.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool guest_ended(struct guest *guest)
{
    int event = guest->ops->end_event ? guest->ops->end_event(guest) : -1;
    struct pollfd end = {.fd = event, .events = POLLIN};

    return poll(&end, 1, 0) > 0;
}

static int extent_list_grow(struct extent_list *list)
{
    size_t capacity = list->capacity ? list->capacity * 2 : 16;
    struct extent *extents = reallocarray(list->extents, capacity, sizeof(*extents));

    if (!extents)
        return -ENOMEM;
    list->extents = extents;
    list->capacity = capacity;
    return 0;
}

int extent_list_add(struct extent_list *list, uint64_t offset, uint64_t length)
{
    struct extent *last = list->count ? &list->extents[list->count - 1] : NULL;

    if (length == 0)
        return 0;
    if (last && last->offset + last->length == offset) {
        last->length += length;
        return 0;
    }
    if (list->count == list->capacity && extent_list_grow(list) < 0)
        return -ENOMEM;
    list->extents[list->count++] = (struct extent){.offset = offset, .length = length};
    return 0;
}

uint64_t extent_list_bytes(const struct extent_list *list)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < list->count; i++)
        bytes += list->extents[i].length;
    return bytes;
}

void extent_list_free(struct extent_list *list)
{
    free(list->extents);
    *list = (struct extent_list){0};
}

int guest_state_append(struct guest_state *state, const void *bytes, size_t size)
{
    if (size > GUEST_MAX_STATE - state->size)
        return -EFBIG;
    if (size > state->capacity - state->size) {
        size_t capacity = state->capacity ? state->capacity : 4096;
        while (capacity < state->size + size)
            capacity *= 2;
        uint8_t *grown = realloc(state->bytes, capacity);
        if (!grown)
            return -ENOMEM;
        state->bytes = grown;
        state->capacity = capacity;
    }
    if (size > 0)
        memcpy(state->bytes + state->size, bytes, size);
    state->size += size;
    return 0;
}

void guest_state_free(struct guest_state *state)
{
    free(state->bytes);
    *state = (struct guest_state){0};
}

void guest_description_free(struct guest_description *description)
{
    free(description->platform);
    description->platform = NULL;
    description->platform_size = 0;
}

/* Without memory a reason loses its words but is still counted: a refusal never turns into an
 * acceptance. */
void reasons_add(struct reasons *reasons, const char *format, ...)
{
    char *line = NULL, *text = NULL;
    va_list args;

    reasons->count++;
    va_start(args, format);
    int length = vasprintf(&line, format, args);
    va_end(args);
    if (length < 0)
        return;
    if (asprintf(&text, "%s%s%s", reasons->text ? reasons->text : "", reasons->text ? "\n" : "",
                 line) >= 0) {
        free(reasons->text);
        reasons->text = text;
    }
    free(line);
}

void reasons_free(struct reasons *reasons)
{
    free(reasons->text);
    *reasons = (struct reasons){0};
}
