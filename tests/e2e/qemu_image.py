#!/usr/bin/python3
"""The small Linux for QEMU, without wander: it boots and works, finds damage done to its memory, its buffers and its disk
behind its back, and survives QEMU's own migration; and what watches it (pings, image locks) sees what it should."""

import mmap
import struct
import time

from cases import run_cases
from hosts import expect, free_port, wait_until
from qemu_world import (BLOCK, GUEST_ADDRESS, MAGIC, Pinger, QemuWorld, Storm, check_image, image_in_use, machine,
                        write_lockers)

MULTIPLIER = 0x9E3779B97F4A7C15  # migrate/guest/stamp.h
DISK, PORT, PAGE = 8, 7, 4096
LOAD = {"ram": 64, "ram_rate": 20000, "disk": DISK, "disk_rate": 200, "echo": PORT}
UNLIMITED = 1 << 50
PAUSE, SLOW_MS = 0.5, 10


def quick_world(**options):
    return QemuWorld(**{"disk_format": "raw", "memory_mib": 192, "load": LOAD, **options})


def works(world, console):
    """Every load goes on, with nothing bad."""
    before = console.good()
    after = console.next("report", 20, after=before["seq"] + 1)
    for key in ("uptime", "ram_pages", "disk_writes", "disk_reads", "ticks"):
        expect(after[key] > before[key], f"expected {key} to grow from one report to a later one; got {before}, {after}")
    return console.check()


def boots(context):
    with quick_world() as world:
        began = time.monotonic()
        qemu, console = world.boot(movable=False), world.console("a")
        took = time.monotonic() - began
        checked = works(world, console)
        expect((checked["ram_pages"], checked["disk_blocks"]) == (64 * 256, DISK * (1 << 20) // BLOCK),
               f"expected the check to see all pages and blocks; got {checked}")
        expect(write_lockers(world.machine.disk) == [qemu.pid],
               f"expected QEMU {qemu.pid} to hold the image's lock; got {write_lockers(world.machine.disk)}")
        expect(image_in_use(world.machine.disk, "raw"), "expected an image in use to be refused to others; it was not")
        answers_datagrams(console)
        gap = pause_seen_by_pings(world, qemu)
        expect(console.ask("stop-load", "load")["resting"] == 1, "expected the load to rest when told to")
        found_damage(world, console)
        world.monitor("a", qemu).command("quit")
        qemu.wait(10)
        expect(not write_lockers(world.machine.disk) and not image_in_use(world.machine.disk, "raw"),
               "expected nobody to hold the image of a QEMU that has ended")
        print(f"up in {took:.1f} s; no answer to pings for {gap:.0f} ms around a pause of {PAUSE * 1e3:.0f} ms")


def answers_datagrams(console):
    storm = Storm(PORT)
    storm.start()
    try:
        wait_until(lambda: storm.answered > 200, 20, "200 datagrams from the guest's echo")
    finally:
        storm.end()
    expect(storm.wrong == 0, f"expected every datagram to come back as it was; {storm.wrong} of {storm.answered} did not")
    console.next("report")
    expect(console.good()["echoed"] >= 200, f"expected the guest to count what it echoed; got {console.good()}")


def pause_seen_by_pings(world, qemu):
    pinger, monitor = Pinger(world), world.monitor("a", qemu)
    began = time.time_ns()
    monitor.command("stop")
    time.sleep(PAUSE)
    monitor.command("cont")
    pinger.wait_answer(time.time_ns())
    gap = pinger.longest_gap(began)
    monitor.socket.close()
    expect(PAUSE * 900 <= gap, f"expected a gap of about {PAUSE * 1e3:.0f} ms in the answers to pings; got {gap:.0f}")
    return gap


def damage(world, pattern, at):
    """Flips a bit in every copy of what begins like this in the guest's memory; how many there were."""
    count, place = 0, -1
    with open(world.sides["a"].ram, "r+b") as file, mmap.mmap(file.fileno(), 0) as ram:
        while (place := ram.find(pattern, place + 1)) >= 0:
            if place % PAGE == 0:
                ram[place + at] ^= 1
                count += 1
    return count


def stamp(index, sequence):
    word = sequence << 32 | index
    return struct.pack("<QQ", word, word * MULTIPLIER % 2**64)


def found_damage(world, console):
    """Each kind of damage shows in a check."""
    console.next("report")  # one of a guest at rest
    index, passes = 77, console.next("report")["ram_passes"]
    copies = sum(damage(world, stamp(index, passes + more), PAGE - 1) for more in (0, 1))
    expect(copies, f"expected page {index} in the guest's memory with sequence {passes} or the next; it is not there")
    found = console.ask("check", "check")
    expect(found["ram_bad"] == 1 and found["disk_bad"] == 0, f"expected one torn page; got {found}")
    expect(console.lines("bad")[-1].get("result") == "torn", f"expected a torn page; got {console.lines('bad')}")

    number = DISK * (1 << 20) // BLOCK - 3  # read by the check itself, so that it is in a buffer
    expect(damage(world, struct.pack("<QQ", MAGIC, number), 100), f"expected block {number} in the guest's memory")
    found = console.ask("check", "check")
    where = {line["when"] for line in console.lines("bad") if line["what"] == "disk"}
    expect(found["disk_bad"] >= 1 and "buffered-before" in where, f"expected a bad buffer; got {found} {where}")

    with open(world.machine.disk, "r+b") as disk:
        disk.seek(5 * BLOCK + 1000)
        disk.write(b"damage")
    found = console.ask("check", "check")
    last = console.lines("bad")[-1]
    expect(found["disk_bad"] >= 1 and (last["block"], last["result"]) == (5, "checksum"),
           f"expected block 5 to have a wrong checksum; got {found} {last}")


def slow_reads(context):
    with quick_world(load={**LOAD, "disk": 1}, network=False) as world:
        world.boot(movable=False, slow_reads_ms=SLOW_MS)
        console = world.console("a")
        console.ask("stop-load", "load")
        first, second = console.check(), console.check()
        # The second begins when the first is over, at the earliest.
        took, least = second["uptime"] - first["uptime"], second["disk_blocks"] * SLOW_MS / 1e3
        expect(took >= least, f"expected {second['disk_blocks']} reads to take {least:.2f} s or more; got {took:.2f} s")


def moved_by_qemu(context, **options):
    with quick_world(**options) as world:
        here = world.boot("a", movable=False)
        world.sides["b"].clear()
        there = machine.start(world.host("b"), world.machine, world.sides["b"], extra=["-incoming", "defer"])
        pinger, before, began = Pinger(world), world.console("a").good(), time.time_ns()
        own_migration(world.monitor("a", here), world.monitor("b", there))
        pinger.wait_answer(time.time_ns())
        gap = pinger.longest_gap(began)
        after = world.console("b").next("report")
        expect(before["uptime"] < after["uptime"] < before["uptime"] + 30,
               f"expected the uptime to go on from {before}; got {after}")
        works(world, world.console("b"))
        expect(write_lockers(world.machine.disk) == [there.pid], "expected the destination alone to hold the image's lock; "
               f"got {write_lockers(world.machine.disk)}, and the destination is {there.pid}")
        there.popen.terminate()
        there.wait(10)
        sequences = check_image(world.machine.disk, world.machine.disk_format, DISK)
        print(f"{options}: no answer to pings for {gap:.0f} ms while QEMU moved it; {sequences} sequences on its disk")


def own_migration(source, destination):
    """With the guest stopped: QEMU's TCG now and then misses writes of a running one (to the timers' pages, above all),
    and the guest's kernel then crashes at the destination."""
    for monitor in (source, destination):
        monitor.command("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        monitor.command("migrate-set-parameters", **{"max-bandwidth": UNLIMITED})
    uri = f"tcp:127.0.0.1:{free_port()}"
    destination.command("migrate-incoming", uri=uri)
    source.command("stop")
    source.command("migrate", uri=uri)
    source.migrated()
    destination.migrated()
    destination.command("cont")


DISKS = [{"disk_format": form, "cache": cache} for form in ("raw", "qcow2") for cache in ("none", "writeback")]

run_cases(__doc__, {
    "boots": boots,
    "slow_reads": slow_reads,
    "moved_by_qemu": lambda context: [moved_by_qemu(context, **disk) for disk in context.sample(DISKS, 1)],
})
