#!/usr/bin/python3
"""A link slower than the guest writes: without throttling the migration gives up in time, says why, and the guest goes on
at full speed; with throttling it finishes within the downtime limit."""

import time

from cases import in_some_try, run_cases
from hosts import EXIT_FAILED, World, expect, running, writing_speed

RATE = 12000  # pages/s: 47 MiB/s
LINK = "rate=24M"
LAB = {"memory": "128M", "workload": f"touch=64M,hot=48M,rate={RATE}"}
LIMIT_MS, STALL_MS = 300, 150
FULL = 0.5  # of the speed before: a guest left throttled has an eighth of it, one on a busy machine more than half


def gives_up(context):
    with World() as world:
        source, destination = world.host("a"), world.host("b")
        source.lab(accel=context.accel, **LAB)
        before = writing_speed(source, "guest")
        migration = source.start_migrate("guest", destination.receive().uri, "--filter", LINK, "--throttle", "none",
                                         "--max-time", "10s")
        code = migration.wait(40)
        taken, said = time.monotonic() - migration.started, migration.output()
        expect(code == EXIT_FAILED, f"expected exit code 1; got {code}: {said[-1000:]}")
        expect(taken >= 9, f"expected it to try for 10 s; it gave up after {taken:.1f} s: {said[-1000:]}")
        expect("converge" in said, f"expected it to say that it will not converge; it said {said[-1000:]}")
        expect(running([(source, "guest")]), "expected the guest to run on the source")
        after = writing_speed(source, "guest")
        print(f"gave up after {taken:.1f} s; the guest writes {after:.0f} pages/s, before {before:.0f}")
        expect(after >= FULL * before, f"expected full speed, {before:.0f} pages/s as before, after giving up; got {after:.0f}")
        source.check("guest")


def throttles(context):
    with World() as world:
        source, destination = world.host("a"), world.host("b")
        source.lab(accel=context.accel, **LAB)
        before = writing_speed(source, "guest")
        report = source.migrate("guest", destination.receive().uri, "--filter", LINK, "--throttle", "auto",
                                "--downtime-limit", f"{LIMIT_MS}ms", seconds=120)
        throttle = max(entry["throttle_percent"] for entry in report["rounds"])
        print(f"{len(report['rounds'])} rounds, throttled by up to {throttle} %, downtime {report['downtime_ms']:.0f} ms, "
              f"switchover {report['switchover']}")
        expect(throttle > 0, "expected the guest to have been throttled")
        expect(report["downtime_ms"] <= LIMIT_MS + STALL_MS,
               f"expected a downtime within {LIMIT_MS} ms (and {STALL_MS} ms of a busy machine); got {report['downtime_ms']}")
        after = writing_speed(destination, "guest")
        expect(after >= FULL * before, f"expected full speed, {before:.0f} pages/s as before the move; got {after:.0f}")
        destination.check("guest")


run_cases(__doc__, {"gives up without throttling": in_some_try(gives_up),
                    "converges by throttling": in_some_try(throttles)})
