/* The facts of real QEMUs: judged, and compared with one another's. */
#include <errno.h>
#include <stdlib.h>

#include "migrate/guest/qemu/facts.h"
#include "tests/unit/qemu_real.h"

#define MACHINE                                                                                    \
    "-object memory-backend-file,id=r,size=64M,mem-path=r.ram,share=on -machine "                  \
    "q35,memory-backend=r -name tested "
#define DISK "-drive file=d.raw,format=raw,if=none,id=d,cache=none,"

struct real_case {
    const char *name, *arguments;
    const char *reasons[3], *notes[3];
    bool disk_used; /* read once before it is judged */
};

static const struct real_case real_cases[] = {
    {"nothing wrong", MACHINE "-device virtio-rng-pci", {NULL}, {NULL}},
    {"a disk",
     MACHINE DISK "aio=threads -device virtio-blk-pci,drive=d,id=disk0",
     {NULL},
     {"disk0 (d.raw) seems to be on storage of this host alone"}},
    {"a cached disk",
     MACHINE "-drive file=d.raw,format=raw,if=virtio",
     {NULL},
     {"seems to be on storage", "page cache"}},
    {"an iothread",
     MACHINE "-object iothread,id=io " DISK
             "aio=threads -device virtio-blk-pci,drive=d,iothread=io",
     {NULL},
     {"seems to be on storage"}},
    {"native",
     MACHINE DISK "aio=native -device virtio-blk-pci,drive=d",
     {"aio=native (its command line says file=d.raw"},
     {"seems to be on storage"}},
    {"io_uring",
     MACHINE DISK "aio=io_uring -device virtio-blk-pci,drive=d",
     {"aio=io_uring (its command line says"},
     {"seems to be on storage"}},
    {"native, not on the command line",
     MACHINE "-readconfig disk.conf -device virtio-blk-pci,drive=d",
     {"aio=native (QEMU has set up Linux AIO)"},
     {"seems to be on storage"},
     true},
    {"io_uring, not on the command line",
     MACHINE "-readconfig ring.conf -device virtio-blk-pci,drive=d",
     {"aio=io_uring (QEMU has set up an io_uring)"},
     {"seems to be on storage"},
     true},
    {"a balloon",
     MACHINE "-device virtio-balloon-pci,id=b",
     {NULL},
     {"leave the size of the balloon b alone"}},
    {"a balloon that reports",
     MACHINE "-device virtio-balloon-pci,id=b,free-page-reporting=on",
     {"balloon b gives free pages back"},
     {NULL}},
    {"ivshmem",
     MACHINE "-object memory-backend-ram,id=s,size=1M,share=on -device ivshmem-plain,memdev=s",
     {"shared with other guests", "QEMU itself refuses to move the guest: Migration is disabled"},
     {NULL}},
    {"a snapshot",
     MACHINE "-drive file=d.raw,format=raw,if=virtio,snapshot=on",
     {"-snapshot"},
     {"cache=unsafe"}},
};

static void write_file(const struct fixture_qemu *qemu, const char *name, const char *text,
                       off_t size)
{
    char path[128];
    FILE *file;

    snprintf(path, sizeof path, "%s/%s", qemu->folder, name);
    cr_assert_not_null(file = fopen(path, "w"));
    fputs(text, file);
    fclose(file);
    cr_assert_eq(truncate(path, size ? size : (off_t)strlen(text)), 0);
}

#define DISK_CONFIG(aio)                                                                           \
    "[drive \"d\"]\n  file = \"d.raw\"\n  format = \"raw\"\n  if = \"none\"\n"                     \
    "  cache = \"none\"\n  aio = \"" aio "\"\n"

static void start_with_disk(struct fixture_qemu *qemu, const char *arguments)
{
    fixture_folder(qemu);
    write_file(qemu, "d.raw", "", 4 << 20);
    write_file(qemu, "disk.conf", DISK_CONFIG("native"), 0);
    write_file(qemu, "ring.conf", DISK_CONFIG("io_uring"), 0);
    fixture_start(qemu, arguments);
}

/* Newer QEMUs set up what a disk's I/O takes only then. */
static void use_disk(struct fixture_qemu *qemu)
{
    cJSON *arguments = cJSON_CreateObject();
    struct error err = {0};

    cJSON_AddStringToObject(arguments, "command-line", "qemu-io d \"read 0 4096\"");
    cr_assert_eq(
        qmp_command(qemu->qmp, "human-monitor-command", arguments, -1, QMP_TIMEOUT_MS, NULL, &err),
        0, "%s", err.text);
}

static void check_real_case(const struct real_case *c)
{
    struct reasons reasons = {0}, notes = {0};
    struct fixture_qemu qemu = {0};
    struct qemu_facts *f;
    struct error err = {0};

    start_with_disk(&qemu, c->arguments);
    if (c->disk_used)
        use_disk(&qemu);
    cr_assert_eq(qemu_facts_gather(qemu.qmp, &f, &err), 0, "%s: %s", c->name, err.text);
    cr_expect_eq(qemu_facts_refuse(qemu.qmp, qemu.pid, f, &reasons, &notes, &err), 0, "%s: %s",
                 c->name, err.text);
    expect_reasons(c->name, &reasons, c->reasons);
    expect_reasons(c->name, &notes, c->notes);
    reasons_free(&reasons);
    reasons_free(&notes);
    qemu_facts_free(f);
    fixture_stop(&qemu);
}

Test(qemu_facts_real, are_judged, .timeout = 240)
{
    for (size_t i = 0; i < sizeof real_cases / sizeof real_cases[0]; i++)
        check_real_case(&real_cases[i]);
}

/* The facts of a QEMU, by way of the wire. */
static struct qemu_facts *travelled(struct fixture_qemu *qemu, const char *arguments)
{
    struct qemu_facts *f, *out;
    struct error err = {0};
    uint8_t *bytes;
    uint32_t size;

    start_with_disk(qemu, arguments);
    cr_assert_eq(qemu_facts_gather(qemu->qmp, &f, &err), 0, "%s: %s", arguments, err.text);
    cr_assert_eq(qemu_facts_encode(f, &bytes, &size, &err), 0, "%s", err.text);
    cr_assert_eq(qemu_facts_decode(bytes, size, &out, &err), 0, "%s", err.text);
    free(bytes);
    qemu_facts_free(f);
    return out;
}

#define RICH                                                                                       \
    MACHINE DISK                                                                                   \
        "aio=threads -device virtio-blk-pci,drive=d,id=disk0 -netdev user,id=n -device "           \
        "virtio-net-pci,netdev=n -device virtio-scsi-pci,id=s -drive if=none,id=cd,media=cdrom "   \
        "-device scsi-cd,drive=cd -device qemu-xhci,id=x -device usb-tablet,bus=x.0 -vga std "     \
        "-serial "                                                                                 \
        "null -smp 2,maxcpus=4 "

static const struct real_comparison {
    const char *name, *arguments;
    const char *reasons[4];
} real_comparisons[] = {
    {"the same", RICH, {NULL}},
    {"the same, waiting", RICH "-incoming defer", {NULL}},
    {"a device more", RICH "-device virtio-rng-pci", {"(virtio-rng-pci) that the guest"}},
    {"a serial port more", RICH "-serial null", {"(isa-serial) that the guest"}},
    {"another vga", RICH "-vga cirrus", {"device VGA (VGA) is missing", "device cirrus-vga"}},
    {"another model", RICH "-cpu max", {"processor is qemu64-x86_64-cpu and here it is max"}},
    {"less of a model", RICH "-cpu qemu64,-sse3", {"CPUID 0x1.0 ECX bits 0x1"}},
    {"more vCPUs", RICH "-smp 3,maxcpus=4", {"-smp 2"}},
};

Test(qemu_facts_real, are_compared, .timeout = 240)
{
    struct fixture_qemu source = {0};
    struct qemu_facts *guest = travelled(&source, RICH);

    cr_expect_str_eq(qemu_facts_accel(guest), "tcg");
    cr_expect_str_eq(qemu_facts_name(guest), "tested");
    cr_expect_eq(qemu_facts_vcpus(guest), 2);
    for (size_t i = 0; i < sizeof real_comparisons / sizeof real_comparisons[0]; i++) {
        struct fixture_qemu qemu = {0};
        struct qemu_facts *here = travelled(&qemu, real_comparisons[i].arguments);
        struct reasons reasons = {0};

        qemu_facts_compare(guest, here, &reasons);
        expect_reasons(real_comparisons[i].name, &reasons, real_comparisons[i].reasons);
        reasons_free(&reasons);
        qemu_facts_free(here);
        fixture_stop(&qemu);
    }
    qemu_facts_free(guest);
    fixture_stop(&source);
}

Test(qemu_facts_real, a_qemu_that_has_gone_is_an_error, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct reasons reasons = {0};
    struct qemu_facts *f, *none;
    struct error err = {0};

    fixture_start(&qemu, NULL);
    cr_assert_eq(qemu_facts_gather(qemu.qmp, &f, &err), 0, "%s", err.text);
    kill(qemu.pid, SIGKILL);
    waitpid(qemu.pid, NULL, 0);
    cr_expect_eq(qemu_facts_refuse(qemu.qmp, qemu.pid, f, &reasons, NULL, &err), -ECONNRESET);
    cr_expect_eq(qemu_facts_gather(qemu.qmp, &none, &err), -ECONNRESET);
    cr_expect_null(none);
    reasons_free(&reasons);
    qemu_facts_free(f);
    fixture_stop(&qemu);
}
