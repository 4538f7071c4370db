#include "transport/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const level_names[] = {
    [LOG_ERROR] = "error",
    [LOG_WARNING] = "warning",
    [LOG_INFO] = "info",
    [LOG_DEBUG] = "debug",
};

enum { LEVEL_COUNT = sizeof(level_names) / sizeof(level_names[0]) };

static enum log_level log_threshold(void)
{
    const char *wanted = getenv("WANDER_LOG");

    for (unsigned level = 0; wanted && level < LEVEL_COUNT; level++)
        if (!strcmp(wanted, level_names[level]))
            return level;
    return LOG_WARNING;
}

bool log_enabled(enum log_level level)
{
    return level <= log_threshold();
}

void log_line(enum log_level level, const char *format, ...)
{
    char line[1024];
    va_list args;
    size_t used;
    ssize_t written;

    if (!log_enabled(level))
        return;
    used = (size_t)snprintf(line, sizeof(line), "wander: %s: ", level_names[level]);
    va_start(args, format);
    vsnprintf(line + used, sizeof(line) - used - 1, format, args);
    va_end(args);
    used = strlen(line);
    line[used++] = '\n';
    /* There is nowhere to report that stderr is gone. */
    written = write(STDERR_FILENO, line, used);
    (void)written;
}
