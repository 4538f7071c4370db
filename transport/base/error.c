#include "transport/base/error.h"

#include <stdio.h>
#include <string.h>

/* True when a new text may be written: there is somewhere to put it and no older error to keep. */
static bool error_is_free(const struct error *err)
{
    return err && !err->code;
}

int error_set(struct error *err, int code, const char *format, ...)
{
    va_list args;

    if (!error_is_free(err))
        return -code;
    err->code = code;
    va_start(args, format);
    vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    return -code;
}

int error_set_errno(struct error *err, int code, const char *format, ...)
{
    char reason[128];
    va_list args;
    size_t used;

    if (!error_is_free(err))
        return -code;
    err->code = code;
    va_start(args, format);
    vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    used = strlen(err->text);
    snprintf(err->text + used, sizeof(err->text) - used, ": %s",
             strerror_r(code, reason, sizeof(reason)));
    return -code;
}

int error_prefix(struct error *err, const char *format, ...)
{
    char old[ERROR_TEXT_SIZE];
    va_list args;
    size_t used;

    if (!err)
        return 0;
    memcpy(old, err->text, sizeof(old));
    va_start(args, format);
    vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    used = strlen(err->text);
    snprintf(err->text + used, sizeof(err->text) - used, ": %s", old);
    return -err->code;
}

void error_clear(struct error *err)
{
    if (!err)
        return;
    err->code = 0;
    err->text[0] = '\0';
}
