"""A small real Linux for QEMU: Debian's stock kernel and an initramfs with busybox and one program (workload/). Built once,
in the cache, under a lock; a change of the recipe gives it another name."""

import time
from pathlib import Path

from virtual import cache
from virtual.image import archive, unpack, unpack_kernel
from virtual.packages import Apt, Trouble, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECIPE = [HERE / "image.py", HERE / "init", *sorted((HERE / "workload").glob("*.[ch]")),
          HERE.parent / "virtual/image.py", HERE.parent / "virtual/packages.py", ROOT / "migrate/guest/stamp.h"]
MODULES = "virtio_pci virtio_blk virtio_net".split()
COMPILE = "gcc -std=gnu11 -O2 -Wall -Wextra -static -s -pthread".split()


def get(say):
    """The directory of the image, built if it is not there: kernel, initramfs. `say` shows progress."""
    return cache.get("linux-guest", RECIPE, build, say)


def build(place, archives, say):
    say("fetching the kernel and busybox for the Linux guest")
    apt = Apt(place / "apt", archives)
    update(apt)
    kernel, _ = apt.kernel()
    busybox = apt.fetch_one("busybox-static")
    root, image = place / "root", place / "result"
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    image.mkdir()
    unpack(busybox, root, [])
    version = unpack_kernel(kernel, root, image)
    run([root / "bin/busybox", "depmod", "-b", root, version])
    run([*COMPILE, "-I", ROOT, "-o", place / "workload", *sorted((HERE / "workload").glob("*.c"))])
    (image / "initramfs").write_bytes(archive(boot_files(place, root, root / "usr/lib/modules" / version)))


def update(apt, tries=3):
    """Mirrors fail now and then."""
    for left in range(tries - 1, -1, -1):
        try:
            return apt.update()
        except Trouble:
            if not left:
                raise
            time.sleep(5)


def boot_files(place, root, modules):
    """{path: (mode, content)} of the initramfs, with the modules in the order to load."""
    order = module_order((modules / "modules.dep").read_text())
    files = {"init": (0o755, (HERE / "init").read_bytes()),
             "bin/busybox": (0o755, (root / "bin/busybox").read_bytes()),
             "bin/workload": (0o755, (place / "workload").read_bytes()),
             "modules/order": (0o644, "".join(f"{Path(path).name}\n" for path in order).encode())}
    for path in order:
        files[f"modules/{Path(path).name}"] = (0o644, (modules / path).read_bytes())
    return files


def module_order(dependencies):
    """Paths of the modules, each after those it needs. What is part of the kernel is not listed."""
    needs = {}
    for line in dependencies.splitlines():
        module, _, others = line.partition(":")
        needs[Path(module).stem.replace("-", "_")] = (module, others.split())
    order = []

    def add(name):
        module, others = needs[name]
        if module not in order:
            for other in others:
                add(Path(other).stem.replace("-", "_"))
            order.append(module)

    for name in MODULES:
        if name in needs:
            add(name)
    return order
