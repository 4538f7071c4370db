#!/usr/bin/python3
"""Between two hosts, in the middle of a round over rdma://: the link goes down, either end is killed, the destination
is stopped, the migration is cancelled. In time one guest is left where it belongs, the message says what happened,
neither host holds an RDMA resource any more, and the next migration completes. And a link that loses or delays packets
carries one."""

import itertools
import re
import signal
import time

import outcomes
import virtual_pair
from cases import run_cases
from hosts import SLOW, Failure, expect, wait_until
from outcomes import GONE, GUEST, ON_SOURCE
from remote_world import RemoteDisturbed, RemoteWorld

PROMPT = 10  # s, from the disturbance to the right outcome
SMALL = {"memory": "48M", "workload": "touch=32M,hot=8M,rate=1000"}
SLOWED = ("--max-bandwidth", "5M")  # 32 MiB last six seconds, so that it happens within the first round
CONVERGE = ("--downtime-limit", "2s", "--throttle", "auto")
WAYS = list(itertools.product(("write", "read"), ("all", "chunk"), ("4", "6")))
POOR = ("loss=1%", "delay=50ms")
STOPPED_FOR = 9  # s: longer than the other side's patience


def started(world, way, slowed=SLOWED):
    """A migration from a to b that is in its first round."""
    operation, registration, family = way
    source, destination = world.host("a"), world.host("b")
    receiver = destination.receive(family=family)
    disturbed = RemoteDisturbed(world, source, destination, receiver, source.lab(GUEST, **SMALL))
    disturbed.options = ("--rdma-op", operation, "--rdma-register", registration, *CONVERGE)
    disturbed.migration = source.start_migrate(GUEST, receiver.uri, *disturbed.options, *slowed)
    wait_until(lambda: "round 0" in disturbed.migration.output() or not disturbed.migration.running(), 30,
               "the first round to begin")
    expect(disturbed.migration.running(),
           f"expected a migration in its first round; it said {disturbed.migration.output()}")
    return disturbed


def source_link_down(disturbed):
    disturbed.world.link().down(disturbed.source)


def destination_link_down(disturbed):
    disturbed.world.link().down(disturbed.destination)


def kill_source(disturbed):
    disturbed.source.kill([disturbed.lab.pid], signal.SIGKILL)
    disturbed.killed.add(disturbed.source)


def kill_destination(disturbed):
    disturbed.destination.kill(disturbed.sessions(), signal.SIGKILL)
    disturbed.killed.add(disturbed.destination)


def stop_destination(disturbed):
    disturbed.stopped = disturbed.sessions()
    disturbed.destination.kill(disturbed.stopped, signal.SIGSTOP)


def cancel(disturbed):
    disturbed.source.must("cancel", GUEST)


# What happens; the outcome that is right; what the message speaks of.
DISTURBANCES = {
    # As a rule it names the port; "closed" when the connection broke well before the port said that it is down.
    "link down at the source": (source_link_down, ON_SOURCE, r"silent|link|closed"),
    "link down at the destination": (destination_link_down, ON_SOURCE, r"silent|link"),
    "SIGKILL of the source": (kill_source, GONE, r"ended|closed|gone|lost|reset|connection"),
    "SIGKILL of the destination": (kill_destination, ON_SOURCE, r"ended|closed|gone|lost|reset|died|hung up"),
    "SIGSTOP of the destination": (stop_destination, ON_SOURCE, r"silent|answer|acknowledged nothing"),
    "cancel": (cancel, ON_SOURCE, r"cancel"),
}


def clean(disturbed):
    """Nothing of the session is left at either end: not the process at the destination, not one RDMA resource."""
    disturbed.destination_clean()
    for host in (disturbed.source, disturbed.destination):
        host.without_resources()


def move_again(disturbed):
    """The next migration, of the same guest or of another where that one was killed, completes."""
    source, destination, receiver = disturbed.source, disturbed.destination, disturbed.receiver
    link = disturbed.world.link()
    link.up()
    if disturbed.source in disturbed.killed:
        source.lab(GUEST, **SMALL)
    expect(link.mend(destination), "expected nobody to have the RDMA device of the destination open after the session")
    if not link.mend(source):
        # The guest's process has the broken device open until it has moved away: by tcp, and back by rdma.
        source.migrate(GUEST, receiver.uri.replace("rdma://", "tcp://"), *CONVERGE)
        wait_until(lambda: link.mend(source), 20, "the source's process to end after a move over tcp")
        source, destination = destination, source
        receiver = destination.receive(family="6" if "[" in receiver.uri else "4")
    report = source.migrate(GUEST, receiver.uri, *disturbed.options, seconds=90)
    destination.check(GUEST)
    return f"{source.name} to {destination.name}, {report['total_ms'] / 1e3:.1f} s"


def disturb(world, name, way, after):
    disturbance, right, words = DISTURBANCES[name]
    disturbed = started(world, way)
    time.sleep(after)
    began = time.monotonic()
    disturbance(disturbed)
    disturbed.migration.wait(PROMPT + 20)
    if disturbed.source in disturbed.killed:
        disturbed.destination_clean()
    taken = time.monotonic() - began
    said = disturbed.migration.output().strip()
    if hasattr(disturbed, "stopped"):
        time.sleep(max(0, STOPPED_FOR - taken))
        disturbed.destination.kill(disturbed.stopped, signal.SIGCONT)
    outcome = outcomes.settle(disturbed)
    last = said.splitlines()[-1] if said else ""
    print(f"{name}, {'/'.join(way)}, {after:.1f} s into the round: {outcome} after {taken:.1f} s: {last[:300]}",
          flush=True)
    expect(outcome == right, f"{name}: expected the guest to be '{right}'; it is '{outcome}', and the message is: "
                             f"{said[-1000:]}")
    expect(taken <= PROMPT * SLOW, f"{name}: expected that outcome within {PROMPT} s; it took {taken:.1f} s")
    expect(re.search(words, last, re.IGNORECASE), f"{name}: expected the message to speak of {words}; it said: {last}")
    clean(disturbed)
    print(f"    the next migration completed: {move_again(disturbed)}", flush=True)


def disturbances(name):
    def body(context):
        ways = context.random.sample(WAYS, 3 if context.full else 1)
        for way in ways:
            with RemoteWorld() as world:
                disturb(world, name, way, context.random.uniform(0.2, 3))
    return virtual_pair.renewed(body)


def over_poor_link(shape, way):
    with RemoteWorld() as world:
        world.link().shape(shape)
        disturbed = started(world, way, ())
        code = disturbed.migration.wait(180)
        report = disturbed.migration.report()
        expect(code == 0, f"{'/'.join(way)}: expected a migration to complete with {shape}; it exited with {code} "
                          f"and said {disturbed.migration.output()[-2000:]}")
        disturbed.destination.check(GUEST)
        counters = {name: count["after"] - count["before"] for name, count in report["rdma"]["counters"].items()}
        print(f"{shape}, {'/'.join(way)}: {report['total_ms'] / 1e3:.1f} s, downtime {report['downtime_ms']:.0f} ms, "
              f"{ {name: count for name, count in counters.items() if count} }", flush=True)


def poor_links(context):
    """Each way over each poor link; in the quick run one of them writes and the other reads."""
    operations = ["write", "read"]
    context.random.shuffle(operations)
    failures = []
    for shape, operation in zip(POOR, operations):
        some = [context.random.choice([way for way in WAYS if way[0] == operation])]
        for way in WAYS if context.full else some:
            try:
                over_poor_link(shape, way)
            except Failure as failure:
                failures.append(str(failure))
                print(f"{shape}, {'/'.join(way)}: FAILED", flush=True)
    expect(not failures, " ".join(failures))


CASES = {name: disturbances(name) for name in DISTURBANCES}
CASES["poor links"] = virtual_pair.renewed(poor_links)
run_cases(__doc__, CASES, quick=4)
