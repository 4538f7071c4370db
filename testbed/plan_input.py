"""The guests of a plan, from files: profiles as `wander predict --json` writes them, and plan files that say more."""

import json
import os
import re
import tomllib
from pathlib import Path

from hosts import Failure
from planning import Guest, Question

BITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12}
BYTES = {suffix: 1 << (10 * power) for power, letter in enumerate(["", "k", "m", "g", "t", "p"])
         for suffix in ({"", "b"} if not letter else {letter, f"{letter}b", f"{letter}ib"})}
TIMES_MS = {"": 1, "ns": 1e-6, "us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4, "h": 3.6e6}
TRANSPORTS = ("tcp", "rdma")
THROTTLE_MAX = 99
KEYS = {"name": str, "profile": str, "count": int, "max_bandwidth": str, "downtime_limit": str, "throttle": str}
NAME = re.compile(r"qmp:[^\x00-\x1f\x7f]+|[A-Za-z0-9._][A-Za-z0-9._-]*")


# --- values, written as wander takes them


def rate(text):
    """Bytes per second."""
    found = re.fullmatch(r"([0-9]+)([A-Za-z]*)(/s)?", str(text))
    suffix = found.group(2) if found else None
    if found and suffix.lower() in BITS and not suffix.endswith("B"):
        value = int(found.group(1)) * BITS[suffix.lower()] // 8
    elif found and suffix.lower() in BYTES and not suffix.endswith("b"):
        value = int(found.group(1)) * BYTES[suffix.lower()]
    else:
        value = 0
    if not 0 < value < 1 << 63:
        raise Failure(f"'{text}' is not a rate above 0 (examples: 10Gbit, 100M, 100MiB/s)")
    return value


def milliseconds(text):
    found = re.fullmatch(r"([0-9]+)([a-z]*)", str(text))
    value = int(found.group(1)) * TIMES_MS.get(found.group(2), 0) if found else 0
    if not 0 < value < 1e13:
        raise Failure(f"'{text}' is not a time above 0 (examples: 300ms, 1s; a bare number is ms)")
    return value


def throttle(text):
    """Percent at most; 0: none."""
    if text in ("auto", "none"):
        return THROTTLE_MAX if text == "auto" else 0
    found = re.fullmatch(r"([0-9]{1,2})%", str(text))
    if not found or not int(found.group(1)):
        raise Failure(f"'{text}' is none of auto, none and a percentage from 1% to {THROTTLE_MAX}%")
    return int(found.group(1))


def percentage(text):
    """As a share."""
    found = re.fullmatch(r"([0-9]+(\.[0-9]+)?)%", str(text))
    if not found or not 0 < float(found.group(1)) <= 100:
        raise Failure(f"'{text}' is not a percentage above 0% and up to 100%")
    return float(found.group(1)) / 100


# --- files


def read_file(path):
    """What a JSON or TOML file holds."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise Failure(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Failure(f"'{path}' is no text file: {error}") from error
    try:
        return tomllib.loads(text) if str(path).endswith(".toml") else json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "TOML" if str(path).endswith(".toml") else "JSON"
        raise Failure(f"'{path}' is not {kind}: {error}; give what 'wander predict --json' wrote, or a plan") from error


class Profiles:
    """Each file is read once, and what is the same is the same object."""

    def __init__(self, transport, defaults):
        self.transport, self.defaults = transport, defaults
        self.files, self.questions = {}, {}

    def path(self, file):
        """(guest's profile, the path to move it over)."""
        if file not in self.files:
            self.files[file] = profile_of(file, read_file(file), self.transport)
        return self.files[file]

    def question(self, file, **more):
        settings = {**self.defaults, **more}
        key = file, *sorted(settings.items())
        if key not in self.questions:
            profile, path = self.path(file)
            self.questions[key] = Question(file, profile, path["path"], path["costs"], **settings)
        return self.questions[key]


def profile_of(file, found, transport):
    """Checked as far as this program looks at it; `wander simulate` checks the rest."""
    if not isinstance(found, dict) or not isinstance(found.get("guest"), dict) or not found.get("paths"):
        raise Failure(f"'{file}' is no profile: it has no \"guest\" and \"paths\"; make one with "
                      f"'wander predict GUEST URI --json FILE'")
    paths = found["paths"]
    if not isinstance(paths, list) or not all(
            isinstance(path, dict) and isinstance(path.get("transport"), str) for path in paths):
        raise Failure(f"'{file}': \"paths\" is not a list of objects with a \"transport\" each")
    known = {path["transport"]: path for path in reversed(paths)}
    wanted = transport or paths[0]["transport"]
    path = known.get(wanted)
    if path is None or not path.get("usable"):
        why = "was not tried" if path is None else f"could not be used ({path.get('error') or 'no reason given'})"
        others = [name for name, other in known.items() if other.get("usable") and name in TRANSPORTS]
        raise Failure(f"'{file}': {wanted} {why} when the profile was made; usable there: "
                      f"{', '.join(others) or 'none'}. Choose with --transport, or make it anew with wander predict")
    if wanted not in TRANSPORTS or not all(isinstance(path.get(part), dict) for part in ("path", "costs")):
        raise Failure(f"'{file}': the path over '{wanted}' lacks \"path\" or \"costs\"")
    return found["guest"], path


def entry_guests(plan, place, entry, profiles):
    """Those of one entry of a plan file."""
    where = f"'{plan}', guest {place}"
    if not isinstance(entry, dict):
        raise Failure(f"{where}: not a table of keys and values")
    for key, value in entry.items():
        if key not in KEYS:
            raise Failure(f"{where}: unknown key '{key}'; known are {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            raise Failure(f"{where}: '{key}' is {value!r}, not a {'number' if KEYS[key] is int else 'text'}")
    if not entry.get("profile"):
        raise Failure(f"{where}: no profile; name the file that 'wander predict --json' wrote")
    count = entry.get("count", 1)
    if not 1 <= count <= 10**6:
        raise Failure(f"{where}: 'count' is {count}, not from 1 to 1000000")
    readers = {"max_bandwidth": ("max_bandwidth", rate), "downtime_limit": ("downtime_ms", milliseconds),
               "throttle": ("throttle", throttle)}
    try:
        more = {name: read(entry[key]) for key, (name, read) in readers.items() if key in entry}
    except Failure as failure:
        raise Failure(f"{where}: {failure}") from failure
    file = os.path.join(os.path.dirname(plan), entry["profile"])
    question = profiles.question(file, **more)
    name, scheme = entry.get("name", Path(file).stem), profiles.path(file)[1]["transport"]
    return [Guest(name if count == 1 else f"{name}-{number}", scheme, question) for number in range(1, count + 1)]


def entries_of(file, found):
    """The entries of a plan file; None of a profile."""
    entries = found.get("guests") if isinstance(found, dict) and "paths" not in found else found
    if isinstance(found, dict) and ("paths" in found or entries is None):
        return None
    if not isinstance(entries, list) or not entries:
        raise Failure(f"'{file}': no list of guests in it; a plan is [[guests]] with name and profile for each")
    return entries


def read_guests(files, transport, defaults):
    """[Guest] of profiles and plan files, in order; `defaults`: of every Question."""
    profiles, guests = Profiles(transport, defaults), []
    for file in files:
        found = read_file(file)
        entries = entries_of(file, found)
        if entries is None:
            profiles.files[file] = profile_of(file, found, transport)
            scheme = profiles.files[file][1]["transport"]
            guests.append(Guest(Path(file).stem, scheme, profiles.question(file)))
            continue
        for place, entry in enumerate(entries, 1):
            guests += entry_guests(file, place, entry, profiles)
    check_names(guests)
    return guests


def check_names(guests):
    seen = set()
    for guest in guests:
        if not NAME.fullmatch(guest.name):
            raise Failure(f"{guest.name!r} is no guest name: A-Z a-z 0-9 . _ and, but not first, - are, or qmp: and a path")
        if guest.name in seen:
            raise Failure(f"two guests are called '{guest.name}': give them names in a plan file")
        seen.add(guest.name)
