#!/usr/bin/python3
"""The report of a comparison: its figures recomputed from the raw files by code of its own, every trace followed, and
text from files never taken for markup."""

import collections
import csv
import functools
import json
import math
import random
import statistics
import subprocess
from urllib.parse import unquote

from cases import run_cases
from hosts import PROGRAM, ROOT, SLOW, expect

import report_data
from report.moves import FIGURES
from report_world import World, alone, arrived, bare, check_harmless, everything, raw_reports

GIB, MIB = 1 << 30, 1 << 20
DRAWS = 20000
STUDENT = {5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201}  # 97.5 %, by degrees of freedom


def raw_gib(move):
    return sum(one["guest_bytes"] for one in raw_reports(move)) / GIB


def raw_cpu(move, side):
    spent = move["host_cpu"][side]
    return (spent["user"] + spent["system"] + spent["interrupts"]) / raw_gib(move)


def raw_role(move, side, role):
    return sum(one["cpu"][side][f"{role}_s"] for one in raw_reports(move)) / raw_gib(move)


def raw_sum(key):
    return lambda move: sum(one[key] for one in raw_reports(move))


def raw_worst(key):
    return lambda move: max((one[key] for one in raw_reports(move) if one[key] is not None), default=None)


def raw_part(part):
    """Of the guest that was down longest."""
    return lambda move: max(raw_reports(move), key=lambda one: one["downtime_ms"])["downtime"][part]


def raw_work(when):
    def share(move):
        works = [guest["work"] for guest in move.get("guests", [move])]
        if any(work[f"{moment}_pages_per_s"] is None for work in works for moment in ("before", when)):
            return None
        return sum(work[f"{when}_pages_per_s"] for work in works) / sum(work["before_pages_per_s"] for work in works)
    return share


def raw_rest(side):
    """What is left of a host; on one machine nobody can tell."""
    def rest(move):
        parts = sum(raw_role(move, side, role) for role in ROLES)
        return None if move.get("one_machine") else max(0.0, raw_cpu(move, side) - parts)
    return rest


def raw_goodput(move):
    reports = raw_reports(move)
    if len(reports) == 1:
        return reports[0]["goodput_bytes_per_s"]
    running = [[entry for entry in one["rounds"] if not entry["paused"]] for one in reports]
    sent = sum(entry["bytes"] for rounds in running for entry in rounds)
    return sent / max(sum(entry["ms"] for entry in rounds) for rounds in running) * 1000


def raw_share(tool):
    """Of the fastest that the tool saw in this boot over this link, this way where that was tried."""
    def share(move):
        found = [limit for limit in move["limits"] if limit["tool"] == tool]
        way = f"{move['source']}->{move['destination']}"
        best = max((limit["bytes_per_s"] for limit in [limit for limit in found if limit["direction"] == way] or found),
                   default=None)
        return raw_goodput(move) / best if best and raw_goodput(move) else None
    return share


ROLES = ("guest", "engine", "lanes", "other")
ENDS = ("source", "destination")
RAW = {
    "total_s": lambda move: max(one["total_ms"] for one in raw_reports(move)) / 1000,
    **{key: raw_worst(key) for key in ("downtime_ms", "setup_ms", "guest_gap_ms")},
    **{f"downtime_{part}_ms": raw_part(part) for part in ("pause", "final_copy", "verify", "state_save",
                                                          "state_transfer", "state_load", "resume")},
    "rounds": lambda move: max(len(one["rounds"]) for one in raw_reports(move)),
    "guest_mib": lambda move: raw_gib(move) * 1024,
    "wire_mib": lambda move: raw_sum("wire_bytes")(move) / MIB,
    "goodput_mib_s": lambda move: raw_goodput(move) / MIB if raw_goodput(move) else None,
    **{f"share_{tool}": raw_share(tool) for tool in ("iperf3", "ib_send_bw -e", "ib_write_bw")},
    **{f"{side}_process_cpu": lambda move, side=side: raw_sum(f"{side}_cpu_s")(move) / raw_gib(move) for side in ENDS},
    **{f"{side}_host_cpu": lambda move, side=side: raw_cpu(move, side) for side in ENDS},
    **{f"{side}_{kind}_cpu": lambda move, side=side, kind=kind: move["host_cpu"][side][kind] / raw_gib(move)
       for side in ENDS for kind in ("user", "system", "interrupts")},
    **{f"{side}_machine_cpu": lambda move, side=side: move["host_cpu"][side]["machine"] / raw_gib(move)
       if "machine" in move["host_cpu"][side] else None for side in ENDS},
    **{f"{side}_{role}_cpu": lambda move, side=side, role=role: raw_role(move, side, role) for side in ENDS
       for role in ROLES},
    **{f"{side}_rest_cpu": raw_rest(side) for side in ENDS},
    **{f"{side}_own_cpu": lambda move, side=side: sum(raw_role(move, side, role) for role in ROLES[1:])
       for side in ENDS},
    "both_hosts_cpu": lambda move: raw_cpu(move, "source") + (0 if move.get("one_machine") else
                                                              raw_cpu(move, "destination")),
    "both_own_cpu": lambda move: sum(raw_role(move, side, role) for role in ROLES[1:] for side in ENDS),
    "machine_others": lambda move: move["machine_others"],
    "work_during": raw_work("during"),
    "work_after": raw_work("after"),
}


def near(what, got, wanted, within=1e-9):
    expect(math.isclose(got, wanted, rel_tol=within, abs_tol=1e-12), f"expected {what} to be {wanted!r}; the report "
                                                                     f"says {got!r}")


def medians(context):
    with everything() as world:
        check_medians(world)
        seen = {figure["data-figure"] for figure in world.page.figures if figure["data-stat"] == "median"}
        unseen = set(RAW) - seen - {"downtime_verify_ms"}
        expect(set(FIGURES) == set(RAW), f"expected every figure to be recomputed; {set(FIGURES) ^ set(RAW)} are not")
        expect(not unseen, f"expected every figure to be in the report; these are not: {unseen}")


def check_medians(world):
    found = [figure for figure in world.page.figures if figure["data-stat"] == "median" and "/" in figure["data-key"]]
    expect(found, "expected medians in the report; there are none")
    for figure in found:
        values = [RAW[figure["data-figure"]](move) for move in world.moves(figure["data-key"])]
        values = [value for value in values if value is not None]
        what = f"the median {figure['data-figure']} of {figure['data-key']}"
        expect(values, f"expected nobody to know {what}; the report says {figure['data-value']}")
        near(what, float(figure["data-value"]), statistics.median(values))
        if "data-low" in figure:
            check_interval(what, values, float(figure["data-low"]), float(figure["data-high"]))
    for figure in world.page.figures:
        if figure["data-stat"] == "count":
            near(f"the runs of {figure['data-key']}", float(figure["data-value"]), len(world.moves(figure["data-key"])))
    check_text(found)


@functools.cache
def drawn_medians(count):
    """[(place, share)] of resampled medians of 0, 1, 2 …: what a bootstrap draws of so many values."""
    chance = random.Random(count)
    drawn = collections.Counter(statistics.median(chance.choices(range(count), k=count)) for _ in range(DRAWS))
    return [(place, many / DRAWS) for place, many in drawn.items()]


def check_interval(what, values, low, high):
    """Of few values their range, else where the bootstrap distribution has its expanded tails."""
    ordered, count = sorted(values), len(values)
    if count < 6:
        near(f"the lower end of {what}", low, ordered[0])
        near(f"the upper end of {what}", high, ordered[-1])
        return
    tail = statistics.NormalDist().cdf(-STUDENT[count - 1] * math.sqrt(count / (count - 1)))
    medians = [((ordered[int(place)] + ordered[math.ceil(place)]) / 2, share) for place, share in drawn_medians(count)]
    for end, sign in ((low, 1), (high, -1)):
        room = sign * abs(end) * 1e-9
        beyond, reached = (sum(share for one, share in medians if sign * (one - edge) < 0)
                           for edge in (end - room, end + room))
        expect(beyond <= tail + 0.002 and reached >= tail - 0.002, f"expected a share of {tail:.4f} of the resampled "
               f"medians beyond {end!r}, an end of the interval of {what}; got {beyond:.4f} to {reached:.4f}")


REAL = """
title = "Real"
question = "Is what is measured what is shown?"
[guest]
memory = "24M"
accel = "synthetic"
workload = "touch=8M,hot=1M,rate=500"
[[contender]]
name = "one"
transport = "tcp"
options = ["--lanes=1"]
[[contender]]
name = "two"
transport = "tcp"
options = ["--lanes=2"]
"""


def real(context):
    """The same of what testbed/compare really wrote."""
    def run(out):
        path = out / "real.toml"
        path.write_text(REAL)
        argv = [ROOT / "testbed" / "compare", path, "--hosts", "local", "--out", out / "out", "--program", PROGRAM,
                "--repeats", "2", "--max-repeats", "2", "--no-limits"]
        done = subprocess.run(argv, text=True, capture_output=True, timeout=120 * SLOW, stdin=subprocess.DEVNULL)
        expect(done.returncode == 0, f"expected testbed/compare to end well; got {done.returncode}:\n{done.stdout}"
                                     f"{done.stderr}")
        for path in (out / "out").iterdir():
            path.rename(out / path.name)
        return json.loads((out / "comparison.json").read_text())

    with World(run) as world:
        check_harmless(world)
        check_medians(world)
        check_ratios(world)
        expect(all(len(world.moves(f"real/all/{name}")) == 2 for name in ("one", "two")), "expected two moves of each")


def check_text(found):
    """What people read is what programs read, to three digits."""
    for figure in found:
        words = figure["text"].split("\u2013")[0].replace("\u202f", "")
        if not words or figure["data-figure"] not in ("total_s", "downtime_ms", "guest_mib"):
            continue
        value = float(figure["data-value"])
        places = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
        shown = f"{value:.{places}f}"
        expect(figure["text"].replace("\u202f", "").startswith(shown), f"expected {shown} for {figure['data-figure']} "
                                                                       f"of "
               f"{figure['data-key']}; the report shows '{figure['text']}'")


def check_ratios(world):
    """All ratios of the report, which are right."""
    found = [figure for figure in world.page.figures if figure["data-stat"] == "ratio"]
    for figure in found:
        key = figure["data-key"]
        other, base = world.moves(key), world.moves(f"{key.rpartition('/')[0]}/{figure['data-against']}")
        value = RAW[figure["data-figure"]]
        every = [value(mine) / value(its) for mine in other for its in base
                 if mine["boot"] == its["boot"] and value(mine) and value(its)]
        near(f"the ratio of {figure['data-figure']} of {key}", float(figure["data-value"]),
             statistics.median(every))
    intervals = {(figure["data-figure"], figure["data-key"]): (float(figure["data-low"]), float(figure["data-high"]))
                 for figure in world.page.figures if figure["data-stat"] == "median" and "data-low" in figure}
    for figure in found:
        (low, high), (other_low, other_high) = (
            intervals[figure["data-figure"], key] for key in
            (figure["data-key"], f"{figure['data-key'].rpartition('/')[0]}/{figure['data-against']}"))
        overlap = "yes" if low <= other_high and other_low <= high else "no"
        expect(figure["data-overlap"] == overlap, f"expected the medians' intervals to overlap: {overlap}; {figure}")
        told = "differs*" in figure["small"]
        expect(told == (overlap == figure["data-shown"] == "yes"), f"expected an overlap to be told of; got {figure}")
    return found


def ratios(context):
    with everything() as world:
        found = check_ratios(world)
        expect(len(found) > 40, f"expected over 40 ratios; found {len(found)}")
        shown = {figure["data-key"]: figure["data-shown"] for figure in found if figure["data-figure"] == "total_s"}
        expect(shown["dirty-rate/0/rdma"] == "yes", "expected 16 % less total time of 6 runs each to be shown")
        expect("dirty-rate/18000/rdma" not in shown, "expected no ratio where all runs were given up")
        expect("patterns/once/rdma" not in shown, "expected no ratio of one run each")

    def some_given_up(out):
        document = alone(bare(repeats=6))(out)
        report_data.Maker(out).move("bare", "p", report_data.CONTENDERS[0], 7, cancelled=True)
        return document

    with World(some_given_up) as world:
        kept = [figure for figure in world.page.figures if figure["data-stat"] == "ratio"]
        expect(not kept, f"expected no ratio where a run was given up; got {kept[:1]}")


def papers(context):
    """Beside published figures: all that the scenario draws, and the ratio of every two contenders."""
    def three(maker):
        contenders = [*report_data.CONTENDERS, {"name": "rdma-chunk", "transport": "rdma", "options": []}]
        for repeat in range(1, 7):
            for contender in contenders:
                maker.move("paper", "p", contender, repeat)
        published = [{"what": "w", "figure": "26 Gbit/s", "source": "s", "known": "read"}]
        return report_data.scenario("paper", "Paper", [report_data.point("p")], contenders, published=published)

    with World(alone(three)) as world:
        found = {(one["data-figure"], one["data-key"].rpartition("/")[2], one["data-against"])
                 for one in world.page.figures if one["data-stat"] == "ratio"}
        for key in ("total_s", "both_hosts_cpu"):
            for pair in (("rdma", "tcp"), ("rdma-chunk", "tcp"), ("rdma-chunk", "rdma")):
                expect((key, *pair) in found, f"expected the ratio of {key} of {' over '.join(pair)}; got {found}")


def forecasts(context):
    with everything() as world:
        errors = {(key, which): [] for key in ("total", "downtime") for which in ("all", "undisturbed")}
        for path in sorted((world.out / "moves").glob("*/*/*/*.json")):
            move = json.loads(path.read_text())
            for guest in move.get("guests", [move]) if arrived(move) else []:
                if guest["prediction"] is None or guest["report"]["switchover"]["forced"]:
                    continue
                told = next(one for one in guest["prediction"]["paths"]
                            if one["transport"] == move["transport"])["prediction"]
                for (key, which), known in errors.items():
                    came = guest["report"][f"{key}_ms"]
                    if which == "all" or move["machine_others"] < 0.1:
                        known.append(abs(told[f"{key}_ms"] - came) / came)
        figures = {(one["data-figure"], one["data-stat"], one["data-key"]): one for one in world.page.figures
                   if one.get("data-key") in ("all", "undisturbed")}
        for (key, which), known in errors.items():
            for stat, wanted in (("median", statistics.median(known)), ("p95", share_of(known, 0.95))):
                near(f"the {stat} error of {key}, {which}",
                     float(figures[f"prediction_{key}", stat, which]["data-value"]), wanted)
        check_goals(world, figures)
        refused = float(figures["convergence", "false-false", "all"]["data-value"])
        near("moves rightly said not to converge", refused, 24.0)


def raw_spread(world, most_others=1.0):
    """Half the range of the middle 90 %, or of all if they are few, over the median; the median of all groups."""
    groups = {}
    for path in (world.out / "moves").glob("*/*/*/*.json"):
        move = json.loads(path.read_text())
        if move["machine_others"] >= most_others:
            continue
        if arrived(move) and not any(one["switchover"]["forced"] for one in raw_reports(move)):
            groups.setdefault((path.parent, move["boot"]), []).append(RAW["total_s"](move))
    spreads = []
    for values in groups.values():
        cut = 0.05 if len(values) >= 6 else 0.0
        if len(values) > 1:
            spreads.append((share_of(values, 1 - cut) - share_of(values, cut)) / 2 / statistics.median(values))
    return statistics.median(spreads) if spreads else None


def share_of(values, share):
    ordered, place = sorted(values), share * (len(values) - 1)
    return ordered[int(place)] + (place - int(place)) * (ordered[min(int(place) + 1, len(values) - 1)]
                                                         - ordered[int(place)])


def check_goals(world, figures):
    for which, most_others in (("all", 1.0), ("undisturbed", 0.1)):
        spread = raw_spread(world, most_others)
        expect(f"he spread of repeats is {spread:.1%}" in world.text, f"expected the spread of repeats to be {spread:.1%}")
        error = float(figures["prediction_total", "median", which]["data-value"])
        near(f"the share of the goal that the median error uses, {which}",
             float(figures["prediction_total_used", "median", which]["data-value"]), error / max(0.05, 1.5 * spread))
    met = world.text.count("met</td>") + world.text.count("missed</td>")
    expect(met == 10, f"expected five goals twice, met or missed; got {met}")


def few_repeats(context):
    """Three repeats have a spread too; one has none, and that is said."""
    with World(alone(bare(repeats=3))) as world:
        expect(f"The spread of repeats is {raw_spread(world):.1%}" in world.text,
               f"expected the spread of three repeats to be {raw_spread(world):.1%}")
    with World(alone(bare(repeats=1))) as world:
        expect("The spread of repeats is not known" in world.text, "expected no spread of one run")
        expect("none was said" in world.text, "expected to be told that no move was said not to converge")


def unforetold(context):
    """What could not be foretold, and what was foretold wrongly, is told with its reason."""
    def some(out):
        document = alone(bare(repeats=5))(out)
        maker = report_data.Maker(out)
        for repeat in (6, 7):
            maker.move("bare", "p", report_data.CONTENDERS[0], repeat, no_prediction=True)
        path = out / "moves/bare/p/tcp/05.json"
        move = json.loads(path.read_text())
        move["report"]["switchover"]["forced"] = True
        path.write_text(json.dumps(move))
        return document

    with World(some) as world:
        for wanted in ("2 of 12 moves have no prediction", "<li>no answer (2)</li>",
                       "1 of 10 were said to converge and did not"):
            expect(wanted in world.text, f"expected the report to say '{wanted}'")


def counters(context):
    """Those with a meaning stand open with their sums, all others folded, and the top says what was lost or held up."""
    with everything() as world:
        top, _, rest = world.text.partition("<nav")
        expect("TCP segments sent again in " in top, "expected a caution about segments that were sent again")
        at = rest.index('id="counters"')
        shown, _, folded = rest[at:rest.index("</section>", at)].partition("<details>")
        expect("RetransSegs" in shown and "rx_queue_0_drops" not in shown, "expected those with a meaning to be seen")
        expect("rx_queue_0_drops" in folded and "RetransSegs" not in folded, "expected those without one to be folded")
        moves = [json.loads(path.read_text()) for path in (world.out / "moves/lanes/32M/tcp-4").glob("*.json")]
        total = sum(move["counters"]["source"]["tcp"]["RetransSegs"] for move in moves if not move["warm_up"])
        row = shown[shown.index("lanes/32M/tcp-4"):]
        expect(f"<td>{total}</td><td>6 of 6</td>" in row[:row.index("</tr>")],
               f"expected {total} segments sent again in 6 of 6 moves; got {row[:row.index('</tr>')]}")
    with World(alone(bare(repeats=5), counter_words={})) as world:
        expect("The network counters" not in world.text, "expected no caution where no counter has a meaning")


def traces(context):
    with everything() as world:
        links = {unquote(attributes["href"]) for name, attributes in world.page.elements if name == "a"
                 and "href" in attributes}
        for link in links:
            if link.startswith("#"):
                expect(any(attributes.get("id") == link[1:] for _, attributes in world.page.elements),
                       f"{link} leads nowhere")
            elif not link.startswith("https://"):
                expect((world.out / link).is_file(), f"expected {link} to be a file beside the report")
        files = {path.relative_to(world.out).as_posix() for path in (world.out / "moves").glob("*/*/*/*.json")}
        expect(files <= links, f"expected a link to every raw file; missing: {sorted(files - links)[:3]}")
        runs = [row for row in world.page.rows if any(one["data-stat"] == "count" for one in row["figures"])]
        for row in runs:
            wanted = {name for name in files if name.startswith(f"moves/{row['figures'][0]['data-key']}/")}
            expect(wanted == set(row["links"]), f"expected the row of {row['figures'][0]['data-key']} to lead to its "
                                                f"files")
        outside = [attributes for name, attributes in world.page.elements
                   if "src" in attributes or name in ("link", "iframe", "object", "embed")]
        expect(not outside, f"expected nothing from elsewhere; got {outside[:3]}")


def escaping(context):
    with everything() as world:
        check_harmless(world)
        for part in ("&lt;script&gt;", "&amp;amp;"):
            expect(part in world.text, f"expected hostile text to be shown as text: no '{part}' in the report")
        expect("\u202e" not in world.text, "expected nothing that turns text around")


def one_table(context):
    with everything() as world:
        rows = list(csv.DictReader((world.out / "moves.csv").read_text().splitlines()))
        files = sorted((world.out / "moves").glob("*/*/*/*.json"))
        expect(len(rows) == len(files), f"expected a line for each of {len(files)} moves; got {len(rows)}")
        for line in context.sample(rows, 60):
            move = json.loads((world.out / line["file"]).read_text())
            if arrived(move):
                near(f"total_s of {line['file']}", float(line["total_s"]), RAW["total_s"](move))
                near(f"both_hosts_cpu of {line['file']}", float(line["both_hosts_cpu"]), RAW["both_hosts_cpu"](move))
            expect(line["warm_up"] == str(move["warm_up"]),
                   f"expected warm_up {move['warm_up']}; got {line['warm_up']}")

        def formula(out):
            document = report_data.make(out)
            path = next(iter(sorted((out / "moves/patterns/failing").glob("*/01.json"))))
            move = json.loads(path.read_text())
            path.write_text(json.dumps(move | {"failed": "=HYPERLINK(\"x\")\nmore"}))
            return document

    with World(formula) as world:
        text = (world.out / "moves.csv").read_text()
        expect("'=HYPERLINK" in text and ",=HYPERLINK" not in text and ",\"=" not in text, "expected no formula in "
                                                                                           "moves.csv")


if __name__ == "__main__":
    run_cases(__doc__, {case.__name__: case for case in (
        medians, real, ratios, papers, forecasts, few_repeats, unforetold, counters, traces, escaping, one_table)})
