#!/usr/bin/python3
"""Whatever fails, and whenever, one guest is left. Lanes that fail, stall or are cut at the N-th operation, at either end; and
either end killed, or stopped for a while, at random moments."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import outcomes
from cases import run_cases
from hosts import World

# A wide search with --full ends at the first operation number that several migrations in a row never reached.
LAST_OPERATION, UNREACHED_IN_A_ROW = 5000, 3
TOGETHER, TOGETHER_FULL = 3, 8  # scenarios at a time: most of their time is waiting
SEARCHES = {"cut": 1, "fail": 1, "stall": 3}  # side by side, for each end; a stall takes seconds to notice


def inject(table, accel, action, end, number):
    spec = f"fault={action}@{number}"
    options = {"migrate" if end == "source" else "receive": ("--filter", spec)}

    def body(world):
        return outcomes.settle(outcomes.start(world, accel, **options))

    return table.add(f"{action} at the {end}", f"{spec} at the {end}", body)


def every_operation(table, accel, action, end, first, step):
    unreached = 0
    for number in range(first, LAST_OPERATION, step):
        outcome = inject(table, accel, action, end, number)
        print(f"  {action}@{number} at the {end}: {outcome}", flush=True)
        unreached = unreached + 1 if outcome == outcomes.COMPLETED else 0
        if unreached == UNREACHED_IN_A_ROW:
            return


def injected_faults(context):
    table = outcomes.Table()
    kinds = [(action, end) for action in ("cut", "fail", "stall") for end in ("source", "receiver")]
    with ThreadPoolExecutor(TOGETHER_FULL if context.full else TOGETHER) as pool:
        if context.full:
            work = [pool.submit(every_operation, table, context.accel, *kind, first, SEARCHES[kind[0]])
                    for kind in reversed(kinds) for first in range(1, SEARCHES[kind[0]] + 1)]
        else:
            # Low numbers are where little happens; the logarithm of the moment is drawn evenly.
            work = [pool.submit(inject, table, context.accel, *kind, int(2 ** context.random.uniform(0, 9)))
                    for kind in kinds for _ in range(2)]
        for future in work:
            future.result()
    table.finish()


def victim_of(disturbed, end):
    if end == "source":
        return [disturbed.lab.pid]
    return disturbed.sessions()


def disturb(disturbed, number, end, after):
    """Sends a signal after a while; SIGSTOP is taken back later than the other side's patience ends."""
    time.sleep(after)
    victims = victim_of(disturbed, end)
    for pid in victims:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        if number == signal.SIGKILL:
            disturbed.killed.add(disturbed.source if end == "source" else disturbed.destination)
    if number == signal.SIGSTOP:
        time.sleep(7)
        for pid in victims:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue


def killed_and_stopped(context):
    table = outcomes.Table()
    with World() as world:
        disturbed = outcomes.start(world, context.accel)
        disturbed.migration.wait(60)
        duration = time.monotonic() - disturbed.migration.started
    kinds = [(number, end) for number in (signal.SIGKILL, signal.SIGSTOP) for end in ("source", "receiver")]
    print(f"an undisturbed migration takes {duration * 1e3:.0f} ms")

    def attempt(number, end, after):
        def body(world):
            disturbed = outcomes.start(world, context.accel)
            disturb(disturbed, number, end, after)
            return outcomes.settle(disturbed)

        table.add(f"{number.name} of the {end}", f"{number.name} of the {end} after {after * 1e3:.0f} ms", body)

    with ThreadPoolExecutor(TOGETHER_FULL // 2 if context.full else TOGETHER) as pool:
        work = [pool.submit(attempt, *kind, context.random.uniform(0, duration * 1.2))
                for kind in kinds for _ in range(15 if context.full else 3)]
        for future in work:
            future.result()
    table.finish()


run_cases(__doc__, {"injected faults": injected_faults, "killed and stopped": killed_and_stopped})
