"""QEMU as a peer to measure against: starts it, speaks QMP to it, migrates it, counts its CPU time."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

from hosts import Failure, cpu_seconds, expect, free_port, wait_until

UNLIMITED = 1 << 50  # bytes/s; without it QEMU stays below 128 MiB/s
PROGRAM = "qemu-system-x86_64"


class Monitor:
    """A QMP connection."""

    def __init__(self, path, process):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(120)
        if wait_until(lambda: self.connect(path) or process.poll(), 20, f"QEMU's monitor at {path}") is not True:
            raise Failure(f"expected QEMU to run; it exited with {process.poll()}")
        self.lines, self.events = self.socket.makefile("r"), []
        self.read()
        self.command("qmp_capabilities")

    def connect(self, path):
        try:
            self.socket.connect(path)
            return True
        except OSError:
            return False

    def read(self):
        try:
            line = self.lines.readline()
        except OSError as error:
            raise Failure(f"expected QEMU's monitor to answer; {error}") from None
        if not line:
            raise Failure("expected QEMU's monitor to answer; it closed the connection")
        return json.loads(line)

    def command(self, name, **arguments):
        self.socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self.read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise Failure(f"QEMU refused {name} {arguments}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def migrated(self):
        """Waits for the end of a migration."""
        while True:
            event = self.events.pop(0) if self.events else self.read()
            status = event.get("data", {}).get("status") if event.get("event") == "MIGRATION" else None
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise Failure(f"expected QEMU's migration to complete; it {status}")


class Qemu:
    """One QEMU with the lab guest's image, its RAM anonymous as in wander's own guest."""

    def __init__(self, directory, name, image, memory_mib, accel, incoming=False):
        path = Path(directory) / f"{name}.qmp"
        self.serial, self.log = Path(directory) / f"{name}.serial", Path(directory) / f"{name}.log"
        arguments = [PROGRAM, "-nodefaults", "-display", "none", "-machine", "q35", "-accel", accel, "-m", str(memory_mib),
                     "-smp", "1", "-kernel", str(image), "-append", "vcpus=1 hot=0 rate=0",
                     "-serial", f"file:{self.serial}", "-qmp", f"unix:{path},server=on,wait=off"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(arguments + (["-incoming", "defer"] if incoming else []),
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            self.monitor = Monitor(str(path), self.process)
            self.prepare()
        except Failure as failure:
            self.kill()
            raise Failure(f"{failure}; QEMU said: {self.log.read_text()[-1000:]}") from None

    def prepare(self):
        self.capabilities(events=True)
        self.monitor.command("migrate-set-parameters", **{"max-bandwidth": UNLIMITED, "downtime-limit": 300})

    def capabilities(self, **wanted):
        pairs = [{"capability": name, "state": state} for name, state in wanted.items()]
        self.monitor.command("migrate-set-capabilities", capabilities=pairs)

    def boot(self, seconds=120):
        wait_until(lambda: self.serial.exists() and "ready" in self.serial.read_text(errors="replace"), seconds,
                   "the guest image to boot under QEMU")
        self.monitor.command("stop")

    def host_address(self, guest_address):
        """Where a guest address is mapped in QEMU's own address space."""
        text = self.monitor.command("human-monitor-command", **{"command-line": f"gpa2hva {guest_address:#x}"})
        return int(text.split()[-1], 16)

    def multifd(self, channels):
        self.capabilities(multifd=channels > 0)
        if channels:
            self.monitor.command("migrate-set-parameters", **{"multifd-channels": channels})

    def cpu(self):
        return cpu_seconds(self.process.pid)

    def quit(self):
        """Ends it; the CPU time of its whole life."""
        try:
            self.monitor.command("quit")
        except (Failure, OSError):
            pass
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime

    def kill(self):
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()


def migrate(source, destination, channels):
    """One migration to its end, the source's exit included: seconds and bytes."""
    for side in (destination, source):
        side.multifd(channels)
    uri = f"tcp:127.0.0.1:{free_port()}"
    destination.monitor.command("migrate-incoming", uri=uri)
    before = {"source": source.cpu(), "destination": destination.cpu()}
    started = time.monotonic()
    source.monitor.command("migrate", uri=uri)
    source.monitor.migrated()
    wall = time.monotonic() - started
    destination.monitor.migrated()
    told = source.monitor.command("query-migrate")
    expect(told["status"] == "completed", f"expected a completed migration; QEMU says {told}")
    cpu = destination.cpu() - before["destination"] + source.quit() - before["source"]
    return {"total_s": told["total-time"] / 1e3, "wall_s": wall, "cpu_s": cpu, "bytes": told["ram"]["transferred"]}
