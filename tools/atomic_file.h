/* A file that is replaced as a whole or not at all. */
#ifndef TOOLS_ATOMIC_FILE_H
#define TOOLS_ATOMIC_FILE_H

#include "transport/base/error.h"

struct atomic_file {
    int fd; /* of the temporary file beside it, or of the file itself when that is no regular file
               (/dev/stdout) */
    char path[3072], temporary[3200]; /* "" when there is none */
};

/* Makes sure now that the file can be written later. Zeroed where nothing was opened. -errno. */
int atomic_file_open(const char *path, struct atomic_file *out, struct error *err);
/* Writes `text` and puts the file in place (fsync, rename). Once. */
int atomic_file_commit(struct atomic_file *file, const char *text, struct error *err);
/* Gives up what was not committed. A zeroed file is fine. */
void atomic_file_close(struct atomic_file *file);

#endif
