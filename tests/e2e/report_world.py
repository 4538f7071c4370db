"""A comparison's folder made for a test, its report, and the report read as a browser would."""

import contextlib
import functools
import html.parser
import json
import tempfile
from pathlib import Path
from urllib.parse import unquote

from hosts import expect

import report
import report_data

assert hasattr(report, "write"), "this is not testbed/report"
VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """What a browser would see: elements with their attributes, the text of figures, links by row; and its defects."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.defects, self.figures, self.rows = [], [], [], [], []
        self.feed(text)
        self.defects += [f"<{name}> is never closed" for name in self.open]

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.elements.append((name, attributes))
        if name not in VOID:
            self.open.append(name)
        if name == "tr":
            self.rows.append({"figures": [], "links": []})
        if "data-figure" in attributes:
            self.figures.append(attributes | {"text": "", "small": ""})
            if name == "td":
                self.rows[-1]["figures"].append(self.figures[-1])
        if name == "a" and self.rows:
            self.rows[-1]["links"].append(unquote(attributes["href"]))

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if "data-figure" in dict(attributes):
            self.figures.append(dict(attributes) | {"text": "", "small": ""})

    def handle_endtag(self, name):
        if not self.open or self.open.pop() != name:
            self.defects.append(f"</{name}> closes nothing that is open")

    def handle_data(self, text):
        if self.figures and self.open and self.open[-1] == "td":
            self.figures[-1]["text"] += text
        elif self.figures and self.open[-2:] == ["td", "i"]:
            self.figures[-1]["small"] += text


@functools.cache
def complete():
    return World()


def everything():
    """The world with all there is, made once; nobody changes it. Its folder goes with the program."""
    return contextlib.nullcontext(complete())


class World:
    """A comparison in a folder of its own, and its report; `make` fills the folder and gives its document."""

    def __init__(self, make=report_data.make):
        self.folder = tempfile.TemporaryDirectory(prefix="wander-report-")
        self.out = Path(self.folder.name)
        self.document = make(self.out)
        self.path = report.write(self.out)
        self.text = self.path.read_text()
        self.page = Page(self.text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.folder.cleanup()

    def limits(self, move, scenario, point):
        """What was measured in its boot over its link."""
        settings = next(one["settings"] for entry in self.document["scenarios"] if entry["name"] == scenario
                        for one in entry["points"] if one["id"] == point)
        link = move.get("link") or {"shape": settings["link"], "mtu": settings["mtu"]}
        return [limit for boot in self.document["boots"] if boot["id"] == move["boot"] for limit in boot["limits"]
                if limit["link"] == link["shape"] and link["mtu"] in (None, limit["mtu"])]

    @functools.cache
    def moves(self, key, counted=True):
        found = [json.loads(path.read_text()) for path in sorted((self.out / "moves" / key).glob("*.json"))]
        scenario, point, _ = key.split("/")
        for move in found:
            move["one_machine"] = self.document.get("one_machine", False)
            move["limits"] = self.limits(move, scenario, point)
        return [move for move in found if not counted or arrived(move)]


def raw_reports(move):
    return [guest["report"] for guest in move["guests"]] if "guests" in move else [move["report"]]


def arrived(move):
    reports = raw_reports(move)
    return (not move["warm_up"] and move["failed"] is None and None not in reports
            and all(one["result"] == "completed" for one in reports))


def check_harmless(world):
    names = [name for name, _ in world.page.elements]
    expect(names.count("script") == 1 and "img" not in names, "expected text from files never to become an element")
    loose = [key for _, attributes in world.page.elements for key in attributes if key.startswith("on")]
    expect(not loose, f"expected no handlers; got {loose[:3]}")
    expect(not world.page.defects, f"expected well-formed markup; {world.page.defects[:3]}")
    ids = [attributes["id"] for _, attributes in world.page.elements if "id" in attributes]
    expect(len(ids) == len(set(ids)), "expected every id once")
    sizes = [attributes for name, attributes in world.page.elements if name == "svg" and not
             (float(attributes["width"]) > 0 and float(attributes["height"]) > 0 and "viewbox" in attributes)]
    expect(not sizes, f"expected every drawing to have a size; got {sizes[:1]}")
    places = [value for name, attributes in world.page.elements if name in ("path", "line", "circle", "rect", "text",
                                                                            "polyline")
              for key, value in attributes.items() if key in ("x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "d",
                                                              "width", "points")]
    odd = [value for value in places if "nan" in value or "inf" in value]
    expect(not odd, f"expected every mark to have a place; got {odd[:3]}")


def alone(*made, **more):
    """A world of some scenarios only."""
    def make(out):
        maker = report_data.Maker(out)
        document = report_data.comparison([one(maker) for one in made], **more)
        report_data.save(out, document)
        return document
    return make


def bare(name="bare", contenders=None, **how):
    def one(maker):
        points = [report_data.point("p", how.get("x"))]
        for repeat in range(1, how.get("repeats", 0) + 1):
            for contender in contenders or report_data.CONTENDERS:
                maker.move(name, "p", contender, repeat, **how.get("move", {}))
        return report_data.scenario(name, name, points, contenders, {"label": "x"} if "x" in how else None)
    return one
