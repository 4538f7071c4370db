"""A World whose hosts are reached by ssh: what tests of two hosts share. Guests, receivers and migrations as in
hosts.py, RDMA resources counted, the link between the hosts disturbed and mended. A world leaves nothing behind on the
hosts."""

import collections
import hashlib
import ipaddress
import itertools
import json
import os
import re
import shlex
from pathlib import Path

import outcomes
import virtual_pair
from cases import Skip, hosts
from hosts import PROGRAM, Failure, expect, wait_until
from virtual import shaping

PORTS = itertools.count(7100)
# Not "ctx": librdmacm keeps the device open as long as the process lives.
RESOURCES = ("qp", "cq", "mr", "pd", "cm_id")
FAMILIES = ("4", "6")
PORT = "/sys/class/infiniband/rxe0/ports/1"
KERNEL = "ib_core"  # has some for itself
SANITIZERS = ("ASAN_OPTIONS", "LSAN_OPTIONS", "UBSAN_OPTIONS")
LOGS = 4  # of the first and of the last programs that were started are shown
FOUND = re.compile(r"ERROR: (Address|Leak)Sanitizer|runtime error:")


def gid_of(address):
    """The GID that stands for an address, as sysfs writes it."""
    found = ipaddress.ip_address(address)
    return ipaddress.IPv6Address(f"::ffff:{address}" if found.version == 4 else address).exploded


def resources(remote):
    """RDMA resources that programs hold on a host, such as 'qp of wander (17)', and how many."""
    text = remote.run("".join(f"echo {kind} $(rdma -j resource show {kind});" for kind in RESOURCES)).stdout
    found = collections.Counter()
    for line in text.splitlines():
        kind, _, entries = line.partition(" ")
        for entry in json.loads(entries or "[]"):
            if entry.get("comm") != KERNEL:
                found[f"{kind} of {entry.get('comm')} ({entry.get('pid')})"] += 1
    return dict(found)


def put_once(remote, *files):
    """The directory there of files that are no programs; copied unless these very ones were already."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(Path(file).read_bytes()).digest() for file in files))
    place = Path(virtual_pair.PROGRAMS) / digest.hexdigest()[:16]
    if remote.run(["test", "-d", place], check=False).returncode:
        remote.run(["mkdir", "-p", f"{place}.new"])
        for file in files:
            remote.put(file, f"{place}.new/{Path(file).name}")
        remote.run(["mv", f"{place}.new", place])
    return place


class RemoteMigration:
    """A `wander migrate` under way on a host."""

    def __init__(self, process, report_path):
        self.process, self.report_path = process, report_path
        self.output, self.running = process.output, process.running
        self.signal, self.wait = process.signal, process.wait

    def report(self):
        done = self.process.host.run(["cat", self.report_path], check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None


class RemoteHost(hosts.Host):
    """One of the hosts, with directories of this world alone. `limited`: words before the program of whatever is run,
    such as prlimit."""

    def __init__(self, world, remote, limited=()):
        self.world, self.remote, self.name, self.limited = world, remote, str(remote), list(limited)
        self.program = virtual_pair.deploy(remote, PROGRAM)
        made = remote.run("d=$(mktemp -d /tmp/wander-XXXXXX); mkdir -m 700 $d/run $d/state; echo $d")
        self.directory = made.stdout.strip()
        self.mark = f"WANDER_RUNTIME_DIR={self.directory}/run"
        self.env = {"WANDER_RUNTIME_DIR": f"{self.directory}/run", "XDG_STATE_HOME": f"{self.directory}/state",
                    **{name: os.environ[name] for name in SANITIZERS if name in os.environ}}

    def argv(self, arguments):
        return [*self.limited, self.program, *map(str, arguments)]

    def run(self, *arguments, seconds=20):
        return self.remote.run(self.argv(arguments), seconds=seconds, check=False, env=self.env)

    def start(self, arguments):
        log = f"{self.directory}/{self.world.count()}-{arguments[0]}.log"
        process = self.remote.start(self.argv(arguments), log=log, env=self.env)
        self.world.processes.append(process)
        return process

    def until_said(self, process, text, seconds):
        """Waits until a program has said something; a Failure if it ends before."""
        wait_until(lambda: text in process.output() or not process.running(), seconds,
                   f"'{text}' from {process.argv[1]}")
        said = process.output().strip()
        expect(text in said, f"expected '{shlex.join(process.argv)}' on {self.name} to say '{text}' and go on; it "
                             f"exited with {process.code()} and said: {said}")

    def lab(self, name="guest", memory="96M", vcpus=1, workload="touch=64M,hot=16M,rate=2000"):
        process = self.start(["lab", "--name", name, "--memory", memory, "--vcpus", vcpus, "--workload", workload,
                              "--accel", "kvm"])
        self.until_said(process, "runs here", 60)
        if "hot=" in workload:
            wait_until(lambda: self.written(name), 30, f"guest '{name}' to write pages")
        return process

    def receive(self, *options, scheme="rdma", family="4"):
        """A receiver on the link; its process, with the `uri` to move to."""
        address = self.remote.link_address(family)
        uri = f"{scheme}://{f'[{address}]' if family == '6' else address}:{next(PORTS)}"
        receiver = self.start(["receive", "--listen", uri, "--insecure", *options])
        self.until_said(receiver, "listening", 15)
        receiver.uri = uri
        return receiver

    def start_migrate(self, guest, uri, *options):
        report = f"{self.directory}/{self.world.count()}-report.json"
        return RemoteMigration(self.start(["migrate", guest, uri, "--json", report, *options]), report)

    def guests(self):
        """Names of the control sockets here that somebody holds. The kernel knows them by their inode only: they are
        bound by a path through a file descriptor."""
        shown = self.remote.run(f"stat -c '%i %n' {self.directory}/run/*.sock 2>/dev/null; ss -xleH").stdout
        held = set(re.findall(r"<-> ino:(\d+)", shown))
        sockets = re.findall(rf"(?m)^(\d+) {self.directory}/run/(\S+)\.sock$", shown)
        return sorted(name for inode, name in sockets if inode in held)

    def pids(self):
        """Every process of wander on this host."""
        look = (f"for d in $(grep -lzsxF {self.mark} /proc/[0-9]*/environ); do p=${{d#/proc/}}; p=${{p%/environ}}; "
                f"case $(readlink /proc/$p/exe) in {self.program}) echo $p ;; esac; done")
        done = self.remote.run(look, check=False)
        return list(map(int, done.stdout.split()))

    def kill(self, pids, number):
        if pids:
            self.remote.run(["kill", f"-{int(number)}", *pids], check=False)

    def without_resources(self, seconds=10):
        left = {}

        def none():
            left.clear()
            left.update(resources(self.remote))
            return not left

        try:
            wait_until(none, seconds, "no RDMA resource")
        except Failure:
            raise Failure(f"expected no queue pair, completion queue, memory registration or protection domain to be "
                          f"left on {self.name}; after {seconds} s there are {left}") from None

    def end(self):
        """Ends all of this world here."""
        # grep's exit code says nothing here: processes end while it looks.
        kill = (f"for i in $(seq 10); do p=$(grep -lzsxF {self.mark} /proc/[0-9]*/environ); [ -n \"$p\" ] || break; "
                "for d in $p; do d=${d#/proc/}; kill -KILL ${d%/environ} 2>/dev/null; done; sleep 0.2; done; "
                f"rm -rf {self.directory}")
        self.remote.run(kill, seconds=30)


class RemoteWorld:
    """Both hosts for one case; `limited` ({"a": words, …}) is for RemoteHost."""

    def __init__(self, limited=None):
        self.hosts, self.processes, self.counter, self.disturbed_link = {}, [], 0, None
        try:
            found = virtual_pair.hosts()
        except virtual_pair.NoHosts as reason:
            raise Skip(str(reason)) from None
        for remote in found:
            self.hosts[str(remote)] = RemoteHost(self, remote, (limited or {}).get(str(remote), ()))

    def host(self, name):
        return self.hosts[name]

    def count(self):
        self.counter += 1
        return self.counter

    def link(self):
        """The link, to disturb it."""
        self.disturbed_link = self.disturbed_link or Link(list(self.hosts.values()))
        return self.disturbed_link

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        found = None
        if not error or isinstance(error, Exception):
            found = self.look_at_logs(show=isinstance(error, Exception) and not isinstance(error, Skip))
        for host in self.hosts.values():
            host.end()
        if self.disturbed_link:
            self.disturbed_link.restore()
        if found and not error:
            raise Failure(f"expected no sanitizer to report anything; one did: {found}")

    def look_at_logs(self, show):
        """Shows what everybody said, when asked to; what a sanitizer reported."""
        found = None
        for number, process in enumerate(self.processes, 1):
            text = process.output().strip()
            if show and text and (number <= LOGS or number > len(self.processes) - LOGS):
                print(f"--- {process.host}: {shlex.join(process.argv)}\n{text[-2000:]}", flush=True)
            match = FOUND.search(text)
            found = found or match and f"{shlex.join(process.argv)}: {text[match.start():][:1500]}"
        return found


class Link:
    """The link between the hosts. What disturbs it is undone when the world ends."""

    def __init__(self, found):
        self.hosts = found
        self.devices = {host.name: host.remote.run(f"cat {PORT}/gid_attrs/ndevs/0").stdout.strip() for host in found}
        self.addresses = {host.name: [host.remote.link_address(family) for family in FAMILIES] for host in found}

    def shape(self, text):
        """Delay, loss and rate in both directions, such as 'loss=1%'; None for none."""
        for host in self.hosts:
            host.remote.run(shaping.command(self.devices[host.name], shaping.parse(text)))

    def down(self, host):
        host.remote.run(["ip", "link", "set", self.devices[host.name], "down"])

    def up(self):
        """Both ends up, with their addresses, which may have gone with the link."""
        for host in self.hosts:
            device, (_, ipv6) = self.devices[host.name], self.addresses[host.name]
            host.remote.run(f"ip link set {device} up; ip -6 address replace {ipv6}/64 dev {device} nodad")
        for host in self.hosts:
            others = [address for name, found in self.addresses.items() if name != host.name for address in found]
            for address in others:
                wait_until(lambda: host.remote.run(["ping", "-c1", "-W1", address], check=False).returncode == 0, 15,
                           f"{host.name} to reach {address} again")

    def mend(self, host):
        """Makes soft-RoCE of a host usable again after the link was down there: the queue pair that connections are
        made through fails for good when it sends meanwhile (seen with Linux 6.12), and then only a new device helps.
        False if programs have the broken one open: Linux would wait for their end."""
        if "type GSI state ERR" in host.remote.run("rdma resource show qp").stdout:
            if host.remote.run("rdma resource show ctx").stdout.strip():
                return False
            host.remote.run(f"rdma link delete rxe0; rdma link add rxe0 type rxe netdev {self.devices[host.name]}")
        wait_until(lambda: self.complete(host), 15,
                   f"the RDMA port of {host.name} to be active, with all its addresses")
        return True

    def complete(self, host):
        seen = host.remote.run(f"cat {PORT}/state {PORT}/gids/[0-9]").stdout
        return "ACTIVE" in seen and all(gid_of(address) in seen for address in self.addresses[host.name])

    def restore(self):
        self.shape(None)
        self.up()
        for host in self.hosts:
            expect(self.mend(host), f"expected nobody to use the RDMA device of {host.name} any more; there are "
                                    f"{host.remote.run('rdma resource show ctx').stdout}")


class RemoteDisturbed(outcomes.Disturbed):
    """As outcomes.Disturbed, on two hosts."""

    def sessions(self):
        return [pid for pid in self.destination.pids() if pid != self.receiver.pid]
