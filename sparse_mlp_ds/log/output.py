"""Standard output and standard error of a run: what nobody reads waits in memory, and never makes training wait.

A terminal that is stopped (Ctrl-S) or belongs to a connection that froze takes nothing, without an error; neither does
a pipe whose reader sleeps. A plain write to them would wait for as long.
"""

import contextlib
import errno
import io
import os
import select
import socket
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

WAITING_BYTES = 1 << 20
"""Bytes that wait for a reader or for room on the disk; when there are more, the oldest are given up and counted."""
END_SECONDS = 10.0
"""Longest time that the end of a run waits for a reader."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Output(io.TextIOBase):
    """A text stream in front of another one, to which it writes as far as that is possible at once. Raises nothing."""

    def __init__(self, stream: TextIO, copy: Callable[[int, str], object] | None = None):
        """stream: an open stream with a file descriptor. copy: also gets that descriptor and what is printed."""
        self.stream, self.copy = stream, copy
        self._descriptor = stream.fileno()
        self._write, self._close = _writer(self._descriptor)
        self._begin()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.RLock()
        self._waiting: deque[bytes] = deque()
        self._bytes = self._lost_lines = 0
        self._is_gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed: a plain attribute
        """Return the encoding of the stream; characters that it lacks are written as `\\uXXXX`."""
        return self.stream.encoding or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Return the stream's file descriptor."""
        return self._descriptor

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Take text; what cannot be written now is tried again with the next text."""
        if self.copy:
            self.copy(self._descriptor, text)
        return self.write_uncopied(text)

    def write_uncopied(self, text: str) -> int:
        """Take text as `write` does, without a copy."""
        if self._process != os.getpid():  # a forked process has its own text, and no thread that could hold the lock
            self._begin()
        with self._lock:
            if not self._is_gone:
                self._waiting.append(text.encode(self.encoding, errors="backslashreplace"))
                self._bytes += len(self._waiting[-1])
                self._attempt()
            while self._bytes > WAITING_BYTES:
                given_up = self._waiting.popleft()
                self._bytes -= len(given_up)
                self._lost_lines += given_up.count(b"\n")
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` has written what could be written."""

    def finish(self, seconds: float) -> None:
        """Write what waits, for which a reader may take some time. seconds: the longest."""
        with self._lock:
            self._attempt()
            while self._waiting and select.select([], [self._descriptor], [], seconds)[1]:
                before = self._bytes
                self._attempt()
                if self._bytes == before:  # a full disk, or a terminal that says it could be written
                    return

    def close_own(self) -> None:
        """Close what was opened for this object; the stream stays open."""
        self._close()

    def _attempt(self) -> None:
        while self._waiting:
            lost = f"[{self._lost_lines} lines are missing here: this output could not be written]\n"
            notice = lost.encode() if self._lost_lines else b""
            first = notice + self._waiting[0]
            try:
                written = self._write(first)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _FULL:  # the reader is gone for good
                    self._is_gone, self._bytes = True, 0
                    self._waiting.clear()
                return
            self._lost_lines = 0
            self._bytes += len(notice) - written
            if written < len(first):
                self._waiting[0] = first[written:]
            else:
                self._waiting.popleft()


def begin_output(copy: Callable[[int, str], object] | None = None) -> None:
    """Put an `Output` in front of standard output and standard error, where they are files, pipes or terminals.

    copy: see `Output`.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.fileno()
            stream.flush()
        except (AttributeError, OSError, ValueError):  # closed, or an object without a file
            continue
        if not isinstance(stream, Output):
            setattr(sys, name, Output(stream, copy))


def end_output() -> None:
    """Take back what `begin_output` did, after a last try to write what waits."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Output):
            stream.finish(END_SECONDS)
            stream.close_own()
            setattr(sys, name, stream.stream)


def _writer(descriptor: int) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    """Return a function like `os.write` that raises BlockingIOError instead of waiting, and one that ends its use.

    Other processes write to the same pipe or terminal, so its own mode is left alone: it is opened a second time.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        connection = socket.socket(fileno=os.dup(descriptor))
        return lambda data: connection.send(data, socket.MSG_DONTWAIT), connection.close
    if stat.S_ISFIFO(mode) or os.isatty(descriptor):
        with contextlib.suppress(OSError):  # no /proc, or a terminal of a different user
            again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            return lambda data: os.write(again, data), lambda: os.close(again)
    return lambda data: os.write(descriptor, data), lambda: None
