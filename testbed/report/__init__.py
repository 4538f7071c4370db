"""The report of a comparison: from the folder that testbed/compare writes to report.html and moves.csv in it. It can be
made again from the raw data at any time."""

import atomic_file

from .moves import Folder
from .page import page
from .study import Study
from .table import as_csv


def write(out_directory):
    """Makes both files anew; the path of report.html. A Failure when there is no comparison in the folder."""
    folder = Folder(out_directory)
    atomic_file.write(folder.directory / "moves.csv", as_csv(folder.moves))
    path = folder.directory / "report.html"
    atomic_file.write(path, page(Study(folder)))
    return path
