/* Options that several commands share: how a guest gets to its destination, and within what limits.
 * Each table is for a structure `values` with a member `struct migration_options migrate`. */
#ifndef TOOLS_PATH_OPTIONS_H
#define TOOLS_PATH_OPTIONS_H

#include "migrate/migration.h"
#include "tools/cli_options.h"

/* By the values of their enums, NULL at the end. */
extern const char *const path_timeout_choices[];
extern const char *const path_operation_choices[];
extern const char *const path_registration_choices[];

#define PATH_LIMIT_OPTIONS(values)                                                                 \
    {"downtime-limit", "T", "longest pause that is welcome, like 20ms (default 300ms)", cli_time,  \
     CLI_FIELD(values, migrate.limits.downtime_ns)},                                               \
        {"max-bandwidth", "R", "bytes/s like 100M, or bits/s like 10Gbit (default unlimited)",     \
         cli_rate, CLI_FIELD(values, migrate.max_bandwidth)},                                      \
        {"throttle", "auto|none|MAX%",                                                             \
         "share of vCPU time that may be taken to converge; auto: 99% (default none)",             \
         cli_throttle, CLI_FIELD(values, migrate.limits.throttle_max)},                            \
        {"max-time", "T", "of the whole migration, like 10s or 5m (default no limit)", cli_time,   \
         CLI_FIELD(values, migrate.limits.max_time_ns)},                                           \
    {                                                                                              \
        "on-timeout", "cancel|force",                                                              \
            "after --max-time: the guest stays, or moves at any downtime (default cancel)",        \
            cli_choice, CLI_FIELD(values, migrate.limits.on_timeout),                              \
            .choices = path_timeout_choices                                                        \
    }

#define PATH_LANE_OPTIONS(values)                                                                  \
    {"lanes",                                                                                      \
     "N",                                                                                          \
     "parallel streams or queue pairs, 1 to 64 (default 2)",                                       \
     cli_number,                                                                                   \
     CLI_FIELD(values, migrate.lanes),                                                             \
     .low = 1,                                                                                     \
     .high = 64},                                                                                  \
        {"rdma-op",                                                                                \
         "write|read",                                                                             \
         "rdma: this host's card writes, or the destination's reads (default write)",              \
         cli_choice,                                                                               \
         CLI_FIELD(values, migrate.operation),                                                     \
         .choices = path_operation_choices},                                                       \
        {"rdma-register",                                                                          \
         "all|chunk",                                                                              \
         "rdma: register all touched memory, or a chunk at a time (default all)",                  \
         cli_choice,                                                                               \
         CLI_FIELD(values, migrate.registration),                                                  \
         .choices = path_registration_choices},                                                    \
    {                                                                                              \
        "rdma-pin-limit", "SIZE",                                                                  \
            "rdma: most memory pinned here at once, with chunk (default 256M)", cli_size,          \
            CLI_FIELD(values, migrate.pin_limit)                                                   \
    }

#define PATH_OTHER_OPTIONS(values)                                                                 \
    {"dscp",                                                                                       \
     "N",                                                                                          \
     "DSCP of the lanes' packets, 0 to 63 (default 0: as the system does)",                        \
     cli_number,                                                                                   \
     CLI_FIELD(values, migrate.dscp),                                                              \
     .high = 63},                                                                                  \
        {"tracker", "NAME",                                                                        \
         "dirty-log (default) or dirty-ring; synthetic and QEMU guests have userfaultfd",          \
         cli_text, CLI_FIELD(values, migrate.tracker)},                                            \
    {                                                                                              \
        "filter", "SPEC",                                                                          \
            "around the transport, for tests: rate=R,delay=T,fault=cut|fail|stall|skip@N",         \
            cli_filter, CLI_FIELD(values, migrate.filter)                                          \
    }

/* What the control socket would not take either, but by the names that the user knows. -EINVAL,
 * -ERANGE. */
int path_options_check(const struct migration_options *wanted, struct error *err);

#endif
