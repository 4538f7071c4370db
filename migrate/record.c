#include "migrate/record.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "migrate/proto.h"
#include "transport/base/log.h"

enum { RECORD_SIZE = 2048, RECORD_KEEP_DAYS = 7 };

struct record {
    struct record_content content;
    char path[512];
    int file;
};

static int make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash)
            *slash = '\0';
        int failed = mkdir(path, 0700) && errno != EEXIST;
        if (!slash)
            return failed ? -errno : 0;
        *slash = '/';
        if (failed)
            return -errno;
    }
}

/* `name` in the state directory, made if need be. */
static int state_folder(const char *name, char *out, size_t size, struct error *err)
{
    const char *state = getenv("XDG_STATE_HOME");

    if (state && state[0] == '/') {
        snprintf(out, size, "%s/wander%s", state, name);
    } else if (geteuid() == 0) {
        snprintf(out, size, "/var/lib/wander%s", name);
    } else {
        const char *home = getenv("HOME");
        if (!home || home[0] != '/')
            return error_set(err, ENOENT,
                             "no place for session records: set XDG_STATE_HOME or HOME");
        snprintf(out, size, "%s/.local/state/wander%s", home, name);
    }
    int result = make_folders(out);
    if (result)
        error_set_errno(err, -result, "making the state directory, %s, failed", out);
    return result;
}

static int sessions_folder(char *out, size_t size, struct error *err)
{
    return state_folder("/sessions", out, size, err);
}

int record_state_folder(char *out, size_t size, struct error *err)
{
    return state_folder("", out, size, err);
}

static int record_path(const uint8_t token[TRANSPORT_TOKEN_SIZE], enum record_role role, char *out,
                       size_t size, struct error *err)
{
    char folder[400], name[33];
    int result = sessions_folder(folder, sizeof(folder), err);

    token_format(token, name);
    snprintf(out, size, "%s/%s.%s", folder, name, role == RECORD_SOURCE ? "source" : "destination");
    return result;
}

static int encode(const struct record_content *c, char out[RECORD_SIZE], struct error *err)
{
    char token[33], peer[320], peer_main[320];
    cJSON *json = cJSON_CreateObject();

    token_format(c->token, token);
    cJSON_AddNumberToObject(json, "schema", 1);
    cJSON_AddStringToObject(json, "token", token);
    cJSON_AddStringToObject(json, "guest", c->guest_name);
    cJSON_AddStringToObject(json, "state", ownership_name(c->state));
    cJSON_AddStringToObject(json, "kind", c->guest_kind);
    if (c->monitor.path[0]) {
        cJSON_AddStringToObject(json, "monitor", c->monitor.path);
        cJSON_AddNumberToObject(json, "guest_pid", c->monitor.pid);
        cJSON_AddNumberToObject(json, "listener", c->monitor.listener);
        cJSON_AddNumberToObject(json, "guest_born", (double)c->monitor.born);
    }
    cJSON_AddBoolToObject(json, "uncertain", c->uncertain);
    cJSON_AddStringToObject(json, "boot_id", c->boot_id);
    cJSON_AddStringToObject(json, "peer", address_format(&c->peer, peer, sizeof(peer)));
    if (c->peer_main.host[0])
        cJSON_AddStringToObject(json, "peer_main",
                                address_format(&c->peer_main, peer_main, sizeof(peer_main)));
    memset(out, ' ', RECORD_SIZE);
    bool printed = cJSON_PrintPreallocated(json, out, RECORD_SIZE - 8, false);
    cJSON_Delete(json);
    if (!printed)
        return error_set(err, ENOMEM, "the session's record does not fit into %d bytes",
                         RECORD_SIZE);
    out[strlen(out)] = ' ';
    out[RECORD_SIZE - 1] = '\n';
    return 0;
}

static int write_record(struct record *r, const struct record_content *content, struct error *err)
{
    char text[RECORD_SIZE];
    int result = encode(content, text, err);

    if (result)
        return result;
    if (pwrite(r->file, text, sizeof(text), 0) != sizeof(text))
        return error_set_errno(err, errno ? errno : EIO, "writing the session's record %s failed",
                               r->path);
    r->content = *content;
    return 0;
}

static void read_text(const cJSON *json, const char *key, char *out, size_t size)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(json, key));

    snprintf(out, size, "%s", text ? text : "");
}

static double read_number(const cJSON *json, const char *key)
{
    const cJSON *number = cJSON_GetObjectItem(json, key);

    return cJSON_IsNumber(number) && number->valuedouble > 0 ? number->valuedouble : 0;
}

static void read_address(const cJSON *json, const char *key, struct address *out)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(json, key));

    if (!text || address_parse(text, out, &(struct error){0}))
        *out = (struct address){0};
}

/* All but token and role, which are the file's name; false when it is no record. */
static bool read_record(int file, struct record_content *c)
{
    char text[RECORD_SIZE + 1] = "";

    *c = (struct record_content){0};
    if (pread(file, text, RECORD_SIZE, 0) != RECORD_SIZE)
        return false;
    cJSON *json = cJSON_Parse(text);
    const char *state = cJSON_GetStringValue(cJSON_GetObjectItem(json, "state"));
    const char *boot = cJSON_GetStringValue(cJSON_GetObjectItem(json, "boot_id"));
    bool good = state && boot && strlen(boot) < sizeof(c->boot_id);
    if (good) {
        c->state = ownership_from_name(state);
        c->uncertain = cJSON_IsTrue(cJSON_GetObjectItem(json, "uncertain"));
        strcpy(c->boot_id, boot);
        read_text(json, "guest", c->guest_name, sizeof(c->guest_name));
        read_text(json, "kind", c->guest_kind, sizeof(c->guest_kind));
        read_text(json, "monitor", c->monitor.path, sizeof(c->monitor.path));
        c->monitor.pid = (int32_t)read_number(json, "guest_pid");
        c->monitor.listener = (int32_t)read_number(json, "listener");
        c->monitor.born = (uint64_t)read_number(json, "guest_born");
        read_address(json, "peer", &c->peer);
        read_address(json, "peer_main", &c->peer_main);
    }
    cJSON_Delete(json);
    return good && c->state != OWNERSHIP_NONE;
}

/* F_WRLCK: the session's own, held for life. F_RDLCK: whether its process is gone; askers do not
 * keep one another out, or each would take the other for the living process. */
static bool lock_file(int file, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET};

    return fcntl(file, F_OFD_SETLK, &lock) == 0;
}

/* Records of ended sessions that nobody has asked about for a week. */
static void prune(const char *folder)
{
    DIR *directory = opendir(folder);
    struct dirent *entry;
    time_t old = time(NULL) - RECORD_KEEP_DAYS * 86400;

    while (directory && (entry = readdir(directory))) {
        struct stat status;
        int file = openat(dirfd(directory), entry->d_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (file < 0)
            continue;
        if (fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_mtime < old &&
            lock_file(file, F_RDLCK))
            unlinkat(dirfd(directory), entry->d_name, 0);
        close(file);
    }
    if (directory)
        closedir(directory);
}

int record_create(const struct record_content *content, struct record **out, struct error *err)
{
    struct record *r = calloc(1, sizeof(*r));
    struct record_content copy = *content;
    char folder[400];

    if (!r)
        return error_set(err, ENOMEM, "no memory for the session's record");
    int result = record_path(content->token, content->role, r->path, sizeof(r->path), err);
    if (result)
        goto free_record;
    if (sessions_folder(folder, sizeof(folder), err) == 0)
        prune(folder);
    r->file = open(r->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (r->file < 0) {
        result = error_set_errno(err, errno, "making the session's record %s failed", r->path);
        goto free_record;
    }
    boot_id_read(copy.boot_id);
    result = lock_file(r->file, F_WRLCK)
                 ? write_record(r, &copy, err)
                 : error_set_errno(err, errno, "locking the session's record %s failed", r->path);
    if (result)
        goto remove_file;
    *out = r;
    return 0;

remove_file:
    unlink(r->path);
    close(r->file);
free_record:
    free(r);
    return result;
}

int record_set_state(struct record *r, enum ownership_state state, struct error *err)
{
    struct record_content next = r->content;

    next.state = state;
    return write_record(r, &next, err);
}

int record_make_durable(struct record *r, struct error *err)
{
    struct record_content next = r->content;
    char folder[400];

    next.uncertain = true;
    int result = write_record(r, &next, err);
    if (result == 0)
        result = sessions_folder(folder, sizeof(folder), err);
    if (result)
        return result;
    int directory = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 || fsync(r->file) || fsync(directory))
        result =
            error_set_errno(err, errno, "making the session's record %s durable failed", r->path);
    if (directory >= 0)
        close(directory);
    return result;
}

void record_remove(struct record *r)
{
    if (!r)
        return;
    unlink(r->path);
    close(r->file);
    free(r);
}

void record_release(struct record *r)
{
    close(r->file);
    free(r);
}

void record_keep(struct record *r)
{
    /* The file stays open on purpose: its lock says that this process still holds the guest. */
    free(r);
}

int record_adopt(const uint8_t token[TRANSPORT_TOKEN_SIZE], enum record_role role,
                 struct record **out, struct record_content *content, struct error *err)
{
    struct record *r = calloc(1, sizeof(*r));
    char boot[BOOT_ID_SIZE];

    if (!r)
        return error_set(err, ENOMEM, "no memory for the session's record");
    int result = record_path(token, role, r->path, sizeof(r->path), err);
    if (result)
        goto free_record;
    r->file = open(r->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (r->file < 0) {
        result =
            error_set_errno(err, errno, "this host has no record of that session (%s)", r->path);
        goto free_record;
    }
    if (!lock_file(r->file, F_WRLCK)) {
        result = error_set(err, EBUSY, "the session's process lives");
        goto close_file;
    }
    boot_id_read(boot);
    if (!read_record(r->file, content) || strcmp(boot, content->boot_id) != 0) {
        result = error_set(err, ENOENT, "the session's record %s is of an earlier boot", r->path);
        goto close_file;
    }
    memcpy(content->token, token, sizeof(content->token));
    content->role = role;
    r->content = *content;
    *out = r;
    return 0;

close_file:
    close(r->file);
free_record:
    free(r);
    return result;
}

void record_adopt_all(enum record_role role,
                      void (*each)(void *context, struct record *record,
                                   const struct record_content *content),
                      void *context)
{
    const char *ending = role == RECORD_SOURCE ? ".source" : ".destination";
    char folder[400];
    struct dirent *entry;
    struct error err = {0};
    DIR *directory = sessions_folder(folder, sizeof(folder), &err) ? NULL : opendir(folder);

    while (directory && (entry = readdir(directory))) {
        char name[33] = "", *dot = strchr(entry->d_name, '.');
        uint8_t token[TRANSPORT_TOKEN_SIZE];
        struct record_content content;
        struct record *record;

        if (!dot || dot - entry->d_name != 32 || strcmp(dot, ending) != 0)
            continue;
        memcpy(name, entry->d_name, 32);
        error_clear(&err);
        if (token_parse(name, token) == 0 &&
            record_adopt(token, role, &record, &content, &err) == 0)
            each(context, record, &content);
    }
    if (directory)
        closedir(directory);
}

/* Whether the guest outlived its process, and says so itself. */
static bool guest_runs(const struct record_content *c)
{
    const struct guest_kind *kind = guest_kind_find(c->guest_kind);

    return kind && kind->runs && kind->runs(&c->monitor);
}

/* The verdict on a record whose process is gone; several may reach it at once, and all write the
 * same. */
static enum ownership_state judge_dead(int file, const char *path, const struct record_content *c)
{
    struct record record = {.file = file, .content = *c};
    struct error err = {0};
    char boot[BOOT_ID_SIZE];

    boot_id_read(boot);
    bool same_boot = boot[0] && strcmp(boot, c->boot_id) == 0;
    switch (c->state) {
    case OWNERSHIP_STARTING:
    case OWNERSHIP_STARTED:
        return same_boot && guest_runs(c) ? OWNERSHIP_STARTED : OWNERSHIP_STARTED_DEAD;
    case OWNERSHIP_ABORTED:
        return OWNERSHIP_ABORTED;
    case OWNERSHIP_RECEIVING:
    case OWNERSHIP_PREPARED:
        if (!same_boot && c->uncertain)
            return OWNERSHIP_UNKNOWN;
        snprintf(record.path, sizeof(record.path), "%s", path);
        if (record_set_state(&record, OWNERSHIP_ABORTED, &err)) {
            log_line(LOG_ERROR, "%s", err.text);
            return OWNERSHIP_UNKNOWN;
        }
        return OWNERSHIP_ABORTED;
    default:
        return OWNERSHIP_UNKNOWN;
    }
}

enum ownership_state record_consult(const uint8_t token[TRANSPORT_TOKEN_SIZE],
                                    enum record_role role)
{
    struct record_content content;
    struct error err = {0};
    char path[512];
    enum ownership_state state = OWNERSHIP_UNKNOWN;

    if (record_path(token, role, path, sizeof(path), &err))
        return OWNERSHIP_UNKNOWN;
    int file = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0)
        return OWNERSHIP_UNKNOWN;
    bool dead = lock_file(file, F_RDLCK);
    if (read_record(file, &content))
        state = dead ? judge_dead(file, path, &content) : content.state;
    close(file);
    return state;
}
