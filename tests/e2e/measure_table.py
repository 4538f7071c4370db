#!/usr/bin/python3
"""What testbed/measure and testbed/bench-rdma make of figures: medians and ratios against known values, turns that
favour nobody, goals met and missed, and conclusions that claim no more than was shown."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

from cases import run_cases
from hosts import ROOT, Failure, expect

import comparison
import rdma_goals

MIB = 1 << 20
SEND_BW = """ Mtu             : 4096[B]
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 65536      4096             45.65              {average}  		   {rate}
"""


def same(what, got, wanted, within=1e-9):
    near = abs(got - wanted) <= within if isinstance(wanted, float) else got == wanted
    expect(near, f"expected {what} to be {wanted!r}; got {got!r}")


def program(name):
    """A program of the testbed, as a module."""
    path = str(ROOT / "testbed" / name)
    spec = spec_from_loader(name, SourceFileLoader(name, path))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def statistics(context):
    figure = comparison.summary([4.0, 1.0, None, 3.0, 2.0])
    same("the median", figure["median"], 2.5)
    same("the quartiles", figure["quartiles"], [1.75, 3.25])
    same("the range", figure["range"], [1.0, 4.0])
    same("a summary of nothing", comparison.summary([None, None]), None)
    # The ratio of pairs, not the ratio of medians: a slow spell hits both of a pair.
    ratio = comparison.paired_ratio([2.0, 20.0, 6.0], [1.0, 10.0, 3.0])
    same("the paired ratio", ratio["median"], 2.0)
    same("its interval", ratio["interval"], [2.0, 2.0])
    wide = comparison.paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [2.0] * 5)
    expect(wide["interval"][0] < 1.5 < wide["interval"][1], f"expected an interval around 1.5; got {wide['interval']}")
    same("a ratio without pairs", comparison.paired_ratio([None], [1.0]), None)


def turns(context):
    measure = program("measure")
    order = list(measure.plan(4, ["tcp", "rdma"]))
    first = [name for _, name, _ in order[::2]]
    same("how often each is first", (first.count("tcp"), first.count("rdma")), (2, 2))
    ways = {(name, forwards) for _, name, forwards in order[::2]}
    same("who is first in which direction", len(ways), 4)
    for tcp, rdma in zip(order[::2], order[1::2], strict=True):
        same("the direction within a pair", tcp[2], rdma[2])
        expect(tcp[1] != rdma[1], f"expected both transports in each pair; got {tcp} and {rdma}")


def report(total_ms, downtime_ms=10.0, device=True, **more):
    """As much of a report as is looked at."""
    counts = {"device": "rxe0", "max_message_bytes": 1 << 31, "max_work_requests": 512, "data_work_requests": 4,
              "bytes_per_work_request": MIB, "work_requests": 8, "signalled_share": 0.5, "registrations": 3,
              "registrations_per_gib": 12.0, "registered_bytes": 4 * MIB, "register_ms": 1.0, "registration": "all",
              "pinned_peak_bytes": 4 * MIB, "counters": {"rcvd_rnr_err": {"before": 1, "after": 3}}}
    parts = dict.fromkeys(rdma_goals.DOWNTIME_PARTS, 1.0)
    return {"total_ms": total_ms, "setup_ms": 100.0, "downtime_ms": downtime_ms, "downtime": parts,
            "guest_gap_ms": None, "rounds": [{"bytes": 4 * MIB, "ms": total_ms - 100}],
            "guest_bytes": 1 << 28, "wire_bytes": 1 << 28,
            "goodput_bytes_per_s": None, "source_cpu_s": 0.5, "destination_cpu_s": None,
            "rdma": {**counts, "destination": None} if device else None, **more}


def move(total_ms, **more):
    host = {"source": {"user": 1.0, "system": 2.0, "interrupts": 3.0},
            "destination": {"user": 0.5, "system": 0.25, "interrupts": 0.25}}
    return {"report": report(total_ms, **more), "host_cpu": host}


def tables(context):
    figures = comparison.figures_of(move(2500.0))
    same("the total time", figures["total_s"], 2.5)
    same("CPU of the source's process per GiB", figures["source_process_cpu"], 2.0)
    same("CPU of the destination's process, which nobody knows", figures["destination_process_cpu"], None)
    same("CPU of both hosts per GiB", figures["both_hosts_cpu"], 28.0)
    same("a goodput that nobody knows", figures["goodput_mib_s"], None)
    moves = {"tcp": [comparison.figures_of(move(ms)) for ms in (1000.0, 2000.0, 3000.0)],
             "rdma": [comparison.figures_of(move(ms)) for ms in (2000.0, 4000.0, 6000.0)]}
    compared = comparison.compare(moves)
    lines = comparison.table(compared, ["tcp", "rdma"])
    expect("2.00 (0.67 .. 6.00)" in lines[1] and "2.00 (1.50 .. 2.50)" in lines[1], f"expected the median of tcp, its "
           f"quartiles and the ratio in the line of the total time; got {lines[1]!r}")
    expect("not known" in next(line for line in lines if "gap" in line), "expected the guest's gap not to be known")
    same("the widths of all lines with three columns", len({len(line) for line in lines}), 1)
    bars = comparison.bars(compared, ["tcp", "rdma"])
    drawn = {name: next(line for line in bars if line.strip().startswith(name)).count("#") for name in ("tcp", "rdma")}
    same("the bar of what takes twice as long", drawn["rdma"], 2 * drawn["tcp"])


def facts(kind, virtual=False):
    return {"host": "h", "virtual": virtual, "rdma": {"kind": kind}}


def conclusions(context):
    faster = {"tcp": [comparison.figures_of(move(ms)) for ms in (2000.0, 2100.0, 2200.0, 2300.0, 2400.0)],
              "rdma": [comparison.figures_of(move(ms)) for ms in (1000.0, 1100.0, 1200.0, 1300.0, 1400.0)]}
    names, compared = ["tcp", "rdma"], comparison.compare(faster)

    def said(kind, pairs=5, **more):
        return " ".join(comparison.conclude(compared, names, [facts(kind, **more)] * 2, pairs))

    expect("shorter over rdma" in said("card mlx5_core"), f"expected a difference to be named; got: {said('card')}")
    expect("never" not in said("card mlx5_core"), "expected nothing about software of a card")
    expect("never that RDMA is faster than TCP" in said("soft-RoCE"), f"got: {said('soft-RoCE')}")
    expect("do not take" in said(None), f"expected doubt about an unknown device; got: {said(None)}")
    expect("boot" in said("card", virtual=True), "expected a word about virtual machines")
    few = said("card mlx5_core", pairs=3)
    expect("too few" in few and "shorter" not in few, f"expected no verdict of 3 pairs; got: {few}")
    compared = comparison.compare({"tcp": faster["tcp"], "rdma": faster["tcp"][::-1]})
    expect("no difference" in said("card mlx5_core"), f"expected no difference to be shown; got: {said('card')}")


def bandwidth(context):
    # The same bytes per second in MiB and in MB; the header says MB either way.
    for average, rate in (("37.62", "0.000602"), ("39.45", "0.000602")):
        found = rdma_goals.read_bandwidth(SEND_BW.format(average=average, rate=rate), 65536)
        same(f"bytes per second of {average}", found, 39.45e6, within=0.02e6)
    same("the path's MTU", rdma_goals.path_mtu(SEND_BW), 4096)
    for wrong in ("", SEND_BW.format(average="60.00", rate="0.000602")):
        try:
            rdma_goals.read_bandwidth(wrong, 65536)
        except Failure:
            continue
        raise Failure(f"expected figures that do not agree to be refused: {wrong!r}")


def results(write_ms, chunk_ms, downtime_ms):
    """Three repeats; ib_send_bw makes 4 MiB/s."""
    def bulk(total_ms):
        return rdma_goals.bulk_figures(move(total_ms, downtime_ms=downtime_ms))

    send = {"bytes_per_s": 4.0 * MIB, "bytes": 1 << 28, "host_cpu": move(1.0)["host_cpu"]}
    return {"send64k": [send] * 3, "write": [bulk(write_ms)] * 3, "chunk": [bulk(chunk_ms)] * 3}


def goals(context):
    # 4 MiB in 1 s after 0.1 s of set-up.
    judged = rdma_goals.judge(results(1100.0, 1200.0, 40.0))
    same("the goals that can be judged", sorted(judged), ["bulk", "bulk_setup", "chunk", "downtime"])
    same("bulk goodput", judged["bulk"]["median"], 1.0)
    same("bulk goodput with set-up", judged["bulk_setup"]["median"], 1 / 1.1)
    same("goals that are met", {name for name, figure in judged.items() if figure["met"]}, set(judged))
    judged = rdma_goals.judge(results(1300.0, 1600.0, 40.1))
    same("goals that are missed", {name for name, figure in judged.items() if not figure["met"]}, set(judged))
    rdma_goals.show(judged, results(1300.0, 1600.0, 40.1))
    explained = "\n".join(rdma_goals.explain(report(1000.0)["rdma"]))
    for part in ("1 MiB each", "2 GiB in one", "50% of 8", "every 128", "12.0 per GiB"):
        expect(part in explained, f"expected '{part}' in what explains the counts; got:\n{explained}")


run_cases(__doc__, {"statistics": statistics, "turns": turns, "tables": tables, "conclusions": conclusions,
                    "bandwidth": bandwidth, "goals": goals})
