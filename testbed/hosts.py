"""Hosts made of nothing but private directories: two `wander`s with runtime and state directories of their own know
nothing of each other, as on two machines. Everything a World starts, it ends; every wait is bounded and its failure says
what was expected and what came."""

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("WANDER", str(ROOT / "build" / "wander"))
# Sanitized programs are slower: waits are multiplied by this, never the values that are compared.
SLOW = float(os.environ.get("WANDER_SLOW", "1"))
EXIT_MIGRATED, EXIT_FAILED, EXIT_USAGE, EXIT_IN_DOUBT, EXIT_STUCK = range(5)


class Failure(Exception):
    """What was expected, and what came instead."""


def expect(condition, text):
    if not condition:
        raise Failure(text)


def wait_until(look, seconds, what):
    """Calls `look` until it gives something true, and returns that."""
    deadline = time.monotonic() + seconds * SLOW
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise Failure(f"expected {what} within {seconds * SLOW:g} s; last seen: {seen!r}")
        time.sleep(0.02)


def kvm_reason():
    """Why /dev/kvm cannot be used, or None when it can."""
    get_api_version = 0xAE00
    try:
        with open("/dev/kvm", "r+b", buffering=0) as device:
            version = fcntl.ioctl(device, get_api_version)
    except OSError as error:
        return f"/dev/kvm cannot be opened: {error.strerror}"
    return None if version == 12 else f"/dev/kvm speaks version {version} of its interface, not 12"


def default_accel():
    return os.environ.get("WANDER_ACCEL") or ("synthetic" if kvm_reason() else "kvm")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    """Whether somebody listens there, found without connecting: a connection would be a session."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == "0A" and int(local.split(":")[1], 16) == port:
                    return True
    return False


def cpu_seconds(pid):
    """User and system time of a process, also of one that has ended and was not waited for yet."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_kib(pid, key="VmRSS"):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Process:
    """A program that was started and will be ended, its output in a file."""

    def __init__(self, argv, env, log):
        self.argv, self.log, self.started = argv, Path(log), time.monotonic()
        with open(log, "wb") as out:
            self.popen = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=out,
                                          stderr=subprocess.STDOUT, start_new_session=True)
        self.pid = self.popen.pid

    def output(self):
        return self.log.read_text(errors="replace")

    def running(self):
        return self.popen.poll() is None

    def signal(self, number):
        if self.running():
            os.kill(self.pid, number)

    def wait(self, seconds):
        """The exit code; a Failure when it does not end in time."""
        try:
            return self.popen.wait(seconds * SLOW)
        except subprocess.TimeoutExpired:
            raise Failure(f"expected '{' '.join(self.argv)}' to end within {seconds * SLOW:g} s; it still runs, and "
                          f"said:\n{self.output()[-2000:]}") from None


class Migration(Process):
    """A `wander migrate` under way."""

    def __init__(self, argv, env, log, report):
        super().__init__(argv + ["--json", report], env, log)
        self.report_path = Path(report)

    def report(self):
        return json.loads(self.report_path.read_text()) if self.report_path.exists() else None


class Receiver(Process):
    def __init__(self, argv, env, log, port):
        super().__init__(argv, env, log)
        self.port, self.uri = port, f"tcp://127.0.0.1:{port}"


class Host:
    def __init__(self, world, name):
        self.world, self.name = world, name
        self.runtime, self.state = world.path / name / "run", world.path / name / "state"
        self.runtime.mkdir(parents=True, mode=0o700)
        self.state.mkdir(mode=0o700)
        self.env = {**os.environ, "WANDER_RUNTIME_DIR": str(self.runtime), "XDG_STATE_HOME": str(self.state)}

    def run(self, *arguments, seconds=20):
        """Runs a subcommand to its end: a CompletedProcess with text."""
        argv = [PROGRAM, *map(str, arguments)]
        try:
            return subprocess.run(argv, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  errors="replace", timeout=seconds * SLOW)
        except subprocess.TimeoutExpired as late:
            raise Failure(f"expected '{' '.join(argv)}' to end within {seconds * SLOW:g} s; it hung, and said: "
                          f"{late.stdout!r} {late.stderr!r}") from None

    def must(self, *arguments, seconds=20):
        done = self.run(*arguments, seconds=seconds)
        expect(done.returncode == 0, f"expected 'wander {' '.join(map(str, arguments))}' to exit with 0; it exited with "
                                     f"{done.returncode} and said: {done.stderr.strip()}")
        return done.stdout

    def start(self, kind, arguments, **fields):
        log = self.world.path / self.name / f"{self.world.count()}-{arguments[0]}.log"
        process = kind([PROGRAM, *map(str, arguments)], self.env, log, **fields)
        self.world.processes.append(process)
        return process

    def lab(self, name="guest", memory="64M", vcpus=1, workload="hot=16M,rate=4000", accel=None):
        """A guest that runs; its Process."""
        arguments = ["lab", "--name", name, "--memory", memory, "--vcpus", vcpus, "--workload", workload,
                     "--accel", accel or default_accel()]
        process = self.start(Process, arguments)
        wait_until(lambda: not process.running() or self.workload(name), 30, f"guest '{name}' to answer")
        expect(process.running(), f"expected 'wander lab' to go on; it exited with {process.popen.poll()} and said: "
                                  f"{process.output().strip()}")
        if "hot=" in workload:
            wait_until(lambda: self.written(name), 30, f"guest '{name}' to write pages")
        return process

    def receive(self, *options, port=None, once=False):
        port = port or free_port()
        arguments = ["receive", "--listen", f"tcp://127.0.0.1:{port}", *options] + (["--once"] if once else [])
        receiver = self.start(Receiver, arguments, port=port)
        wait_until(lambda: not receiver.running() or listens(port), 10, f"a receiver on port {port}")
        expect(receiver.running(), f"expected the receiver to listen; it exited with {receiver.popen.poll()} and said: "
                                   f"{receiver.output().strip()}")
        return receiver

    def start_migrate(self, guest, uri, *options):
        report = self.world.path / self.name / f"{self.world.count()}-report.json"
        return self.start(Migration, ["migrate", guest, uri, *options], report=str(report))

    def migrate(self, guest, uri, *options, seconds=60):
        """Migrates to the end; the report. Failure unless the exit code is 0."""
        migration = self.start_migrate(guest, uri, *options)
        code = migration.wait(seconds)
        expect(code == EXIT_MIGRATED, f"expected the migration to exit with 0; it exited with {code} and said:\n"
                                      f"{migration.output()[-3000:]}")
        report = migration.report()
        expect(report and report["result"] == "completed", f"expected a report of a completed migration; got {report}")
        check_prediction(report)
        return report

    def answer(self, *arguments):
        """The JSON a subcommand prints, or None."""
        done = self.run(*arguments)
        try:
            return json.loads(done.stdout) if done.returncode == 0 else None
        except ValueError:
            raise Failure(f"expected JSON from 'wander {' '.join(arguments)}'; got {done.stdout!r}") from None

    def workload(self, guest):
        return self.answer("workload", guest)

    def written(self, guest):
        account = self.workload(guest)
        return account["pages_written"] if account else None

    def status(self, guest):
        return self.answer("status", guest, "--json")

    def guests(self):
        """Names of the control sockets here whose process still lives: whatever can be asked, running or not."""
        return sorted(path.stem for path in self.runtime.glob("*.sock") if self.owner(path.stem))

    def owner(self, guest):
        """The process behind a control socket, or None."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(2)
            try:
                control.connect(str(self.runtime / f"{guest}.sock"))
            except OSError:
                return None
            credentials = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return struct.unpack("3i", credentials)[0]

    def check(self, guest, seconds=60):
        """Asks the guest to check its memory: Failure unless it finds all of it good. Its account."""
        before = wait_until(lambda: self.workload(guest), 10, f"an account from '{guest}'")["checks"]
        self.must("workload", guest, "--check")

        def checked():
            account = self.workload(guest)
            return account if account and account["checks"] > before else None

        account = wait_until(checked, seconds, f"'{guest}' to finish a self-check")
        expect(account["bad_pages"] == 0 and account["checked_pages"] > 0,
               f"expected a self-check of some pages, all good; got {account}")
        return account

    def pids(self):
        """Every process that lives on this host."""
        mark = f"WANDER_RUNTIME_DIR={self.runtime}".encode()
        return [pid for pid, environment in environments() if mark in environment]


def environments():
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                yield int(entry), Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")


def check_prediction(report):
    """At every switchover: what was foretold is within the limit, and no more was sent than foretold."""
    switchover, limit = report["switchover"], report["limits"]["downtime_ms"]
    if switchover["forced"]:
        return
    expect(switchover["predicted_downtime_ms"] <= limit,
           f"expected a predicted downtime within {limit} ms at the switchover; got {switchover}")
    expect(switchover["measured_last_bytes"] <= switchover["predicted_last_bytes"],
           f"expected the last round to send at most what was predicted; got {switchover}")


def show_migration(source, guest, uri, options):
    """Runs `wander migrate` in front of the user's eyes."""
    command = [PROGRAM, "migrate", guest, uri, *options]
    print("$ " + " ".join(["wander", *command[1:]]) + "\n", flush=True)
    try:
        code = subprocess.run(command, env=source.env, timeout=300).returncode
    except subprocess.TimeoutExpired:
        raise Failure("expected the migration to end within 300 s; it still ran") from None
    expect(code == 0, f"expected the migration to exit with 0; it exited with {code}")


def running(places, seconds=4):
    """Those of [(host, guest)] whose guest writes pages: each is watched until it has written, or for `seconds`."""
    first, found = {}, []
    deadline = time.monotonic() + seconds * SLOW
    while time.monotonic() < deadline and len(found) < len(places):
        for place in places:
            if place in found:
                continue
            written = place[0].written(place[1])
            if written is None:
                continue
            if written > first.setdefault(place, written):
                found.append(place)
        time.sleep(0.02)
    return found


def writing_speed(host, guest, seconds=3):
    """Pages per second by the guest's own count, taken from one of its steps to a later one."""
    def step():
        before = host.written(guest)
        after = wait_until(lambda: host.written(guest) != before and host.written(guest), 10, f"'{guest}' to write pages")
        return after, time.monotonic()

    first, began = step()
    time.sleep(seconds)
    last, ended = step()
    return (last - first) / (ended - began)


class World:
    """Hosts, and the processes on them; leaves nothing behind."""

    def __init__(self):
        self.path = Path(tempfile.mkdtemp(prefix="wander-"))
        self.hosts, self.processes, self.counter = {}, [], 0
        self.leftovers = []  # files elsewhere that end with it

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception):
            self.show_logs()
        self.close()

    def count(self):
        self.counter += 1
        return self.counter

    def host(self, name):
        if name not in self.hosts:
            self.hosts[name] = Host(self, name)
        return self.hosts[name]

    def show_logs(self):
        for process in self.processes:
            text = process.output().strip()
            if text:
                print(f"--- {' '.join(process.argv)}\n{text[-2000:]}", flush=True)

    def close(self):
        for host in self.hosts.values():
            for pid in iter(lambda: next((pid for pid in host.pids() if alive(pid)), None), None):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.popen.kill()
            process.popen.wait()
        for path in self.leftovers:
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


def seed_from(value=None):
    """A seed to print: given, from WANDER_SEED, or new."""
    return int(value if value is not None else os.environ.get("WANDER_SEED") or random.randrange(1 << 31))
