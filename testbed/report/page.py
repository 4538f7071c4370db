"""The page as a whole: one file that needs nothing else."""

from pathlib import Path

from . import sections
from .forecasts import prediction_section
from .markup import Markup, el, join

STYLE = Path(__file__).with_name("style.css")
# A printed page cannot be unfolded.
SCRIPT = ("addEventListener('beforeprint', function () { document.querySelectorAll('details').forEach(function (d) "
          "{ d.open = true; }); });")


def page(study):
    body = join([sections.top(study), sections.contents(study), sections.glance(study),
                 *(sections.scenario_section(study, scenario) for scenario in study.scenarios),
                 prediction_section(study), sections.counters_section(study), sections.troubles_section(study),
                 sections.method_section(study), sections.repeat_section(study), sections.raw_section(study)])
    head = join([el("meta", charset="utf-8"),
                 el("meta", name="viewport", content="width=device-width, initial-scale=1"),
                 el("title", sections.headline(study)), el("style", Markup(STYLE.read_text()))])
    document = el("html", el("head", head), el("body", body, el("script", Markup(SCRIPT))), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"
