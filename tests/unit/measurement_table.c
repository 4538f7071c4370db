/* The measurement as people read it. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

#include "measurement_fixture.h"

Test(measurement_table, the_table_shows_every_round_and_every_part)
{
    static const char *const wants[] = {
        "lab guest \"g1\" (kvm, dirty-log, 2 vCPUs, 512.0 MiB) to tcp://[::1]:4711, 4 lanes, "
        "filter rate=100M\n",
        "result        completed\n",
        "dirty after",
        "\n     0         100        0.4        1.0     351.6         101          30.0        "
        "0%\n",
        "\n    18         118",
        "\npaused         119",
        "total time      1234.568 ms\n",
        "predicted       1200.000 ms in total (1100.0 to 1300.0, before it began), measured "
        "1234.6\n",
        "predicted         22.000 ms of downtime (20.0 to 31.0), measured 23.5\n",
        "set-up            45.679 ms\n",
        "  source           0.100 s engine, 0.300 s lanes, 0.100 s other, 0.500 s guest\n",
        "  destination      0.110 s engine, 0.310 s lanes, 0.080 s other, 0.200 s guest\n",
        "downtime          23.457 ms (limit 300.0, predicted 25.0, forced)\n",
        "  pause            1.000 ms  #\n",
        "  final copy      12.000 ms  ###############\n",
        "  verify           2.000 ms  ###\n",
        "  state save       0.300 ms  \n",
        "  state transfer   0.400 ms  #\n",
        "  state load       5.000 ms  ######\n",
        "  resume           0.600 ms  #\n",
        "guest gap         23.400 ms (measured by the guest)\n",
        "100001 raw, 2002 zero, 30003 never touched\n",
        "486.4 MiB for 476.8 MiB of guest memory (+2.00 %)\n",
        "goodput       762.9 MiB/s\n",
        "1.000 s at the source, 0.700 s at the destination, 3.651 s per GiB\n",
        "RDMA          rxe0 port 1, Ethernet, RoCE v2, MTU 4096; data is not encrypted\n",
        "1 pauses undone",
        "382 chunks equal",
    };
    struct measurement m = full_measurement();
    char *text = measurement_to_table(&m, 23400000);

    for (size_t i = 0; i < sizeof(wants) / sizeof(wants[0]); i++)
        cr_expect(strstr(text, wants[i]), "\"%s\" is not in\n%s", wants[i], text);
    free(text);
    measurement_free(&m);
}

Test(measurement_table, the_table_of_a_failure_says_so_and_claims_no_downtime)
{
    struct measurement m = {
        .result = "failed", .error = "nobody listens", .destination = "tcp://a:1"};
    char *text = measurement_to_table(&m, 0);

    cr_expect(strstr(text, "result        failed: nobody listens\n"), "%s", text);
    cr_expect(strstr(text, "not known at the destination"), "%s", text);
    cr_expect_not(strstr(text, "downtime"), "%s", text);
    cr_expect_not(strstr(text, "guest gap"), "%s", text);
    cr_expect_not(strstr(text, "on the wire"), "%s", text);
    cr_expect_not(strstr(text, "predicted"), "%s", text);
    cr_expect_not(strstr(text, "engine"), "%s", text);
    cr_expect_not(strstr(text, "nan"), "%s", text);
    cr_expect_not(strstr(text, "RDMA"), "%s", text);
    free(text);
}

Test(measurement_table, a_prediction_without_an_end_says_so)
{
    struct measurement m = full_measurement();

    m.prediction.basis = PREDICTION_FIRST_ROUND;
    m.prediction.is.converges = false;
    m.source_cpu.guest_ns = MEASUREMENT_UNKNOWN;
    char *text = measurement_to_table(&m, 0);
    cr_expect(strstr(text, "predicted     that it does not converge (after the first round); "
                           "measured 1234.6 ms\n"),
              "%s", text);
    cr_expect(strstr(text, "0.300 s lanes, 0.100 s other\n"), "%s", text);
    cr_expect_not(strstr(text, "of downtime ("), "%s", text);
    free(text);
    measurement_free(&m);
}
