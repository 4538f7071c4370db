"""One repeat of a comparison: fresh guests, what they do before, the prediction, the move, what they do afterwards, and
what it cost both hosts."""

import contextlib
import json
import re
import shlex

import nic_counters
import pair
import plan_input
from hosts import Failure, expect

MOVE_SECONDS, PREDICT_SECONDS = 600, 120
SLACK_SECONDS = 120  # of a move beyond its own time limit: it may be forced then
RATE_SECONDS = 2
# A lab guest tells what it has written every 10 ms or so: over less than this, a rate would be that grain's.
LEAST_RATE_MS = 200
NO_WORK = {"before_pages_per_s": None, "during_pages_per_s": None, "after_pages_per_s": None}
# Of a move of which nothing is known yet.
NOTHING = {"failed": None, "report": None, "host_cpu": None, "wall_s": None, "prediction": None,
           "prediction_error": None, "work": NO_WORK, "counters": {}, "machine_others": None}
SEVERAL = "wander predict knows nothing of other guests that move over the same link meanwhile"
# Options of wander migrate that wander predict does not have: they do not change how the move goes on.
NOT_PREDICTED = ("--verify",)


class Plan:
    """What is to be moved, and how."""

    def __init__(self, settings, transport, options, accel, predict=True, seconds=MOVE_SECONDS):
        self.settings, self.transport, self.options = settings, transport, options
        self.accel, self.predict, self.seconds = accel, predict, max(seconds, time_limit(options) + SLACK_SECONDS)

    def guests(self):
        count = self.settings["guests"]
        names = [pair.GUEST] if count == 1 else [f"{pair.GUEST}-{number}" for number in range(1, count + 1)]
        return [pair.Guest(self.settings["memory"], self.settings["workload"], self.accel, self.settings["vcpus"], name)
                for name in names]


def time_limit(options):
    """Seconds of --max-time, the last one; 0 without."""
    given = [option.partition("=")[2] for option in options if option.startswith("--max-time=")]
    return plan_input.milliseconds(given[-1]) / 1e3 if given else 0


def work_rates(end, guests):
    """{guest: pages written per second}, over two seconds; nothing of a guest that is idle."""
    names = [guest.name for guest in guests if guest.writes()]
    if not names:
        return {}
    look = "".join(f"echo \"= {name} $EPOCHREALTIME\"; {shlex.quote(end.program)} workload {name}; " for name in names)
    said = end.host.run(f"look() {{ {look} }}; look; sleep {RATE_SECONDS}; look", env=end.env, seconds=60).stdout
    seen = {name: [] for name in names}
    for part in re.split(r"(?m)^= ", said)[1:]:
        head, _, account = part.partition("\n")
        name, when = head.split()
        account = pair.from_json(account, f"the account of {name} on {end}")
        seen[name].append((float(when), account["pages_written"]))
    return {name: (pages - former) / (later - earlier) for name, ((earlier, former), (later, pages)) in seen.items()}


def rate_during(report):
    """Pages written per second from the start of tracking to the pause, by wander's own report; None where that is too
    short a time to tell."""
    work = report.get("guest_work") if report else None
    if not work or work["ms"] < LEAST_RATE_MS:
        return None
    return (work["pages_written_at_pause"] - work["pages_written_at_start"]) / work["ms"] * 1e3


def foretell(source, passage, options):
    """(prediction, None) or (None, why there is none)."""
    path = f"{source.host.directory()}/prediction.json"
    asked = [option for option in options if option not in NOT_PREDICTED]
    source.host.run(f"rm -f {path}")
    done = source.wander("predict", passage.guest.name, passage.uri, "--only", "--json", path, *asked,
                         seconds=PREDICT_SECONDS, check=False)
    # Exit code 1 is also that of a prediction that says that the move will not converge.
    written = source.host.run(["cat", path], check=False).stdout if done.returncode in (0, 1) else ""
    try:
        return json.loads(written), None
    except ValueError:
        said = (done.stderr.strip() or done.stdout.strip())[-1000:]
        return None, f"wander predict exited with {done.returncode} and left no JSON; it said: {said}"


def foretell_for(source, passages, plan):
    if not plan.predict:
        return None, "not asked for (--no-predict)"
    try:
        return foretell(source, passages[0], plan.options) if len(passages) == 1 else (None, SEVERAL)
    except Failure as failure:
        return None, str(failure)


def look_after(destination, passage):
    """None, or what is wrong with a guest that has arrived."""
    try:
        pair.arrived(destination, passage.guest)
    except Failure as failure:
        return str(failure)
    return None


def part_of(passage, found, before, after):
    name, idle = passage.guest.name, not passage.guest.writes()
    work = {"before_pages_per_s": before.get(name), "during_pages_per_s": rate_during(found["report"]),
            "after_pages_per_s": after.get(name)}
    return {"name": name, "report": found["report"], "wall_s": found["wall_s"], "work": NO_WORK if idle else work}


def quit_all(destination, passages):
    for passage in passages:
        pair.leave(destination, passage)


def counters_of(before, after):
    return {side: nic_counters.changed(before[side], after[side]) for side in before}


def make(source, destination, plan, passages, measured, machine, result):
    """Puts into `result` what is found out, as soon as it is; a Failure when something around the move went wrong."""
    guests = [passage.guest for passage in passages]
    looked = machine.look() if machine else None
    if measured:
        result["prediction"], result["prediction_error"] = foretell_for(source, passages, plan)
    before = work_rates(source, guests) if measured else {}
    looks = {"source": source, "destination": destination}
    counted = {side: nic_counters.look(end) for side, end in looks.items()}
    outcomes, result["wall_s"], result["host_cpu"] = pair.migrate(source, destination, passages, plan.options,
                                                                  plan.seconds)
    result["machine_others"] = machine.others(looked) if machine else None
    note_outcomes(result, passages, outcomes, before, {})
    result["counters"] = counters_of(counted, {side: nic_counters.look(end) for side, end in looks.items()})
    failures = [pair.complaint(source, passage, found, plan.options)
                for passage, found in zip(passages, outcomes, strict=True)]
    failures = failures if any(failures) else [look_after(destination, passage) for passage in passages]
    expect(not any(failures), "\n".join(filter(None, failures)))
    if measured:
        note_outcomes(result, passages, outcomes, before, work_rates(destination, guests))
    quit_all(destination, passages)


def note_outcomes(result, passages, outcomes, before, after):
    parts = [part_of(passage, found, before, after) for passage, found in zip(passages, outcomes, strict=True)]
    if len(parts) > 1:
        result["guests"] = parts
    else:
        result.update(report=parts[0]["report"], work=parts[0]["work"])


def run(source, destination, plan, measured=True, machine=None):
    """What is in the file of a move, as far as it depends on the move; `measured` is false for a warm-up, which has
    nothing around it; `machine` is what virtual hosts run on. What went wrong is in "failed"; all that was found out
    before is there then, too."""
    result = {**NOTHING, "prediction_error": None if measured else "a warm-up"}
    try:
        with contextlib.ExitStack() as stack:
            passages = [stack.enter_context(pair.passage(source, destination, plan.transport, guest))
                        for guest in plan.guests()]
            make(source, destination, plan, passages, measured, machine, result)
    except Failure as failure:
        result["failed"] = str(failure)
    return result


def reports_of(document):
    """wander's, one for each guest that has one."""
    return [part["report"] for part in document.get("guests") or [document] if part["report"]]


def total_seconds(document):
    """The total time that a comparison grows by: of the last of several guests; None when it failed."""
    reports = reports_of(document)
    if document["failed"] or len(reports) < len(document.get("guests") or [document]):
        return None
    expect(all(report["total_ms"] for report in reports), "expected every report to have a total time")
    return max(report["total_ms"] for report in reports) / 1e3
