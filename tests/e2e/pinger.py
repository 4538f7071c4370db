"""Pings an address every so often and writes a line for each answer: its number and when it came, by the kernel's stamp
(CLOCK_REALTIME, ns):  pinger.py ADDRESS INTERVAL_MS FILE. Run by qemu_world.Pinger, until it is killed."""

import contextlib
import select
import socket
import struct
import sys
import time

SO_TIMESTAMPNS = 35
ECHO_REQUEST, ECHO_REPLY, IDENTITY = 8, 0, 0x7764


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def request(number):
    body = struct.pack("!HHI", IDENTITY, number & 0xFFFF, number)
    return struct.pack("!BBH", ECHO_REQUEST, 0, checksum(struct.pack("!BBH", ECHO_REQUEST, 0, 0) + body)) + body


def take_answer(connection, out):
    packet, extra, _, _ = connection.recvmsg(2048, 256)
    kind, _, _, identity, _, number = struct.unpack_from("!BBHHHI", packet, (packet[0] & 15) * 4)
    if kind == ECHO_REPLY and identity == IDENTITY:
        for level, what, data in extra:
            if level == socket.SOL_SOCKET and what == SO_TIMESTAMPNS:
                seconds, ns = struct.unpack_from("qq", data)
                out.write(f"{number} {seconds * 1000000000 + ns}\n")


def main(address, interval, path):
    connection = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    number, due = 0, time.monotonic()
    with open(path, "w", buffering=1) as out:
        while True:
            left = due - time.monotonic()
            if left > 0:
                if select.select([connection], [], [], left)[0]:
                    take_answer(connection, out)
                continue
            number, due = number + 1, due + interval
            with contextlib.suppress(OSError):  # such as an unreachable host: there is no answer then
                connection.sendto(request(number), (address, 0))


main(sys.argv[1], float(sys.argv[2]) / 1e3, sys.argv[3])
