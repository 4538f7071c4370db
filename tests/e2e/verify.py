#!/usr/bin/python3
"""--verify finds nothing in a sound move; a page that a fault dropped without a word is found and named, and the guest
goes on at the source."""

import re

import outcomes
from cases import run_cases
from hosts import EXIT_FAILED, EXIT_MIGRATED, World, expect, wait_until

LAB = {"memory": "64M", "workload": "touch=32M,hot=8M,rate=4000"}


def sound(context):
    with World() as world:
        source, destination = world.host("a"), world.host("b")
        source.lab(accel=context.accel, **LAB)
        report = source.migrate("guest", destination.receive().uri, "--verify")
        expect(report["downtime"]["verify"] > 0, f"expected time spent on verifying; got {report['downtime']}")
        wait_until(lambda: "guest" not in source.guests(), 10, "the source to be gone")
        destination.check("guest")


def skipped_transfer(context):
    """The first post carries a part of the idle memory, which no later round sends again."""
    table = outcomes.Table()
    found = 0
    for number in range(1, 5 if not context.full else 30):
        with World() as world:
            disturbed = outcomes.start(world, context.accel, migrate=("--verify", "--filter", f"fault=skip@{number}"), lab=LAB)
            code = disturbed.migration.wait(60)
            said = disturbed.migration.output()
            outcome = outcomes.settle(disturbed)
            table.counts["dropped transfer"][outcome] += 1
            if code == EXIT_MIGRATED:  # what was dropped had to go again anyway
                continue
            expect(code == EXIT_FAILED, f"expected exit code 1; got {code}: {said[-1000:]}")
            expect(re.search(r"page", said) and re.search(r"(differ|differs|difference)", said),
                   f"expected the difference to name its pages; it said {said[-1000:]}")
            found += 1
            print(f"skip@{number}: {said.strip().splitlines()[-1][:200]}")
    table.finish()
    expect(found > 0, "expected at least one dropped transfer of idle memory to be found")


run_cases(__doc__, {"sound": sound, "skipped transfer": skipped_transfer})
