#!/usr/bin/python3
"""What was never touched costs nothing: a 4 GiB guest that touched 64 MiB sends little more than those, and makes the
destination's memory grow by little more."""

from cases import run_cases
from hosts import SLOW, World, expect, memory_kib, wait_until

TOUCHED = 64 << 20


def sparse(context):
    with World() as world:
        source, destination = world.host("a"), world.host("b")
        source.lab(memory="4G", workload="touch=64M", accel=context.accel)
        receiver = destination.receive(once=True)
        before = memory_kib(receiver.pid) * 1024
        report = source.migrate("guest", receiver.uri)
        pid = wait_until(lambda: destination.owner("guest"), 10, "the guest's process at the destination")
        grown = (memory_kib(pid) + memory_kib(pid, "VmPTE")) * 1024 - before
        own = report["destination_resident_growth_bytes"]
        print(f"touched {TOUCHED}, wire {report['wire_bytes']} ({report['wire_bytes'] / TOUCHED:.4f} x), "
              f"destination grew by {grown} ({grown / TOUCHED:.4f} x), report: {own}")
        expect(report["wire_bytes"] <= 1.05 * TOUCHED,
               f"expected at most {1.05 * TOUCHED:.0f} bytes on the wire; got {report['wire_bytes']}")
        expect(report["wire_bytes"] >= TOUCHED,
               f"expected all {TOUCHED} incompressible bytes on the wire; got {report['wire_bytes']}")
        if SLOW > 1:
            print("a sanitizer's own memory follows what is touched: the destination's is not compared")
            return
        expect(grown <= 1.1 * TOUCHED, f"expected the destination to grow by at most {1.1 * TOUCHED:.0f} bytes; it grew "
                                       f"by {grown}")


run_cases(__doc__, {"sparse": sparse})
