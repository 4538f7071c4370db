#include "migrate/guest/qemu/qmp_inbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void compact(struct qmp_inbox *in)
{
    if (in->begin == 0)
        return;
    memmove(in->bytes, in->bytes + in->begin, in->end - in->begin);
    in->end -= in->begin;
    in->scanned -= in->begin;
    in->begin = 0;
}

static int grow(struct qmp_inbox *in, size_t least)
{
    size_t capacity = in->capacity ? in->capacity : 64 << 10;

    while (capacity - in->end < least)
        capacity *= 2;
    char *bytes = realloc(in->bytes, capacity);
    if (!bytes)
        return -ENOMEM;
    in->bytes = bytes;
    in->capacity = capacity;
    return 0;
}

char *qmp_inbox_room(struct qmp_inbox *in, size_t least, size_t *room)
{
    compact(in);
    if (in->end + least > QMP_MAX_LINE) {
        errno = ENOBUFS;
        return NULL;
    }
    if ((!in->bytes || in->capacity - in->end < least) && grow(in, least) < 0) {
        errno = ENOMEM;
        return NULL;
    }
    *room = in->capacity - in->end;
    return in->bytes + in->end;
}

void qmp_inbox_filled(struct qmp_inbox *in, size_t bytes)
{
    in->end += bytes;
}

/* The line's first byte and its length without the newline; NULL when there is none. */
static const char *next_line(struct qmp_inbox *in, size_t *length)
{
    char *newline = NULL;

    if (in->end > in->scanned)
        newline = memchr(in->bytes + in->scanned, '\n', in->end - in->scanned);
    if (!newline) {
        in->scanned = in->end;
        return NULL;
    }
    const char *line = in->bytes + in->begin;
    *newline = '\0';
    *length = newline - line;
    in->begin = in->scanned = newline + 1 - in->bytes;
    return line;
}

static bool blank(const char *line, size_t length)
{
    return strspn(line, " \t\r") == length;
}

static cJSON *parse(const char *line, size_t length)
{
    cJSON *message = NULL;

    if (strlen(line) == length)
        message = cJSON_ParseWithOpts(line, NULL, true);
    if (message && !cJSON_IsObject(message)) {
        cJSON_Delete(message);
        return NULL;
    }
    return message;
}

int qmp_inbox_next(struct qmp_inbox *in, cJSON **out)
{
    const char *line;
    bool forgive;

    while ((line = next_line(in, &in->line))) {
        if (blank(line, in->line))
            continue;
        forgive = in->forgive;
        in->forgive = false;
        if ((*out = parse(line, in->line)))
            return 1;
        if (!forgive)
            return -EPROTO;
    }
    return 0;
}

struct qmp_event *qmp_inbox_event(struct qmp_inbox *in, const char *name)
{
    for (size_t i = 0; i < QMP_MAX_EVENTS; i++)
        if (in->events[i].order && strcmp(in->events[i].name, name) == 0)
            return &in->events[i];
    return NULL;
}

static struct qmp_event *oldest(struct qmp_inbox *in)
{
    struct qmp_event *found = &in->events[0];

    for (size_t i = 1; i < QMP_MAX_EVENTS; i++)
        if (in->events[i].order < found->order)
            found = &in->events[i];
    return found;
}

void qmp_inbox_note(struct qmp_inbox *in, cJSON *message)
{
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(message, "event"));
    struct qmp_event *event;

    if (!name || strlen(name) >= QMP_EVENT_NAME_SIZE)
        return;
    if (!(event = qmp_inbox_event(in, name)))
        event = oldest(in);
    qmp_event_forget(event);
    strcpy(event->name, name);
    event->order = ++in->order;
    if (in->line <= QMP_MAX_EVENT_DATA)
        event->data = cJSON_DetachItemFromObjectCaseSensitive(message, "data");
}

void qmp_event_forget(struct qmp_event *event)
{
    if (!event)
        return;
    cJSON_Delete(event->data);
    *event = (struct qmp_event){0};
}

void qmp_inbox_free(struct qmp_inbox *in)
{
    for (size_t i = 0; i < QMP_MAX_EVENTS; i++)
        qmp_event_forget(&in->events[i]);
    free(in->bytes);
    *in = (struct qmp_inbox){0};
}
