#!/usr/bin/python3
"""What testbed/compare does around one move, without hosts: what stays of it when something goes wrong, rates of work,
how long is waited, and what the link can do."""

import contextlib
import json
import types
from unittest import mock

from cases import run_cases
from hosts import Failure, expect

import link_limits
import nic_counters
import pair
import trial


def failing(text):
    def fail(*_):
        raise Failure(text)
    return fail


def a_trial(code=0, **replaced):
    """What trial.run gives for a move that is not made, with functions of trial replaced by name."""
    @contextlib.contextmanager
    def passage(source, destination, transport, guest):
        process = types.SimpleNamespace(output=lambda: "", wait=lambda _: 0)
        yield pair.Passage(guest, process, process, "tcp://10.0.0.2:1")

    outcome = {"code": code, "said": "", "report": {"total_ms": 7}, "wall_s": 0.1, "trouble": None}
    defaults = {"foretell": lambda *_: ({"paths": []}, None), "work_rates": lambda *_: {pair.GUEST: 5.0},
                "look_after": lambda *_: None, "quit_all": lambda *_: None}
    settings = {"guests": 1, "memory": "1M", "workload": "hot=1M", "vcpus": 1}
    with mock.patch.multiple(pair, passage=passage, migrate=lambda *_: ([outcome], 0.2, {"source": {}})), \
            mock.patch.object(nic_counters, "look", lambda _: {"tcp": {}}), \
            mock.patch.multiple(trial, **{**defaults, **replaced}):
        return trial.run("a", "b", trial.Plan(settings, "tcp", [], "kvm"))


def kept(context):
    """What was found out about a move stays, whatever goes wrong around it."""
    good = a_trial()
    expect(good["failed"] is None and good["work"]["after_pages_per_s"] == 5.0, f"expected a good move; got {good}")
    looks = iter(({pair.GUEST: 5.0},))
    for what, found, left in (
            ("at the destination", a_trial(quit_all=failing("no end")), {}),
            ("in the guest", a_trial(look_after=lambda *_: "no end"), {"after_pages_per_s": None}),
            ("after the move", a_trial(work_rates=lambda *_: next(looks, None) or failing("no end")()),
             {"after_pages_per_s": None})):
        expect("no end" in (found["failed"] or ""), f"expected what went wrong {what}; got {found['failed']}")
        wanted = {**good, "failed": found["failed"], "work": {**good["work"], **left}}
        expect(found == wanted, f"expected all else to stay when something goes wrong {what}, {wanted}; got {found}")
    found = a_trial(foretell=failing("it hung"))
    expect(found == {**good, "prediction": None, "prediction_error": "it hung"},
           f"expected a move without a prediction, and why; got {found}")
    found = a_trial(code=1, work_rates=failing("no answer"))
    expect(found["report"] is None and found["prediction"], f"expected the prediction to stay; got {found}")


def half_said(context):
    """Programs that end in the middle of what they say."""
    passage = pair.Passage(pair.Guest("1M", ""), None, None, None)
    for text, wanted in (("", "told"), ("\n", "told"), ("0 1.0\n", "told"), ("0 1.0 2.0\n0 1.0 2.0\n", "told")):
        try:
            pair.ends_of(text, [passage], "a")
        except Failure as failure:
            expect(wanted in str(failure), f"expected '{wanted}' of {text!r}; got {failure}")
        else:
            raise Failure(f"expected {text!r} to be no end of a migration")
    expect(pair.ends_of("1 1.5 2\n", [passage], "a") == [(1, 1.5, 2.0)], "expected code, beginning and end")

    class Host:
        def run(self, command, **_):
            return types.SimpleNamespace(stdout='{"total_ms": ' if ".json" in command else "", returncode=0)

        def directory(self):
            return "/d"

    found = pair.outcome(types.SimpleNamespace(host=Host()), passage, 0, 1.0, 2.0)
    expect(found["report"] is None and "report of measured" in found["trouble"], f"expected half a report; got {found}")


def rates(context):
    for ms, wanted in ((trial.LEAST_RATE_MS - 1, None), (500, 2000.0)):
        work = {"pages_written_at_start": 100, "pages_written_at_pause": 1100, "ms": ms}
        got = trial.rate_during({"guest_work": work})
        expect(got == wanted, f"expected a rate of {wanted} pages/s from {work}; got {got}")
    for report in (None, {}, {"guest_work": None}):
        expect(trial.rate_during(report) is None, f"expected no rate of {report}")
    said = "".join(f"= one {when}\n{json.dumps({'pages_written': pages})}\n" for when, pages in ((5, 700), (7, 900)))
    host = types.SimpleNamespace(run=lambda *_, **__: types.SimpleNamespace(stdout=said))
    end = types.SimpleNamespace(host=host, program="wander", env={})
    found = trial.work_rates(end, [pair.Guest("1M", "hot=1M", name="one"), pair.Guest("1M", "", name="idle")])
    expect(found == {"one": 100.0}, f"expected 100 pages/s of the guest that writes; got {found}")


def limits(context):
    """As many streams as it takes, and as many messages as make a second."""
    for speeds, asked, wanted, tried in (
            ({1: 9.0, 2: 9.1, 4: 5.0}, set(), 9.1, "1, 2"),
            ({1: 4.0, 2: 7.0, 4: 8.0, 8: 8.1}, set(), 8.1, "1, 2, 4, 8"),
            ({1: 9.0, 2: 9.0, 6: 9.5}, {6}, 9.5, "1, 2, 6, 8")):
        with mock.patch.object(link_limits, "tcp", lambda *way, speeds=speeds: speeds.get(way[2], 1.0)):
            rate, note = link_limits.best_tcp("a", "b", asked)
        expect(rate == wanted and note.endswith(f"the best of {tried}"),
               f"expected {wanted} of {tried} streams; got {rate}: {note}")
    for speed, wanted in ((40e6, [512]), (12.5e9, [512, 190734])):
        made = []
        with mock.patch.object(link_limits, "rdma_once",
                               lambda *way, made=made, speed=speed: made.append(way[3]) or speed):
            link_limits.rdma("a", "b", ["ib_send_bw"])
        expect(made == wanted, f"expected {wanted} messages at {speed / 1e9:g} GB/s; got {made}")
    got = link_limits.lanes_of([["--lanes=4", "--verify"], [], ["--lanes=16"]])
    expect(got == {4, 16}, f"expected the lanes that are asked for; got {got}")


def patience(context):
    settings = {"guests": 1}
    for options, wanted in (([], 600), (["--max-time=10s"], 600), (["--max-time=20m"], 1200 + trial.SLACK_SECONDS),
                            (["--max-time=20m", "--max-time=1s"], 600)):
        got = trial.Plan(settings, "tcp", options, "kvm").seconds
        expect(got == wanted, f"expected {wanted} s for a move with {options}; got {got}")


run_cases(__doc__, {"kept": kept, "half said": half_said, "rates": rates, "limits": limits, "patience": patience})
