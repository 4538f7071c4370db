"""A link between source and destination that can be cut, silenced or slowed at any message of the control channel. It
also stands in for the lane and session ports that the two ends name in HELLO and ACCEPT, so that nothing goes round it."""

import contextlib
import socket
import struct
import threading
import time

HEADER = struct.Struct("<IHHII")
MAGIC = 0x524E4457
NAMES = dict(enumerate("HELLO WELCOME REFUSE GUEST ACCEPT EXTENTS ROUND PREPARE READY STATE LOAD PREPARED VERIFY HASHES "
                       "COMMIT RUNNING ABORT ABORTED RELEASE REPORT ANSWER ERROR PING PONG PROBE FOUND".split(), 1))
PORTS = {"HELLO": [26], "ACCEPT": [0, 2], "FOUND": [0]}  # where they stand in a body, little-endian
HEARTBEATS = ("PING", "PONG")
CUT, CUT_INSIDE, BLACK_HOLE, DELAY = "cut after", "cut inside", "black hole after", "delay after"
DELAY_SECONDS = 1.5


class Link:
    """Listens on 127.0.0.1 for the source and connects on to `port`. `trigger`: (direction, message name, occurrence) of the
    first connection, `action` what happens there. `seen` lists what passed, heartbeats left out."""

    def __init__(self, port, trigger=None, action=None):
        self.trigger, self.action, self.reached = trigger, action, threading.Event()
        self.silent, self.stopping = threading.Event(), threading.Event()
        self.seen, self.sockets, self.threads = [], [], []
        self.lock = threading.Lock()
        self.control_taken = False
        self.port = self.listen(port)

    def listen(self, target):
        listener = socket.create_server(("127.0.0.1", 0))
        self.keep(listener)
        self.spawn(self.accept, listener, target)
        return listener.getsockname()[1]

    def keep(self, endpoint):
        with self.lock:
            self.sockets.append(endpoint)

    def spawn(self, function, *arguments):
        thread = threading.Thread(target=self.guarded, args=(function, *arguments), daemon=True)
        self.threads.append(thread)
        thread.start()

    @staticmethod
    def guarded(function, *arguments):
        with contextlib.suppress(OSError, ValueError):
            function(*arguments)

    def accept(self, listener, target):
        while not self.stopping.is_set():
            near, _ = listener.accept()
            self.keep(near)
            try:
                far = socket.create_connection(("127.0.0.1", target), 5)
            except OSError:
                near.close()
                continue
            self.keep(far)
            for endpoint in (near, far):
                endpoint.settimeout(None)
                endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                control, self.control_taken = not self.control_taken, True
            for ends in ((near, far, "source"), (far, near, "destination")):
                self.spawn(self.messages if control else self.stream, *ends)

    def wait_while_silent(self):
        while self.silent.is_set() and not self.stopping.is_set():
            time.sleep(0.02)

    def stream(self, near, far, _):
        with contextlib.suppress(OSError):
            while data := near.recv(1 << 18):
                self.wait_while_silent()
                far.sendall(data)
        self.wait_while_silent()
        close(near, far)

    def messages(self, near, far, direction):
        counts = {}
        with contextlib.suppress(OSError):
            while header := receive(near, HEADER.size):
                magic, kind, _, size, _ = HEADER.unpack(header)
                if magic != MAGIC:
                    break
                body = receive(near, size) if size else b""
                name = NAMES.get(kind, str(kind))
                counts[name] = counts.get(name, 0) + 1
                self.wait_while_silent()
                if not self.forward(near, far, (direction, name, counts[name]), header + self.rewritten(name, body)):
                    return
        self.wait_while_silent()
        close(near, far)

    def rewritten(self, name, body):
        """Ports that the message names are replaced by ports of ours."""
        body = bytearray(body)
        for offset in PORTS.get(name, ()):
            (port,) = struct.unpack_from("<H", body, offset)
            struct.pack_into("<H", body, offset, self.listen(port) if port else 0)
        return bytes(body)

    def forward(self, near, far, message, data):
        """Sends the message on, and does what it triggers; False when the connection is gone."""
        if message[1] not in HEARTBEATS:
            with self.lock:
                self.seen.append(message)
        if message != self.trigger:
            far.sendall(data)
            return True
        self.reached.set()
        if self.action == CUT_INSIDE:
            far.sendall(data[:max(1, len(data) // 2)])
        else:
            far.sendall(data)
        if self.action in (CUT, CUT_INSIDE):
            close(near, far)
            return False
        if self.action == DELAY:
            time.sleep(DELAY_SECONDS)
        elif self.action == BLACK_HOLE:
            self.silent.set()
        return True

    def heal(self):
        """A silent link speaks again."""
        self.silent.clear()

    def close(self):
        self.stopping.set()
        with self.lock:
            close(*self.sockets)


def receive(endpoint, size):
    data = b""
    while len(data) < size:
        part = endpoint.recv(size - len(data))
        if not part:
            return b""
        data += part
    return data


def close(*endpoints):
    for endpoint in endpoints:
        with contextlib.suppress(OSError):
            endpoint.shutdown(socket.SHUT_RDWR)
        endpoint.close()
