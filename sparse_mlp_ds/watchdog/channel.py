"""Records over a socket, one line of JSON each."""

import contextlib
import json
import select
import socket
from typing import Any

SEND_SECONDS = 2.0
"""Longest time that sending a record may block."""


class Channel:
    """A socket that sends records and returns those that have arrived."""

    def __init__(self, connection: socket.socket):
        """connection: a connected stream socket, whose timeout is set here."""
        self.socket = connection
        connection.settimeout(SEND_SECONDS)
        self._incomplete = b""

    def send(self, **record: Any) -> None:
        """Send a record of JSON values; it is lost if the other end is closed."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(record).encode() + b"\n")

    def receive(self, seconds: float | None = 0.0) -> list[dict[str, Any]] | None:
        """Return the records that have arrived, or None if the connection has ended.

        seconds: longest time to wait for the first one; None waits without limit.
        """
        try:
            if not select.select([self.socket], [], [], seconds)[0]:
                return []
            received = self.socket.recv(1 << 16)
        except (OSError, ValueError):  # ValueError: the socket was closed on this side
            return None
        if not received:
            return None
        *complete, self._incomplete = (self._incomplete + received).split(b"\n")
        return [json.loads(line) for line in complete]
