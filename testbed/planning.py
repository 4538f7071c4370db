"""How long it takes to empty a host of its guests, and in which order. Nothing here talks to a host.

The model. There are k slots; whenever one is free, the next guest in the order takes it. A guest under way may use B/k
of the link's B and no more: its --max-bandwidth holds it to that, so none slows another down, and its time depends on
nothing but that share. That time is what `wander simulate` says, which runs the engine's own policy on the guest's
measured profile. Guests keep their share until the end, also when fewer than k are left: pessimistic there, by as much
as the last guests could have gone faster. Those that do not converge at B/k but do at B go last, one at a time and
with all of B; those that do not even then are left out, with the reason. What the guests share besides the link (the
two hosts' CPUs and memory) is not in the model."""

import heapq
import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from hosts import Failure

AUTO = (1, 2, 4, 8, 16)
CHUNK = 250  # questions for one process
LEANS = ("expected", "low", "high")


@dataclass(frozen=True, eq=False)
class Question:
    """All that a guest's time depends on, but for its bandwidth; guests that are alike share one."""
    source: str               # where the profile came from, for messages
    profile: dict
    path: dict
    costs: dict
    downtime_ms: float
    throttle: int             # percent at most, 0: none
    max_bandwidth: int = 0    # bytes/s, 0: as the link has it

    def bandwidth(self, share):
        return max(1, int(min(share, self.max_bandwidth or share)))

    def as_line(self, shares):
        limits = {"downtime_ms": self.downtime_ms, "max_time_ms": 0, "on_timeout": "cancel",
                  "throttle_max_percent": self.throttle}
        question = {"guest": self.profile, "path": self.path, "costs": self.costs, "limits": limits,
                    "bandwidths": [self.bandwidth(share) for share in shares]}
        try:
            return json.dumps(question, separators=(",", ":"), allow_nan=False)
        except ValueError:
            raise Failure(f"'{self.source}' holds a number that is not finite; make it anew with wander "
                          f"predict") from None


@dataclass(frozen=True, eq=False)
class Guest:
    name: str
    transport: str
    question: Question


@dataclass(frozen=True, eq=False)
class Move:
    guest: Guest
    prediction: dict
    bandwidth: int
    slot: int       # from 0; alone at the end: 0
    start_s: float  # as expected
    alone: bool

    def total_s(self, lean="expected"):
        return seconds(self.prediction, "total", lean)


@dataclass
class Plan:
    at_a_time: int
    order: str
    share: float                       # bytes/s of each guest under way
    moves: list                        # by start
    left_out: list                     # (Guest, its prediction at all of B)
    total_s: dict = field(default_factory=dict)

    def worst(self):
        """The move with the longest downtime, None of an empty plan."""
        return max(self.moves, key=lambda move: move.prediction["downtime_ms"], default=None)

    def bytes(self):
        return sum(move.prediction["bytes"] for move in self.moves)


def seconds(prediction, what, lean="expected"):
    return prediction[f"{what}_ms" if lean == "expected" else f"{what}_{lean}_ms"] / 1e3


# --- the engine's own simulation


def simulate(questions, shares, program):
    """{question: [a prediction for each share]}, by as many processes at a time as there are CPUs."""
    chunks = [questions[first:first + CHUNK] for first in range(0, len(questions), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(lambda chunk: simulate_chunk(chunk, shares, program), chunks))
    return {question: predictions for part in found for question, predictions in part.items()}


def simulate_chunk(questions, shares, program):
    text = "".join(question.as_line(shares) + "\n" for question in questions)
    try:
        done = subprocess.run([program, "simulate"], input=text, capture_output=True, text=True)
    except OSError as error:
        raise Failure(f"cannot run '{program}': {error.strerror}; build it, or name it with --program") from error
    if done.returncode:
        raise Failure(refusal(questions, done, program))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if [len(line) for line in lines] != [len(shares)] * len(questions):
        raise Failure(f"'{program} simulate' gave {len(lines)} answers to {len(questions)} questions, or not one for "
                      f"each bandwidth; is it of this version?")
    return dict(zip(questions, lines, strict=True))


def refusal(questions, done, program):
    """What `wander simulate` found wrong, and in which file."""
    text = done.stderr.strip() or "no message"
    line = re.search(r"\bline ([0-9]{1,6})\b", text)
    asked = questions[int(line.group(1)) - 1:int(line.group(1))] if line else []
    if asked:
        return f"'{asked[0].source}' cannot be used: {text}; make it anew with wander predict"
    return f"'{program} simulate' ended with {done.returncode}: {text}"


# --- scheduling: times in, times out


def schedule(times, slots):
    """[(slot, start)] of each, in this order, each in the slot that is free first; and when the last one ends. Never
    ends earlier when a time gets longer."""
    free = [(0.0, slot) for slot in range(slots)]
    starts, end = [], 0.0
    for took in times:
        start, slot = heapq.heappop(free)
        heapq.heappush(free, (start + took, slot))
        starts.append((slot, start))
        end = max(end, start + took)
    return starts, end


def ordered(entries, order, time):
    """`time(entry)` is how long it takes."""
    if order == "as-given":
        return list(entries)
    return sorted(entries, key=time, reverse=order == "longest")


def best_order(entries, slots, time):
    """The order that ends first. With one slot all end at the same time: then shortest first, for it has the most
    guests gone the soonest. With more, longest first ends at most 4/3 - 1/(3k) times as late as the best of all orders
    (Graham 1969), and what the two others do is looked at as well."""
    if slots == 1:
        return "shortest"
    ends = {order: schedule([time(entry) for entry in ordered(entries, order, time)], slots)[1]
            for order in ("longest", "shortest", "as-given")}
    return min(ends, key=ends.get)


# --- plans


def arrange(guests, predictions, at_a_time, order, link):
    """The Plan; `predictions[question]` is (at the share, at all of the link), the latter only where it is needed."""
    def time(pair):
        return seconds(pair[1], "total")

    share = link / at_a_time
    together, alone, left_out = [], [], []
    for guest in guests:
        shared, full = predictions[guest.question]
        kind = together if shared["converges"] else alone if full["converges"] else left_out
        kind.append((guest, shared if shared["converges"] else full))
    order = best_order(together, at_a_time, time) if order == "best" else order
    together, alone = ordered(together, order, time), ordered(alone, order, time)
    starts, end = schedule([time(pair) for pair in together], at_a_time)
    moves = [Move(guest, prediction, guest.question.bandwidth(share), slot, start, False)
             for (guest, prediction), (slot, start) in zip(together, starts, strict=True)]
    for guest, prediction in alone:
        moves.append(Move(guest, prediction, guest.question.bandwidth(link), 0, end, True))
        end += seconds(prediction, "total")
    plan = Plan(at_a_time, order, share, moves, left_out)
    plan.total_s = {lean: total(together, alone, at_a_time, lean) for lean in LEANS}
    return plan


def total(together, alone, slots, lean):
    """When all have gone, if every guest's time leans the same way."""
    return (schedule([seconds(prediction, "total", lean) for _, prediction in together], slots)[1]
            + sum(seconds(prediction, "total", lean) for _, prediction in alone))


def choose(plans, worst_downtime_ms):
    """The plan that moves the most guests; of those the ones with no downtime above the bound, if there are any; of
    those the one that is done first, with the fewest at a time if that makes no difference of a thousandth."""
    def cost(plan):
        worst = plan.worst()
        over = worst is not None and worst.prediction["downtime_ms"] > worst_downtime_ms
        return len(plan.left_out), over, plan.total_s["expected"]

    best = min(plans, key=cost)
    left_out, over, end = cost(best)
    return min((plan for plan in plans if cost(plan) <= (left_out, over, end * 1.001)),
               key=lambda plan: plan.at_a_time)


def make_plans(guests, link, at_a_time, order, program):
    """A plan for each number of guests at a time; more than there are guests is as many as there are."""
    counts = sorted({min(count, len(guests)) for count in at_a_time})
    questions = list(dict.fromkeys(guest.question for guest in guests))
    shared = simulate(questions, [link / count for count in counts], program)
    stuck = [question for question in questions if not all(found["converges"] for found in shared[question])]
    full = simulate(stuck, [link], program)
    plans = []
    for place, count in enumerate(counts):
        predictions = {question: (shared[question][place], full.get(question, [None])[0]) for question in questions}
        plans.append(arrange(guests, predictions, count, order, link))
    return plans
