"""Hosts reached by ssh, real or virtual: programs are run, started, signalled and waited for there, and files copied.
One connection per host is kept open, with a shell at its other end, so that a command costs milliseconds; every wait is
bounded, and a host that is dead or does not answer gives a Failure. A remote host needs bash, coreutils and util-linux.
"""

import atexit
import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from hosts import SLOW, Failure
from virtual import instance

CONNECT_SECONDS, GRACE_SECONDS = 10, 10
EXIT_SSH, EXIT_TIMED_OUT = 255, (124, 137)
# $1 is the base of its files, $2 the log. Tells the process id, then waits for the end and writes down the exit code.
# The lock tells those who wait for the end without looking again and again. By the time its id is told, the process
# ignores no signal, as it would in the background of a shell without job control, and leads a group of its own. Job
# control itself (set -m) is no way to that: what is only stopped looks ended then, and `wait -f` at times spins for good.
STARTER = ('exec 9>"$1.lock"; flock 9; base=$1 log=$2; shift 2; env --default-signal=INT,QUIT setsid sh -c '
           """'echo $$ >&3; exec "$@" 3>&-' start "$@" >"$log" 2>&1 </dev/null 9>&- & exec 3>&-; wait $!; """
           'echo $? >"$base.code"')
LINK_DEVICES = "cat /sys/class/infiniband/*/ports/*/gid_attrs/ndevs/0 2>/dev/null; true"


class Shell:
    """A bash at the other end that takes one command after the other: spares each of them what it costs to start ssh's
    session, a shell and `timeout`, tenths of a second where a host is emulated."""

    # Runs $1 in a shell of its own; tells exit code and lengths, then output and errors. `read` spares starting a
    # program, but stops at a zero byte, and says so.
    SERVER = ('LC_ALL=C; d=$(mktemp -d) || exit; trap "rm -rf $d" EXIT; echo $$ $d; answer() { '
              '( eval "$1" ) </dev/null >"$d/o" 2>"$d/e"; set -- $?; '
              'if IFS= read -r -d "" o <"$d/o" || IFS= read -r -d "" e <"$d/e"; then '
              'echo $1 $(stat -c %s "$d/o" "$d/e"); cat "$d/o" "$d/e"; return; fi; '
              'printf "%d %d %d\\n%s%s" $1 ${#o} ${#e} "$o" "$e"; }\n')

    def __init__(self, argv):
        self.process = subprocess.Popen([*argv, "exec setsid bash"], bufsize=0, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            self.process.stdin.write(self.SERVER.encode())
            self.group, self.directory = self.line(time.monotonic() + CONNECT_SECONDS * SLOW).decode().split()
        except OSError:
            self.process.kill()
            self.close()
            raise ConnectionError from None

    def read(self, count, deadline):
        ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        text = os.read(self.process.stdout.fileno(), count)
        if not text:
            raise ConnectionError
        return text

    def line(self, deadline):
        line = b""
        while not line.endswith(b"\n"):
            line += self.read(1, deadline)
        return line

    def run(self, command, seconds):
        """(exit code, output, errors). TimeoutError or ConnectionError when there is none: it is of no use then."""
        deadline = time.monotonic() + seconds
        self.process.stdin.write(f"answer {shlex.quote(command)}\n".encode())
        code, *lengths = map(int, self.line(deadline).split())
        texts = []
        for length in lengths:
            parts = []
            while length:
                parts.append(self.read(length, deadline))
                length -= len(parts[-1])
            texts.append(b"".join(parts).decode(errors="replace"))
        return code, *texts

    def close(self):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class RemoteProcess:
    """A program that was started on a host. It outlives the connection, and ends with Remote.close()."""

    def __init__(self, host, argv, pid, base, log):
        self.host, self.argv, self.pid, self.base, self.log = host, argv, pid, base, log

    def output(self):
        return self.host.run(f"cat {shlex.quote(self.log)}").stdout

    def code(self):
        """The exit code, or None while it runs. A process that a signal ended has 128 and its number."""
        text = self.host.run(f"[ -e {self.base}.code ] && echo $(<{self.base}.code); true").stdout.strip()
        return int(text) if text else None

    def running(self):
        return self.code() is None

    def signal(self, number):
        """To the process, if it still runs."""
        self.host.run(f"[ -e {self.base}.code ] || kill -{int(number)} {self.pid} 2>/dev/null; true")

    def wait(self, seconds):
        """The exit code; a Failure when it does not end in time."""
        done = self.host.run(f"flock -w {seconds * SLOW:g} -s {self.base}.lock true; cat {self.base}.code",
                             seconds=seconds + GRACE_SECONDS, check=False)
        if not done.stdout.strip():
            raise Failure(f"expected '{shlex.join(self.argv)}' on {self.host} to end within {seconds * SLOW:g} s; it "
                          f"still runs, and said:\n{self.output()[-2000:]}")
        return int(done.stdout)

    def end(self):
        """Kills it, and all that it started in its group."""
        self.host.run(f"[ -e {self.base}.code ] || kill -KILL -- -{self.pid} 2>/dev/null; true")


@contextlib.contextmanager
def uninterrupted():
    """Signals that this program handles are handled when this is over: else a program might have been started that
    nobody knows of. They are not blocked: what is started would inherit that."""
    handled, came = {}, []
    if threading.current_thread() is threading.main_thread():
        handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        handled = {number: handler for number, handler in handled.items() if callable(handler)}
    for number in handled:
        signal.signal(number, lambda *what: came.append(what))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        for number, frame in came:
            handled[number](number, frame)


class Remote:
    """One host. `destination` and `ssh_options` are what ssh takes; `addresses` ({"4": …, "6": …}) says which
    addresses the link has, where they shall not be found out."""

    def __init__(self, destination, ssh_options=(), addresses=None):
        self.destination, self.options = destination, list(map(str, ssh_options))
        self.addresses, self.processes, self.counter = dict(addresses or {}), [], 0
        # Short, because a Unix socket's path is.
        self.local = Path(tempfile.mkdtemp(prefix="wander-ssh-"))
        self.master, self.remote_directory = None, None
        self.shell, self.shell_in_use = None, threading.Lock()
        atexit.register(shutil.rmtree, self.local, ignore_errors=True)

    def __str__(self):
        return self.destination

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- the connection

    def ssh(self, *arguments):
        return ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=5",
                "-o", "ServerAliveCountMax=3", "-S", str(self.local / "c"), *self.options, *arguments]

    def connect(self):
        """Opens the connection that all commands share, if there is none."""
        if self.master and self.master.poll() is None:
            return
        log = self.local / "master.log"
        with open(log, "wb") as out:
            # It lives as long as somebody holds the other end of its input: it does not outlive this process.
            argv = self.ssh("-M", "-o", "ControlPersist=no", self.destination, "cat >/dev/null")
            self.master = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)
        deadline = time.monotonic() + (CONNECT_SECONDS + 5) * SLOW
        while not (self.local / "c").exists():
            if self.master.poll() is not None or time.monotonic() > deadline:
                self.disconnect()
                said = log.read_text(errors="replace").strip() or "no answer"
                raise Failure(f"{self} cannot be reached by ssh: {said}")
            time.sleep(0.02)

    def disconnect(self):
        if self.shell:
            self.shell.close()
            self.shell = None
        if self.master:
            self.master.stdin.close()
            self.master.terminate()
            try:
                self.master.wait(5)
            except subprocess.TimeoutExpired:
                self.master.kill()
                self.master.wait()
            self.master = None

    def call(self, command, seconds, **streams):
        """Runs a command line of the shell there, in a session of its own; a CompletedProcess, or a Failure when ssh
        fails."""
        self.connect()
        argv = self.ssh(self.destination, command)
        try:
            done = subprocess.run(argv, capture_output="stdout" not in streams, timeout=seconds * SLOW + GRACE_SECONDS,
                                  **streams)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self} did not answer within {seconds * SLOW + GRACE_SECONDS:g} s; asked was: "
                          f"{command[:300]}") from None
        if done.returncode == EXIT_SSH:
            said = done.stderr if isinstance(done.stderr, str) else (done.stderr or b"").decode(errors="replace")
            raise Failure(f"{self} cannot be reached by ssh: {said.strip() or 'the connection ended'}")
        return done

    # --- programs

    def run(self, command, seconds=20, check=True, env=None, input=None):
        """Runs a list of words, or a string for bash, to its end: a CompletedProcess with text. A Failure when it does
        not end in time (it is killed then), and, with `check`, when its exit code is not 0."""
        line = command if isinstance(command, str) else "exec " + shlex.join(map(str, command))
        line = "".join(f"export {name}={shlex.quote(str(value))}; " for name, value in (env or {}).items()) + line
        shown = command if isinstance(command, str) else line[5:]
        if input is None and self.shell_in_use.acquire(blocking=False):
            try:
                done = self.run_in_shell(line, shown, seconds)
            finally:
                self.shell_in_use.release()
        else:
            done = self.run_alone(line, shown, seconds, input)
        if check and done.returncode:
            raise Failure(f"expected '{shown}' on {self} to exit with 0; it exited with {done.returncode} and said: "
                          f"{(done.stdout + done.stderr).strip()[-2000:]}")
        return done

    def run_in_shell(self, line, shown, seconds):
        self.connect()
        try:
            if not self.shell or self.shell.process.poll() is not None:
                self.shell = Shell(self.ssh(self.destination))
            return subprocess.CompletedProcess(shown, *self.shell.run(line, seconds * SLOW))
        except TimeoutError:
            # Whether the host answers at all shows here.
            self.kill_shell()
            raise Failure(f"expected '{shown}' on {self} to end within {seconds * SLOW:g} s; it hung, and was "
                          f"killed") from None
        except (ConnectionError, ValueError):
            self.drop_shell()
            raise Failure(f"{self} cannot be reached by ssh any more: the connection ended while '{shown}' was to run "
                          f"there") from None
        except BaseException:
            # Interrupted: the next command would take the answer to this one for its own.
            with contextlib.suppress(Failure):
                self.kill_shell()
            raise

    def kill_shell(self):
        """Ends the shell with what runs in it."""
        shell = self.drop_shell()
        if shell:
            self.call(f"kill -KILL -- -{shell.group}; rm -rf {shell.directory}", 5, stdin=subprocess.DEVNULL)

    def drop_shell(self):
        shell, self.shell = self.shell, None
        if shell:
            shell.process.kill()
            shell.close()
        return shell

    def run_alone(self, line, shown, seconds, input):
        began = time.monotonic()
        given = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        bounded = shlex.join(["timeout", "-k", "5", f"{seconds * SLOW:g}", "bash", "-c", line])
        done = self.call(bounded, seconds, text=True, errors="replace", **given)
        if done.returncode in EXIT_TIMED_OUT and time.monotonic() - began >= seconds * SLOW:
            raise Failure(f"expected '{shown}' on {self} to end within {seconds * SLOW:g} s; it hung, and said: "
                          f"{done.stdout[-1000:]!r} {done.stderr[-1000:]!r}")
        return done

    def directory(self):
        """A directory on the host, private and removed by close()."""
        if not self.remote_directory:
            self.remote_directory = self.run(["mktemp", "-d", "/tmp/wander-remote-XXXXXX"]).stdout.strip()
        return self.remote_directory

    def start(self, argv, log=None, env=None):
        """Starts a program: a RemoteProcess. Its output goes to the file `log` there, one of its own unless given."""
        self.directory()
        with uninterrupted():
            return self.start_one(list(map(str, argv)), log, env)

    def start_one(self, argv, log, env):
        self.counter += 1
        base = f"{self.directory()}/{self.counter}"
        log = str(log or f"{base}.log")
        words = shlex.join(["setsid", "-f", "bash", "-c", STARTER, "start", base, log, *argv])
        # Not in the background of a shell without job control: it would ignore SIGINT for good.
        done = self.run(f"mkfifo {base}.id; exec 3<>{base}.id; {words} </dev/null >/dev/null 2>&1; "
                        f"read -r -t 10 pid <&3; echo $pid", env=env)
        found = re.search(r"(?m)^(\d+)$", done.stdout)
        if not found:
            raise Failure(f"'{shlex.join(argv)}' could not be started on {self}: {done.stdout}{done.stderr}")
        process = RemoteProcess(self, argv, int(found.group(1)), base, log)
        self.processes.append(process)
        return process

    # --- files

    def put(self, local, remote):
        """Copies a file there; its permissions stay. A program that runs may be replaced."""
        local, new = Path(local), shlex.quote(f"{remote}.new")
        with open(local, "rb") as source:
            done = self.call(f"cat >{new} && chmod {local.stat().st_mode & 0o777:o} {new} && mv -f {new} "
                             f"{shlex.quote(str(remote))}", 60, stdin=source)
        if done.returncode:
            raise Failure(f"'{local}' could not be copied to {self}:{remote}: "
                          f"{done.stderr.decode(errors='replace').strip()}")

    def get(self, remote, local):
        """Copies a file from there."""
        with open(local, "wb") as target:
            done = self.call(f"cat {shlex.quote(str(remote))}", 60, stdin=subprocess.DEVNULL, stdout=target,
                             stderr=subprocess.PIPE)
        if done.returncode:
            Path(local).unlink()
            raise Failure(f"{self}:{remote} could not be copied: {done.stderr.decode(errors='replace').strip()}")

    def deploy(self, binary, path="/usr/local/bin/wander"):
        """Copies a program there and asks the loader whether it finds all its libraries."""
        self.put(binary, path)
        done = self.run(["env", "LD_TRACE_LOADED_OBJECTS=1", path], check=False)
        missing = re.findall(r"(\S+) => not found", done.stdout + done.stderr)
        if missing or done.returncode:
            what = f"lacks {', '.join(missing)}" if missing else (done.stdout + done.stderr).strip()
            raise Failure(f"'{binary}' does not run on {self}: the host {what}. Install the packages it needs there.")
        return path

    # --- what the host is and does

    def link_address(self, family="4"):
        """An address ("4" or "6") of the first network device that carries RDMA; without one, of the device by which
        ssh comes in."""
        family = str(family)
        if family not in self.addresses:
            devices = self.run(LINK_DEVICES).stdout.split()
            shown = self.run(["ip", "-o", f"-{family}", "address", "show", "scope", "global"]).stdout
            found = re.findall(r"(?m)^\d+:\s+(\S+)\s+inet6?\s+([0-9a-f.:]+)", shown)
            if not devices:
                came_to = self.run('echo "$SSH_CONNECTION"').stdout.split()[2]
                shown = self.run(["ip", "-o", "address", "show", "to", came_to]).stdout
                devices = re.findall(r"(?m)^\d+:\s+(\S+)", shown)
            address = next((address for device, address in found if device in devices), None)
            if not address:
                raise Failure(f"{self} has no IPv{family} address on {' or '.join(devices) or 'any known device'}")
            self.addresses[family] = address
        return self.addresses[family]

    def cpu_seconds(self):
        """CPU time of the whole host since its boot: user, system and interrupts, whoever it is charged to."""
        text = self.run("getconf CLK_TCK 2>/dev/null || echo 100; head -n1 /proc/stat").stdout.splitlines()
        user, nice, system, _idle, _iowait, irq, softirq = map(int, text[1].split()[1:8])
        # The kernel counts a guest's time into user and nice already.
        return (user + nice + system + irq + softirq) / int(text[0])

    def close(self):
        """Ends what was started there, removes what was put aside there, and closes the connection."""
        with contextlib.suppress(Failure):
            if self.remote_directory:
                for process in self.processes:
                    process.end()
                self.run(["rm", "-rf", self.remote_directory])
        self.disconnect()
        shutil.rmtree(self.local, ignore_errors=True)


def virtual(state=None):
    """The two virtual hosts that `testbed/hosts --state STATE up` has started."""
    config = Path(state or instance.default_directory()) / "ssh_config"
    if not config.exists():
        raise Failure(f"there are no virtual hosts in '{config.parent}': testbed/hosts up")
    return tuple(Remote(name, ["-F", config]) for name in instance.NAMES)
