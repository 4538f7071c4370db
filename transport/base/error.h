/* One error convention for all layers: a function that can fail returns 0 (or a count) or -errno,
 * and leaves one sentence for a human in the `struct error` it was given. The first text wins:
 * callers on the way up pass it on, and may put context before it with error_prefix(). */
#ifndef TRANSPORT_BASE_ERROR_H
#define TRANSPORT_BASE_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

enum { ERROR_TEXT_SIZE = 768 };

/* Owned by the caller, usually on its stack; initialise with {0}. Not shared between threads. */
struct error {
    int code; /* positive errno, 0 when none */
    char text[ERROR_TEXT_SIZE];
};

/* Records `code` (positive errno) and a text that says what was tried, what happened and what to
 * do. Keeps an error that is already there. `err` may be NULL. Returns -code, so `return
 * error_set(...)`. */
int error_set(struct error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As error_set, with ": <strerror(code)>" appended. */
int error_set_errno(struct error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the text that is there. Returns -err->code. */
int error_prefix(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Forgets the error. */
void error_clear(struct error *err);

#endif
