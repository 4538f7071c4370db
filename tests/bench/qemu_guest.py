"""A guest under QEMU that is booted, filled and moved once: by wander, or by QEMU's own migration. What each move cost, on
yardsticks that are the same for both."""

import contextlib
import mmap
import os
import random
import struct
import sys
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "e2e")]

import qemu  # noqa: E402
from hosts import Failure, cpu_seconds, expect, free_port, wait_until  # noqa: E402
from linux_guest import machine  # noqa: E402
from qemu_world import QemuWorld  # noqa: E402

PAGE, MULTIPLIER = 4096, 0x9E3779B97F4A7C15  # of the stamps: migrate/guest/stamp.h
STAMP_HEAD, STAMP_TAIL = 16, PAGE - 8
DOWNTIME_LIMIT_MS = 300
KERNEL_MIB = 192  # of the guest's memory: for its kernel, which says that it is out of memory when it has less


class BusyWorld(QemuWorld):
    """Two hosts for one move of the small Linux, nearly all of whose memory is stamped at a set rate."""

    def __init__(self, memory_mib, rate):
        load = {"ram": memory_mib - KERNEL_MIB, "ram_rate": rate}
        super().__init__(network=False, memory_mib=memory_mib, load=load)

    def ready(self, movable):
        """The booted guest with its memory full of bytes that cannot be compressed; its Process."""
        source = self.boot("a", movable=movable)
        filled = fill(self.sides["a"].ram)
        expect(filled >= 0.9 * self.machine.load["ram"], f"expected {self.machine.load['ram']} MiB of stamped pages in "
                                                         f"the guest's memory; found {filled:.0f}")
        self.console("a").next("report")
        return source


def sparse_kernel(build):
    return Path(build, "migrate/guest/lab/image/lab-guest.elf")


class SparseMachine(machine.Machine):
    """The lab guest's image under KVM: it needs no more of a KVM than integers."""

    def __init__(self, build, memory_mib, hot_mib, rate):
        self.kernel = sparse_kernel(build)
        super().__init__(self.kernel.parent, memory_mib, accel="kvm", name="lab")
        self.line = f"vcpus=1 hot={hot_mib * (1 << 20) // PAGE} rate={rate}"

    def argv(self, side):
        words = iter(super().argv(side))
        replaced = {"-kernel": str(self.kernel), "-append": self.line}
        arguments = []
        for word in words:
            if word == "-initrd":
                next(words)
            elif word in replaced:
                next(words)
                arguments += [word, replaced[word]]
            else:
                arguments.append(word)
        return arguments


class SparseWorld(QemuWorld):
    """Two hosts for one move of a large guest that has touched little of its memory."""

    def __init__(self, build, memory_mib, hot_mib, rate):
        super().__init__(network=False)
        self.machine = SparseMachine(build, memory_mib, hot_mib, rate)

    def ready(self, movable):
        side, host = self.sides["a"], self.host("a")
        source = machine.start(host, self.machine, side, machine.movable_environment(host) if movable else None)
        wait_until(lambda: side.console.text().count("wander-guest: stat") > 1 or not source.running(), 60,
                   "the guest image to write under QEMU")
        expect(source.running(), f"expected QEMU to run; it said: {source.output()}")
        return source


def fill(path):
    """Puts random bytes between the stamps of every stamped page: the guest never looks there. MiB filled."""
    chance, count = random.Random(1), 0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as ram:
        for at in range(0, len(ram), PAGE):
            word, check = struct.unpack_from("<QQ", ram, at)
            if check and check == word * MULTIPLIER % 2**64:
                ram[at + STAMP_HEAD:at + STAMP_TAIL] = chance.randbytes(STAMP_TAIL - STAMP_HEAD)
                count += 1
    return count * PAGE / 2**20


class Watcher(threading.Thread):
    """A monitor of a QEMU that somebody else starts in a while, connected as soon as it listens, so that no event is
    missed."""

    def __init__(self, path, process):
        super().__init__(daemon=True)
        self.path, self.process, self.monitor = path, process, None
        self.start()

    def run(self):
        with contextlib.suppress(Failure):
            self.monitor = qemu.Monitor(str(self.path), self.process)

    def joined(self):
        self.join(30)
        expect(self.monitor, f"expected a monitor at {self.path}")
        return self.monitor


def event_time(monitor, name):
    """When the newest event of this name came, by QEMU's own stamp, in s of the host's clock. Reads on until there is one: a
    guest that QEMU's own migration has damaged may end its QEMU right afterwards, and no question would be answered."""
    while not (found := [event["timestamp"] for event in monitor.events if event.get("event") == name]):
        monitor.events.append(monitor.read())
    return found[-1]["seconds"] + found[-1]["microseconds"] / 1e6


def standstill_ms(source, destination):
    """From QEMU's STOP at the source to QEMU's RESUME at the destination."""
    return (event_time(destination, "RESUME") - event_time(source, "STOP")) * 1e3


def wait_usage(process, seconds=120):
    """Waits for the end of a process; CPU seconds of its life and of the children it waited for."""
    def ended():
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        return (status, usage) if pid else None

    status, usage = wait_until(ended, seconds, f"'{' '.join(process.argv)}' to end")
    process.popen.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def cpu_of_host(host):
    """CPU seconds of all processes of a host, and of their children that have ended."""
    total = 0
    for pid in host.pids():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def move_by_wander(world, options=()):
    source = world.ready(movable=True)
    here, there = world.host("a"), world.host("b")
    watched = world.monitor("a", source)
    receiver = world.receive("b", "--once")
    arrival = Watcher(world.sides["b"].watched, receiver.popen)
    cpu = cpu_seconds(source.pid) + cpu_of_host(there)
    migration = here.start_migrate(world.guest("a"), receiver.uri, *options)
    client = wait_usage(migration)
    ended = time.monotonic() - migration.started
    report = migration.report()
    expect(migration.popen.returncode == 0 and report, f"expected a migration; wander said {migration.output()[-2000:]}")
    cpu = wait_usage(source) + cpu_of_host(there) + client - cpu
    return {"total_s": report["total_ms"] / 1e3, "without_setup_s": (report["total_ms"] - report["setup_ms"]) / 1e3,
            "outside_s": ended, "standstill_ms": standstill_ms(watched, arrival.joined()),
            "downtime_ms": report["downtime_ms"], "cpu_s": cpu, "bytes": report["wire_bytes"],
            "rounds": len(report["rounds"]), "parts": {"setup": report["setup_ms"], **report["downtime"]},
            "report": report}


def prepare(monitor, channels):
    """The settings that make QEMU's own migration as fast as it can be, and its downtime limit that of wander."""
    pairs = [{"capability": "events", "state": True}, {"capability": "multifd", "state": channels > 0}]
    monitor.command("migrate-set-capabilities", capabilities=pairs)
    settings = {"max-bandwidth": qemu.UNLIMITED, "downtime-limit": DOWNTIME_LIMIT_MS}
    monitor.command("migrate-set-parameters", **settings, **({"multifd-channels": channels} if channels else {}))


def wait_completed(monitor):
    """Until QEMU's own migration is over; keeps its events."""
    while True:
        for event in monitor.events:
            status = event.get("data", {}).get("status") if event.get("event") == "MIGRATION" else None
            expect(status not in ("failed", "cancelled"), f"expected QEMU's migration to complete; it {status}")
            if status == "completed":
                return
        monitor.events.append(monitor.read())


def move_by_qemu(world, channels):
    source = world.ready(movable=False)
    watched = world.monitor("a", source)
    destination = machine.start(world.host("b"), world.machine, world.sides["b"], extra=["-incoming", "defer"])
    arrival = world.monitor("b", destination)
    for monitor in (watched, arrival):
        prepare(monitor, channels)
    uri = f"tcp:127.0.0.1:{free_port()}"
    arrival.command("migrate-incoming", uri=uri)
    cpu = cpu_seconds(source.pid)
    began = time.monotonic()
    watched.command("migrate", uri=uri)
    wait_completed(watched)
    completed = time.monotonic() - began
    told = watched.command("query-migrate")
    expect(told["status"] == "completed", f"expected a completed migration; QEMU says {told}")
    with contextlib.suppress(Failure, OSError):
        watched.command("quit")
    cpu = wait_usage(source) + cpu_seconds(destination.pid) - cpu
    outside = time.monotonic() - began
    return {"total_s": completed, "without_setup_s": completed, "outside_s": outside,
            "standstill_ms": standstill_ms(watched, arrival), "downtime_ms": told["downtime"], "cpu_s": cpu,
            "bytes": told["ram"]["transferred"], "rounds": told["ram"]["dirty-sync-count"], "told": told}
