/* Device state between real QEMUs: that it arrives, that nobody takes a disk too early, and that
 * after each failure the source can go on. */
#include "migrate/guest/qemu/device_state.h"

#include <pthread.h>

#include "qemu_machine.h"

#define MIB (1u << 20)

/* Two QEMUs with the same machine, the second waiting for a guest. */
struct pair {
    char folder[64], disk[96];
    struct machine source, destination;
    struct qmp *from, *to;
    struct qemu_settings *from_settings, *to_settings;
    char *from_before, *to_before;
};

static void write_file(const char *path, size_t size, bool random)
{
    int out = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600), in = open("/dev/urandom", O_RDONLY);
    uint8_t bytes[4096];

    cr_assert(out >= 0 && in >= 0, "cannot make %s: %s", path, strerror(errno));
    cr_assert_eq(ftruncate(out, (off_t)size), 0);
    for (size_t done = 0; random && done < size; done += sizeof(bytes))
        cr_assert(read(in, bytes, sizeof(bytes)) == sizeof(bytes) &&
                  write(out, bytes, sizeof(bytes)) == sizeof(bytes));
    close(in);
    close(out);
}

static void copy_ram(const struct pair *p)
{
    char command[256];

    snprintf(command, sizeof(command), "cp --sparse=always '%s' '%s'", p->source.ram,
             p->destination.ram);
    cr_assert_eq(system(command), 0, "%s", command);
}

static struct qemu_settings *apply(struct qmp *q, bool incoming)
{
    struct qemu_settings *s = NULL;
    struct error err = {0};

    cr_assert_eq(qemu_settings_apply(q, incoming, &s, &err), 0, "settings: %s", err.text);
    return s;
}

static struct pair pair_start(void)
{
    struct pair p = {0};
    char drive[256];
    const char *here[] = {"-drive", drive, "-device", "virtio-blk-pci,drive=d", NULL};
    const char *there[] = {"-drive",    drive,   "-device", "virtio-blk-pci,drive=d",
                           "-incoming", "defer", NULL};

    need_qemu();
    make_folder(p.folder, sizeof(p.folder));
    snprintf(p.disk, sizeof(p.disk), "%s/disk", p.folder);
    snprintf(drive, sizeof(drive), "file=%s,format=raw,if=none,id=d,file.locking=on", p.disk);
    write_file(p.disk, MIB, false);
    p.source = machine_start(p.folder, "source", true, here);
    p.from = connect_monitor(p.source.monitor);
    p.destination = machine_start(p.folder, "destination", true, there);
    p.to = connect_monitor(p.destination.monitor);
    p.from_before = settings_text(p.from);
    p.to_before = settings_text(p.to);
    p.from_settings = apply(p.from, false);
    p.to_settings = apply(p.to, true);
    return p;
}

static void pair_end(struct pair *p)
{
    qemu_settings_restore(p->from, p->from_settings);
    qemu_settings_restore(p->to, p->to_settings);
    qmp_close(p->from);
    qmp_close(p->to);
    machine_end(&p->source);
    machine_end(&p->destination);
    cJSON_free(p->from_before);
    cJSON_free(p->to_before);
    remove_folder(p->folder);
}

static void save(struct pair *p, struct guest_state *state)
{
    struct error err = {0};

    expect_done(p->from, "stop", "before the state is saved");
    cr_assert_eq(qemu_state_save(p->from, state, &err), 0, "save: %s", err.text);
    expect_run_state(p->from, "after the state was saved", "postmigrate");
}

static void expect_settings(struct qmp *q, const char *side, const char *before)
{
    char *now = settings_text(q);

    cr_expect_str_eq(now, before, "settings of the %s after restore: %s, expected %s", side, now,
                     before);
    cJSON_free(now);
}

Test(qemu_device_state, moves_and_comes_back)
{
    struct pair p = pair_start();
    struct guest_state state = {0};
    struct error err = {0};

    save(&p, &state);
    cr_expect(state.size > 1000 && state.size < MIB, "%zu bytes of state, expected 1 kB to 1 MiB",
              state.size);
    copy_ram(&p);
    cr_assert_eq(qemu_state_load(p.to, state.bytes, state.size, &err), 0, "load: %s", err.text);
    expect_run_state(p.to, "after the state was loaded", "paused");
    /* A destination that is only prepared has no disk: the source gets its own back. */
    expect_done(p.from, "cont", "with a prepared destination there");
    expect_run_state(p.from, "after cont", "running");
    cr_expect_eq(qmp_call(p.to, NULL, &err, "cont", NULL), -EREMOTEIO,
                 "cont at the destination while the source has the disk: expected a refusal");
    qemu_settings_restore(p.from, p.from_settings);
    qemu_settings_restore(p.to, p.to_settings);
    p.from_settings = p.to_settings = NULL;
    expect_settings(p.from, "source", p.from_before);
    expect_settings(p.to, "destination", p.to_before);
    guest_state_free(&state);
    pair_end(&p);
}

Test(qemu_device_state, runs_at_the_destination)
{
    struct pair p = pair_start();
    struct guest_state state = {0};
    struct error err = {0};

    save(&p, &state);
    copy_ram(&p);
    cr_assert_eq(qemu_state_load(p.to, state.bytes, state.size, &err), 0, "load: %s", err.text);
    expect_done(p.to, "cont", "at the destination");
    expect_run_state(p.to, "after cont", "running");
    cr_expect_eq(qmp_call(p.from, NULL, &err, "cont", NULL), -EREMOTEIO,
                 "cont at the source while the destination has the disk: expected a refusal");
    guest_state_free(&state);
    pair_end(&p);
}

/* What may come instead of a state. */
struct damage {
    const char *name;
    unsigned percent; /* of it that comes */
    size_t flip_at;   /* 0: nothing flipped */
    bool garbage;
};

Test(qemu_device_state, damaged_states_are_refused)
{
    static const struct damage damages[] = {
        {"nothing but noise", 100, 0, true},
        {"an empty state", 0, 0, false},
        {"half a state", 50, 0, false},
        {"a state of another version", 100, 7, false},
    };
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        const struct damage *d = &damages[i];
        struct pair p = pair_start();
        struct guest_state state = {0};
        struct error err = {0};
        save(&p, &state);
        copy_ram(&p);
        size_t size = state.size * d->percent / 100;
        if (d->garbage)
            memset(state.bytes, 0x5a, size);
        if (d->flip_at)
            state.bytes[d->flip_at] ^= 0xff;
        int ret = qemu_state_load(p.to, state.bytes, size, &err);
        cr_expect(ret == -ECONNRESET || ret == -EREMOTEIO,
                  "%s: load returned %d (%s), expected QEMU to refuse", d->name, ret, err.text);
        cr_expect(err.code == -ret && err.text[0], "%s: expected a text", d->name);
        expect_done(p.from, "cont", d->name);
        guest_state_free(&state);
        pair_end(&p);
    }
}

Test(qemu_device_state, dead_destination_is_told)
{
    struct pair p = pair_start();
    struct error err = {0};

    kill(p.destination.pid, SIGKILL);
    int ret = qemu_state_load(p.to, "QEVM", 4, &err);
    cr_expect_eq(ret, -ECONNRESET, "load into a dead QEMU: %d (%s), expected %d", ret, err.text,
                 -ECONNRESET);
    pair_end(&p);
}

/* A source whose RAM is its own, with `random` MiB in it that no encoding makes smaller. */
struct lone {
    char folder[64];
    struct machine machine;
    struct qmp *q;
};

static struct lone lone_start(unsigned random)
{
    struct lone l;
    char file[96], loader[192];
    const char *extra[] = {"-device", loader, NULL};

    need_qemu();
    make_folder(l.folder, sizeof(l.folder));
    snprintf(file, sizeof(file), "%s/noise", l.folder);
    snprintf(loader, sizeof(loader), "loader,file=%s,addr=0x1000000,force-raw=on", file);
    write_file(file, random * MIB, true);
    l.machine = machine_start(l.folder, "lone", false, extra);
    l.q = connect_monitor(l.machine.monitor);
    return l;
}

static void lone_end(struct lone *l)
{
    qmp_close(l->q);
    machine_end(&l->machine);
    remove_folder(l->folder);
}

Test(qemu_device_state, guest_memory_in_the_state_is_refused)
{
    struct lone l = lone_start(24);
    struct qemu_settings *settings = apply(l.q, false);
    struct guest_state state = {0};
    struct error err = {0};

    expect_done(l.q, "stop", "before the state is saved");
    int ret = qemu_state_save(l.q, &state, &err);
    cr_expect_eq(ret, -EFBIG, "save with RAM in it: %d (%s), expected %d", ret, err.text, -EFBIG);
    cr_expect(strstr(err.text, "memory-backend-file") && strstr(err.text, "-vga none"),
              "expected both remedies in '%s'", err.text);
    expect_done(l.q, "cont", "after a state that was too big");
    expect_run_state(l.q, "after cont", "running");
    guest_state_free(&state);
    qemu_settings_restore(l.q, settings);
    lone_end(&l);
}

static void slow_down(struct qmp *q)
{
    struct error err = {0};

    cr_assert_eq(qmp_call(q, NULL, &err, "migrate-set-parameters", "{'max-bandwidth': 100}"), 0,
                 "%s", err.text);
}

static void *kill_soon(void *argument)
{
    const struct machine *m = argument;
    struct qmp *q = connect_monitor(m->onlooker);
    const char *status = NULL;
    uint64_t deadline = clock_now() + PATIENCE_S * NS_PER_S;

    while ((!status || strcmp(status, "active") != 0) && clock_now() < deadline) {
        cJSON *answer = NULL;
        qmp_call(q, &answer, NULL, "query-migrate", NULL);
        status = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(answer, "status"));
        status = status && strcmp(status, "active") == 0 ? "active" : NULL;
        cJSON_Delete(answer);
    }
    kill(m->pid, SIGKILL);
    qmp_close(q);
    return NULL;
}

Test(qemu_device_state, source_that_dies_while_it_saves)
{
    struct lone l = lone_start(8);
    struct guest_state state = {0};
    struct error err = {0};
    pthread_t killer;

    slow_down(l.q);
    expect_done(l.q, "stop", "before the state is saved");
    cr_assert_eq(pthread_create(&killer, NULL, kill_soon, &l.machine), 0);
    int ret = qemu_state_save(l.q, &state, &err);
    pthread_join(killer, NULL);
    cr_expect_eq(ret, -ECONNRESET, "save: %d (%s), expected %d", ret, err.text, -ECONNRESET);
    guest_state_free(&state);
    lone_end(&l);
}

Test(qemu_device_state, save_that_does_not_end_is_given_up)
{
    struct lone l = lone_start(14); /* some QEMUs send a quarter of a MiB at once */
    struct guest_state state = {0};
    struct error err = {0};

    slow_down(l.q);
    expect_done(l.q, "stop", "before the state is saved");
    int ret = qemu_state_save(l.q, &state, &err);
    cr_expect_eq(ret, -ETIMEDOUT, "save: %d (%s), expected %d", ret, err.text, -ETIMEDOUT);
    expect_done(l.q, "cont", "after a save that was given up");
    guest_state_free(&state);
    lone_end(&l);
}

static void migration_status(struct qmp *q, char out[32])
{
    cJSON *answer = NULL;
    const char *text;

    cr_assert_eq(qmp_call(q, &answer, NULL, "query-migrate", NULL), 0);
    text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(answer, "status"));
    snprintf(out, 32, "%s", text ? text : "");
    cJSON_Delete(answer);
}

Test(qemu_device_state, migration_of_others_is_left_alone_until_abandoned)
{
    struct lone l = lone_start(8);
    struct guest_state state = {0};
    struct error err = {0};
    char status[32];

    slow_down(l.q);
    cr_assert_eq(qmp_call(l.q, NULL, &err, "migrate", "{'uri': 'exec:cat >/dev/null'}"), 0, "%s",
                 err.text);
    expect_done(l.q, "stop", "while another migration is active");
    int ret = qemu_state_save(l.q, &state, &err);
    cr_expect_eq(ret, -EREMOTEIO, "save: %d (%s), expected %d", ret, err.text, -EREMOTEIO);
    migration_status(l.q, status);
    cr_expect(strcmp(status, "active") == 0 || strcmp(status, "setup") == 0,
              "the other migration is '%s' after our save failed, expected it to go on", status);
    error_clear(&err);
    cr_expect_eq(qemu_state_abandon(l.q, &err), 0, "abandon: %s", err.text);
    migration_status(l.q, status);
    cr_expect_str_eq(status, "cancelled", "after abandon: '%s', expected 'cancelled'", status);
    expect_done(l.q, "cont", "after abandon");
    cr_expect_eq(qemu_state_abandon(l.q, &err), 0, "abandon with nothing there: %s", err.text);
    lone_end(&l);
}

Test(qemu_device_state, settings_of_the_operator_come_back)
{
    struct lone l = lone_start(0);
    struct error err = {0};
    char *before, *within;

    cr_assert_eq(
        qmp_call(l.q, NULL, &err, "migrate-set-parameters",
                 "{'max-bandwidth': 12345678, 'downtime-limit': 77, 'announce-rounds': 3}"),
        0, "%s", err.text);
    cr_assert_eq(qmp_call(l.q, NULL, &err, "migrate-set-capabilities",
                          "{'capabilities': [{'capability': 'auto-converge', 'state': true}, "
                          "{'capability': 'multifd', 'state': true}]}"),
                 0, "%s", err.text);
    before = settings_text(l.q);
    struct qemu_settings *s = apply(l.q, false);
    within = settings_text(l.q);
    cr_expect_str_neq(within, before, "settings during a move: expected others than before");
    cJSON *commands = qemu_settings_commands(s);
    qemu_settings_replay(l.q, commands);
    expect_settings(l.q, "source (replayed)", before);
    qemu_settings_restore(l.q, s);
    expect_settings(l.q, "source", before);
    cJSON_Delete(commands);
    cJSON_free(before);
    cJSON_free(within);
    lone_end(&l);
}
