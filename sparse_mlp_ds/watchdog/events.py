"""What happens to a run as a whole: RUN/events.jsonl has a line for it, and a command of the user's is told.

Rank 0 tells of spikes, stops and ends; the coordinator tells of failures, because rank 0 may be what has failed. The
file is written and the command is run by that one process, which imports neither torch nor DeepSpeed.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sparse_mlp_ds.errors import print_error

EventName = Literal["failed", "stalled", "stopped", "ended", "loss_spike"]
"""`failed`: a rank failed or was killed. `stalled`: there was no progress for too long. `stopped`: the run stopped on
request with a checkpoint, and the same command continues it. `ended`: all stages are done. `loss_spike`: see
`train.loss_spike`."""
NAME = "events.jsonl"
"""Name of the file in a run folder."""
LOG = "on_event.log"
"""Name of the file in a run folder that takes what the command prints."""
COMMAND_SECONDS = 8.0
"""Longest time that the command may take. It is less than a rank that exits with an error may take, see
`coordinator.LEAVE_SECONDS`."""


class Telling:
    """One call of the user's command, which runs beside this process."""

    def __init__(self, command: Sequence[str], folder: Path, record: dict[str, Any]):
        """Start the command, without a shell; if that fails, a warning is printed.

        Args:
            command: Program and arguments.
            folder: The run folder.
            record: The event, as it stands in events.jsonl.
        """
        self._name, self._started = command[0], time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        told = {"EVENT": record["event"], "MESSAGE": record["message"][:10_000], "RUN": str(folder)}
        with contextlib.ExitStack() as stack:
            try:
                text = stack.enter_context(tempfile.TemporaryFile())
                text.write(f"{folder}: {record['event']}: {record['message']}\n".encode(errors="replace"))
                text.seek(0)
                self._process = subprocess.Popen(
                    list(command), stdin=text, stdout=stack.enter_context(_log(folder)), stderr=subprocess.STDOUT,
                    env=os.environ | {f"SPARSE_MLP_DS_{name}": value for name, value in told.items()},
                    start_new_session=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:  # ValueError: a null byte
                print_error(f"WARNING: log.on_event: {self._name}: {getattr(error, 'strerror', None) or error}")

    def is_over(self) -> bool:
        """Return whether the command has ended, after killing it if its time is over; never waits."""
        if self._process is None:
            return True
        if self._process.poll() is None:
            if time.monotonic() - self._started < COMMAND_SECONDS:
                return False
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            print_error(f"WARNING: log.on_event: {self._name} took more than {COMMAND_SECONDS:.0f} s and was killed")
        elif self._process.returncode:
            print_error(f"WARNING: log.on_event: {self._name} ended with exit code {self._process.returncode}")
        self._process = None
        return True


class Events:
    """Records events of one run, and tells the user's command of them."""

    def __init__(self, folder: Path, command: Sequence[str]):
        """folder: of the run. command: the recipe's `log.on_event`, program and arguments; empty for none."""
        self.folder, self.command = folder.absolute(), list(command)
        self._tellings: list[Telling] = []

    def add(self, event: EventName, message: str, **details: Any) -> None:
        """Append an event to events.jsonl and start the command. Raises nothing, and waits for nothing.

        Args:
            event: What has happened.
            message: The same for a human reader.
            details: Further entries of the line, as JSON.
        """
        record = {"time": time.time(), "event": event, "message": message} | details
        with contextlib.suppress(OSError), (self.folder / NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.is_over()
        if self.command:
            self._tellings.append(Telling(self.command, self.folder, record))

    def is_over(self) -> bool:
        """Return whether no command is running any more; one whose time is over is killed."""
        self._tellings = [one for one in self._tellings if not one.is_over()]
        return not self._tellings

    def wait(self) -> None:
        """Wait until no command is running any more, at most COMMAND_SECONDS."""
        while not self.is_over():
            time.sleep(0.05)


def _log(folder: Path) -> Any:
    """Open the file for what the command prints, or the null device if it cannot be opened."""
    try:
        return (folder / LOG).open("ab")
    except OSError:
        return open(os.devnull, "ab")
