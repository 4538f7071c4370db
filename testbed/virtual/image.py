"""The image both virtual hosts boot: Debian's stock kernel, a small initramfs and one root file system, read-only.
Built from packages once, in the cache, under a lock; a change of the recipe gives it another name."""

import json
import lzma
import os
import re
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from virtual import cache
from virtual.packages import Apt, Trouble, run

HERE = Path(__file__).resolve().parent
RECIPE = ["image.py", "packages.py", "guest-init", "guest-setup"]
PACKAGES = """
    libc6 bash dash coreutils sed grep util-linux procps kmod busybox-static strace
    iproute2 ethtool iperf3 dropbear-bin openssh-sftp-server
    libibverbs1 ibverbs-providers librdmacm1 ibverbs-utils rdmacm-utils perftest
    libuv1 libcjson1 libxxhash0 libzstd1 libssl3 libgcc-s1 libstdc++6
    libasan8 libubsan1 libtsan2 libcriterion3 binutils python3-minimal
    linux-perf qemu-system-x86
""".split()
UNWANTED = ["./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/share/perl*",
            "./usr/lib/x86_64-linux-gnu/perl*", "./usr/share/bug", "./usr/share/icons", "./usr/share/iso-codes"]
BOOT_MODULES = "virtio_blk ext4 overlay".split()
# crc32_generic: without it soft-RoCE says "No such file or directory" when a link is added.
HOST_MODULES = "crc32_generic crc32c_generic rdma_rxe rdma_cm rdma_ucm ib_uverbs".split()
MODULES = """
    kernel/arch/x86 kernel/crypto kernel/lib kernel/virt kernel/fs/ext4 kernel/fs/jbd2 kernel/fs/mbcache.ko*
    kernel/fs/configfs kernel/fs/overlayfs kernel/fs/9p kernel/fs/netfs kernel/net kernel/drivers/infiniband
    kernel/drivers/virtio kernel/drivers/block/virtio_blk.ko* kernel/drivers/block/loop.ko*
    kernel/drivers/net/virtio_net.ko* kernel/drivers/net/net_failover.ko* kernel/drivers/net/veth.ko*
    kernel/drivers/net/tun.ko* kernel/drivers/net/dummy.ko* kernel/drivers/crypto/ccp kernel/drivers/vhost
    modules.builtin modules.builtin.modinfo modules.order
""".split()


def get(say):
    """The directory of the image, built if it is not there: kernel, initramfs, root.img, about.json. `say` shows
    progress."""
    return cache.get("hosts", [HERE / name for name in RECIPE], build, say)


def build(place, archives, say):
    say("fetching package lists")
    apt = Apt(place / "apt", archives)
    apt.update()
    say(f"fetching the kernel and {len(PACKAGES)} packages with what they need")
    kernel, backports = apt.kernel()
    packages = apt.fetch(PACKAGES)
    if not backports:
        say("note: the kernel of backports could not be had, so the hosts run the suite's own: it lacks PAGEMAP_SCAN, "
            "and what tracks dirty pages by it cannot be tried there")
    root, image = place / "root", place / "result"
    root.mkdir()
    image.mkdir()
    say(f"unpacking {len(packages)} packages")
    skeleton(root)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda package: unpack(package, root, [f"--exclude={path}" for path in UNWANTED]), packages))
    version = unpack_kernel(kernel, root, image)
    finish_root(root, version)
    say("making the initramfs and the root image")
    boot = boot_files(root, version)
    (image / "initramfs").write_bytes(archive(boot))
    make_file_system(root, image / "root.img")
    about = {"kernel": version, "backports": backports, "modules": HOST_MODULES,
             "packages": [package.name for package in [kernel, *packages]]}
    (image / "about.json").write_text(json.dumps(about, indent=1))
    for stale in set(archives.glob("*.deb")) - {kernel, *packages}:
        stale.unlink()


def skeleton(root):
    """One /usr, as on an installed system, and the few files that installation would make."""
    for folder in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/local/bin", "etc", "root", "proc", "sys", "dev",
                   "tmp", "run", "mnt", "home", "var/lib", "var/log", "var/tmp", "etc/dropbear"):
        (root / folder).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("/run")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\ntty:x:5:\nkvm:x:104:\nnogroup:x:65534:\n")
    (root / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n")
    (root / "etc/shells").write_text("/bin/sh\n/bin/bash\n")
    (root / "etc/inittab").write_text("::sysinit:/usr/local/sbin/wander-host-setup\n"
                                      "::respawn:/usr/local/sbin/wander-host-sshd\n::ctrlaltdel:/sbin/reboot\n")


def unpack(package, root, options):
    """The files of a package; links to folders stay links."""
    reader = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    done = subprocess.run(["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", root, *options],
                          stdin=reader.stdout, capture_output=True, text=True)
    reader.stdout.close()
    if reader.wait() or done.returncode:
        raise Trouble(f"'{package}' could not be unpacked: {done.stderr.strip()[-500:]}\nIf it is damaged, remove it.")


def unpack_kernel(package, root, image):
    """The kernel and those of its modules that a host can use, uncompressed. Its version."""
    listed = re.search(r"/vmlinuz-(\S+)\s*$", run(["dpkg-deb", "--contents", package]), re.MULTILINE)
    version = listed.group(1)
    wanted = [f"./boot/vmlinuz-{version}", *(f"./lib/modules/{version}/{path}" for path in MODULES)]
    reader = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    # Patterns without a match make tar complain; depmod and the boot tell whether something that matters is missing.
    subprocess.run(["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", root, "--wildcards", *wanted],
                   stdin=reader.stdout, capture_output=True)
    reader.stdout.close()
    reader.wait()
    os.rename(root / "boot" / f"vmlinuz-{version}", image / "kernel")
    for module in (root / "usr/lib/modules" / version).rglob("*.ko.xz"):
        module.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
        module.unlink()
    return version


def finish_root(root, version):
    (root / "usr/local/sbin").mkdir(exist_ok=True)
    shutil.copy(HERE / "guest-setup", root / "usr/local/sbin/wander-host-setup")
    (root / "usr/local/sbin/wander-host-sshd").write_text(
        "#!/bin/bash\nulimit -l unlimited\nexec dropbear -F -E -s -R -p 22 2>>/var/log/sshd\n")
    for script in (root / "usr/local/sbin").iterdir():
        script.chmod(0o755)
    for applet in run([root / "usr/bin/busybox", "--list"]).split():
        if not any(os.path.lexists(root / "usr" / folder / applet) for folder in ("bin", "sbin")):
            (root / "usr/bin" / applet).symlink_to("busybox")
    loader = [root / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", root / "usr/lib/x86_64-linux-gnu", "--argv0"]
    run([*loader, "depmod", root / "usr/bin/kmod", "-b", root, version])


def boot_files(root, version):
    """{path: (mode, content)} of the initramfs: busybox, the init script, and the modules in the order to load."""
    modules = root / "usr/lib/modules" / version
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        needs[Path(module).stem.replace("-", "_")] = (module, others.split())
    order = []
    for name in [*BOOT_MODULES, "crc32c_generic"]:
        # What a module needs is listed with the deepest need last. Those that are not listed are part of the kernel.
        if name in needs:
            module, others = needs[name]
            order += [path for path in [*reversed(others), module] if path not in order]
    order.sort(key=lambda path: "crc32c_generic" not in path)
    files = {"init": (0o755, (HERE / "guest-init").read_bytes()),
             "bin/busybox": (0o755, (root / "usr/bin/busybox").read_bytes()),
             "modules/order": (0o644, "".join(f"{Path(path).name}\n" for path in order).encode())}
    for path in order:
        files[f"modules/{Path(path).name}"] = (0o644, (modules / path).read_bytes())
    return files


def archive(files):
    """The content of a cpio archive ("newc") with these files, and /dev/console for what init says first."""
    entries = [(folder, stat.S_IFDIR | 0o755, 0, 0, b"") for folder in ("bin", "modules", "dev")]
    entries.append(("dev/console", stat.S_IFCHR | 0o600, 5, 1, b""))
    entries += [(name, stat.S_IFREG | mode, 0, 0, content) for name, (mode, content) in files.items()]
    entries.append(("TRAILER!!!", 0, 0, 0, b""))
    parts = []
    for number, (name, mode, major, minor, content) in enumerate(entries, 1):
        encoded = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(encoded), 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        parts += [header, b"\0" * (-len(header) % 4), content, b"\0" * (-len(content) % 4)]
    return b"".join(parts)


def make_file_system(root, path):
    entries = list(root.rglob("*"))
    size = sum(4096 + (entry.lstat().st_size + 4095) // 4096 * 4096 for entry in entries)
    with open(path, "wb") as image:
        image.truncate(size + size // 16 + (16 << 20))
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-m", "0", "-N", str(len(entries) + 1000),
         "-E", "root_owner=0:0", "-d", root, path], env=environment)
