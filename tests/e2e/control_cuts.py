#!/usr/bin/python3
"""The control channel is cut, silenced or slowed at every message, in both directions: one guest is left each time."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import outcomes
import proxy
from cases import run_cases
from hosts import SLOW, World, expect

ACTIONS = (proxy.CUT, proxy.CUT_INSIDE, proxy.BLACK_HOLE, proxy.DELAY)
CRITICAL = ("READY", "STATE", "LOAD", "PREPARED", "COMMIT", "RUNNING", "RELEASE", "REPORT")
HEALS_AFTER = 9  # s: later than either side's patience
TOGETHER = 3


def through(links, trigger=None, action=None):
    def uri(port):
        links.append(proxy.Link(port, trigger, action))
        return f"tcp://127.0.0.1:{links[-1].port}"

    return uri


def every_message(accel):
    """What an undisturbed migration says, in order."""
    links = []
    with World() as world:
        outcome = outcomes.settle(outcomes.start(world, accel, uri=through(links)))
    links[0].close()
    expect(outcome == outcomes.COMPLETED, f"expected an undisturbed migration through the link to complete; {outcome}")
    names = {name for _, name, _ in links[0].seen}
    expect(names >= set(CRITICAL), f"expected all of {CRITICAL} on the control channel; saw {sorted(names)}")
    return links[0].seen


def attempt(table, accel, action, message):
    def body(world):
        links = []
        healer = None
        try:
            disturbed = outcomes.start(world, accel, uri=through(links, message, action))
            if action == proxy.BLACK_HOLE:
                healer = threading.Thread(target=heal_later, args=(links[0],), daemon=True)
                healer.start()
            return outcomes.settle(disturbed)
        finally:
            for link in links:
                link.close()

    direction, name, occurrence = message
    table.add(action, f"{action} {name} {occurrence} of the {direction}", body)


def heal_later(link):
    if link.reached.wait(60 * SLOW):
        link.stopping.wait(HEALS_AFTER * SLOW)
    link.heal()


def control_cuts(context):
    messages = every_message(context.accel)
    print(f"{len(messages)} messages: " + " ".join(f"{name}" for _, name, _ in messages))
    critical = [message for message in messages if message[1] in CRITICAL]
    chosen = context.sample(itertools.product(ACTIONS, messages), 6)
    if not context.full:
        chosen += context.random.sample(list(itertools.product(ACTIONS, critical)), 8)
    table = outcomes.Table()
    with ThreadPoolExecutor(TOGETHER) as pool:
        for future in [pool.submit(attempt, table, context.accel, *choice) for choice in chosen]:
            future.result()
    table.finish()


run_cases(__doc__, {"control cuts": control_cuts})
