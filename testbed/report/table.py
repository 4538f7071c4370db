"""All migrations of a comparison as one table for other programs: a line each, a column for each figure."""

import csv
import io

from .moves import FIGURES, text

ABOUT = ("scenario", "point", "contender", "transport", "repeat", "warm_up", "boot", "order", "began", "source",
         "destination", "failed")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def harmless(value):
    """Text that no spreadsheet takes for a formula."""
    return f"'{value}" if value.startswith(FORMULA) else value


def line(move):
    about = [getattr(move, key) if key in ("scenario", "point", "contender") else text(move.document, key) or ""
             for key in ABOUT]
    converged = {True: "yes", False: "no", None: ""}[move.converged()]
    figures = ["" if move.figures.get(key) is None else repr(move.figures[key]) for key in FIGURES]
    return [*(harmless(" ".join(value.split())) for value in about), converged, *figures, move.path.as_posix()]


def as_csv(moves):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*ABOUT, "converged", *FIGURES, "file"])
    writer.writerows(line(move) for move in moves)
    return out.getvalue()
