"""Two hosts for measurements, real or virtual, with a wander of their own on each; fresh guests that are moved between
them; and what that cost the whole of both hosts. Nothing here depends on the hosts being virtual."""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import atomic_file
import hosts
import local
import remote
from comparison import CPU_KINDS, DISTURBED
from hosts import Failure, expect
from virtual import instance, shaping
from virtual.packages import Trouble

GUEST = "measured"
LOCAL = ("local", "local")  # options.hosts, where both ends are this machine
# The guest's process is the last thing of a move to end: it lets go of its memory.
END_SECONDS = 30
# What sysfs says of the RDMA device $1: "virtual" without a bus below it, then the driver.
DEVICE_FACTS = ('d=/sys/class/infiniband/$1; [ -e "$d" ] || exit 0; case $(readlink -f $d) in */virtual/*) '
                'if [ -e $d/parent ]; then echo soft-RoCE; else echo software; fi;; *) '
                'echo card $(basename "$(readlink -f $d/device/driver)") $(cat $d/fw_ver $d/board_id 2>/dev/null);; '
                'esac')
HOST_FACTS = ("grep -c ^processor /proc/cpuinfo; grep -qw hypervisor /proc/cpuinfo && echo virtual || echo physical; "
              "awk '/^MemTotal/ {print $2}' /proc/meminfo")


def add_options(parser):
    """Those that every program with two hosts has."""
    parser.add_argument("hosts", nargs="*", metavar="HOST", help="two hosts as ssh takes them, like root@hostA "
                        "root@hostB (default: virtual hosts, booted for this and ended when none are up)")
    add_pair_options(parser)
    parser.add_argument("--lanes", type=number, metavar="N", help="default: wander's")
    parser.add_argument("--warm-up", type=lambda text: number(text, 0), default=1, metavar="N",
                        help="repeats that do not count (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the report of every move there")


def add_pair_options(parser):
    """What there is to say of the two hosts beside their names."""
    parser.add_argument("--addresses", metavar="A,B", help="of the link to use, one of each host (default: of the RDMA "
                        "device's interface; without one, where ssh comes in)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="virtual hosts: the pair in DIR "
                        f"(default: {instance.default_directory()} if it is up)")
    parser.add_argument("--program", default=hosts.PROGRAM, metavar="FILE", help="the wander to copy to both "
                        "(default: %(default)s)")


def number(text, least=1):
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of {least} or more")
    return int(text)


def check_options(parser, options):
    """Ends the program with a usage error, before anything is started."""
    if len(options.hosts) not in (0, 2):
        parser.error(f"give two hosts or none, not {len(options.hosts)}")
    if len(set(options.hosts)) == 1:
        parser.error(f"give two different hosts, not {options.hosts[0]} twice")
    check_pair_options(parser, options)
    if options.hosts and (options.state or getattr(options, "link", None)):
        parser.error("--state and --link are for virtual hosts; real ones are as they are")
    try:
        if options.json:
            open(options.json, "a").close()
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"cannot write '{error.filename}': {error.strerror}")


def check_pair_options(parser, options):
    if options.addresses and len(options.addresses.split(",")) != 2:
        parser.error(f"--addresses: '{options.addresses}' is not two addresses with a comma between them")
    if not os.access(options.program, os.X_OK):
        parser.error(f"no program at '{options.program}': build it (testbed/build build), or name it with --program")


def run_program(body, parser, name):
    """Parses, runs `body(options)` and ends with its exit code; failures become one message."""
    options = parser.parse_args()
    check_options(parser, options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        sys.exit(body(options))
    except (Failure, Trouble) as failure:
        sys.exit(f"{name}: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)


# --- the hosts


class Machine:
    """The machine that virtual hosts run on, and how much of it others take."""

    def __init__(self, pids, instance):
        self.pids, self.instance = pids, instance
        self.began = self.look()

    def look(self):
        """(all CPU time there was, what others than the hosts took of it) up to now. A Failure when a host has died."""
        fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
        idle = fields[3] + fields[4]
        try:
            ours = sum(hosts.cpu_seconds(pid) for pid in self.pids) * os.sysconf("SC_CLK_TCK")
        except OSError:
            raise Failure("a virtual host has died") from None
        return sum(fields), sum(fields) - idle - ours

    def others(self, since):
        """Share of its CPUs that others took since a look."""
        everything, taken = (now - before for now, before in zip(self.look(), since, strict=True))
        return max(0.0, taken / everything) if everything else 0.0

    def warning(self):
        """None, or what to hold of the times."""
        share = self.others(self.began)
        if share < DISTURBED:
            return None
        return (f"Other programs took {share:.0%} of the CPUs of the machine that the virtual hosts run on: the times "
                f"are disturbed. Measure again when it is idle.")


def dead(found):
    """Whether hosts that are up are of no use: one has died, or does not answer when asked twice."""
    return found.alive() and not any(all(host.get("answers") for host in found.status().values()) for _ in range(2))


@contextlib.contextmanager
def virtual_hosts(state, link):
    """The pair in `state`, booted if it is not up, and as it was before once this is over; a dead one is replaced."""
    with contextlib.ExitStack() as stack:
        if state is None:
            state = instance.default_directory()
            if not instance.Instance(state).alive():
                state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wander-pair-"))) / "hosts"
        found = instance.Instance(state)
        replaced = dead(found)
        if replaced:
            print(f"the virtual hosts in '{state}' do not answer: booting others in their place", flush=True)
            found.down()
        if not found.alive():
            program, until = [str(hosts.ROOT / "testbed" / "hosts"), "--state", str(state)], []
            if not replaced:
                stack.callback(subprocess.run, [*program, "down"], stdout=subprocess.DEVNULL)
                until = ["--until-pid", str(os.getpid())]
            if subprocess.run([*program, "up", *until]).returncode:
                raise Failure("the virtual hosts did not come up; what testbed/hosts said is above")
        if link is not None:
            before = found.read()["settings"]["link"]
            stack.callback(found.shape, before)
            found.shape(shaping.parse(link))
        yield remote.virtual(state), Machine([host["pid"] for host in found.status().values()], found)


def reach(options, stack):
    """((host, host), Machine or None) of the hosts that the options name: LOCAL is this machine, twice."""
    if options.hosts == LOCAL:
        return (local.Local("a"), local.Local("b")), None
    if options.hosts:
        config = ["-F", options.ssh_config] if getattr(options, "ssh_config", None) else []
        return tuple(remote.Remote(host, config) for host in options.hosts), None
    return stack.enter_context(virtual_hosts(options.state, getattr(options, "link", None)))


@contextlib.contextmanager
def open_pair(options):
    """((End, End), Machine or None) of the hosts that the options name, ready for moves; leaves nothing on them."""
    with contextlib.ExitStack() as stack:
        both, machine = reach(options, stack)
        addresses = options.addresses.split(",") if options.addresses else (None, None)
        names = options.hosts if options.hosts and options.hosts != LOCAL else "ab"
        ends = tuple(End(stack.enter_context(host), name, options.program, address)
                     for host, name, address in zip(both, names, addresses, strict=True))
        for end, pid in zip(ends, machine.pids if machine else ()):
            end.pid = pid
        yield ends, machine


class End:
    """One of the two hosts."""

    def __init__(self, host, name, program, address=None):
        self.host, self.name, self.pid = host, name, None
        self.address = address or host.link_address()
        base = host.directory()
        self.program = host.deploy(program, f"{base}/wander")
        host.run(["mkdir", "-m", "700", f"{base}/run", f"{base}/state"])
        self.env = {"WANDER_RUNTIME_DIR": f"{base}/run", "XDG_STATE_HOME": f"{base}/state"}

    def __str__(self):
        return self.name

    def uri(self, scheme, port):
        return f"{scheme}://{f'[{self.address}]' if ':' in self.address else self.address}:{port}"

    def wander(self, *arguments, seconds=20, check=True):
        return self.host.run([self.program, *arguments], env=self.env, seconds=seconds, check=check)

    def launch(self, *arguments):
        """Starts a subcommand."""
        return self.host.start([self.program, *arguments], env=self.env)

    def heard(self, process, says, seconds=30):
        """What a subcommand has said once it has said this; waits for that on the host."""
        look = (f"until grep -q {shlex.quote(says)} {process.log} || [ -e {process.base}.code ]; do sleep 0.1; done; "
                f"cat {process.log}")
        said = self.host.run(["timeout", str(seconds * hosts.SLOW), "bash", "-c", look], seconds=seconds + 5,
                             check=False).stdout
        expect(says in said, f"expected 'wander {' '.join(process.argv[1:])}' on {self} to say '{says}'; it said: "
                             f"{said.strip()[-2000:] or 'nothing'}")
        return said

    def receive(self):
        """A receiver that takes one guest, on its way to listen."""
        return self.launch("receive", "--listen", self.uri("tcp", 0), "--insecure", "--once")

    def guests_kvm(self):
        """Whether /dev/kvm is there and may be used."""
        return self.host.run("[ -r /dev/kvm ] && [ -w /dev/kvm ]", check=False).returncode == 0

    def cpu(self):
        """{kind: seconds} of the whole host since its boot, guests included, whoever it is charged to. Of a virtual one,
        "machine" is what its machine gave it for that: the host itself counts time in which others had the CPU, too."""
        machine = {"machine": hosts.cpu_seconds(self.pid)} if self.pid else {}
        ticks, line = self.host.run("getconf CLK_TCK 2>/dev/null || echo 100; head -n1 /proc/stat").stdout.splitlines()
        user, nice, system, _idle, _iowait, irq, softirq = map(int, line.split()[1:8])
        return {**{kind: value / int(ticks)
                   for kind, value in zip(CPU_KINDS, (user + nice, system, irq + softirq), strict=True)}, **machine}

    def facts(self):
        cpus, kind, memory = self.host.run(HOST_FACTS).stdout.split()
        return {"host": self.name, "address": self.address, "cpus": int(cpus), "virtual": kind == "virtual",
                "memory_bytes": int(memory) << 10}

    def device_kind(self, device):
        """What an RDMA device is: soft-RoCE, other software, or a card with its driver and firmware."""
        if not device:
            return None
        return self.host.run(["bash", "-c", DEVICE_FACTS, "-", device]).stdout.strip() or None


# --- a move


def accel_of(ends, wish):
    """(kind of guest, None or why it is a synthetic one). A Failure when KVM is wished for, and not to be had."""
    lacking = " and ".join(str(end) for end in ends if not end.guests_kvm())
    if lacking and wish == "kvm":
        raise Failure(f"guests are to run on KVM, and /dev/kvm cannot be used on {lacking}; synthetic ones need none")
    if lacking and not wish:
        return "synthetic", (f"/dev/kvm cannot be used on {lacking}: guests are synthetic, the same workload as "
                             f"threads of a process")
    return wish or "kvm", None


class Guest:
    """What is moved: a fresh one each time."""

    def __init__(self, memory, workload, accel="kvm", vcpus=1, name=GUEST):
        self.memory, self.workload, self.accel, self.vcpus, self.name = memory, workload, accel, vcpus, name

    def arguments(self):
        return ["lab", "--name", self.name, "--memory", self.memory, "--vcpus", str(self.vcpus), "--workload",
                self.workload, "--accel", self.accel]

    def writes(self):
        return "hot=" in self.workload

    def __str__(self):
        kind = "lab, KVM" if self.accel == "kvm" else "synthetic"
        return f"{kind}, {self.memory}, {self.vcpus} vCPU{'s' if self.vcpus > 1 else ''}, workload {self.workload}"


def port_of(said):
    """Where a receiver listens, by what it said: listening on tcp://ADDRESS:PORT."""
    return int(said.split("listening on ", 1)[1].split()[0].rpartition(":")[2])


def spent(before, after):
    return {kind: after[kind] - before[kind] for kind in before}


class Passage:
    """A guest that runs on the source, and a receiver that waits for it at the destination."""

    def __init__(self, guest, lab, receiver, uri):
        self.guest, self.lab, self.receiver, self.uri = guest, lab, receiver, uri


def from_json(text, what):
    """What a program wrote; a Failure when it is no JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(f"expected {what} to be JSON: {error}; it is: {text[:200] or 'empty'}") from None


def await_account(end, guest, what, holds, seconds=30):
    """The guest's own account of its work, once it holds what was expected."""
    deadline = time.monotonic() + seconds * hosts.SLOW
    while True:
        done = end.wander("workload", guest.name, check=False)
        account = from_json(done.stdout, f"the account of {guest.name}") if done.returncode == 0 else None
        if account and holds(account):
            return account
        if time.monotonic() > deadline:
            raise Failure(f"expected {what} on {end} within {seconds * hosts.SLOW:g} s; last seen: "
                          f"{account or done.stderr.strip()}")
        time.sleep(0.2)


@contextlib.contextmanager
def passage(source, destination, scheme, guest):
    """A Passage of a fresh guest that has begun its work. Leaves no process behind."""
    receiver, lab = destination.receive(), source.launch(*guest.arguments())
    try:
        source.heard(lab, "runs here", 60)
        port = port_of(destination.heard(receiver, "listening on"))
        if guest.writes():
            await_account(source, guest, "the guest to write pages", lambda account: account["pages_written"] > 0)
        yield Passage(guest, lab, receiver, destination.uri(scheme, port))
    finally:
        # Also when the session's process is not the receiver's any more.
        for process in (lab, receiver):
            process.end()


def departure(source, passages, options):
    """The shell's command that migrates all at once, leaves what each said and its report, and tells the exit code,
    beginning and end of each."""
    parts, ends = [], []
    for each in passages:
        base = f"{source.host.directory()}/move-{each.guest.name}"
        ends.append(f"echo $(<{base}.end)")
        words = [source.program, "migrate", each.guest.name, each.uri, "--json", f"{base}.json", *options]
        parts.append(f"rm -f {base}.*; (began=$EPOCHREALTIME; {shlex.join(words)} >{base}.said 2>&1; "
                     f"echo $? $began $EPOCHREALTIME >{base}.end) &")
    return "\n".join([*parts, "wait", *ends])


def ends_of(told, passages, source):
    """(exit code, beginning, end) of each migration, from what `departure` printed."""
    ends = [line.split() for line in told.splitlines()]
    expect([len(end) for end in ends] == [3] * len(passages), f"expected the end of {len(passages)} migrations to be "
           f"told on {source}; it said: {told.strip()[-300:] or 'nothing'}")
    return [(int(code), float(began), float(ended)) for code, began, ended in ends]


def outcome(source, each, code, began, ended):
    """{code, said, report, wall_s, trouble} of one guest's migration that has ended."""
    base = f"{source.host.directory()}/move-{each.guest.name}"
    report, trouble = source.host.run(f"cat {base}.json", check=False).stdout, None
    try:
        report = from_json(report, f"wander's report of {each.guest.name}") if report or not code else None
    except Failure as failure:
        report, trouble = None, str(failure)
    return {"code": code, "said": source.host.run(f"cat {base}.said").stdout, "report": report,
            "wall_s": ended - began, "trouble": trouble}


def linger(passages, ends):
    """Waits for the guests' processes at the source to end: what is wrong with each that does not."""
    wrong = {}
    for each, (code, _began, _ended) in zip(passages, ends, strict=True):
        try:
            if code == 0:
                each.lab.wait(END_SECONDS)
        except Failure as failure:
            wrong[each.guest.name] = str(failure)
    return wrong


def migrate(source, destination, passages, options, seconds):
    """The migrations themselves, all at once, from the command to the end of the guests' processes at the source:
    (outcomes, seconds, CPU time of both hosts). No other command is run on either host meanwhile."""
    before = destination.cpu(), source.cpu()
    began = time.monotonic()
    told = source.host.run(departure(source, passages, options), seconds=seconds, env=source.env).stdout
    ends = ends_of(told, passages, source)
    wrong = linger(passages, ends)
    wall = time.monotonic() - began
    after = destination.cpu(), source.cpu()
    outcomes = [outcome(source, each, *end) for each, end in zip(passages, ends, strict=True)]
    for each, found in zip(passages, outcomes, strict=True):
        found["trouble"] = found["trouble"] or wrong.get(each.guest.name)
    return outcomes, wall, {"destination": spent(before[0], after[0]), "source": spent(before[1], after[1])}


def complaint(source, each, found, options):
    """None, or what is known of a migration that failed."""
    if not found["code"]:
        return found["trouble"]
    return (f"the move from {source} to {each.uri} {' '.join(options)} exited with {found['code']}.\nIt said:\n"
            f"{found['said'].strip()[-3000:]}\nThe guest's process said:\n{each.lab.output().strip()[-1000:]}\n"
            f"The receiver said:\n{each.receiver.output().strip()[-1000:]}")


def arrived(destination, guest):
    """Sees that a guest arrived whole."""
    if guest.writes():
        account = await_account(destination, guest, "the guest's check of its memory after the move",
                                lambda account: account["checks"] > 0, seconds=60)
        expect(account["bad_pages"] == 0, f"expected the guest to find no bad page after its move; got {account}")


def leave(destination, each):
    """Ends a guest that has arrived, and with it what received it."""
    destination.wander("quit", each.guest.name)
    each.receiver.wait(END_SECONDS)


def move(source, destination, scheme, guest, options=(), seconds=600):
    """Starts a guest on `source`, moves it over `scheme`, sees that it arrived whole, and ends it: its report, and the
    CPU time of both hosts."""
    options = list(options)
    with passage(source, destination, scheme, guest) as each:
        (found,), wall, cpu = migrate(source, destination, [each], options, seconds)
        complained = complaint(source, each, found, options)
        expect(complained is None, complained)
        arrived(destination, guest)
        leave(destination, each)
    return {"report": found["report"], "wall_s": wall, "host_cpu": cpu}


def check(source, destination, scheme, options=()):
    """Asks wander whether anything is in the way between the two; a Failure that says what."""
    receiver = destination.receive()
    try:
        said = destination.heard(receiver, "listening on")
        done = source.wander("check", destination.uri(scheme, port_of(said)), *options, seconds=60, check=False)
        expect(done.returncode == 0, f"{scheme}:// does not work from {source} to {destination}; wander check says:\n"
                                     f"{(done.stdout + done.stderr).strip()}")
    finally:
        receiver.end()


def facts_of(end, moves):
    """What is known of one host, its RDMA device included, from itself and from the reports."""
    facts = end.facts()
    for move in moves:
        report = move["report"]
        side = "source" if move["source"] == str(end) else "destination"
        facts.update(report["host"].get(side) or {})
        device = report["rdma"] if side == "source" else (report["rdma"] or {}).get("destination")
        if device:
            facts["rdma"] = {key: device[key] for key in ("device", "port", "link_layer", "gid_type", "mtu")}
    if "rdma" in facts:
        facts["rdma"]["kind"] = end.device_kind(facts["rdma"]["device"])
    return facts


def warn(machine):
    """What disturbed the measurement, if it is known; None or the sentence, which it prints."""
    said = machine.warning() if machine else None
    if said:
        print(f"\n{said}")
    return said


def save(path, document):
    atomic_file.write(path, json.dumps(document, indent=1) + "\n")
