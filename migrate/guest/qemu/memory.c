#include "migrate/guest/qemu/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "migrate/guest/qemu/qom.h"
#include "transport/base/options.h"

/* A backend as QEMU tells of it. */
struct backend {
    const char *id; /* of the answer to query-memdev */
    uint64_t size;
    char object[128]; /* its path in QEMU's tree */
    char type[32], mem_path[256];
    bool share, readonly;
    bool shifted; /* it begins within its file */
};

static int by_id(const void *a, const void *b)
{
    return strcmp(json_text(*(cJSON *const *)a, "id"), json_text(*(cJSON *const *)b, "id"));
}

/* The backends sorted by name: *items is an array of *count members of *answer, both the caller's.
 */
static int list_backends(struct qmp *q, cJSON **answer, const cJSON ***items, unsigned *count,
                         struct error *err)
{
    const cJSON *item;
    int ret = qmp_call(q, answer, err, "query-memdev", NULL);

    *count = 0;
    if (ret < 0)
        return ret;
    *items = calloc(cJSON_GetArraySize(*answer) + 1, sizeof **items);
    if (!*items) {
        cJSON_Delete(*answer);
        return error_set(err, ENOMEM, "out of memory for the list of QEMU's RAM backends");
    }
    cJSON_ArrayForEach(item, *answer)
    {
        (*items)[(*count)++] = item;
    }
    qsort(*items, *count, sizeof **items, by_id);
    return 0;
}

static int ask_backend(struct qmp *q, const cJSON *item, struct backend *b, struct error *err)
{
    cJSON *offset = NULL;
    int ret;

    *b = (struct backend){.id = json_text(item, "id")};
    if (!json_number(item, "size", &b->size))
        return error_set(err, EPROTO, "QEMU tells no size of the RAM backend %s", b->id);
    snprintf(b->object, sizeof b->object, "/objects/%s", b->id);
    if ((ret = qom_get_text(q, b->object, "type", b->type, sizeof b->type, err)) < 0 ||
        (ret = qom_get_text(q, b->object, "mem-path", b->mem_path, sizeof b->mem_path, err)) < 0 ||
        (ret = qom_get_bool(q, b->object, "share", &b->share, err)) < 0 ||
        (ret = qom_get_bool(q, b->object, "readonly", &b->readonly, err)) < 0 ||
        (ret = qom_get(q, b->object, "offset", &offset, err)) < 0)
        return ret;
    b->shifted = cJSON_IsNumber(offset) && offset->valuedouble != 0;
    cJSON_Delete(offset);
    return 0;
}

/* Why the guest cannot be moved with such a backend, and the one remedy for it all. */
static void __attribute__((format(printf, 3, 4)))
refuse(struct reasons *reasons, const struct backend *b, const char *format, ...)
{
    char why[512];
    va_list args;

    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    reasons_add(reasons,
                "the RAM %s of the guest %s; start QEMU with -object "
                "memory-backend-file,id=%s,size=%llu,mem-path=/dev/shm/GUEST-%s,share=on, used by "
                "-machine ...,memory-backend=%s or -numa node,memdev=%s",
                b->id, why, b->id, (unsigned long long)b->size, b->id, b->id, b->id);
}

static bool check_backend(const struct backend *b, struct reasons *reasons)
{
    unsigned before = reasons->count;

    if (strcmp(b->type, "memory-backend-file") != 0)
        refuse(reasons, b, "is in anonymous memory (%s), which no other process can open by name",
               b->type[0] ? b->type : "no named backend");
    else if (!b->share)
        refuse(reasons, b, "is private to QEMU (share=off), so %s does not hold it", b->mem_path);
    else if (b->readonly)
        refuse(reasons, b, "is read-only (readonly=on)");
    else if (b->shifted)
        refuse(reasons, b,
               "begins within its file %s (offset=), and tracking knows only files that it has "
               "from their beginning",
               b->mem_path);
    if (b->size == 0 || b->size % GUEST_PAGE_SIZE)
        refuse(reasons, b, "has a size that is no multiple of %d bytes", GUEST_PAGE_SIZE);
    if (strlen(b->id) >= sizeof((struct guest_region *)0)->name)
        refuse(reasons, b, "has a name of more than %zu bytes; give it a shorter one",
               sizeof((struct guest_region *)0)->name - 1);
    if (strlen(b->mem_path) + 1 == sizeof b->mem_path)
        refuse(reasons, b, "is in a file whose path has more than %zu bytes",
               sizeof b->mem_path - 2);
    return reasons->count == before;
}

static int open_path(struct qmp *q, const struct backend *b)
{
    char path[320];

    if (b->mem_path[0] == '/')
        snprintf(path, sizeof path, "%s", b->mem_path);
    else
        snprintf(path, sizeof path, "/proc/%d/cwd/%s", qmp_peer(q), b->mem_path);
    return open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
}

static bool check_file(int file, const struct backend *b, struct reasons *reasons)
{
    unsigned before = reasons->count;
    struct statfs filesystem = {0};
    struct stat status = {0};
    char grain[32];

    fstat(file, &status);
    fstatfs(file, &filesystem);
    if (filesystem.f_type == HUGETLBFS_MAGIC)
        refuse(reasons, b,
               "is in huge pages (%s on hugetlbfs): writes could be tracked only in pieces of %s",
               b->mem_path, format_size(filesystem.f_bsize, grain, sizeof grain));
    else if (!S_ISREG(status.st_mode))
        refuse(reasons, b, "is in %s, which is no regular file", b->mem_path);
    else if ((uint64_t)status.st_size < b->size)
        refuse(reasons, b, "has %llu bytes, but its file %s only %llu", (unsigned long long)b->size,
               b->mem_path, (unsigned long long)status.st_size);
    return reasons->count == before;
}

/* -1 with a reason. */
static int open_file(struct qmp *q, const struct backend *b, struct reasons *reasons)
{
    int file = open_path(q, b);

    if (file >= 0 && check_file(file, b, reasons))
        return file;
    if (file >= 0)
        close(file);
    else if (errno == EISDIR)
        refuse(reasons, b, "has a directory as mem-path (%s): QEMU removes the file it makes there",
               b->mem_path);
    else
        refuse(reasons, b, "is in %s, which cannot be opened here (%s); run wander as QEMU's user",
               b->mem_path, strerror(errno));
    return -1;
}

static int add_region(struct qemu_memory *m, const struct backend *b, int file, struct error *err)
{
    unsigned i = m->count;
    void *host = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

    if (host == MAP_FAILED)
        return error_set_errno(err, errno, "mapping the guest's RAM in %s failed", b->mem_path);
    m->regions[i] =
        (struct guest_region){.id = i, .size = b->size, .host = host, .backing = GUEST_NAMED_FILE};
    strcpy(m->regions[i].name, b->id);
    strcpy(m->path[i], b->mem_path);
    m->file[i] = file;
    m->bytes += b->size;
    m->count++;
    return 0;
}

static int open_backend(struct qmp *q, const cJSON *item, struct qemu_memory *m,
                        struct reasons *reasons, uint64_t *bytes, struct error *err)
{
    struct backend b;
    int file, ret;

    if ((ret = ask_backend(q, item, &b, err)) < 0)
        return ret;
    *bytes += b.size;
    if (!check_backend(&b, reasons) || (file = open_file(q, &b, reasons)) < 0)
        return 0;
    if ((ret = add_region(m, &b, file, err)) < 0)
        close(file);
    return ret;
}

/* Whether the backends are all the RAM there is, and nothing else. */
static int check_total(struct qmp *q, uint64_t held, struct reasons *reasons, struct error *err)
{
    uint64_t base = 0, plugged = 0;
    char has[32], have[32];
    cJSON *summary;
    int ret = qmp_call(q, &summary, err, "query-memory-size-summary", NULL);

    if (ret < 0)
        return ret;
    if (!json_number(summary, "base-memory", &base))
        ret = error_set(err, EPROTO, "QEMU does not tell how much RAM the guest has");
    json_number(summary, "plugged-memory", &plugged);
    cJSON_Delete(summary);
    if (ret == 0 && base + plugged != held)
        reasons_add(reasons,
                    "the guest has %s of RAM (%llu bytes) and QEMU's RAM backends hold %s (%llu "
                    "bytes); give all of the RAM backends of type memory-backend-file, and the "
                    "backends no other use (ivshmem, nvdimm)",
                    format_size(base + plugged, has, sizeof has),
                    (unsigned long long)(base + plugged), format_size(held, have, sizeof have),
                    (unsigned long long)held);
    return ret;
}

int qemu_memory_open(struct qmp *q, struct qemu_memory *out, struct reasons *reasons,
                     struct error *err)
{
    const cJSON **items;
    uint64_t bytes = 0;
    unsigned count;
    cJSON *answer;
    int ret;

    *out = (struct qemu_memory){0};
    if ((ret = list_backends(q, &answer, &items, &count, err)) < 0)
        return ret;
    if (count > GUEST_MAX_REGIONS)
        reasons_add(reasons,
                    "the guest's RAM has %u backends and at most %d can be moved; use fewer", count,
                    GUEST_MAX_REGIONS);
    else if (count == 0)
        reasons_add(reasons, "QEMU has no RAM backends; start it with -object memory-backend-file,"
                             "id=ram,size=SIZE,mem-path=/dev/shm/GUEST-ram,share=on -machine "
                             "...,memory-backend=ram");
    for (unsigned i = 0; i < count && count <= GUEST_MAX_REGIONS && ret == 0; i++)
        ret = open_backend(q, items[i], out, reasons, &bytes, err);
    if (ret == 0 && count > 0 && count <= GUEST_MAX_REGIONS)
        ret = check_total(q, bytes, reasons, err);
    free(items);
    cJSON_Delete(answer);
    if (ret < 0)
        qemu_memory_close(out);
    return ret;
}

int qemu_memory_present(const struct qemu_memory *m, uint32_t region, struct extent_list *out,
                        struct error *err)
{
    const uint64_t page = GUEST_PAGE_SIZE;
    uint64_t size = m->regions[region].size, at = 0;

    while (at < size) {
        off_t data = lseek(m->file[region], (off_t)at, SEEK_DATA);
        off_t hole = data < 0 ? -1 : lseek(m->file[region], data, SEEK_HOLE);

        if (data < 0 && errno == ENXIO)
            return 0;
        if (data < 0 || hole < 0)
            return error_set_errno(err, errno, "looking for the touched pages of %s failed",
                                   m->path[region]);
        uint64_t begin = data / page * page;
        uint64_t end = (hole + page - 1) / page * page;
        begin = begin < at ? at : begin;
        end = end > size ? size : end;
        if (begin >= size)
            return 0;
        if (extent_list_add(out, begin, end - begin) < 0)
            return error_set(err, ENOMEM, "out of memory for the touched pages of %s",
                             m->path[region]);
        at = end;
    }
    return 0;
}

int qemu_memory_list(struct qmp *q, char *out, size_t size, struct error *err)
{
    const cJSON **items;
    size_t used = 0;
    unsigned count;
    cJSON *answer;
    int ret;

    if ((ret = list_backends(q, &answer, &items, &count, err)) < 0)
        return ret;
    out[0] = '\0';
    for (unsigned i = 0; i < count && ret == 0; i++) {
        uint64_t bytes = 0;
        json_number(items[i], "size", &bytes);
        used += snprintf(out + used, size - used, "%s%s=%llu", i ? " " : "",
                         json_text(items[i], "id"), (unsigned long long)bytes);
        if (used >= size)
            ret = error_set(err, ENOBUFS, "QEMU has too many RAM backends (%u) to list", count);
    }
    free(items);
    cJSON_Delete(answer);
    return ret;
}

int qemu_memory_opened(const struct qemu_memory *m, char *out, size_t size, struct error *err)
{
    size_t used = 0;

    out[0] = '\0';
    for (unsigned i = 0; i < m->count; i++) {
        used += snprintf(out + used, size - used, "%s%s=%llu", i ? " " : "", m->regions[i].name,
                         (unsigned long long)m->regions[i].size);
        if (used >= size)
            return error_set(err, ENOBUFS, "too many RAM backends (%u) to list", m->count);
    }
    return 0;
}

void qemu_memory_close(struct qemu_memory *m)
{
    for (unsigned i = 0; i < m->count; i++) {
        munmap(m->regions[i].host, m->regions[i].size);
        close(m->file[i]);
    }
    *m = (struct qemu_memory){0};
}
