/* What QEMUs must agree on, and what keeps a guest from being moved: tables of cases. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "migrate/guest/qemu/facts_internal.h"
#include "tests/unit/qemu_real.h"

/* Comparing. */

static const char base[] =
    "{\"major\":7,\"minor\":2,\"package\":\"\",\"machine\":\"pc-q35-7.2\",\"accel\":\"tcg\","
    "\"name\":\"g\",\"cpu\":{\"type\":\"qemu64-x86_64-cpu\",\"count\":2,\"slots\":2,\"sockets\":1,"
    "\"dies\":1,\"cores\":2,\"threads\":1,\"features\":{\"CPUID 0x1.0 ECX\":7}},"
    "\"memory\":[{\"id\":\"r\",\"size\":1048576}],"
    "\"devices\":["
    "{\"id\":\"disk0\",\"type\":\"virtio-blk-pci\",\"bus\":\"pcie.0\",\"address\":\"01.0\","
    "\"board\":false,\"path\":\"/p\"},"
    "{\"id\":\"\",\"type\":\"virtio-rng-pci\",\"bus\":\"pcie.0\",\"address\":\"02.0\","
    "\"board\":false,\"path\":\"/p\"},"
    "{\"id\":\"\",\"type\":\"isa-serial\",\"bus\":\"isa.0\",\"address\":\"iobase=1016\","
    "\"board\":true,\"path\":\"/p\"}],"
    "\"disks\":[{\"device\":\"disk0\",\"format\":\"raw\",\"size\":4096,\"readonly\":false,"
    "\"direct\":true,\"unsafe\":false,\"file\":\"/d\"}],"
    "\"networks\":[{\"id\":\"n\",\"kind\":\"tap\"}]}";

struct edit {
    const char *from, *to;
};

/* The base with every edit made once; the caller's to free. */
static char *edited(const struct edit *edits)
{
    char *text = strdup(base), *next;

    for (; edits->from; edits++) {
        char *at = strstr(text, edits->from);
        cr_assert_not_null(at, "the base has no '%s'", edits->from);
        cr_assert_gt(asprintf(&next, "%.*s%s%s", (int)(at - text), text, edits->to,
                              at + strlen(edits->from)),
                     0);
        free(text);
        text = next;
    }
    return text;
}

static int decode(const char *text, uint8_t version, struct qemu_facts **out, struct error *err)
{
    size_t size = strlen(text) + 4;
    char *bytes = calloc(1, size);
    int ret;

    bytes[0] = (char)version;
    memcpy(bytes + 4, text, size - 4);
    ret = qemu_facts_decode(bytes, size, out, err);
    free(bytes);
    return ret;
}

static struct qemu_facts *facts_of(const char *name, const struct edit *edits)
{
    struct qemu_facts *f;
    struct error err = {0};
    char *text = edited(edits);

    cr_assert_eq(decode(text, FACTS_VERSION, &f, &err), 0, "%s: %s", name, err.text);
    free(text);
    return f;
}

#define DISK0                                                                                      \
    "{\"id\":\"disk0\",\"type\":\"virtio-blk-pci\",\"bus\":\"pcie.0\",\"address\":\"01.0\","
#define RNG  "{\"id\":\"\",\"type\":\"virtio-rng-pci\",\"bus\":\"pcie.0\",\"address\":\"02.0\","
#define REST "\"board\":false,\"path\":\"/p\"}"

struct comparison {
    const char *name;
    struct edit source[3], here[3];
    const char *reasons[4];
};

static const struct comparison comparisons[] = {
    {"equal", {{0}}, {{0}}, {NULL}},
    {"other name, micro version and files are nobody's business",
     {{"\"name\":\"g\"", "\"name\":\"h\""}, {"\"file\":\"/d\"", "\"file\":\"/e\""}},
     {{0}},
     {NULL}},
    {"newer source", {{"\"minor\":2", "\"minor\":3"}}, {{0}}, {"install QEMU 7.3 or newer"}},
    {"newer source, next major",
     {{"\"major\":7,\"minor\":2", "\"major\":10,\"minor\":0"}},
     {{0}},
     {"cannot read a newer one's"}},
    {"newer destination", {{0}}, {{"\"major\":7", "\"major\":10"}}, {NULL}},
    {"newer destination, machine without version",
     {{"pc-q35-7.2", "microvm"}},
     {{"pc-q35-7.2", "microvm"}, {"\"minor\":2", "\"minor\":3"}},
     {"microvm has no version"}},
    {"machine type",
     {{0}},
     {{"pc-q35-7.2", "pc-i440fx-7.2"}},
     {"start QEMU here with -machine pc-q35-7.2"}},
    {"accelerator", {{"tcg", "kvm"}}, {{0}}, {"with -accel kvm"}},
    {"vCPUs", {{"\"count\":2", "\"count\":3"}}, {{0}}, {"start it with -smp 3"}},
    {"topology",
     {{"\"cores\":2,\"threads\":1", "\"cores\":1,\"threads\":2"}},
     {{0}},
     {"maxcpus=2,sockets=1,dies=1,cores=1,threads=2"}},
    {"processor", {{0}}, {{"qemu64", "max"}}, {"the guest's processor is qemu64"}},
    {"a feature missing here", {{"ECX\":7", "ECX\":15"}}, {{0}}, {"CPUID 0x1.0 ECX bits 0x8"}},
    {"a feature more here", {{0}}, {{"ECX\":7", "ECX\":15"}}, {NULL}},
    {"a feature word missing here",
     {{0}},
     {{"\"CPUID 0x1.0 ECX\":7", ""}},
     {"CPUID 0x1.0 ECX bits 0x7"}},
    {"RAM of another size",
     {{0}},
     {{"1048576", "2097152"}},
     {"the guest's RAM r has 1048576 bytes and here 2097152"}},
    {"RAM of another name",
     {{"\"id\":\"r\"", "\"id\":\"ram\""}},
     {{0}},
     {"memory-backend-file,id=ram,size=1048576", "RAM r that the guest does not have"}},
    {"device missing here",
     {{0}},
     {{DISK0 REST ",", ""}},
     {"device disk0 (virtio-blk-pci) is missing"}},
    {"device without id missing here",
     {{0}},
     {{RNG REST ",", ""}},
     {"device virtio-rng-pci at pcie.0 02.0 (virtio-rng-pci) is missing"}},
    {"device only here",
     {{DISK0 REST ",", ""}},
     {{0}},
     {"device disk0 (virtio-blk-pci) that the guest"}},
    {"device of another type",
     {{0}},
     {{"virtio-blk-pci", "nvme"}},
     {"device disk0 is a virtio-blk-pci and here a nvme"}},
    {"device of another id", {{0}}, {{"\"id\":\"disk0\"", "\"id\":\"d\""}}, {"is called d here"}},
    {"device in another place",
     {{0}},
     {{"\"01.0\"", "\"05.0\""}},
     {"sits at pcie.0 01.0 and here at pcie.0 05.0"}},
    {"other order", {{0}}, {{DISK0 REST "," RNG REST, RNG REST "," DISK0 REST}}, {NULL}},
    {"two of a kind, one here",
     {{RNG REST, RNG REST "," RNG REST}},
     {{0}},
     {"virtio-rng-pci at pcie.0 02.0 (virtio-rng-pci) is missing"}},
    {"the board's device missing",
     {{0}},
     {{"isa-serial", "isa-fdc"}},
     {"is a isa-serial and here a isa-fdc"}},
    {"the board's device differs between releases",
     {{0}},
     {{"isa-serial", "isa-fdc"}, {"\"minor\":2", "\"minor\":3"}},
     {NULL}},
    {"disk of another size",
     {{0}},
     {{"\"size\":4096", "\"size\":8192"}},
     {"has 4096 bytes and here 8192"}},
    {"disk of another format", {{0}}, {{"raw", "qcow2"}}, {"has the format raw and here qcow2"}},
    {"disk without a medium here", {{0}}, {{"raw", ""}}, {"and here (no medium)"}},
    {"disk read-only here",
     {{0}},
     {{"\"readonly\":false", "\"readonly\":true"}},
     {"is writable and here read-only"}},
    {"disk of another device",
     {{"\"device\":\"disk0\"", "\"device\":\"disk1\""}},
     {{0}},
     {"disk disk1 has no counterpart", "a disk disk0 that the guest"}},
    {"several at once",
     {{"tcg", "kvm"}, {"\"count\":2", "\"count\":1"}},
     {{"raw", "qcow2"}},
     {"-accel kvm", "-smp 1", "format raw"}},
};

Test(qemu_facts, every_difference_is_a_reason)
{
    for (size_t i = 0; i < sizeof comparisons / sizeof comparisons[0]; i++) {
        const struct comparison *c = &comparisons[i];
        struct qemu_facts *source = facts_of(c->name, c->source),
                          *here = facts_of(c->name, c->here);
        struct reasons reasons = {0};

        qemu_facts_compare(source, here, &reasons);
        expect_reasons(c->name, &reasons, c->reasons);
        reasons_free(&reasons);
        qemu_facts_free(source);
        qemu_facts_free(here);
    }
}

/* Decoding. */

static const struct {
    const char *name;
    struct edit edits[2];
} damages[] = {
    {"a number as text", {{"\"major\":7", "\"major\":\"7\""}}},
    {"a negative number", {{"\"count\":2", "\"count\":-2"}}},
    {"half a vCPU", {{"\"count\":2", "\"count\":2.5"}}},
    {"an endless size", {{"1048576", "1e300"}}},
    {"a text as number", {{"\"name\":\"g\"", "\"name\":7"}}},
    {"an escape in a text", {{"\"name\":\"g\"", "\"name\":\"\\u001b[2J\""}}},
    {"a new line in a text", {{"virtio-blk-pci", "virtio\\nblk"}}},
    {"a flag as number", {{"\"readonly\":false", "\"readonly\":0"}}},
    {"no machine", {{"\"machine\":\"pc-q35-7.2\",", ""}}},
    {"no disks", {{"\"disks\"", "\"dusks\""}}},
    {"a list that is none", {{"[{\"id\":\"r\",\"size\":1048576}]", "{}"}}},
    {"a member that is none", {{"{\"id\":\"r\",\"size\":1048576}", "7"}}},
    {"features of any name", {{"CPUID 0x1.0 ECX", "CPUID\\t"}}},
    {"a feature that is no number", {{"ECX\":7", "ECX\":[]"}}},
    {"the end too early", {{"\"tap\"}]}", "\"tap\"}]"}}},
    {"something behind the end", {{"\"tap\"}]}", "\"tap\"}]}x"}}},
};

Test(qemu_facts, damaged_bytes_are_refused)
{
    struct qemu_facts *f;
    struct error err = {0};

    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        char *text = edited(damages[i].edits);
        error_clear(&err);
        cr_expect_eq(decode(text, FACTS_VERSION, &f, &err), -EBADMSG, "%s was taken",
                     damages[i].name);
        cr_expect(strstr(err.text, "damaged"), "%s: '%s'", damages[i].name, err.text);
        free(text);
    }
    cr_expect_eq(qemu_facts_decode("", 0, &f, &err), -EBADMSG);
    cr_expect_eq(qemu_facts_decode("\1\0\0", 3, &f, &err), -EBADMSG);
    cr_expect_eq(qemu_facts_decode("\1\0\0\0", 4, &f, &err), -EBADMSG);
    error_clear(&err);
    cr_expect_eq(decode(base, FACTS_VERSION + 1, &f, &err), -EBADMSG);
    cr_expect(strstr(err.text, "same version of wander"), "'%s'", err.text);
    cr_expect_eq(qemu_facts_decode("\1\0\0\0{}\0{}", 9, &f, &err), -EBADMSG, "a zero within");
}

Test(qemu_facts, a_list_without_end_is_refused)
{
    char *devices = calloc(FACTS_MAX_ITEMS + 2, 128), *at = devices;
    struct qemu_facts *f;
    struct error err = {0};

    for (int i = 0; i < FACTS_MAX_ITEMS + 1; i++)
        at += sprintf(at, "{\"id\":\"r%d\",\"size\":4096},", i);
    at[-1] = '\0';
    char *text =
        edited((struct edit[]){{"{\"id\":\"r\",\"size\":1048576}", devices}, {NULL, NULL}});
    cr_expect_eq(decode(text, FACTS_VERSION, &f, &err), -EBADMSG);
    free(text);
    free(devices);
}

/* Input and output. */

static const struct {
    const char *argument, *method;
} spellings[] = {
    {"file=d.raw,format=raw,aio=native,cache=none", "native"},
    {"driver=raw,file.driver=file,file.aio=io_uring", "io_uring"},
    {"{\"driver\":\"file\",\"aio\":\"native\"}", "native"},
    {"{\"aio\" : \"io_uring\"}", "io_uring"},
    {"driver=file,aio=threads", NULL},
    {"aio=threads,filename=aio=native", "native"}, /* refused rather than overlooked */
    {"node-name=aio,filename=native", NULL},
    {"aionative", NULL},
    {"", NULL},
};

Test(qemu_facts, arguments_tell_how_disks_are_read)
{
    for (size_t i = 0; i < sizeof spellings / sizeof spellings[0]; i++) {
        const char *method = NULL;
        bool found = facts_argument_aio(spellings[i].argument, &method);
        cr_expect_eq(found, spellings[i].method != NULL, "'%s': %s", spellings[i].argument,
                     found ? method : "nothing");
        if (found && spellings[i].method)
            cr_expect_str_eq(method, spellings[i].method, "'%s'", spellings[i].argument);
    }
}

/* A monitor that gives the answers it was told to, "{}" to all else. */

struct answer {
    const char *command, *text;
};

struct monitor {
    int socket;
    const struct answer *answers;
    pthread_t thread;
};

static void *answer_all(void *monitor)
{
    struct monitor *m = monitor;
    FILE *in = fdopen(m->socket, "r+");
    char *line = NULL, command[64], id[128];
    size_t size = 0;

    while (getline(&line, &size, in) > 0) {
        const char *text = "{}", *at = strstr(line, "{\"execute\":\"");
        if (!at || sscanf(at, "{\"execute\":\"%63[^\"]", command) != 1)
            continue;
        sscanf(strstr(at, "\"id\":\""), "\"id\":\"%127[^\"]", id);
        for (const struct answer *a = m->answers; a->command; a++)
            if (strcmp(a->command, command) == 0)
                text = a->text;
        dprintf(m->socket, "{\"return\": %s, \"id\": \"%s\"}\r\n", text, id);
    }
    free(line);
    fclose(in);
    return NULL;
}

struct refusal {
    const char *name;
    struct edit edits[2];
    struct answer answers[3];
    const char *reasons[3];
};

#define STATUS(text)                                                                               \
    {                                                                                              \
        "query-status", "{\"status\": \"" text "\"}"                                               \
    }
#define TYPE(from, to)                                                                             \
    {                                                                                              \
        {                                                                                          \
            "\"type\":\"" from "\"", "\"type\":\"" to "\""                                         \
        }                                                                                          \
    }

#define NODE(driver)                                                                               \
    {                                                                                              \
        "query-named-block-nodes", "[{\"drv\": \"qcow2\", \"node-name\": \"n1\"},"                 \
                                   "{\"drv\": \"" driver "\", \"node-name\": \"n0\"}]"             \
    }

static const struct refusal refusals[] = {
    {"nothing wrong", {{0}}, {STATUS("running")}, {NULL}},
    {"paused", {{0}}, {STATUS("paused")}, {NULL}},
    {"not started yet", {{0}}, {STATUS("prelaunch")}, {NULL}},
    {"an earlier migration failed", {{0}}, {{"query-migrate", "{\"status\": \"failed\"}"}}, {NULL}},
    {"a bad disk", {{0}}, {STATUS("io-error")}, {"in the state io-error: mend its disk"}},
    {"panicked", {{0}}, {STATUS("guest-panicked")}, {"reset or ended"}},
    {"moved away", {{0}}, {STATUS("postmigrate")}, {"if nobody else has it"}},
    {"not there yet", {{0}}, {STATUS("inmigrate")}, {"waits for a guest from elsewhere"}},
    {"a migration",
     {{0}},
     {{"query-migrate", "{\"status\": \"active\"}"}},
     {"query-migrate says active"}},
    {"two blockers",
     {{0}},
     {{"query-migrate", "{\"blocked-reasons\": [\"first thing\", 7]}"}},
     {"first thing; take away", "(no text)"}},
    {"a job",
     {{0}},
     {{"query-block-jobs", "[{\"type\": \"mirror\", \"device\": \"dr\"}]"}},
     {"(mirror, dr)"}},
    {"vfio", TYPE("virtio-rng-pci", "vfio-pci"), {{0}}, {"device_del"}},
    {"vhost-user", TYPE("virtio-rng-pci", "vhost-user-fs-pci"), {{0}}, {"another process writes"}},
    {"vdpa device", TYPE("virtio-rng-pci", "vhost-vdpa-device-pci"), {{0}}, {"its hardware"}},
    {"vhost-scsi", TYPE("virtio-rng-pci", "vhost-scsi-pci"), {{0}}, {"virtio-scsi-pci"}},
    {"a disk passed through", TYPE("virtio-rng-pci", "scsi-block"), {{0}}, {"use scsi-hd"}},
    {"a drive passed through", TYPE("virtio-rng-pci", "scsi-generic"), {{0}}, {"(scsi-generic)"}},
    {"an emulated disk", TYPE("virtio-rng-pci", "scsi-hd"), {{0}}, {NULL}},
    {"an NVMe disk inside QEMU",
     {{0}},
     {NODE("nvme")},
     {"node n0 has the driver nvme: the disk's"}},
    {"libblkio, io_uring", {{0}}, {NODE("io_uring")}, {"driver io_uring: the kernel"}},
    {"libblkio, NVMe", {{0}}, {NODE("nvme-io_uring")}, {"driver nvme-io_uring: the kernel"}},
    {"libblkio, vfio", {{0}}, {NODE("virtio-blk-vfio-pci")}, {"virtio-blk-vfio-pci: the disk's"}},
    {"libblkio, vdpa", {{0}}, {NODE("virtio-blk-vhost-vdpa")}, {"vhost-vdpa: the disk's"}},
    {"libblkio, vhost-user", {{0}}, {NODE("virtio-blk-vhost-user")}, {"another process"}},
    {"ordinary drivers", {{0}}, {NODE("host_device")}, {NULL}},
    {"vhost-vsock", TYPE("virtio-rng-pci", "vhost-vsock-pci"), {{0}}, {NULL}},
    {"virtio-mem", TYPE("virtio-rng-pci", "virtio-mem-pci"), {{0}}, {"all its RAM with -m"}},
    {"nvdimm", TYPE("virtio-rng-pci", "nvdimm"), {{0}}, {"its memory is a file"}},
    {"ivshmem", TYPE("virtio-rng-pci", "ivshmem-doorbell"), {{0}}, {"shared with other guests"}},
    {"a balloon", TYPE("virtio-rng-pci", "virtio-balloon-pci"), {{"qom-get", "false"}}, {NULL}},
    {"a balloon that reports",
     TYPE("virtio-rng-pci", "virtio-balloon-pci"),
     {{"qom-get", "true"}},
     {"free-page-reporting=on"}},
    {"vhost-user network",
     {{"\"tap\"", "\"vhost-user\""}},
     {{0}},
     {"network n is of the kind vhost-user"}},
    {"vdpa network", {{"\"tap\"", "\"vhost-vdpa\""}}, {{0}}, {"use -netdev tap"}},
    {"a disk without a name", {{"\"/d\"", "\"/nowhere/vl.x\""}}, {{0}}, {"-snapshot"}},
    {"a disk on the network", {{"\"/d\"", "\"nbd://host/d\""}}, {{0}}, {NULL}},
};

static void check_refusal(const struct refusal *c)
{
    struct qemu_facts *f = facts_of(
        c->name, c->edits[0].from ? c->edits : (struct edit[]){{"\"/d\"", "\"/dev/d\""}, {0}});
    struct monitor m = {.answers = c->answers};
    struct reasons reasons = {0};
    struct error err = {0};
    struct qmp *q;
    int ends[2];

    if (c->edits[0].from && !strstr(c->edits[0].from, "/d"))
        cJSON_SetValuestring(
            cJSON_GetObjectItem(cJSON_GetArrayItem(facts_list(f, "disks"), 0), "file"), "/");
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    m.socket = ends[1];
    cr_assert_eq(pthread_create(&m.thread, NULL, answer_all, &m), 0);
    cr_assert_eq(qmp_adopt(ends[0], &q, &err), 0, "%s: %s", c->name, err.text);
    cr_expect_eq(qemu_facts_refuse(q, getpid(), f, &reasons, NULL, &err), 0, "%s: %s", c->name,
                 err.text);
    expect_reasons(c->name, &reasons, c->reasons);
    qmp_close(q);
    pthread_join(m.thread, NULL);
    reasons_free(&reasons);
    qemu_facts_free(f);
}

Test(qemu_facts, what_would_escape_is_refused)
{
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++)
        check_refusal(&refusals[i]);
}

Test(qemu_facts, a_process_that_cannot_be_seen_is_refused)
{
    struct reasons reasons = {0};

    facts_refuse_aio(0x7fffffff, true, &reasons);
    cr_expect_eq(reasons.count, 3, "%s", reasons.text);
    cr_expect(reasons.text && strstr(reasons.text, "run wander as QEMU's user"), "%s",
              reasons.text);
    reasons_free(&reasons);
}
