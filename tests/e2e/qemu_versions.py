#!/usr/bin/python3
"""Guests of the QEMU that Debian's backports have: they move as those of its stable release do, come to it from there, and
do not go back."""

import copy
import itertools

from cases import Skip, run_cases
from hosts import EXIT_FAILED, expect, wait_until
from linux_guest import qemu_backports
from qemu_world import QemuWorld, machine, need_programs
from virtual.packages import Trouble

LOAD = {"ram": 64, "ram_rate": 8000, "disk": 4, "disk_rate": 100}
CACHES = {"none": "raw", "writeback": "qcow2"}
HOPS = 10
SAME_CPU = ["-cpu", "qemu64"]  # "max" is whatever a QEMU can do
SLOW_LINK = "rate=30M"         # a move that takes long enough for something to happen meanwhile


def newer_qemu():
    try:
        return qemu_backports.get(lambda text: print(text, flush=True))
    except (Trouble, OSError) as trouble:
        raise Skip(f"the QEMU of backports could not be had: {str(trouble).splitlines()[0]}") from None


def two_qemus():
    """(program, release as text) of the one that is installed, and of the newer one."""
    need_programs(machine.PROGRAM)
    found = [(program, qemu_backports.version(program)) for program in (machine.PROGRAM, newer_qemu())]
    if found[0][1] >= found[1][1]:
        raise Skip(f"the QEMU that is installed is {found[0][1]}: no older one than that of backports, {found[1][1]}")
    return [(program, f"{major}.{minor}") for program, (major, minor) in found]


def hops(context):
    """To and fro, all memory compared, and memory and disk good in the guest's own eyes."""
    programs = dict.fromkeys("ab", newer_qemu())
    for cache, lanes in context.sample(itertools.product(CACHES, (1, 4)), 1):
        with QemuWorld(disk_format=CACHES[cache], cache=cache, network=False, load=LOAD, programs=programs) as world:
            world.boot()
            ends, downtimes = "ab", []
            for _ in range(HOPS if context.full else 2):
                uri = world.receive(ends[1]).uri
                report, _ = world.hop(*ends, uri, "--lanes", lanes, "--verify")
                expect(report["verified"], f"expected all memory to be compared; got {report}")
                downtimes.append(report["downtime_ms"])
                ends = ends[::-1]
                world.console(ends[0]).check()
            print(f"cache={cache}, {lanes} lanes: {len(downtimes)} hops, at most {max(downtimes):.0f} ms down", flush=True)


def with_board(world, board):
    other = copy.copy(world.machine)
    other.board = board
    return other


def migrate(world, here, uri, *options):
    return world.host(here).run("migrate", world.guest(here), uri, *options)


def expect_refused(world, here, done, *words):
    missing = [word for word in words if word not in done.stderr]
    expect(done.returncode == EXIT_FAILED and not missing,
           f"expected exit code 1 and {missing} to be said; got {done.returncode}: {done.stderr}")
    expect(world.watch(here) == "running", f"expected the guest to run on at {here}; QEMU says {world.watch(here)}")


def releases(context):
    """A machine type of the older release takes a guest to the newer one, and nothing takes it back."""
    (older, old), (newer, new) = two_qemus()
    board = f"pc-q35-{old}"
    with QemuWorld(disk_format="raw", network=False, load=LOAD, programs={"a": older, "b": newer}, extra=SAME_CPU) as world:
        world.boot()
        unversioned = machine.receive(world.host("b"), world.machine, world.sides["b"])
        expect_refused(world, "a", migrate(world, "a", unversioned.uri), f"start QEMU here with -machine {board}")
        world.sides["b"].clear()
        there = machine.receive(world.host("b"), with_board(world, board), world.sides["b"])
        world.hop("a", "b", there.uri, "--verify")
        world.console("b").check()
        back = machine.receive(world.host("a"), with_board(world, board), world.sides["a"])
        expect_refused(world, "b", migrate(world, "b", back.uri), f"the guest runs in QEMU {new}, and QEMU {old} here",
                       f"install QEMU {new} or newer here")


def first_use(context):
    """A QEMU that sets up native AIO and io_uring only when they are used: seen when a move is under way already."""
    programs = dict.fromkeys("ab", newer_qemu())
    for method in context.sample(("native", "io_uring"), 1):
        print(f"aio={method}:", flush=True)
        with QemuWorld(network=False, memory_mib=128, load={"ram": 16, "ram_rate": 100}, programs=programs) as world:
            use_while_moving(world, world.boot(), method)


def use_while_moving(world, qemu, method):
    image = world.path / "late"
    image.write_bytes(bytes(1 << 20))
    tell(world, qemu, "blockdev-add", {"driver": "file", "node-name": "late", "filename": str(image), "aio": method,
                                       "cache": {"direct": True}})
    migration = world.host("a").start_migrate(world.guest("a"), world.receive().uri, "--filter", SLOW_LINK)
    # Some set it up when the disk is added: then the move is refused at once.
    wait_until(lambda: phase(world) == "precopy" or not migration.running(), 20, "the first round, or a refusal")
    if migration.running():
        tell(world, qemu, "human-monitor-command", {"command-line": 'qemu-io late "read 0 4096"'})
    code = migration.wait(60)
    expect(code == EXIT_FAILED and "aio=threads" in migration.output(),
           f"expected exit code 1 and a word of aio=threads; got {code}: {migration.output()[-1500:]}")
    expect(world.watch("a") == "running", f"expected the guest to run on; QEMU says {world.watch('a')}")


def tell(world, qemu, command, arguments):
    monitor = world.monitor("a", qemu)
    try:
        monitor.command(command, **arguments)
    finally:
        monitor.lines.close()
        monitor.socket.close()


def phase(world):
    status = world.host("a").status("linux") if world.host("a").guests() else None
    return status and status.get("migration") and status["migration"]["phase"]


run_cases(__doc__, {"hops": hops, "releases": releases, "first use": first_use})
