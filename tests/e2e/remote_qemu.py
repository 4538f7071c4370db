"""A RemoteWorld whose guest is the small Linux in a QEMU under KVM: on each host a tap for it, on a network of the
hosts that guests do not move over, and its disk on storage that both reach: host a exports the image over NBD. (NBD
knows no image locks, so here nothing but wander keeps two QEMUs from writing.)"""

import shlex
import time
from pathlib import Path

from cases import Skip
from hosts import PROGRAM, Failure, expect, wait_until
from linux_guest import machine
from qemu_world import Pinger, linux_image
from remote_world import RemoteWorld, put_once

BRIDGE, TAP, LAN = "br0", "tap0", "lan0"
ADDRESSES, GUEST_ADDRESS = {"a": "10.88.0.1", "b": "10.88.0.3"}, "10.88.0.2"
EXPORT_HOST, EXPORT_PORT, DISK_MIB = "a", 10809, 32
PING_MS = 10
BOOT_SECONDS = 150
LOOK_SECONDS = 1                     # between two looks: each takes time from the guest, on a host with one CPU
# Each exit of a nested guest costs a tenth of a millisecond. Without `noearly` a kernel on AMD asks every place of 256
# PCI buses, three times, for devices that only hardware has; and KASLR would unpack the kernel to elsewhere first.
KERNEL_ARGUMENTS = "mitigations=off nokaslr pci=noearly"
SEND = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); " \
       "s.sendall(sys.argv[2].encode()); s.shutdown(socket.SHUT_WR); s.settimeout(10); " \
       "[0 for _ in iter(lambda: s.recv(4096), b'')]"
TEAR_DOWN = "ip link delete {tap}; ip link delete {bridge}"
SET_UP = """
set -e
modprobe -a tun bridge
ip link add {bridge} address {mac} type bridge forward_delay 0 mcast_snooping 0
ip link set {lan} master {bridge}
ip tuntap add {tap} mode tap
ip link set {tap} master {bridge} up
ip address add {address}/24 dev {bridge}
ip link set {bridge} up
"""


class Linux(machine.Machine):
    """The guest as it boots best in a host that is emulated itself."""

    def kernel_arguments(self):
        return f"{super().kernel_arguments()} {KERNEL_ARGUMENTS}"


class RemoteConsole(machine.Console):
    """What the guest said on one host."""

    def __init__(self, remote, log, path):
        super().__init__(log, path)
        self.remote = remote

    def text(self):
        time.sleep(LOOK_SECONDS)
        return self.remote.run(f"cat {self.log} 2>/dev/null; true").stdout

    def send(self, command):
        self.remote.run(["python3", "-c", SEND, str(self.socket), command + "\n"])


class RemoteSide:
    """What a QEMU has for itself on one host, as machine.Side."""

    def __init__(self, host):
        directory = Path(host.directory)
        self.host, self.name, self.tap = host, host.name, TAP
        self.ram = Path("/dev/shm") / f"{directory.name}.ram"
        self.monitor, self.watched = directory / "qmp", directory / "watched.qmp"
        self.console = RemoteConsole(host.remote, directory / "console.log", directory / "console")

    def set_up(self):
        names = {"bridge": BRIDGE, "tap": TAP, "lan": LAN, "address": ADDRESSES[self.name],
                 "mac": f"52:54:00:8a:00:{sorted(ADDRESSES).index(self.name) + 1:02x}"}
        # What a test that was killed has left would be in the way.
        self.host.remote.run((TEAR_DOWN + SET_UP).format(**names))

    def tear_down(self):
        tear_down = TEAR_DOWN.format(tap=TAP, bridge=BRIDGE)
        self.host.remote.run(f"rm -f {self.ram}; {tear_down}", check=False)

    def qemu_pids(self):
        """QEMUs with the RAM of this host's guest."""
        look = (f"for d in $(grep -lzF {self.ram} /proc/[0-9]*/cmdline 2>/dev/null); do p=${{d%/cmdline}}; "
                "case $(readlink $p/exe) in */qemu-system*) echo ${p#/proc/} ;; esac; done; true")
        return list(map(int, self.host.remote.run(look).stdout.split()))


class RemotePinger(Pinger):
    """Pings the guest from a host, before all other programs there; its moments are those of that host's clock."""

    def __init__(self, host, address=GUEST_ADDRESS):
        self.host, self.path = host, f"{host.directory}/pings"
        script = put_once(host.remote, Path(__file__).with_name("pinger.py")) / "pinger.py"
        self.process = host.remote.start(["chrt", "-f", "50", "python3", script, address, PING_MS, self.path],
                                         log=f"{host.directory}/pinger.log", env=host.env)
        host.world.processes.append(self.process)
        wait_until(self.answers, 20, f"an answer to a ping from {address}")

    def now(self):
        return int(self.host.remote.run("date +%s%N").stdout)

    def answers(self):
        """When each of the newest answers came."""
        time.sleep(LOOK_SECONDS)
        text = self.host.remote.run(f"tail -n {120000 // PING_MS} {self.path} 2>/dev/null; true").stdout
        return [int(line.split()[1]) for line in text.split("\n")[:-1]]


class RemoteQemuWorld(RemoteWorld):
    def __init__(self, cache="none", **options):
        super().__init__()
        self.sides, self.here, self.uris = {}, "a", {}
        try:
            built = linux_image()
            for name, host in self.hosts.items():
                if not host.remote.run(["test", "-e", "/dev/kvm"], check=False).returncode == 0:
                    raise Skip(f"host {name} has no /dev/kvm")
                self.sides[name] = RemoteSide(host)
                self.sides[name].set_up()
                image = self.put_files(host, built)
            self.export_disk()
            # Its path is the same on both: it is made of what is in it.
            self.machine = Linux(image, accel="kvm", disk=f"nbd://{ADDRESSES[EXPORT_HOST]}:{EXPORT_PORT}/disk",
                                 cache=cache, address=GUEST_ADDRESS, **options)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, kind, error, trace):
        try:
            if isinstance(error, Failure):
                self.show_consoles()
            super().__exit__(kind, error, trace)
        finally:
            for side in self.sides.values():
                side.tear_down()

    def show_consoles(self):
        for name, side in self.sides.items():
            print(f"--- console of {name}\n{side.console.text()[-1500:]}", flush=True)

    @staticmethod
    def put_files(host, built):
        """Wander's library and the guest's image; where that is."""
        library = Path(PROGRAM).with_name("libwander-qemu.so")
        host.env["WANDER_QEMU_LIBRARY"] = str(put_once(host.remote, library) / library.name)
        return put_once(host.remote, built / "kernel", built / "initramfs")

    def export_disk(self):
        host = self.host(EXPORT_HOST)
        image = f"{host.directory}/disk.raw"
        host.remote.run(["truncate", "-s", f"{DISK_MIB}M", image])
        server = host.remote.start(
            ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=disk,filename={image}", "--nbd-server",
             f"addr.type=inet,addr.host={ADDRESSES[EXPORT_HOST]},addr.port={EXPORT_PORT},max-connections=8", "--export",
             "type=nbd,id=export,node-name=disk,name=disk,writable=on"], env=host.env)
        self.processes.append(server)
        listening = ["ss", "-Htln", "sport", "=", f":{EXPORT_PORT}"]
        wait_until(lambda: host.remote.run(listening).stdout or not server.running(), 15, "the disk to be exported")
        expect(server.running(), f"expected the disk to be exported; the server said: {server.output()}")

    def side(self):
        return self.sides[self.here]

    def boot(self):
        """A guest that works on host a, started by hand."""
        host, side = self.host(self.here), self.side()
        words = shlex.split(host.must("qemu-env"), comments=True)
        argv = ["env", *(word for word in words if "=" in word), *self.machine.argv(side)]
        qemu = host.remote.start(argv, log=f"{host.directory}/qemu.log", env=host.env)
        self.processes.append(qemu)
        wait_until(lambda: side.console.lines("report") or not qemu.running(), BOOT_SECONDS, "a report of the guest")
        expect(qemu.running(), f"expected the guest to boot; it said: {side.console.text()[-2000:]} {qemu.output()}")
        return qemu

    def receiver(self, name, scheme):
        if (name, scheme) not in self.uris:
            arguments = ["--guest", "qemu", "--", *self.machine.argv(self.sides[name])]
            self.uris[name, scheme] = self.host(name).receive(*arguments, scheme=scheme).uri
        return self.uris[name, scheme]

    def hop(self, scheme, *options, pinger, seconds=120):
        """Moves the guest to the other host: (report, ms without an answer to pings). Nothing may be bad, the uptime
        goes on, and the source's QEMU is gone."""
        source, side = self.host(self.here), self.side()
        there = self.sides["b" if self.here == "a" else "a"]
        uri = self.receiver(there.name, scheme)
        before, began = side.console.good(), pinger.now()
        there.host.remote.run(["rm", "-f", there.console.log])  # of an earlier stay
        arrived = self.machine.name in source.guests()
        report = source.migrate(self.machine.name if arrived else f"qmp:{side.monitor}", uri, *options, seconds=seconds)
        self.here = there.name
        after = there.console.next("report", seconds=30, after=0)
        expect(after["uptime"] > before["uptime"], f"expected the uptime to go on from {before}; got {after}")
        wait_until(lambda: not side.qemu_pids(), 20, f"the QEMU on {side.name} to be gone")
        expect(len(there.qemu_pids()) == 1, f"expected one QEMU on {there.name}; there are {there.qemu_pids()}")
        pinger.wait_answer(pinger.now())
        return report, pinger.longest_gap(began, pinger.now())
