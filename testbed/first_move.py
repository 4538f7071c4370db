"""The first move a newcomer sees: a 512 MiB guest whose hot set is written at a quarter or more of what the link carries moves
from one process to another, and proves there that its memory is whole and that it runs on."""

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import hosts
import qemu_move
from hosts import Failure, World, expect, wait_until

MEMORY, TOUCH, HOT = "512M", "384M", 128 << 20
PAGE, MIB = 4096, 1 << 20
NEEDED_SHARE = 0.25   # of the measured goodput is written meanwhile, at least
WANTED_SHARE = 0.5    # what is aimed at, since a busy machine slows the guest down
LAST_SHARE = 0.2      # of the hot set may be left for the pause: so it takes several rounds
FIXED_MS = 40         # of the pause, whatever is left to send


def parse_options():
    parser = argparse.ArgumentParser(prog="testbed/quickstart", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the report of the migration there")
    parser.add_argument("--guest", choices=["lab", "qemu"], default="lab",
                        help="qemu: a small real Linux in QEMU instead (default: lab)")
    parser.add_argument("--accel", choices=["kvm", "synthetic", "tcg"],
                        help="kind of guest: kvm (default where it is usable) or synthetic; with --guest qemu, how QEMU runs "
                             "it: tcg (default) or kvm")
    options = parser.parse_args()
    if options.accel == ("synthetic" if options.guest == "qemu" else "tcg"):
        parser.error(f"--guest {options.guest} has no --accel {options.accel}")
    return options


def check_json(path):
    """Before the work, not after it."""
    try:
        if path:
            open(path, "a").close()
    except OSError as error:
        raise Failure(f"--json: cannot write {path}: {error.strerror}") from None


def choose_accel(wish):
    reason = hosts.kvm_reason()
    if reason and wish == "kvm":
        raise Failure(f"{reason}; --accel synthetic needs no KVM")
    if reason:
        print(f"{reason}: using the synthetic guest, the same workload as threads of a process.")
    return wish or ("synthetic" if reason else "kvm")


def measure_goodput(accel):
    """Guest bytes per second that an idle guest of this kind moves with."""
    with World() as world:
        source, destination = world.host("source"), world.host("destination")
        source.lab("calibration", memory=MEMORY, workload=f"touch={TOUCH}", accel=accel)
        report = source.migrate("calibration", destination.receive().uri)
        return report["goodput_bytes_per_s"]


def start_guest(source, accel, goodput):
    """A guest that writes half of what the link carries, or as much as it can; the bytes per second that it does write."""
    rate = int(WANTED_SHARE * goodput / PAGE)
    print(f"\nStarting a guest of {MEMORY} with {TOUCH} of incompressible memory, of which it writes {HOT // MIB} MiB over and "
          f"over.")
    source.lab("lab", memory=MEMORY, workload=f"touch={TOUCH},hot={HOT // MIB}M,rate={rate}", accel=accel)
    written = hosts.writing_speed(source, "lab") * PAGE
    print(f"It writes {written / MIB:.0f} MiB/s.")
    return written


def move(accel, goodput, json_path):
    with World() as world:
        source, destination = world.host("source"), world.host("destination")
        written = start_guest(source, accel, goodput)
        bandwidth = int(written / WANTED_SHARE)
        limit = FIXED_MS + int(LAST_SHARE * HOT / bandwidth * 1e3)
        print(f"The move may use {bandwidth // MIB} MiB/s, and the guest may pause for {limit} ms at the end.\n")
        report_path = str(world.path / "report.json")
        before, began = source.written("lab"), time.monotonic()
        hosts.show_migration(source, "lab", destination.receive().uri,
                             ["--downtime-limit", f"{limit}ms", "--max-bandwidth", f"{bandwidth // MIB}M", "--throttle", "auto",
                              "--json", report_path])
        account = wait_until(lambda: destination.workload("lab"), 10, "the guest at the destination")
        rate = (account["pages_written"] - before) * PAGE / (time.monotonic() - began)
        prove(destination, json.loads(Path(report_path).read_text()), rate)
        if json_path:
            shutil.copyfile(report_path, json_path)
            print(f"The report is in {json_path}.")


def prove(destination, report, rate):
    """What was promised of this move, checked."""
    goodput = report["goodput_bytes_per_s"]
    print(f"\nWhile it moved at {goodput / MIB:.0f} MiB/s the guest wrote {rate / MIB:.0f} MiB/s: {rate / goodput:.0%} of that.")
    expect(rate >= NEEDED_SHARE * goodput, f"expected the guest to write at {NEEDED_SHARE:.0%} or more of the goodput; it wrote "
                                           f"at {rate / goodput:.0%}")
    expect(len(report["rounds"]) >= 3, f"expected at least 3 rounds; there were {len(report['rounds'])}")
    account = destination.check("lab")
    print(f"After the move it checked its memory: {account['checked_pages']} pages, none bad.")
    written = destination.written("lab")
    wait_until(lambda: destination.written("lab") > written, 10, "the guest to go on writing at the destination")
    print("It runs on at the destination, and goes on writing.")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options = parse_options()
    try:
        check_json(options.json)
        if options.guest == "qemu":
            qemu_move.move(options.accel or "tcg", options.json)
            return
        accel = choose_accel(options.accel)
        goodput = measure_goodput(accel)
        print(f"An idle guest moves at {goodput / MIB:.0f} MiB/s here.")
        move(accel, goodput, options.json)
    except Failure as failure:
        sys.exit(f"quickstart: {failure}")
    except KeyboardInterrupt:
        sys.exit("quickstart: interrupted")


main()
