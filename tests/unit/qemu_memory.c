/* The RAM of real QEMUs: found, mapped and refused. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "migrate/guest/qemu/memory.h"
#include "tests/unit/qemu_real.h"

#define FILE_64M(id) "-object memory-backend-file,id=" id ",size=64M,mem-path=" id ".ram,share=on "
#define MOVABLE      FILE_64M("r") "-machine q35,memory-backend=r"

struct memory_case {
    const char *name, *arguments;
    unsigned regions;
    const char *reasons[3]; /* a part of each; as many as there must be */
};

static const struct memory_case memory_cases[] = {
    {"nothing wrong", MOVABLE, 1, {NULL}},
    {"no backend at all", NULL, 0, {"pc.ram of the guest is in anonymous memory"}},
    {"memfd",
     "-object memory-backend-memfd,id=m,size=64M,share=on -machine q35,memory-backend=m",
     0,
     {"memory-backend-file,id=m,size=67108864,mem-path=/dev/shm/GUEST-m,share=on"}},
    {"share=off",
     "-object memory-backend-file,id=r,size=64M,mem-path=r.ram,share=off -machine "
     "q35,memory-backend=r",
     0,
     {"share=off"}},
    {"a directory",
     "-object memory-backend-file,id=r,size=64M,mem-path=.,share=on -machine q35,memory-backend=r",
     0,
     {"directory as mem-path"}},
    {"two NUMA nodes",
     "-machine q35 -smp 2 "
     "-object memory-backend-file,id=b,size=24M,mem-path=b.ram,share=on "
     "-object memory-backend-file,id=a,size=40M,mem-path=a.ram,share=on,prealloc=on "
     "-numa node,memdev=b,cpus=0 -numa node,memdev=a,cpus=1",
     2,
     {NULL}},
    {"two NUMA nodes, one in a memfd",
     "-machine q35 -smp 2 "
     "-object memory-backend-memfd,id=b,size=24M,share=on "
     "-object memory-backend-file,id=a,size=40M,mem-path=a.ram,share=on "
     "-numa node,memdev=b,cpus=0 -numa node,memdev=a,cpus=1",
     1,
     {"RAM b of the guest is in anonymous memory"}},
    {"a backend with another use",
     FILE_64M("other") MOVABLE " -device ivshmem-plain,memdev=other",
     2,
     {"the guest has 64.0 MiB of RAM"}},
    {"a name that is too long",
     FILE_64M("a23456789b123456789c123456789d12") "-machine "
                                                  "q35,memory-backend="
                                                  "a23456789b123456789c123456789d12",
     0,
     {"more than 31 bytes"}},
};

static void check_regions(const struct memory_case *c, struct fixture_qemu *qemu,
                          struct qemu_memory *m)
{
    struct error err = {0};
    pid_t pid = 0;

    cr_expect_eq(m->bytes, 64u << 20, "%s: %llu bytes", c->name, (unsigned long long)m->bytes);
    for (unsigned i = 1; i < m->count; i++)
        cr_expect_lt(strcmp(m->regions[i - 1].name, m->regions[i].name), 0, "%s: not sorted",
                     c->name);
    for (pid_t hint = 0; hint <= 1; hint++) {
        error_clear(&err);
        cr_expect_eq(qemu_memory_locate(m, hint, &pid, &err), 0, "%s: %s", c->name, err.text);
        cr_expect_eq(pid, qemu->pid, "%s: found in process %d, QEMU is %d", c->name, pid,
                     qemu->pid);
    }
    cr_expect_eq(qemu_memory_locate(m, qemu->pid, &pid, &err), 0, "%s: %s", c->name, err.text);
    for (unsigned i = 0; i < m->count; i++)
        cr_expect_neq(m->address[i], 0, "%s: region %u has no address in QEMU", c->name, i);
}

static void check_memory_case(const struct memory_case *c)
{
    struct fixture_qemu qemu = {0};
    struct qemu_memory m;
    struct reasons reasons = {0};
    struct error err = {0};
    unsigned expected = 0;

    fixture_start(&qemu, c->arguments);
    cr_assert_eq(qemu_memory_open(qemu.qmp, &m, &reasons, &err), 0, "%s: %s", c->name, err.text);
    cr_expect_eq(m.count, c->regions, "%s: %u regions, expected %u", c->name, m.count, c->regions);
    for (; expected < 3 && c->reasons[expected]; expected++)
        cr_expect(reasons.text && strstr(reasons.text, c->reasons[expected]),
                  "%s: expected '%s' among the reasons: %s", c->name, c->reasons[expected],
                  reasons.text);
    cr_expect_eq(reasons.count, expected, "%s: %u reasons, expected %u: %s", c->name, reasons.count,
                 expected, reasons.text);
    if (expected == 0)
        check_regions(c, &qemu, &m);
    qemu_memory_close(&m);
    reasons_free(&reasons);
    fixture_stop(&qemu);
}

Test(qemu_memory, is_found_or_refused, .timeout = 240)
{
    for (size_t i = 0; i < sizeof memory_cases / sizeof memory_cases[0]; i++)
        check_memory_case(&memory_cases[i]);
}

Test(qemu_memory, huge_pages_are_refused, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct qemu_memory m;
    struct reasons reasons = {0};
    struct error err = {0};
    char huge[128];

    fixture_folder(&qemu);
    snprintf(huge, sizeof huge, "%s/huge", qemu.folder);
    cr_assert_eq(mkdir(huge, 0700), 0);
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", huge, "hugetlbfs", 0, "pagesize=2M") < 0) {
        rmdir(huge);
        rmdir(qemu.folder);
        cr_skip_test("skipped: hugetlbfs cannot be mounted here (needs root)");
    }
    fixture_start(&qemu, "-object memory-backend-file,id=r,size=64M,mem-path=huge/r.ram,share=on,"
                         "reserve=off -machine q35,memory-backend=r");
    cr_assert_eq(qemu_memory_open(qemu.qmp, &m, &reasons, &err), 0, "%s", err.text);
    cr_expect_eq(m.count, 0);
    cr_expect(reasons.text && strstr(reasons.text, "huge pages") &&
                  strstr(reasons.text, "in pieces of 2.0 MiB"),
              "%s", reasons.text);
    qemu_memory_close(&m);
    reasons_free(&reasons);
    umount2(huge, MNT_DETACH);
    fixture_stop(&qemu);
}

static void open_movable(struct fixture_qemu *qemu, struct qemu_memory *m)
{
    struct reasons reasons = {0};
    struct error err = {0};

    fixture_start(qemu, MOVABLE);
    cr_assert_eq(qemu_memory_open(qemu->qmp, m, &reasons, &err), 0, "%s", err.text);
    cr_assert_eq(reasons.count, 0, "%s", reasons.text);
}

/* What is written here is what QEMU reads: the same bytes, at the address found. */
Test(qemu_memory, is_shared_with_qemu, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct qemu_memory m;
    struct error err = {0};
    char path[64], seen[16] = "";
    cJSON *ask;
    pid_t pid;

    open_movable(&qemu, &m);
    cr_assert_eq(qemu_memory_locate(&m, qemu.pid, &pid, &err), 0, "%s", err.text);
    strcpy((char *)m.regions[0].host + (5 << 20) + 3, "seen by both");
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_geq(memory, 0, "%s: %s", path, strerror(errno));
    cr_expect_eq(pread(memory, seen, 13, (off_t)m.address[0] + (5 << 20) + 3), 13);
    cr_expect_str_eq(seen, "seen by both");
    close(memory);
    ask = cJSON_CreateObject();
    cJSON_AddStringToObject(ask, "command-line", "xp /1bx 0x500003");
    cJSON *answer;
    cr_expect_eq(
        qmp_command(qemu.qmp, "human-monitor-command", ask, -1, QMP_TIMEOUT_MS, &answer, &err), 0,
        "%s", err.text);
    cr_expect(strstr(answer->valuestring, "0x73"), "the guest sees %s", answer->valuestring);
    cJSON_Delete(answer);
    qemu_memory_close(&m);
    fixture_stop(&qemu);
}

Test(qemu_memory, present_are_the_touched_pages, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct extent_list list = {0};
    struct qemu_memory m;
    struct error err = {0};
    uint64_t before, page = GUEST_PAGE_SIZE;

    open_movable(&qemu, &m);
    cr_assert_eq(qemu_memory_present(&m, 0, &list, &err), 0, "%s", err.text);
    before = extent_list_bytes(&list);
    cr_expect_lt(before, 8u << 20, "%llu bytes of a guest that never ran",
                 (unsigned long long)before);
    extent_list_free(&list);
    char *host = m.regions[0].host;
    host[32 << 20] = host[(32 << 20) + page] = host[(64 << 20) - 1] = 1;
    cr_assert_eq(qemu_memory_present(&m, 0, &list, &err), 0, "%s", err.text);
    cr_expect_eq(extent_list_bytes(&list), before + 3 * page, "%llu bytes more",
                 (unsigned long long)(extent_list_bytes(&list) - before));
    cr_expect_eq(list.extents[list.count - 1].offset, (64 << 20) - page);
    cr_expect_eq(list.extents[list.count - 2].offset, 32 << 20);
    cr_expect_eq(list.extents[list.count - 2].length, 2 * page);
    extent_list_free(&list);
    qemu_memory_close(&m);
    fixture_stop(&qemu);
}

/* A file with a hole at its beginning, and data behind the region's end. */
Test(qemu_memory, present_keeps_to_the_part_of_the_file)
{
    struct qemu_memory m = {.count = 1, .regions = {{.size = 1 << 20}}};
    struct extent_list list = {0};
    struct error err = {0};

    m.file[0] = memfd_create("part", MFD_CLOEXEC);
    cr_assert_eq(ftruncate(m.file[0], 4 << 20), 0);
    cr_assert_eq(pwrite(m.file[0], "x", 1, 8192), 1);
    cr_assert_eq(pwrite(m.file[0], "xx", 2, (1 << 20) - 1), 2);
    cr_assert_eq(pwrite(m.file[0], "x", 1, 3 << 20), 1);
    cr_assert_eq(qemu_memory_present(&m, 0, &list, &err), 0, "%s", err.text);
    cr_assert_eq(list.count, 2, "%zu extents", list.count);
    cr_expect_eq(list.extents[0].offset, 8192);
    cr_expect_eq(list.extents[0].length, 4096);
    cr_expect_eq(list.extents[1].offset, (1 << 20) - 4096);
    cr_expect_eq(list.extents[1].length, 4096, "%llu bytes, some of them behind the region",
                 (unsigned long long)list.extents[1].length);
    extent_list_free(&list);
    close(m.file[0]);
    cr_expect_eq(qemu_memory_present(&m, 0, &list, &err), -EBADF, "a closed file is no error");
}

/* Newer QEMUs can have a backend begin within its file; a monitor that says so stands in for one.
 */
struct shifted {
    int socket;
    const char *offset, *file;
};

static void *answer_as_shifted(void *shifted)
{
    const struct shifted *s = shifted;
    FILE *in = fdopen(s->socket, "r+");
    char *line = NULL, id[128], path[96];
    size_t size = 0;

    snprintf(path, sizeof path, "\"%s\"", s->file);
    const char *const answers[][2] = {
        {"\"query-memdev\"", "[{\"id\": \"r\", \"size\": 1048576}]"},
        {"\"query-memory-size-summary\"", "{\"base-memory\": 1048576}"},
        {"\"type\"", "\"memory-backend-file\""},
        {"\"mem-path\"", path},
        {"\"share\"", "true"},
        {"\"readonly\"", "false"},
        {"\"offset\"", s->offset},
    };
    while (getline(&line, &size, in) > 0) {
        const char *text = "{}", *at = strstr(line, "\"id\":\"");
        if (!at || sscanf(at, "\"id\":\"%127[^\"]", id) != 1)
            continue;
        for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++)
            if (strstr(line, answers[i][0]))
                text = answers[i][1];
        dprintf(s->socket, "{\"return\": %s, \"id\": \"%s\"}\r\n", text, id);
    }
    free(line);
    fclose(in);
    return NULL;
}

static void check_offset(const char *offset, unsigned expected)
{
    char path[] = "/dev/shm/wander-unit-XXXXXX";
    int file = mkstemp(path), ends[2];
    struct shifted s = {.offset = offset, .file = path};
    struct reasons reasons = {0};
    struct error err = {0};
    struct qemu_memory m;
    pthread_t thread;
    struct qmp *q;

    cr_assert_eq(ftruncate(file, 4 << 20), 0);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    s.socket = ends[1];
    cr_assert_eq(pthread_create(&thread, NULL, answer_as_shifted, &s), 0);
    cr_assert_eq(qmp_adopt(ends[0], &q, &err), 0, "%s", err.text);
    cr_expect_eq(qemu_memory_open(q, &m, &reasons, &err), 0, "offset %s: %s", offset, err.text);
    cr_expect_eq(reasons.count, expected, "offset %s: %u reasons, expected %u: %s", offset,
                 reasons.count, expected, reasons.text);
    cr_expect(!expected || (strstr(reasons.text, "RAM r of the guest begins within its file") &&
                            strstr(reasons.text, "start QEMU with -object")),
              "offset %s: '%s', expected what it is and the remedy", offset, reasons.text);
    cr_expect_eq(m.count, !expected, "offset %s: %u regions, expected %d", offset, m.count,
                 !expected);
    qemu_memory_close(&m);
    qmp_close(q);
    pthread_join(thread, NULL);
    reasons_free(&reasons);
    close(file);
    unlink(path);
}

Test(qemu_memory, a_part_of_a_file_is_refused)
{
    check_offset("0", 0);
    check_offset("1048576", 1);
    check_offset("1e19", 1);
}

/* Somebody removed the file and made another of the same name: ours is not QEMU's. */
Test(qemu_memory, a_replaced_file_is_not_taken_for_the_guests, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct qemu_memory m;
    struct reasons reasons = {0};
    struct error err = {0};
    char path[128];
    pid_t pid;

    fixture_start(&qemu, MOVABLE);
    snprintf(path, sizeof path, "%s/r.ram", qemu.folder);
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(qemu_memory_open(qemu.qmp, &m, &reasons, &err), 0, "%s", err.text);
    cr_expect(reasons.text && strstr(reasons.text, "cannot be opened here"), "%s", reasons.text);
    reasons_free(&reasons);
    qemu_memory_close(&m);

    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert_eq(ftruncate(file, 32 << 20), 0);
    cr_assert_eq(qemu_memory_open(qemu.qmp, &m, &reasons, &err), 0, "%s", err.text);
    cr_expect(reasons.text && strstr(reasons.text, "only 33554432"), "%s", reasons.text);
    reasons_free(&reasons);
    qemu_memory_close(&m);

    cr_assert_eq(ftruncate(file, 64 << 20), 0);
    close(file);
    cr_assert_eq(qemu_memory_open(qemu.qmp, &m, &reasons, &err), 0, "%s", err.text);
    cr_expect_eq(qemu_memory_locate(&m, qemu.pid, &pid, &err), -ESRCH);
    cr_expect(strstr(err.text, "replaced"), "'%s'", err.text);
    qemu_memory_close(&m);
    fixture_stop(&qemu);
}

Test(qemu_memory, plugging_shows_in_the_list, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct error err = {0};
    char list[256], tiny[8];

    fixture_start(&qemu, MOVABLE);
    cr_expect_eq(qemu_memory_list(qemu.qmp, list, sizeof list, &err), 0, "%s", err.text);
    cr_expect_str_eq(list, "r=67108864");
    cr_expect_eq(qmp_call(qemu.qmp, NULL, &err, "object-add",
                          "{'qom-type': 'memory-backend-ram', 'id': 'more', 'size': 1048576}"),
                 0, "%s", err.text);
    cr_expect_eq(qemu_memory_list(qemu.qmp, list, sizeof list, &err), 0, "%s", err.text);
    cr_expect_str_eq(list, "more=1048576 r=67108864");
    for (int i = 0; i < 4; i++)
        cr_expect_eq(qmp_call(qemu.qmp, NULL, &err, "object-add",
                              "{'qom-type': 'memory-backend-ram', 'id': 'z%d', 'size': 4096}", i),
                     0, "%s", err.text);
    cr_expect_eq(qemu_memory_list(qemu.qmp, list, sizeof list, &err), 0, "%s", err.text);
    cr_expect_str_eq(list, "more=1048576 r=67108864 z0=4096 z1=4096 z2=4096 z3=4096");
    cr_expect_eq(qemu_memory_list(qemu.qmp, tiny, sizeof tiny, &err), -ENOBUFS);
    fixture_stop(&qemu);
}

Test(qemu_memory, a_qemu_that_has_gone_is_an_error, .timeout = 120)
{
    struct fixture_qemu qemu = {0};
    struct qemu_memory m;
    struct reasons reasons = {0};
    struct error err = {0};
    pid_t pid;

    open_movable(&qemu, &m);
    kill(qemu.pid, SIGKILL);
    waitpid(qemu.pid, NULL, 0);
    cr_expect_eq(qemu_memory_locate(&m, qemu.pid, &pid, &err), -ESRCH);
    qemu_memory_close(&m);
    error_clear(&err);
    cr_expect_eq(qemu_memory_open(qemu.qmp, &m, &reasons, &err), -ECONNRESET, "%s", err.text);
    cr_expect_eq(m.count, 0);
    fixture_stop(&qemu);
}
