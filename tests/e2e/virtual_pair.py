"""The two virtual hosts that some tests run on: those that the suite has booted and names in the environment, else a
pair of one's own. Programs are copied there once, however many tests use them."""

import atexit
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "testbed"))

import remote  # noqa: E402
from hosts import ROOT, Failure  # noqa: E402
from virtual import image, instance  # noqa: E402
from virtual.packages import Trouble  # noqa: E402

# The state directory of hosts that are up and the process they end with; or why there are none: a reason to skip, or to
# fail.
HOSTS, UNTIL, WHY_SKIP, WHY_FAIL = "WANDER_HOSTS", "WANDER_HOSTS_UNTIL", "WANDER_HOSTS_SKIP", "WANDER_HOSTS_FAIL"
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "ssh": "openssh-client", "dpkg-deb": "dpkg", "mke2fs": "e2fsprogs"}
PROGRAMS = "/usr/local/lib/wander-tests"


class NoHosts(Exception):
    """Why this machine can have no virtual hosts."""


def run_tool(state, *arguments, seconds=150):
    argv = [str(ROOT / "testbed" / "hosts"), "--state", str(state), *map(str, arguments)]
    try:
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Failure(f"expected '{shlex.join(argv)}' to end within {seconds} s; it hung") from None


def boot(until_pid):
    """Boots a pair, which ends when that process does, and fetches what that needs; its state directory. NoHosts when
    this machine lacks something."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    for tool, package in TOOLS.items():
        if not shutil.which(tool, path=path):
            raise NoHosts(f"virtual hosts need '{tool}': testbed/install hosts (package {package})")
    try:
        image.get(lambda text: print(f"hosts: {text}", flush=True))
    except (Trouble, OSError) as trouble:
        raise NoHosts(f"the image of the virtual hosts could not be made: {' '.join(str(trouble).split())}") from None
    state = tempfile.mkdtemp(prefix="wander-hosts-")
    bring_up(state, until_pid)
    return state


def bring_up(state, until_pid):
    done = run_tool(state, "up", "--until-pid", until_pid)
    if done.returncode:
        shutil.rmtree(state, ignore_errors=True)
        raise Failure(f"expected the virtual hosts to boot; {(done.stdout + done.stderr).strip()}")


def answers(state):
    """Whether both hosts still do."""
    found = json.loads(run_tool(state, "status", "--json").stdout or "{}")
    return bool(found) and all(host.get("answers") for host in found.values())


def renewed(body):
    """A case during which a host's kernel may hang, as soft-RoCE's does now and then when its link goes down: then the
    hosts are booted anew and the case is tried once more."""
    def tried(context):
        try:
            return body(context)
        except Failure as failure:
            state = state_directory()
            if answers(state):
                raise
            print(f"a virtual host hangs: {failure}\n{instance.Instance(state).last_words()}\nbooting both anew", flush=True)
        end(state)
        bring_up(state, os.environ.get(UNTIL, os.getpid()))
        hosts.cache_clear()
        return body(context)
    return tried


def end(state):
    run_tool(state, "down", seconds=60)


@functools.lru_cache(None)
def own_state():
    """Hosts of this process alone."""
    state = boot(os.getpid())
    atexit.register(end, state)
    return state


def state_directory():
    if os.environ.get(WHY_SKIP):
        raise NoHosts(os.environ[WHY_SKIP])
    if os.environ.get(WHY_FAIL):
        raise Failure(os.environ[WHY_FAIL])
    return os.environ.get(HOSTS) or own_state()


@functools.lru_cache(None)
def hosts():
    """(a, b), connected, both with the same programs. NoHosts when there can be none."""
    pair = remote.virtual(state_directory())
    for host in pair:
        atexit.register(host.close)
        host.connect()
    return pair


def deploy(host, binary):
    """The path of a program there; copied unless this very file was already."""
    binary = Path(binary)
    place = f"{PROGRAMS}/{hashlib.sha256(binary.read_bytes()).hexdigest()[:16]}"
    path = f"{place}/{binary.name}"
    if host.run(f"[ -x {shlex.quote(path)} ]", check=False).returncode:
        host.run(["mkdir", "-p", place])
        host.deploy(binary, path)
    return path
