#!/usr/bin/python3
"""A guest in QEMU moves while its slow disk keeps writing into its memory past every page table: what comes late comes
along."""

from cases import run_cases
from qemu_world import QemuWorld

READERS, SLOW_MS, BANDWIDTH = 16, 200, "20M"  # so slow that every round finds all readers waiting
LOAD = {"ram": 8, "ram_rate": 500, "disk": 8, "disk_rate": 5, "readers": READERS}


def late_bytes(context):
    with QemuWorld("raw", "none", network=False, memory_mib=192, load=LOAD) as world:
        world.boot("a", slow_reads_ms=SLOW_MS)
        report, _ = world.hop("a", "b", world.receive("b").uri, "--max-bandwidth", BANDWIDTH)
        world.console("b").ask("stop-load", "load")
        checked = world.console("b").check()
        print(f"{len(report['rounds'])} rounds; {checked['disk_blocks']} blocks and {READERS} readers' buffers are good")


run_cases(__doc__, {"late_bytes": late_bytes})
