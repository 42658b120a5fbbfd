"""How a process uses its host: its share of the cores, memory that it keeps from step to step, its end."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
from pathlib import Path

LARGEST_KEPT = 256 << 20
"""Bytes of the largest tensor whose memory is kept after use."""
GROWTH, SLACK = 1.5, 256 << 20
"""A process gives unused memory back once it is larger than GROWTH times its first size plus SLACK bytes."""
_PR_SET_PDEATHSIG = 1  # option of Linux's prctl
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # looked up once: a process between fork and exec may only call it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(core_numbers())


def core_numbers() -> set[int]:
    """Return the numbers of the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends, whatever either of them is doing."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it has ended before that
        os._exit(1)


def memory() -> int:
    """Return the bytes of memory of this host, or of the container that this process runs in if that has less."""
    import psutil

    total = psutil.virtual_memory().total
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # another system, or "max"
            total = min(total, int(Path(path).read_text(encoding="utf-8")))
    return total


def memory_kills() -> int | None:
    """Return how many processes of this host its kernel has killed for lack of memory; None if it does not say."""
    with contextlib.suppress(OSError, ValueError):  # a system without /proc
        for line in Path("/proc/vmstat").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None


def keep_freed_memory() -> None:
    """Let malloc keep the memory of freed tensors for the next tensors of that size.

    By default glibc returns every large tensor's memory to the kernel, which then hands out the next one page by page:
    a training step of Sparse-B spends a fifth of its time on that. The process stays as large as it was at its largest.
    This holds for tensors up to LARGEST_KEPT bytes: ZeRO makes a bucket of 1 GB in every step and fills only its
    beginning. If that came from malloc's heap, small tensors would be placed into it, and the next step would need one
    more bucket.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library other than glibc
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(option, LARGEST_KEPT)


class KeptMemory:
    """Limits the memory that malloc keeps unused.

    Experts get a different number of rows in every step, so the gaps between kept blocks add up: MoCo v3 of a small
    Sparse-MLP grew by 10 MB a step without using them.
    """

    def __init__(self) -> None:
        """Take the size that the process has now as its first size."""
        self._first_size = _resident()

    def look(self) -> bool:
        """Return whether the process has grown too large, after giving its unused memory back to the kernel."""
        if _resident() < GROWTH * self._first_size + SLACK:
            return False
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):  # a C library other than glibc
            return False
        return True


def _resident() -> int:
    """Return the bytes of memory that this process has in RAM."""
    import psutil

    return int(psutil.Process().memory_info().rss)
