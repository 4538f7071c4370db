#!/usr/bin/python3
"""Migrations of one guest (twenty; fewer in the quick run) that are cancelled in the middle of a round, and one that
completes: RDMA resources, memory, descriptors and threads of the source's process do not grow, nor do the listener's;
and a guest that goes to and fro."""

import itertools
import os

from cases import run_cases
from hosts import EXIT_FAILED, expect, wait_until
from outcomes import GUEST
from remote_world import RemoteWorld

ATTEMPTS, ATTEMPTS_FULL, WARM_UP, HOPS, HOPS_FULL = 10, 20, 8, 2, 20
SMALL = {"memory": "40M", "workload": "touch=24M,hot=4M,rate=500"}
RSS_GROWTH = 512  # KiB in all, from the eighth attempt on: by then each way has been tried twice
WAYS = list(itertools.product(("write", "read"), ("all", "chunk")))
# glibc gives a thread any arena that is free, and keeps them: one that is used for the first time looks like a leak.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}

# Else AddressSanitizer keeps what was freed, up to 256 MiB of it, and that looks like a leak.
os.environ["ASAN_OPTIONS"] = f"{os.environ.get('ASAN_OPTIONS', '')}:quarantine_size_mb=4"


def options(way):
    operation, registration = way
    return ["--rdma-op", operation, "--rdma-register", registration, "--lanes", 4, "--downtime-limit", "1s",
            "--throttle", "auto"]


def held(host, pid):
    """What a process holds: resident memory in KiB, descriptors, threads."""
    text = host.remote.run(f"grep -E '^(VmRSS|Threads):' /proc/{pid}/status; ls /proc/{pid}/fd | wc -l").stdout.split()
    return {"rss_kib": int(text[1]), "threads": int(text[4]), "descriptors": int(text[5])}


def cancelled(source, destination, receiver, way):
    """One migration that is cancelled while it is in its first round."""
    migration = source.start_migrate(GUEST, receiver.uri, *options(way), "--max-bandwidth", "2M")
    wait_until(lambda: "round 0" in migration.output() or not migration.running(), 30, "the first round to begin")
    source.must("cancel", GUEST)
    code = migration.wait(15)
    expect(code == EXIT_FAILED and "cancel" in migration.output(),
           f"expected a cancelled migration; it exited with {code} and said {migration.output()}")
    wait_until(lambda: destination.pids() == [receiver.pid], 15, "the session at the destination to end")
    for host in (source, destination):
        host.without_resources()


def cancelled_again_and_again(context):
    with RemoteWorld() as world:
        source, destination = world.host("a"), world.host("b")
        for host in (source, destination):
            host.env |= ONE_ARENA
        receiver, lab = destination.receive(), source.lab(GUEST, **SMALL)
        watched = {"source": (source, lab.pid), "listener": (destination, receiver.pid)}
        history, attempts = [], ATTEMPTS_FULL if context.full else ATTEMPTS
        for _, way in zip(range(attempts), itertools.cycle(WAYS)):
            cancelled(source, destination, receiver, way)
            history.append({name: held(*at) for name, at in watched.items()})
        for name in watched:
            for key in ("rss_kib", "descriptors", "threads"):
                values = [seen[name][key] for seen in history]
                print(f"{name}, {key} after each of {attempts}: {' '.join(map(str, values))}", flush=True)
                allowed = RSS_GROWTH if key == "rss_kib" else 0
                first, last = max(values[:WARM_UP]), values[-1]
                expect(last <= first + allowed,
                       f"expected the {name}'s {key} to grow by {allowed} at most after the first {WARM_UP}; it went "
                       f"from {first} to {last}: {values}")
        report = source.migrate(GUEST, receiver.uri, *options(WAYS[0]))
        destination.check(GUEST)
        expect(lab.wait(20) == 0, f"expected the source's process to end with 0; it ended with {lab.code()}")
        print(f"then it moved, in {report['total_ms'] / 1e3:.1f} s", flush=True)


def to_and_fro(context):
    """Receivers that stay take one guest after the other."""
    with RemoteWorld() as world:
        hosts = [world.host("a"), world.host("b")]
        receivers = {host: host.receive() for host in hosts}
        hosts[0].lab(GUEST, **SMALL)
        history = []
        hops = HOPS_FULL if context.full else HOPS
        for number, way in zip(range(hops), itertools.cycle(WAYS)):
            here, there = hosts[number % 2], hosts[(number + 1) % 2]
            here.migrate(GUEST, receivers[there].uri, *options(way))
            wait_until(lambda: GUEST not in here.guests(), 20, "the source to be gone")
            there.check(GUEST)
            for host in hosts:
                host.without_resources()
            history.append([held(host, receivers[host].pid)["descriptors"] for host in hosts])
        print(f"descriptors of the two listeners after each of {hops} moves: {history}", flush=True)
        # A listener has a descriptor for a session whose guest runs there.
        expect(history[-1] == history[(hops - 1) % 2],
               f"expected listeners that keep nothing of a session; got {history}")
        expect(there.check(GUEST)["moves"] == hops, f"expected {hops} moves; got {there.workload(GUEST)}")


run_cases(__doc__, {"cancelled again and again": cancelled_again_and_again, "to and fro": to_and_fro})
