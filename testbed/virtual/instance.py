"""One pair of virtual hosts: a directory with all that belongs to it, and a supervisor process that ends both QEMUs
when it is told to, when the process they were started for ends, or when it dies itself."""

import contextlib
import fcntl
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

from virtual import shaping
from virtual.packages import Trouble, run

NAMES = ("a", "b")
LINK = "link0"
# Sockets of the networks between both: what guests move over, and what their own traffic and their disks use.
NETWORKS = ("link.sock", "lan.sock")
ADDRESSES = {"a": {"4": "10.77.0.1", "6": "fd77::1"}, "b": {"4": "10.77.0.2", "6": "fd77::2"}}
READY, ENDED = "wander-host: ready", "supervisor: "
BOOT_SECONDS, END_SECONDS = 60, 10


def default_directory():
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "/run")
    return runtime / "wander-hosts" if os.access(runtime, os.W_OK) else Path(f"/tmp/wander-hosts-{os.getuid()}")


def start_time(pid):
    """When a process was started, in ticks since boot, or None: with it a pid means one process only."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def wait_until(look, seconds):
    """What `look` gives, called until it is true or the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen or time.monotonic() > deadline:
            return seen
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def qemu_command(name, settings, key, port):
    """The command line of a host; every path in it is relative to the instance's directory."""
    # An emulated `rep movsb` moves one byte at a time: without these features kernels copy and clear by words.
    emulated = "max,-erms,-fsrm"
    accelerator = ["-accel", settings["accel"], "-cpu", "host" if settings["accel"] == "kvm" else emulated]
    number = NAMES.index(name) + 1
    # A stream over a Unix socket: over TCP every small frame behind another would wait for a delayed ACK.
    server = ",server=on" if name == NAMES[0] else ""
    # A host that gets no CPU for a moment would take its timer for one that does not work.
    command_line = (f"console=ttyS0 quiet panic=-1 mitigations=off no_timer_check net.ifnames=0 "
                    f"wander.host={name} wander.key={key} wander.modules={','.join(settings['modules'])}")
    return ["setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-name", f"wander-{name}", *accelerator,
            "-machine", "q35", "-m", settings["memory"], "-smp", str(settings["cpus"]),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{name}.console",
            "-rtc", "base=utc", "-device", "virtio-rng-pci",
            "-kernel", "image/kernel", "-initrd", "image/initramfs", "-append", command_line,
            "-drive", "if=none,id=root,file=image/root.img,format=raw,readonly=on,file.locking=off",
            "-device", "virtio-blk-pci,drive=root",
            "-netdev", f"stream,id=link,addr.type=unix,addr.path=link.sock{server}",
            "-device", f"virtio-net-pci,netdev=link,mac=52:54:00:77:00:{number:02x},host_mtu=9000,romfile=",
            "-netdev", f"stream,id=lan,addr.type=unix,addr.path=lan.sock{server}",
            "-device", f"virtio-net-pci,netdev=lan,mac=52:54:00:79:00:{number:02x},romfile=",
            "-netdev", f"user,id=user,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
            "-device", "virtio-net-pci,netdev=user,mac=52:54:00:78:00:01,romfile="]


class Instance:
    """A pair of hosts by its directory."""

    def __init__(self, directory):
        self.directory = Path(directory).absolute()

    @property
    def ssh_config(self):
        return self.directory / "ssh_config"

    def lock(self, create=False):
        """A descriptor that holds the instance, or None when somebody does: its supervisor, as long as the hosts live,
        or an `up` under way. FileNotFoundError when there is no directory and none shall be made."""
        while True:
            if create:
                with contextlib.suppress(FileExistsError):
                    self.directory.mkdir(mode=0o700, parents=True)
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.directory).st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            os.close(descriptor)

    def alive(self):
        try:
            held = self.lock()
        except FileNotFoundError:
            return False
        if held is not None:
            os.close(held)
        return held is None

    def read(self):
        """What instance.json says, or None."""
        try:
            return json.loads((self.directory / "instance.json").read_text())
        except (OSError, ValueError):
            return None

    def write(self, about):
        new = self.directory / "instance.new"
        new.write_text(json.dumps(about, indent=1))
        os.rename(new, self.directory / "instance.json")

    def empty(self):
        """Removes what an instance that has died left in the directory, and nothing that cannot be of it."""
        for path in self.directory.iterdir():
            path.unlink()

    def remove(self):
        with contextlib.suppress(FileNotFoundError):
            self.empty()
            self.directory.rmdir()

    def check_directory(self):
        known = {"instance.json", "instance.new", "image", "key", "key.pub", "known_hosts", "ssh_config", *NETWORKS,
                 "supervisor.log", *(f"{name}.console" for name in NAMES), *(f"{name}.log" for name in NAMES)}
        for path in self.directory.iterdir():
            if path.name not in known and not path.name.startswith("known_hosts"):
                raise Trouble(f"'{self.directory}' is not a directory of virtual hosts: it holds '{path.name}'. Give "
                              f"another one with --state.")

    # --- up

    def up(self, settings, image, until_pid=None):
        """Boots both hosts and returns once both answer ssh. Trouble, and nothing is left, if that fails."""
        held = self.lock(create=True)
        if held is None:
            raise Trouble(f"somebody else starts hosts in '{self.directory}' right now")
        try:
            self.check_directory()
            self.empty()
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "wander", "-f", self.directory / "key"])
            (self.directory / "image").symlink_to(image)
            (self.directory / "supervisor.log").touch()
            settings = {**settings, "modules": json.loads((image / "about.json").read_text())["modules"]}
        except BaseException:
            os.close(held)
            raise
        keep, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(told)
            detach(self.directory / "supervisor.log")
            Supervisor(self, settings, keep, until_pid).run()
        os.close(keep)
        # The supervisor's copy of the descriptor holds the lock from here on.
        os.close(held)
        os.waitpid(child, 0)
        try:
            self.wait_ready()
            self.shape(settings["link"])
            os.write(told, b"k")
        except Trouble as trouble:
            text = f"{trouble}\n{self.tails()}"
            os.close(told)
            wait_until(lambda: not self.directory.exists(), END_SECONDS + 5)
            raise Trouble(text.rstrip()) from None
        os.close(told)

    def wait_ready(self):
        log = self.directory / "supervisor.log"
        wait_until(lambda: self.read() or ENDED in log.read_text(), 15)
        about = self.read()
        if not about:
            raise Trouble("the virtual hosts could not be started")
        self.write_ssh_config(about)
        deadline = time.monotonic() + BOOT_SECONDS
        for name in NAMES:
            def booted():
                text = (self.directory / f"{name}.console").read_text(errors="replace")
                if ENDED in log.read_text():
                    raise Trouble("the virtual hosts were ended while they booted")
                if start_time(about["hosts"][name]["pid"]) is None:
                    raise Trouble(f"the virtual host {name} ended while it booted")
                return READY in text

            if not wait_until(booted, deadline - time.monotonic()):
                raise Trouble(f"expected the virtual host {name} to boot within {BOOT_SECONDS} s; it did not")
        for name in NAMES:
            if not wait_until(lambda: self.ssh(name, "true").returncode == 0, 15):
                raise Trouble(f"the virtual host {name} booted, but ssh says: {self.ssh(name, 'true').stderr.strip()}")

    def write_ssh_config(self, about):
        def quoted(name):
            return '"' + str(self.directory / name).replace("%", "%%") + '"'

        lines = []
        for name in NAMES:
            lines += [f"Host {name}", "HostName 127.0.0.1", f"Port {about['hosts'][name]['port']}", "User root",
                      f"IdentityFile {quoted('key')}", "IdentitiesOnly yes", "StrictHostKeyChecking accept-new",
                      f"UserKnownHostsFile {quoted('known_hosts')}", "LogLevel ERROR",
                      "ConnectTimeout 5", "BatchMode yes", ""]
        self.ssh_config.write_text("\n".join(lines))

    def tails(self):
        """The last lines of everything the hosts said, without QEMU's command lines."""
        parts = []
        for name in ("a.console", "b.console", "a.log", "b.log", "supervisor.log"):
            with contextlib.suppress(OSError):
                text = (self.directory / name).read_text(errors="replace").strip()
                if name in ("a.log", "b.log"):
                    text = text.partition("\n")[2]
                if text:
                    parts.append(f"--- {name}\n{text[-1500:]}")
        return "\n".join(parts)

    # --- while it is up

    def ssh(self, name, command, seconds=10):
        """A CompletedProcess; exit code 255 also when the time was over."""
        argv = ["ssh", "-F", str(self.ssh_config), name, command]
        try:
            return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                                  timeout=seconds)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(argv, 255, "", f"no answer within {seconds} s")

    def shape(self, link):
        """Gives the link these properties at both ends (shaping.parse)."""
        for name in NAMES:
            done = self.ssh(name, shaping.command(LINK, link))
            if done.returncode:
                raise Trouble(f"the link of {name} could not be shaped ({shaping.text(link)}): {done.stderr.strip()}")
        about = self.read()
        if about:
            about["settings"]["link"] = link
            self.write(about)

    def last_words(self, characters=3000):
        """What the kernels of both hosts said last."""
        consoles = [self.directory / f"{name}.console" for name in NAMES]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-characters:]}" for path in consoles
                         if path.exists())

    def status(self):
        """{host: what is known of it}, for people and scripts."""
        about, up = self.read(), self.alive()
        hosts = {}
        for name in NAMES:
            hosts[name] = {"up": False, "ssh": None}
            if not up or not about:
                continue
            host = about["hosts"][name]
            hosts[name] = {"up": start_time(host["pid"]) == host["start"], "pid": host["pid"],
                           "ssh": {"config": str(self.ssh_config), "host": name, "port": host["port"]},
                           "link": LINK, "addresses": ADDRESSES[name], "accel": about["settings"]["accel"],
                           "shape": about["settings"]["link"]}
            if hosts[name]["up"]:
                hosts[name].update(self.asked(name))
        return hosts

    def asked(self, name):
        done = self.ssh(name, f"cat /sys/class/net/{LINK}/mtu /sys/class/infiniband/rxe0/ports/1/state; uname -r; "
                              f"ls /dev/kvm")
        lines = done.stdout.splitlines()
        if len(lines) < 3:
            return {"answers": False, "error": done.stderr.strip()}
        return {"answers": True, "mtu": int(lines[0]), "rdma": {"device": "rxe0", "state": lines[1].split(": ")[-1]},
                "kernel": lines[2], "kvm": len(lines) > 3}

    # --- down

    def down(self):
        """Ends the hosts and removes the directory. Whether there was something to end."""
        try:
            held = self.lock()
        except FileNotFoundError:
            return False
        if held is None:
            self.end_supervisor()
            return True
        try:
            self.check_directory()
            self.remove()
        finally:
            os.close(held)
        return False

    def end_supervisor(self):
        about = self.read()
        if not about:
            raise Trouble(f"somebody starts hosts in '{self.directory}' right now: wait for that, or end it")
        pid, start = about["supervisor"]["pid"], about["supervisor"]["start"]
        for number in (signal.SIGTERM, signal.SIGKILL):
            if start_time(pid) == start:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if wait_until(lambda: not self.alive(), END_SECONDS + 5):
                break
        else:
            raise Trouble(f"the supervisor of the hosts (process {pid}) does not end")
        pids = [(host["pid"], host["start"]) for host in about["hosts"].values()]
        wait_until(lambda: not any(start_time(pid) == start for pid, start in pids), END_SECONDS)
        self.remove()


def detach(log):
    """Goes on in a process of its own session that no terminal and no caller waits for; the caller's child ends."""
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open("/dev/null", os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, source in ((0, nothing), (1, out), (2, out)):
        os.dup2(source, number)


class Supervisor:
    """Runs as long as the hosts do."""

    def __init__(self, instance, settings, keep, until_pid):
        self.instance, self.settings, self.keep, self.until_pid = instance, settings, keep, until_pid
        self.hosts, self.kept = {}, False

    def run(self):
        code = 1
        try:
            # Signals make the poll return through this pipe.
            told, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(wake)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, lambda *_: None)
            os.chdir(self.instance.directory)
            self.start()
            self.watch(told)
            code = 0
        except BaseException as error:
            print(f"{ENDED}{type(error).__name__}: {error}", flush=True)
        finally:
            self.end()
            os._exit(code)

    def start(self):
        key = Path("key.pub").read_text().split()[1]
        about = {"settings": self.settings, "hosts": {},
                 "supervisor": {"pid": os.getpid(), "start": start_time(os.getpid())}}
        for name in NAMES:
            port = free_port()
            argv = qemu_command(name, self.settings, key, port)
            with open(f"{name}.log", "wb") as log:
                log.write((shlex.join(argv) + "\n").encode())
                log.flush()
                Path(f"{name}.console").touch()
                process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.hosts[name] = process
            about["hosts"][name] = {"pid": process.pid, "start": start_time(process.pid), "port": port}
            if not wait_until(lambda: process.poll() is not None or all(map(os.path.exists, NETWORKS)), 10):
                raise Trouble("QEMU made no sockets for the networks between the hosts within 10 s")
            if process.poll() is not None:
                raise Trouble(f"QEMU of host {name} ended with {process.returncode}")
        self.instance.write(about)

    def watch(self, told):
        """Until somebody tells to end, the process to live for has ended, or no host is left."""
        waiting = select.poll()
        waiting.register(told, select.POLLIN)
        waiting.register(self.keep, select.POLLIN)
        hosts = {os.pidfd_open(process.pid): name for name, process in self.hosts.items()}
        for descriptor in hosts:
            waiting.register(descriptor, select.POLLIN)
        until = None
        if self.until_pid:
            try:
                until = os.pidfd_open(self.until_pid)
            except ProcessLookupError:
                print(f"{ENDED}there is no process {self.until_pid} to live for", flush=True)
                return
            waiting.register(until, select.POLLIN)
        while hosts:
            for descriptor, _ in waiting.poll():
                if descriptor in hosts:
                    print(f"host {hosts[descriptor]} ended with {self.hosts[hosts[descriptor]].wait()}", flush=True)
                    waiting.unregister(descriptor)
                    del hosts[descriptor]
                elif descriptor == self.keep:
                    # The end without a word: whoever started the hosts has given up, or died.
                    if not os.read(self.keep, 1):
                        return
                    waiting.unregister(self.keep)
                    self.kept = True
                else:
                    why = f"process {self.until_pid} has ended" if descriptor == until else "told to end"
                    print(f"{ENDED}{why}", flush=True)
                    return

    def end(self):
        for process in self.hosts.values():
            process.terminate()
        for process in self.hosts.values():
            try:
                process.wait(END_SECONDS / 2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if not self.kept:
            # Whoever started the hosts reads what they said, and closes this.
            os.read(self.keep, 1)
        self.instance.remove()
