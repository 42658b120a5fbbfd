"""Records over a socket, one JSON line each."""

import contextlib
import json
import select
import socket
from typing import Any

SEND_SECONDS = 2.0


class Lines:
    """A socket that takes records, and gives those that have arrived."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        connection.settimeout(SEND_SECONDS)
        self._rest = b""

    def send(self, **record: Any) -> None:
        """Send a record; one that finds nobody is lost."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(record).encode() + b"\n")

    def receive(self, seconds: float | None = 0.0) -> list[dict[str, Any]] | None:
        """Return the records that arrive within some seconds (None: any), or None at the end of the connection."""
        try:
            if not select.select([self.socket], [], [], seconds)[0]:
                return []
            received = self.socket.recv(1 << 16)
        except (OSError, ValueError):  # ValueError: closed here
            return None
        if not received:
            return None
        *whole, self._rest = (self._rest + received).split(b"\n")
        return [json.loads(line) for line in whole]
