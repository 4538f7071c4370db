#!/usr/bin/python3
"""What keeps a QEMU guest from being moved is said before anything is done to it, with the remedy; it runs on, and nothing
is left over."""

import contextlib
import os
import socket
from pathlib import Path

from cases import run_cases
from hosts import EXIT_FAILED, EXIT_MIGRATED, EXIT_USAGE, Failure, Process, expect, free_port, wait_until
from qemu_world import QemuWorld, machine

MEMORY = 64  # MiB; these guests do not get beyond their firmware
PROMPT = 30  # s


class Bare(machine.Machine):
    """A guest of firmware alone: up at once. `edit`: pairs of what to replace in QEMU's arguments, `more`: added ones."""

    def __init__(self, image, edit=(), more=(), **options):
        super().__init__(image, memory_mib=MEMORY, **options)
        self.edit, self.more = list(edit), list(more)

    def argv(self, side):
        words = super().argv(side)
        at = words.index("-kernel")
        words[at:at + 6] = []  # -kernel, -initrd, -append
        for old, new in self.edit:
            expect(any(old in word for word in words), f"the test expects '{old}' among {words}")
            words = [word.replace(old, new) for word in words]
        return [word.replace("RAM", str(side.ram)) for word in words + self.more]


class Refused:
    """A world with a guest at "a" and, if it gets so far, a receiver at "b"."""

    def __init__(self, world, movable=True, here=None, there=None):
        self.world, self.here, self.there = world, here or world.machine, there or world.machine
        host = world.host("a")
        environment = machine.movable_environment(host) if movable else host.env
        self.qemu = machine.start(host, self.here, world.sides["a"], environment)
        wait_until(lambda: world.watch("a"), 20, "QEMU's monitor to answer")
        self.files = self.shared_files()

    def shared_files(self):
        """The world's, but for the RAM of "b", which may stay when it is empty."""
        return set(Path("/dev/shm").glob(f"{self.world.path.name}*")) - {self.world.sides["b"].ram}

    def receiver(self):
        return machine.receive(self.world.host("b"), self.there, self.world.sides["b"])

    def migrate(self, uri, *options):
        return self.world.host("a").run("migrate", f"qmp:{self.world.sides['a'].monitor}", uri, *options, seconds=PROMPT)

    def expect_refused(self, done, *words, status="running"):
        """Exit code 1, all of the words said, the guest as it was, and nothing left over."""
        said = done.stderr
        expect(done.returncode == EXIT_FAILED, f"expected exit code 1; got {done.returncode}: {said}{done.stdout}")
        missing = [word for word in words if word not in said]
        expect(not missing, f"expected it to say {missing}; it said: {said.strip()}")
        expect(self.world.watch("a") == status, f"expected the guest to be {status}; QEMU says {self.world.watch('a')}")
        self.expect_nothing_left()

    def expect_nothing_left(self):
        world = self.world
        wait_until(lambda: not world.qemu_pids("b"), 10, "no QEMU at the destination")
        mine = [process.pid for process in world.processes]

        def strangers():
            return [pid for name in world.sides for pid in world.host(name).pids() if pid not in mine and not serves(pid)]
        wait_until(lambda: not strangers(), 10, "no process of wander's but those that were started")
        expect(self.shared_files() == self.files, f"expected the files {self.files} in /dev/shm; got {self.shared_files()}")
        ram = world.sides["b"].ram
        expect(not ram.exists() or os.stat(ram).st_blocks == 0,
               f"expected no memory held in {ram}; it has {ram.exists() and os.stat(ram).st_blocks} blocks")


def serves(pid):
    """Whether it is the process that has taken hold of a running guest; it stays a while after an attempt."""
    with contextlib.suppress(OSError):
        return b"attach" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2]
    return True


def bare_world(**options):
    return QemuWorld(network=False, kind=Bare, **options)


def variant(world, **options):
    """The same machine with a difference."""
    plain = world.machine
    return Bare(plain.image, disk=plain.disk, disk_format=plain.disk_format, cache=plain.cache, **options)


# At the source: changes to its arguments, words that have to be said. No receiver is there: none is asked.
AT_SOURCE = {
    "anonymous memory": ([("memory-backend-file", "memory-backend-ram"), (",mem-path=", ",x=")],
                         ["anonymous memory", "memory-backend-file", "share=on"]),
    "memfd": ([("memory-backend-file", "memory-backend-memfd"), (",mem-path=", ",x=")],
              ["anonymous memory", "memory-backend-file", "share=on"]),
    "private file": ([("share=on", "share=off")], ["share=off", "share=on"]),
}


def without_path(words):
    """A backend without a file takes no mem-path."""
    return [",".join(part for part in word.split(",") if not part.startswith("x=")) for word in words]


class WithoutFile(Bare):
    def argv(self, side):
        return without_path(super().argv(side))


def memory_backend(context, edit, words):
    with bare_world() as world:
        here = WithoutFile(world.machine.image, edit=edit)
        refused = Refused(world, here=here)
        refused.expect_refused(refused.migrate(nowhere()), *words)


def nowhere():
    return f"tcp://127.0.0.1:{free_port()}"


def memory_backends(context):
    for name, (edit, words) in AT_SOURCE.items():
        print(f"{name}:", flush=True)
        memory_backend(context, edit, words)


def no_library(context):
    with bare_world() as world:
        refused = Refused(world, movable=False)
        refused.expect_refused(refused.migrate(nowhere()), "libwander-qemu.so", "wander qemu-env")


def asynchronous_disks(context):
    for method in ("native", "io_uring"):
        with bare_world(disk_format="raw") as world:
            try:
                refused = Refused(world, here=variant(world, edit=[("aio=threads", f"aio={method}")]))
            except Failure as failure:
                print(f"aio={method} cannot be had here: {str(failure)[-200:]}", flush=True)
                continue
            refused.expect_refused(refused.migrate(nowhere()), f"aio={method}", "aio=threads")


def free_page_reporting(context):
    with bare_world() as world:
        more = ["-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on"]
        refused = Refused(world, here=variant(world, more=more))
        refused.expect_refused(refused.migrate(nowhere()), "balloon", "free-page-reporting", "start QEMU without it")


def vhost_user(context):
    with bare_world() as world:
        image, path = world.path / "vhost-user.raw", world.path / "vhost-user.sock"
        with open(image, "wb") as file:
            file.truncate(1 << 20)
        server = Process(["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=file,filename={image}",
                          "--export", f"type=vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path={path}"],
                         world.host("a").env, world.path / "vhost-user.log")
        world.processes.append(server)
        wait_until(path.exists, 10, "the vhost-user server's socket")
        more = ["-chardev", f"socket,id=server,path={path}", "-device", "vhost-user-blk-pci,id=outside,chardev=server"]
        refused = Refused(world, here=variant(world, more=more))
        refused.expect_refused(refused.migrate(nowhere()), "outside", "vhost-user")


def paused(context):
    with bare_world() as world:
        refused = Refused(world)
        tell(world, "a", "stop")
        refused.expect_refused(refused.migrate(nowhere()), "does not run", "cont", status="paused")


def tell(world, name, *commands):
    monitor = world.monitor(name, world.processes[0])
    try:
        for command in commands:
            command = command if isinstance(command, tuple) else (command, {})
            monitor.command(command[0], **command[1])
    finally:
        monitor.lines.close()
        monitor.socket.close()


def another_migration(context):
    with bare_world() as world:
        refused = Refused(world)
        with socket.socket(socket.AF_UNIX) as silent:  # takes the stream and reads nothing of it
            path = world.path / "silent"
            silent.bind(str(path))
            silent.listen()
            tell(world, "a", ("migrate-set-parameters", {"max-bandwidth": 4096}), ("migrate", {"uri": f"unix:{path}"}))
            refused.expect_refused(refused.migrate(nowhere()), "another migration of this guest is under way",
                                   "migrate_cancel")
            tell(world, "a", "migrate_cancel")


def monitor_is_held(context):
    with bare_world() as world:
        refused = Refused(world)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(world.sides["a"].monitor))
            refused.expect_refused(refused.migrate(nowhere()), "one client at a time", "second monitor")


def nobody_at_the_socket(context):
    with bare_world() as world:
        refused = Refused(world)
        host, missing, silent = world.host("a"), world.path / "missing", world.path / "stranger"
        refused.expect_refused(host.run("migrate", f"qmp:{missing}", nowhere()), str(missing), "-qmp unix:")
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.bind(str(silent))
        refused.expect_refused(host.run("migrate", f"qmp:{silent}", nowhere()), str(silent), "-qmp unix:")


# At the destination: changes to its arguments, added ones, words.
AT_DESTINATION = {
    "machine type": ([("-machine", "-machine"), ("q35,", "pc,")], [], ["machine type", "-machine"]),
    "processor": ([("max", "qemu64")], [], ["processor", "-cpu"]),
    "RAM size": ([("64M", "96M")], [], ["RAM ram has", "same size"]),
    "vCPUs": ([], ["-smp", "2"], ["vCPUs", "-smp 1"]),
    "a device more": ([], ["-device", "virtio-rng-pci,id=rng"], ["rng", "does not have", "leave it out"]),
    "an argument QEMU does not know": ([], ["-no-such-argument"], ["-no-such-argument", "invalid option"]),
    "no such device": ([], ["-device", "no-such-device"], ["no-such-device"]),
}


def other_at_destination(context):
    with bare_world() as world:
        refused = Refused(world)
        for name in context.sample(AT_DESTINATION, 5):
            edit, more, words = AT_DESTINATION[name]
            print(f"{name}:", flush=True)
            world.sides["b"].clear()
            refused.there = variant(world, edit=edit, more=more)
            refused.expect_refused(refused.migrate(refused.receiver().uri), *words)


def device_missing(context):
    with bare_world() as world:
        refused = Refused(world, here=variant(world, more=["-device", "virtio-rng-pci,id=rng"]))
        refused.expect_refused(refused.migrate(refused.receiver().uri), "rng", "missing here", "add it to the command line")


def memory_in_use(context):
    """The destination's RAM file is another QEMU's: that one keeps its memory."""
    with bare_world() as world:
        refused = Refused(world)
        refused.there = variant(world, edit=[(str(world.sides["b"].ram), str(world.sides["a"].ram))])
        refused.expect_refused(refused.migrate(refused.receiver().uri), str(world.sides["a"].ram), "in use by process",
                               "another name")
        expect(os.stat(world.sides["a"].ram).st_blocks > 0, "expected the guest to keep its memory; the file is empty")


def without_command(context):
    with bare_world() as world:
        done = world.host("b").run("receive", "--guest", "qemu", "--listen", nowhere())
        expect(done.returncode == EXIT_USAGE and "qemu-system-x86_64" in done.stderr,
               f"expected exit code 2 and what to add; got {done.returncode}: {done.stderr}")


def wrong_kind(context):
    with bare_world() as world:
        refused = Refused(world)
        lab = world.host("b").receive("--guest", "lab")
        refused.expect_refused(refused.migrate(lab.uri), "qemu", "lab")
        world.host("a").lab("small", accel=context.accel)
        done = world.host("a").run("migrate", "small", refused.receiver().uri, seconds=PROMPT)
        expect(done.returncode == EXIT_FAILED and "qemu" in done.stderr,
               f"expected exit code 1 and the kind that is taken there; got {done.returncode}: {done.stderr}")
        refused.expect_nothing_left()
        expect(world.host("a").workload("small"), "expected the lab guest to run on")


class Growing(Bare):
    """It has slots for more RAM."""

    def argv(self, side):
        words = super().argv(side)
        words[words.index("-m") + 1] += ",slots=2,maxmem=1G"
        return words


def hot_plugged(context):
    """RAM that comes while the guest is on its way: the move fails, and the guest has all its memory here."""
    for phase in ("precopy", "connecting"):
        with bare_world() as world:
            growing = Growing(world.machine.image)
            plug_in(Refused(world, here=growing, there=growing), phase)


def plug_in(refused, phase):
    world, host = refused.world, refused.world.host("a")
    plugged = Path(f"{world.sides['a'].ram}.plugged")
    world.leftovers.append(plugged)
    monitor = f"qmp:{world.sides['a'].monitor}"
    migration = host.start_migrate(monitor, refused.receiver().uri, "--filter", "rate=50K")
    wait_until(lambda: phase_of(host) == phase, 20, f"the migration to be in its phase '{phase}'")
    tell(world, "a",
         ("object-add", {"qom-type": "memory-backend-file", "id": "more", "size": 128 << 20, "share": True,
                         "mem-path": str(plugged)}),
         ("device_add", {"driver": "pc-dimm", "id": "dimm", "memdev": "more"}))
    code = migration.wait(60)
    expect(code == EXIT_FAILED and "plugged in" in migration.output(),
           f"expected exit code 1 and a word of the memory (while {phase}); got {code}: {migration.output()[-1500:]}")
    expect(world.watch("a") == "running", f"expected the guest to run; QEMU says {world.watch('a')}")
    refused.files.add(plugged)
    refused.expect_nothing_left()


def phase_of(host):
    status = host.status("linux") if host.guests() else None
    return status and status.get("migration") and status["migration"]["phase"]


def native_where_it_arrived(context):
    """What is refused of a guest is refused where it came to as well."""
    with bare_world(disk_format="raw") as world:
        refused = Refused(world)
        refused.there = variant(world, edit=[("aio=threads", "aio=native")])
        done = refused.migrate(refused.receiver().uri)
        if done.returncode == EXIT_FAILED:
            return refused.expect_refused(done, "aio=native", "aio=threads")
        expect(done.returncode == EXIT_MIGRATED, f"expected exit code 0 or 1; got {done.returncode}: {done.stderr}")
        back = machine.receive(world.host("a"), world.machine, world.sides["a"])
        again = world.host("b").run("migrate", "linux", back.uri, seconds=PROMPT)
        expect(again.returncode == EXIT_FAILED and "aio=threads" in again.stderr,
               f"expected a word of aio=threads; got {again.returncode}: {again.stderr}")
        return expect(world.watch("b") == "running", "expected the guest to run on")


def accepted(context):
    """Without a difference the same guest moves: what was refused above was refused for what it says."""
    with bare_world(disk_format="raw") as world:
        refused = Refused(world)
        done = refused.migrate(refused.receiver().uri)
        expect(done.returncode == EXIT_MIGRATED, f"expected the move to be accepted; got {done.returncode}: {done.stderr}")
        expect(world.watch("b") == "running", f"expected the guest to run at the destination; QEMU says {world.watch('b')}")


run_cases(__doc__, {"accepted": accepted, "memory backends": memory_backends, "no library": no_library,
                    "asynchronous disks": asynchronous_disks, "free page reporting": free_page_reporting,
                    "vhost-user": vhost_user, "paused": paused, "another migration": another_migration,
                    "monitor is held": monitor_is_held, "nobody at the socket": nobody_at_the_socket,
                    "other at destination": other_at_destination, "device missing": device_missing,
                    "memory in use": memory_in_use, "without a command": without_command, "wrong kind": wrong_kind,
                    "hot-plugged": hot_plugged,
                    "native where it arrived": native_where_it_arrived})
