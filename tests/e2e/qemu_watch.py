"""Watches the QEMUs at both ends of a move all the time, each on a monitor of its own: what runs when, by QEMU's own events."""

import json
import socket
import threading
import time

from hosts import Failure, expect, wait_until

EVERY = 0.01    # s
PATIENCE = 1.5  # s, then QEMU is taken for one that answers nothing


class Stay:
    """A stretch of time in which a guest ran for certain."""

    def __init__(self, since):
        self.since, self.until, self.over = since, since, False


class Side(threading.Thread):
    """One end: its newest word and its stays. Whoever asks shares the connection with the thread that looks."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.ended = path, threading.Event()
        self.lock, self.connection, self.rest = threading.RLock(), None, b""
        self.word, self.stays = None, []
        self.start()

    def run(self):
        while not self.ended.is_set():
            self.look()
            time.sleep(EVERY)
        self.drop()

    def look(self):
        with self.lock:
            asked = time.time()
            try:
                status = self.command("query-status")["status"]
            except (TimeoutError, BlockingIOError):
                self.silent()
                return
            except (OSError, ValueError, Failure):
                self.drop()
                return
            self.word = status
            if status == "running":
                self.runs(time.time() if not self.newest() else asked)

    def newest(self):
        return self.stays[-1] if self.stays and not self.stays[-1].over else None

    def runs(self, moment):
        if not self.newest():
            self.stays.append(Stay(moment))
        self.newest().until = max(self.newest().until, moment)

    def stops(self, moment):
        if self.newest():
            self.newest().until = max(self.newest().until, moment)
            self.newest().over = True

    def silent(self):
        """It may go on where it was: its last stay stays open, and is known up to the last answer."""
        self.disconnect()
        self.word = "silent"

    def drop(self):
        """It has ended; when exactly is not known, so the stay ends with its last sign of life."""
        with self.lock:
            self.disconnect()
            self.word = None
            if self.newest():
                self.newest().over = True

    def disconnect(self):
        if self.connection:
            self.connection.close()
        self.connection, self.rest = None, b""

    def connect(self):
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(PATIENCE)
        self.connection.connect(str(self.path))
        self.read()
        self.command("qmp_capabilities")

    def command(self, name, **arguments):
        """What it returns; OSError when nobody answers."""
        with self.lock:
            if not self.connection:
                self.connect()
            self.connection.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
            while True:
                answer = self.read()
                if "event" in answer:
                    self.note(answer)
                elif "error" in answer:
                    raise Failure(f"QEMU refused {name}: {answer['error']['desc']}")
                else:
                    return answer["return"]

    def read(self):
        while b"\n" not in self.rest:
            data = self.connection.recv(65536)
            if not data:
                raise ConnectionResetError("QEMU closed its monitor")
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def note(self, event):
        moment = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
        if event["event"] == "RESUME":
            self.runs(moment)
        elif event["event"] == "STOP":
            self.stops(moment)


class Watch:
    def __init__(self, world):
        self.sides = {name: Side(side.watched) for name, side in world.sides.items()}
        self.begun = time.time()

    def begin(self):
        """What is asked of from here on is one move."""
        self.begun = time.time()

    def state(self, name):
        return self.sides[name].word

    def wait(self, name, word, seconds=20):
        wait_until(lambda: self.state(name) == word, seconds, f"QEMU at {name} to be {word}, not {self.state(name)}")

    def command(self, name, command, **arguments):
        try:
            return self.sides[name].command(command, **arguments)
        except (OSError, ValueError):
            return None

    def settings(self, name):
        """QEMU's migration settings, as a set of texts; None when it does not answer."""
        capabilities = self.command(name, "query-migrate-capabilities")
        parameters = self.command(name, "query-migrate-parameters")
        if capabilities is None or parameters is None:
            return None
        return {f"{one['capability']}={one['state']}" for one in capabilities} | \
               {f"{key}={value}" for key, value in parameters.items()}

    def running_since(self, name):
        """When the newest stay of the guest there began."""
        stays = self.sides[name].stays
        expect(stays, f"expected a guest that runs at {name}")
        return stays[-1].since

    def ever_ran(self, name):
        """Since the move began."""
        return any(stay.until > self.begun for stay in self.sides[name].stays)

    def expect_one_at_a_time(self):
        stays = [sorted(((stay.since, stay.until) for stay in list(side.stays) if stay.until > self.begun))
                 for side in self.sides.values()]
        for first in stays[0]:
            for second in stays[1]:
                both = min(first[1], second[1]) - max(first[0], second[0])
                expect(both <= 0, f"expected at most one running guest; BOTH ran for {both * 1e3:.1f} ms: {stays}")

    def close(self):
        for side in self.sides.values():
            side.ended.set()
        for side in self.sides.values():
            side.join(5)
