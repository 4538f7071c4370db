"""The first move a newcomer sees: a 512 MiB guest whose hot set is written at a quarter or more of what the link carries moves
from one process to another, and proves there that its memory is whole and that it runs on."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hosts
from hosts import Failure, World, expect, wait_until

MEMORY, TOUCH, HOT = "512M", "384M", 32 << 20
SHARE = 0.25  # of the measured goodput, at least, is written meanwhile


def parse_options():
    parser = argparse.ArgumentParser(prog="testbed/quickstart", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the report of the migration there")
    parser.add_argument("--accel", choices=["kvm", "synthetic"], help="kind of guest (default: kvm where it is usable)")
    return parser.parse_args()


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


def show_migration(source, uri, report_path):
    """Runs `wander migrate` in front of the user's eyes."""
    command = [hosts.PROGRAM, "migrate", "lab", uri, "--json", report_path]
    print(f"$ wander migrate lab {uri}", flush=True)
    try:
        code = subprocess.run(command, env=source.env, timeout=300).returncode
    except subprocess.TimeoutExpired:
        raise Failure("expected the migration to end within 300 s; it still ran") from None
    expect(code == 0, f"expected the migration to exit with 0; it exited with {code}")


def move(accel, goodput, json_path):
    with World() as world:
        source, destination = world.host("source"), world.host("destination")
        report_path = str(world.path / "report.json")
        workload = f"touch={TOUCH},hot={HOT >> 20}M,rate=max"
        print(f"\nA guest of {MEMORY} with {TOUCH} of incompressible memory; it writes {HOT >> 20} MiB over and over.")
        source.lab("lab", memory=MEMORY, workload=workload, accel=accel)
        rate = wait_until(lambda: source.workload("lab")["rate"], 10, "the guest to know its rate") * 4096
        show_migration(source, destination.receive().uri, report_path)
        report = json.loads(Path(report_path).read_text())
        prove(destination, report, rate, goodput)
        if json_path:
            shutil.copyfile(report_path, json_path)
            print(f"The report is in {json_path}.")


def prove(destination, report, rate, goodput):
    measured = report["goodput_bytes_per_s"]
    print(f"\nWritten before the move: {rate / 2**20:.0f} MiB/s; goodput {measured / 2**20:.0f} MiB/s while the guest wrote, "
          f"{goodput / 2**20:.0f} MiB/s for an idle one: written at {rate / measured:.0%} of the goodput.")
    expect(rate >= SHARE * measured, f"expected the guest to write at {SHARE:.0%} or more of the goodput; it wrote at "
                                     f"{rate / measured:.0%}")
    expect(len(report["rounds"]) >= 3, f"expected at least 3 rounds; there were {len(report['rounds'])}")
    account = destination.check("lab")
    print(f"The guest checked its memory after the move: {account['checked_pages']} pages, none bad.")
    written = account["pages_written"]
    wait_until(lambda: destination.written("lab") > written, 10, "the guest to go on writing at the destination")
    print("It runs on at the destination, and goes on writing.")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options = parse_options()
    try:
        accel = choose_accel(options.accel)
        goodput = measure_goodput(accel)
        print(f"An idle guest moves at {goodput / 2**20:.0f} MiB/s here.")
        move(accel, goodput, options.json)
    except Failure as failure:
        sys.exit(f"quickstart: {failure}")
    except KeyboardInterrupt:
        sys.exit("quickstart: interrupted")


main()
