"""What the moves of a comparison show: medians with intervals at each point, how contenders differ, and how good the
predictions were."""

import statistics
from urllib.parse import quote

import comparison

from .moves import FIGURES, entries, get, number, out_of_time, switchover, text
from .svg import times

JUDGED = tuple(comparison.LESS)
# How far off a prediction may be: a share of what came, or so many ms if that is more.
GOALS = {("total", "median"): (0.05, 0.0), ("total", "p95"): (0.15, 0.0),
         ("downtime", "median"): (0.10, 5.0), ("downtime", "p95"): (0.25, 10.0)}
PLACES = {"median": 0.5, "p95": 0.95}
REASON = 200  # characters of why there is no prediction
SPREAD_ROOM = 1.5  # of the spread of repeats: a prediction of total time need not be better than that in the median


class Stat:
    """One figure at one point: all values, their median, its interval, and the files they come from."""

    def __init__(self, key, moves):
        known = [move for move in moves if move.figures.get(key) is not None]
        self.key, self.moves = key, known
        self.values = [move.figures[key] for move in known]
        self.interval = comparison.median_interval(self.values)
        self.outliers = comparison.outliers(self.values)

    def __bool__(self):
        return self.interval is not None

    @property
    def median(self):
        return self.interval["median"]

    def quartiles(self):
        return comparison.quantile(self.values, 0.25), comparison.quantile(self.values, 0.75)

    def typical(self):
        """The run in the middle."""
        return next(move for move in self.moves if move.figures[self.key] == statistics.median_low(self.values))


class Group:
    """All runs of a contender at a point."""

    def __init__(self, scenario, point, contender, moves):
        self.scenario, self.point, self.contender, self.moves = scenario, point, contender, moves
        self.counted = [move for move in moves if move.counts]
        self.tried = [move for move in moves if not move.warm_up]
        self.key = f"{scenario['name']}/{point['id']}/{contender['name']}"
        self.stats = {}

    def stat(self, key):
        if key not in self.stats:
            self.stats[key] = Stat(key, self.counted)
        return self.stats[key]

    def unconverged(self):
        return [move for move in self.tried if move.converged() is False]

    def given_up(self):
        return [move for move in self.unconverged() if not move.completed()]

    def failed(self):
        return [move for move in self.tried if not move.counts and move.converged() is None]


class Study:
    def __init__(self, folder):
        self.folder, self.document = folder, folder.comparison
        self.scenarios = [scenario_of(entry) | {"place": f"scenario-{place}"}
                          for place, entry in enumerate(entries(self.document, "scenarios"), 1)]
        found = {}
        for move in folder.moves:
            found.setdefault(move.key(), []).append(move)
        self.groups = {}
        for scenario in self.scenarios:
            for point in scenario["points"]:
                for contender in scenario["contenders"]:
                    key = scenario["name"], point["id"], contender["name"]
                    self.groups[key] = Group(scenario, point, contender, found.pop(key, []))
        self.unknown = sorted({"/".join(key) for key in found})

    def group(self, scenario, point, contender):
        return self.groups[scenario["name"], point["id"], contender["name"]]

    def of(self, scenario):
        return [self.group(scenario, point, contender) for point in scenario["points"]
                for contender in scenario["contenders"]]

    def differences(self, key):
        """[(first, other, comparison)] of every point: each contender against the first of its scenario. The
        comparison is None where none can be made: a side has no runs, or gave some up."""
        for scenario in self.scenarios:
            for point in scenario["points"]:
                first, *others = (self.group(scenario, point, contender) for contender in scenario["contenders"])
                for other in others:
                    yield first, other, difference(first, other, key)


def difference(first, other, key):
    """comparison.compare_medians of both, and `overlap`: whether the intervals of the two medians do."""
    if first.given_up() or other.given_up():
        return None
    values = [[(move.boot, move.figures.get(key)) for move in group.counted] for group in (other, first)]
    result = comparison.compare_medians(*values)
    if result is None:
        return None
    one, two = (group.stat(key).interval for group in (first, other))
    return result | {"overlap": one["low"] <= two["high"] and two["low"] <= one["high"]}


def scenario_of(entry):
    """A scenario with all that a report asks of it there, whatever the file lacks."""
    axis = entry.get("axis") if isinstance(entry.get("axis"), dict) else None
    points = [{"id": text(point, "id") or "?", "label": text(point, "label") or text(point, "id") or "?",
               "x": number(point, "x"), "settings": point.get("settings") or {}} for point in entries(entry, "points")]
    contenders = [{"name": text(contender, "name") or "?", "transport": text(contender, "transport") or "?",
                   "options": contender.get("options") or []} for contender in entries(entry, "contenders")]
    plots = [text(plot, "y") for plot in entries(entry, "plots")]
    return {"name": text(entry, "name") or "?", "title": text(entry, "title") or text(entry, "name") or "?",
            "question": text(entry, "question") or "", "points": points,
            "contenders": contenders or [{"name": "?", "transport": "?", "options": []}],
            "axis": axis if axis and points and all(point["x"] is not None for point in points) else None,
            "max_repeats": number(entry, "max_repeats"),
            "plots": [plot for plot in plots if plot in FIGURES] or ["total_s", "downtime_ms"],
            "published": entries(entry, "published"), "scale": text(entry, "scale"), "text": text(entry, "text") or ""}


def address(move):
    """Of a move's file, relative to the report."""
    return quote(move.path.as_posix())


# --- verdicts


def tally(differences):
    """{(first's name, other's name): {"less": [...], "more": [...], "none": [...], "open": [...]}} of comparisons."""
    found = {}
    for first, other, result in differences:
        pair = found.setdefault((first.contender["name"], other.contender["name"]),
                                {"less": [], "more": [], "none": [], "open": []})
        if result is None or not result["enough"]:
            pair["open"].append(result)
        else:
            pair["none" if not result["shown"] else "less" if result["ratio"] < 1 else "more"].append(result)
    return found


def ratios(found):
    low, high = (end(result["ratio"] for result in found) for end in (min, max))
    words = f"{times(low)} times" if times(low) == times(high) else f"{times(low)} to {times(high)} times"
    overlaps = sum(result["overlap"] for result in found)
    many = "there" if len(found) == 1 else f"at {overlaps} of them"
    return f"{words}; the medians' own intervals overlap {many}" if overlaps else words


def points_in_words(count):
    return f"{count} point{'' if count == 1 else 's'}"


def sentence(key, first, other, counts):
    """What all points together show about one figure."""
    what, more, less = comparison.LESS[key]
    parts = [f"{word} at {points_in_words(len(counts[side]))} ({ratios(counts[side])})"
             for side, word in (("less", less), ("more", more)) if counts[side]]
    if counts["none"]:
        parts.append(f"no difference shown at {points_in_words(len(counts['none']))}")
    if counts["open"]:
        parts.append(f"not compared at {points_in_words(len(counts['open']))} (too few runs, or some were given up)")
    return f"{what[0].upper()}{what[1:]}, {other} against {first}: {'; '.join(parts)}."


def main_pair(study):
    """The names that are compared at most points, or None."""
    counts = {}
    for first, other, _ in study.differences(JUDGED[0]):
        pair = first.contender["name"], other.contender["name"]
        counts[pair] = counts.get(pair, 0) + 1
    return max(counts, key=counts.get, default=None)


def verdicts(study):
    """Sentences about the pair that is compared most, and about all others."""
    main, others = [], []
    for key in JUDGED:
        for pair, counts in tally(study.differences(key)).items():
            (main if pair == main_pair(study) else others).append(sentence(key, *pair, counts))
    return main, others


# --- predictions


class Prediction:
    """What was foretold of one guest's move just before it, and what came."""

    def __init__(self, move, guest, foretold):
        report = guest["report"]
        self.move, self.foretold = move, foretold
        self.converged = not (get(switchover(report), "forced") is True or out_of_time(report))
        self.completed = report.get("result", "completed") == "completed" and move.failed is None
        self.promised = foretold.get("converges") is True and foretold.get("forced") is not True
        self.right = self.promised == self.converged
        both = self.promised and self.converged and self.completed
        self.total, self.downtime = (errors(foretold, report, key) if both else None for key in ("total", "downtime"))
        self.measured = {key: number(report, f"{key}_ms") for key in ("total", "downtime")}


def errors(foretold, report, key):
    """(foretold ms, measured ms, relative error), or None when one is not known."""
    told, came = number(foretold, f"{key}_ms"), number(report, f"{key}_ms")
    return (told, came, (told - came) / came) if told is not None and came else None


def foretold_by(document, transport):
    path = next((path for path in entries(document, "prediction", "paths") if path.get("transport") == transport), None)
    found = get(path, "prediction")
    return found if isinstance(found, dict) and isinstance(found.get("converges"), bool) else None


def foretold_moves(study):
    """(move, guest, what was foretold of it or None) of every move that was tried; each of several guests by itself."""
    for group in study.groups.values():
        for move in group.tried:
            for guest in move.guests:
                yield move, guest, foretold_by(guest, text(guest, "transport") or move.transport)


def predictions(study):
    """Those of all moves that count, or that were given up at their time limit."""
    return [Prediction(move, guest, foretold) for move, guest, foretold in foretold_moves(study)
            if foretold and isinstance(guest.get("report"), dict) and (move.counts or move.converged() is False)]


def unpredicted(study):
    """{why: how many moves} of those of which nothing was foretold, and how many moves there are at all."""
    reasons, tried = {}, 0
    for move, guest, foretold in foretold_moves(study):
        tried += 1
        if foretold is None:
            why = text(guest, "prediction_error") or text(move.document, "prediction_error") or "no reason is told"
            why = " ".join(why.split())[:REASON]
            reasons[why] = reasons.get(why, 0) + 1
    return reasons, tried


def spread_of_repeats(study, calm=False):
    """How far total times of one thing lie apart by themselves, which no prediction beats: the median over all groups
    of converged runs in one boot; with `calm` of those that nothing disturbed. None when nothing was repeated."""
    boots = {}
    for group in study.groups.values():
        for move in group.counted:
            if not (calm and move.disturbed()) and move.converged() and move.figures.get("total_s"):
                boots.setdefault((group.key, move.boot), []).append(move.figures["total_s"])
    spreads = [half_range(values) for values in boots.values() if len(values) > 1]
    return statistics.median(spreads) if spreads else None


def half_range(values):
    """Half the range that holds the middle 90 %, over the median; of few values half of all their range."""
    low, high = (comparison.quantile(values, share) for share in
                 ((0.05, 0.95) if len(values) >= comparison.RANGE_BELOW else (0, 1)))
    return (high - low) / 2 / statistics.median(values)


def accuracy(found, key, stat, spread):
    """How far off the predictions of one time were, and whether that is near enough: None when there are none."""
    known = [getattr(entry, key) for entry in found if getattr(entry, key)]
    if not known:
        return None
    share, ms = GOALS[key, stat]
    if (key, stat) == ("total", "median"):
        share = max(share, SPREAD_ROOM * (spread or 0.0))

    def place(values):
        return comparison.quantile(list(values), PLACES[stat])

    used = place(abs(told - came) / max(share * came, ms) for told, came, _ in known)
    return {"count": len(known), "error": place(abs(error) for _, _, error in known), "share": share, "ms": ms,
            "error_ms": place(abs(told - came) for told, came, _ in known), "used": used, "met": used <= 1}
