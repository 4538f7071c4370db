/* Reading QEMU's objects and what its answers hold. Answers are another process's: every reader
 * takes what it finds, and says when it is not what was meant. */
#ifndef MIGRATE_GUEST_QEMU_QOM_H
#define MIGRATE_GUEST_QEMU_QOM_H

#include "migrate/guest/qemu/qmp.h"

/* A property; 0 and *out NULL when the object, or the property, is not there. *out is the caller's.
 * Errors as qmp_command, but never -EREMOTEIO. */
int qom_get(struct qmp *q, const char *path, const char *property, cJSON **out, struct error *err);
/* As qom_get, as text cut to fit: "" when it is not there or no text. */
int qom_get_text(struct qmp *q, const char *path, const char *property, char *out, size_t size,
                 struct error *err);
int qom_get_bool(struct qmp *q, const char *path, const char *property, bool *out,
                 struct error *err);
/* The list of properties (name, type), as qom_get. */
int qom_list(struct qmp *q, const char *path, cJSON **out, struct error *err);

/* Members of an object: "", false when they are not there or of another type. The text lives as
 * long as `object`. */
const char *json_text(const cJSON *object, const char *name);
bool json_true(const cJSON *object, const char *name);
/* A whole number in [0, 2^53]; false when it is not there or another. */
bool json_number(const cJSON *object, const char *name, uint64_t *out);

#endif
