#!/usr/bin/python3
"""What every transport promises, held against rdma on the hosts: each conformance program with each way to place and to
register, plain and in each filter. Both ends are on one host, over its soft-RoCE device; the two hosts work side by
side."""

import itertools
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import virtual_pair
from cases import Skip, run_cases
from hosts import ROOT, Failure, expect
from remote_world import RESOURCES, resources

BUILD = Path(os.environ.get("WANDER_BUILD") or ROOT / "build")
ROWS = ("rdma/write/all/ipv4", "rdma/read/all/ipv6", "rdma/write/chunk/ipv6", "rdma/read/chunk/ipv4")
FILTERS = ("none", "rate=400M", "delay=2ms", "fault=cut@1000000000", "delay=1ms,rate=400M")
STREAMS_ONLY = ("tampered",)  # is about bytes in a stream
SECONDS = 300
COUNTS = re.compile(r"Tested: (\d+) \| Passing: (\d+) \| Failing: (\d+) \| Crashing: (\d+)")


def failures_in(output):
    """What a program said about the tests that failed: from what each began with to its end."""
    parts = re.split(r"(?m)^\[(?:RUN |PASS|SKIP|====)\].*$", output)
    return "\n".join(part.strip() for part in parts if "[FAIL]" in part or "CRASH" in part or "Unexpected" in part)


def run_program(host, name, row, chosen):
    """One program against one row in one filter; how many tests passed."""
    path = virtual_pair.deploy(host, BUILD / "tests" / f"conformance-{name}")
    label = f"{name}, {row}, {chosen}"
    process = host.start([path, "--verbose", "-j1"], env={
        "WANDER_RDMA_IPV4": host.link_address("4"), "WANDER_RDMA_IPV6": host.link_address("6"),
        "WANDER_CONFORMANCE": row, "WANDER_CONFORMANCE_FILTER": chosen})
    try:
        code = process.wait(SECONDS)
        output = process.output()
    finally:
        # Criterion runs each test in a process of its own, which may outlive a failure.
        host.run(["kill", f"-{int(signal.SIGKILL)}", "--", f"-{process.pid}"], check=False)
    counts = COUNTS.search(output)
    expect(counts, f"{label}: expected a count of tests; it exited with {code} and said: {output[-2000:]}")
    tested, passed, failed, crashed = map(int, counts.groups())
    expect(code == 0 and failed + crashed == 0, f"{label}: expected every test to pass; {failed} of {tested} failed, "
                                                f"{crashed} crashed, exit code {code}:\n{failures_in(output)[-6000:]}")
    expect(tested and passed == tested, f"{label}: expected tests, all passed; {passed} of {tested} did")
    left = resources(host)
    expect(not left, f"{label}: expected no {', '.join(RESOURCES)} to be left; there are {left}")
    return tested


def run_all(host, name, combinations):
    """Failures of a program on one host."""
    failures = []
    for row, chosen in combinations:
        try:
            tested = run_program(host, name, row, chosen)
            print(f"{name}, {row}, {chosen}, on {host}: {tested} passed", flush=True)
        except Failure as failure:
            failures.append(str(failure))
            print(f"{name}, {row}, {chosen}, on {host}: FAILED", flush=True)
    return failures


def program(name, place):
    def body(context):
        try:
            pair = virtual_pair.hosts()
        except virtual_pair.NoHosts as reason:
            raise Skip(str(reason)) from None
        if context.full:
            chosen = list(itertools.product(ROWS, FILTERS))
        else:
            # Two rows for each program, such that two programs in a row meet all four.
            chosen = [(ROWS[(2 * place + number) % len(ROWS)], context.random.choice(FILTERS)) for number in range(2)]
        with ThreadPoolExecutor(len(pair)) as pool:
            found = pool.map(run_all, pair, itertools.repeat(name), (chosen[0::2], chosen[1::2]))
            failures = [failure for some in found for failure in some]
        expect(not failures, "\n".join(failures))
    return body


NAMES = [path.stem for path in sorted((ROOT / "tests" / "conformance").glob("*.c")) if path.stem not in STREAMS_ONLY]
run_cases(__doc__, {name: program(name, place) for place, name in enumerate(NAMES)})
