"""What was foretold of the migrations, beside what came: a part of the report."""

from . import charts, tables
from .elements import figure, folded, paragraph, section
from .markup import el
from .moves import number, text
from .study import accuracy, address, predictions, spread_of_repeats
from .svg import plain


def prediction_sentence(study):
    found = predictions(study)
    spread = spread_of_repeats(study)
    total, right = accuracy(found, "total", spread), sum(entry.right for entry in found)
    if total is None:
        return f"Whether the move would converge was foretold rightly in {right} of {len(found)} migrations."
    return (f"Predictions of total time, made before the move, were off by {total['median']:.1%} in the median and "
            f"{total['p95']:.1%} at the 95th percentile of {total['count']}; whether a move would converge was "
            f"foretold rightly in {right} of {len(found)}.")


def prediction_section(study):
    found = predictions(study)
    head = "prediction", "Prediction and measurement"
    if not found:
        return section(*head, paragraph("No migration has a prediction to compare with."))
    transports = list(dict.fromkeys(entry.move.transport for entry in found))
    spread = spread_of_repeats(study)
    drawings = [figure(charts.prediction_chart(found, key, transports), name, "every migration; the band is ±15 %")
                for key, name in (("total", "Total time"), ("downtime", "Downtime"))]
    return section(*head, paragraph(prediction_sentence(study)), charts.key_to_marks(transports),
                 el("div", *drawings, class_="plots"), accuracy_table(found, spread), convergence_table(found),
                 folded(f"All {len(found)} predictions", prediction_table(found)))


def accuracy_table(found, spread):
    rows = []
    for key, name, limits in (("total", "total time", ""), ("downtime", "downtime", "; or 5 ms, 10 ms")):
        result = accuracy(found, key, spread)
        if result is None:
            continue

        def cell(stat, met, goal, result=result, key=key):
            return el("td", f"{result[stat]:.1%}", el("i", f"{plain(result[stat + '_ms'])} ms"),
                      el("i", f"goal {goal:.0%}: {'met' if met else 'missed'}"), class_=None if met else "bad",
                      data_figure=f"prediction_{key}", data_stat=stat, data_key="all", data_value=repr(result[stat]))

        rows.append(tables.row(name + limits, str(result["count"]),
                               cell("median", result["middle_met"], result["middle_goal"]),
                               cell("p95", result["tail_met"], result["tail_goal"])))
    if not rows:
        return None
    return tables.table(["", "predictions", "error in the median", "at the 95th percentile"], rows,
                        f"Repeats of one point spread by {spread:.1%} themselves (half the distance of their "
                        f"quartiles).")


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
