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
        "set-up            45.679 ms\n",
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
    cr_expect_not(strstr(text, "nan"), "%s", text);
    cr_expect_not(strstr(text, "RDMA"), "%s", text);
    free(text);
}
