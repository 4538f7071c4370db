/* wander lab: starts a guest whose memory traffic is exactly controlled. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/guest/lab/lab.h"
#include "migrate/guest/synthetic/synthetic.h"
#include "tools/commands.h"
#include "tools/guest_process.h"

enum accel { ACCEL_KVM, ACCEL_SYNTHETIC };

struct lab_values {
    char name[GUEST_NAME_SIZE];
    uint64_t memory;
    unsigned vcpus;
    struct workload workload;
    unsigned accel; /* enum accel */
};

static const char *const accels[] = {"kvm", "synthetic", NULL};

static int parse_workload(const struct cli_option *option, const char *text, void *field,
                          struct error *err)
{
    (void)option;
    return workload_parse(text, field, err);
}

static const struct cli_option options[] = {
    {"name", "NAME", "what the guest is called here (default lab)", cli_name,
     CLI_FIELD(struct lab_values, name)},
    {"memory", "SIZE", "RAM, like 512M or 4G (default 512M)", cli_size,
     CLI_FIELD(struct lab_values, memory)},
    {"vcpus", "N", "virtual CPUs, 1 to 64 (default 1)", cli_number,
     CLI_FIELD(struct lab_values, vcpus), .low = 1, .high = GUEST_MAX_VCPUS},
    {"workload", "SPEC", "what it does, see above (default: idle, nothing touched)", parse_workload,
     CLI_FIELD(struct lab_values, workload)},
    {"accel", "kvm|synthetic", "a KVM virtual machine, or threads of this process (default kvm)",
     cli_choice, CLI_FIELD(struct lab_values, accel), .choices = accels},
    {0},
};

static int make_lab(const struct lab_values *values, struct guest **out, struct error *err)
{
    struct lab_config config = {
        .memory_bytes = values->memory,
        .vcpus = values->vcpus,
        .workload = values->workload,
    };

    memcpy(config.name, values->name, sizeof(config.name));
    if (lab_probe(err) < 0)
        return error_prefix(err, "KVM cannot be used here (--accel synthetic does without)");
    return lab_guest_new(&config, out, err);
}

static int make_synthetic(const struct lab_values *values, struct guest **out, struct error *err)
{
    struct synthetic_config config = {
        .memory_bytes = values->memory,
        .vcpus = values->vcpus,
        .workload = values->workload,
    };
    int rc = synthetic_probe(err);

    memcpy(config.name, values->name, sizeof(config.name));
    return rc < 0 ? rc : synthetic_guest_new(&config, out, err);
}

/* Worker thread. */
static int make_guest(void *context, struct guest **out, struct error *err)
{
    const struct lab_values *values = context;

    return values->accel == ACCEL_KVM ? make_lab(values, out, err)
                                      : make_synthetic(values, out, err);
}

static int check_memory(const struct lab_values *values, struct error *err)
{
    uint64_t grain = values->accel == ACCEL_KVM ? 1 << 20 : GUEST_PAGE_SIZE;

    if (values->memory % grain)
        return error_set(err, EINVAL, "--memory: must be a multiple of %llu bytes",
                         (unsigned long long)grain);
    if (values->accel == ACCEL_KVM && values->memory < 16 << 20)
        return error_set(err, EINVAL, "--memory: a lab guest needs 16M at least");
    if (values->memory > (uint64_t)1 << 46)
        return error_set(err, EINVAL, "--memory: more than 64T cannot be mapped");
    return 0;
}

static int run(const struct cli_command *self, int argc, char **argv)
{
    struct lab_values values = {.name = "lab", .memory = 512 << 20, .vcpus = 1};
    const char *arguments[CLI_MAX_ARGUMENTS];
    struct name_claim claim;
    struct error err = {0};
    int code;

    workload_parse(NULL, &values.workload, NULL);
    code = cli_begin(self, argc, argv, &values, arguments);
    if (code >= 0)
        return code;
    if (check_memory(&values, &err) < 0)
        return cli_fail(self, EXIT_CODE_USAGE, "%s", err.text);
    if (name_claim(values.name, &claim, &err) < 0)
        return cli_fail(self, EXIT_CODE_FAILED, "%s", err.text);
    return guest_process_new(&claim, make_guest, &values);
}

const struct cli_command lab_command = {
    .name = "lab",
    .arguments = "",
    .summary = "start a guest with a controlled workload and serve it until it has moved away",
    .details =
        "SPEC is key=value,... of\n"
        "  touch=SIZE       filled with content before the guest starts (default 0)\n"
        "  content=KIND     zero, constant, compressible or incompressible (default)\n"
        "  hot=SIZE         working set that is written over and over (default 0: idle)\n"
        "  at=SIZE          where the working set begins\n"
        "  rate=R           pages per second (5000), bytes per second (20M/s) or max, the default\n"
        "  pattern=P        sequential (default), random, hotcold or window\n"
        "  hot-share=N      hotcold: percent of the writes that hit a tenth of the set (default "
        "90)\n"
        "  window=SIZE      window: bytes written at a time\n"
        "  seed=N           of random pattern and content (default 1)\n"
        "Ends with 0 when the guest has moved away or was ended (wander quit, SIGTERM, Ctrl-C).\n",
    .options = options,
    .run = run,
};
