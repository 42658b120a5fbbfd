"""The streams of an emulated GPU.

Whatever a stream is asked for is done at once, but copies to page-locked memory in a stream other than the default one:
these are done when something waits for them, as late as a GPU may do them. So they show what changed too early.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.gpu_emulated.counts import counts

copies_take = 0.0
"""Seconds that copies to the host take, unless the GPU's own work waits for them before."""


class Stream:
    """A stream; only copies to the host are done later than they are asked for."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.copies: list[Callable[[], Any]] = []
        self.awaited = threading.Event()

    def later(self, copy: Callable[[], Any]) -> None:
        """Ask for a copy to the host."""
        self.awaited.clear()
        self.copies.append(copy)

    def finish(self) -> None:
        """Do what was asked for."""
        while self.copies:
            self.copies.pop(0)()
        self.awaited.set()

    def wait_stream(self, stream: "Stream") -> None:
        stream.finish()

    def wait_event(self, event: "Event") -> None:
        event.stream.finish()

    def synchronize(self) -> None:
        counts.add("synchronisations")
        self.finish()


class Event:
    """An event, which happens when its stream has done all that it was asked for."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.stream = Stream()

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or present()

    def wait(self, stream: Stream | None = None) -> None:
        self.stream.finish()

    def synchronize(self) -> None:
        if threading.current_thread() is threading.main_thread():
            counts.add("synchronisations")
        else:  # nobody's step waits here
            self.stream.awaited.wait(copies_take)
        self.stream.finish()

    def query(self) -> bool:
        return not self.stream.copies

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


DEFAULT = Stream()
_stack = [DEFAULT]
"""The default stream, and those that were made the present one inside it."""


def present(device: Any = None) -> Stream:
    return _stack[-1]


@contextlib.contextmanager
def inside(stream: Stream | None) -> Iterator[None]:
    _stack.append(stream or _stack[-1])
    try:
        yield
    finally:
        _stack.pop()


def copy_to_host(copy: Callable[[], Any]) -> None:
    """Do a copy to page-locked memory, for which the host does not wait."""
    if present() is DEFAULT:
        copy()
    else:
        present().later(copy)
