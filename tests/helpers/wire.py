"""A slow wire between the lab's hosts: takes them off their bridge and passes every frame on, a fixed time late.

The kernel's own way, `tc ... netem delay`, is a module that small kernels are built without; this needs none. It runs
where the bridge is (`python wire.py node1=MILLISECONDS node2=MILLISECONDS ...`), says `ready`, and puts the hosts back
on the bridge when its standard input closes. A frame waits once, for as long as the host that sends it has to wait.
"""

import contextlib
import heapq
import os
import select
import socket
import subprocess
import sys
import time

_PACKET, _VNET_HEADER, _IGNORE_OUTGOING = 263, 15, 23  # of linux/if_packet.h
_RECEIVE_BUFFER_FORCE = 33
_EVERY_PROTOCOL = 3
# Hosts hand over up to 64 KB at once and leave it to the network card to cut that into frames and to sum them up.
# A header before each frame says so; it is passed on as it came.
_HEADER = 10
_LARGEST = 1 << 17


def main() -> None:
    """Pass frames on until standard input closes."""
    delays = {name: float(ms) / 1000 for name, ms in (argument.split("=") for argument in sys.argv[1:])}
    with contextlib.suppress(PermissionError):
        os.nice(-10)  # a wire does not wait until ranks leave it a core
    for name in delays:
        # The lab has an address of its own, and would answer for it on every interface.
        subprocess.run(["ip", "link", "set", name, "nomaster", "arp", "off"], check=True)
    ports = {_port(name): delay for name, delay in delays.items()}
    print("ready", flush=True)
    _pass_on(ports)
    for name in delays:
        subprocess.run(["ip", "link", "set", name, "master", "lab", "arp", "on"], check=True)


def _port(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(_PACKET, _VNET_HEADER, 1)
    port.setsockopt(_PACKET, _IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, 64 << 20)
    port.bind((name, _EVERY_PROTOCOL))
    port.setblocking(False)
    return port


def _pass_on(ports: dict[socket.socket, float]) -> None:
    """Pass frames on. ports: of the hosts, each with the seconds that its frames wait."""
    where: dict[bytes, socket.socket] = {}  # address -> the port behind which it was seen
    waiting: list[tuple[float, int, socket.socket, bytes]] = []  # a heap; the number keeps frames in order
    number = 0
    while True:
        rest = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
        for port in select.select([sys.stdin, *ports], [], [], rest)[0]:
            if port is sys.stdin:
                return
            while frame := _read(port):
                where[frame[_HEADER + 6 : _HEADER + 12]] = port
                number += 1
                heapq.heappush(waiting, (time.monotonic() + ports[port], number, port, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, source, frame = heapq.heappop(waiting)
            target = where.get(frame[_HEADER : _HEADER + 6])
            for port in [target] if target else [port for port in ports if port is not source]:
                _send(port, frame)


def _read(port: socket.socket) -> bytes:
    try:
        return port.recv(_LARGEST)
    except BlockingIOError:
        return b""


def _send(port: socket.socket, frame: bytes) -> None:
    try:
        port.send(frame)
    except OSError as error:  # TCP sends a lost frame again
        print(f"lost a frame of {len(frame)} bytes: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
