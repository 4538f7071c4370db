"""What is made of repeated measurements: medians, quartiles, paired ratios, tables and bars as text, and what may be
concluded. Nothing here talks to a host."""

import random
import statistics

MIB, GIB = 1 << 20, 1 << 30
RESAMPLES = 10000
CPU_KINDS = ("user", "system", "interrupts")
BAR = 40


def quantile(values, share):
    """Linear between the neighbours; share 0..1."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(values):
    """Median, quartiles and extremes; None when nothing is known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": statistics.median(known), "quartiles": [quantile(known, 0.25), quantile(known, 0.75)],
            "range": [min(known), max(known)], "values": list(values)}


def paired_ratio(ours, theirs, seed=1):
    """Median of ours[i] / theirs[i], measured one after the other, and the 95 % bootstrap interval of that median;
    None when no pair is known or what it is divided by is 0."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True) if our is not None and their]
    if not ratios:
        return None
    chance = random.Random(seed)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return {"median": statistics.median(ratios),
            "interval": [medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]],
            "quartiles": [quantile(ratios, 0.25), quantile(ratios, 0.75)], "values": ratios}


def cpu_total(split):
    return sum(split[kind] for kind in CPU_KINDS)


def figures_of(move):
    """The figures of one move, by name; None where nobody knows. CPU: seconds per GiB of guest memory sent."""
    report, host = move["report"], move["host_cpu"]
    gib = report["guest_bytes"] / GIB

    def per_gib(seconds):
        return seconds / gib if seconds is not None and gib else None

    return {
        "total_s": report["total_ms"] / 1e3,
        "setup_ms": report["setup_ms"],
        "downtime_ms": report["downtime_ms"],
        "guest_gap_ms": report["guest_gap_ms"],
        "rounds": len(report["rounds"]),
        "guest_mib": report["guest_bytes"] / MIB,
        "wire_mib": report["wire_bytes"] / MIB,
        "goodput_mib_s": (report["goodput_bytes_per_s"] or 0) / MIB or None,
        "source_process_cpu": per_gib(report["source_cpu_s"]),
        "destination_process_cpu": per_gib(report["destination_cpu_s"]),
        "source_host_cpu": per_gib(cpu_total(host["source"])),
        "destination_host_cpu": per_gib(cpu_total(host["destination"])),
        "both_hosts_cpu": per_gib(cpu_total(host["source"]) + cpu_total(host["destination"])),
    }


TITLES = {
    "total_s": "total time, s",
    "setup_ms": "set-up, ms",
    "downtime_ms": "downtime, ms",
    "guest_gap_ms": "guest's own gap, ms",
    "rounds": "rounds",
    "guest_mib": "guest bytes, MiB",
    "wire_mib": "wire bytes, MiB",
    "goodput_mib_s": "goodput, MiB/s",
    "source_process_cpu": "CPU source process, s/GiB",
    "destination_process_cpu": "CPU destination process, s/GiB",
    "source_host_cpu": "CPU source host, s/GiB",
    "destination_host_cpu": "CPU destination host, s/GiB",
    "both_hosts_cpu": "CPU both hosts, s/GiB",
}
DRAWN = ("total_s", "downtime_ms", "goodput_mib_s", "both_hosts_cpu")


def plain(value):
    """Three digits that matter, and no more."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}"


def spread(figure, key="quartiles"):
    if figure is None:
        return "not known"
    low, high = figure[key]
    return f"{plain(figure['median'])} ({plain(low)} .. {plain(high)})"


def columns(rows, indent=0):
    """Lines of text with their cells in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append((" " * indent + "  ".join([first.ljust(widths[0]), *cells])).rstrip())
    return lines


def compare(figures):
    """{figure: {transport: summary, "ratio": paired ratio}} of {transport: [figures of each move]}; the ratio, of the
    second over the first, with two transports only."""
    names = list(figures)
    result = {}
    for key in TITLES:
        values = {name: [entry[key] for entry in figures[name]] for name in names}
        result[key] = {name: summary(values[name]) for name in names}
        if len(names) == 2:
            result[key]["ratio"] = paired_ratio(values[names[1]], values[names[0]])
    return result


def table(compared, names):
    rows = [["", *names] + ([f"{names[1]} / {names[0]}"] if len(names) == 2 else [])]
    for key, title in TITLES.items():
        row = [title, *(spread(compared[key][name]) for name in names)]
        if len(names) == 2:
            row.append(spread(compared[key]["ratio"], "interval"))
        rows.append(row)
    return columns(rows)


def bars(compared, names):
    """For each figure that is worth it, one bar a transport: # up to the median, - up to the upper quartile."""
    lines = []
    width = max(map(len, names))
    for key in DRAWN:
        known = [compared[key][name] for name in names if compared[key][name]]
        top = max((figure["quartiles"][1] for figure in known), default=0)
        if not top:
            continue
        lines.append(TITLES[key])
        for name in names:
            figure = compared[key][name]
            filled = round(figure["median"] / top * BAR) if figure else 0
            reached = round(figure["quartiles"][1] / top * BAR) if figure else 0
            lines.append(f"  {name.ljust(width)}  {'#' * filled}{'-' * (reached - filled)} "
                         f"{plain(figure['median']) if figure else 'not known'}")
    return lines


def describe_end(facts):
    """One end in a line or two."""
    link = f"{facts['interface']} {facts['address']}" if facts.get("interface") else facts["address"]
    speed = f", {facts['link_mbit_per_s']} Mbit/s" if facts.get("link_mbit_per_s") else ""
    mtu = f", MTU {facts['mtu_bytes']}" if facts.get("mtu_bytes") else ""
    lines = [f"{facts['host']}: {facts.get('kernel') or 'kernel not known'}, {facts.get('cpu') or 'CPU not known'} x "
             f"{facts['cpus']}{', a virtual machine' if facts['virtual'] else ''}; link {link}{speed}{mtu}"]
    device = facts.get("rdma")
    if device:
        lines.append(f"  RDMA device {device['device']} port {device['port']}, {device['kind'] or 'of unknown kind'}: "
                     f"{device['link_layer']}, {device['gid_type']}, path MTU {device['mtu']}")
    return lines


LEAST_PAIRS = 5
LESS = {"total_s": ("total time", "longer", "shorter"), "downtime_ms": ("downtime", "longer", "shorter"),
        "both_hosts_cpu": ("CPU time of both hosts per GiB", "more", "less")}


def verdict(key, ratio, names, pairs):
    """A sentence about one figure, as far as the interval of the paired ratio carries it."""
    what, more, less = LESS[key]
    low, high = ratio["interval"]
    counted = f"{plain(ratio['median'])} times, 95 % interval {plain(low)} to {plain(high)}, {pairs} pairs"
    if low <= 1 <= high:
        return f"{what}: no difference between {names[1]} and {names[0]} is shown here ({counted})."
    return f"{what}: {more if low > 1 else less} over {names[1]} than over {names[0]} ({counted})."


def verdicts(compared, names, pairs):
    if len(names) < 2:
        return [f"Only {names[0]} was measured: nothing is compared."]
    if pairs < LEAST_PAIRS:
        return [f"{pairs} pair{'s are' if pairs > 1 else ' is'} too few to tell a difference from chance: use "
                f"--repeats {LEAST_PAIRS} or more."]
    return [verdict(key, compared[key]["ratio"], names, pairs) for key in LESS if compared[key]["ratio"]]


def reservations(ends):
    kinds = [facts["rdma"]["kind"] for facts in ends if facts.get("rdma")]
    if any(kind in ("soft-RoCE", "software") for kind in kinds):
        yield ("The RDMA device is software: the kernel does with this CPU what a card would do by itself. That proves "
               "that the transport works, and how efficient it is in counts (work requests, registrations, bytes). The "
               "times compare two pieces of software: what a card would cost or gain they do not show, and never that "
               "RDMA is faster than TCP.")
    elif not all(kinds):
        yield "What kind of RDMA device this is could not be found out: do not take the figures for those of a card."
    elif kinds:
        yield "The figures hold for these two hosts, their cards, this link, this guest and these settings."
    if any(facts["virtual"] for facts in ends):
        yield ("The hosts are virtual machines: times depend on what else their machine did, and differ from boot to "
               "boot. Compare within this run only.")


def conclude(compared, names, ends, pairs):
    """What may be concluded, in sentences, and above all what may not, which comes first."""
    return [*reservations(ends), *verdicts(compared, names, pairs)]
