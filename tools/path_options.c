#include "tools/path_options.h"

#include <errno.h>

#include "tools/control_protocol.h"

const char *const path_timeout_choices[] = {"cancel", "force", NULL};
const char *const path_operation_choices[] = {"write", "read", NULL};
const char *const path_registration_choices[] = {"all", "chunk", NULL};

int path_options_check(const struct migration_options *wanted, struct error *err)
{
    if (wanted->limits.downtime_ns == 0)
        return error_set(err, EINVAL, "--downtime-limit: it must be above 0");
    if (wanted->limits.downtime_ns > CONTROL_MAX_NUMBER)
        return error_set(err, ERANGE, "--downtime-limit: more than 104 days");
    if (wanted->limits.max_time_ns > CONTROL_MAX_NUMBER)
        return error_set(err, ERANGE, "--max-time: more than 104 days");
    if (wanted->max_bandwidth > CONTROL_MAX_NUMBER)
        return error_set(err, ERANGE, "--max-bandwidth: more than 8 PiB/s");
    if (wanted->pin_limit > CONTROL_MAX_NUMBER)
        return error_set(err, ERANGE, "--rdma-pin-limit: more than 8 PiB");
    return 0;
}
