#!/usr/bin/python3
"""What the report of a move says of the guest's work, of CPU time by role and of the pause fits together; and of what
was predicted, with what was learnt from moves before it."""

import json

from cases import run_cases
from hosts import World, expect, wait_until

ROLES = ("guest_s", "engine_s", "lanes_s", "other_s")
BANDWIDTH, LIMIT = "16M", "800ms"  # the move takes two seconds, and several rounds
SLACK_S = 0.05  # roles are read one after the other, and rounded


def cpu_roles(report):
    for side in ("source", "destination"):
        roles, whole = report["cpu"][side], report[f"{side}_cpu_s"]
        expect(roles is not None, f"expected the {side}'s CPU time by role; got null")
        expect(all(roles[role] is not None and roles[role] >= 0 for role in ROLES),
               f"expected no negative CPU time and none unknown at the {side}; got {roles}")
        spent = sum(roles.values())
        expect(abs(spent - whole) <= SLACK_S, f"expected the roles at the {side} to add up to {whole} s; got {spent}: {roles}")
        expect(roles["lanes_s"] > 0, f"expected the lanes at the {side} to have spent CPU time; got {roles}")
    expect(report["cpu"]["source"]["engine_s"] > 0, f"expected the engine to have spent CPU time; got {report['cpu']}")


def guest_work(report):
    work, rounds = report["guest_work"], report["rounds"]
    expect(work is not None, "expected an account of the guest's work; got null")
    written = [work["pages_written_at_start"], *(entry["guest_pages_written"] for entry in rounds[:-1]),
               work["pages_written_at_pause"]]
    expect(written == sorted(written), f"expected the pages written never to become fewer; got {written}")
    expect(written[-1] > written[0], f"expected the guest to write while it moves; got {written}")
    expect(0 < work["ms"] <= report["pause_start_ms"], f"expected tracking to begin after the command and before the pause, "
           f"{report['pause_start_ms']} ms after it; the guest worked for {work['ms']} ms")


def times(report):
    last = report["rounds"][-1]
    end = report["pause_start_ms"] + report["downtime_ms"]
    expect(last["paused"] and report["pause_start_ms"] <= last["start_ms"] <= end <= report["total_ms"],
           f"expected the last round within the downtime, and that within the whole; got pause at "
           f"{report['pause_start_ms']}, last round at {last['start_ms']}, end of the downtime at {end}, total "
           f"{report['total_ms']} ms")


def accounts(context):
    with World() as world:
        source, destination = world.host("a"), world.host("b")
        source.lab(memory="64M", vcpus=2, workload="touch=32M,hot=8M,rate=4000", accel=context.accel)
        report = source.migrate("guest", destination.receive().uri, "--max-bandwidth", BANDWIDTH, "--downtime-limit", LIMIT,
                                seconds=120)
        cpu_roles(report)
        guest_work(report)
        times(report)
        print(f"CPU {report['cpu']}, work {report['guest_work']}")


def foretold(report, basis):
    prediction, rounds = report["prediction"], report["rounds"]
    expect(prediction is not None and prediction["basis"] == basis, f"expected a prediction from {basis}; got {prediction}")
    expect((prediction["age_ms"] is None) == (basis == "first-round"), f"expected an age of a rehearsal, and of nothing else; "
           f"got {prediction}")
    expect(prediction["converges"], f"expected the move of a slow guest to be foreseen to end; got {prediction}")
    for what in ("total", "downtime"):
        low, middle, high = (prediction[f"{what}{end}_ms"] for end in ("_low", "", "_high"))
        expect(0 < low <= middle <= high, f"expected the {what} within its interval; got {prediction}")
    expect(all(entry["predicted_total_ms"] for entry in rounds[:-1]) and rounds[-1]["predicted_total_ms"] is None,
           f"expected a prediction after each round but the last; got {[entry['predicted_total_ms'] for entry in rounds]}")


def samples(host):
    file = host.state / "wander" / "costs.json"
    return sum(len(kind["samples"]) for kind in json.loads(file.read_text())["kinds"]) if file.is_file() else 0


def rehearse(host, uri, *options):
    done = host.run("predict", "guest", uri, "--sample", "300ms", *options)
    expect(done.returncode == 0, f"expected a prediction; exit code {done.returncode}: {done.stdout}{done.stderr}")


def predictions(context):
    """A move after a rehearsal, one without, one after a rehearsal for another number of lanes."""
    with World() as world:
        here, there = world.host("a"), world.host("b")
        uri = {host: host.receive().uri for host in (here, there)}
        here.lab(memory="64M", workload="touch=32M,hot=4M,rate=1000", accel=context.accel)
        for number, (lanes, basis) in enumerate([("2", "predict"), (None, "first-round"), ("3", "first-round")], 1):
            if lanes:
                rehearse(here, uri[there], "--lanes", lanes, "--max-bandwidth", "64M")
            learnt = samples(here)
            report = here.migrate("guest", uri[there], "--max-bandwidth", "64M", "--lanes", "2", seconds=120)
            foretold(report, basis)
            wait_until(lambda: samples(here) > learnt, 10, f"move {number} to be learnt from")
            wait_until(lambda: "guest" not in here.guests(), 10, f"the source of move {number} to be gone")
            here, there = there, here


def nothing_learnt(context):
    """Where nothing can be kept, a move is none the worse."""
    with World() as world:
        source, destination = world.host("a"), world.host("b")
        (source.state / "wander" / "costs.json.new").mkdir(parents=True)
        source.lab(memory="48M", workload="touch=4M,hot=1M,rate=100", accel=context.accel)
        foretold(source.migrate("guest", destination.receive().uri, seconds=120), "first-round")
        wait_until(lambda: "guest" not in source.guests(), 10, "the source to be gone")
        expect(samples(source) == 0, "expected nothing to have been learnt where no file can be written")


run_cases(__doc__, {"accounts": accounts, "predictions": predictions, "nothing_learnt": nothing_learnt})
