#!/usr/bin/python3
"""What tests/suite.py makes of the programs it runs: their lines, their ends, and a second try of those that failed."""

import os
import sys
import tempfile
from pathlib import Path

from cases import run_cases
from hosts import ROOT, SLOW, expect

sys.path.append(str(ROOT / "tests"))

import suite  # noqa: E402

LINES = (
    # what a program says: the results
    ("ok one (0.1 s)\n", [("ok", "one", "0.1 s)")]),
    ("seed 5\nok one (0.1 s)\nskip two: needs KVM\n", [("ok", "one", "0.1 s)"), ("skip", "two", "needs KVM")]),
    ("FAIL one: expected 3\n  got 4\n\nok two (1 s)\n  and more\n",
     [("FAIL", "one", "expected 3 | got 4"), ("ok", "two", "1 s)")]),
    ("FAIL one: a\nFAIL two: b\n  c\n", [("FAIL", "one", "a"), ("FAIL", "two", "b | c")]),
    ("okay one: no\n ok two: no\n", []),
)

PROGRAMS = (
    # what a program does: its results, without their texts
    ("echo 'ok one (0.1 s)'", [("ok", "x/one")]),
    ("echo 'ok one (0.1 s)'; exit 1", [("ok", "x/one"), ("FAIL", "x")]),
    ("echo 'FAIL one: it'; exit 1", [("FAIL", "x/one")]),
    ("echo 'skip one: it'; exit 77", [("skip", "x/one")]),
    ("echo skipped: no hosts; exit 77", [("skip", "x")]),
    ("exit 1", [("FAIL", "x")]),
    ("true", [("ok", "x")]),
)

SLEEPS = "echo 'ok one (0.1 s)'; exec sleep 600"

GOOD, BAD, OTHER = [("ok", "a", "")], [("ok", "a", ""), ("FAIL", "b", "why b")], [("FAIL", "c", "why c")]
BOTH = [("ok", "a", ""), ("ok", "b", "")]
SKIPS, ENDED, CASES = [("ok", "a", ""), ("skip", "b", "")], [("ok", "p/a", ""), ("FAIL", "p", "1")], [("ok", "p/a", "")]

SECOND_TRIES = (
    # (first results, what comes of the second try, None: there must be none), ...: passed, failed, unsteady
    ([(GOOD, None)], "a", "", ""),
    ([(BAD, BOTH)], "ab", "", "b"),
    ([(BAD, BAD)], "a", "b", ""),
    ([(BAD, GOOD)], "a", "b", ""),
    ([(BAD, SKIPS)], "a", "b", ""),
    ([(BAD, OTHER)], "", "bc", ""),
    ([(BAD, RuntimeError("no hosts"))], "a", "b", ""),
    ([(ENDED, CASES)], "p/a", "", "p"),
    ([(ENDED, ENDED)], "p/a", "p", ""),
    ([(ENDED, [("skip", "p", "")])], "", "p", ""),
    ([(GOOD, None), (BAD, BOTH), (OTHER, OTHER)], "aab", "c", "b"),
    ([(OTHER, [("ok", "c", "")])] * 3, "ccc", "", "ccc"),
    ([(OTHER, None)] * 4, "", "cccc", ""),
)

CRITERION = """[RUN ] a::b
[\x1b[0;34m----\x1b[0m] a case that is near
[\x1b[0;32mPASS\x1b[0m] a::a: (0.01s)
[\x1b[0;34m----\x1b[0m] ../../tests/unit/a.c:18: Assertion Failed
[\x1b[0;34m----\x1b[0m]   \n[\x1b[0;34m----\x1b[0m]   expected 3, got 4
[\x1b[0;31mFAIL\x1b[0m] a::b: (0.01s)
[====] Synthesis: Tested: 1 | Passing: 0
"""


def lines(context):
    for said, wanted in LINES:
        got = list(suite.results_in(said.splitlines(keepends=True)))
        expect(got == wanted, f"expected {wanted} of {said!r}; got {got}")


def criterion(context):
    got = suite.failures_in(CRITERION)
    wanted = ["../../tests/unit/a.c:18: Assertion Failed", "expected 3, got 4", "[FAIL] a::b: (0.01s)"]
    expect(got == wanted, f"expected {wanted}; got {got}")


def ends_as(script, limit, wanted):
    got = suite.run_program("x", ["bash", "-c", script], dict(os.environ), limit)
    expect([(result, name) for result, name, _ in got] == wanted, f"expected {wanted} of '{script}'; got {got}")


def programs(context):
    for script, wanted in PROGRAMS:
        ends_as(script, 60, wanted)
    ends_as(SLEEPS, 3 * SLOW, [("ok", "x/one"), ("FAIL", "x")])


def make(second, tried):
    tried.append(second)
    if isinstance(second, Exception):
        raise second
    return second


def second_tries(context):
    for attempts, *wanted in SECOND_TRIES:
        count, tried = suite.Count(), []
        for first, second in attempts:
            count.take(first, lambda second=second: make(second, tried))
        count.settle()
        got = ["".join(name for name, _ in sorted(found)) for found in (count.passed, count.failed, count.unsteady)]
        expect(None not in tried and got == wanted, f"expected passed, failed and unsteady to be {wanted} after "
                                                    f"{attempts}; got {got}, second tries {tried}")
    count = suite.Count()
    count.take(BAD, None)
    count.settle()
    expect(count.failed == [("b", "why b")], f"expected no second try to fail 'b'; got {count.failed}")
    expect(suite.again_in("plain", make) is make and suite.again_in("address", make) is None,
           "expected second tries in the build without sanitizers, and in no other")


def unsteady_program(context):
    """One that fails the first time only, really run."""
    with tempfile.TemporaryDirectory() as scratch:
        flag = Path(scratch) / "tried"
        script = f"[ -e {flag} ] && echo 'ok one (0 s)' && exit; touch {flag}; echo 'FAIL one: not yet'; exit 1"

        def run():
            return suite.run_program("x", ["bash", "-c", script], dict(os.environ), 10)

        count = suite.Count()
        count.take(run(), run)
        count.settle()
    expect([name for name, _ in count.passed] == ["x/one"] and count.unsteady == [("x/one", "not yet")] and
           not count.failed, f"expected a test that passed the second time to count, and to be named; got passed "
                             f"{count.passed}, unsteady {count.unsteady}, failed {count.failed}")


run_cases(__doc__, {
    "lines of a program": lines,
    "failures of a C test": criterion,
    "ends of programs": programs,
    "second tries": second_tries,
    "an unsteady program": unsteady_program,
})
