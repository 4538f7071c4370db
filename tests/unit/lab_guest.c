/* The lab guest as a virtual machine: booting, pausing, throttling, failing, refusing. */
#include "tests/unit/lab_fixture.h"

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "migrate/guest/lab/abi.h"
#include "migrate/guest/lab/state_format.h"
#include "migrate/guest/lab/vm_state.h"
#include "transport/base/clock.h"

enum { PAUSES = 50, PAUSE_LIMIT_MS = 2000, SLEEPER_AFTER_OUT = 10 };

/* A PVH image of a few bytes of 32-bit code. */
struct tiny_image {
    Elf64_Ehdr head;
    Elf64_Phdr segments[2];
    struct {
        Elf64_Nhdr head;
        char name[4];
        uint32_t entry;
    } note;
    uint8_t code[64];
};

static struct tiny_image make_image(const uint8_t *code, size_t size)
{
    struct tiny_image image = {
        .head = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB,
                             EV_CURRENT},
                 .e_type = ET_EXEC,
                 .e_machine = EM_X86_64,
                 .e_phoff = offsetof(struct tiny_image, segments),
                 .e_phentsize = sizeof(Elf64_Phdr),
                 .e_phnum = 2},
        .segments = {{.p_type = PT_LOAD,
                      .p_offset = offsetof(struct tiny_image, code),
                      .p_paddr = LAB_IMAGE_START,
                      .p_filesz = sizeof image.code,
                      .p_memsz = sizeof image.code},
                     {.p_type = PT_NOTE,
                      .p_offset = offsetof(struct tiny_image, note),
                      .p_filesz = sizeof image.note,
                      .p_memsz = sizeof image.note}},
        .note = {.head = {.n_namesz = 4, .n_descsz = 4, .n_type = 18},
                 .name = "Xen",
                 .entry = LAB_IMAGE_START},
    };

    memcpy(image.code, code, size);
    return image;
}

static int boot(const void *image, size_t size, struct guest **out, struct error *err)
{
    struct lab_config config = {.name = "tiny", .memory_bytes = LAB_WORKLOAD_START, .vcpus = 1};

    workload_parse("", &config.workload, err);
    return lab_guest_boot(&config, image, size, out, err);
}

static struct guest *boot_code(const uint8_t *code, size_t size)
{
    struct tiny_image image = make_image(code, size);
    struct error err = {0};
    struct guest *guest = NULL;

    cr_assert_eq(boot(&image, sizeof image, &guest, &err), 0, "boot: %s", err.text);
    return guest;
}

static bool wait_paused(struct guest *guest)
{
    for (int i = 0; i < 1000; i++) {
        if (guest->ops->paused(guest))
            return true;
        usleep(10000);
    }
    return false;
}

Test(lab_guest, images_that_cannot_boot_are_refused)
{
    struct tiny_image good = make_image((const uint8_t *)"\xf4", 1), bad[7];
    struct error err = {0};
    struct guest *guest = NULL;

    need_kvm();
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        bad[i] = good;
    bad[0].head.e_ident[0] = 0;
    bad[1].head.e_machine = EM_AARCH64;
    bad[2].head.e_phoff = UINT64_MAX - 8;
    bad[3].head.e_phnum = 60000;
    bad[4].note.head.n_type = 17;
    bad[5].segments[0].p_paddr = LAB_WORKLOAD_START - 1;
    bad[6].segments[0].p_offset = UINT64_MAX - 3;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        error_clear(&err);
        cr_expect_eq(boot(&bad[i], sizeof bad[i], &guest, &err), -ENOEXEC, "image %zu: %s", i,
                     err.text);
    }
    error_clear(&err);
    cr_expect_eq(boot(&good, 20, &guest, &err), -ENOEXEC, "20 bytes: %s", err.text);
}

Test(lab_guest, configurations_that_cannot_be_are_refused)
{
    static const struct lab_config cases[] = {
        {.memory_bytes = 0, .vcpus = 1},
        {.memory_bytes = 15 << 20, .vcpus = 1},
        {.memory_bytes = (16 << 20) + 4096, .vcpus = 1},
        {.memory_bytes = 17ull << 60, .vcpus = 1},
        {.memory_bytes = 16 << 20, .vcpus = 0},
        {.memory_bytes = 16 << 20, .vcpus = GUEST_MAX_VCPUS + 1},
        {.memory_bytes = 32 << 20, .vcpus = 1, .workload.touch = 17 << 20},
        {.memory_bytes = 32ull << 30, .vcpus = 1, .workload.hot = 9ull << 30},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct error err = {0};
        struct guest *guest = NULL;

        cr_expect_eq(lab_guest_new(&cases[i], &guest, &err), -EINVAL, "case %zu: %s", i, err.text);
        cr_expect(err.text[0], "case %zu: no text", i);
    }
}

static void pause_often(unsigned vcpus, const char *workload)
{
    struct guest *guest = new_guest(64, vcpus, workload);
    uint64_t worst = 0, sum = 0;

    resume(guest);
    for (int i = 0; i < PAUSES; i++) {
        uint64_t start, took;

        usleep(2000);
        start = clock_now();
        pause_guest(guest);
        took = clock_now() - start;
        pause_guest(guest); /* idempotent */
        resume(guest);
        resume(guest);
        sum += took;
        worst = took > worst ? took : worst;
    }
    printf("pause of %u vCPUs, %s: mean %.3f ms, worst %.3f ms\n", vcpus, workload,
           ns_to_ms(sum) / PAUSES, ns_to_ms(worst));
    cr_expect_lt(ns_to_ms(worst), PAUSE_LIMIT_MS, "the worst pause took %.3f ms", ns_to_ms(worst));
    guest->ops->destroy(guest);
}

Test(lab_guest, pauses_soon)
{
    need_kvm();
    pause_often(1, "hot=8M,rate=max");
    pause_often(4, "hot=8M,rate=max");
    pause_often(4, "hot=0");
}

/* Not one instruction after a pause: RAM and registers stay as they are. */
Test(lab_guest, a_paused_guest_does_nothing)
{
    struct guest *guest;
    struct guest_workload before, after;
    const struct guest_region *regions;
    uint8_t *copy;
    size_t hot = 4 << 20;

    need_kvm();
    guest = new_guest(32, 2, "hot=4M,rate=max");
    resume(guest);
    wait_for_writes(guest, 1);
    pause_guest(guest);
    guest->ops->regions(guest, &regions);
    guest->ops->workload(guest, &before);
    copy = malloc(hot);
    memcpy(copy, (uint8_t *)regions[0].host + LAB_WORKLOAD_START, hot);
    usleep(300000);
    guest->ops->workload(guest, &after);
    cr_expect_eq(memcmp(copy, (uint8_t *)regions[0].host + LAB_WORKLOAD_START, hot), 0,
                 "a paused guest wrote");
    cr_expect_eq(memcmp(&before, &after, sizeof before), 0, "a paused guest printed");
    free(copy);
    guest->ops->destroy(guest);
}

/* mov eax, 0xffffffff; mov dx, 0x608; out dx, eax; then exit with 7: sleeps four seconds unless it
 * is woken. */
static const uint8_t sleeper[] = {0xb8, 0xff, 0xff, 0xff, 0xff, 0x66, 0xba, 0x08, 0x06, 0xef, 0xb8,
                                  7,    0,    0,    0,    0x66, 0xba, 0x14, 0x06, 0xef, 0xf4};

static uint64_t saved_rip(struct guest *guest)
{
    struct guest_state bytes = {0};
    struct vm_state *state = NULL;
    struct error err = {0};
    uint64_t rip;

    cr_assert_eq(guest->ops->save(guest, &bytes, &err), 0, "save: %s", err.text);
    cr_assert_eq(state_decode(bytes.bytes, bytes.size, 1, &state, &err), 0, "decode: %s", err.text);
    rip = state->vcpu[0].regs.rip;
    vm_state_free(state);
    guest_state_free(&bytes);
    return rip;
}

Test(lab_guest, a_sleeping_vcpu_is_paused_at_once_and_its_sleep_is_over)
{
    struct guest *guest;
    struct error err = {0};
    uint64_t start;
    char console[256];

    need_kvm();
    guest = boot_code(sleeper, sizeof sleeper);
    resume(guest);
    usleep(100000);
    start = clock_now();
    pause_guest(guest);
    cr_expect_lt(ns_to_ms(clock_now() - start), PAUSE_LIMIT_MS, "the pause waited for the sleep");
    guest->ops->console(guest, console, sizeof console);
    cr_expect_str_eq(console, "", "it went on although paused: %s", console);
    cr_expect_eq(saved_rip(guest), LAB_IMAGE_START + SLEEPER_AFTER_OUT,
                 "RIP %#llx: the write to the port is not complete",
                 (unsigned long long)saved_rip(guest));
    resume(guest);
    cr_expect(wait_paused(guest), "the guest did not exit");
    guest->ops->console(guest, console, sizeof console);
    cr_expect(strstr(console, "wrote 7 to its exit port") && strstr(console, "RIP"), "console: %s",
              console);
    cr_expect_eq(guest->ops->resume(guest, &err), -EIO, "resume after exit");
    cr_expect(strstr(err.text, "exit port"), "the reason: %s", err.text);
    guest->ops->destroy(guest);
}

/* mov dx, 0x610; again: xor eax, eax; in eax, dx; cmp eax, LAB_MAGIC; je again; exit. */
static const uint8_t reader[] = {0x66, 0xba, 0x10, 0x06, 0x31, 0xc0, 0xed, 0x3d, 0x57, 0x4e,
                                 0x44, 0x52, 0x74, 0xf6, 0x66, 0xba, 0x14, 0x06, 0xef, 0xf4};

static struct guest *move(struct guest *source)
{
    static const struct guest_load_context same_host = {0};
    struct guest *destination = new_incoming(source);
    struct guest_state state = {0};
    struct error err = {0};

    pause_guest(source);
    copy_memory(destination, source);
    cr_assert_eq(source->ops->save(source, &state, &err), 0, "save: %s", err.text);
    cr_assert_eq(destination->ops->load(destination, state.bytes, state.size, &same_host, &err), 0,
                 "load: %s", err.text);
    guest_state_free(&state);
    source->ops->destroy(source);
    return destination;
}

/* A guest that does little else than reading a port is paused in the middle of a read, mostly. */
Test(lab_guest, a_port_read_in_flight_survives_a_move)
{
    struct guest *guest;
    char console[256];

    need_kvm();
    guest = boot_code(reader, sizeof reader);
    for (int i = 0; i < 20; i++) {
        resume(guest);
        usleep(2000);
        guest = move(guest);
    }
    guest->ops->console(guest, console, sizeof console);
    cr_expect_str_eq(console, "", "a read gave a wrong value: %s", console);
    guest->ops->destroy(guest);
}

/* lidt of nothing, int3: a triple fault. */
Test(lab_guest, a_crashing_guest_is_reported_and_counts_as_paused)
{
    static const uint8_t crash[] = {0x0f, 0x01, 0x1d, 0x20, 0x00, 0x10, 0x00, 0xcc, 0xf4};
    struct guest *guest;
    struct guest_state state = {0};
    struct error err = {0};
    char console[256];

    need_kvm();
    guest = boot_code(crash, sizeof crash);
    resume(guest);
    cr_assert(wait_paused(guest), "a crashed guest does not count as paused");
    guest->ops->console(guest, console, sizeof console);
    cr_expect(strstr(console, "vCPU 0 stopped at RIP"), "console: %s", console);
    cr_expect_eq(guest->ops->pause(guest, &err), 0, "pause: %s", err.text);
    cr_expect_eq(guest->ops->save(guest, &state, &err), 0, "save: %s", err.text);
    guest_state_free(&state);
    guest->ops->destroy(guest);
}

Test(lab_guest, a_running_guest_can_be_destroyed)
{
    need_kvm();
    for (int i = 0; i < 5; i++) {
        struct guest *guest = new_guest(32, 4, i % 2 ? "hot=0" : "hot=8M,rate=max");

        resume(guest);
        usleep(30000);
        guest->ops->destroy(guest);
    }
}

static unsigned stat_lines(struct guest *guest)
{
    char text[DEVICES_CONSOLE_SIZE + 1];
    unsigned count = 0;

    guest->ops->console(guest, text, sizeof text);
    for (const char *at = text; (at = strstr(at, ": stat ")); at++)
        count++;
    return count;
}

Test(lab_guest, tells_its_count_more_often_than_on_the_console)
{
    struct guest_workload account = {0};
    uint64_t newest = 0;
    unsigned changes = 0;
    struct guest *guest;

    need_kvm();
    guest = new_guest(32, 2, "hot=8M,rate=2000");
    resume(guest);
    for (int i = 0; i < 3000 && changes <= stat_lines(guest) + 5; i++) {
        usleep(10000);
        guest->ops->workload(guest, &account);
        cr_expect_geq(account.pages_written, newest, "a count that goes down");
        changes += account.pages_written != newest;
        newest = account.pages_written;
    }
    cr_expect_gt(changes, stat_lines(guest) + 5, "the count changed %u times with %u lines",
                 changes, stat_lines(guest));
    guest->ops->destroy(guest);
}

static uint64_t cpu_time_within(struct guest *guest, unsigned seconds)
{
    const struct lab *lab = (const struct lab *)guest;
    struct timespec cpu[2];
    uint64_t used = 0;

    for (int i = 0; i < 2; i++) {
        clockid_t clock;

        pthread_getcpuclockid(lab->vcpu[0].thread, &clock);
        clock_gettime(clock, &cpu[i]);
        if (i == 0)
            sleep(seconds);
    }
    used = (uint64_t)(cpu[1].tv_sec - cpu[0].tv_sec) * NS_PER_S + (uint64_t)cpu[1].tv_nsec -
           (uint64_t)cpu[0].tv_nsec;
    return used;
}

/* Measured in CPU time of the vCPU's thread, which other load on the machine can only lower. */
Test(lab_guest, throttling_takes_time_away)
{
    struct guest *guest;
    struct error err = {0};
    uint64_t used;

    need_kvm();
    guest = new_guest(32, 1, "hot=8M,rate=max");
    resume(guest);
    cr_assert_eq(guest->ops->throttle(guest, 80, &err), 0, "throttle: %s", err.text);
    used = cpu_time_within(guest, 2);
    cr_expect_lt(used, NS_PER_S, "throttled by 80 %%, it used %.0f ms in 2 s", ns_to_ms(used));
    cr_expect_gt(used, 20 * NS_PER_MS, "throttled by 80 %%, it used %.0f ms in 2 s",
                 ns_to_ms(used));
    cr_assert_eq(guest->ops->throttle(guest, 99, &err), 0, "throttle: %s", err.text);
    pause_guest(guest);
    resume(guest);
    cr_assert_eq(guest->ops->throttle(guest, 0, &err), 0, "throttle: %s", err.text);
    wait_for_writes(guest, 1000);
    cr_expect_eq(guest->ops->throttle(guest, 100, &err), -EINVAL, "a throttle of 100 %%");
    guest->ops->destroy(guest);
}

static void spoil_kind(struct guest_description *d)
{
    strcpy(d->kind, "qemu");
}

static void spoil_accel(struct guest_description *d)
{
    strcpy(d->accel, "none");
}

static void spoil_vcpus(struct guest_description *d)
{
    d->vcpus = GUEST_MAX_VCPUS + 1;
}

static void spoil_memory(struct guest_description *d)
{
    d->memory_bytes = 17ull << 60;
}

static void spoil_region(struct guest_description *d)
{
    d->regions[0].size += GUEST_PAGE_SIZE;
}

static void spoil_count(struct guest_description *d)
{
    d->region_count = 2;
}

static void spoil_platform(struct guest_description *d)
{
    d->platform_size--;
}

static void spoil_version(struct guest_description *d)
{
    d->platform[0]++;
}

/* Replaces the platform part by one with another workload. */
static void set_workload(struct guest_description *d, const char *spec)
{
    struct cpu_model *cpu = calloc(1, sizeof *cpu);
    struct workload workload;
    struct error err = {0};

    cr_assert_eq(cpu_model_decode(d->platform, d->platform_size, cpu, &workload, &err), 0, "%s",
                 err.text);
    cr_assert_eq(workload_parse(spec, &workload, &err), 0, "%s", err.text);
    free(d->platform);
    cr_assert_eq(cpu_model_encode(cpu, &workload, &d->platform, &d->platform_size, &err), 0, "%s",
                 err.text);
    free(cpu);
}

static void spoil_workload(struct guest_description *d)
{
    set_workload(d, "hot=1G");
}

/* As large as a guest can be, and all of it touched. */
static void spoil_appetite(struct guest_description *d)
{
    d->memory_bytes = 1ull << 46;
    d->region_count = 2;
    d->regions[0].size = LAB_LOW_RAM_END;
    d->regions[1].size = d->memory_bytes - LAB_LOW_RAM_END;
    set_workload(d, "touch=60T");
}

Test(lab_guest, descriptions_are_checked_field_by_field)
{
    static const struct {
        const char *name;
        void (*spoil)(struct guest_description *d);
        const char *reason;
        bool by_check_only; /* a matter of this host, not of the shape */
    } cases[] = {
        {"kind", spoil_kind, "\"qemu\""},
        {"accel", spoil_accel, "\"none\""},
        {"vcpus", spoil_vcpus, "65 vCPUs"},
        {"memory", spoil_memory, "bytes of memory"},
        {"region size", spoil_region, "regions"},
        {"region count", spoil_count, "regions"},
        {"platform size", spoil_platform, "damaged"},
        {"platform version", spoil_version, "version 2"},
        {"workload", spoil_workload, "hot", true},
        {"memory of this host", spoil_appetite, "available", true},
    };
    struct guest *guest;

    need_kvm();
    guest = new_guest(32, 2, "");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct guest_description description;
        struct reasons reasons = {0};
        struct error err = {0};
        struct guest *incoming = NULL;

        cr_assert_eq(guest->ops->describe(guest, &description, &err), 0, "describe: %s", err.text);
        lab_guest_kind.check(&(struct guest_host){0}, &description, &reasons);
        cr_expect_eq(reasons.count, 0, "as described: %s", reasons.text);
        cases[i].spoil(&description);
        lab_guest_kind.check(&(struct guest_host){0}, &description, &reasons);
        cr_expect_eq(reasons.count, 1, "%s: expected 1 reason, got %u: %s", cases[i].name,
                     reasons.count, reasons.text);
        cr_expect(reasons.text && strstr(reasons.text, cases[i].reason),
                  "%s: expected \"%s\" in: %s", cases[i].name, cases[i].reason, reasons.text);
        if (!cases[i].by_check_only)
            cr_expect_lt(
                lab_guest_kind.incoming(&(struct guest_host){0}, &description, &incoming, &err), 0,
                "%s: incoming took it", cases[i].name);
        reasons_free(&reasons);
        guest_description_free(&description);
    }
    guest->ops->destroy(guest);
}

Test(lab_guest, touched_memory_and_nothing_else_is_present)
{
    struct extent_list extents = {0};
    struct error err = {0};
    struct guest *guest;

    need_kvm();
    guest = new_guest(1024, 1, "touch=32M,content=incompressible");
    cr_assert_eq(guest->ops->present(guest, 0, &extents, &err), 0, "present: %s", err.text);
    cr_expect(extent_list_bytes(&extents) >= 32 << 20 && extent_list_bytes(&extents) < 40 << 20,
              "32 MiB touched, %llu bytes present",
              (unsigned long long)extent_list_bytes(&extents));
    cr_expect_eq(lab_workload_bytes(1024ull << 20), (1024ull << 20) - LAB_WORKLOAD_START);
    cr_expect_eq(lab_workload_bytes(4096), 0);
    extent_list_free(&extents);
    guest->ops->destroy(guest);
}
