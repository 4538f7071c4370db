#!/usr/bin/python3
"""A busy Linux in QEMU under KVM hops to and fro between two hosts, over rdma:// in every way to place and to register
pages, and over tcp://: its memory, its disk and its uptime go on, and it answers pings within 50 ms more than the
downtime."""

import itertools
import statistics

from cases import run_cases
from hosts import SLOW, Failure, expect
from remote_qemu import RemotePinger, RemoteQemuWorld

LOAD = {"ram": 128, "ram_rate": 1000, "disk": 8, "disk_rate": 10, "tick": 20}
CONVERGE = ("--downtime-limit", "1s", "--throttle", "auto")
WAYS = tuple(itertools.product(("write", "read"), ("all", "chunk")))
LANES, CACHES = (1, 4), ("none", "writeback")
HOPS = 10
MEDIAN_MS, WORST_MS = 50, 250
MIB = 1 << 20


def check_report(report, scheme, lanes, way, verify):
    kind = {name: report["guest"][name] for name in ("kind", "accel")}
    expect(kind == {"kind": "qemu", "accel": "kvm"}, f"expected a QEMU guest under KVM; got {report['guest']}")
    expect(report["transport"] == scheme and report["lanes"] == lanes,
           f"expected a move over {scheme} with {lanes} lanes; got {report['transport']} with {report['lanes']}")
    expect(report["verified"] == verify, f"expected verified to be {verify}; got {report['verified']}")
    if way:
        device = report["rdma"]
        expect((device["operation"], device["registration"]) == way, f"expected {way}; got {device}")


class Route:
    """The way of one guest, and how long each hop kept it from answering."""

    def __init__(self, world):
        self.world, self.pinger, self.beyond = world, RemotePinger(world.host("a")), []

    def hop(self, scheme, lanes, way=None, verify=False):
        options = ["--lanes", lanes, *CONVERGE, *(["--verify"] if verify else [])]
        if way:
            options += ["--rdma-op", way[0], "--rdma-register", way[1]]
        here = self.world.here
        report, gap = self.world.hop(scheme, *options, pinger=self.pinger)
        self.beyond.append(gap - report["downtime_ms"])
        label = f"{scheme} {' '.join(way or ())}".strip()
        print(f"{label}, {lanes} lanes, {here} to {self.world.here}{', verified' if verify else ''}: "
              f"{len(report['rounds'])} rounds, {report['guest_bytes'] / MIB:.0f} MiB in {report['total_ms'] / 1e3:.1f} s, "
              f"downtime {report['downtime_ms']:.0f} ms, no answer to pings for {gap:.0f} ms", flush=True)
        check_report(report, scheme, lanes, way, verify)
        for host in self.world.hosts.values():
            host.without_resources()

    def check_pings(self):
        median, worst = statistics.median(self.beyond), max(self.beyond)
        said = f"pings unanswered beyond the downtime for {median:.0f} ms in the median, {worst:.0f} at worst"
        print(said, flush=True)
        if median > MEDIAN_MS * SLOW or worst > WORST_MS * SLOW:
            raise Failure(f"expected at most {MEDIAN_MS} ms in the median and {WORST_MS} at worst; {said}")


def few_hops(context):
    """Two over RDMA, in two ways, and one over TCP."""
    lanes = context.random.sample(LANES, 2)
    with RemoteQemuWorld(cache=context.random.choice(CACHES), load=LOAD) as world:
        world.boot()
        route = Route(world)
        route.hop("rdma", lanes[0], WAYS[0])
        route.hop("rdma", lanes[1], context.random.choice(WAYS[1:]), verify=True)
        route.hop("tcp", context.random.choice(LANES))
        route.check_pings()


def many_hops(cache, lanes):
    with RemoteQemuWorld(cache=cache, load=LOAD) as world:
        world.boot()
        route = Route(world)
        for way in itertools.islice(itertools.cycle(WAYS), HOPS):
            route.hop("rdma", lanes, way)
        for number in range(HOPS):
            route.hop("tcp", lanes, verify=number == HOPS - 1)
        route.check_pings()


def hops(context):
    if not context.full:
        return few_hops(context)
    for cache, lanes in itertools.product(CACHES, LANES):
        print(f"cache={cache}, {lanes} lanes", flush=True)
        many_hops(cache, lanes)


run_cases(__doc__, {"hops": hops})
