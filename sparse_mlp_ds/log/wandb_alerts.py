"""Alerts at Weights & Biases: the process that follows a run sends its events, RUN/events.jsonl, as they come."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparse_mlp_ds.log.console import say

FINAL = {"failed": "ERROR", "stalled": "ERROR", "stopped": "INFO", "ended": "INFO"}
"""Events after which nothing follows, and the level of their alerts; all other events are warnings."""
FINAL_SECONDS = 6.0
"""Time to wait for the last event of a run whose processes are gone: the watchdog writes it when it knows the cause."""


class Alerts:
    """Sends each event once."""

    def __init__(self, folder: Path, run: Any):
        """Begin behind the events of earlier starts. folder: of the run. run: wandb's, to which alerts are sent."""
        self._path, self._run = folder / "events.jsonl", run
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._is_over = False

    def send(self) -> None:
        """Send the events that have come since the last call."""
        with suppress(OSError), self._path.open("rb") as file:
            file.seek(self._offset)
            *lines, rest = file.read().split(b"\n")
            self._offset = file.tell() - len(rest)
            for line in lines:
                self._send(line)

    def send_last(self) -> None:
        """Send what is left, after a wait for the event that ends the run."""
        deadline = time.monotonic() + FINAL_SECONDS
        self.send()
        while not self._is_over and time.monotonic() < deadline:
            time.sleep(0.2)
            self.send()

    def _send(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            event, message = record["event"], record["message"]
            level = FINAL.get(event, "WARN")
            self._is_over = self._is_over or event in FINAL
            self._run.alert(title=f"{self._run.name}: {event}", text=message[:2000], level=level)
        except Exception as error:  # whatever wandb makes of it
            say(f"an alert was not sent ({type(error).__name__}: {error}): {line[:200]!r}")
