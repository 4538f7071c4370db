"""What every test file here shares: options, a seed, and one line a case: `ok NAME`, `FAIL NAME: why`, `skip NAME: why`.
Exit code 0, 1 when a case failed, 77 when all were skipped."""

import argparse
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "testbed"))

import hosts  # noqa: E402


BUSY, BUSY_SAMPLE = 1.5, 0.05  # from here on gaps of milliseconds mean nothing; s of CPU time


def busy():
    """How much longer than its own CPU time a moment of work takes here; 1 on a machine at rest."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < BUSY_SAMPLE:
        pass
    return (time.monotonic() - began) / BUSY_SAMPLE


class Skip(Exception):
    """Why a case cannot be tried here."""


class Context:
    def __init__(self, options, name):
        self.full, self.accel = options.full, options.accel
        self.random = random.Random(f"{options.seed} {name}")

    def sample(self, everything, count):
        """All of it with --full, else `count` of it chosen by the seed."""
        everything = list(everything)
        if self.full or count >= len(everything):
            return everything
        return self.random.sample(everything, count)

    def need_kvm(self):
        reason = hosts.kvm_reason()
        if reason:
            raise Skip(reason)
        if self.accel != "kvm":
            raise Skip(f"needs KVM; run with --accel {self.accel}")


def parse_options(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--full", action="store_true", help="every moment and combination, not a sample")
    parser.add_argument("--seed", default=None, help="of the sample (default: WANDER_SEED, else new)")
    parser.add_argument("--accel", choices=["kvm", "synthetic"], default=hosts.default_accel())
    parser.add_argument("cases", nargs="*", help="only cases whose name contains one of these")
    options = parser.parse_args()
    options.seed = hosts.seed_from(options.seed)
    return options


def in_some_try(body, tries=3):
    """A case that measures: what other programs on the host spoil once in a while comes right in another try, what is
    wrong is wrong in each."""
    def tried(context):
        for left in range(tries - 1, -1, -1):
            try:
                return body(context)
            except hosts.Failure as failure:
                if left == 0:
                    raise
                print(f"once more: {failure}", flush=True)
    return tried


def run_case(name, body, options):
    started = time.monotonic()
    try:
        body(Context(options, name))
    except Skip as reason:
        print(f"skip {name}: {reason}", flush=True)
        return "skip"
    except hosts.Failure as failure:
        print(f"FAIL {name}: {failure}", flush=True)
        return "FAIL"
    except Exception:  # a defect of the test itself is a failure too, and the rest still runs
        print(f"FAIL {name}: {traceback.format_exc()}", flush=True)
        return "FAIL"
    print(f"ok {name} ({time.monotonic() - started:.1f} s)", flush=True)
    return "ok"


def run_cases(description, cases, quick=None):
    """Runs a table of name → function(context); never returns. `quick`: only so many of them, chosen by the seed, unless
    all are asked for (--full) or some by name."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options = parse_options(description)
    if not os.access(hosts.PROGRAM, os.X_OK):
        sys.exit(f"no program at {hosts.PROGRAM}: build it, or name it with WANDER=PATH")
    print(f"{Path(sys.argv[0]).stem}: seed {options.seed}, guest {options.accel}", flush=True)
    chosen = {name: body for name, body in cases.items()
              if not options.cases or any(part in name for part in options.cases)}
    if quick and not options.cases:
        chosen = {name: chosen[name] for name in Context(options, "cases").sample(chosen, quick)}
    results = [run_case(name, body, options) for name, body in chosen.items()]
    sys.exit(1 if "FAIL" in results else 77 if results and set(results) == {"skip"} else 0)
