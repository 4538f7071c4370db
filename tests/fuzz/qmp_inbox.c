/* Feeds bytes to the reader of a monitor's lines in pieces of every size, as a socket might. What
 * comes out does not depend on the pieces.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address -D_GNU_SOURCE -I. tests/fuzz/qmp_inbox.c
 * migrate/guest/qemu/qmp_inbox.c -lcjson -o qmp_inbox && ./qmp_inbox -max_len=4096
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/qemu/qmp_inbox.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static unsigned drain(struct qmp_inbox *in)
{
    unsigned lines = 0;
    cJSON *message;
    int ret;

    while ((ret = qmp_inbox_next(in, &message)) != 0) {
        lines++;
        if (ret < 0)
            continue;
        if (!cJSON_IsObject(message))
            abort();
        qmp_inbox_note(in, message);
        cJSON_Delete(message);
    }
    return lines;
}

static unsigned read_all(const uint8_t *bytes, size_t size, size_t piece)
{
    struct qmp_inbox in = {.forgive = true};
    unsigned lines = 0;
    size_t room;

    for (size_t at = 0; at < size;) {
        char *to = qmp_inbox_room(&in, piece, &room);
        size_t length = size - at < piece ? size - at : piece;
        if (!to || room < length)
            abort();
        memcpy(to, bytes + at, length);
        qmp_inbox_filled(&in, length);
        at += length;
        lines += drain(&in);
    }
    qmp_inbox_free(&in);
    return lines;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    if (size > 0 &&
        read_all(bytes + 1, size - 1, bytes[0] + 1) != read_all(bytes + 1, size - 1, size))
        abort();
    return 0;
}
