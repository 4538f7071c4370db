"""The parts of a report, from what was found to what is needed to find it again."""

import json
import shlex

import comparison

from . import charts, tables
from .elements import bullets, figure, folded, paragraph, section
from .forecasts import prediction_sentence
from .markup import el, join
from .method import sentences
from .moves import SIDES, entries, get, number, text
from .study import JUDGED, address, main_pair, predictions, verdicts
from .svg import plain

ROUND_BY_ROUND = ("MiB sent in each round (bars) and found dirty after it (marks), on a log scale; of each group the "
                  "run with the median total time; of several guests the one that was down longest.")
# In what counters count: packets that were lost, or senders that were held up.
ROUGH = ("sent again", "time-out", "out of sequence", "pauses", "ECN", "congestion", "dropped", "refusals")
KINDS = ("interface", "rdma", "tcp")
ONE_MACHINE = ("Both ends were on one machine, and its loopback was the link: both share its CPUs and memory, and no "
               "network is in it. This tells how wander behaves, not what two hosts would take.")
LOOKED_AT = "median with its interval; each dot one run, leading to its file; outliers hollow; × did not converge"


# --- the top


def headline(study):
    names = list(dict.fromkeys(contender["name"] for scenario in study.scenarios
                               for contender in scenario["contenders"]))
    transports = {contender["transport"] for scenario in study.scenarios for contender in scenario["contenders"]}
    if transports == {"tcp", "rdma"}:
        return "Moving virtual machines over TCP and over RDMA"
    return "Moving virtual machines: " + (" and ".join(names) if len(names) < 4 else f"{len(names)} ways compared")


def about(study):
    counted = sum(len(group.counted) for group in study.groups.values())
    ends = ", ".join(text(end, "host") or "?" for end in entries(study.document, "ends"))
    made = (text(study.document, "made") or "").replace("T", " ").replace("+00:00", " UTC")
    parts = [made, version(study),
             f"{counted} migrations in {len(study.scenarios)} scenario{'s' if len(study.scenarios) != 1 else ''}",
             f"hosts {ends}" if ends else None]
    return paragraph(" · ".join(part for part in parts if part), class_="about")


def precision(study):
    """How many medians are as well known as was asked for."""
    target = number(study.document, "confidence_target") or 0.10
    intervals = [stat.interval for stat in (group.stat("total_s") for group in study.groups.values()) if stat]
    known = sum(comparison.precise(interval, target) for interval in intervals)
    return (f"The interval of total time is within ±{target:.0%} of its median for {known} of {len(intervals)} groups "
            f"of runs.")


def version(study):
    return f"wander {(text(study.document, 'wander') or 'of unknown version').removeprefix('wander ')}"


def top(study):
    """What was compared, what came of it, and what that does not show."""
    cautions = list(comparison.reservations(ends_for_reservations(study)))
    cautions += filter(None, [rough_link(study)])
    if on_one_machine(study):
        cautions.insert(0, ONE_MACHINE)
    if study.document.get("finished") is not True:
        cautions.insert(0, "This comparison was not finished: some runs are missing, and intervals may be wide.")
    said, more = verdicts(study)
    return join([el("header", el("h1", headline(study)), about(study)), section(
        "short", "In short", paragraph(
            f"At each point the same guest was moved {between(study)}, in turns: "
            f"{compared_in_words(study)}. A ratio below 1 means less. Where the interval of a ratio holds 1, no "
            f"difference is shown."),
        bullets(said, class_="verdict") or paragraph("Nothing can be compared: no point has runs of two contenders."),
        paragraph(prediction_sentence(study), class_="verdict") if predictions(study) else None,
        paragraph(precision(study), class_="note"),
        folded("The other contenders", bullets(more)) if more else None,
        el("div", el("b", "What this can and cannot show"), *map(paragraph, cautions), class_="caution")
        if cautions else None,
    )])


def between(study):
    return "from one process to another on one machine" if on_one_machine(study) else \
        "between the same two hosts over the same link"


def on_one_machine(study):
    addresses = [text(end, "address") or "" for end in entries(study.document, "ends")]
    return study.document.get("one_machine") is True or \
        any(address.startswith("127.") or address == "::1" for address in addresses)


def compared_in_words(study):
    pairs = list(dict.fromkeys(" against ".join([other["name"], scenario["contenders"][0]["name"]])
                               for scenario in study.scenarios for other in scenario["contenders"][1:]))
    return ", ".join(pairs[:4]) + (" and others" if len(pairs) > 4 else "") if pairs else "one contender only"


def ends_for_reservations(study):
    """comparison.reservations() expects tables with these keys."""
    return [{"rdma": {"kind": text(end, "rdma", "kind")} if isinstance(end.get("rdma"), dict) else None,
             "virtual": end.get("virtual") is True} for end in entries(study.document, "ends")]


def glance(study):
    """The ratios of all points, one chart for each figure and pair of names; the pair met most often comes first."""
    drawings = {}
    for key in JUDGED:
        for pair, rows in ratio_rows(study, key).items():
            name = comparison.LESS[key][0]
            drawing = charts.forest_chart(rows, f"{name}: {pair[1]} over {pair[0]}", f"{pair[1]} ÷ {pair[0]}")
            drawings.setdefault(pair, []).append(figure(drawing, f"{name[0].upper()}{name[1:]}",
                                                        f"{pair[1]} ÷ {pair[0]}"))
    if not any(filter(None, sum(drawings.values(), []))):
        return None
    main, *others = sorted(drawings, key=lambda pair: pair != main_pair(study))
    return section("glance", "At a glance",
                   paragraph("Left of the line at 1 is less. Bars are 98 % intervals; a filled mark is a difference "
                             "shown, a hollow one is none shown.", class_="note"),
                   el("div", *drawings[main], class_="plots three"),
                   folded("The other contenders", el("div", *(drawing for pair in others for drawing in drawings[pair]),
                                                     class_="plots three")) if others else None)


def ratio_rows(study, key):
    """{(first, other): rows for a chart}, with the scenarios as headings."""
    pairs = {}
    for first, other, result in study.differences(key):
        rows = pairs.setdefault((first.contender["name"], other.contender["name"]), [])
        if first.scenario["title"] not in [heading for heading, _, _ in rows]:
            rows.append((first.scenario["title"], "", None))
        rows.append((None, first.point["label"], result if result and result["enough"] else None))
    return pairs


def contents(study):
    links = [("short", "In short"), ("glance", "At a glance"),
             *((scenario["place"], scenario["title"]) for scenario in study.scenarios),
             ("prediction", "Prediction and measurement"), ("counters", "Counters that changed"),
             ("troubles", "Troubles"),
             ("method", "Method"), ("repeat", "To repeat it"), ("raw", "Raw data")]
    return el("nav", *(el("a", name, href=f"#{place}") for place, name in links), aria_label="Contents")


# --- one scenario


def scenario_section(study, scenario):
    plots = list(dict.fromkeys(scenario["plots"]))
    names = [contender["name"] for contender in scenario["contenders"]]
    drawn = [figure(charts.chart(study, scenario, key), tables.heading(key)) for key in plots]
    parts = [figure(charts.parts_chart(study, scenario), "Downtime by part", "the run with the median downtime")]
    parts += [figure(charts.roles_chart(study, scenario, side), f"CPU at the {side}, by role",
                     "the run with the median; host time that is not wander's: the kernel's network, softirq")
              for side in SIDES]
    rounds = [figure(drawing, caption) for caption, drawing in charts.rounds_charts(study, scenario)]
    return section(
        scenario["place"], scenario["title"], paragraph(scenario["question"], class_="question"),
        charts.key_to_marks(names) if any(drawn) else None,
        paragraph(LOOKED_AT[0].upper() + LOOKED_AT[1:] + ".", class_="note") if any(drawn) else
        paragraph("No run of this scenario came to its end.", class_="caution"),
        el("div", *drawn, class_="plots") if any(drawn) else None,
        tables.main_table(study, scenario),
        tables.ratio_table(study, scenario) if len(names) > 1 else None,
        el("h3", "Where the time and the CPU went") if any(parts) else None,
        el("div", *parts, class_="plots") if any(parts) else None,
        published(study, scenario),
        folded(f"Round by round ({len(rounds)} runs)", paragraph(ROUND_BY_ROUND, class_="note"),
               el("div", *rounds, class_="plots small")) if rounds else None,
        folded("All figures, with intervals and quartiles", tables.full_tables(study, scenario)))


def published(study, scenario):
    """What others found, with how it is known, and ours beside it."""
    known = {"read": "read, in the source or in the part of it that is named",
             "reported": "reported: the source was not at hand"}
    rows = [tables.row(text(entry, "what") or "?", el("td", text(entry, "figure") or "?", class_="words"),
                       el("td", text(entry, "source") or "?", class_="words"),
                       el("td", known.get(text(entry, "known"), "how it is known was not said"), class_="words"))
            for entry in scenario["published"]]
    scale = [paragraph(part) for part in (scenario["scale"] or "").split("\n\n") if part.strip()]
    if not rows and not scale:
        return None
    return join([el("h3", "Published figures beside ours" if rows else "Scale"), *scale,
                 tables.table(["what", "published", "source", "provenance"], rows, words=(1, 2, 3)) if rows else None,
                 tables.ours_table(study, scenario) if rows else None])


# --- what else happened


def counters_section(study):
    """Of all moves of a group: those counters that changed and whose meaning is known, and folded all others."""
    known, others, words = [], [], study.document.get("counter_words")
    for group in study.groups.values():
        for (side, kind, name), (value, moves) in sorted(sums(group.tried).items()):
            what = text(words, name)
            (known if what else others).append(tables.row(
                group.key, el("td", f"{side}, {kind}", class_="words"), el("td", name, class_="words"),
                el("td", what or "", class_="words"), str(round(value)), f"{moves} of {len(group.tried)}"))
    head = "counters", "Counters that changed"
    if not known and not others:
        return section(*head, paragraph("No counter of a network or RDMA device changed during the moves, or none "
                                        "could be read."))
    return section(*head, paragraph("Sent again, out of sequence, paused, marked: summed over all runs of a group. "
                                    "Their absence is no proof where a driver does not count."),
                   counters_table(known) if known else paragraph("None of those that tell of lost or held up packets."),
                   folded(f"{len(others)} other counters", counters_table(others)) if others else None)


def counters_table(rows):
    return tables.table(["group", "where", "counter", "what it counts", "change", "in moves"], rows, words=(1, 2, 3))


def sums(moves):
    """{(side, kind, counter): (change, in how many moves)} of those that changed."""
    found = {}
    for move in moves:
        for where, value in changed(move):
            change, count = found.get(where, (0, 0))
            if value:
                found[where] = change + value, count + 1
    return found


def changed(move):
    """((side, kind, counter), change) of one move."""
    for side in SIDES:
        for kind in KINDS:
            counters = get(move.document, "counters", side, kind)
            for name in counters if isinstance(counters, dict) else ():
                yield (side, kind, name), number(counters, name) or 0


def rough_link(study):
    """A caution where counters tell that packets were lost or held up; None where none does."""
    words, told, tried = study.document.get("counter_words"), {}, 0
    for move in (move for group in study.groups.values() for move in group.tried):
        tried += 1
        found = {text(words, name) or "" for (_, _, name), value in changed(move) if value}
        for what in found:
            if any(part in what for part in ROUGH):
                told[what] = told.get(what, 0) + 1
    if not told:
        return None
    return (f"The network counters of the hosts changed during moves: "
            f"{'; '.join(f'{what} in {count} of {tried} moves' for what, count in sorted(told.items()))}. Which, and "
            f"where, is under “Counters that changed”.")


def troubles_section(study):
    warnings = study.document.get("warnings")
    said = [entry for entry in warnings if isinstance(entry, str)] if isinstance(warnings, list) else []
    said += [" / ".join(text(entry, key) or "?" for key in ("scenario", "point", "contender")) + ": " +
             (text(entry, "text") or "?") for entry in entries(study.document, "errors")]
    said += study.folder.troubles + [f"{key} has runs, and is no contender of this comparison" for key in study.unknown]
    failed = [move for group in study.groups.values() for move in group.failed()]
    links = [join([el("a", "/".join((*move.key(), move.name)), href=address(move)),
                   f": {move.failed or 'it did not complete'}"])
             for move in failed]
    return section("troubles", "Troubles",
                 bullets(said) or paragraph("No warnings."),
                 paragraph(f"{len(failed)} migrations failed:") if failed else None, bullets(links))


# --- how it was done, and how to do it again


def method_section(study):
    return section("method", "Method", bullets(sentences(number(study.document, "confidence_target") or 0.10)))


def repeat_section(study):
    command = study.document.get("command")
    line = shlex.join(map(str, command)) if isinstance(command, list) else text(study.document, "command")
    facts = [folded(f"Host {text(end, 'host') or '?'}: all that is known of it", el("pre", pretty(end)))
             for end in entries(study.document, "ends")]
    scenarios = [folded(f"Scenario {scenario['name']}", el("pre", scenario["text"] or "its text is not there"),
                        el("pre", pretty({"points": scenario["points"], "contenders": scenario["contenders"]})))
                 for scenario in study.scenarios]
    return section("repeat", "To repeat it", el("pre", line or "not known"),
                 paragraph(f"{version(study)}, {repeats(study)}seed {text(study.document, 'seed') or 'not known'}."),
                 bullets([description for end in entries(study.document, "ends") for description in describe(end)]),
                 *facts, limits_table(study), versions(study), *scenarios)


def repeats(study):
    """How often everything was done, and where it ended."""
    least, most = number(study.document, "repeats"), number(study.document, "max_repeats")
    if not least or not most:
        return ""
    own = "".join(f", {scenario['name']} up to {max(least, scenario['max_repeats'])}" for scenario in study.scenarios
                  if scenario["max_repeats"] and scenario["max_repeats"] < most)
    return f"{least} repeats of each, up to {most} where an interval stayed wide{own}; "


def describe(end):
    try:
        return ["; ".join(line.strip() for line in comparison.describe_end(end))]
    except (KeyError, TypeError, AttributeError):
        return [f"{text(end, 'host') or '?'}: its facts are incomplete"]


def pretty(document):
    return json.dumps(document, indent=1, ensure_ascii=False, default=str)


def versions(study):
    found = sorted({f"wander {text(report, 'host', side, 'wander')} on {text(report, 'host', side, 'kernel')}"
                    for group in study.groups.values() for move in group.counted for report in move.reports
                    for side in SIDES
                    if text(report, "host", side, "wander")})
    return folded("Versions that took part", bullets(found)) if found else None


def limits_table(study):
    rows = [tables.row(f"boot {text(boot, 'id')}, {text(limit, 'tool')}", el("td", text(limit, "direction") or "",
                                                                             class_="words"),
                       el("td", text(limit, "link") or "as it is", class_="words"), text(limit, "mtu") or "",
                       plain((number(limit, "bytes_per_s") or 0) / (1 << 20)), el("td", text(limit, "note") or "",
                                                                                  class_="words"))
            for boot in entries(study.document, "boots") for limit in entries(boot, "limits")]
    return folded("Limits of the link, measured", tables.table(["", "direction", "link", "MTU", "MiB/s", "note"], rows,
                                                               words=(1, 2, 5))) if rows else None


def raw_section(study):
    groups = []
    for key, group in study.groups.items():
        links = [el("a", move.name, href=address(move)) for move in group.moves]
        groups.append(join([el("b", group.key), ": ", *(join([link, " "]) for link in links)]) if links else
                      join([el("b", group.key), ": no runs"]))
    return section("raw", "Raw data",
                 paragraph("Beside this page: ", el("a", "comparison.json", href="comparison.json"), ", ",
                           el("a", "moves.csv", href="moves.csv"), " and a file for each migration:"),
                 folded(f"{len(study.folder.moves)} files", bullets(groups, class_="runs")))
