"""What became of a migration that was disturbed: brings it to its end as an operator would and says which of the allowed ends
it was. Never two running guests; that a guest runs is proved by the pages it goes on writing."""

import collections
import threading
import time

from cases import hosts  # cases knows where it is
from hosts import EXIT_FAILED, EXIT_IN_DOUBT, EXIT_MIGRATED, SLOW, Failure, World, expect, running, wait_until

COMPLETED = "completed"
ON_SOURCE = "runs on the source"
RESOLVED = "in doubt, resolved"
GONE = "gone with its killed owner"

GUEST = "guest"
QUICK_GUEST = {"memory": "48M", "workload": "touch=24M,hot=8M,rate=6000"}


class Disturbed:
    """A migration from host `a` to host `b` that somebody is about to disturb."""

    def __init__(self, world, source, destination, receiver, lab):
        self.world, self.source, self.destination = world, source, destination
        self.receiver, self.lab, self.migration = receiver, lab, None
        self.killed = set()

    def places(self):
        return [(host, GUEST) for host in (self.source, self.destination) if GUEST in host.guests()]

    def sessions(self):
        """Processes at the destination besides the listener."""
        return [pid for pid in self.destination.pids() if pid != self.receiver.pid and hosts.alive(pid)]

    def runners(self):
        found = [host for host, _ in running(self.places(), 3)]
        if len(found) == 2:  # a hand-over between the two looks is none too many: look again
            found = [host for host, _ in running(self.places(), 3)]
        expect(len(found) < 2, "expected at most one running guest; BOTH the source and the destination write pages")
        return found

    def destination_clean(self):
        wait_until(lambda: not self.sessions(), 30, "the destination to keep no process of an ended session")


def start(world, accel, receive=(), migrate=(), uri=None, lab=None):
    """A guest, a receiver and a migration between them that has just begun. `uri`: of a way round to a port."""
    source, destination = world.host("a"), world.host("b")
    guest = source.lab(GUEST, accel=accel, **(lab or QUICK_GUEST))
    receiver = destination.receive(*receive)
    disturbed = Disturbed(world, source, destination, receiver, guest)
    disturbed.migration = source.start_migrate(GUEST, uri(receiver.port) if uri else receiver.uri, *migrate)
    return disturbed


def resolve(disturbed, host):
    """As an operator would: ask for the guest; go on without the other side's word only if that side is known dead."""
    said = []
    other = disturbed.destination if host is disturbed.source else disturbed.source
    for action in (["--resume"], ["--resume", "--force"] if other in disturbed.killed else ["--destroy"]):
        done = host.run("resolve", GUEST, *action, seconds=30)
        said.append(f"resolve {' '.join(action)}: {done.returncode} {done.stdout.strip()} {done.stderr.strip()}")
        if done.returncode == 0:
            break
    return said


def settle_doubt(disturbed):
    said = []
    for host in (disturbed.source, disturbed.destination):
        if host in disturbed.killed or GUEST not in host.guests() or disturbed.runners() == [host]:
            continue
        said += resolve(disturbed, host)
    found = disturbed.runners()
    if not found:
        found = wait_until(disturbed.runners, 20, f"exactly one running guest after {said}")
    return found[0]


def settle(disturbed, seconds=60):
    """Waits for the end and returns its name; Failure for any end that is not allowed."""
    code = disturbed.migration.wait(seconds)
    source, destination = disturbed.source, disturbed.destination
    said = disturbed.migration.output()[-1500:]
    if source in disturbed.killed:
        return settle_orphan(disturbed)
    if code == EXIT_MIGRATED:
        if destination in disturbed.killed:
            return GONE
        wait_until(lambda: disturbed.runners() == [destination], 10, f"the guest to run at the destination; it said {said}")
        wait_until(lambda: GUEST not in source.guests(), 20, "the source to be gone")
        destination.check(GUEST)
        return COMPLETED
    if code == EXIT_FAILED:
        found = disturbed.runners()
        expect(found == [source], f"exit code 1 promises a guest that runs on the source; running on "
                                  f"{[host.name for host in found]}; it said {said}")
        disturbed.destination_clean()
        source.check(GUEST)
        return ON_SOURCE
    expect(code == EXIT_IN_DOUBT, f"expected exit code 0, 1 or 3; got {code}: {said}")
    owner = settle_doubt(disturbed)
    owner.check(GUEST)
    return RESOLVED


def settle_orphan(disturbed):
    """The source was killed: its guest is gone, or complete at the destination."""
    destination = disturbed.destination
    deadline = time.monotonic() + 30 * SLOW
    while disturbed.sessions() and time.monotonic() < deadline:
        if disturbed.runners() == [destination]:
            destination.check(GUEST)
            return COMPLETED
        status = destination.status(GUEST) if GUEST in destination.guests() else None
        if status and status["state"] in ("in-doubt", "stuck"):
            settle_doubt(disturbed)
            destination.check(GUEST)
            return RESOLVED
        time.sleep(0.1)
    disturbed.destination_clean()
    return GONE


class Table:
    """Outcomes by disturbance; several threads may add."""

    def __init__(self):
        self.counts, self.failures, self.lock = collections.defaultdict(collections.Counter), [], threading.Lock()

    def add(self, kind, label, body):
        """Runs body(world) in a world of its own and counts what it returns."""
        try:
            with World() as world:
                outcome = body(world)
        except Failure as failure:
            outcome = "FAILED"
            with self.lock:
                self.failures.append(f"{label}: {failure}")
                print(f"  {label}: FAILED: {failure}", flush=True)
        with self.lock:
            self.counts[kind][outcome] += 1
        return outcome

    def finish(self):
        outcomes = sorted({outcome for counts in self.counts.values() for outcome in counts})
        print(f"{'':24}" + "".join(f"{outcome:>28}" for outcome in outcomes))
        for kind, counts in self.counts.items():
            print(f"{kind:24}" + "".join(f"{counts[outcome]:>28}" for outcome in outcomes))
        if self.failures:
            raise Failure(f"expected only allowed ends; {len(self.failures)} were not: {self.failures[0]}")
