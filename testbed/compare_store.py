"""The folder of a comparison: comparison.json with what was asked and found out, and a file for every move."""

import datetime
import hashlib
import json
import subprocess
from pathlib import Path

import pair
from hosts import Failure, expect

SCHEMA = 1
# What must be the same, or the moves that are there and those to come would not be of one comparison.
SAME = {"wander": "another version of wander", "wander_sha256": "another build of wander", "hosts": "other hosts"}
# What a resumed comparison may be asked for otherwise.
PASSING = ("the comparison ended early", "left out:")  # warnings that another start may make untrue
ANEW = ("finished", "command", "repeats", "max_repeats", "confidence_target")


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def version_of(program):
    """(what it says, the hash of its file)."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip(), hashlib.sha256(Path(program).read_bytes()).hexdigest()
    except (OSError, subprocess.SubprocessError) as error:
        raise Failure(f"'{program} --version' does not work: {error}; build it, or name it with --program") from None


class Store:
    def __init__(self, out):
        self.out = Path(out)
        self.document = None

    @property
    def main(self):
        return self.out / "comparison.json"

    def begin(self, document):
        """A new comparison, in a folder without one."""
        if self.main.exists():
            raise Failure(f"{self.out} holds a comparison already: go on with --resume, or give another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        self.document = {"schema": SCHEMA, "made": now(), **document}
        self.save()

    def resume(self, document):
        """Goes on with the comparison that is there; a Failure when it is not the same one."""
        there = read(self.main)
        if there is None:
            raise Failure(f"--resume: {self.main} is not there, or no comparison; without --resume a new one begins")
        if there.get("schema") != SCHEMA:
            raise Failure(f"--resume: {self.main} has schema {there.get('schema')!r}, and this program writes {SCHEMA}")
        try:
            self.check_same(there, document)
        except (KeyError, TypeError, AttributeError):
            raise Failure(f"--resume: {self.main} lacks what testbed/compare writes there: begin anew with another "
                          f"--out") from None
        self.document = {**document, **there, **{key: document[key] for key in ANEW}}
        # What still is so, will be found again.
        self.document["warnings"] = [text for text in there["warnings"] if not text.startswith(PASSING)]
        self.save()

    def check_same(self, there, document):
        for key, what in SAME.items():
            if there.get(key) != document[key]:
                raise Failure(f"--resume: {self.out} was made with {what} ({there.get(key)}, and now "
                              f"{document[key]}): moves of both would not compare. Begin anew with another --out")
        texts = {scenario["name"]: scenario["text"] for scenario in there["scenarios"]}
        for scenario in document["scenarios"]:
            if texts.get(scenario["name"]) != scenario["text"]:
                how = "has changed since" if scenario["name"] in texts else "is not among those"
                raise Failure(f"--resume: the scenario '{scenario['name']}' {how} in {self.out}: begin anew with "
                              f"another --out, or give the file as it was")
        for key in ("boots", "warnings", "errors", "ends"):
            expect(isinstance(there[key], list), f"--resume: expected a list of {key} in {self.main}")
        for boot in there["boots"]:
            expect(isinstance(boot["id"], int) and len([host["address"] for host in boot["hosts"]]) == 2 and
                   isinstance(boot["limits"], list), f"--resume: {self.main} has a boot that is none: {boot}")

    def save(self):
        pair.save(self.main, self.document)

    def warn(self, text):
        if text not in self.document["warnings"]:
            self.document["warnings"].append(text)
            self.save()
            return True
        return False

    # --- moves

    def folder(self, cell):
        return self.out / "moves" / cell.scenario / cell.point["id"] / cell.contender["name"]

    def path(self, cell, label):
        return self.folder(cell) / f"{label}.json"

    def add(self, cell, label, move):
        self.folder(cell).mkdir(parents=True, exist_ok=True)
        pair.save(self.path(cell, label), move)

    def moves(self, cell):
        """{label: move} of those that are there and whole."""
        found = {path.stem: read(path) for path in sorted(self.folder(cell).glob("*.json"))}
        return {label: move for label, move in found.items() if move is not None and whole(move)}


def whole(move):
    """Whether a move's file has what a comparison goes on by."""
    parts = move.get("guests") or [move]
    kinds = {"warm_up": bool, "repeat": int, "order": int, "boot": int}
    return (all(isinstance(move.get(key), kind) for key, kind in kinds.items()) and "failed" in move and
            isinstance(parts, list) and all(isinstance(part, dict) and "report" in part and sound(part["report"])
                                            for part in parts))


def sound(report):
    """Whether this is none, or has the total time of a move."""
    return report is None or isinstance(report, dict) and isinstance(report.get("total_ms"), (int, float))


def read(path):
    """A JSON object, or None when there is none."""
    try:
        document = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
