/* What came over a monitor's connection: bytes in, JSON objects out, a line each; and the events
 * among them, by name. The bytes are another process's: hostile until checked. */
#ifndef MIGRATE_GUEST_QEMU_QMP_INBOX_H
#define MIGRATE_GUEST_QEMU_QMP_INBOX_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    QMP_MAX_LINE = 16 << 20,
    QMP_MAX_EVENTS = 32,           /* names; the one longest unheard makes room for a new one */
    QMP_MAX_EVENT_DATA = 64 << 10, /* bytes of a line; data beyond are not kept */
    QMP_EVENT_NAME_SIZE = 48,
};

struct qmp_event {
    char name[QMP_EVENT_NAME_SIZE];
    cJSON *data; /* owned; may be NULL */
    uint64_t order;
};

struct qmp_inbox {
    char *bytes; /* owned */
    size_t begin, end, scanned, capacity;
    size_t line;  /* bytes of the newest line */
    bool forgive; /* the next line may be the tail of one that somebody else began to read */
    struct qmp_event events[QMP_MAX_EVENTS];
    uint64_t order;
};

/* Room for at least `least` more bytes: where they go, *room how many may. NULL: out of memory, or
 * (ENOBUFS in errno) a line longer than QMP_MAX_LINE. */
char *qmp_inbox_room(struct qmp_inbox *in, size_t least, size_t *room);
void qmp_inbox_filled(struct qmp_inbox *in, size_t bytes);
/* The next whole line as an object, the caller's to delete: 1; 0 when none is whole; -EPROTO when
 * it is no JSON object (the line is gone then). Empty lines are passed over. */
int qmp_inbox_next(struct qmp_inbox *in, cJSON **out);

/* Notes an event: `message` is what qmp_inbox_next gave last; its data moves over. */
void qmp_inbox_note(struct qmp_inbox *in, cJSON *message);
struct qmp_event *qmp_inbox_event(struct qmp_inbox *in, const char *name); /* or NULL */
void qmp_event_forget(struct qmp_event *event);                            /* NULL is fine */

void qmp_inbox_free(struct qmp_inbox *in);

#endif
