/* The control socket's language, described in tools/control.md: one JSON object a line. Here is all
 * that is pure about it: requests and progress to text and back. */
#ifndef TOOLS_CONTROL_PROTOCOL_H
#define TOOLS_CONTROL_PROTOCOL_H

#include <cjson/cJSON.h>

#include "migrate/incoming.h"
#include "migrate/migration.h"
#include "migrate/rehearsal.h"

enum { CONTROL_MAX_LINE = 64 << 10 };          /* bytes of one request, without the newline */
enum { CONTROL_MAX_SAMPLE_MS = 60000 };        /* for so long a guest is watched, at most */
#define CONTROL_MAX_NUMBER ((uint64_t)1 << 53) /* up to here a JSON number is exact */

enum control_command {
    CONTROL_STATUS,
    CONTROL_MIGRATE,
    CONTROL_CANCEL,
    CONTROL_RESOLVE,
    CONTROL_WORKLOAD,
    CONTROL_CONSOLE,
    CONTROL_CHECK,
    CONTROL_PREDICT,
    CONTROL_QUIT,
    CONTROL_COMMANDS, /* how many there are */
};

struct control_request {
    enum control_command command;
    /* CONTROL_MIGRATE, CONTROL_PREDICT; CONTROL_CHECK has some of it */
    struct migration_options migrate;
    struct rehearsal_wish rehearsal; /* CONTROL_PREDICT */
    enum resolve_action action; /* CONTROL_RESOLVE */
    bool force;                 /* CONTROL_RESOLVE */
    bool self_check;            /* CONTROL_WORKLOAD: ask for one */
};

/* What `wander migrate` does unless told otherwise. */
void migration_options_defaults(struct migration_options *out);

/* One line without its newline. Hostile input: anything but a request with known members of the
 * right types and ranges is -EINVAL, with a text that names the member. */
int control_request_parse(const char *line, size_t size, struct control_request *out,
                          struct error *err);
/* The line for a request, without newline; the caller frees. NULL without memory. */
char *control_request_format(const struct control_request *request);

/* A migration's status as "progress" members, and back (-EPROTO). */
cJSON *control_progress_to_json(const struct migration_status *status);
int control_progress_from_json(const cJSON *json, struct migration_status *out, struct error *err);

/* Reads the object in a reply's line; a reply {"error": TEXT} is -EREMOTEIO with that text, other
 * lines that are no object are -EPROTO. The caller frees *out. */
int control_reply_parse(const char *line, size_t size, cJSON **out, struct error *err);
/* A text member, or "" when there is none. Valid as long as `json`. */
const char *control_text(const cJSON *json, const char *key);
/* A whole number member in [0, 2^53], or `otherwise`. */
uint64_t control_number(const cJSON *json, const char *key, uint64_t otherwise);

const char *migration_phase_name(enum migration_phase phase);
const char *incoming_phase_name(enum incoming_phase phase);

#endif
