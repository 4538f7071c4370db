#!/usr/bin/python3
"""The control socket answers while the guest moves, clean-up included. A generous bound: tests/bench/downtime measures."""

import json
import socket
import threading
import time

from cases import run_cases
from hosts import SLOW, World, expect

BOUND = 1.0  # s


def ask(path):
    """One status request; seconds until its answer, None when nobody answers any more."""
    started = time.monotonic()
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(20)
        try:
            control.connect(path)
            control.sendall(b'{"command":"status"}\n')
            answer = b""
            while not answer.endswith(b"\n"):
                part = control.recv(65536)
                if not part:
                    return None
                answer += part
        except (FileNotFoundError, ConnectionError):
            return None
    json.loads(answer)
    return time.monotonic() - started


def poll(path, latencies, done):
    while not done.is_set():
        latency = ask(path)
        if latency is not None:
            latencies.append(latency)
        time.sleep(0.002)


def answers(context):
    with World() as world:
        source, destination = world.host("a"), world.host("b")
        source.lab(memory="512M", workload="touch=384M,hot=64M,rate=20000", accel=context.accel)
        receiver = destination.receive()
        latencies, done = {host: [] for host in (source, destination)}, threading.Event()
        threads = [threading.Thread(target=poll, args=(str(host.runtime / "guest.sock"), latencies[host], done))
                   for host in latencies]
        for thread in threads:
            thread.start()
        try:
            source.migrate("guest", receiver.uri)
            time.sleep(1)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        for host, seen in latencies.items():
            expect(len(seen) > 20, f"expected many answers from {host.name}; got {len(seen)}")
            print(f"{host.name}: {len(seen)} answers, median {sorted(seen)[len(seen) // 2] * 1e3:.1f} ms, "
                  f"longest {max(seen) * 1e3:.1f} ms")
            expect(max(seen) <= BOUND * SLOW, f"expected every answer within {BOUND} s; the slowest took {max(seen):.2f} s")


run_cases(__doc__, {"control latency": answers})
