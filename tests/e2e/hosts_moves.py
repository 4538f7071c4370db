#!/usr/bin/python3
"""A KVM guest moves from one host to the other and back while it writes, over rdma:// in every way to place and to
register pages, and over tcp://. Its self-check is clean after each move, and the report says what really carried it."""

import itertools

from cases import in_some_try, run_cases
from hosts import Failure, expect, wait_until
from remote_world import RemoteWorld

OPERATIONS, REGISTRATIONS, LANES, FAMILIES = ("write", "read"), ("all", "chunk"), (1, 4), ("4", "6")
FACTORS = (OPERATIONS, REGISTRATIONS, LANES, FAMILIES)
# Rows in which each two factors take all four pairs of values, whichever value is called 0.
COVERING = ((0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0))
SMALL = {"memory": "64M", "workload": "touch=48M,hot=16M,rate=2000"}
BIG = {"memory": "128M", "workload": "touch=104M,hot=16M,rate=2000"}
MIB = 1 << 20
PAGE = 4096
GUEST = "guest"
CONVERGE = ("--downtime-limit", "1s", "--throttle", "auto")


def check_device(side, end, operation, registration, family, pin_limit):
    """What the report says of one end's device."""
    facts = {"device": "rxe0", "link_layer": "Ethernet", "gid_type": "RoCE v2", "mtu": 4096, "operation": operation,
             "registration": registration, "encrypted": False}
    got = {name: end.get(name) for name in facts}
    expect(got == facts, f"expected the {side}'s device to be {facts}; the report says {got}")
    start = "fd77:" if family == "6" else "::ffff:10.77."
    expect(end["gid"].startswith(start), f"expected the {side}'s GID to begin with {start}; it is {end['gid']}")
    rnr = {name: count for name, count in end["counters"].items() if "rnr" in name}
    expect(rnr and all(count["after"] == count["before"] for count in rnr.values()),
           f"expected counters of receiver-not-ready at the {side}, none of them growing; got {rnr or end['counters']}")
    if registration == "chunk":
        expect(0 < end["pinned_peak_bytes"] <= pin_limit,
               f"expected the {side} to pin at most {pin_limit} bytes; it pinned {end['pinned_peak_bytes']}")


def check_rdma(report, operation, registration, family, pin_limit):
    expect(report["transport"] == "rdma" and report["rdma"],
           f"expected a move over rdma; got {report['transport']} and {report['rdma']}")
    ends = {"source": report["rdma"], "destination": report["rdma"]["destination"]}
    expect(ends["destination"], "expected the report to know the destination's device")
    for side, end in ends.items():
        check_device(side, end, operation, registration, family, pin_limit)
    mover = "source" if operation == "write" else "destination"
    pages, moved = report["pages"]["raw"] * PAGE, {side: end["data_bytes"] for side, end in ends.items()}
    expect(moved == {"source": 0, "destination": 0, mover: pages},
           f"expected the device of the {mover}, and no other, to move the {pages} bytes of raw pages; got {moved}")


def told(report):
    text = (f"{len(report['rounds'])} rounds, {report['guest_bytes'] / MIB:.0f} MiB in "
            f"{report['total_ms'] / 1e3:.1f} s, downtime {report['downtime_ms']:.0f} ms")
    rdma = report.get("rdma")
    if rdma:
        pinned = [end["pinned_peak_bytes"] / MIB for end in (rdma, rdma["destination"])]
        text += f", pinned {pinned[0]:.0f} and {pinned[1]:.0f} MiB, {rdma['work_requests']} work requests"
    return text


def there_and_back(label, scheme, families, guest, options, receive=(), check=lambda report: None):
    """a to b, and back with all memory compared before the guest starts. `families`: of the addresses of a and of b."""
    with RemoteWorld() as world:
        here, there = world.host("a"), world.host("b")
        uris = {host: host.receive(*receive, scheme=scheme, family=family).uri
                for host, family in zip((here, there), families)}
        lab = here.lab(GUEST, **guest)
        for number in (1, 2):
            verify = ["--verify"] if number == 2 else []
            report = here.migrate(GUEST, uris[there], *CONVERGE, *options, *verify, seconds=120)
            print(f"{label}, {here.name} to {there.name}: {told(report)}", flush=True)
            check(report)
            expect(report["guest"]["kind"] == "lab" and report["guest"]["accel"] == "kvm", f"got {report['guest']}")
            expect(report["verified"] == bool(verify),
                   f"expected the way back to be verified; got {report['verified']}")
            wait_until(lambda: GUEST not in here.guests(), 20, f"the source of move {number} to be gone")
            account = there.check(GUEST)
            expect(account["moves"] == number, f"expected the guest to have seen {number} moves; got {account}")
            here, there = there, here
        expect(lab.wait(20) == 0, f"expected the first source's process to end with 0; it ended with {lab.code()}")
        here.must("quit", GUEST)
        for host in world.hosts.values():
            host.without_resources()


def over_rdma(operation, registration, lanes, family, big):
    limit = 64 if big else 24
    options = ["--rdma-op", operation, "--rdma-register", registration, "--lanes", lanes]
    pin = ["--rdma-pin-limit", f"{limit}M"] if registration == "chunk" else []

    def check(report):
        expect(report["lanes"] == lanes, f"expected {lanes} lanes; got {report['lanes']}")
        check_rdma(report, operation, registration, family, limit * MIB)

    label = f"rdma {operation} {registration}, {lanes} lanes, IPv{family}" + (", 128 MiB" if big else "")
    there_and_back(label, "rdma", (family, family), BIG if big else SMALL, options + pin, pin, check)


def way(row, big):
    """Soft-RoCE on starved processors repeats packets late, and the peer's at times refuses what it has seen."""
    return in_some_try(lambda _: over_rdma(*row, big=big), tries=2)


def rdma(context):
    """All sixteen ways, or five of them in which each two settings meet; with chunk more memory than may be pinned."""
    everything = list(itertools.product(*FACTORS))
    swaps = [context.random.randrange(2) for _ in FACTORS]
    covering = [tuple(values[bit ^ swap] for values, bit, swap in zip(FACTORS, row, swaps)) for row in COVERING]
    big = context.random.choice([row for row in covering if row[1] == "chunk"])
    failures = []
    for row in everything if context.full else covering:
        try:
            way(row, big=row[1] == "chunk" and (context.full or row == big))(context)
        except Failure as failure:
            failures.append(f"{row}: {failure}")
            print(f"  {row}: FAILED", flush=True)
    expect(not failures, f"expected every way to move a guest; {len(failures)} failed. {' '.join(failures)}")


def tcp(context):
    there_and_back("tcp, IPv6 and back IPv4", "tcp", FAMILIES, SMALL, [],
                   check=lambda report: expect(report["transport"] == "tcp" and report["rdma"] is None,
                                               f"expected a move over tcp; got {report['transport']}"))


run_cases(__doc__, {"tcp": tcp, "rdma": rdma})
