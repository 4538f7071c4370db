#include "migrate/guest/lab/vm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "migrate/guest/lab/abi.h"
#include "migrate/guest/lab/vm_state.h"

enum { HUGE_PAGE_SIZE = 2 << 20 };

/* Address space for a region, placed so that huge pages fit; nothing is allocated until it is
 * touched. */
static int map_region(struct guest_region *region, struct error *err)
{
    size_t room = region->size + HUGE_PAGE_SIZE;
    uint8_t *base = mmap(NULL, room, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t before, after;

    if (base == MAP_FAILED)
        return error_set_errno(err, errno, "mapping %llu bytes of guest RAM failed",
                               (unsigned long long)region->size);
    before = -(uintptr_t)base % HUGE_PAGE_SIZE;
    after = HUGE_PAGE_SIZE - before;
    if (before > 0)
        munmap(base, before);
    if (after > 0)
        munmap(base + before + region->size, after);
    region->host = base + before;
    if (madvise(region->host, region->size, MADV_DONTFORK) < 0)
        return error_set_errno(err, errno, "keeping guest RAM out of child processes failed");
    return 0;
}

static int map_memory(struct lab *lab, struct error *err)
{
    uint64_t low = lab->memory_bytes < LAB_LOW_RAM_END ? lab->memory_bytes : LAB_LOW_RAM_END;
    int ret;

    lab->regions[0] = (struct guest_region){.id = 0, .name = "ram-low", .size = low};
    lab->regions[1] =
        (struct guest_region){.id = 1, .name = "ram-high", .size = lab->memory_bytes - low};
    lab->region_count = lab->memory_bytes > low ? 2 : 1;
    for (unsigned i = 0; i < lab->region_count; i++)
        if ((ret = map_region(&lab->regions[i], err)) < 0)
            return ret;
    return 0;
}

void *lab_memory(struct lab *lab, uint64_t address, uint64_t length)
{
    static const uint64_t starts[LAB_MAX_REGIONS] = {0, LAB_HIGH_RAM_START};

    for (unsigned i = 0; i < lab->region_count; i++) {
        uint64_t offset = address - starts[i];

        if (address >= starts[i] && offset <= lab->regions[i].size &&
            length <= lab->regions[i].size - offset)
            return (uint8_t *)lab->regions[i].host + offset;
    }
    return NULL;
}

static int make_machine(struct lab *lab, enum machine_tracking tracking, struct machine **out,
                        struct error *err)
{
    struct machine_params params = {
        .vcpus = lab->vcpus,
        .tracking = tracking,
        .cpu = &lab->cpu,
        .regions = lab->regions,
        .region_count = lab->region_count,
    };

    return machine_new(&params, out, err);
}

static int init_locks(struct lab *lab)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&lab->lock, NULL);
    pthread_mutex_init(&lab->tracker_lock, NULL);
    pthread_cond_init(&lab->changed, &attributes);
    return pthread_condattr_destroy(&attributes);
}

int lab_new(const struct lab_config *config, const struct cpu_model *cpu, struct lab **out,
            struct error *err)
{
    struct lab *lab = calloc(1, sizeof *lab);
    int ret;

    if (!lab)
        return error_set(err, ENOMEM, "out of memory for a guest");
    init_locks(lab);
    devices_init(&lab->devices);
    snprintf(lab->name, sizeof lab->name, "%s", config->name);
    lab->memory_bytes = config->memory_bytes;
    lab->vcpus = config->vcpus;
    lab->workload = config->workload;
    lab->cpu = *cpu;
    if ((ret = map_memory(lab, err)) < 0 ||
        (ret = make_machine(lab, MACHINE_DIRTY_LOG, &lab->machine, err)) < 0 ||
        (ret = lab_start_threads(lab, err)) < 0) {
        lab_free(lab);
        return ret;
    }
    *out = lab;
    return 0;
}

void lab_free(struct lab *lab)
{
    if (lab->tracker)
        lab->tracker->ops->close(lab->tracker);
    lab_stop_threads(lab);
    machine_free(lab->machine);
    for (unsigned i = 0; i < lab->region_count; i++)
        if (lab->regions[i].host)
            munmap(lab->regions[i].host, lab->regions[i].size);
    devices_destroy(&lab->devices);
    pthread_cond_destroy(&lab->changed);
    pthread_mutex_destroy(&lab->tracker_lock);
    pthread_mutex_destroy(&lab->lock);
    free(lab);
}

static bool is_running(struct lab *lab)
{
    bool running;

    pthread_mutex_lock(&lab->lock);
    running = lab->running;
    pthread_mutex_unlock(&lab->lock);
    return running;
}

/* Carries the paused guest's state over; `next` has never run. */
static int carry_over(struct lab *lab, struct machine *next, struct error *err)
{
    struct vm_state *state = vm_state_new(lab->vcpus);
    int ret;

    if (!state)
        return error_set(err, ENOMEM, "out of memory for the guest's state");
    ret = vm_state_read(lab->machine, &lab->cpu, state, err);
    if (ret == 0)
        ret = vm_state_write(next, &lab->cpu, state, 0, err);
    vm_state_free(state);
    return ret;
}

/* Swaps the machine under the paused guest; *spare becomes the one that is not used (any more). */
static int swap_machine(struct lab *lab, struct machine **spare, struct error *err)
{
    struct machine *old = lab->machine;
    int ret = carry_over(lab, *spare, err);

    if (ret < 0)
        return ret;
    pthread_mutex_lock(&lab->lock);
    lab->machine = *spare;
    pthread_mutex_unlock(&lab->lock);
    *spare = old;
    return 0;
}

/* Machines are made and freed while the guest runs: it rests only while its state is carried over. */
int lab_change_tracking(struct lab *lab, enum machine_tracking tracking, struct error *err)
{
    bool was_running = is_running(lab);
    struct machine *spare;
    int ret;

    if (lab->machine->tracking == tracking)
        return 0;
    if ((ret = make_machine(lab, tracking, &spare, err)) < 0)
        goto prefix_error;
    ret = lab_pause(lab, err);
    if (ret == 0)
        ret = swap_machine(lab, &spare, err);
    if (was_running && lab_resume(lab, err) < 0 && ret == 0)
        ret = -EIO;
    machine_free(spare);
prefix_error:
    return ret < 0 ? error_prefix(err, "changing the tracker of guest %s", lab->name) : 0;
}
