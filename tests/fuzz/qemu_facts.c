/* Feeds bytes to the decoder of a QEMU's description, and what it takes to the comparison: with
 * itself, where nothing may differ, and with a plain one.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address -D_GNU_SOURCE -I. tests/fuzz/qemu_facts.c
 * migrate/guest/guest.c migrate/guest/qemu/facts.c migrate/guest/qemu/facts_compare.c \
 * migrate/guest/qemu/qom.c migrate/guest/qemu/qmp.c migrate/guest/qemu/qmp_inbox.c \
 * transport/base/error.c transport/base/wire.c transport/base/clock.c -lcjson -o qemu_facts &&
 * ./qemu_facts -max_len=8192
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/qemu/facts.h"

static const char fuzz_plain[] =
    "\1\0\0\0{\"major\":7,\"minor\":2,\"package\":\"\",\"machine\":\"pc-q35-7.2\",\"accel\":"
    "\"tcg\",\"name\":\"\",\"cpu\":{\"type\":\"\",\"count\":1,\"slots\":1,\"sockets\":1,\"dies\":1,"
    "\"cores\":1,\"threads\":1,\"features\":{}},\"memory\":[],\"devices\":[],\"disks\":[],"
    "\"networks\":[]}";

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check_taken(const struct qemu_facts *f)
{
    struct reasons reasons = {0};
    struct error err = {0};
    struct qemu_facts *plain;

    qemu_facts_compare(f, f, &reasons);
    reasons_free(&reasons);
    if (qemu_facts_decode(fuzz_plain, sizeof(fuzz_plain) - 1, &plain, &err) < 0)
        abort();
    qemu_facts_compare(f, plain, &reasons);
    qemu_facts_compare(plain, f, &reasons);
    if (reasons.text && strpbrk(reasons.text, "\033\r\t"))
        abort();
    reasons_free(&reasons);
    qemu_facts_free(plain);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct qemu_facts *f;
    struct error err = {0};
    int result = qemu_facts_decode(bytes, size, &f, &err);

    if ((result == 0) != (f != NULL) || (result < 0 && !err.text[0]))
        abort();
    if (f)
        check_taken(f);
    qemu_facts_free(f);
    return 0;
}
