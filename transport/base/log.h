/* Diagnostics on stderr. The level comes from the environment variable WANDER_LOG (error, warning,
 * info, debug; default warning), read at each call: log lines are rare and nothing here is a
 * mutable global. */
#ifndef TRANSPORT_BASE_LOG_H
#define TRANSPORT_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* One line "wander: <level>: <text>", written with a single write(2). Any thread. */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool log_enabled(enum log_level level);

#endif
