"""Tables of a report. Every figure in them says what it is (data-figure, data-stat, data-key), so that a program can
check it against the raw data, and every row leads to its files."""

import itertools

from comparison import CPU_KINDS, LIMITS

from .charts import title_of
from .markup import el, join
from .moves import FIGURES, PARTS, ROLES, SIDES
from .study import address, difference
from .svg import shown, times

MAIN = ("total_s", "downtime_ms", "rounds", "guest_mib", "goodput_mib_s", "both_hosts_cpu", "both_own_cpu",
        "work_during")
GROUPS = (
    ("times", ("total_s", "setup_ms", "downtime_ms", "guest_gap_ms", *(f"downtime_{part}_ms" for part in PARTS))),
    ("bytes", ("rounds", "guest_mib", "wire_mib", "goodput_mib_s", *(f"share_{limit}" for limit in LIMITS))),
    ("CPU", ("both_hosts_cpu", "both_own_cpu")),
    ("CPU of whole hosts", tuple(f"{side}_{kind}_cpu" for side in SIDES
                                 for kind in ("host", *CPU_KINDS, "machine"))),
    ("CPU of wander", tuple(f"{side}_{role}_cpu" for side in SIDES for role in ("process", "own", *ROLES, "rest"))),
    ("guest", ("work_during", "work_after")),
    ("machine", ("machine_others",)),
)
COMPARED = ("total_s", "downtime_ms", "goodput_mib_s", "both_hosts_cpu", "both_own_cpu", "source_host_cpu",
            "destination_host_cpu", "work_during")


def table(head, rows, caption=None, words=()):
    """head: names of columns. rows: lists of cells, the first a row's name. Scrolls inside its box where it is wide."""
    heads = [el("th", name, scope="col", class_="words" if index in (0, *words) else None)
             for index, name in enumerate(head)]
    box = el("div", el("table", el("thead", el("tr", *heads)), el("tbody", *rows)), class_="box", tabindex="0",
             role="region", aria_label=caption or "table")
    return join([el("p", caption, class_="note above"), box]) if caption else box


def row(first, *cells, begins=False):
    return el("tr", el("th", first, scope="row"),
              *(cell if getattr(cell, "startswith", None) and cell.startswith("<td") else el("td", cell)
                for cell in cells),
              class_="first" if begins else None)


def heading(key):
    name, unit = title_of(key)
    unit = unit.replace("share of before", "of before")
    return f"{name}, {unit}" if unit else name


def median_cell(group, key, quartiles=False):
    stat = group.stat(key)
    if not stat:
        return el("td", "–")
    interval = stat.interval
    low, high = (shown(interval[end], key) for end in ("low", "high"))
    parts = [shown(stat.median, key), el("i", f"{low} – {high}") if low != high else None]
    if quartiles:
        low, high = (shown(end, key) for end in stat.quartiles())
        parts.append(el("i", f"quartiles {low} – {high}"))
    return el("td", *parts, data_figure=key, data_stat="median", data_key=group.key, data_value=repr(stat.median),
              data_low=repr(interval["low"]), data_high=repr(interval["high"]),
              title=f"of {interval['count']} runs; {interval['confidence']:.0%} interval: {interval['method']}")


def runs_cell(group):
    """A link to the file of each run; what happened to those that do not count."""
    stat = group.stat("total_s")
    odd = {move.path: "an outlier" for move, out in zip(stat.moves, stat.outliers) if out}
    links = []
    for move in group.moves:
        state = "warm-up" if move.warm_up else "did not converge" if move.converged() is False else \
            "failed" if not move.counts else \
            odd.get(move.path) or ("disturbed by others on the machine" if move.disturbed() else None)
        links.append(el("a", f"{move.name}{'*' if state and state != 'warm-up' else ''}", href=address(move),
                        title=state))
    return el("td", *links, class_="runs") if links else el("td", "none")


def count_cell(group):
    unlike = [f"{len(found)} {what}" for found, what in ((group.failed(), "failed"), (group.given_up(), "given up"))
              if found]
    forced = len(group.unconverged()) - len(group.given_up())
    unlike += [f"{forced} forced"] if forced else []
    return el("td", str(len(group.counted)), el("i", ", ".join(unlike)) if unlike else None, data_figure="runs",
              data_stat="count", data_key=group.key, data_value=str(len(group.counted)))


def known(study, scenario, keys):
    """Those of the figures that somebody knows."""
    return [key for key in keys if any(group.stat(key) for group in study.of(scenario))]


def main_table(study, scenario):
    rows, keys = [], known(study, scenario, MAIN)
    for point in scenario["points"]:
        for index, contender in enumerate(scenario["contenders"]):
            group = study.group(scenario, point, contender)
            rows.append(row(f"{point['label']}, {contender['name']}", count_cell(group),
                            *(median_cell(group, key) for key in keys), runs_cell(group), begins=index == 0))
    return table(["", "runs", *map(heading, keys), "files"], rows,
                 "Medians, and below them the interval in which the median lies. * an outlier, forced, given up, "
                 "failed, or disturbed by other programs on the machine.")


VERDICTS = {(False, False): "no difference shown", (True, False): "differs",
            (True, True): "differs*"}
OVERLAP = "differs*: the two medians' own intervals overlap all the same."


def ratio_cell(result, pair, key):
    """pair: (what it is compared with, the group itself)."""
    if result is None or not result["enough"]:
        return el("td", "–", title="too few runs in one boot, or some were given up")
    return el("td", times(result["ratio"]), el("i", f"{times(result['low'])} – {times(result['high'])}"),
              el("i", VERDICTS[result["shown"], result["shown"] and result["overlap"]]),
              class_="shown" if result["shown"] else None, data_figure=key, data_stat="ratio", data_key=pair[1].key,
              data_against=pair[0].contender["name"], data_value=repr(result["ratio"]),
              data_shown="yes" if result["shown"] else "no", data_overlap="yes" if result["overlap"] else "no")


def ratio_table(study, scenario):
    first, *others = scenario["contenders"]
    rows, keys = [], known(study, scenario, COMPARED)
    for point in scenario["points"]:
        for index, other in enumerate(others):
            pair = study.group(scenario, point, first), study.group(scenario, point, other)
            rows.append(row(f"{point['label']}: {other['name']} ÷ {first['name']}",
                            *(ratio_cell(difference(*pair, key), pair, key) for key in keys), begins=index == 0))
    return table(["", *map(heading, keys)], rows,
                 f"Ratios over {first['name']} with 98 % intervals, from runs of one boot. {OVERLAP}")


def ours_table(study, scenario):
    """The figures that a scenario draws, of each contender and of every two, to lay beside published ones."""
    pairs = list(itertools.combinations(scenario["contenders"], 2))
    keys = known(study, scenario, dict.fromkeys(scenario["plots"]))
    rows = []
    for point in scenario["points"]:
        groups = {contender["name"]: study.group(scenario, point, contender) for contender in scenario["contenders"]}
        for key in keys:
            compared = [(groups[first["name"]], groups[other["name"]]) for first, other in pairs]
            rows.append(row(f"{point['label']}: {heading(key)}",
                            *(median_cell(group, key) for group in groups.values()),
                            *(ratio_cell(difference(*pair, key), pair, key) for pair in compared),
                            begins=key == keys[0]))
    names = [contender["name"] for contender in scenario["contenders"]]
    return table(["", *names, *(f"{other['name']} ÷ {first['name']}" for first, other in pairs)], rows,
                 "Ours, at this scale, with the ratio of every two contenders. What the scale leaves comparable is "
                 f"said above. {OVERLAP}") if rows else None


def full_tables(study, scenario):
    """All figures with intervals and quartiles: a table a point."""
    found = []
    for point in scenario["points"]:
        groups = [study.group(scenario, point, contender) for contender in scenario["contenders"]]
        rows = []
        for _, keys in GROUPS:
            keys = [key for key in keys if any(group.stat(key) for group in groups)]
            rows += [row(heading(key), *(median_cell(group, key, quartiles=True) for group in groups),
                         begins=key == keys[0])
                     for key in keys]
        if rows:
            found.append(table(["", *(contender["name"] for contender in scenario["contenders"])], rows,
                               point["label"]))
    return join(found)


assert {key for _, keys in GROUPS for key in keys} <= set(FIGURES)
