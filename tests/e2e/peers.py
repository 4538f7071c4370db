#!/usr/bin/python3
"""Peers that are silent, foreign, cut short, absent, or vanish without a word: noticed within bounds, told in clear words,
and the guest runs on."""

import contextlib
import os
import signal
import socket
import threading
import time

import outcomes
import proxy
from cases import in_some_try, run_cases
from hosts import EXIT_FAILED, SLOW, World, alive, expect, free_port, running, wait_until

PATIENCE, MARGIN = 5, 4  # s: heartbeats notice within 5; the rest is for clean-up and a busy machine
SLOW_LINK = ("--filter", "rate=8M")  # so that the rounds last while a peer vanishes


def fails_on_source(source, uri, seconds, *options):
    """Migrates to a peer that cannot take the guest; what was said."""
    migration = source.start_migrate("guest", uri, *options)
    code = migration.wait(seconds)
    said = migration.output()
    expect(code == EXIT_FAILED, f"expected exit code 1; got {code}: {said}")
    expect(running([(source, "guest")]) != [], f"expected the guest to run on; it said {said}")
    return said


def peer(reply, then_close):
    """A server that says `reply` to whoever connects, and nothing else."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection)
            connection.sendall(reply)
            if then_close:
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return listener, f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def bad_peers(context):
    header = proxy.HEADER.pack(proxy.MAGIC, 3, 0, 100, 0)  # of a REFUSE, whose size is free
    table = {
        "silent": (b"", False),
        "closes at once": (b"", True),
        "foreign, and goes": (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", True),
        "foreign, and stays": (b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", False),
        "cut inside a header": (header[:9], True),
        "cut inside a body": (header + b"\1", True),
        "silent inside a body": (header + b"\1", False),
        "says a size of 4 GiB": (proxy.HEADER.pack(proxy.MAGIC, 2, 0, 0xFFFFFFFF, 0), False),
        "says an unknown type": (proxy.HEADER.pack(proxy.MAGIC, 999, 0, 0, 0), False),
    }
    with World() as world:
        source = world.host("a")
        source.lab(accel=context.accel, **outcomes.QUICK_GUEST)
        for name, (reply, then_close) in table.items():
            listener, uri = peer(reply, then_close)
            started = time.monotonic()
            said = fails_on_source(source, uri, 15)
            listener.close()
            print(f"{name}: {time.monotonic() - started:.1f} s: {said.strip().splitlines()[-1][:160]}")
        source.check("guest")


def nobody_there(context):
    with World() as world:
        source = world.host("a")
        source.lab(accel=context.accel, **outcomes.QUICK_GUEST)
        port = free_port()
        said = fails_on_source(source, f"tcp://127.0.0.1:{port}", 10)
        expect(str(port) in said, f"expected the message to name the port {port}; it said {said}")
        said = fails_on_source(source, "tcp://no-such-host.invalid:7000", 20)
        expect("no-such-host.invalid" in said, f"expected the message to name the host; it said {said}")


def told_of_silence(said, noticed):
    print(f"noticed after {noticed:.1f} s: {said.strip().splitlines()[-1][:160]}")
    expect("silent" in said, f"expected it to say that the peer is silent; it said {said[-1000:]}")


def black_hole(context):
    with World() as world:
        links = []

        def through(port):
            links.append(proxy.Link(port))
            return f"tcp://127.0.0.1:{links[0].port}"

        disturbed = outcomes.start(world, context.accel, migrate=SLOW_LINK, uri=through)
        wait_until(lambda: ("source", "ROUND", 1) in links[0].seen, 20, "the first round to begin")
        silent_at = time.monotonic()
        links[0].silent.set()
        code = disturbed.migration.wait(20)
        noticed = time.monotonic() - silent_at
        links[0].close()
        expect(code == EXIT_FAILED, f"expected exit code 1; got {code}: {disturbed.migration.output()}")
        told_of_silence(disturbed.migration.output(), noticed)
        expect(noticed <= (PATIENCE + MARGIN) * SLOW, f"expected it to be noticed within {PATIENCE} s; took {noticed:.1f} s")
        expect(outcomes.settle(disturbed) == outcomes.ON_SOURCE, "expected the guest to run on the source")


def stopped_receiver(context):
    with World() as world:
        disturbed = outcomes.start(world, context.accel, migrate=SLOW_LINK)
        session = wait_until(disturbed.sessions, 10, "a session at the destination")
        time.sleep(0.5)
        for pid in session:
            os.kill(pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        code = disturbed.migration.wait(20)
        noticed = time.monotonic() - stopped_at
        expect(code == EXIT_FAILED, f"expected exit code 1; got {code}: {disturbed.migration.output()}")
        told_of_silence(disturbed.migration.output(), noticed)
        expect(noticed <= (PATIENCE + MARGIN) * SLOW, f"expected it to be noticed within {PATIENCE} s; took {noticed:.1f} s")
        for pid in session:
            os.kill(pid, signal.SIGCONT)
        expect(outcomes.settle(disturbed) == outcomes.ON_SOURCE, "expected the guest to run on the source")


def stopped_source(context):
    with World() as world:
        disturbed = outcomes.start(world, context.accel, migrate=SLOW_LINK)
        wait_until(disturbed.sessions, 10, "a session at the destination")
        time.sleep(0.5)
        os.kill(disturbed.lab.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        wait_until(lambda: not disturbed.sessions(), PATIENCE + MARGIN, "the destination to discard the silent session")
        print(f"discarded after {time.monotonic() - stopped_at:.1f} s")
        os.kill(disturbed.lab.pid, signal.SIGCONT)
        expect(outcomes.settle(disturbed) == outcomes.ON_SOURCE, "expected the guest to run on the source")


def bad_clients(context):
    """A receiver outlives whoever connects to it, and takes a guest while silent ones are still connected."""
    header = proxy.HEADER.pack(proxy.MAGIC, 1, 0, 48, 0)
    junk = [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", header[:7], header + b"\0" * 11, header + b"\xff" * 48,
            proxy.HEADER.pack(proxy.MAGIC, 1, 0, 0xFFFFFFFF, 0), context.random.randbytes(4096)]
    with World() as world:
        source, destination = world.host("a"), world.host("b")
        receiver = destination.receive()
        source.lab(accel=context.accel, **outcomes.QUICK_GUEST)
        for data in junk[1:]:
            with socket.create_connection(("127.0.0.1", receiver.port), 5) as client:
                client.settimeout(20 * SLOW)
                with contextlib.suppress(OSError):  # it may hang up first
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(4096):
                        pass
        silent = [socket.create_connection(("127.0.0.1", receiver.port), 5) for _ in range(2)]
        wait_until(lambda: len([pid for pid in destination.pids() if alive(pid)]) == 1 + len(silent), 10,
                   "sessions for the silent clients alone")
        source.migrate("guest", receiver.uri)
        destination.check("guest")

        def only_guest_left():
            return {pid for pid in destination.pids() if alive(pid)} <= {receiver.pid, destination.owner("guest")}

        wait_until(only_guest_left, 20, "silent clients to be given up")
        expect(receiver.running(), "expected the receiver to outlive its clients")
        for client in silent:
            client.close()


run_cases(__doc__, {"bad peers": bad_peers, "nobody there": nobody_there, "black hole": in_some_try(black_hole),
                    "stopped receiver": in_some_try(stopped_receiver), "stopped source": in_some_try(stopped_source),
                    "bad clients": bad_clients})
