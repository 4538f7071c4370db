#include "migrate/guest/lab/lab.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/guest/host_memory.h"
#include "migrate/guest/lab/abi.h"
#include "migrate/guest/lab/state_format.h"
#include "migrate/guest/lab/vm.h"
#include "migrate/guest/lab/vm_state.h"
#include "migrate/guest/pagemap.h"

enum { MEMORY_GRAIN = 1 << 20 };

#define LAB_MAX_MEMORY                                                                             \
    (1ull << 46) /* what a lab guest's physical addresses can name on any processor with KVM */

static struct lab *of(struct guest *g)
{
    return (struct lab *)g;
}

uint64_t lab_workload_bytes(uint64_t memory_bytes)
{
    return memory_bytes > LAB_WORKLOAD_START ? memory_bytes - LAB_WORKLOAD_START : 0;
}

static int lab_describe(struct guest *g, struct guest_description *out, struct error *err)
{
    const struct lab *lab = of(g);

    memset(out, 0, sizeof *out);
    snprintf(out->kind, sizeof out->kind, "lab");
    snprintf(out->accel, sizeof out->accel, "kvm");
    snprintf(out->name, sizeof out->name, "%s", lab->name);
    out->vcpus = lab->vcpus;
    out->memory_bytes = lab->memory_bytes;
    out->region_count = lab->region_count;
    for (unsigned i = 0; i < lab->region_count; i++) {
        out->regions[i] = lab->regions[i];
        out->regions[i].host = NULL;
    }
    return cpu_model_encode(&lab->cpu, &lab->workload, &out->platform, &out->platform_size, err);
}

static unsigned lab_regions(struct guest *g, const struct guest_region **out)
{
    *out = of(g)->regions;
    return of(g)->region_count;
}

static int lab_present(struct guest *g, uint32_t region, struct extent_list *out, struct error *err)
{
    const struct lab *lab = of(g);

    if (region >= lab->region_count)
        return error_set(err, EINVAL, "the guest has no region %u", region);
    return pagemap_present(lab->regions[region].host, lab->regions[region].size, out, err);
}

static const struct {
    const char *name;
    enum machine_tracking tracking;
    int (*open)(struct lab *lab, struct tracker **out, struct error *err);
} trackers[] = {
    {"dirty-log", MACHINE_DIRTY_LOG, dirty_log_new},
    {"dirty-ring", MACHINE_DIRTY_RING, dirty_ring_new},
};

static int open_tracker(struct lab *lab, size_t kind, struct tracker **out, struct error *err)
{
    int ret;

    if (lab->tracker)
        return error_set(err, EBUSY, "guest %s is being tracked already, by %s", lab->name,
                         lab->tracker->ops->name);
    ret = lab_change_tracking(lab, trackers[kind].tracking, err);
    if (ret == 0)
        ret = trackers[kind].open(lab, out, err);
    if (ret == 0)
        lab->tracker = *out;
    return ret;
}

static int lab_tracker(struct guest *g, const char *name, struct tracker **out, struct error *err)
{
    const size_t count = sizeof trackers / sizeof trackers[0];

    if (!name || !name[0])
        name = trackers[0].name;
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, trackers[i].name) == 0)
            return open_tracker(of(g), i, out, err);
    return error_set(err, EINVAL, "a lab guest has no tracker \"%s\"; it has %s and %s", name,
                     trackers[0].name, trackers[1].name);
}

static int guest_pause(struct guest *g, struct error *err)
{
    return lab_pause(of(g), err);
}

static int guest_resume(struct guest *g, struct error *err)
{
    return lab_resume(of(g), err);
}

static bool guest_paused(struct guest *g)
{
    return lab_paused(of(g));
}

static uint64_t guest_resumed_at(struct guest *g)
{
    return lab_resumed_at(of(g));
}

static int guest_throttle(struct guest *g, unsigned percent, struct error *err)
{
    return lab_throttle(of(g), percent, err);
}

static int check_paused(struct lab *lab, const char *what, struct error *err)
{
    if (lab_paused(lab))
        return 0;
    return error_set(err, EBUSY, "%s the state of guest %s: it is running; pause it first", what,
                     lab->name);
}

static int lab_save(struct guest *g, struct guest_state *out, struct error *err)
{
    struct lab *lab = of(g);
    struct vm_state *state;
    int ret = check_paused(lab, "saving", err);

    if (ret < 0)
        return ret;
    state = vm_state_new(lab->vcpus);
    if (!state)
        return error_set(err, ENOMEM, "out of memory for the guest's state");
    devices_save(&lab->devices, &state->devices);
    ret = vm_state_read(lab->machine, &lab->cpu, state, err);
    if (ret == 0)
        ret = state_encode(state, out, err);
    vm_state_free(state);
    return ret < 0 ? error_prefix(err, "saving the state of guest %s", lab->name) : 0;
}

static int lab_load(struct guest *g, const void *bytes, size_t size,
                    const struct guest_load_context *context, struct error *err)
{
    struct lab *lab = of(g);
    struct vm_state *state = NULL;
    int ret = check_paused(lab, "loading", err);

    if (ret == 0)
        ret = state_decode(bytes, size, lab->vcpus, &state, err);
    if (ret < 0)
        return ret;
    ret = vm_state_write(lab->machine, &lab->cpu, state, context->clock_offset_ns, err);
    if (ret == 0)
        devices_load(&lab->devices, &state->devices, true, context->clock_offset_ns);
    vm_state_free(state);
    return ret < 0 ? error_prefix(err, "loading the state of guest %s", lab->name) : 0;
}

static void lab_workload(struct guest *g, struct guest_workload *out)
{
    devices_account(&of(g)->devices, out);
}

static int lab_request_check(struct guest *g, struct error *err)
{
    if (devices_receive(&of(g)->devices, 'c') < 0)
        return error_set(err, EAGAIN,
                         "guest %s has not read its earlier requests yet; is it running?",
                         of(g)->name);
    return 0;
}

static void lab_console(struct guest *g, char *out, size_t size)
{
    devices_console(&of(g)->devices, out, size);
}

static void lab_destroy(struct guest *g)
{
    lab_free(of(g));
}

static const struct guest_ops lab_ops = {
    .kind = "lab",
    .describe = lab_describe,
    .regions = lab_regions,
    .present = lab_present,
    .tracker = lab_tracker,
    .pause = guest_pause,
    .resume = guest_resume,
    .paused = guest_paused,
    .resumed_at = guest_resumed_at,
    .save = lab_save,
    .load = lab_load,
    .throttle = guest_throttle,
    .workload = lab_workload,
    .request_check = lab_request_check,
    .console = lab_console,
    .destroy = lab_destroy,
};

static int check_config(const struct lab_config *config, struct error *err)
{
    uint64_t memory = config->memory_bytes;

    if (memory < LAB_WORKLOAD_START || memory % MEMORY_GRAIN != 0 || memory > LAB_MAX_MEMORY)
        return error_set(err, EINVAL,
                         "a lab guest cannot have %" PRIu64
                         " bytes of memory; give a multiple of 1 MiB, "
                         "at least %llu MiB",
                         memory, LAB_WORKLOAD_START / MEMORY_GRAIN);
    if (config->vcpus < 1 || config->vcpus > GUEST_MAX_VCPUS)
        return error_set(err, EINVAL, "a lab guest cannot have %u vCPUs; 1 to %d are possible",
                         config->vcpus, GUEST_MAX_VCPUS);
    if (config->workload.hot / GUEST_PAGE_SIZE > LAB_MAX_HOT_PAGES)
        return error_set(err, EINVAL,
                         "a hot set of %" PRIu64 " MiB is too large for a lab guest; at most "
                         "%llu MiB are possible",
                         config->workload.hot / MEMORY_GRAIN,
                         LAB_MAX_HOT_PAGES * GUEST_PAGE_SIZE / MEMORY_GRAIN);
    return workload_check(&config->workload, lab_workload_bytes(memory), err);
}

/* Fills one piece of RAM that has no hole in it; huge pages make the first touch of gigabytes
 * bearable. */
static void fill_piece(const struct lab *lab, const struct guest_region *region, uint64_t offset,
                       uint64_t length, uint64_t first_page)
{
    uint8_t *memory = (uint8_t *)region->host + offset;

    madvise(memory, length, MADV_HUGEPAGE);
    workload_fill(memory, first_page, length, lab->workload.content, lab->workload.seed);
}

static void fill_workload_area(const struct lab *lab)
{
    uint64_t left = lab->workload.touch, page = 0, offset = LAB_WORKLOAD_START;

    for (unsigned i = 0; i < lab->region_count && left > 0; i++, offset = 0) {
        uint64_t room = lab->regions[i].size - offset;
        uint64_t length = left < room ? left : room;

        fill_piece(lab, &lab->regions[i], offset, length, page);
        page += length / GUEST_PAGE_SIZE;
        left -= length;
    }
}

static int boot_guest(const struct lab_config *config, const struct cpu_model *cpu,
                      const void *image, size_t size, struct guest **out, struct error *err)
{
    struct lab *lab;
    int ret = lab_new(config, cpu, &lab, err);

    if (ret < 0)
        return ret;
    lab->guest.ops = &lab_ops;
    ret = lab_boot(lab, image, size, err);
    if (ret < 0) {
        lab_free(lab);
        return ret;
    }
    fill_workload_area(lab);
    *out = &lab->guest;
    return 0;
}

int lab_guest_boot(const struct lab_config *config, const void *image, size_t size,
                   struct guest **out, struct error *err)
{
    struct cpu_model *cpu;
    int ret = check_config(config, err);

    if (ret < 0)
        return ret;
    cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        return error_set(err, ENOMEM, "out of memory for a CPU model");
    ret = cpu_model_host(cpu, err);
    if (ret == 0)
        ret = boot_guest(config, cpu, image, size, out, err);
    free(cpu);
    return ret;
}

int lab_guest_new(const struct lab_config *config, struct guest **out, struct error *err)
{
    size_t size;
    const void *image = lab_image(&size);

    return lab_guest_boot(config, image, size, out, err);
}

static void check_regions(const struct guest_description *d, struct reasons *reasons)
{
    uint64_t low = d->memory_bytes < LAB_LOW_RAM_END ? d->memory_bytes : LAB_LOW_RAM_END;
    unsigned count = d->memory_bytes > low ? 2 : 1;

    if (d->memory_bytes < LAB_WORKLOAD_START || d->memory_bytes > LAB_MAX_MEMORY ||
        d->memory_bytes % MEMORY_GRAIN != 0)
        reasons_add(reasons,
                    "no lab guest can have %" PRIu64 " bytes of memory; the description is "
                    "damaged or of another version of wander",
                    d->memory_bytes);
    else if (d->region_count != count || d->regions[0].size != low ||
             (count == 2 && d->regions[1].size != d->memory_bytes - low))
        reasons_add(reasons,
                    "the guest's memory regions are not those of a lab guest of %" PRIu64
                    " bytes; use the same version of wander on both hosts",
                    d->memory_bytes);
}

static void check_identity(const struct guest_description *d, struct reasons *reasons)
{
    if (strcmp(d->kind, "lab") != 0)
        reasons_add(reasons, "the guest is of the kind \"%s\", not a lab guest", d->kind);
    if (strcmp(d->accel, "kvm") != 0)
        reasons_add(reasons, "the guest runs under \"%s\", this host offers kvm", d->accel);
    if (d->vcpus < 1 || d->vcpus > GUEST_MAX_VCPUS)
        reasons_add(reasons, "the guest has %u vCPUs; 1 to %d are possible", d->vcpus,
                    GUEST_MAX_VCPUS);
    check_regions(d, reasons);
}

/* What the guest is going to touch must be there; what else it might touch nobody knows. */
static void check_workload(const struct guest_description *d, const struct workload *workload,
                           struct reasons *reasons)
{
    uint64_t hot_end = workload->hot_at + workload->hot, available = host_memory_available();
    uint64_t touched = LAB_WORKLOAD_START;
    struct error err = {0};

    if (workload_check(workload, lab_workload_bytes(d->memory_bytes), &err) < 0) {
        reasons_add(reasons, "%s", err.text);
        return;
    }
    touched += workload->touch;
    if (hot_end > workload->touch)
        touched +=
            workload->hot < hot_end - workload->touch ? workload->hot : hot_end - workload->touch;
    if (touched > available)
        reasons_add(reasons,
                    "the guest touches %" PRIu64 " bytes of memory, this host has %" PRIu64
                    " available; free some here",
                    touched, available);
}

static void check_platform(const struct guest_description *d, struct reasons *reasons)
{
    struct cpu_model *models = calloc(2, sizeof *models);
    struct workload workload;
    struct error err = {0};

    if (!models) {
        reasons_add(reasons, "this host is out of memory");
        return;
    }
    if (cpu_model_decode(d->platform, d->platform_size, &models[0], &workload, &err) < 0) {
        reasons_add(reasons, "%s", err.text);
        goto free_models;
    }
    check_workload(d, &workload, reasons);
    if (cpu_model_host(&models[1], &err) < 0)
        reasons_add(reasons, "%s", err.text);
    else
        cpu_model_check(&models[0], &models[1], reasons);
free_models:
    free(models);
}

static void lab_check(struct guest_host *host, const struct guest_description *description,
                      struct reasons *reasons)
{
    (void)host;
    check_identity(description, reasons);
    check_platform(description, reasons);
}

static int make_incoming(const struct guest_description *description, struct cpu_model *cpu,
                         struct guest **out, struct error *err)
{
    struct lab_config config = {
        .memory_bytes = description->memory_bytes,
        .vcpus = description->vcpus,
    };
    struct lab *lab;
    int ret = cpu_model_decode(description->platform, description->platform_size, cpu,
                               &config.workload, err);

    if (ret < 0)
        return ret;
    memcpy(config.name, description->name, sizeof config.name);
    config.name[sizeof config.name - 1] = '\0';
    ret = lab_new(&config, cpu, &lab, err);
    if (ret < 0)
        return ret;
    lab->guest.ops = &lab_ops;
    *out = &lab->guest;
    return 0;
}

/* Asks for nothing but shape again: what this host can do was asked by lab_check. */
static int lab_incoming(struct guest_host *host, const struct guest_description *description,
                        struct guest **out, struct error *err)
{
    (void)host;
    struct reasons reasons = {0};
    struct cpu_model *cpu;
    int ret;

    check_identity(description, &reasons);
    if (reasons.count > 0) {
        ret = error_set(err, EINVAL, "%s",
                        reasons.text ? reasons.text : "the description is damaged");
        reasons_free(&reasons);
        return ret;
    }
    cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        return error_set(err, ENOMEM, "out of memory for a CPU model");
    ret = make_incoming(description, cpu, out, err);
    free(cpu);
    return ret;
}

const struct guest_kind lab_guest_kind = {
    .kind = "lab",
    .check = lab_check,
    .incoming = lab_incoming,
};
