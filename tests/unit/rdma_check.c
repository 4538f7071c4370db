/* What rdma says of this host. Loopback has no RDMA device, so there is always a finding; limits on
 * locked memory are looked at all the same. */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "transport/transport.h"

static const uint64_t GUEST_BYTES = 512ull << 20;

static struct transport_findings look(const struct transport_params *params, enum transport_end end)
{
    struct address at = {.scheme = "rdma", .host = "127.0.0.1", .port = 7000};
    struct transport_findings findings;

    transport_check("rdma", params, &at, end, GUEST_BYTES, &findings);
    return findings;
}

static const struct transport_finding *find(const struct transport_findings *findings,
                                            const char *text)
{
    for (unsigned i = 0; i < findings->count; i++)
        if (strstr(findings->all[i].text, text))
            return &findings->all[i];
    return NULL;
}

/* Each test has a process of its own, so nobody else loses the capability. */
static void may_pin(uint64_t bytes)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};
    struct rlimit limit;

    cr_assert_eq(syscall(SYS_capget, &header, data), 0, "%s", strerror(errno));
    data[0].effective &= ~(1u << CAP_IPC_LOCK);
    cr_assert_eq(syscall(SYS_capset, &header, data), 0, "%s", strerror(errno));
    getrlimit(RLIMIT_MEMLOCK, &limit);
    limit.rlim_cur = bytes;
    if (limit.rlim_max < bytes)
        limit.rlim_max = bytes;
    if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0)
        cr_skip_test("this user may not have that much locked memory");
}

Test(rdma_check, loopback_has_no_device_and_the_remedy_is_named)
{
    struct transport_params params = {.lanes = 2};
    struct transport_findings findings = look(&params, TRANSPORT_SOURCE);

    const struct transport_finding *finding = find(&findings, "no RDMA device");
    cr_assert(finding, "of %u findings none is of the device: %s", findings.count,
              findings.all[0].text);
    cr_expect(finding->fatal);
    cr_expect(strstr(finding->text, "tcp://"), "%s", finding->text);
    cr_expect_str_eq(findings.device, "");
}

Test(rdma_check, a_limit_on_locked_memory_is_found_at_either_end)
{
    static const struct {
        enum transport_end end;
        const char *start;
    } cases[] = {{TRANSPORT_SOURCE, "start wander after"},
                 {TRANSPORT_DESTINATION, "start wander receive after"}};
    struct transport_params params = {.lanes = 2};

    may_pin(64 << 10);
    for (size_t i = 0; i < 2; i++) {
        struct transport_findings findings = look(&params, cases[i].end);
        const struct transport_finding *finding = find(&findings, "64.0 KiB");

        cr_assert(finding && finding->fatal, "case %zu: not found, or not fatal", i);
        cr_expect(strstr(finding->text, "ulimit -l unlimited"), "%s", finding->text);
        cr_expect(strstr(finding->text, cases[i].start), "expected \"%s\" in \"%s\"",
                  cases[i].start, finding->text);
        cr_expect_not(strstr(finding->text, "--rdma-pin-limit"), "no chunk fits: %s",
                      finding->text);
    }
}

Test(rdma_check, chunks_within_the_limit_are_a_way_out)
{
    struct transport_params all = {.lanes = 2};
    struct transport_params chunk = {
        .lanes = 2, .registration = TRANSPORT_REGISTER_CHUNK, .pin_limit = 6 << 20};
    struct transport_findings findings;

    may_pin(6 << 20);
    findings = look(&all, TRANSPORT_SOURCE);
    const struct transport_finding *finding = find(&findings, "6.0 MiB");
    cr_assert(finding, "a limit below the guest's memory was not found");
    cr_expect(strstr(finding->text, "--rdma-register chunk --rdma-pin-limit 6M"), "%s",
              finding->text);
    findings = look(&chunk, TRANSPORT_SOURCE);
    cr_expect_null(find(&findings, "memlock"), "%s", findings.all[0].text);
    chunk.pin_limit++;
    findings = look(&chunk, TRANSPORT_SOURCE);
    cr_expect(find(&findings, "memlock"), "one byte more than the limit was not found");
}
