"""Scenario files: what testbed/compare compares. A TOML file says which guest moves over which link with which options,
over which transports, and what is varied; testbed/scenarios/README.md describes every key. A file is checked before
anything is started: one message that names the file and the key."""

import re
import tomllib
from pathlib import Path

import comparison
from hosts import Failure
from virtual import shaping
from virtual.packages import Trouble

HERE = Path(__file__).resolve().parent / "scenarios"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SIZE = re.compile(r"\d+(\.\d+)?([KMGT](i?B)?)?")
TRANSPORTS = ("tcp", "rdma")
MOST_GUESTS, MOST_VCPUS, LEAST_MTU, MOST_MTU = 64, 64, 1280, 9000
KEPT = 16 << 20  # bytes of a lab guest's memory that its workload does not get: LAB_WORKLOAD_START
WORKLOAD = {"touch", "content", "hot", "at", "rate", "pattern", "hot-share", "window", "seed"}
# Of wander migrate. How it is reported (--json) and for how long it is waited is the comparison's business.
OPTIONS = {"downtime-limit", "max-bandwidth", "lanes", "throttle", "max-time", "on-timeout", "verify", "rdma-op",
           "rdma-register", "rdma-pin-limit", "dscp", "tracker", "filter"}
WITHOUT_VALUE = {"verify"}
DEFAULT_CONTENDERS = [{"name": name, "transport": name} for name in TRANSPORTS]
DEFAULT_PLOTS = ["total_s", "downtime_ms"]


class Wrong(Exception):
    """(key, what is wrong with it)."""


# --- checks of one value


def need(holds, key, text):
    if not holds:
        raise Wrong(key, text)


def text(value, key):
    need(isinstance(value, str) and value.strip(), key, f"expected text; got {value!r}")
    return value.strip()


def name(value, key):
    need(isinstance(value, str) and NAME.fullmatch(value), key,
         f"expected a name of letters, digits, '.', '_' and '-'; got {value!r}")
    return value


def number(value, key):
    need(isinstance(value, (int, float)) and not isinstance(value, bool), key, f"expected a number; got {value!r}")
    return value


def count(most, least=1):
    def check(value, key):
        need(isinstance(value, int) and not isinstance(value, bool) and least <= value <= most, key,
             f"expected a whole number from {least} to {most}; got {value!r}")
        return value
    return check


def size(value, key):
    need(isinstance(value, str) and SIZE.fullmatch(value), key, f"expected a size like \"64M\"; got {value!r}")
    return value


def bytes_of(value):
    """Of a size that was checked."""
    digits, unit = re.fullmatch(r"([\d.]+)([KMGT]?)(?:i?B)?", value).groups()
    return float(digits) * 1024 ** " KMGT".index(unit or " ")


def one_of(*words):
    def check(value, key):
        need(value in words, key, f"expected {' or '.join(words)}; got {value!r}")
        return value
    return check


def workload(value, key):
    need(isinstance(value, str), key, f"expected text like \"touch=48M,hot=16M,rate=2000\"; got {value!r}")
    for part in filter(None, value.split(",")):
        word, _, what = part.partition("=")
        need(word in WORKLOAD and what, key, f"'{part}' is nothing that wander lab knows (wander lab --help)")
    return value


def options(value, key):
    need(isinstance(value, list), key, f"expected a list like [\"--lanes=4\"]; got {value!r}")
    for option in value:
        found = re.fullmatch(r"--([a-z-]+)(=\S+)?", option) if isinstance(option, str) else None
        need(found and found.group(1) in OPTIONS, key, f"{option!r} is not an option of wander migrate that can be "
             f"compared; there are, each as one word like \"--lanes=4\": {', '.join(sorted(OPTIONS))}")
        need((found.group(2) is None) == (found.group(1) in WITHOUT_VALUE), key, f"{option!r} "
             f"{'takes no value' if found.group(2) else 'lacks a value: the next option would be taken for it'}")
    return value


def shape(property):
    def check(value, key):
        try:
            need(isinstance(value, str) and "," not in value, key, f"expected text like \"100M\"; got {value!r}")
            shaping.parse(f"{property}={value}")
        except (Trouble, ValueError) as trouble:
            raise Wrong(key, str(trouble)) from None
        return value
    return check


def listed(check):
    def checked(value, key):
        need(isinstance(value, list), key, f"expected a list; got {value!r}")
        return [check(entry, f"{key}[{index}]") for index, entry in enumerate(value)]
    return checked


def figure(value, key):
    return one_of(*comparison.TITLES, *comparison.MORE_TITLES)(value, key)


def table(known, required=()):
    """A check of a table whose keys are all known, each with a check of its own."""
    def check(value, key):
        need(isinstance(value, dict), key, f"expected a table; got {value!r}")
        for inner in value:
            need(inner in known, f"{key}.{inner}".lstrip("."), f"there is no such key; there are {', '.join(known)}")
        for inner in required:
            need(inner in value, f"{key}.{inner}".lstrip("."), "it is missing")
        return {inner: known[inner](entry, f"{key}.{inner}".lstrip(".")) for inner, entry in value.items()}
    return check


GUEST = table({"memory": size, "workload": workload, "vcpus": count(MOST_VCPUS), "count": count(MOST_GUESTS),
               "accel": one_of("kvm", "synthetic")})
MOVE = table({"options": options})
LINK = table({"rate": shape("rate"), "delay": shape("delay"), "loss": shape("loss"),
              "mtu": count(MOST_MTU, LEAST_MTU), "where": one_of("virtual")})
SECTIONS = {"guest": GUEST, "move": MOVE, "link": LINK}
FILE = table({
    "title": text, "question": text, "scale": text, **SECTIONS,
    "axis": table({"label": text, "unit": text}, ["label"]),
    "point": listed(table({"id": name, "label": text, "x": number, **SECTIONS})),
    "contender": listed(table({"name": name, "transport": one_of(*TRANSPORTS), "options": options},
                              ["name", "transport"])),
    "plots": listed(figure),
    "max_repeats": count(1000),
    "published": listed(table({"what": text, "figure": text, "source": text, "known": one_of("read", "reported")},
                              ["what", "figure", "source", "known"])),
}, ["title", "question"])


# --- from the file to what is run


def settings_of(file, point):
    """All that one point sets, those of the file first."""
    guest = {"memory": "64M", "workload": "touch=48M", "vcpus": 1, "count": 1, "accel": None,
             **file.get("guest", {}), **point.get("guest", {})}
    link = {**file.get("link", {}), **point.get("link", {})}
    mtu, where = link.pop("mtu", None), link.pop("where", None)
    return {"memory": guest["memory"], "workload": guest["workload"], "vcpus": guest["vcpus"],
            "guests": guest["count"], "accel": guest["accel"],
            "link": ",".join(f"{key}={link[key]}" for key in ("rate", "delay", "loss") if key in link) or None,
            "link_where": where, "mtu": mtu,
            "options": file.get("move", {}).get("options", []) + point.get("move", {}).get("options", [])}


def check_room(settings, key):
    """A workload that does not fit would be found out by the first move, hours later."""
    kept = 0 if settings["accel"] == "synthetic" else KEPT
    room = bytes_of(settings["memory"]) - kept
    sizes = dict(part.split("=", 1) for part in settings["workload"].split(",") if part)
    for word in ("touch", "hot"):
        fits = not SIZE.fullmatch(sizes.get(word, "")) or bytes_of(sizes[word]) <= room
        need(fits, f"{key}.guest", f"{word}={sizes.get(word)} does not fit into memory = \"{settings['memory']}\", of "
             f"which the guest keeps {kept >> 20}M for itself")
    return settings


def point_of(file, given, key):
    axis = file.get("axis")
    x = given.get("x")
    need(axis is None or x is not None, f"{key}.x", "it is missing: with an axis every point has its place on it")
    need(axis is not None or x is None, f"{key}.x", "a place on an axis, and the file has no [axis]")
    need(x is not None or "id" in given or key == "point[0]", f"{key}.id", "it is missing: points without x have ids")
    identity = given.get("id") or (f"{x:g}" if x is not None else "all")
    need(NAME.fullmatch(identity), f"{key}.id", f"it is missing: '{identity}' will not do for the name of a folder")
    unit = f" {axis['unit']}" if axis and "unit" in axis else ""
    label = given.get("label") or (f"{x:g}{unit}" if x is not None else identity)
    return {"id": identity, "label": label, "x": x, "settings": check_room(settings_of(file, given), key)}


def unique(entries, key, what):
    seen = set()
    for index, entry in enumerate(entries):
        need(entry[what] not in seen, f"{key}[{index}].{what}", f"'{entry[what]}' is there twice")
        seen.add(entry[what])
    return entries


def expand(file, scenario, content):
    points = file.get("point") or [{}]
    contenders = file.get("contender") or DEFAULT_CONTENDERS
    need(file.get("point") or "axis" not in file, "point", "it is missing: an [axis] without a [[point]] shows nothing")
    return {
        "name": scenario, "title": file["title"], "question": file["question"], "scale": file.get("scale"),
        "axis": {"label": file["axis"]["label"], "unit": file["axis"].get("unit")} if "axis" in file else None,
        "contenders": unique([{"options": [], **contender} for contender in contenders], "contender", "name"),
        "points": unique([point_of(file, point, f"point[{index}]") for index, point in enumerate(points)], "point",
                         "id"),
        "plots": [{"y": plot} for plot in file.get("plots", DEFAULT_PLOTS)],
        "max_repeats": file.get("max_repeats"), "published": file.get("published", []), "text": content,
    }


def parse(content, path):
    """The scenario that a file's text describes; a Failure names the file and the key."""
    scenario = Path(path).stem
    try:
        need(NAME.fullmatch(scenario), "the file's name", "expected letters, digits, '.', '_' and '-'")
        return expand(FILE(tomllib.loads(content), ""), scenario, content)
    except tomllib.TOMLDecodeError as error:
        raise Failure(f"{path}: this is not TOML: {error}") from None
    except Wrong as wrong:
        raise Failure(f"{path}: {wrong.args[0]}: {wrong.args[1]}") from None


def read(path):
    try:
        return parse(Path(path).read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: the scenario cannot be read: {error}") from None


def files_of(given):
    """The files that one word of the command line names: a file, with or without its suffix, or a folder's."""
    path = Path(given)
    if path.is_dir():
        found = sorted(path.glob("*.toml"))
        if not found:
            raise Failure(f"{path}: there is no scenario (*.toml) in this folder")
        return found
    for candidate in (path, Path(f"{path}.toml"), HERE / f"{given}.toml"):
        if candidate.is_file():
            return [candidate]
    known = ", ".join(sorted(file.stem for file in HERE.glob("*.toml")))
    raise Failure(f"{given}: there is no such scenario; in testbed/scenarios there are {known}")


def load(words):
    """Every scenario named, once each and in order."""
    scenarios = [read(path) for path in dict.fromkeys(path.resolve() for word in words for path in files_of(word))]
    for scenario in scenarios:
        if [other["name"] for other in scenarios].count(scenario["name"]) > 1:
            raise Failure(f"two scenarios have the name {scenario['name']}: rename one of the files")
    return scenarios
