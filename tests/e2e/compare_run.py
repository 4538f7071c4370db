#!/usr/bin/python3
"""testbed/compare: the order of moves, when repeats grow and when they end, hosts that die; and, with both ends on this
machine, a comparison that is interrupted, resumed and completed, and one in which moves fail."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import types
from pathlib import Path

from cases import run_cases
from hosts import PROGRAM, ROOT, SLOW, Failure, expect, wait_until

import compare_run
import compare_store
import link_limits
import nic_counters
import pair
import scenario
import trial

TINY = """
title = "Tiny"
question = "One lane or two?"
[guest]
memory = "24M"
accel = "synthetic"
workload = "touch=4M"
[axis]
label = "writes"
unit = "pages/s"
[[point]]
x = 0
[[point]]
x = 500
guest = { workload = "touch=4M,hot=1M,rate=500" }
[[contender]]
name = "one"
transport = "tcp"
options = ["--lanes=1"]
[[contender]]
name = "two"
transport = "tcp"
options = ["--lanes=2"]
"""
FAILING = """
title = "Failing"
question = "Does the rest go on?"
[guest]
memory = "24M"
accel = "synthetic"
workload = "touch=4M"
[[contender]]
name = "cut"
transport = "tcp"
options = ["--filter=fault=cut@1"]
[[contender]]
name = "whole"
transport = "tcp"
[[contender]]
name = "card"
transport = "rdma"
"""


# --- the order of things, without hosts


class FakeHost:
    def __init__(self, run):
        self.run_of = run

    def run(self, command, **_):
        expect(self.run_of["alive"], "the host is gone")
        return types.SimpleNamespace(returncode=0, stdout="")


class FakeEnd:
    def __init__(self, name, run):
        self.name, self.address, self.host = name, "10.0.0.1", FakeHost(run)

    def __str__(self):
        return self.name

    def guests_kvm(self):
        return True


@contextlib.contextmanager
def without_hosts(totals, dies_at=()):
    """Moves cost nothing and take what `totals(workload, option, how many there are)` says; hosts die at the moves of
    those numbers, or of which `dies_at(moves so far)` says so. Gives the moves made: (workload, option, source, whether
    it counts)."""
    state, moves, counts = {"alive": True}, [], {}

    @contextlib.contextmanager
    def open_pair(_):
        state["alive"] = True
        yield (FakeEnd("a", state), FakeEnd("b", state)), None

    def run(source, destination, plan, measured, _machine):
        moves.append((plan.settings["workload"], plan.options[0], str(source), measured))
        if dies_at(moves) if callable(dies_at) else len(moves) in dies_at:
            state["alive"] = False
            return {**trial.NOTHING, "failed": "no answer"}
        key = moves[-1][:2]
        counts[key] = counts.get(key, 0) + measured
        total = totals(*key, counts[key])
        return {**trial.NOTHING, "failed": None if total else "it broke",
                "report": {"total_ms": total * 1e3, "downtime_ms": 1.0, "rounds": []} if total else None}

    replaced = {(pair, "open_pair"): open_pair, (pair, "check"): lambda *_: None, (trial, "run"): run,
                (pair, "facts_of"): lambda end, _: {"host": str(end)}, (link_limits, "measure"): lambda *_: []}
    with replacing(replaced):
        yield moves


@contextlib.contextmanager
def a_run(text=TINY, **more):
    """A Run of a scenario in a folder of its own."""
    defaults = {"repeats": 5, "max_repeats": 8, "confidence": 0.10, "only": None, "hosts": ["x", "y"], "predict": True,
                "limits": True, "move_seconds": 60}
    options = types.SimpleNamespace(**{**defaults, **more})
    with tempfile.TemporaryDirectory() as out, open(os.devnull, "w") as nowhere:
        store = compare_store.Store(Path(out) / "out")
        scenarios = [scenario.parse(text, "tiny.toml")]
        lists = {name: [] for name in ("boots", "warnings", "errors", "ends")}
        store.begin({"scenarios": scenarios, "counter_words": {}, **lists})
        run = compare_run.Run(options, scenarios, store)
        run.progress.out, run.progress.terminal = nowhere, False
        yield run


def turns(context):
    asked = []
    with without_hosts(lambda *_: 1.0) as moves, a_run(repeats=4, max_repeats=4) as run:
        run.progress.left = lambda steps: asked.append(steps) or ""
        run.run()
        # Asked before and after each move.
        expect(asked[:9] == [20] * 8 + [16] and asked[-1] == 0 and asked == sorted(asked, reverse=True),
               f"expected the time left to be that of 4 warm-ups and 16 moves, then of the 16, and none at last; got "
               f"{asked}")
        expect([move[3] for move in moves[:4]] == [False] * 4 and all(move[3] for move in moves[4:]),
               f"expected a warm-up of each contender in either direction first; got {moves[:5]}")
        expect(len({move[1:3] for move in moves[:4]}) == 4, f"expected each of them once; got {moves[:4]}")
        counted = moves[4:]
        expect(len(counted) == 16, f"expected 2 points, 2 contenders and 4 repeats to be 16 moves; got {len(counted)}")
        first = [(move[1], move[2]) for move in counted[::2]]
        expect(len(set(first[::2])) == 4, f"expected each contender to be first in either direction; got {first}")
        for one, other in zip(counted[::2], counted[1::2], strict=True):
            expect(one[0] == other[0] and one[1] != other[1] and one[2] == other[2],
                   f"expected contenders in turn at one point and in one direction; got {one} and {other}")


def growth(context):
    wide = [0.5, 2.0]

    def totals(workload, option, count):
        return wide[count % 2] if option == "--lanes=2" and "hot" in workload else 1.0 + count / 1000

    with without_hosts(totals) as moves, a_run() as run:
        run.run()
        made = {cell.key: len(cell.tried) for cell in run.cells}
        wanted = {"0/one": 5, "0/two": 5, "500/one": 8, "500/two": 8}
        expect(made == wanted, f"expected repeats to grow at the point where an interval is wide: {wanted}; got {made}")
        grown = [move[1:3] for move in moves[-6:]]
        expect(all(one[0] != other[0] and one[1] == other[1] for one, other in zip(grown[::2], grown[1::2])),
               f"expected contenders in turn and in one direction also then; got {grown}")
        warnings = run.store.document["warnings"]
        expect(len(warnings) == 1 and "500/two" in warnings[0] and "8 repeats" in warnings[0],
               f"expected a warning about what is not known well; got {warnings}")
    with without_hosts(totals), a_run("max_repeats = 6\n" + TINY) as run:
        run.run()
        made = [len(cell.tried) for cell in run.cells]
        expect(made == [5, 5, 6, 6], f"expected the scenario's own limit to hold; got {made}")


def failures(context):
    def totals(workload, option, count):
        return 0.0 if option == "--lanes=1" and "hot" in workload else 1.0

    with without_hosts(totals), a_run() as run:
        run.run()
        made = {cell.key: len(cell.tried) for cell in run.cells}
        expect(made["500/one"] == compare_run.ENOUGH_FAILURES and made["500/two"] == 5,
               f"expected what always fails to be left alone and the rest to go on; got {made}")
        errors = run.store.document["errors"]
        expect(len(errors) == compare_run.ENOUGH_FAILURES and errors[0]["text"] == "it broke",
               f"expected every failure to be recorded; got {errors}")


def lost_hosts(context):
    with without_hosts(lambda *_: 1.0, dies_at=(6,)) as moves, a_run(max_repeats=5) as run:
        run.run()
        boots = [boot["id"] for boot in run.store.document["boots"]]
        expect(boots == [1, 2], f"expected a new boot after the hosts were lost; got {boots}")
        expect(any("lost" in warning for warning in run.store.document["warnings"]), "expected a warning about that")
        files = [move for cell in run.cells for move in run.store.moves(cell).values()]
        expect(sum(not move["warm_up"] for move in files) == 20, "expected every move to be made in the end")
        expect(not any(move["failed"] for move in files), "expected a move that the hosts' death ended not to count")
        expect([move[3] for move in moves[6:8]] == [False, False], "expected a warm-up after the new boot")
    with without_hosts(lambda *_: 1.0, dies_at=range(1, 100)), a_run() as run:
        try:
            run.run()
        except Failure as failure:
            expect("boots" in str(failure), f"expected to hear how many boots were lost; got {failure}")
        else:
            raise Failure("expected hosts that always die to end the comparison")
    deadly = ("touch=4M", "--lanes=2")
    with without_hosts(lambda *_: 1.0, lambda moves: moves[-1][:2] == deadly and moves[-1][3]), \
            a_run(max_repeats=5) as run:
        run.run()
        expect(len(run.store.document["boots"]) == 3, "expected a third boot without the move that hosts die of; got "
                                                      f"{len(run.store.document['boots'])}")
        made = {cell.key: len(cell.tried) for cell in run.cells}
        expect(made == {"0/one": 5, "0/two": 0, "500/one": 5, "500/two": 5}, f"expected all others; got {made}")
        expect(any("left out" in text and "0/two" in text for text in run.store.document["warnings"]),
               f"expected to hear what is left out; got {run.store.document['warnings']}")
    with without_hosts(lambda *_: 1.0, lambda moves: moves[-1][3]) as moves, a_run() as run:
        try:
            run.run()
        except Failure:
            expect(len(moves) == 5 * compare_run.ENOUGH_BOOTS, f"expected 3 boots; got {len(moves)} moves")
        else:
            raise Failure("expected hosts that die at every move that counts to end the comparison")


def ends(context):
    """Facts of devices come from the reports of several guests, too, and stay known when a later boot has none."""
    reports = [[{"rdma": {"device": "rxe0"}}, {"rdma": None}], [{"rdma": None}]]
    found = {}

    def facts_of(end, moves):
        found.update({"rdma": move["report"]["rdma"] for move in moves if move["report"]["rdma"]})
        return {"host": str(end), **found}

    with without_hosts(lambda *_: 1.0), a_run() as run:
        pair.facts_of = facts_of
        session = run.session([FakeEnd("a", {"alive": True}), FakeEnd("b", {"alive": True})], None)
        for boot, said in enumerate(reports, 1):
            session.boot["id"] = boot
            move = {"boot": boot, "failed": None, "report": None, "guests": [{"report": report} for report in said]}
            run.store.moves = lambda cell, move=move: {"01": move} if cell is run.cells[0] else {}
            found.clear()
            run.note_ends(session)
            got = [end.get("rdma") for end in run.store.document["ends"]]
            expect(got == [{"device": "rxe0"}] * 2, f"expected the devices of both ends after boot {boot}; got {got}")


@contextlib.contextmanager
def replacing(replaced):
    """{(module, name): value}, for a while."""
    before = {(module, name): getattr(module, name) for module, name in replaced}
    for (module, name), value in replaced.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def mixed(context):
    """What must not be mixed: boots in one interval, links, and kinds of guests."""
    with without_hosts(lambda *_: 1.0), a_run() as run:
        cell = run.cells[0]
        for repeat in range(1, 9):
            cell.take("", {"warm_up": False, "repeat": repeat, "failed": None, "boot": 1 if repeat < 5 else 2,
                           "report": {"total_ms": 1e3}})
        expect(not cell.known(0.1), "expected 4 runs in each of two boots not to make a median known")
        cell.take("", {"warm_up": False, "repeat": 9, "failed": None, "boot": 2, "report": {"total_ms": 1e3}})
        expect(cell.known(0.1), "expected 5 runs of one boot to make it known")
        one, other = FakeEnd("a", {"alive": True}), FakeEnd("b", {"alive": True})
        run.accel = {}
        session = run.session([one, other], None)
        run.accel_of(session, None)
        for what, change in (("link", lambda: setattr(one, "address", "10.9.9.9")),
                             ("synthetic", lambda: setattr(one, "guests_kvm", lambda: False))):
            change()
            run.accel = {}
            try:
                run.session([one, other], None) if what == "link" else run.accel_of(session, None)
            except Failure as failure:
                expect(what in str(failure), f"expected '{what}' in the message; got {failure}")
            else:
                raise Failure(f"expected to be told that moves would not compare: {what}")


def spoilt(context):
    """What is gone on with was written by somebody: a file without what belongs into it is one message, or no move."""
    boot = {"id": 1, "hosts": [{"host": "a", "address": "x"}, {"host": "b", "address": "y"}], "limits": []}
    about = {"wander": "w", "wander_sha256": "s", "hosts": "h", "finished": False, "command": [], "repeats": 5,
             "max_repeats": 5, "confidence_target": 0.1, "scenarios": [{"name": "n", "text": "t"}], "ends": [],
             "boots": [boot], "counter_words": {}, "warnings": ["left out: all", "odd"], "errors": []}
    spoil = [{key: value} for key in ("scenarios", "boots", "warnings", "errors", "ends") for value in (None, 7, {})]
    spoil += [{"scenarios": [{}]}, {"boots": [{**boot, "hosts": [{}]}]}, {"boots": [{"id": 1}]}]
    with tempfile.TemporaryDirectory() as folder:
        store = compare_store.Store(folder)
        store.begin(about)
        store.resume(about)
        expect(store.document["warnings"] == ["odd"], f"expected what may have passed to go; got {store.document}")
        for change in spoil:
            pair.save(store.main, {"schema": 1, **about, **change})
            try:
                store.resume(about)
            except Failure as failure:
                expect("--resume" in str(failure), f"expected to be told of {change}; got {failure}")
            else:
                raise Failure(f"expected a comparison with {change} not to be gone on with")
    move = {"warm_up": False, "repeat": 1, "order": 1, "boot": 1, "failed": None, "report": {"total_ms": 5.0}}
    expect(compare_store.whole(move), f"expected {move} to be a move")
    for change in ({"repeat": "1"}, {"boot": None}, {"report": 7}, {"report": {}}, {"guests": 7}, {"guests": [{}]}):
        expect(not compare_store.whole({**move, **change}), f"expected a move with {change} to be none")
    del move["failed"]
    expect(not compare_store.whole(move), "expected a move of which is not told whether it failed to be none")


def only(context):
    with without_hosts(lambda *_: 1.0), a_run(only="500/*") as run:
        expect([cell.key for cell in run.cells] == ["500/one", "500/two"], f"got {[cell.key for cell in run.cells]}")
    try:
        with a_run(only="nothing/*"):
            raise Failure("expected --only that fits nothing to be refused")
    except Failure as failure:
        expect("nothing/*" in str(failure), f"expected the pattern in the message; got {failure}")


def shaping(context):
    """Real hosts, and those of the fake, are left as they are."""
    shaped = TINY.replace('x = 500\n', 'x = 500\nlink = { delay = "5ms" }\n')
    with without_hosts(lambda *_: 1.0), a_run(shaped) as run:
        run.run()
        made = {cell.key: len(cell.tried) for cell in run.cells}
        expect(made == {"0/one": 5, "0/two": 5, "500/one": 0, "500/two": 0},
               f"expected points that need another link to be left out; got {made}")
        expect("500/one" in run.store.document["warnings"][0], f"got {run.store.document['warnings']}")


class FakeInstance:
    """Virtual hosts' link; `breaks` is raised once it is shaped."""

    def __init__(self):
        self.link, self.breaks = {}, None

    def read(self):
        return {"settings": {"link": {}}}

    def shape(self, link):
        self.link = link
        if self.breaks:
            raise self.breaks


def restoring(context):
    """The link is as it was afterwards, also when what changes it was interrupted, or one part of it fails."""
    state, found = {"alive": True}, FakeInstance()
    ends = [FakeEnd("a", state), FakeEnd("b", state)]
    machine = types.SimpleNamespace(instance=found)
    settings = {"link": "delay=5ms", "mtu": None}
    for trouble in (KeyboardInterrupt(), Failure("no answer"), None):
        session = compare_run.Session(types.SimpleNamespace(options=types.SimpleNamespace(limits=False)), ends, machine,
                                      {"id": 1})
        with contextlib.suppress(KeyboardInterrupt, Failure), contextlib.ExitStack() as stack:
            session.prepare(stack)
            stack.callback(setattr, found, "breaks", None)
            found.breaks = trouble
            session.set_link(settings)
            session.mtus = compare_run.UNKNOWN  # and cannot be set: there is no interface
        expect(found.link == {}, f"expected the link as it was after {trouble!r}; got {found.link}")


def counters(context):
    before = nic_counters.parse("= interface\nNIC statistics:\n     rx_bytes: 5\n     tx_prio3_pause: 2\n"
                                "= rdma\nout_of_sequence:3\n= tcp\nTcp: RetransSegs InSegs\nTcp: 7 9\n")
    after = nic_counters.parse("= interface\nNIC statistics:\n     rx_bytes: 5\n     tx_prio3_pause: 6\n"
                               "= rdma\nout_of_sequence:3\nnp_cnp_sent:1\n= tcp\nTcp: RetransSegs InSegs\nTcp: 8 10\n")
    changed = nic_counters.changed(before, after)
    wanted = {"interface": {"tx_prio3_pause": 4}, "rdma": {"np_cnp_sent": 1}, "tcp": {"RetransSegs": 1}}
    expect(changed == wanted, f"expected what changed, {wanted}; got {changed}")
    for name, words in (("tx_prio3_pause", "pauses"), ("rx_pause_ctrl_phy", "pauses"), ("out_of_sequence", "sequence"),
                        ("np_ecn_marked_roce_packets", "ECN"), ("RetransSegs", "again"),
                        ("local_ack_timeout_err", "again"), ("rx_discards_phy", "dropped")):
        expect(words in (nic_counters.meaning(name) or ""), f"expected '{words}' in what {name} means; got "
                                                            f"{nic_counters.meaning(name)}")
    expect(nic_counters.meaning("ack_deferred") is None, "expected an answer that comes later to be no error")
    for name in ("InErrs", "rx_errors_phy", "resp_local_length_error", "symbol_error", "rx_err_lane_0_phy"):
        expect(nic_counters.meaning(name), f"expected {name} to mean trouble")
    told = nic_counters.told({"source": {**changed, "interface": {"rx_bytes": 8}}, "destination": {"rdma": {}}})
    wanted = ("counters: source np_cnp_sent +1 (congestion notifications sent), "
              "source RetransSegs +1 (TCP segments sent again)")
    expect(told == wanted, f"expected '{wanted}'; got '{told}'")
    expect(nic_counters.told({"source": {"interface": {"rx_bytes": 8}}}) is None, "expected no line without trouble")
    expect(nic_counters.meaning("rx_bytes") is None, "expected no words for a counter that says nothing of trouble")
    expect(nic_counters.parse("") == {"interface": {}, "rdma": {}, "tcp": {}}, "expected nothing of silence")


# --- the program, with both ends on this machine


def compare(folder, text, *arguments, name="tiny"):
    path = Path(folder) / f"{name}.toml"
    path.write_text(text)
    return [str(ROOT / "testbed" / "compare"), str(path), "--hosts", "local", "--out", str(Path(folder) / "out"),
            "--program", PROGRAM, "--repeats", "2", "--max-repeats", "2", *arguments]


def run_to_end(argv, seconds=120):
    return subprocess.run(argv, capture_output=True, text=True, timeout=seconds * SLOW, stdin=subprocess.DEVNULL)


def document(folder):
    return json.loads((Path(folder) / "out" / "comparison.json").read_text())


def files_of(folder):
    return sorted((Path(folder) / "out" / "moves").rglob("*.json"))


def left_behind(mark):
    """Processes that a comparison started, by what it put into their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and f"WANDER_COMPARE_TEST={mark}".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def end_of_all(mark):
    """What waits for a process that was killed takes a moment to see that."""
    deadline = time.monotonic() + 10 * SLOW
    while left_behind(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = left_behind(mark)
    expect(not left, f"expected nothing to run any more; there are {left}")


def interrupted(context):
    with tempfile.TemporaryDirectory() as folder:
        argv = compare(folder, TINY)
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   stdin=subprocess.DEVNULL, env={**os.environ, "WANDER_COMPARE_TEST": mark})
        wait_until(lambda: len(files_of(folder)) >= 6 or process.poll() is not None, 60, "6 moves to be there")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60 * SLOW)[0]
        expect(process.returncode == 130, f"expected exit code 130 after SIGINT; got {process.returncode}:\n{said}")
        expect("--resume" in said, f"expected to be told how to go on; got {said}")
        end_of_all(mark)
        expect(document(folder)["finished"] is False, "expected an interrupted comparison not to be finished")
        before = {path: path.read_bytes() for path in files_of(folder)}
        for path, content in before.items():
            expect(json.loads(content)["schema"] == 1, f"expected {path} to be whole")
        refuses(folder)
        torn = max(path for path in before if not path.stem.startswith("W"))
        torn.write_text("{")
        done = run_to_end([*argv, "--resume", "--no-limits", "--no-predict"])
        expect(done.returncode == 0, f"expected the resumed comparison to end well; got {done.returncode}:\n"
                                     f"{done.stdout}{done.stderr}")
        for path, content in before.items():
            expect(path == torn or path.read_bytes() == content, f"expected {path} to stay as it was")
        complete(folder)


def refuses(folder):
    """What is not the same comparison is not gone on with."""
    again = run_to_end(compare(folder, TINY))
    expect(again.returncode == 1 and "--resume" in again.stderr, f"expected a used folder to be refused; got {again}")
    other = run_to_end([*compare(folder, TINY.replace("24M", "25M")), "--resume"])
    compare(folder, TINY)
    expect(other.returncode == 1 and "has changed" in other.stderr, f"expected it to be refused; got {other}")
    build = Path(folder) / "wander"
    build.write_text(f"#!/bin/sh\nexec '{PROGRAM}' \"$@\"\n")
    build.chmod(0o755)
    other = run_to_end([*compare(folder, TINY), "--resume", "--program", str(build)])
    expect(other.returncode == 1 and "another build" in other.stderr, f"expected it to be refused; got {other}")


def complete(folder):
    about = document(folder)
    expect(about["finished"], "expected the comparison to be finished")
    expect([boot["id"] for boot in about["boots"]] == [1, 2], f"expected a boot for each start; got {about['boots']}")
    expect([end["host"] for end in about["ends"]] == ["a", "b"], f"expected facts of both ends; got {about['ends']}")
    moves = [json.loads(path.read_text()) for path in files_of(folder)]
    counted = [move for move in moves if not move["warm_up"]]
    keys = {(move["point"], move["contender"], move["repeat"]) for move in counted}
    expect(len(keys) == len(counted) == 8, f"expected 8 moves; got {sorted(keys)}")
    expect(len({move["order"] for move in moves}) == len(moves), "expected every move to have a number of its own")
    expect(any(move["prediction"] for move in counted), f"expected predictions; got {moves[-1]['prediction_error']}")
    for move in counted:
        where = f"{move['point']}/{move['contender']}/{move['repeat']}"
        went_well = move["failed"] is None and move["report"]["result"] == "completed"
        expect(went_well, f"expected {where} to go well; got {move}")
        expect(move["link"]["mtu"] > 1000, f"expected the link's MTU beside {where}; got {move['link']}")
        expect(move["wall_s"] * 1e3 >= move["report"]["total_ms"], f"expected the wall time of {where} to be longer")
        expect(move["source"] != move["destination"], f"expected {where} to go from one end to the other")
        rates = move["work"]["before_pages_per_s"], move["work"]["after_pages_per_s"]
        idle = move["point"] == "0"
        expect(rates == (None, None) if idle else all(rate > 0 for rate in rates),
               f"expected {'no' if idle else 'a'} rate of work before and after {where}; got {rates}")
        expect(bool(move["prediction"]) != bool(move["prediction_error"]), f"expected {where} foretold, or why not")


def going_on(context):
    with tempfile.TemporaryDirectory() as folder:
        done = run_to_end(compare(folder, FAILING, "--no-predict", "--no-limits", name="failing"))
        expect(done.returncode == 0, f"expected it to go on; got {done.returncode}:\n{done.stdout}{done.stderr}")
        about = document(folder)
        failed = [error for error in about["errors"] if error["contender"] == "cut"]
        expect(len(failed) == len(about["errors"]) == 4, f"expected those of one contender; got {failed}")
        expect("cut" in failed[0]["text"], f"expected what was tried in the error; got {failed[0]}")
        made = {path.parent.name: json.loads(path.read_text()) for path in files_of(folder) if path.stem == "01"}
        expect(set(made) == {"cut", "whole"}, f"expected no move over what is not there; got {sorted(made)}")
        expect(made["cut"]["failed"] and made["cut"]["report"]["result"] == "failed", f"got {made['cut']['failed']}")
        expect(made["whole"]["failed"] is None, f"expected the other to go well; got {made['whole']['failed']}")
        expect(any("left out" in text and "card" in text for text in about["warnings"]),
               f"expected a warning about what is not available; got {about['warnings']}")


def usage(context):
    for arguments, wanted in ((["quick", "--hosts", "one"], "two different"),
                              (["quick", "--hosts=-x,b"], "two different"),
                              (["quick", "--hosts", "a,a"], "two different"),
                              (["quick", "--repeats", "0"], "number of 1"), (["quick", "--confidence", "0"], "share"),
                              (["quick", "--confidence", "0.1"], "share"),
                              (["--out", "x"], "name the scenarios"),
                              (["quick", "--resume"], "--out"),
                              (["quick", "--hosts", "local", "--state", "x"], "virtual"),
                              (["no-such", "--out", "/nonexistent/x"], "no such scenario"),
                              (["quick", "--program", "/nonexistent"], "/nonexistent")):
        done = run_to_end([str(ROOT / "testbed" / "compare"), *arguments])
        expect(done.returncode in (1, 2) and wanted in done.stderr,
               f"expected {arguments} to be refused, "
               f"because '{wanted}'; got {done.returncode}: {done.stderr[-300:]}")


run_cases(__doc__, {"turns": turns, "growth": growth, "failures": failures, "lost hosts": lost_hosts, "ends": ends,
                    "mixed": mixed, "spoilt": spoilt, "only": only, "shaping": shaping, "restoring": restoring,
                    "counters": counters, "usage": usage, "interrupted": interrupted, "going on": going_on})
