"""A file that grows by whole records and only tells: a disk that is full costs a warning, never the run."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

WAITING = 1000
"""Records that wait in memory for the disk; when there are more, the oldest are given up and counted."""


class AppendFile:
    """Appends records; those that cannot be written wait, in order, and are tried again with the next one."""

    def __init__(self, path: Path, warn: Callable[[str], None], waiting: int = WAITING):
        """Open the file to append to it, if it can be opened.

        Args:
            path: The file.
            warn: Takes a line when records begin to wait, and one when they are written or given up.
            waiting: Number of records that may wait.
        """
        self._path, self._warn, self._limit = path, warn, waiting
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._failing = False
        self._descriptor: int | None = None
        self._attempt()

    def append(self, record: bytes) -> None:
        """Add one record and hand all that wait to the operating system. Raises nothing if that fails."""
        self._waiting.append(record)
        self._attempt()
        while len(self._waiting) > self._limit:
            self._waiting.popleft()
            self._lost += 1

    def close(self) -> None:
        """Try once more to write what waits, say how many records are lost for good, and close the file."""
        self._attempt()
        if self._waiting or self._lost:
            self._warn(f"WARNING: {self._path}: {self._lost + len(self._waiting)} records were not written")
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _attempt(self) -> None:
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            while self._waiting:
                self._write(self._descriptor, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            was_failing, self._failing = self._failing, True  # before the warning, which may be appended here itself
            if not was_failing:
                text = f"{error.strerror}; training goes on, and records wait in memory (at most {self._limit})"
                self._warn(f"WARNING: {self._path}: {text}")
            return
        (was_failing, self._failing), (lost, self._lost) = (self._failing, False), (self._lost, 0)
        if was_failing:
            loss = f"{lost} records were lost in between" if lost else "no record was lost"
            self._warn(f"{self._path}: can be written again, {loss}")

    @staticmethod
    def _write(descriptor: int, record: bytes) -> None:
        """Write a record whole or not at all: of one that was cut off, nothing stays."""
        end = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            left = memoryview(record)
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            os.ftruncate(descriptor, end)
            raise
