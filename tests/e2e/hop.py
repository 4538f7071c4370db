#!/usr/bin/python3
"""One guest hops 20 times between two receivers while it writes. After each hop its self-check is clean; the program itself
compares all vCPU state after loading it and refuses to go on when a register differs."""

import itertools

from cases import run_cases
from hosts import SLOW, World, expect, wait_until

HOPS = 20
LIMIT_MS, BANDWIDTH = 60, "100M"  # so that several rounds are needed


def hop(context, tracker, lanes, vcpus):
    options = ["--lanes", lanes, "--downtime-limit", f"{LIMIT_MS * SLOW:.0f}ms", "--throttle", "auto",
               "--max-bandwidth", BANDWIDTH] + (["--tracker", tracker] if context.accel == "kvm" else [])
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = {host: host.receive().uri for host in (here, there)}
        here.lab(memory="96M", vcpus=vcpus, workload="touch=32M,hot=32M,rate=12000,pattern=random",
                 accel=context.accel)
        rounds = []
        for number in range(1, HOPS + 1):
            report = here.migrate("guest", uri[there], *options)
            rounds.append(len(report["rounds"]))
            wait_until(lambda: "guest" not in here.guests(), 10, f"the source of hop {number} to be gone")
            account = there.check("guest")
            wait_until(lambda: there.written("guest") > account["pages_written"], 10, "the guest to write on after its check")
            expect(account["moves"] == number, f"expected the guest to have seen {number} moves; got {account}")
            here, there = there, here
        print(f"{tracker}, {lanes} lanes, {vcpus} vCPUs: {HOPS} hops, rounds {rounds}, "
              f"{account['checked_pages']} pages good at the last check")


def combinations(context):
    trackers = ["dirty-log", "dirty-ring"] if context.accel == "kvm" else ["userfaultfd"]
    for tracker in trackers:
        yield from context.sample(itertools.product([tracker], [1, 4], [1, 4]), 1)


def hops(context):
    for combination in combinations(context):
        hop(context, *combination)


run_cases(__doc__, {"hop": hops})
