#!/usr/bin/python3
"""Ctrl-C and `wander cancel`, at random moments: the migration ends at once, and the guest runs on."""

import signal
import time

import outcomes
from cases import run_cases
from hosts import EXIT_FAILED, EXIT_MIGRATED, SLOW, World, expect

SLOW_LINK = ("--filter", "rate=12M", "--downtime-limit", "2s")  # 24 MiB take two seconds, the rest one more
PROMPT = 5  # s


def interrupt(disturbed):
    disturbed.migration.signal(signal.SIGINT)


def command(disturbed):
    disturbed.source.run("cancel", outcomes.GUEST)


def attempt(context, table, how, after):
    def body(world):
        disturbed = outcomes.start(world, context.accel, migrate=SLOW_LINK)
        time.sleep(after)
        asked = time.monotonic()
        how(disturbed)
        code = disturbed.migration.wait(PROMPT + 5)
        taken, said = time.monotonic() - asked, disturbed.migration.output()
        expect(code in (EXIT_FAILED, EXIT_MIGRATED), f"expected exit code 1, or 0 when it came too late; got {code}: {said}")
        expect(code == EXIT_MIGRATED or taken <= PROMPT * SLOW, f"expected an end within {PROMPT} s; took {taken:.1f} s")
        expect(code == EXIT_MIGRATED or "cancel" in said.lower(), f"expected it to say that it was cancelled; it said {said}")
        return outcomes.settle(disturbed)

    return table.add(how.__name__, f"{how.__name__} after {after * 1e3:.0f} ms", body)


def at_random_moments(context):
    table = outcomes.Table()
    for how in (interrupt, command):
        results = [attempt(context, table, how, context.random.uniform(0.05, 3.2)) for _ in range(30 if context.full else 3)]
        results.append(attempt(context, table, how, 0.7))
        expect(outcomes.ON_SOURCE in results, f"expected at least one to come in time; got {results}")
    table.finish()


def migrates_after_a_cancel(context):
    with World() as world:
        disturbed = outcomes.start(world, context.accel, migrate=SLOW_LINK)
        time.sleep(0.7)
        command(disturbed)
        expect(outcomes.settle(disturbed) == outcomes.ON_SOURCE, "expected the guest to run on the source")
        disturbed.migration = disturbed.source.start_migrate(outcomes.GUEST, disturbed.receiver.uri)
        expect(outcomes.settle(disturbed) == outcomes.COMPLETED, "expected the second attempt to complete")


def client_dies(context):
    """A client that is killed does not end the migration."""
    with World() as world:
        disturbed = outcomes.start(world, context.accel, migrate=SLOW_LINK)
        time.sleep(0.5)
        disturbed.migration.signal(signal.SIGKILL)
        disturbed.migration.wait(5)
        deadline = time.monotonic() + 30 * SLOW
        while disturbed.runners() != [disturbed.destination]:
            expect(time.monotonic() < deadline, "expected the migration to complete without its client")
        disturbed.destination.check(outcomes.GUEST)


run_cases(__doc__, {"at random moments": at_random_moments, "migrates after a cancel": migrates_after_a_cancel,
                    "client dies": client_dies})
