"""A QEMU with the small Linux as it is started at either end of a move, and what it says on its console."""

import contextlib
import os
import re
import shlex
import socket
from pathlib import Path

from hosts import Failure, Process, Receiver, expect, free_port, listens, wait_until

PROGRAM = "qemu-system-x86_64"
BOOT_SECONDS = 60
MAC = "52:54:00:88:00:02"
LINE = re.compile(r"wander-linux: (\S+)((?: \w+=\S+)*)")
# What a kernel says whose memory or disk is damaged; not what it says on a busy host.
CRASHED = re.compile(r"wander-linux: panic|Kernel panic|BUG: (?!soft lockup)|Oops|general protection|I/O error")


class Side:
    """What a QEMU has for itself at one end: its RAM, its console, its monitors, its tap."""

    def __init__(self, world, name, tap=None):
        directory = world.path
        self.name, self.tap = name, tap
        self.ram = Path("/dev/shm") / f"{directory.name}-{name}.ram"
        world.leftovers.append(self.ram)
        # One monitor for wander, one for who watches: a QEMU talks to one at a time on each.
        self.monitor, self.watched = directory / f"{name}.qmp", directory / f"{name}.watched.qmp"
        self.console = Console(directory / f"{name}.console.log", directory / f"{name}.console")

    def clear(self):
        """Removes what an earlier QEMU left."""
        for path in (self.ram, self.monitor, self.watched, self.console.log, self.console.socket):
            path.unlink(missing_ok=True)


class Machine:
    """The same guest wherever it is. `load`: {"ram": MiB, "ram_rate": pages/s, "disk": MiB, "disk_rate": blocks/s,
    "readers": threads that read the MiB behind it, "echo": port, "tick": ms}; `disk`: its image; `board`: the machine
    type; `programs`: the QEMU to start, by a side's name, where it is not PROGRAM; `extra`: more arguments for QEMU."""

    def __init__(self, image, memory_mib=256, vcpus=1, accel="tcg", load=None, disk=None, disk_format="raw", cache="none",
                 address=None, name="linux", board="q35", programs=None, extra=()):
        self.image, self.memory_mib, self.vcpus, self.accel, self.name = image, memory_mib, vcpus, accel, name
        self.load, self.address, self.extra = dict(load or {}), address, list(map(str, extra))
        self.disk, self.disk_format, self.cache = disk, disk_format, cache
        self.board, self.programs = board, programs or {}
        if not disk:
            self.load["disk"] = 0

    def kernel_arguments(self):
        words = ["console=ttyS0", "quiet", "panic=-1", "no_timer_check", *(f"wander.{key}={value}" for key, value in self.load.items())]
        return " ".join(words + ([f"wander.ip={self.address}"] if self.address else []))

    def argv(self, side):
        """QEMU's command line at one end; all that a destination needs but -incoming."""
        size = f"{self.memory_mib}M"
        program = str(self.programs.get(side.name, PROGRAM))
        return [program, "-name", self.name, "-nodefaults", "-display", "none", "-no-reboot", "-accel", self.accel,
                "-cpu", "host" if self.accel == "kvm" else "max", "-machine", f"{self.board},memory-backend=ram",
                "-smp", str(self.vcpus), "-m", size,
                "-object", f"memory-backend-file,id=ram,size={size},mem-path={side.ram},share=on",
                "-kernel", str(self.image / "kernel"), "-initrd", str(self.image / "initramfs"),
                "-append", self.kernel_arguments(), *side.console.arguments(),
                "-qmp", f"unix:{side.monitor},server=on,wait=off", "-qmp", f"unix:{side.watched},server=on,wait=off",
                *self.disk_arguments(), *self.network_arguments(side), *self.extra]

    def disk_arguments(self):
        if not self.disk:
            return []
        drive = f"if=none,id=disk,file={self.disk},format={self.disk_format},cache={self.cache},aio=threads"
        return ["-drive", drive, "-device", "virtio-blk-pci,id=vda,drive=disk"]

    def network_arguments(self, side):
        if not side.tap:
            return []
        return ["-netdev", f"tap,id=net,ifname={side.tap},script=no,downscript=no",
                "-device", f"virtio-net-pci,id=eth,netdev=net,mac={MAC}"]


class Console:
    """What the guest said at one end, since the QEMU there was started."""

    def __init__(self, log, path):
        self.log, self.socket = Path(log), Path(path)

    def arguments(self):
        return ["-chardev", f"socket,id=console,path={self.socket},server=on,wait=off,logfile={self.log}",
                "-serial", "chardev:console"]

    def text(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def lines(self, word):
        """The pairs of every whole line with this word, numbers as such."""
        found = []
        for line in self.text().split("\n")[:-1]:
            match = LINE.search(line.rstrip("\r"))
            if match and match[1] == word:
                found.append({key: number(value) for key, value in (pair.split("=") for pair in match[2].split())})
        return found

    def reports(self):
        return self.lines("report")

    def next(self, word, seconds=20, after=None):
        """The first line with this word beyond the `after` ones there are (default: all that are there now)."""
        seen = len(self.lines(word)) if after is None else after

        def look():
            self.expect_sound()
            return self.lines(word)[seen:]
        try:
            return wait_until(look, seconds, f"a '{word}' line from the guest")[0]
        except Failure as failure:
            raise Failure(f"{failure}; its last words: {self.text()[-500:]}") from None

    def send(self, command):
        with socket.socket(socket.AF_UNIX) as console:
            console.settimeout(10)
            console.connect(str(self.socket))
            console.sendall(command.encode() + b"\n")
            console.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):  # until QEMU has taken it, or time is up
                while console.recv(4096):
                    pass

    def ask(self, command, word, seconds=30):
        """Sends a command; the line that answers it."""
        before = len(self.lines(word))
        self.send(command)
        return self.next(word, seconds, after=before)

    def expect_sound(self):
        """Failure if the guest's kernel has said that something is wrong."""
        text = self.text()
        found = CRASHED.search(text)
        expect(not found, f"expected a sound guest; it said: {found and text[max(0, found.start() - 200):][:2000]}")

    def check(self, seconds=60):
        """A check of all memory and the whole disk, which must be good. Its line."""
        found = self.ask("check", "check", seconds)
        expect(found["ram_bad"] == 0 and found["disk_bad"] == 0,
               f"expected no bad page and no bad block; got {found}: {self.lines('bad')[:5]}")
        return found

    def good(self):
        """The newest report, in which nothing is bad."""
        self.expect_sound()
        report = self.reports()[-1]
        expect(report["ram_bad"] == 0 and report["disk_bad"] == 0,
               f"expected no bad page and no bad block; got {report}: {self.lines('bad')[:5]}")
        return report


def number(text):
    try:
        return int(text)
    except ValueError:
        with contextlib.suppress(ValueError):
            return float(text)
        return text


def movable_environment(host):
    """A host's environment with what `wander qemu-env` says."""
    told = shlex.split(host.must("qemu-env"), comments=True)
    pairs = dict(word.split("=", 1) for word in told if "=" in word)
    expect("LD_PRELOAD" in pairs, f"expected LD_PRELOAD=... from 'wander qemu-env'; got {told}")
    return {**host.env, **pairs}


def start(host, machine, side, environment=None, extra=()):
    """A QEMU of one's own on a host; its Process."""
    log = host.world.path / host.name / f"{host.world.count()}-qemu.log"
    qemu = Process(machine.argv(side) + list(extra), environment or host.env, log)
    host.world.processes.append(qemu)
    wait_until(lambda: side.watched.exists() or not qemu.running(), 20, "QEMU's monitor")
    expect(qemu.running(), f"expected QEMU to run; it exited with {qemu.popen.poll()} and said: {qemu.output().strip()}")
    return qemu


def boot(host, machine, side, environment=None):
    """The same, until the guest works."""
    qemu = start(host, machine, side, environment)
    wait_until(lambda: side.console.lines("report") or not qemu.running(), BOOT_SECONDS, "a report of the guest")
    expect(qemu.running(), f"expected the guest to boot; it said: {side.console.text()[-2000:]} {qemu.output()}")
    return qemu


def receive(host, machine, side, *options):
    """A `wander receive` that starts this machine at this side for whoever comes."""
    port = free_port()
    arguments = ["receive", "--guest", "qemu", "--listen", f"tcp://127.0.0.1:{port}", *options, "--", *machine.argv(side)]
    receiver = host.start(Receiver, arguments, port=port)
    wait_until(lambda: not receiver.running() or listens(port), 10, f"a receiver on port {port}")
    expect(receiver.running(), f"expected the receiver to listen; it exited with {receiver.popen.poll()} and said: "
                               f"{receiver.output().strip()}")
    return receiver


def direct_io_reason(directory):
    """Why files there cannot be used past the page cache (cache=none), or None."""
    path = Path(directory) / "direct"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
    except OSError as error:
        return f"the file system of {directory} has no O_DIRECT: {error.strerror}"
    finally:
        path.unlink(missing_ok=True)
    return None
