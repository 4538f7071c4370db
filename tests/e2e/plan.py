#!/usr/bin/python3
"""testbed/plan against exact simulations of small cases: its schedule against one event at a time and all orders tried;
a guest's time against one page at a time, with writes and rounds made anew here. And what it says of guests that do not
converge, the script it writes, and one clear message for whatever is wrong with its input."""

import itertools
import json
import os
import subprocess
import tempfile
from pathlib import Path

from cases import run_cases
from hosts import PROGRAM, ROOT, World, expect, running

import plan_input
import planning

PLAN = ROOT / "testbed" / "plan"
PAGE, CHUNK, BANDS, MIB, MASK = 4096, 256, 64, 1 << 20, (1 << 64) - 1
WINDOWS = [round(1e6 * 1.5 ** power) for power in range(20)]  # ns, up to 2.2 s
SETUP, ROUND, DOWNTIME, FINISH = 0.020, 0.001, 0.005, 0.010   # s
LIMIT = 0.050
TOLERANCE = 0.03  # of a guest's time: its profile is a smooth curve; the engine guesses the fixed costs that it adds
PATH = {"bandwidth_bytes_per_s": 1 << 30, "zero_bandwidth_bytes_per_s": 0, "setup_ns": round(SETUP * 1e9),
        "round_ns": round(ROUND * 1e9), "round_trip_ns": 100000, "bandwidth_spread": 0.02, "guest_share": 1}
COSTS = {"samples": 5, "setup_ns": 0, "downtime_ns": round(DOWNTIME * 1e9), "downtime_spread_ns": 1000000,
         "finish_ns": round(FINISH * 1e9), "bandwidth_ratio": 1}


# --- guests, one page at a time


def mixed(number):
    """As good as random, and the same each time: splitmix64."""
    number = number * 0x9E3779B97F4A7C15 & MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & MASK
    return number ^ number >> 31


class Writer:
    """Which page is written when: the n-th write at n / rate."""

    def __init__(self, pages, hot=0, rate=0, pattern="sequential", seed=1):
        self.pages, self.hot, self.rate, self.pattern, self.seed = pages, hot, rate, pattern, seed

    def page(self, number):
        if self.pattern == "sequential":
            return number % self.hot
        dice = mixed(number + self.seed * 1000003)
        if self.pattern == "hotcold" and dice % 10:
            return dice // 10 % (self.hot // 10)
        return dice // 10 % self.hot

    def written(self, since, until):
        first, last = (-int(-moment * self.rate // 1) for moment in (since, until))
        return {self.page(number) for number in range(first, last)}


def profile(writer):
    """What `wander predict` would find out, in its format."""
    curves = {}
    band_of = {page: page * BANDS // writer.pages for page in range(writer.hot)}
    for place, window in enumerate(WINDOWS):
        for page in writer.written(100, 100 + window / 1e9):
            curve = curves.setdefault(str(band_of[page]), [0] * len(WINDOWS))
            curve[place] += 1
    return {"zero_pages": 0, "collect_ns": 0, "dirty_pages_per_s": writer.rate, "hot_pages": writer.hot,
            "present_pages": [writer.pages // BANDS] * BANDS, "windows_ns": WINDOWS, "dirty_pages": curves}


def rehearsal(writer, *transports, path=PATH, costs=COSTS):
    paths = [{"transport": name, "usable": True, "error": None, "path": path, "costs": costs, "prediction": None}
             for name in transports or ["tcp"]]
    return {"schema": 1, "made_with": {}, "guest": profile(writer), "paths": paths}


def exact_move(writer, bandwidth):
    """(seconds, seconds of downtime) of a migration at so many bytes per second: every page sent, every write made."""
    page_s = PAGE / bandwidth
    now = SETUP + writer.pages * page_s + ROUND
    dirty = writer.written(0, now)
    while (len(dirty) + 16) * page_s + DOWNTIME > LIMIT:
        now, dirty = exact_round(writer, now, dirty, page_s)
    downtime = DOWNTIME + len(dirty) * page_s
    return now + downtime + FINISH, downtime


def exact_round(writer, now, found, page_s):
    """A chunk's found pages are re-armed when it is its turn; what is written from then on is dirty again, and so is
    whatever was not found and is written at any time."""
    dirty = set(found)
    for _, chunk in itertools.groupby(sorted(found), key=lambda page: page // CHUNK):
        pages = list(chunk)
        dirty -= set(pages)
        then, now = now, now + len(pages) * page_s
        dirty |= writer.written(then, now)
    return now + ROUND, dirty | writer.written(now, now + ROUND)


# --- a schedule, one event at a time


def exact_schedule(times, slots):
    """Starts and the end, by going from one event to the next."""
    waiting, running, starts, now = list(enumerate(times)), [], {}, 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            place, took = waiting.pop(0)
            starts[place] = now
            running.append(now + took)
        now = min(running)
        running.remove(now)
    return [starts[place] for place in range(len(times))], now


# --- running the program


def plan(*arguments, env=None):
    return subprocess.run([PLAN, *map(str, arguments), "--program", PROGRAM], capture_output=True, text=True,
                          env={**os.environ, **(env or {})})


def planned(folder, *arguments, code=0):
    """The plan as JSON, and what was printed."""
    out = Path(folder) / "plan.json"
    done = plan(*arguments, "--json", out)
    expect(done.returncode == code, f"expected exit code {code} of plan {' '.join(map(str, arguments))}; got "
           f"{done.returncode}: {done.stderr.strip()}\n{done.stdout}")
    return json.loads(out.read_text()), done.stdout


def save(folder, name, content):
    file = Path(folder) / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def near(what, got, wanted, share):
    expect(abs(got - wanted) <= share * wanted, f"expected {what} to be {wanted:.4f} within {share:.0%}; got {got:.4f}")


def same(what, got, wanted):
    expect(got == wanted, f"expected {what} to be {wanted!r}; got {got!r}")


# --- cases


def schedules(context):
    for _ in range(300):
        times = [context.random.choice([1.0, 2.0, context.random.uniform(0.1, 20)])
                 for _ in range(context.random.randint(0, 30))]
        slots = context.random.randint(1, 9)
        starts, end = planning.schedule(times, slots)
        wanted, wanted_end = exact_schedule(times, slots)
        same(f"the starts of {times} in {slots} slots", [start for _, start in starts], wanted)
        same(f"the end of {times} in {slots} slots", end, wanted_end)
        for slot in range(slots):
            own = sorted((start, start + took) for (at, start), took in zip(starts, times, strict=True) if at == slot)
            expect(all(one[1] <= other[0] for one, other in itertools.pairwise(own)),
                   f"expected one guest at a time in slot {slot}; got {own}")


def orders(context):
    """Longest first against the best of all orders: Graham's bound."""
    for guests, slots in [(1, 1), (3, 2), (5, 2), (5, 3), (6, 2), (6, 3), (6, 4), (7, 2), (7, 3)]:
        times = [context.random.uniform(0.5, 10) for _ in range(guests)]
        best = min(exact_schedule(list(order), slots)[1] for order in itertools.permutations(times))
        longest = exact_schedule(planning.ordered(times, "longest", float), slots)[1]
        bound = 4 / 3 - 1 / (3 * slots)
        expect(best <= longest <= best * bound * (1 + 1e-12),
               f"expected longest first to take {best} to {bound:.3f} times that for {times} in {slots} slots; got "
               f"{longest}")
        order = planning.best_order(times, slots, float)
        chosen = planning.schedule(planning.ordered(times, order, float), slots)[1]
        expect(chosen <= longest, f"expected the chosen order, {order}, not to be worse than {longest}; got {chosen}")
    # The known worst case of longest first, for two slots: 7/6 of the best.
    same("longest first of 3 3 2 2 2", planning.schedule([3.0, 3.0, 2.0, 2.0, 2.0], 2)[1], 7.0)
    same("the order chosen for one slot", planning.best_order([2.0, 1.0], 1, float), "shortest")


def longer_times_never_end_earlier(context):
    for _ in range(200):
        low = [context.random.uniform(0, 5) for _ in range(context.random.randint(1, 12))]
        high = [took + context.random.uniform(0, 2) for took in low]
        slots = context.random.randint(1, 4)
        ends = planning.schedule(low, slots)[1], planning.schedule(high, slots)[1]
        expect(ends[0] <= ends[1], f"expected {low} to end before {high} in {slots} slots; got {ends}")


GUESTS = {
    "idle": Writer(4096),
    "uniform": Writer(4096, hot=1024, rate=2500, pattern="random"),
    "skewed": Writer(8192, hot=4096, rate=3000, pattern="hotcold"),
    "cyclic": Writer(2048, hot=1536, rate=1500),
}


def times_of_guests(context):
    """Every guest and the whole plan against pages sent one by one."""
    with tempfile.TemporaryDirectory() as folder:
        files = [save(folder, f"{name}.json", rehearsal(writer)) for name, writer in GUESTS.items()]
        for slots, link in [(1, 32 * MIB), (2, 64 * MIB), (3, 60 * MIB)]:
            found, _ = planned(folder, *files, "--link", link, "--usable", "100%", "--at-a-time", slots,
                               "--downtime-limit", f"{LIMIT * 1e3:.0f}ms", "--order", "as-given")
            same("the guests in their order", [move["name"] for move in found["guests"]], list(GUESTS))
            exact = {name: exact_move(writer, link // slots) for name, writer in GUESTS.items()}
            for move in found["guests"]:
                total, downtime = exact[move["name"]]
                label = f"of {move['name']} at {link // slots // MIB} MiB/s"
                near(f"the time {label}", move["end_s"] - move["start_s"], total, TOLERANCE)
                expect(abs(move["prediction"]["downtime_ms"] / 1e3 - downtime) <= 0.25 * LIMIT,
                       f"expected a downtime {label} of {downtime:.4f} s; got {move['prediction']['downtime_ms']} ms")
            end = exact_schedule([total for total, _ in exact.values()], slots)[1]
            near(f"the whole plan's time, {slots} at a time", found["total_s"]["expected"], end, TOLERANCE)
            total = found["total_s"]
            expect(total["low"] <= total["expected"] <= total["high"], f"expected an interval in order; got {total}")


def guests_too_busy(context):
    """One that needs the whole link goes last, alone; one that needs more is left out, unless it may be throttled."""
    with tempfile.TemporaryDirectory() as folder:
        calm = save(folder, "calm.json", rehearsal(Writer(4096)))
        busy = save(folder, "busy.json", rehearsal(Writer(16384, hot=16384, rate=10000, pattern="random")))
        mad = save(folder, "mad.json", rehearsal(Writer(16384, hot=16384, rate=40000, pattern="random")))
        link = ("--link", 64 * MIB, "--usable", "100%", "--at-a-time", "4")
        found, said = planned(folder, busy, calm, mad, *link, "--order", "as-given", code=1)
        same("the guests planned", [(move["name"], move["alone"]) for move in found["guests"]],
             [("calm", False), ("busy", True)])
        last = found["guests"][1]
        same("the bandwidth of the one alone", last["max_bandwidth_bytes_per_s"], 64 * MIB)
        same("when it starts", last["start_s"], found["guests"][0]["end_s"])
        same("when the plan ends", found["total_s"]["expected"], last["end_s"])
        same("who is left out", [guest["name"] for guest in found["left_out"]], ["mad"])
        needed = found["left_out"][0]["prediction"]["needed_bandwidth_bytes_per_s"]
        expect(needed and needed > 64 * MIB, f"expected the bandwidth it needs; got {needed}")
        for text in ("mad is left out", "busy: not converging at 179 Mbit/s, so at the end"):
            expect(text in said, f"expected '{text}' in what is said; got:\n{said}")
        found, _ = planned(folder, busy, calm, mad, *link, "--throttle", "auto")
        same("the guests left out with throttling", found["left_out"], [])


def how_many_at_a_time(context):
    """Where set-up is most of it many at a time are better, where the link is, one after the other."""
    def chosen(writer, **path):
        with tempfile.TemporaryDirectory() as folder:
            file = save(folder, "one.json", rehearsal(writer, path={**PATH, **path}))
            many = save(folder, "plan.json", [{"name": "g", "profile": file.name, "count": 20}])
            found, said = planned(folder, many, "--link", 256 * MIB)
            tried = [plan["at_a_time"] for plan in found["tried"]]
            same("what was tried", tried, [1, 2, 4, 8, 16])
            best = min(plan["total_s"]["expected"] for plan in found["tried"])
            near("the plan's time", found["total_s"]["expected"], best, 0.001)
            expect("<- chosen" in said and f"{found['at_a_time']} at a time" in said,
                   f"expected the choice to be named; got:\n{said}")
            return found["at_a_time"]

    slow = chosen(Writer(1024), setup_ns=5 * 10**9)
    expect(slow == 16, f"expected 16 at a time where set-up takes 5 s; got {slow}")
    busy = chosen(Writer(16384, hot=16384, rate=6000), setup_ns=0)
    expect(busy == 1, f"expected one at a time of guests that write a tenth of the link; got {busy}")


def bounds_and_ties(context):
    def some(at_a_time, total, downtime, left_out=0):
        made = planning.Plan(at_a_time, "longest", 1.0, [], [None] * left_out, {"expected": total})
        made.worst = lambda: planning.Move(None, {"downtime_ms": downtime}, 1, 0, 0.0, False)
        return made

    for label, plans, wanted in [
        ("the quickest", [some(1, 10, 5), some(2, 8, 5), some(4, 9, 5)], 2),
        ("fewest at a time where it makes no difference", [some(1, 8.001, 5), some(2, 8, 5)], 1),
        ("the most guests, whatever it takes", [some(1, 10, 5), some(2, 8, 5, 1)], 1),
        ("a downtime within the bound", [some(1, 10, 50), some(2, 8, 101)], 1),
        ("the quickest where none keeps the bound", [some(1, 10, 150), some(2, 8, 101)], 2),
    ]:
        same(label, planning.choose(plans, 100).at_a_time, wanted)


STUB = """#!/bin/sh
echo "start $2" >>"$LOG"; sleep 0.05; echo "end $2" >>"$LOG"
[ "$2" != b ]
"""


def script(context):
    """The script, with a wander that only takes notes: the order, never more than k, and a failure does not stop it."""
    with tempfile.TemporaryDirectory() as folder:
        entries = [{"name": name, "profile": "one.json"} for name in ("a", "b", "c d".replace(" ", "."), "e")]
        entries.append({"name": "qmp:/run/my guest's.sock", "profile": "one.json"})
        save(folder, "one.json", rehearsal(Writer(1024), "rdma", "tcp"))
        toml = "".join(f'[[guests]]\nname = {json.dumps(entry["name"])}\nprofile = "one.json"\n' for entry in entries)
        commands, log = Path(folder) / "evacuate", Path(folder) / "log"
        done = plan(save(folder, "plan.toml", toml), "--link", "1Gbit", "--at-a-time", "2", "--to", "[::1]:7400",
                    "--throttle", "60%", "--commands", commands)
        same("the exit code", (done.returncode, done.stderr), (0, ""))
        save(folder, "wander", STUB).chmod(0o755)
        ran = subprocess.run([commands], env={"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(log)})
        same("the script's exit code, with one that fails", ran.returncode, 1)
        notes = [line.split(" ", 1) for line in log.read_text().splitlines()]
        under_way = most = 0
        for what, _ in notes:
            under_way += 1 if what == "start" else -1
            most = max(most, under_way)
        same("the most at a time", most, 2)
        same("who was started", sorted(name for what, name in notes if what == "start"),
             sorted(entry["name"] for entry in entries))
        expect("wander migrate a 'rdma://[::1]:7400' --max-bandwidth 58750000 --downtime-limit 300ms --throttle 60%"
               in commands.read_text(), f"expected the command for a; got:\n{commands.read_text()}")


def many(context):
    """Guests that are alike are simulated once; of many there is a summary."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder, "one.json", rehearsal(Writer(1024, hot=64, rate=100), "tcp", "rdma"))
        file = save(folder, "plan.json", {"guests": [
            {"name": "small", "profile": "one.json", "count": 5000},
            {"name": "held", "profile": "one.json", "count": 5000, "max_bandwidth": "10M", "downtime_limit": "1s"}]})
        found, said = planned(folder, file, "--link", "100Gbit", "--at-a-time", "8", "--transport", "rdma")
        same("how many", len(found["guests"]), 10000)
        same("over what", {move["transport"] for move in found["guests"]}, {"rdma"})
        held = next(move for move in found["guests"] if move["name"] == "held-1")
        same("the bandwidth of one that is held", held["max_bandwidth_bytes_per_s"], 10 * MIB)
        near("the bytes of all", found["bytes"], 10000 * 1024 * PAGE, 0.1)
        expect("Gone: 25%" in said and len(said.splitlines()) < 40, f"expected a summary; got:\n{said}")


def errors(context):
    good = rehearsal(Writer(1024), "tcp")
    broken = json.loads(json.dumps(good))
    broken["guest"]["windows_ns"][3] = 0
    infinite = json.dumps(good).replace('"guest_share": 1', '"guest_share": 1e999')
    unusable = json.loads(json.dumps(good))
    unusable["paths"].append({"transport": "rdma", "usable": False, "error": "no device"})
    link = ("--link", "1Gbit")
    table = [
        ("no file", ["nothing.json", *link], "cannot read"),
        ("a folder", [".", *link], "Is a directory"),
        ("no JSON", ["{", *link], "is not JSON"),
        ("too deep", ["[" * 100000, *link], "is not JSON"),
        ("no profile", [{"paths": []}, *link], "is no profile"),
        ("another file", [{"rounds": []}, *link], "is no profile"),
        ("paths that are none", [{"guest": {}, "paths": [3]}, *link], "not a list of objects"),
        ("an empty plan", [[], *link], "no list of guests"),
        ("a plan without a profile", [[{"name": "a"}], *link], "no profile; name the file"),
        ("an unknown key", [[{"profile": "x", "size": 1}], *link], "unknown key 'size'"),
        ("a count of 0", [[{"profile": "x", "count": 0}], *link], "not from 1 to 1000000"),
        ("a count that is none", [[{"profile": "x", "count": True}], *link], "not a number"),
        ("a bad rate in a plan", [[{"profile": "x", "max_bandwidth": "1"*30}], *link], "guest 1: '1111"),
        ("a plan's profile that is not there", [[{"profile": "x"}], *link], "cannot read"),
        ("a name that is an option", [[{"profile": "good.json", "name": "-a"}], *link], "is no guest name"),
        ("a name that is none", [[{"profile": "good.json", "name": "a\nb"}], *link], "is no guest name"),
        ("the same name twice", [[{"profile": "good.json"}] * 2, *link], "two guests are called 'good'"),
        ("a transport it lacks", [good, *link, "--transport", "rdma"], "rdma was not tried"),
        ("a transport that cannot be used", [unusable, *link, "--transport", "rdma"], "could not be used (no device)"),
        ("a profile that cannot be", [broken, *link], "windows_ns do not grow; make it anew"),
        ("a number that is none", [infinite, *link], "not finite"),
        ("a link of 0", [good, "--link", "0"], "'0' is not a rate above 0"),
        ("no link", [good], "--link"),
        ("0 at a time", [good, *link, "--at-a-time", "0"], "'0' is neither auto nor a number from 1"),
        ("a downtime of 0", [good, *link, "--downtime-limit", "0"], "not a time above 0"),
        ("a throttle that is none", [good, *link, "--throttle", "100%"], "none of auto, none"),
        ("an output that cannot be written", [good, *link, "--json", "/nowhere/plan.json"], "cannot write"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        save(folder, "good.json", good)
        for label, (file, *options), wanted in table:
            path = folder if file == "." else Path(folder) / file if file == "nothing.json" else save(
                folder, "input.json", file)
            done = plan(path, *options)
            expect(done.returncode == 2 and wanted in done.stderr and "Traceback" not in done.stderr,
                   f"{label}: expected exit code 2 and '{wanted}'; got {done.returncode}: {done.stderr.strip()}")
            message = done.stderr.strip().splitlines()[-1]
            same(f"{label}: what was printed besides", done.stdout, "")
            expect(message.startswith("plan: "), f"{label}: expected one message; got {done.stderr.strip()}")
        done = subprocess.run([PLAN, Path(folder) / "good.json", *link, "--program", "/nowhere/wander"],
                              capture_output=True, text=True)
        expect(done.returncode == 2 and "cannot run '/nowhere/wander'" in done.stderr,
               f"expected exit code 2 without a wander; got {done.returncode}: {done.stderr.strip()}")


def values(context):
    for read, table in [
        (plan_input.rate, {"10Gbit": 1250000000, "100M": 100 * MIB, "100MiB/s": 100 * MIB, "8bit": 1, "4096": 4096,
                           "1gbit": 125000000, "2K": 2048}),
        (plan_input.milliseconds, {"300ms": 300, "2s": 2000, "50us": 0.05, "20": 20, "5m": 300000}),
        (plan_input.throttle, {"auto": 99, "none": 0, "60%": 60}),
        (plan_input.percentage, {"94%": 0.94, "100%": 1, "12.5%": 0.125}),
    ]:
        for text, wanted in table.items():
            same(f"{read.__name__} '{text}'", read(text), wanted)


def carried_out(context):
    """From real guests, profiled, to guests that run at the destination, by the script that was written."""
    with World() as world:
        here, there = world.host("here"), world.host("there")
        receiver, files = there.receive(), []
        for number, name in enumerate(["small", "middle", "large"], 1):
            here.lab(name, memory=f"{48 * number}M", workload=f"touch={16 * number}M,hot=1M,rate=500",
                     accel="synthetic")
            files.append(world.path / f"{name}.json")
            done = here.run("predict", name, receiver.uri, "--sample", "200ms", "--json", files[-1], seconds=60)
            expect(done.returncode == 0, f"expected a profile of {name}; got exit code {done.returncode}:\n{done.stdout}"
                                         f"{done.stderr}")
        commands = world.path / "evacuate"
        found, said = planned(world.path, *files, "--link", "1Gbit", "--at-a-time", "2", "--commands", commands, "--to",
                              receiver.uri.partition("//")[2])
        same("who goes first", [move["name"] for move in found["guests"]], ["large", "middle", "small"])
        program = world.path / "bin"
        program.mkdir()
        (program / "wander").symlink_to(Path(PROGRAM).resolve())
        ran = subprocess.run([commands], env={**here.env, "PATH": f"{program}:{os.environ['PATH']}"}, text=True,
                             capture_output=True)
        expect(ran.returncode == 0, f"expected the script to move all; it exited with {ran.returncode}: {ran.stderr}")
        expect(running([(there, name) for name in ("small", "middle", "large")]),
               f"expected all guests to run at the destination; the script said:\n{ran.stdout}{ran.stderr}")


CASES = {
    "schedules": schedules,
    "orders": orders,
    "longer-times-never-end-earlier": longer_times_never_end_earlier,
    "times-of-guests": times_of_guests,
    "guests-too-busy": guests_too_busy,
    "how-many-at-a-time": how_many_at_a_time,
    "bounds-and-ties": bounds_and_ties,
    "script": script,
    "many": many,
    "carried-out": carried_out,
    "errors": errors,
    "values": values,
}

if __name__ == "__main__":
    run_cases(__doc__, CASES)
