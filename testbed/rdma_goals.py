"""What testbed/bench-rdma makes of its measurements: goals, ratios, where time and CPU go, and what the counts mean.
Nothing here talks to a host."""

import re
import statistics

import comparison
from comparison import CPU_KINDS, GIB, MIB, paired_ratio, plain, spread, summary
from hosts import Failure, expect

# What it is, the goal, and whether that must be reached or kept to.
GOALS = {
    "bulk": ("bulk goodput without set-up / ib_send_bw -s 65536", 0.95, "at least"),
    "bulk_setup": ("bulk goodput with set-up / ib_send_bw -s 65536", 0.88, "at least"),
    "scattered": ("single scattered 4 KiB pages / ib_send_bw -s 4096", 0.90, "at least"),
    "chunk": ("total time with registration chunk / all", 1.15, "at most"),
    "downtime": ("downtime of the idle guest, ms", 40, "at most"),
}
MOVES = ("write", "chunk", "read", "tcp")
REGISTERED = {
    "all": "Touched memory, merged within 64 MiB, and the messages of each lane.",
    "chunk": "A chunk at a time, below the pin limit, and the messages of each lane.",
}
DOWNTIME_PARTS = ("pause", "final_copy", "state_save", "state_transfer", "state_load", "resume")


def read_bandwidth(said, size):
    """Bytes per second. The unit of the average differs between versions (MiB that may be called MB), so it is taken
    from the message rate, which has few digits but no doubt."""
    found = re.search(rf"(?m)^\s*{size}\s+\d+\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s*$", said)
    if not found:
        raise Failure(f"expected a line of figures from ib_send_bw; it said:\n{said[-1500:]}")
    average, by_messages = float(found.group(2)), float(found.group(3)) * 1e6 * size
    if not by_messages:
        raise Failure(f"ib_send_bw took no figure: its message rate is 0; it said:\n{said[-1500:]}")
    unit = min((1e6, float(MIB)), key=lambda unit: abs(average * unit - by_messages))
    expect(abs(average * unit / by_messages - 1) < 0.02, f"expected ib_send_bw's average ({average}) and message rate "
                                                         f"({found.group(3)} millions of {size} bytes) to agree")
    return average * unit


def path_mtu(said):
    found = re.search(r"(?m)^\s*Mtu\s*:\s*(\d+)", said)
    return int(found.group(1)) if found else None


def bulk_figures(move):
    report = move["report"]
    first = report["rounds"][0]
    move["bytes_per_s"] = first["bytes"] / first["ms"] * 1e3
    move["setup_bytes_per_s"] = first["bytes"] / (report["setup_ms"] + first["ms"]) * 1e3
    return move


def speed(result):
    return result["bytes_per_s"]


def judge(results):
    """{goal: summary and whether it is met}; goals whose measurements were left out are not there."""
    def ratio(ours, theirs, ours_look=speed, theirs_look=speed):
        if ours not in results or theirs not in results:
            return None
        return paired_ratio(map(ours_look, results[ours]), map(theirs_look, results[theirs]))

    def total(move):
        return move["report"]["total_ms"]

    downtimes = [move["report"]["downtime_ms"] for move in results.get("write", [])]
    found = {
        "bulk": ratio("write", "send64k"),
        "bulk_setup": ratio("write", "send64k", lambda move: move["setup_bytes_per_s"]),
        "scattered": ratio("scattered", "send4k"),
        "chunk": ratio("chunk", "write", total, total),
        "downtime": summary(downtimes),
    }
    judged = {}
    for name, figure in found.items():
        if figure:
            _, goal, way = GOALS[name]
            met = figure["median"] >= goal if way == "at least" else figure["median"] <= goal
            judged[name] = {**figure, "goal": goal, "way": way, "met": met}
    return judged


def show_goals(judged):
    rows = [["", "median (quartiles)", "goal", ""]]
    for name, figure in judged.items():
        rows.append([GOALS[name][0], spread(figure), f"{figure['way']} {figure['goal']:g}",
                     "ok" if figure["met"] else "SHORT"])
    print("\n".join(comparison.columns(rows)))


def cpu_per_gib(result, kinds=CPU_KINDS, sides=("source", "destination")):
    gib = (result["bytes"] if "bytes" in result else result["report"]["guest_bytes"]) / GIB
    return sum(result["host_cpu"][side][kind] for side in sides for kind in kinds) / gib


def show_speeds(results):
    """Goodput, and what it cost both hosts; split as the kernels account it."""
    rows = [["", "MiB/s", "with set-up", "CPU of both hosts, s/GiB", *CPU_KINDS]]
    for name, entries in results.items():
        setup = [entry["setup_bytes_per_s"] / MIB for entry in entries if "setup_bytes_per_s" in entry]
        cpu = [statistics.median(cpu_per_gib(entry, [kind]) for entry in entries) for kind in CPU_KINDS]
        rows.append([name, spread(summary([speed(entry) / MIB for entry in entries])),
                     spread(summary(setup)) if setup else "",
                     spread(summary([cpu_per_gib(entry) for entry in entries])), *map(plain, cpu)])
    print("\n".join(comparison.columns(rows)))


def show_machine(results):
    """Virtual hosts: CPU that their machine gave each, whatever else it did. The host that needs more sets the pace."""
    rows = [["machine's CPU, s/GiB", "source", "destination", "at that pace, MiB/s"]]
    for name, entries in results.items():
        if all("machine" in side for entry in entries for side in entry["host_cpu"].values()):
            cpu = [statistics.median(cpu_per_gib(entry, ["machine"], [side]) for entry in entries)
                   for side in ("source", "destination")]
            rows.append([name, *map(plain, cpu), plain(GIB / MIB / max(cpu)) if max(cpu) else "-"])
    if len(rows) > 1:
        print("\n".join(comparison.columns(rows)))


def middle(reports, look):
    figure = summary([look(report) for report in reports])
    return plain(figure["median"]) if figure else "-"


def show_parts(results):
    """Where the downtime and the set-up go."""
    moves = {name: [entry["report"] for entry in entries] for name, entries in results.items() if name in MOVES}
    if not moves:
        return
    rows = [["medians, ms", *moves]]
    for title, key in (("total time", "total_ms"), ("set-up", "setup_ms"), ("downtime", "downtime_ms")):
        rows.append([title, *(middle(reports, lambda report: report[key]) for reports in moves.values())])
    for part in DOWNTIME_PARTS:
        rows.append([f"  {part.replace('_', ' ')}",
                     *(middle(reports, lambda report: report["downtime"][part]) for reports in moves.values())])
    rows.append(["guest's own gap", *(middle(reports, lambda report: report["guest_gap_ms"])
                                      for reports in moves.values())])
    print("\n".join(comparison.columns(rows)))


def size(count):
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:g} {name}" if count % unit == 0 else f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def explain(device):
    """A line for each count of a bulk round, from the limits of the device and of the transport."""
    queue = device["max_work_requests"]
    return [
        f"work requests: {size(device['bytes_per_work_request'])} each on average. The device would take "
        f"{size(device['max_message_bytes'])} in one; a chunk, {size(MIB)}, is what a lane is given at a time.",
        f"signalled: {device['signalled_share']:.0%} of {device['work_requests']} work requests. A queue of {queue} "
        f"needs a completion every {queue // 4} of them, so that it never fills up, and every few MiB, so that memory "
        f"is given back in time; so does the last one before a lane rests.",
        f"registrations: {device['registrations']}, {device['registrations_per_gib']:.1f} per GiB, "
        f"{size(device['registered_bytes'])} in {device['register_ms']:.0f} ms, at most "
        f"{size(device['pinned_peak_bytes'])} pinned. " + REGISTERED[device["registration"]],
    ]


def counts_of(report):
    """(side, counts) of the end that moves the pages: with READ, the destination's."""
    device = report["rdma"]
    if device["data_work_requests"] or not device["destination"]:
        return "source", device
    return "destination", device["destination"]


def show_counts(results):
    for name in MOVES:
        reports = [entry["report"] for entry in results.get(name, []) if entry["report"]["rdma"]]
        if not reports:
            continue
        side, device = counts_of(reports[-1])
        if not device["data_work_requests"]:
            continue
        print(f"{name}, counts at the {side} in the last repeat:")
        grown = {key: value["after"] - value["before"] for key, value in device["counters"].items()
                 if value["after"] != value["before"]}
        moved = ", ".join(f"{key} {value}" for key, value in grown.items()) or "none moved"
        print("\n".join(f"  {line}" for line in [*explain(device), f"the port's error counters: {moved}"]))


def show(judged, results):
    show_goals(judged)
    for part in (show_speeds, show_machine, show_parts, show_counts):
        print()
        part(results)
