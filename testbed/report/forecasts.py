"""What was foretold of the migrations, beside what came: a part of the report."""

import comparison

from . import charts, tables
from .elements import bullets, figure, folded, paragraph, section
from .markup import el
from .moves import number, text
from .study import GOALS, SPREAD_ROOM, accuracy, address, predictions, spread_of_repeats, unpredicted
from .svg import plain

NAMES = {"total": "Total time", "downtime": "Downtime"}


def prediction_sentence(study):
    found = predictions(study)
    middle, tail = (accuracy(found, "total", stat, None) for stat in ("median", "p95"))
    right = sum(entry.right for entry in found)
    right = f"whether a move would converge was foretold rightly in {right} of {len(found)}."
    if middle is None:
        return right[0].upper() + right[1:]
    return (f"Predictions of total time, made before the move, were off by {middle['error']:.1%} in the median and "
            f"{tail['error']:.1%} at the 95th percentile of {middle['count']}; {right}")


def prediction_section(study):
    found = predictions(study)
    head = "prediction", "Prediction and measurement"
    if not found:
        return section(*head, paragraph("No migration has a prediction to compare with."), *left_out(study, found))
    transports = list(dict.fromkeys(entry.move.transport for entry in found))
    drawings = [figure(charts.prediction_chart(found, key, transports), name, "every migration; the band is ±15 %")
                for key, name in NAMES.items()]
    return section(*head, paragraph(prediction_sentence(study)), charts.key_to_marks(transports),
                 *left_out(study, found), el("div", *drawings, class_="plots"),
                 *goals_tables(study, found),
                 convergence_table(found),
                 folded(f"All {len(found)} predictions", prediction_table(found)))


def left_out(study, found):
    """What no error can be told of, which is likely to be the hard moves."""
    reasons, tried = unpredicted(study)
    if reasons:
        yield paragraph(f"{sum(reasons.values())} of {tried} moves have no prediction:")
        yield bullets([f"{why} ({count})" for why, count in sorted(reasons.items(), key=lambda one: -one[1])])
    unlike = sum(entry.promised and not entry.converged for entry in found)
    if unlike:
        yield paragraph(f"{unlike} of {len(found)} were said to converge and did not. They have no error of time, and "
                        f"count in the table of convergence only.")


def goals_tables(study, found):
    """What predictions shall reach, and whether they did: of all moves, and of those that nothing disturbed."""
    spread = spread_of_repeats(study)
    yield goals_table("all", found, spread, f"Goals of prediction. {spread_in_words(spread)}")
    calm = [entry for entry in found if not entry.move.disturbed()]
    if calm and len(calm) < len(found):
        spread = spread_of_repeats(study, calm=True)
        known = "not known" if spread is None else f"{spread:.1%}"
        yield goals_table("undisturbed", calm, spread,
                          f"The same without the {len(found) - len(calm)} moves during which, or during the prediction "
                          f"before which, others than the hosts took {comparison.DISTURBED:.0%} or more of the machine "
                          f"that the hosts run on. Without them the spread of repeats is {known}.")


def goals_table(which, found, spread, caption):
    rows = [goal_row(which, key, stat, accuracy(found, key, stat, spread)) for key, stat in GOALS]
    return tables.table(["goal", "of", "allowed", "off by", "that is, of what is allowed", ""],
                        [*filter(None, rows), refusals_row(found)], caption, words=(2,))


def spread_in_words(spread):
    known = "is not known, for nothing was repeated" if spread is None else f"is {spread:.1%}"
    return (f"The spread of repeats {known}: of total times of one group in one boot half the range that holds the "
            f"middle 90 % (of fewer than {comparison.RANGE_BELOW} runs: half of all their range), over their median; "
            f"of all groups the median.")


def goal_row(which, key, stat, result):
    if result is None:
        return None
    share, ms = f"{result['share']:.1%}".replace(".0%", "%"), f" or {result['ms']:g} ms, whichever is more"
    allowed = f"{share}{ms if result['ms'] else ''}"
    if (key, stat) == ("total", "median"):
        allowed += f" (5% or {SPREAD_ROOM:g} × the spread of repeats, whichever is more)"
    name = f"{NAMES[key]}, {'in the median' if stat == 'median' else 'at the 95th percentile'}"
    return tables.row(name, str(result["count"]), el("td", allowed, class_="words"),
                      el("td", f"{result['error']:.1%}", el("i", f"{plain(result['error_ms'])} ms"),
                         data_figure=f"prediction_{key}", data_stat=stat, data_key=which,
                         data_value=repr(result["error"])),
                      el("td", f"{result['used']:.0%}", data_figure=f"prediction_{key}_used", data_stat=stat,
                         data_key=which, data_value=repr(result["used"])), met_cell(result["met"]))


def refusals_row(found):
    """Of those that were said not to converge."""
    refused = [entry for entry in found if not entry.promised]
    wrong = sum(not entry.right for entry in refused)
    return tables.row("every “will not converge” right", str(len(refused)), el("td", "none wrong", class_="words"),
                      f"{wrong} wrong", "", met_cell(wrong == 0) if refused else el("td", "none was said"))


def met_cell(met):
    return el("td", "met" if met else "missed", class_=None if met else "bad")


def convergence_table(found):
    def cell(promised, came):
        many = sum(entry.promised == promised and entry.converged == came for entry in found)
        return el("td", str(many), class_="bad" if many and promised != came else None, data_figure="convergence",
                  data_stat=f"{promised}-{came}".lower(), data_key="all", data_value=str(many))

    rows = [tables.row(name, cell(promised, True), cell(promised, False))
            for name, promised in (("foretold: converges", True), ("foretold: does not", False))]
    return tables.table(["", "converged", "did not"], rows, "Whether a move would converge: foretold, and what came.")


def prediction_table(found):
    rows = [tables.row(el("a", "/".join((*entry.move.key(), entry.move.name)), href=address(entry.move)),
                       *time_cells(entry, "total"), *time_cells(entry, "downtime"), verdict_cell(entry))
            for entry in found]
    return tables.table(["migration", "total foretold, ms", "measured", "error", "downtime foretold, ms", "measured",
                         "error", "convergence"], rows, words=(7,))


def time_cells(entry, key):
    """What was foretold with its interval, what was measured, and how far apart the two are."""
    told, low, high = (number(entry.foretold, f"{key}{end}_ms") for end in ("", "_low", "_high"))
    error = getattr(entry, key)
    return [el("td", plain(told), el("i", f"{plain(low)} – {plain(high)}") if low is not None else None),
            plain(entry.measured[key]),
            el("td", f"{error[2]:+.1%}" if error else "–", data_figure=f"prediction_{key}", data_stat="error",
               data_key=entry.move.path.as_posix(), data_value=repr(error[2]) if error else "")]


def verdict_cell(entry):
    verdict, why = "converges" if entry.promised else "will not converge", text(entry.foretold, "why")
    if not entry.promised and why:
        verdict += f": {why}"
    return el("td", f"{verdict}; {'right' if entry.right else 'wrong'}", class_="words" if entry.right else "words bad")
