#!/usr/bin/python3
"""What the report of a move says of the guest's work, of CPU time by role and of the pause fits together."""

from cases import run_cases
from hosts import World, expect

ROLES = ("guest_s", "engine_s", "lanes_s", "other_s")
BANDWIDTH, LIMIT = "16M", "800ms"  # the move takes two seconds: a lab guest gives its account once a second
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


run_cases(__doc__, {"accounts": accounts})
