"""What the link between two hosts can do at most, by the tools of the trade: iperf3, and perftest's ib_send_bw and
ib_write_bw. One that is missing is left out, and named."""

import contextlib
import json
import re

import rdma_goals
from hosts import Failure, expect

SECONDS, TCP_SECONDS, BULK = 120, 2, 65536
STREAMS = (1, 2, 4, 8)
GAIN = 1.05  # of more streams, or those before were enough
RDMA_BYTES, RDMA_SECONDS = 32 << 20, 1  # of a first look, and how long the measurement takes by what that shows
# Only sends can sleep on completions (-e): a program that spins takes the CPU that a software device needs.
RDMA_TOOLS = {"ib_send_bw -e": ["ib_send_bw", "-R", "-e", "-F"], "ib_write_bw": ["ib_write_bw", "-R", "-F"]}
LISTENS = {"iperf3": "ss -ltn 2>/dev/null | grep -q ':5201 '",
           "perftest": "rdma resource show cm_id 2>/dev/null | grep -q 'state LISTEN'"}


def lacks(ends, tool):
    return [str(end) for end in ends if end.host.run(f"command -v {tool}", check=False).returncode]


def await_listener(end, kind):
    """Most of these say nothing when they are ready. Without the tool to see it by, a second does."""
    end.host.run(f"for i in {{1..100}}; do {LISTENS[kind]} && break; sleep 0.05; done; sleep 0.3", seconds=30)


def tcp(source, destination, streams):
    """Bytes per second of iperf3, received."""
    server = destination.host.start(["iperf3", "-s", "-1", "-B", destination.address])
    try:
        await_listener(destination, "iperf3")
        done = source.host.run(["iperf3", "-c", destination.address, "-J", "-t", TCP_SECONDS, "-P", streams],
                               seconds=SECONDS, check=False)
        try:
            said = json.loads(done.stdout)
            expect("error" not in said, f"iperf3 on {source} says: {said.get('error')}")
            return said["end"]["sum_received"]["bits_per_second"] / 8
        except (ValueError, KeyError, TypeError):
            raise Failure(f"expected iperf3 on {source} to print its rate as JSON; it said: {done.stdout[-300:]}"
                          f"{done.stderr[-300:]}") from None
    finally:
        server.end()


def best_tcp(source, destination, asked):
    """(bytes per second, note) of as many streams as it takes, those that are asked for among them: one alone does not
    fill a fast link."""
    found, before, enough = {}, 0, False
    for count in sorted({*STREAMS, *asked}):
        if enough and count not in asked:
            continue
        found[count] = tcp(source, destination, count)
        enough = found[count] < GAIN * before
        before = max(before, found[count])
    best = max(found, key=found.get)
    return found[best], f"{best} stream{'s' if best > 1 else ''}, the best of {', '.join(map(str, found))}"


def perftest(source, destination, words, around=contextlib.nullcontext):
    """What a program of perftest says at the source, with the same at the destination; `around` makes, of that
    server, the context of the measurement itself."""
    server = destination.host.start(words)
    try:
        await_listener(destination, "perftest")
        with around(server):
            done = source.host.run([*words, destination.address], seconds=SECONDS, check=False)
            expect(done.returncode == 0, f"expected {words[0]} on {source} to exit with 0; it exited with "
                                         f"{done.returncode} and said:\n{(done.stdout + done.stderr).strip()[-2000:]}")
        return done.stdout
    finally:
        server.end()


def rdma_once(source, destination, words, count):
    said = perftest(source, destination, [*words, "-s", BULK, "-n", count])
    return rdma_goals.read_bandwidth(said, BULK)


def rdma(source, destination, words):
    """(bytes per second, note): of a card what 32 MiB show is over in milliseconds."""
    count = RDMA_BYTES // BULK
    rate = rdma_once(source, destination, words, count)
    enough = int(rate * RDMA_SECONDS / BULK)
    if enough > 2 * count:
        count, rate = enough, rdma_once(source, destination, words, enough)
    return rate, f"{count} messages of {BULK >> 10} KiB"


def tries(measure, left=3, say=lambda failure: None):
    """perftest ends without a figure now and then."""
    while True:
        try:
            return measure()
        except Failure as failure:
            left -= 1
            if not left:
                raise
            say(failure)


def lanes_of(contenders):
    """All numbers of lanes that are compared."""
    return {int(option.partition("=")[2]) for options in contenders for option in options
            if re.fullmatch(r"--lanes=[0-9]+", option)}


def measure(source, destination, with_rdma, streams, warn):
    """The limits from source to destination: [{tool, direction, bytes_per_s, note}]. `warn` hears what is missing."""
    tools = {"iperf3": lambda: best_tcp(source, destination, streams)}
    for name, words in RDMA_TOOLS.items() if with_rdma else ():
        tools[name] = lambda words=words: tries(lambda: rdma(source, destination, words))
    found = []
    for name, look in tools.items():
        missing = lacks((source, destination), name.split()[0])
        if missing:
            warn(f"{name.split()[0]} is not installed on {' and '.join(sorted(set(missing)))}: what the link can do "
                 f"is not known by it")
            continue
        try:
            rate, note = look()
            found.append({"tool": name, "direction": f"{source}->{destination}", "bytes_per_s": rate, "note": note})
        except Failure as failure:
            warn(f"{name} gave no figure: {' '.join(str(failure).split())[:300]}")
    return found
