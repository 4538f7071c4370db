"""The raw data of a comparison: what its folder holds, and the figures of each migration in it. What files say is
checked as it is read: a value of the wrong type counts as not known."""

import json
from pathlib import Path

from comparison import CPU_KINDS, DISTURBED, GIB, LIMITS, MIB, MORE_TITLES, TITLES
from hosts import Failure

PARTS = ("pause", "final_copy", "verify", "state_save", "state_transfer", "state_load", "resume")
OWN = ("engine", "lanes", "other")
ROLES = ("guest", *OWN)
SIDES = ("source", "destination")
BEYOND = 1e18
NEAR_THE_END = 0.95  # of the time limit: from there on it was the limit that ended a move


def get(document, *keys):
    """What lies below these keys, or None."""
    for key in keys:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def number(document, *keys):
    """One that can be: nothing that is measured here is negative, or beyond all bounds."""
    value = get(document, *keys)
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= BEYOND
    return value if good else None


def entries(document, *keys):
    """A list of tables; what is none is left out."""
    value = get(document, *keys)
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def text(document, *keys):
    value = get(document, *keys)
    return None if value is None or isinstance(value, (dict, list)) else str(value)


def total(values):
    """None when one is not known: a sum of some would look like one of all."""
    values = list(values)
    return sum(values) if values and None not in values else None


def most(values):
    return max((value for value in values if value is not None), default=None)


def ratio(value, by, scale=1.0):
    return value / by * scale if value is not None and by else None


class Move:
    """One migration: one guest, or several at once. `path` is relative to the comparison's folder."""

    def __init__(self, path, document, boots):
        self.path, self.document = path, document
        self.scenario, self.point, self.contender = path.parts[1:4]
        self.name = path.stem
        self.warm_up = document.get("warm_up") is True
        self.boot = text(document, "boot")
        self.transport = text(document, "transport")
        self.failed = text(document, "failed")
        self.guests = entries(document, "guests") or [document]
        self.reports = [guest["report"] for guest in self.guests if isinstance(guest.get("report"), dict)]
        self.limits = limits_of(document, boots)
        self.counts = not self.warm_up and self.completed()
        self.figures = figures_of(self)

    def key(self):
        return self.scenario, self.point, self.contender

    def completed(self):
        return (self.failed is None and len(self.reports) == len(self.guests) and
                all(report.get("result", "completed") == "completed" for report in self.reports))

    def disturbed(self):
        """Whether others had much of the machine that virtual hosts run on; of other hosts that is not known."""
        return (number(self.document, "machine_others") or 0) >= DISTURBED

    def converged(self):
        """False: it ended by force, or was given up, at its time limit. None: it failed for another reason."""
        if any(get(switchover(report), "forced") is True for report in self.reports):
            return False
        if any(out_of_time(report) for report in self.reports):
            return False
        return True if self.completed() else None


def switchover(report):
    """What the policy foretold at the switchover; schema 1 calls it the prediction."""
    return report.get("switchover") if "switchover" in report else report.get("prediction")


def out_of_time(report):
    limit, took = number(report, "limits", "max_time_ms"), number(report, "total_ms")
    return bool(report.get("result", "completed") != "completed" and limit and took and took >= NEAR_THE_END * limit)


# --- figures of one migration


def figures_of(move):
    """{name: value}; None where nobody knows. Several guests: until the last arrives, the worst downtime, all bytes."""
    if not move.reports:
        return {}
    sums = {key: total(number(report, key) for report in move.reports)
            for key in ("guest_bytes", "wire_bytes", "source_cpu_s", "destination_cpu_s")}
    gib = ratio(sums["guest_bytes"], GIB)
    found = {
        "total_s": ratio(most(number(report, "total_ms") for report in move.reports), 1e3),
        "rounds": most(len(entries(report, "rounds")) for report in move.reports),
        "guest_mib": ratio(sums["guest_bytes"], MIB), "wire_mib": ratio(sums["wire_bytes"], MIB),
        "goodput_mib_s": ratio(goodput(move), MIB),
        "source_process_cpu": ratio(sums["source_cpu_s"], gib),
        "destination_process_cpu": ratio(sums["destination_cpu_s"], gib),
        "machine_others": number(move.document, "machine_others"),
    }
    for key in ("setup_ms", "downtime_ms", "guest_gap_ms"):
        found[key] = most(number(report, key) for report in move.reports)
    worst = worst_report(move)
    for part in PARTS:
        found[f"downtime_{part}_ms"] = number(worst, "downtime", part)
    for limit in LIMITS:
        found[f"share_{limit}"] = ratio(goodput(move), move.limits.get(limit))
    return found | cpu_figures(move, gib) | work_figures(move)


def goodput(move):
    """Of rounds with the guest running; of several guests all their bytes over the longest of their times."""
    if len(move.reports) == 1:
        return number(move.reports[0], "goodput_bytes_per_s")
    rounds = [[entry for entry in entries(report, "rounds") if entry.get("paused") is not True]
              for report in move.reports]
    took = most(total(number(entry, "ms") for entry in running) for running in rounds)
    return ratio(total(number(entry, "bytes") for running in rounds for entry in running), took, 1e3)


def worst_report(move):
    """That of the guest with the longest downtime."""
    return max(move.reports, key=lambda report: number(report, "downtime_ms") or 0)


def cpu_figures(move, gib):
    """CPU seconds per GiB of guest memory sent: of whole hosts by kind, and of wander by role; its own leaves out the
    guest's. On one machine nobody can tell which end the rest belongs to."""
    one_machine = bool(move.document.get("one_machine"))
    found = {}
    for side in SIDES:
        kinds = {kind: number(move.document, "host_cpu", side, kind) for kind in CPU_KINDS}
        roles = {role: total(number(report, "cpu", side, f"{role}_s") for report in move.reports) for role in ROLES}
        host = total(kinds.values())
        found[f"{side}_host_cpu"] = ratio(host, gib)
        found |= {f"{side}_{kind}_cpu": ratio(value, gib) for kind, value in kinds.items()}
        found |= {f"{side}_{role}_cpu": ratio(value, gib) for role, value in roles.items()}
        found[f"{side}_own_cpu"] = ratio(total(roles[role] for role in OWN), gib)
        found[f"{side}_machine_cpu"] = ratio(number(move.document, "host_cpu", side, "machine"), gib)
        known = total(roles.values())
        rest = max(0.0, host - known) if None not in (host, known) and not one_machine else None
        found[f"{side}_rest_cpu"] = ratio(rest, gib)
    found["both_hosts_cpu"] = total(found[f"{side}_host_cpu"] for side in (SIDES[:1] if one_machine else SIDES))
    found["both_own_cpu"] = total(found[f"{side}_own_cpu"] for side in SIDES)
    return found


def work_figures(move):
    """The guest's own throughput during and after the move, as a share of before."""
    speeds = {when: total(number(guest, "work", f"{when}_pages_per_s") for guest in move.guests)
              for when in ("before", "during", "after")}
    return {"work_during": ratio(speeds["during"], speeds["before"]),
            "work_after": ratio(speeds["after"], speeds["before"])}


FIGURES = {
    **TITLES,
    **MORE_TITLES,
    **{f"downtime_{part}_ms": f"downtime: {part.replace('_', ' ')}, ms" for part in PARTS},
    **{f"{side}_{kind}_cpu": f"CPU {side} host, {kind}, s/GiB" for side in SIDES for kind in CPU_KINDS},
    **{f"{side}_{role}_cpu": f"CPU {side} wander, {role}, s/GiB" for side in SIDES for role in ROLES},
    **{f"{side}_rest_cpu": f"CPU {side} host, all but wander and guest, s/GiB" for side in SIDES},
    **{f"{side}_machine_cpu": f"CPU {side} host, as the machine under it counts, s/GiB" for side in SIDES},
    **{f"{side}_own_cpu": f"CPU {side} wander's own, s/GiB" for side in SIDES},
    "machine_others": "taken by others of the machine under the hosts, from prediction to arrival, share",
}


# --- the limits of the link


def limits_of(document, boots):
    """{tool: bytes/s}: what was measured in this boot, on this link; in this direction where that is known."""
    boot = next((boot for boot in boots if text(boot, "id") == text(document, "boot")), None)
    way = f"{text(document, 'source')}->{text(document, 'destination')}"
    found = {}
    for limit in entries(boot, "limits"):
        tool, speed = text(limit, "tool"), number(limit, "bytes_per_s")
        if tool is None or not speed or not same_link(limit, document):
            continue
        ours = (text(limit, "direction") or "").replace(" ", "") == way
        found[tool] = max(found.get(tool, (False, 0)), (ours, speed))
    return {tool: speed for tool, (_, speed) in found.items()}


def same_link(limit, document):
    """By the link that was in force when the guest moved, where that was written down; else by what was asked for."""
    here = document.get("link")
    if isinstance(here, dict):
        return text(limit, "link") == text(here, "shape") and \
            (limit.get("mtu") is None or here.get("mtu") is None or limit["mtu"] == here["mtu"])
    settings = document.get("settings")
    if not isinstance(settings, dict):
        return True
    return (text(limit, "link") or "") == (text(settings, "link") or "") and \
        (limit.get("mtu") is None or settings.get("mtu") is None or limit["mtu"] == settings["mtu"])


# --- the folder


def parse(path):
    """What JSON does not know (NaN, Infinity) counts as null."""
    return json.loads(path.read_text(), parse_constant=lambda _: None)


class Folder:
    """All that testbed/compare wrote: the comparison, its moves in order, and what could not be read."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.comparison = read_comparison(self.directory)
        self.troubles, self.moves = [], []
        self.boots = entries(self.comparison, "boots")
        settings = {(text(scenario, "name"), text(point, "id")): point.get("settings")
                    for scenario in entries(self.comparison, "scenarios") for point in entries(scenario, "points")}
        for path in sorted(self.directory.glob("moves/*/*/*/*.json")):
            self.add(path.relative_to(self.directory), settings)
        self.moves.sort(key=lambda move: number(move.document, "order") or 0)

    def add(self, path, settings):
        try:
            document = parse(self.directory / path)
        except (OSError, ValueError, RecursionError) as error:
            self.troubles.append(f"{path} cannot be read, and is left out: {error}")
            return
        if not isinstance(document, dict):
            self.troubles.append(f"{path} is no move, and is left out: expected a table")
            return
        _, scenario, point, contender = path.parts[:4]
        if (scenario, point) not in settings:
            self.troubles.append(f"{path} belongs to no point of this comparison, and is left out")
            return
        document["settings"] = settings[scenario, point]
        document["one_machine"] = self.comparison.get("one_machine") is True
        self.moves.append(Move(path, document, self.boots))


def read_comparison(directory):
    path = directory / "comparison.json"
    try:
        document = parse(path)
    except (OSError, ValueError, RecursionError) as error:
        raise Failure(f"no report can be made of {directory}: {path.name} cannot be read: {error}. Name the folder "
                      f"that testbed/compare wrote (--out)") from None
    if not isinstance(document, dict) or document.get("schema") != 1:
        raise Failure(f"no report can be made of {directory}: {path.name} is not a comparison of schema 1")
    return document
