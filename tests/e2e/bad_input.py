#!/usr/bin/python3
"""Bad input gets one clear line on stderr and the right exit code; nothing is lost and nothing hangs."""

import contextlib
import errno
import os
import signal
import socket
import subprocess

from cases import run_cases
from hosts import EXIT_FAILED, EXIT_USAGE, PROGRAM, Failure, World, expect, free_port, running, wait_until

USAGE, FAILED, ANY = (EXIT_USAGE,), (EXIT_FAILED,), (EXIT_FAILED, EXIT_USAGE)


def one_clear_line(host, arguments, codes, words):
    done = host.run(*arguments, seconds=20)
    said, command = done.stderr.strip(), "wander " + " ".join(arguments)
    expect(done.returncode in codes, f"expected '{command}' to exit with {codes}; got {done.returncode}, saying {said!r}")
    expect(len(said.splitlines()) == 1, f"expected one line on stderr from '{command}'; got {said!r}")
    expect(all(word in said for word in words), f"expected '{command}' to name {words}; it said {said!r}")
    print(f"{command}: {said}")


def command_line(context):
    lab = ["lab", "--name", "x", "--accel", context.accel]
    table = [
        (["frobnicate"], USAGE, ["frobnicate"]),
        (["lab", "--frobnicate"], USAGE, ["frobnicate"]),
        ([*lab, "--workload", "speed=3"], USAGE, ["speed", "rate"]),
        ([*lab, "--workload", "hot"], USAGE, ["hot"]),
        ([*lab, "--workload", "hot=16M,rate=-1"], USAGE, ["-1"]),
        ([*lab, "--memory", "64M", "--workload", "hot=1G"], ANY, ["1"]),
        ([*lab, "--memory", "0"], USAGE, ["0"]),
        ([*lab, "--memory", "17EiB"], USAGE, ["17E"]),
        ([*lab, "--memory", "16384P"], USAGE, ["16384P"]),
        ([*lab, "--memory", "12potatoes"], USAGE, ["12potatoes"]),
        ([*lab, "--memory"], USAGE, ["memory"]),
        ([*lab, "--vcpus", "0"], USAGE, ["0"]),
        ([*lab, "--vcpus", "1000"], USAGE, ["1000"]),
        (["lab", "--name", "../../etc/x", "--accel", context.accel], USAGE, ["name"]),
        (["lab", "--name", "a" * 64, "--accel", context.accel], USAGE, ["name"]),
        (["lab", "--name", "x", "--accel", "abacus"], USAGE, ["abacus"]),
        (["receive"], USAGE, ["--listen"]),
        (["receive", "--listen", "127.0.0.1:7000"], USAGE, ["tcp://"]),
        (["receive", "--listen", "tcp://127.0.0.1:99999"], USAGE, ["99999"]),
        (["receive", "--listen", "smoke://127.0.0.1:7000"], ANY, ["tcp://"]),
        (["receive", "--listen", "tcp://0.0.0.0:0"], ANY, ["--insecure"]),
        (["receive", "--listen", f"tcp://127.0.0.1:{free_port()}", "--filter", "fault=frob@1"], ANY, ["frob"]),
        (["migrate"], USAGE, ["GUEST"]),
        (["migrate", "nobody", "tcp://127.0.0.1:7000"], ANY, ["nobody"]),
        (["migrate", "nobody", "somewhere"], USAGE, ["somewhere"]),
        (["status", "nobody"], ANY, ["nobody"]),
        (["cancel", "nobody"], ANY, ["nobody"]),
        (["resolve", "nobody", "--resume"], ANY, ["nobody"]),
        (["resolve", "nobody"], USAGE, ["--resume"]),
        (["resolve", "nobody", "--resume", "--destroy"], USAGE, ["--destroy"]),
        (["quit", "nobody"], ANY, ["nobody"]),
    ]
    with World() as world:
        host = world.host("a")
        for arguments, codes, words in table:
            one_clear_line(host, arguments, codes, words)


def around_a_guest(context):
    """A guest that is there takes no harm from what is asked wrongly of it."""
    with World() as world:
        host = world.host("a")
        host.lab("guest", accel=context.accel)
        for arguments, codes, words in wrong_of_a_guest(context, world.host("b").receive().uri):
            one_clear_line(host, arguments, codes, words)
        expect(running([(host, "guest")]) != [], "expected the guest to run on after all this")
        host.check("guest")


def wrong_of_a_guest(context, uri):
    return [
        (["migrate", "guest", uri, "--lanes", "0"], USAGE, ["0"]),
        (["migrate", "guest", uri, "--lanes", "99999"], USAGE, ["99999"]),
        (["migrate", "guest", uri, "--downtime-limit", "soon"], USAGE, ["soon"]),
        (["migrate", "guest", uri, "--downtime-limit", "0"], USAGE, ["--downtime-limit"]),
        (["migrate", "guest", uri, "--max-time", "3000h"], USAGE, ["--max-time"]),
        (["migrate", "guest", uri, "--max-bandwidth", "9P"], USAGE, ["--max-bandwidth"]),
        (["migrate", "guest", uri, "--throttle", "150%"], USAGE, ["150"]),
        (["migrate", "guest", uri, "--on-timeout", "pray"], USAGE, ["pray"]),
        (["migrate", "guest", uri, "--filter", "rate=quick"], ANY, ["quick"]),
        (["migrate", "guest", uri, "--json", "/nonexistent/report.json"], ANY, ["/nonexistent"]),
        (["migrate", "guest", uri, "--tracker", "crystal-ball"], ANY, ["crystal-ball"]),
        (["migrate", "guest", "smoke://127.0.0.1:7000"], ANY, ["smoke"]),
        (["lab", "--name", "guest", "--accel", context.accel], ANY, ["guest", "in use"]),
        (["cancel", "guest"], ANY, ["guest"]),
        (["resolve", "guest", "--destroy"], ANY, ["guest"]),
    ]


def occupied_port(context):
    with World() as world:
        host = world.host("a")
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])
            one_clear_line(host, ["receive", "--listen", f"tcp://127.0.0.1:{port}"], FAILED, [port])


def name_in_use_there(context):
    with World() as world:
        source, destination = world.host("a"), world.host("b")
        source.lab("guest", accel=context.accel)
        destination.lab("guest", accel=context.accel)
        migration = source.start_migrate("guest", destination.receive().uri)
        code, said = migration.wait(20), migration.output()
        expect(code == EXIT_FAILED and "in use" in said and "--name" in said,
               f"expected exit code 1 and the remedy for a name in use; got {code}: {said}")
        expect(len(running([(source, "guest"), (destination, "guest")])) == 2, "expected both guests to run on")


def control_socket(context):
    """What no client of ours would send: an error each time, and the guest goes on."""
    lines = [b"{", b"[]", b"null", b"{}", b'{"command":7}', b'{"command":"frobnicate"}', b'{"command":"migrate"}',
             b'{"command":"migrate","uri":9}', b"\xff\xfe\x00", b'{"command":"resolve","action":"pray"}', b"x" * 70000,
             b"[" * 60000]
    with World() as world:
        host = world.host("a")
        host.lab("guest", accel=context.accel)
        for line in lines:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(10)
                control.connect(str(host.runtime / "guest.sock"))
                try:
                    control.sendall(line + b"\n")
                    answer = control.recv(65536)
                except ConnectionError:
                    answer = b""
            expect(b'"error"' in answer, f"expected an error for {line[:40]!r}; got {answer[:200]!r}")
        mode = os.stat(host.runtime / "guest.sock").st_mode & 0o777
        expect(mode == 0o600, f"expected a control socket for its user alone; got mode {mode:o}")
        expect(running([(host, "guest")]) != [], "expected the guest to run on after all this")


def stale_socket(context):
    """A killed guest's socket is no name in use."""
    with World() as world:
        host = world.host("a")
        first = host.lab("guest", accel=context.accel)
        first.popen.kill()
        first.wait(10)
        wait_until(lambda: not host.owner("guest"), 5, "the killed guest to be gone")
        host.lab("guest", accel=context.accel)
        host.must("quit", "guest")


def stopped_process(context):
    """A guest's process that takes no connection any more keeps nobody waiting for ever."""
    with World() as world, contextlib.ExitStack() as connections:
        host = world.host("a")
        lab = host.lab("guest", accel=context.accel)
        lab.signal(signal.SIGSTOP)
        try:
            for _ in range(200):
                control = connections.enter_context(socket.socket(socket.AF_UNIX))
                control.setblocking(False)
                if control.connect_ex(str(host.runtime / "guest.sock")) == errno.EAGAIN:
                    break
            one_clear_line(host, ["status", "guest"], FAILED, ["guest", "does not answer"])
            listed = host.run("status")
            expect("guest" in listed.stderr and "does not answer" in listed.stderr,
                   f"expected the list to name the silent guest; got {listed.stdout!r} {listed.stderr!r}")
        finally:
            lab.signal(signal.SIGCONT)


def one_guest_only(context):
    """Two sources at the same time, to a receiver that takes one guest."""
    with World() as world:
        sources, destination = [world.host("a"), world.host("b")], world.host("c")
        receiver = destination.receive(once=True)
        for source, name in zip(sources, ("first", "second")):
            source.lab(name, accel=context.accel)
        first = sources[0].start_migrate("first", receiver.uri, "--filter", "rate=8M", "--downtime-limit", "1m")
        wait_until(lambda: destination.guests() == ["first"], 10, "the first guest to be on its way")
        second = sources[1].start_migrate("second", receiver.uri)
        code, said = second.wait(20), second.output()
        expect(code == EXIT_FAILED and "--once" in said, f"expected the second to be refused; got {code}: {said}")
        expect(first.wait(60) == 0, f"expected the first to arrive; it said: {first.output()}")
        expect(len(running([(sources[1], "second"), (destination, "first")])) == 2, "expected both to run")


def nobody_watches(context):
    with World() as world:
        host = world.host("a")
        host.lab("guest", accel=context.accel)
        with subprocess.Popen([PROGRAM, "status", "guest", "--watch"], env=host.env, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as watch:
            watch.stdout.readline()
            watch.stdout.close()
            try:
                watch.wait(10)
            except subprocess.TimeoutExpired:
                watch.kill()
                raise Failure("expected 'wander status --watch' to end when its reader has left") from None


run_cases(__doc__, {"command line": command_line, "around a guest": around_a_guest, "occupied port": occupied_port,
                    "name in use there": name_in_use_there, "control socket": control_socket,
                    "stale socket": stale_socket, "stopped process": stopped_process,
                    "one guest only": one_guest_only, "nobody watches": nobody_watches})
