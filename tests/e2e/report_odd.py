#!/usr/bin/python3
"""Reports of comparisons that are not as they should be: nothing moved, one repeat, facts of the wrong kind, damaged files,
wrong values. Whatever is or is not there, there is a report, and it is right and harmless."""

import copy
import json
import tempfile
from pathlib import Path

from cases import run_cases
from hosts import Failure, expect

import report
import report_data
from report_world import World, alone, bare, check_harmless

ODD = {
    "nothing": (alone(), "Nothing can be compared"),
    "no moves": (alone(bare()), "No run of this scenario came to its end"),
    "one repeat": (alone(bare(repeats=1)), "too few runs"),
    "one contender": (alone(bare(contenders=report_data.CONTENDERS[:1], repeats=6)), "Nothing can be compared"),
    "one point of an axis": (alone(bare(repeats=6, x=3.0)), "Total time"),
    "only failures": (alone(bare(repeats=3, move={"failed": "broken"})), "6 migrations failed"),
    "all given up": (alone(bare(repeats=5, move={"cancelled": True})), "5 given up"),
    "all forced": (alone(bare(repeats=5, move={"forced": True})), "5 forced"),
    "no predictions": (alone(bare(repeats=5, move={"no_prediction": True})), "No migration has a prediction"),
    "not finished": (alone(bare(repeats=5), finished=False), "was not finished"),
    "huge": (alone(bare(repeats=5, move={"slow": 1e9})), "Total time"),
    "little known": (alone(bare(repeats=5), ends=[], boots=[], warnings=None, errors=None, command=None), "not known"),
    "facts of the wrong kind": (alone(bare(repeats=5), ends=["a", {"rdma": 7}], boots=[{"limits": 3}, 4], warnings="no",
                                      command="x", confidence_target="10"), "facts are incomplete"),
}


def odd_folders(context):
    for name, (make, wanted) in ODD.items():
        with World(make) as world:
            check_harmless(world)
            expect(wanted in world.text, f"{name}: expected the report to say '{wanted}'")
    with World(alone(bare(repeats=1), ends=[{"host": "local", "address": "127.0.0.1", "virtual": False}])) as world:
        expect("loopback was the link" in world.text, "expected a caution about one machine")
        expect("same two hosts" not in world.text, "expected no word of two hosts where there was one")

    def limited(out):
        document = alone(bare(repeats=1), repeats=5, max_repeats=15)(out)
        document["scenarios"][0]["max_repeats"] = 12
        report_data.save(out, document)
        return document

    with World(limited) as world:
        expect("up to 15 where an interval stayed wide, bare up to 12" in world.text, "expected a limit of its own")


def places(context):
    """No loss and little loss are told apart on an axis."""
    def losses(maker):
        points = [report_data.point(f"{loss:g}", loss) for loss in (0, 0.01, 0.1, 0.5)]
        for here in points:
            for repeat in range(5):
                maker.move("loss", here["id"], report_data.CONTENDERS[0], repeat + 1)
        return report_data.scenario("loss", "Loss", points, report_data.CONTENDERS[:1], {"label": "loss"})

    with World(alone(losses)) as world:
        marks = {attributes["data-key"]: float(attributes["cx"]) for name, attributes in world.page.elements
                 if name == "circle" and attributes.get("data-figure") == "total_s"}
        across = [marks[f"loss/{loss}/tcp"] for loss in ("0", "0.01", "0.1", "0.5")]
        steps = [later - former for former, later in zip(across, across[1:])]
        expect(min(steps) > 30, f"expected four points well apart; got {across}")


def damaged_files(context):
    def make(out):
        document = report_data.make(out)
        for index, text in enumerate(("{", "[1]", "[" * 100000, '{"report": NaN}', '{"guests": [1, {"report": {}}]}',
                                      "\udcff")):
            path = out / "moves/patterns/once/tcp" / f"9{index}.json"
            path.write_bytes(text.encode(errors="surrogateescape"))
        stray = out / "moves/nowhere/p/tcp/01.json"
        stray.parent.mkdir(parents=True)
        stray.write_text("{}")
        return document

    with World(make) as world:
        check_harmless(world)
        for wanted in ("tcp/90.json cannot be read", "tcp/91.json is no move", "nowhere/p/tcp/01.json belongs to no "
                                                                               "point"):
            expect(wanted in world.text, f"expected the report to say '{wanted}'")
    for text in (None, "{", "[]", '{"schema": 9}'):
        with tempfile.TemporaryDirectory() as out:
            if text is not None:
                (Path(out) / "comparison.json").write_text(text)
            try:
                report.write(out)
            except Failure:
                continue
            raise Failure(f"expected no report of {text!r}, but a message")


WRONG = (None, -1, 0, 1e308, "text", report_data.HOSTILE, True, [], {}, [1, "x"], {"a": {"b": 1}}, float("nan"),
         float("inf"))


def spoil(value, chance, share):
    """The document with some of its values exchanged for wrong ones."""
    if chance.random() < share:
        return copy.deepcopy(chance.choice(WRONG))
    if isinstance(value, dict):
        return {key: spoil(entry, chance, share) for key, entry in value.items()}
    return [spoil(entry, chance, share) for entry in value] if isinstance(value, list) else value


def wrong_values(context):
    """Whatever the files hold, there is a report, and it is harmless."""
    for _ in range(context.full and 200 or 12):
        share = context.random.choice((0.002, 0.02, 0.2))

        def make(out, share=share):
            document = alone(bare(repeats=5), report_data.several)(out)
            for path in out.glob("moves/*/*/*/*.json"):
                path.write_text(json.dumps(spoil(json.loads(path.read_text()), context.random, share)))
            spoilt = {key: spoil(value, context.random, share / 4) for key, value in document.items()
                      if key != "schema"}
            report_data.save(out, spoilt | {"schema": 1})
            return document

        with World(make) as world:
            check_harmless(world)


if __name__ == "__main__":
    run_cases(__doc__, {case.__name__: case for case in (odd_folders, places, damaged_files, wrong_values)})
