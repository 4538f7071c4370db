"""What tests of QEMU guests share: a World with the small Linux as its guest, a disk image on a real file system, and a
network of its own with a bridge that reaches the guest wherever it runs. Leaves nothing behind: the network ends with the
test's process."""

import contextlib
import ctypes
import functools
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

from cases import Skip
from hosts import Process, World, alive, expect, wait_until
from linux_guest import image, machine
from virtual.packages import Trouble

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

from qemu import Monitor  # noqa: E402

CLONE_NEWNET = 0x40000000
BRIDGE, BRIDGE_ADDRESS, GUEST_ADDRESS, TAPS = "br0", "10.88.0.1", "10.88.0.2", {"a": "tap-a", "b": "tap-b"}
PING_MS = 5
DISK_MIB = 32                        # of the image; the guest writes the first `disk` of them
BLOCK, MAGIC = 16384, 0x6B636F6C62646E77  # linux_guest/workload/block.h
WRITE_LOCK = 101                     # the byte of an image that QEMU locks while it may write


def need_programs(*names):
    for name in names:
        if not shutil.which(name):
            raise Skip(f"{name} is not installed (testbed/install qemu)")


def need_tracking():
    release = os.uname().release
    if tuple(map(int, release.split("-")[0].split(".")[:2])) < (6, 7):
        raise Skip(f"the dirty pages of a QEMU are found by Linux 6.7 and newer; this is {release}")


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"the network for the guest cannot be made: 'ip {' '.join(words)}' said: {done.stderr.strip()}")


@functools.cache
def enter_network():
    """Gives this process, and all that it starts from here on, a network of its own: a bridge, and a tap for each end."""
    need_programs("ip")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise Skip("/dev/net/tun cannot be opened, so the guest can have no tap device")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise Skip(f"no network of one's own can be had: {os.strerror(ctypes.get_errno())}; run as root")
    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
    for tap in TAPS.values():
        ip("tuntap", "add", tap, "mode", "tap")
        ip("link", "set", tap, "master", BRIDGE, "up")
    ip("addr", "add", f"{BRIDGE_ADDRESS}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")


class Pinger:
    """Pings the guest all the time, and knows how long there was no answer."""

    def __init__(self, world, address=GUEST_ADDRESS):
        self.path = world.path / f"{world.count()}-pings"
        script = Path(__file__).with_name("pinger.py")
        self.process = Process([sys.executable, str(script), address, str(PING_MS), str(self.path)], dict(os.environ),
                               world.path / f"{world.count()}-pinger.log")
        world.processes.append(self.process)
        wait_until(self.answers, 20, f"an answer to a ping from {address}; the pinger said: {self.process.output()}")

    def answers(self):
        """When each answer came, in the order they came, in ns of CLOCK_REALTIME."""
        if not self.path.exists():
            return []
        return [int(line.split()[1]) for line in self.path.read_text().split("\n")[:-1]]

    def wait_answer(self, since_ns, seconds=20):
        """Until an answer has come after that moment."""
        return wait_until(lambda: [at for at in self.answers() if at > since_ns], seconds,
                          "the guest to answer pings again")[0]

    def longest_gap(self, since_ns, until_ns=None):
        """The longest time without an answer, in ms, from the last answer before `since_ns` on."""
        until_ns = until_ns or time.time_ns()
        answers = self.answers()
        before = [at for at in answers if at <= since_ns][-1:]
        moments = before + [at for at in answers if since_ns < at <= until_ns] + [until_ns]
        return max(later - earlier for earlier, later in zip(moments, moments[1:])) / 1e6


class Storm(threading.Thread):
    """Datagrams to the guest's echo port, as many as `window` under way: what makes its network busy."""

    def __init__(self, port, size=1400, window=32):
        super().__init__(daemon=True)
        self.peer, self.size, self.window = (GUEST_ADDRESS, port), size, window
        self.answered, self.wrong, self.ended = 0, 0, threading.Event()

    def run(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
            connection.settimeout(0.05)
            sent = 0
            while not self.ended.is_set():
                for _ in range(self.window):
                    sent += 1
                    with contextlib.suppress(OSError):
                        connection.sendto(struct.pack("<Q", sent) * (self.size // 8), self.peer)
                with contextlib.suppress(OSError):
                    for _ in range(self.window):
                        answer = connection.recv(65536)
                        self.wrong += answer != answer[:8] * (self.size // 8)
                        self.answered += 1

    def end(self):
        self.ended.set()
        self.join(10)


def make_disk(world, disk_format="raw", mib=DISK_MIB):
    """An empty image beside the world's other files, where O_DIRECT works."""
    reason = machine.direct_io_reason(world.path)
    if reason:
        raise Skip(reason)
    need_programs("qemu-img")
    path = world.path / f"disk.{disk_format}"
    subprocess.run(["qemu-img", "create", "-q", "-f", disk_format, str(path), f"{mib}M"], check=True)
    return path


def write_lockers(path):
    """Processes that hold QEMU's write lock of an image. Such locks belong to open files, so /proc/locks knows the inode
    only, and which process it is shows in its fdinfo."""
    status = os.stat(path)
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    if not any(inode in line.split() for line in Path("/proc/locks").read_text().splitlines()):
        return []
    return sorted({pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if locks_for_writing(pid, inode)})


def locks_for_writing(pid, inode):
    with contextlib.suppress(OSError):
        for info in Path(f"/proc/{pid}/fdinfo").iterdir():
            for line in info.read_text().splitlines():
                words = line.split()
                if words[0] == "lock:" and inode in words and int(words[-2]) <= WRITE_LOCK <= int(words[-1]):
                    return True
    return False


def image_in_use(path, disk_format):
    """Whether a program that honours QEMU's locks is kept from writing to the image. (`qemu-img info` reads nothing of a
    raw image and so asks for no lock.)"""
    need_programs("qemu-io")
    done = subprocess.run(["qemu-io", "-f", disk_format, "-c", "length", str(path)], capture_output=True, text=True)
    return done.returncode != 0 and "lock" in done.stderr


def check_image(path, disk_format, mib):
    """Every block that the guest writes, read from the image of a guest that has ended. How many sequences there are."""
    raw = Path(f"{path}.raw")
    subprocess.run(["qemu-img", "convert", "-f", disk_format, "-O", "raw", str(path), str(raw)], check=True)
    sequences = set()
    try:
        with open(raw, "rb") as blocks:
            for number in range(mib * (1 << 20) // BLOCK):
                block = blocks.read(BLOCK)
                magic, found, sequence, total = struct.unpack_from("<QQQI", block)
                good = (magic, found) == (MAGIC, number) and total == zlib.crc32(block[28:], zlib.crc32(block[:24]))
                expect(good, f"expected block {number} of {path} to be whole; it begins with {block[:28].hex()}")
                sequences.add(sequence)
    finally:
        raw.unlink()
    return len(sequences)


def commands(host, word):
    """Processes of wander on a host that run this subcommand."""
    found = []
    for pid in host.pids():
        with contextlib.suppress(OSError):
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if argv[:1] and argv[0].rpartition(b"/")[2] == b"wander" and argv[1:2] == [word.encode()] and alive(pid):
                found.append(pid)
    return found


class QemuWorld(World):
    """Two hosts, "a" and "b", each with a side of the same machine."""

    def __init__(self, disk_format=None, cache="none", network=True, kind=machine.Machine, **options):
        need_programs(machine.PROGRAM)
        if network:
            enter_network()
        built = linux_image()
        super().__init__()
        try:
            self.sides = {name: machine.Side(self, name, TAPS[name] if network else None) for name in TAPS}
            disk = make_disk(self, disk_format) if disk_format else None
            self.machine = kind(built, disk=disk, disk_format=disk_format or "raw", cache=cache,
                                address=GUEST_ADDRESS if network else None, **options)
        except BaseException:
            self.close()
            raise

    def boot(self, name="a", movable=True, slow_reads_ms=0):
        """A guest that works at one end; its Process. `movable`: with wander's library. `slow_reads_ms`: how long every
        read of its disk past the page cache keeps the guest's pages pinned before the bytes come, unseen by page tables."""
        if movable:
            need_tracking()
        host, side = self.host(name), self.sides[name]
        side.clear()
        environment = machine.movable_environment(host) if movable else dict(host.env)
        if slow_reads_ms:
            environment = self.slow_reads_environment(name, slow_reads_ms, environment)
        return machine.boot(host, self.machine, side, environment)

    def slow_reads_environment(self, name, milliseconds, environment):
        """The same for a QEMU of this end; wander's library has to stand before the one that is slow."""
        libraries = [environment.get("LD_PRELOAD"), str(self.slow_reads_library())]
        return environment | {"LD_PRELOAD": ":".join(filter(None, libraries)), "SLOW_READS_MS": str(milliseconds),
                              "SLOW_READS_RAM": str(self.sides[name].ram)}

    def slow_reads_library(self):
        need_programs("gcc")
        library, source = self.path / "slow_reads.so", Path(__file__).with_name("slow_reads.c")
        subprocess.run(["gcc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        return library

    def receive(self, name="b", *options):
        """A receiver that starts the QEMU of this end; its RAM file is left as an earlier guest left it."""
        self.sides[name].console.log.unlink(missing_ok=True)
        return machine.receive(self.host(name), self.machine, self.sides[name], *options)

    def hop(self, here, there, uri, *options, guest=None, pinger=None, seconds=120):
        """Moves the guest from one end to the other, to a receiver that is there: (report, ms without an answer to pings,
        or None). Nothing may be bad, the uptime goes on, and the source's QEMU is gone."""
        before, began = self.console(here).good(), time.time_ns()
        self.console(there).log.unlink(missing_ok=True)  # of an earlier stay
        report = self.host(here).migrate(guest or self.guest(here), uri, *options, seconds=seconds)
        after = self.console(there).next("report", seconds=30, after=0)
        expect(after["uptime"] > before["uptime"], f"expected the uptime to go on from {before}; got {after}")
        self.console(there).good()
        wait_until(lambda: not self.qemu_pids(here), 20, f"the QEMU at {here} to be gone")
        if not pinger:
            return report, None
        pinger.wait_answer(time.time_ns())
        return report, pinger.longest_gap(began)

    def guest(self, name):
        """How `wander migrate` is told the guest at one end: one that has come by wander has a name there, one that was
        started by hand is known by its monitor."""
        arrived = self.machine.name in self.host(name).guests()
        return self.machine.name if arrived else f"qmp:{self.sides[name].monitor}"

    def console(self, name):
        return self.sides[name].console

    def monitor(self, name, qemu):
        """A monitor for the test; wander has another one to itself."""
        return Monitor(str(self.sides[name].watched), qemu.popen)

    def qemu_pids(self, name):
        """QEMUs with the RAM of one end."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if str(self.sides[name].ram).encode() in Path(f"/proc/{entry}/cmdline").read_bytes() and \
                        os.readlink(f"/proc/{entry}/exe").rpartition("/")[2].startswith("qemu-system"):
                    found.append(int(entry))
        return found

    def watch(self, name):
        """What QEMU at one end says of itself ("running", "paused", ...), or None. Asks on the test's monitor."""
        try:
            with one_shot(self.sides[name].watched) as ask:
                return ask("query-status")["status"]
        except (OSError, ValueError):
            return None

    def show_logs(self):
        super().show_logs()
        for name, side in self.sides.items():
            if side.console.text():
                print(f"--- console of {name}\n{side.console.text()[-1500:]}", flush=True)


@contextlib.contextmanager
def one_shot(path, seconds=5):
    """A monitor's connection that is closed again at once, as a function of a command's name."""
    with contextlib.ExitStack() as closing:
        connection = closing.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(seconds)
        connection.connect(str(path))
        lines = closing.enter_context(connection.makefile("rw"))
        lines.readline()

        def ask(command):
            lines.write(json.dumps({"execute": command}) + "\n")
            lines.flush()
            while True:
                answer = json.loads(lines.readline())
                if "return" in answer or "error" in answer:
                    return answer.get("return")
        ask("qmp_capabilities")
        yield ask


def linux_image():
    """The image of the guest; Skip when it cannot be made here."""
    try:
        return image.get(lambda text: print(text, flush=True))
    except (Trouble, OSError) as trouble:
        raise Skip(f"the image of the Linux guest could not be made: {str(trouble).splitlines()[0]}") from None
