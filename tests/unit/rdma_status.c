/* Failures of work requests and of connecting, in words that help. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "transport/rdma/status.h"

TestSuite(rdma_status, .timeout = 60);

Test(rdma_status, every_status_has_words_of_its_own)
{
    for (int status = IBV_WC_SUCCESS; status <= IBV_WC_TM_RNDV_INCOMPLETE; status++) {
        const struct ibv_wc completion = {.status = (enum ibv_wc_status)status};
        struct rdma_status s = rdma_status_of((enum ibv_wc_status)status);
        struct error err = {0};

        cr_assert(s.meaning && s.remedy, "status %d has no words", status);
        cr_expect(s.code > 0 && strlen(s.meaning) > 10 && strlen(s.remedy) > 10,
                  "status %d: %d, \"%s\", \"%s\"", status, s.code, s.meaning, s.remedy);
        cr_expect_eq(rdma_status_error(&err, 0, "SEND", "rxe0", &completion, "active"), -s.code);
        cr_expect(strstr(err.text, "(IBV_WC_"), "status %d is not named: %s", status, err.text);
        cr_expect_lt(strlen(err.text), (size_t)ERROR_TEXT_SIZE - 100, "status %d: %zu bytes",
                     status, strlen(err.text));
    }
}

Test(rdma_status, what_the_device_invents_has_words_too)
{
    static const int statuses[] = {-1, IBV_WC_TM_RNDV_INCOMPLETE + 1, 255, 1 << 30};

    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        const struct ibv_wc completion = {.status = (enum ibv_wc_status)statuses[i]};
        struct error err = {0};

        cr_expect_eq(rdma_status_error(&err, 0, "SEND", "rxe0", &completion, "active"), -EIO);
        cr_expect(strstr(err.text, "does not know"), "status %d: %s", statuses[i], err.text);
    }
}

Test(rdma_status, codes_and_remedies)
{
    static const struct {
        enum ibv_wc_status status;
        int code;
        const char *meaning, *remedy; /* a part of each */
    } cases[] = {
        {IBV_WC_RETRY_EXC_ERR, ETIMEDOUT, "acknowledged nothing", "UDP port 4791"},
        {IBV_WC_RETRY_EXC_ERR, ETIMEDOUT, "after all retries", "MTU"},
        {IBV_WC_RNR_RETRY_EXC_ERR, EPROTO, "given credit", "flow control"},
        {IBV_WC_REM_ACCESS_ERR, EACCES, "key has ended", "ended the migration"},
        {IBV_WC_WR_FLUSH_ERR, ECONNRESET, "lane was closed", "first error"},
        {IBV_WC_LOC_PROT_ERR, EFAULT, "not registered", "report"},
        {IBV_WC_LOC_LEN_ERR, EMSGSIZE, "more bytes", "same wander"},
        {IBV_WC_REM_INV_REQ_ERR, EPROTO, "refuses the request", "same wander"},
        {IBV_WC_FATAL_ERR, EIO, "failed for good", "kernel log"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rdma_status s = rdma_status_of(cases[i].status);

        cr_expect_eq(s.code, cases[i].code, "status %d: expected %s, got %s", (int)cases[i].status,
                     strerror(cases[i].code), strerror(s.code));
        cr_expect(strstr(s.meaning, cases[i].meaning), "expected \"%s\" in \"%s\"",
                  cases[i].meaning, s.meaning);
        cr_expect(strstr(s.remedy, cases[i].remedy), "expected \"%s\" in \"%s\"", cases[i].remedy,
                  s.remedy);
    }
}

Test(rdma_status, a_failed_work_request)
{
    struct ibv_wc completion = {.status = IBV_WC_REM_ACCESS_ERR};
    struct error err = {0};
    int result = rdma_status_error(&err, 2, "RDMA WRITE", "rxe0", &completion, "active");

    cr_expect_eq(result, -EACCES, "expected %d, got %d", -EACCES, result);
    cr_expect_eq(err.code, EACCES);
    cr_expect_str_eq(err.text,
                     "lane 2: RDMA WRITE on rxe0 failed: the peer's device refuses access "
                     "to its memory: the key has ended (IBV_WC_REM_ACCESS_ERR 10); the "
                     "peer has ended the migration or closed a region: see its log");
    error_clear(&err);
    completion.vendor_err = 0x81;
    rdma_status_error(&err, 0, "SEND of a message", "mlx5_0", &completion, "down");
    cr_expect(strstr(err.text, "lane 0: SEND of a message on mlx5_0 (port down) failed: "), "%s",
              err.text);
    cr_expect(strstr(err.text, "(IBV_WC_REM_ACCESS_ERR 10, vendor's code 0x81)"), "%s", err.text);
}

Test(rdma_status, events)
{
    static const struct {
        enum rdma_cm_event_type event;
        int status, code;
        const char *part, *remedy;
    } cases[] = {
        {RDMA_CM_EVENT_ADDR_ERROR, -ENODEV, ENODEV, "over no RDMA device", "rdma link"},
        {RDMA_CM_EVENT_ADDR_ERROR, -ETIMEDOUT, ETIMEDOUT, "ARP", "is up"},
        {RDMA_CM_EVENT_ADDR_ERROR, -EHOSTUNREACH, EHOSTUNREACH, "(ADDR_ERROR, No route to host)",
         "ip route get"},
        {RDMA_CM_EVENT_ROUTE_ERROR, -ETIMEDOUT, EHOSTUNREACH, "no RDMA path", "subnet manager"},
        {RDMA_CM_EVENT_CONNECT_ERROR, -EINVAL, ECONNREFUSED, "Invalid argument", "queue pairs"},
        {RDMA_CM_EVENT_UNREACHABLE, -ETIMEDOUT, ETIMEDOUT, "nobody answers", "4791"},
        {RDMA_CM_EVENT_REJECTED, 8, ECONNREFUSED, "nobody listens there", "waits"},
        {RDMA_CM_EVENT_REJECTED, 28, ECONNREFUSED, "turned the lane away", "log"},
        {RDMA_CM_EVENT_REJECTED, 10, ECONNREFUSED, "from before", "try again"},
        {RDMA_CM_EVENT_REJECTED, 3, ECONNREFUSED, "resources", "lanes"},
        {RDMA_CM_EVENT_REJECTED, 35, ECONNREFUSED, "(REJECTED, reason 35)", "log"},
        {RDMA_CM_EVENT_REJECTED, -ECONNREFUSED, ECONNREFUSED, "Connection refused", "log"},
        {RDMA_CM_EVENT_DISCONNECTED, 0, ECONNRESET, "(DISCONNECTED)", "log"},
        {RDMA_CM_EVENT_DEVICE_REMOVAL, 0, ENODEV, "removed", "kernel log"},
        {RDMA_CM_EVENT_ADDR_CHANGE, 0, ENETDOWN, "moved", "try again"},
        {RDMA_CM_EVENT_TIMEWAIT_EXIT, 0, ECONNRESET, "(TIMEWAIT_EXIT)", "report"},
        {RDMA_CM_EVENT_ESTABLISHED, 0, EPROTO, "(ESTABLISHED)", "report"},
        {RDMA_CM_EVENT_MULTICAST_ERROR, 0, EPROTO, "(MULTICAST_ERROR)", "report"},
        {(enum rdma_cm_event_type)99, 0, EPROTO, "unknown event", "report"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = {0};
        int result = rdma_event_error(&err, 3, "10.0.0.2", cases[i].event, cases[i].status);
        const char *remedy = strstr(err.text, "); ");

        cr_expect_eq(result, -cases[i].code, "event %d, status %d: expected %d, got %d (%s)",
                     (int)cases[i].event, cases[i].status, -cases[i].code, result, err.text);
        cr_expect(strstr(err.text, "lane 3: the RDMA connection to 10.0.0.2 failed: "), "%s",
                  err.text);
        cr_expect(strstr(err.text, cases[i].part), "expected \"%s\" in \"%s\"", cases[i].part,
                  err.text);
        cr_expect(remedy && strstr(remedy, cases[i].remedy), "expected \"%s\" in \"%s\"",
                  cases[i].remedy, err.text);
    }
}

Test(rdma_status, the_first_error_stays)
{
    const struct ibv_wc completion = {.status = IBV_WC_WR_FLUSH_ERR};
    struct error err = {0};

    error_set(&err, ETIMEDOUT, "the cause");
    rdma_status_error(&err, 0, "SEND", "rxe0", &completion, "active");
    rdma_event_error(&err, 0, "b", RDMA_CM_EVENT_DISCONNECTED, 0);
    cr_expect_str_eq(err.text, "the cause");
}
