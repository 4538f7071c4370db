"""What is made of repeated measurements: medians, quartiles, intervals, ratios, tables and bars as text, and what may
be concluded. Nothing here talks to a host."""

import functools
import math
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


# --- intervals of a median, and of how two of them differ

CONFIDENCE = 0.95  # of a median's interval
RATIO_CONFIDENCE = 0.98  # of a ratio's: a report holds many of them, and few may mislead
RANGE_BELOW = 6  # values; of fewer, resampling says less than their range does
DISTURBED = 0.1  # of the machine that virtual hosts run on, taken by others: times are not the hosts' own any more
FAR = 5  # robust standard deviations from the median: an outlier


def t_quantile(share, freedom):
    """Of Student's distribution, by its expansion around the normal one; good to 0.2 % from 5 degrees of freedom on."""
    z = statistics.NormalDist().inv_cdf(share)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


@functools.cache
def expanded_tail(count, confidence):
    """The share to cut off at either end of a bootstrap distribution of so few values, which is too narrow as it is:
    where the t interval ends (Hesterberg, arXiv 1411.5279: the expanded percentile interval)."""
    end = t_quantile((1 + confidence) / 2, count - 1) * math.sqrt(count / (count - 1))
    return statistics.NormalDist().cdf(-end)


@functools.cache
def resampled_median(count):
    """The bootstrap distribution of the median of `count` values: [(probability, i, j)], the median being halfway
    between the i-th and the j-th smallest. What endless resampling would come to, so no seed matters."""
    half = (count + 1) // 2

    def at_most(i):
        share = i / count
        return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(half, count + 1))

    found = []
    for i in range(count):
        alone = at_most(i + 1) - at_most(i)
        for j in range(i + 1, count if count % 2 == 0 else 0):
            lower, upper = (i + 1) ** half - i**half, (count - j) ** half - (count - j - 1) ** half
            both = math.comb(count, half) * lower * upper / count**count
            alone -= both
            found.append((both, i, j))
        found.append((alone, i, i))
    return found


def bootstrap_ends(values, confidence):
    ordered, tail = sorted(values), expanded_tail(len(values), confidence)
    medians = sorted(((ordered[i] + ordered[j]) / 2, share) for share, i, j in resampled_median(len(values)))

    def cut(pairs):
        left = tail
        for value, share in pairs:
            left -= share
            if left < 0:
                return value
        return pairs[-1][0]

    return cut(medians), cut(medians[::-1])


def median_interval(values, confidence=CONFIDENCE):
    """The median and where it lies with `confidence`; None when nothing is known. Of fewer than 6 values the interval
    is their range, whose own confidence is told: it holds the median unless all lie on one side of it."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) < RANGE_BELOW:
        ends, method, confidence = (min(known), max(known)), "range", 1 - 2.0 ** (1 - len(known))
    else:
        ends, method = bootstrap_ends(known, confidence), "bootstrap"
    return {"median": statistics.median(known), "low": ends[0], "high": ends[1], "confidence": confidence,
            "method": method, "count": len(known)}


def precise(interval, share=0.10):
    """Whether the median is known to within `share` of it, either way. Fewer than 5 values never tell."""
    if interval is None or interval["count"] < RANGE_BELOW - 1:
        return False
    room = share * interval["median"]
    return interval["median"] - interval["low"] <= room and interval["high"] - interval["median"] <= room


def outliers(values):
    """For each value whether it lies far from the others, measured by their median distance from the median."""
    known = [value for value in values if value is not None]
    if len(known) < 5:
        return [False] * len(values)
    middle = statistics.median(known)
    scale = 1.4826 * statistics.median(abs(value - middle) for value in known)
    return [value is not None and scale > 0 and abs(value - middle) > FAR * scale for value in values]


@functools.cache
def rank_sums(ours, theirs):
    """How many orders of so many values each have u pairs in which ours is the larger: a tuple over u."""
    if ours == 0 or theirs == 0:
        return (1,)
    largest_ours, largest_theirs = rank_sums(ours - 1, theirs), rank_sums(ours, theirs - 1)
    return tuple((largest_ours[u - theirs] if 0 <= u - theirs < len(largest_ours) else 0) +
                 (largest_theirs[u] if u < len(largest_theirs) else 0) for u in range(ours * theirs + 1))


def together(left, right):
    """The counts of sums of two independent counts."""
    both = [0] * (len(left) + len(right) - 1)
    for i, many in enumerate(left):
        for j, more in enumerate(right):
            both[i + j] += many * more
    return both


def compare_medians(ours, theirs, confidence=RATIO_CONFIDENCE):
    """How ours compares with theirs, both [(boot, value)]: the median ratio of all pairs of one boot (Hodges and
    Lehmann) and its interval from the exact distribution of the rank sum (Wilcoxon), which assumes no shape of the
    noise and that outliers cannot stretch. None without a pair. `shown`: the interval leaves out 1; `enough`: there
    are runs enough for such an interval at all."""
    ratios, orders = [], [1]
    for boot in sorted({boot for boot, _ in ours} & {boot for boot, _ in theirs}, key=str):
        here, there = ([value for other, value in side if other == boot and value is not None and value > 0]
                       for side in (ours, theirs))
        ratios += [our / their for our in here for their in there]
        orders = together(orders, rank_sums(len(here), len(there)))
    if not ratios:
        return None
    ratios.sort()
    below, passed = 0, 0
    while (passed + orders[below]) * 2 <= (1 - confidence) * sum(orders):
        passed += orders[below]
        below += 1
    place = max(below, 1)
    low, high = ratios[place - 1], ratios[-place]
    missed = 2 * (passed if below else orders[0]) / sum(orders)
    return {"ratio": statistics.median(ratios), "low": low, "high": high, "confidence": max(0.0, 1 - missed),
            "pairs": len(ratios), "enough": below > 0, "shown": below > 0 and not low <= 1 <= high}


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
# What a scenario can have drawn besides: more than one move's report is needed to tell.
LIMITS = ("iperf3", "ib_send_bw -e", "ib_write_bw")
MORE_TITLES = {
    **{f"share_{limit}": f"goodput, share of {limit}" for limit in LIMITS},
    "work_during": "guest's speed during the move, share of before",
    "work_after": "guest's speed after the move, share of before",
    "both_own_cpu": "CPU wander's own, s/GiB",
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


def ratio_of(ours, theirs):
    """compare_medians of one boot's values, with the keys that spread() takes."""
    found = compare_medians(*([("", value) for value in side] for side in (ours, theirs)))
    return found and {"median": found["ratio"], "interval": [found["low"], found["high"]], **found}


def compare(figures):
    """{figure: {transport: summary, "ratio": what compare_medians finds}} of {transport: [figures of each move]}; the
    ratio, of the second over the first, with two transports only."""
    names = list(figures)
    result = {}
    for key in TITLES:
        values = {name: [entry[key] for entry in figures[name]] for name in names}
        result[key] = {name: summary(values[name]) for name in names}
        if len(names) == 2:
            result[key]["ratio"] = ratio_of(values[names[1]], values[names[0]])
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
    """A sentence about one figure, as far as the interval of the ratio carries it, as in a comparison's report."""
    what, more, less = LESS[key]
    low, high = ratio["interval"]
    counted = f"{plain(ratio['median'])} times, 98 % interval {plain(low)} to {plain(high)}, {pairs} moves each"
    if not ratio["shown"]:
        return f"{what}: no difference between {names[1]} and {names[0]} is shown here ({counted})."
    return f"{what}: {more if low > 1 else less} over {names[1]} than over {names[0]} ({counted})."


def verdicts(compared, names, pairs):
    if len(names) < 2:
        return [f"Only {names[0]} was measured: nothing is compared."]
    if pairs < LEAST_PAIRS:
        return [f"{pairs} move{'s' if pairs > 1 else ''} each are too few to tell a difference from chance: use "
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
