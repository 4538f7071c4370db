"""The QEMU of Debian's backports, unpacked in the cache with the libraries it needs: nothing is installed. Fetched once,
under a lock; a change of the recipe gives it another name."""

import re
from pathlib import Path

from linux_guest.image import update
from virtual import cache
from virtual.image import unpack
from virtual.packages import BACKPORTS, Apt, Trouble, run

HERE = Path(__file__).resolve().parent
RECIPE = [HERE / "qemu_backports.py", HERE.parent / "virtual/packages.py"]
PROGRAM = "qemu-system-x86_64"
PACKAGES = "qemu-system-x86 qemu-system-common qemu-system-data seabios".split()  # the rest is as the suite has it
LIBRARIES = "usr/lib/x86_64-linux-gnu"
FIRMWARE = "usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"
HOSTS_OWN = "libc6_", "libgcc-s1_", "gcc-12-base_"  # the loader and these must be of one making
UNWANTED = [f"--exclude=./usr/share/{folder}" for folder in ("doc", "man", "locale", "info", "icons", "bug")]


def get(say):
    """The path of a program that is this QEMU, fetched if it is not there. `say` shows progress."""
    return cache.get("qemu-backports", RECIPE, fetch, say) / PROGRAM


def version(program):
    """(major, minor) of a QEMU."""
    said = run([program, "--version"])
    return tuple(map(int, re.search(r"version (\d+)\.(\d+)", said).groups()))


def fetch(place, archives, say):
    say(f"fetching the QEMU of {BACKPORTS}")
    apt = Apt(place / "apt", archives)
    update(apt)
    if not apt.backports:
        raise Trouble(f"the suite {BACKPORTS} could not be had from the machine's source of Debian's packages")
    root = place / "result"
    root.mkdir()
    for folder in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / folder).mkdir(parents=True)
        (root / folder).symlink_to(f"usr/{folder}")
    for package in apt.fetch([f"{package}/{BACKPORTS}" for package in PACKAGES]):
        if not package.name.startswith(HOSTS_OWN):
            unpack(package, root, UNWANTED)
    write_program(root)
    run([root / PROGRAM, "--version"])


def write_program(root):
    """What to start: the QEMU beside it in the place of this process, with its own libraries, modules and firmware."""
    firmware = " ".join(f'-L "$here/{folder}"' for folder in FIRMWARE)
    script = root / PROGRAM
    script.write_text(f'#!/bin/sh\nhere=${{0%/*}}\n'
                      f'export LD_LIBRARY_PATH="$here/{LIBRARIES}" QEMU_MODULE_DIR="$here/{LIBRARIES}/qemu"\n'
                      f'exec "$here/usr/bin/{PROGRAM}" {firmware} "$@"\n')
    script.chmod(0o755)
