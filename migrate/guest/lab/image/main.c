/* The lab guest: reads what it is to do, says that it is ready, starts the other processors, and
 * works. */
#include "console.h"
#include "layout.h"
#include "migrate/guest/workload_pattern.h"
#include "vcpu.h"

struct workload_guest guest = {
    .parameters = {.vcpus = 1, .hot_share = 90, .seed = 1},
};

_Noreturn void image_main(uint32_t start_info);

static void check_parameters(const struct parameters *p)
{
    if (p->vcpus < 1 || p->vcpus > MAX_VCPUS)
        panic_number("vcpus= must be between 1 and 64", "vcpus", p->vcpus);
    if (p->pattern > WORKLOAD_WINDOW)
        panic_number("pattern= must be between 0 and 3", "pattern", p->pattern);
    if (p->hot_share > 100)
        panic_number("hot_share= is a percentage", "hot_share", p->hot_share);
}

static void report_ready(const struct memory *memory)
{
    line_begin("ready");
    line_number("vcpus", guest.parameters.vcpus);
    line_number("memory", memory->bytes);
    line_number("hot", guest.hot.pages * PAGE_SIZE);
    line_text("clock", guest.clock->name);
    line_end();
}

_Noreturn void image_main(uint32_t start_info)
{
    struct parameters *p = &guest.parameters;
    struct memory memory = {0};

    console_init();
    boot_info_read(start_info, p, &memory);
    check_parameters(p);
    memory_map_high(memory.high_pages);
    hot_set_place(&guest.hot, &memory, p->hot_at, p->hot);
    guest.clock = clock_vmm_present() ? &clock_vmm : &clock_tsc;
    guest.clock->init();
    report_ready(&memory);
    guest.started = guest.clock->now();
    keeper_init(guest.started);
    if (p->vcpus > 1)
        start_processors((uint32_t)p->vcpus);
    vcpu_main(0);
}
