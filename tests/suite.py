#!/usr/bin/python3
"""Runs the tests of one or more builds and counts: the C tests through ctest, then every program in tests/e2e. Started by
tests/run, which has built them."""

import argparse
import contextlib
import fnmatch
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent / "testbed"), str(TESTS / "e2e")]

import virtual_pair  # noqa: E402
from hosts import Failure, kvm_reason, seed_from  # noqa: E402
from linux_guest import image, qemu_backports  # noqa: E402
from virtual.packages import Trouble  # noqa: E402

QUICK_LIMIT, FULL_LIMIT = 240, 3600  # s, for one e2e program
USES_LINUX = "*qemu_*"  # programs that boot a small Linux
ON_HOSTS = "hosts_*"  # programs that need two hosts; in a sanitizer's build only some of them, and only in that build
SANITIZED, SANITIZED_ON_HOSTS = "address", ("hosts_moves", "hosts_soak")
GRACE = 30  # s, for it to clean up
# They measure, so nothing else runs meanwhile; the other programs mostly wait, and some of them run at the same time.
MEASURING = ("control_latency", "convergence", "gap", "qemu_moves", ON_HOSTS)
AT_A_TIME = 3
SKIPPED = 77
PLAIN = "plain"  # the build without sanitizers
MOST_UNSTEADY = 3  # programs of a build; where more fail, that is no chance


def failures(results):
    return [(name, why) for result, name, why in results if result == "FAIL"]


def passes(name, results):
    """Whether a test, or all tests of a program, passed; one that is skipped or not told of did not."""
    told = {result for result, test, _ in results if test == name or test.startswith(f"{name}/")}
    return "ok" in told and "FAIL" not in told


class Count:
    """What was found, of each test (its name, why); any thread."""

    def __init__(self):
        self.passed, self.failed, self.skipped, self.unsteady = [], [], [], []
        self.doubtful = []  # (results, how to get them once more) of programs that failed

    def add(self, result, name, why=""):
        {"ok": self.passed, "FAIL": self.failed, "skip": self.skipped}[result].append((name, why))

    def take(self, results, again):
        """The results of a program, and what runs it once more; None: nothing does."""
        if failures(results) and again:
            self.doubtful.append((results, again))
        else:
            self.add_all(results)

    def add_all(self, results):
        for result, name, why in results:
            self.add(result, name, why)

    def settle(self):
        """Runs the programs that failed once more, now that nothing else does. A test that passes then is unsteady: the
        summary tells what it failed with, for it has a fault that is to be found. One that does not has failed."""
        chance = len(self.doubtful) <= MOST_UNSTEADY
        for results, again in self.doubtful:
            if chance:
                self.settle_one(results, again)
            else:
                self.add_all(results)
        self.doubtful = []

    def settle_one(self, first, again):
        print(f"once more, for these failed: {', '.join(name for name, _ in failures(first))}", flush=True)
        try:
            second = again()
        except Exception as trouble:  # the first results are not to be lost
            print(f"the second try could not be made: {trouble}", flush=True)
            second = first
        failed = {name for name, _ in failures(second)}
        for name, why in failures(first):
            if passes(name, second):
                self.unsteady.append((name, why))
            elif name not in failed:
                self.add("FAIL", name, why)
        self.add_all(second)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", action="append", required=True, metavar="NAME=DIRECTORY")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seed")
    parser.add_argument("filters", nargs="*")
    options = parser.parse_args()
    options.seed = seed_from(options.seed)
    return options


def wanted(name, filters):
    return not filters or any(part in name for part in filters)


def skip_reason(output):
    """The line in which a test says why it was skipped."""
    for line in output.splitlines():
        if re.search(r"skip", line, re.IGNORECASE):
            return re.sub(r"^.*?skip(ped)?\]?:?\s*", "", line, flags=re.IGNORECASE) or line
    return output.strip().splitlines()[-1] if output.strip() else "no reason given"


def run_ctest(build, directory, options, count):
    """The C tests; criterion's own skips inside a program that passed are counted as well."""
    listed = subprocess.run(["ctest", "--test-dir", directory, "-N"], capture_output=True, text=True, check=True).stdout
    everything = re.findall(r"Test +#\d+: (\S+)", listed)
    names = [name for name in everything if wanted(name, options.filters)]
    if not everything:
        count.add("FAIL", f"{build}/ctest", f"the build in {directory} has no C tests: was it configured without them?")
    for name, results in ctest(build, directory, names).items() if names else ():
        count.take(results, again_in(build, lambda name=name: ctest(build, directory, [name])[name]))


def again_in(build, run):
    """What a sanitizer finds once is there."""
    return run if build == PLAIN else None


def ctest(build, directory, names):
    """{program: [(result, test, why)]} of these, all at once."""
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "results.xml"
        pattern = "^(" + "|".join(map(re.escape, names)) + ")$"
        command = ["ctest", "--test-dir", directory, "-j2", "--output-junit", str(written), "-R", pattern]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if not written.exists():
            print(done.stdout[-2000:] + done.stderr[-2000:], flush=True)
        cases = ElementTree.parse(written).getroot().iter("testcase") if written.exists() else ()
        told = {case.get("name"): results_of(build, case) for case in cases}
        return {name: told.get(name, [("FAIL", f"{build}/{name}", "ctest tells nothing of it")]) for name in names}


def results_of(build, case):
    name, status = f"{build}/{case.get('name')}", case.get("status")
    output = case.findtext("system-out") or ""
    inner = re.findall(r"\[SKIP\] *(?:\x1b\[[0-9;]*m)*(\S+?):? (.*)", output)
    if status == "run":
        print(f"ok {name}" + (f" ({len(inner)} inside skipped)" if inner else ""), flush=True)
        return [("ok", name, ""), *(("skip", f"{name}/{test}", why) for test, why in inner)]
    if status in ("notrun", "disabled"):
        skipped = case.find("skipped")
        why = skip_reason(output or (skipped.get("message", "") if skipped is not None else ""))
        # A program that could not be started is not one that chose to skip.
        chose = skipped is not None and "SKIP_RETURN_CODE" in skipped.get("message", "")
        print(f"{'skip' if chose else 'FAIL'} {name}: {why}", flush=True)
        return [("skip" if chose else "FAIL", name, why)]
    print(f"{output[-6000:]}\nFAIL {name}", flush=True)
    return [("FAIL", name, " | ".join(failures_in(output)) or "see above")]


def failures_in(output):
    """What criterion says of tests that failed, crashed or took too long, and what a sanitizer says."""
    found, said = [], []
    for line in output.splitlines():
        line = re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
        if line.startswith("[FAIL]"):
            found += [*said, line]
        if line.startswith(("[FAIL]", "[PASS]", "[SKIP]")):
            said = []
        elif line.startswith("[----]") and line != "[----]":
            said.append(line.removeprefix("[----]").strip())
        elif re.search(r"(ERROR|WARNING): \w+Sanitizer", line):
            found.append(line)
    return found + said


class SharedHosts:
    """One pair of virtual hosts for all tests that need two hosts: booted before the first of them, ended with the
    suite, however it ends."""

    def __init__(self):
        self.state, self.told = None, {}

    def environment(self):
        """What tells a program where the hosts are, or why there are none."""
        if self.state and not virtual_pair.answers(self.state):
            print("the virtual hosts do not answer any more: booting others", flush=True)
            self.end()
        if not self.told:
            self.boot()
        return self.told

    def boot(self):
        began = time.monotonic()
        try:
            self.state = virtual_pair.boot(os.getpid())
            self.told = {virtual_pair.HOSTS: str(self.state), virtual_pair.UNTIL: str(os.getpid())}
            print(f"two virtual hosts are up after {time.monotonic() - began:.1f} s", flush=True)
        except virtual_pair.NoHosts as reason:
            self.told = {virtual_pair.WHY_SKIP: str(reason)}
        except Failure as failure:
            self.told = {virtual_pair.WHY_FAIL: str(failure)}

    def end(self):
        if self.state:
            virtual_pair.end(self.state)
        self.state, self.told = None, {}


def on_hosts(program):
    return fnmatch.fnmatch(program.name, ON_HOSTS)


def measures(program):
    return any(fnmatch.fnmatch(program.stem, pattern) for pattern in MEASURING)


def e2e_programs(build):
    """Those for a build: first what can run beside others, and what needs hosts last."""
    found = sorted((path for path in (TESTS / "e2e").iterdir() if path.is_file() and os.access(path, os.X_OK)),
                   key=lambda path: (measures(path), on_hosts(path), path))
    if build == PLAIN:
        return found
    return [path for path in found if path.suffix == ".py" and
            (not on_hosts(path) or build == SANITIZED and path.stem in SANITIZED_ON_HOSTS)]


def fetch_images(programs):
    """What several programs need is fetched before their time counts. What goes wrong with it they say themselves."""
    if any(fnmatch.fnmatch(program.stem, USES_LINUX) for program in programs):
        for get in (image.get, qemu_backports.get):
            with contextlib.suppress(Trouble, OSError):
                get(lambda text: print(f"images: {text}", flush=True))


def run_e2e(build, directory, options, accel, shared, count):
    environment = {**os.environ, "WANDER": f"{directory}/wander", "WANDER_BUILD": directory, "WANDER_ACCEL": accel,
                   "WANDER_SEED": str(options.seed), "WANDER_SLOW": "1" if build == PLAIN else "4",
                   "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
                   "TSAN_OPTIONS": f"halt_on_error=1 suppressions={TESTS / 'tsan-suppressions'}",
                   "UBSAN_OPTIONS": "print_stacktrace=1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}

    def run(program):
        arguments = ["--full"] if options.full and program.suffix == ".py" else []
        told = shared.environment() if on_hosts(program) else {}
        patience = (2 if on_hosts(program) else 1) * (1 if build == PLAIN else 2)
        limit = FULL_LIMIT if options.full else patience * QUICK_LIMIT
        return run_program(f"{build}/e2e/{program.stem}", [str(program), *arguments], {**environment, **told}, limit)

    def run_and_take(program):
        count.take(run(program), again_in(build, lambda: run(program)))

    programs = [program for program in e2e_programs(build) if wanted(f"{build}/e2e/{program.stem}", options.filters)]
    fetch_images(programs)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(run_and_take, (program for program in programs if not measures(program))))
    for program in filter(measures, programs):
        run_and_take(program)


@contextlib.contextmanager
def ended_in_time(process, limit):
    """After the limit it is asked to end and clean up; a while later its whole process group is ended."""
    timers = [threading.Timer(limit, process.terminate),
              threading.Timer(limit + GRACE, lambda: os.killpg(process.pid, signal.SIGKILL))]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def results_in(lines):
    """(result, case, why) of each case that a program's output tells of; a failure may need several lines."""
    told = [(at, match.groups()) for at, line in enumerate(lines)
            if (match := re.match(r"(ok|FAIL|skip) ([^:(]+?)(?:: | \()(.*)", line))]
    ends = [at for at, _ in told[1:]] + [len(lines)]
    for (at, (result, case, why)), end in zip(told, ends):
        more = lines[at + 1:end] if result == "FAIL" else []
        yield result, case, " | ".join([why, *(line.strip() for line in more if line.strip())])


def run_program(name, argv, environment, limit):
    """The results of one e2e program; each of its `ok`, `FAIL` and `skip` lines is a test."""
    started = time.monotonic()
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
    short, lines = name.rpartition("/")[2], []
    with ended_in_time(process, limit):
        for line in process.stdout:
            lines.append(line)
            print(f"    {short}: {line}", end="", flush=True)
        code = process.wait()
    seconds = time.monotonic() - started
    print(f"{name}: {seconds:.1f} s", flush=True)
    results = [(result, f"{name}/{case.strip()}", why) for result, case, why in results_in(lines)]
    if not results:
        return [("ok" if code == 0 else "skip" if code == SKIPPED else "FAIL", name, skip_reason("".join(lines)))]
    if code not in (0, SKIPPED) and not failures(results):
        results.append(("FAIL", name, f"ended with {code} after {seconds:.0f} s (limit {limit} s)"))
    return results


def expected_skips():
    for line in (TESTS / "expected-skips").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, reason = line.partition("\t")
            yield name, reason.strip() or "*"


def account_for_skips(count):
    """In CI, a skip that nobody has foreseen is a failure."""
    expected = list(expected_skips())
    for name, why in list(count.skipped):
        known = any(fnmatch.fnmatch(name, pattern) and fnmatch.fnmatch(why, reason) for pattern, reason in expected)
        if os.environ.get("CI") == "true" and not known:
            count.skipped.remove((name, why))
            count.add("FAIL", name, f"skipped, and tests/expected-skips does not list it: {why}")


def summarise(count, seed):
    account_for_skips(count)
    for name, why in count.skipped:
        print(f"skipped: {name}: {why}")
    for name, why in count.unsteady:
        print(f"unsteady: {name}: passed when it was run once more, and before: {why[:1000]}")
    for name, why in count.failed:
        print(f"failed: {name}: {why[:1000]}")
    print(f"seed {seed}")
    print(f"{len(count.passed)} passed, {len(count.failed)} failed, {len(count.skipped)} skipped")
    return 1 if count.failed or not count.passed else 0


def main():
    options, count = parse_options(), Count()
    reason = kvm_reason()
    print(f"seed {options.seed}; guest: " + (f"synthetic, {reason}" if reason else "lab on KVM"), flush=True)
    for build, directory in (text.split("=", 1) for text in options.build):
        run_ctest(build, directory, options, count)
        accel = "synthetic" if reason or build != PLAIN else "kvm"
        shared = SharedHosts()
        try:
            run_e2e(build, directory, options, accel, shared, count)
            count.settle()
        finally:
            shared.end()
    return summarise(count, options.seed)


if __name__ == "__main__":
    sys.exit(main())
