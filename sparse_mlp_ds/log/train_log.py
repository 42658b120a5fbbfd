"""RUN/train.log: what rank 0 prints, continued at every start of the run."""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_mlp_ds.log.append_file import AppendFile

NAME = "train.log"
"""Name of the file in a run folder. A sweep sends all output of a run there, and then nothing is copied."""
EARLY_LINES = 10_000
"""Lines that are kept until the run folder is known; further ones are not copied."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and moves of a terminal's cursor (ECMA-48, CSI)


class TrainLog:
    """Takes copies of what a process prints, and appends them to a file as soon as that is known."""

    def __init__(self, warn: Callable[[str], None]):
        """Begin to keep lines in memory. warn: takes a line when the file cannot be written, see `AppendFile`."""
        self.path: Path | None = None
        """The file, once it is open."""
        self._warn = warn
        self._process, self._lock = os.getpid(), threading.RLock()
        self._early: list[tuple[int, str]] = []
        self._incomplete: dict[int, str] = {}  # the beginning of a line, by descriptor
        self._same: set[int] = set()  # descriptors that lead to the file anyway
        self._file: AppendFile | None = None
        self._is_closed = False

    def take(self, descriptor: int, text: str) -> None:
        """Take a copy of text that was printed. descriptor: the file descriptor to which it was printed."""
        if self._is_closed or os.getpid() != self._process:  # a process forked from this one
            return
        with self._lock:
            *lines, self._incomplete[descriptor] = (self._incomplete.get(descriptor, "") + text).split("\n")
            for line in lines:
                if self._file:
                    self._append(descriptor, line)
                elif len(self._early) < EARLY_LINES:
                    self._early.append((descriptor, line))

    def open(self, path: Path) -> None:
        """Append to a file: a line that says when and where the process started, what it has printed, and what it will.

        A stream whose output goes to this very file already, as in a sweep, is not copied.
        """
        with self._lock:
            self._same = {number for number in (1, 2) if _leads_to(number, path)}
            self.path = path
            file = AppendFile(path, self._warn)
            if not self._same:
                now = time.strftime("%Y-%m-%d %H:%M:%S %z")
                file.append(f"--- started {now}, process {self._process} on {socket.gethostname()} ---\n".encode())
            self._file = file
            for descriptor, line in self._early:
                self._append(descriptor, line)
            self._early.clear()

    def holds(self, descriptor: int) -> bool:
        """Return whether the file gets what is printed to a descriptor without a copy."""
        return descriptor in self._same

    def close(self) -> None:
        """Write what is left and close the file; what is printed from now on is not copied."""
        with self._lock:
            for descriptor, rest in self._incomplete.items():
                if rest and self._file:
                    self._append(descriptor, rest)
            self._is_closed = True
            if self._file:
                self._file.close()

    def _append(self, descriptor: int, line: str) -> None:
        if self._file and descriptor not in self._same:
            self._file.append((_ESCAPES.sub("", line) + "\n").encode(errors="backslashreplace"))


class Uncopied:
    """A stream in front of another one, of whose output no copy is taken: for what is drawn, as a progress bar."""

    def __init__(self, stream: Any):
        """stream: a text stream, such as `output.Output`."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write to the stream without a copy."""
        return int(getattr(self._stream, "write_uncopied", self._stream.write)(text))


class _Copied:
    """A stream in front of another one that takes a copy of what is written."""

    def __init__(self, stream: Any, descriptor: int, take: Callable[[int, str], None]):
        self._stream, self._descriptor, self._take = stream, descriptor, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._take(self._descriptor, text)
        return int(self._stream.write(text))


def copy_beside_a_bar() -> None:
    """Take copies of what is printed beside a progress bar.

    Its library puts streams of its own in place of standard output and error, which draw the text above the bar, and
    brings back the earlier ones when the bar ends.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if take := getattr(stream, "copy", None):
            setattr(sys, name, _Copied(stream, stream.fileno(), take))


def _leads_to(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
