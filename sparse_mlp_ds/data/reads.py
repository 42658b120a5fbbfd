"""Reads that never return, as those from a file server that is gone: they are noticed, named, and end the process.

A thread looks from time to time at the threads that read. One that the kernel has not scheduled once between the looks
has been inside a single system call all that time; a slow read that goes on is scheduled again and again.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparse_mlp_ds.errors import CRASH, print_error

LIMIT_SECONDS = 600.0
"""Seconds without any progress after which the data of a command or a run count as out of reach."""
READ_SHARE, LOADER_SHARE = 0.75, 0.9
"""Shares of the limit after which a read, and a loader process, are reported: each before those who wait for it."""
_LOOKS = 10  # how often a read is looked at until it is reported

_limit = LIMIT_SECONDS
_name = ""
_report: Callable[[str], None] | None = None
_reads: dict[int, str] = {}  # what each thread of this process reads, by the thread's number
_watched_process = 0  # process in which the thread that looks was started; a forked process does not have it


def limit() -> float:
    """Return the limit of this process in seconds, see LIMIT_SECONDS."""
    return _limit


def set_limit(seconds: float, name: str = "", report: Callable[[str], None] | None = None) -> None:
    """Set the limit of this process.

    Args:
        seconds: see LIMIT_SECONDS.
        name: what messages call this process; empty for the only one of a command.
        report: takes the line that names a read that does not return, before this process ends; None prints it.
    """
    global _limit, _name, _report
    _limit, _name, _report = seconds, name, report


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Say that this thread reads during the `with` block, so that a read that never returns ends the process.

    what: the file or folder, for the message.
    """
    global _watched_process
    if _watched_process != os.getpid():
        _watched_process = os.getpid()
        _reads.clear()  # of the process that forked this one
        threading.Thread(target=_look_for_ever, daemon=True).start()
    thread = threading.get_native_id()
    outer = _reads.get(thread)
    _reads[thread] = what
    try:
        yield
    finally:
        if outer is None:
            del _reads[thread]
        else:
            _reads[thread] = outer


def _look_for_ever() -> None:
    """Look at the threads that read, and end this process if one of them is stuck."""
    seen: dict[int, tuple[str, str]] = {}  # what a thread reads, and how often it was scheduled
    since: dict[int, float] = {}
    while True:
        time.sleep(_limit * READ_SHARE / _LOOKS)
        for thread, what in list(_reads.items()):
            state, now = (what, _scheduled(thread)), time.monotonic()
            if not state[1] or seen.get(thread) != state:
                seen[thread], since[thread] = state, now
            elif now - since[thread] > _limit * READ_SHARE:
                _end(f"{what}: a read has not returned for {now - since[thread]:.0f} s; is its file server gone?")


def _end(text: str) -> None:
    text = f"{_name}: {text}" if _name else text
    if _report:
        _report(text)
    else:
        print_error(f"error: {text}")
    os._exit(CRASH)


def _scheduled(thread: int) -> str:
    """Return how often the kernel has scheduled a thread of this process, as text; empty where it does not say."""
    with suppress(OSError):  # the thread has ended, or there is no /proc
        lines = Path(f"/proc/self/task/{thread}/status").read_text(encoding="utf-8").splitlines()
        return " ".join(line for line in lines if "ctxt_switches" in line)
    return ""
