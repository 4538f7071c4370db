"""The newcomer's first move of a real Linux: a Debian kernel in QEMU, busy with memory and disk, goes from one process to
another, where its uptime goes on and nothing is missing."""

import shutil

import hosts
from hosts import Failure, World, expect
from linux_guest import image, machine
from virtual.packages import Trouble

MEMORY_MIB, DISK_MIB = 512, 64
LOAD = {"ram": 128, "ram_rate": 8000, "disk": 8, "disk_rate": 50}
SHOWN = ("uptime", "ram_passes", "ram_bad", "disk_writes", "disk_reads", "disk_bad")


def get_image():
    try:
        return image.get(print)
    except Trouble as trouble:
        raise Failure(f"the image of the Linux guest could not be made: {trouble}") from None


def make_disk(world):
    """(path, cache mode): past the host's page cache where the file system can."""
    path = world.path / "disk.raw"
    with open(path, "wb") as disk:
        disk.truncate(DISK_MIB << 20)
    return path, "writeback" if machine.direct_io_reason(world.path) else "none"


def show_reports(console, where, count=3):
    """Prints what the guest reports, as it comes. The last report."""
    for _ in range(count):
        report = console.next("report")
        shown = "  ".join(f"{key} {report[key]}" for key in SHOWN)
        print(f"[guest, {where}]  {shown}", flush=True)
    return console.good()


def boot(world, linux, side):
    print(f"\nBooting a Debian kernel in QEMU ({linux.accel}) with {MEMORY_MIB} MiB. It stamps and checks {LOAD['ram']} MiB of "
          f"memory and writes and re-reads a disk.", flush=True)
    source = world.host("source")
    qemu = machine.boot(source, linux, side, machine.movable_environment(source))
    print(f"It runs as process {qemu.pid}, and says on its console:")
    return show_reports(side.console, "source")


def prove(console, before):
    """What was promised of this move, checked."""
    print("\nThe guest says at the destination:")
    after = show_reports(console, "destination")
    expect(after["uptime"] > before["uptime"], f"expected the uptime to go on after {before['uptime']} s; it is "
                                               f"{after['uptime']} s")
    expect(after["ram_pages"] > before["ram_pages"] and after["disk_writes"] > before["disk_writes"],
           f"expected the guest to go on working after {before}; got {after}")
    found = console.check()
    print(f"Told to check, it found {found['ram_pages']} pages of memory and {found['disk_blocks']} blocks of its disk, none "
          f"bad.\nIts uptime went on from {before['uptime']:.1f} s to {found['uptime']:.1f} s: it was never restarted.")


def move(accel, json_path):
    built = get_image()
    with World() as world:
        source, destination = machine.Side(world, "source"), machine.Side(world, "destination")
        disk, cache = make_disk(world)
        linux = machine.Machine(built, MEMORY_MIB, accel=accel, load=LOAD, disk=disk, cache=cache)
        before = boot(world, linux, source)
        uri = machine.receive(world.host("destination"), linux, destination).uri
        report = str(world.path / "report.json")
        print("\nA second QEMU will be started for it by 'wander receive --guest qemu'. Now it moves:\n")
        hosts.show_migration(world.host("source"), f"qmp:{source.monitor}", uri, ["--json", report])
        prove(destination.console, before)
        if json_path:
            shutil.copyfile(report, json_path)
            print(f"The report is in {json_path}.")
