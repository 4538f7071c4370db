/* What the tests of the lab guest share. */
#ifndef TESTS_UNIT_LAB_FIXTURE_H
#define TESTS_UNIT_LAB_FIXTURE_H

#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "migrate/guest/lab/lab.h"
#include "migrate/guest/lab/vm.h"

static inline void need_kvm(void)
{
    struct error err = {0};

    if (lab_probe(&err) < 0)
        cr_skip_test("%s", err.text);
}

static inline struct guest *new_guest(uint64_t mebibytes, unsigned vcpus, const char *workload)
{
    struct lab_config config = {.name = "unit", .memory_bytes = mebibytes << 20, .vcpus = vcpus};
    struct error err = {0};
    struct guest *guest = NULL;
    int ret = workload_parse(workload, &config.workload, &err);

    if (ret == 0)
        ret = lab_guest_new(&config, &guest, &err);
    cr_assert_eq(ret, 0, "a guest of %u vCPUs, %s: %s", vcpus, workload, err.text);
    return guest;
}

static inline void resume(struct guest *guest)
{
    struct error err = {0};

    cr_assert_eq(guest->ops->resume(guest, &err), 0, "resume: %s", err.text);
}

static inline void pause_guest(struct guest *guest)
{
    struct error err = {0};

    cr_assert_eq(guest->ops->pause(guest, &err), 0, "pause: %s", err.text);
    cr_assert(guest->ops->paused(guest), "paused after pause: expected true");
}

/* Another guest made from the description of the first. */
static inline struct guest *new_incoming(struct guest *source)
{
    struct guest_description description;
    struct error err = {0};
    struct guest *guest = NULL;

    cr_assert_eq(source->ops->describe(source, &description, &err), 0, "describe: %s", err.text);
    cr_assert_eq(lab_guest_kind.incoming(&(struct guest_host){0}, &description, &guest, &err), 0, "incoming: %s", err.text);
    guest_description_free(&description);
    return guest;
}

static inline void copy_memory(struct guest *to, struct guest *from)
{
    const struct guest_region *a, *b;
    unsigned count = from->ops->regions(from, &a);

    cr_assert_eq(to->ops->regions(to, &b), count, "number of regions");
    for (unsigned i = 0; i < count; i++)
        memcpy(b[i].host, a[i].host, a[i].size);
}

/* Waits until the guest has written `pages`, at most half a minute: a loaded machine is slow. */
static inline void wait_for_writes(struct guest *guest, uint64_t pages)
{
    struct guest_workload account = {0};

    for (int i = 0; i < 3000 && account.pages_written < pages; i++) {
        usleep(10000);
        guest->ops->workload(guest, &account);
    }
    cr_assert_geq(account.pages_written, pages, "the guest wrote %llu pages, expected %llu",
                  (unsigned long long)account.pages_written, (unsigned long long)pages);
}

#endif
