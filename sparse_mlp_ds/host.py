"""What a rank without a GPU asks of its host: its share of the cores, and memory that it may keep between steps."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGEST = 256 << 20
"""Bytes of a tensor that is kept."""
GROWTH, SLACK = 1.5, 256 << 20
"""A process may become so much larger than it was, and so many bytes, before it gives back what is free."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(ranks: int) -> None:
    """Take this rank's share of the cores: with more threads than cores, small models train several times slower."""
    import torch

    torch.set_num_threads(max(1, cores() // ranks))


def keep_freed_memory() -> None:
    """Let malloc keep what is freed for the next tensor of that size.

    Left alone, glibc returns every large tensor to the kernel, which hands the next one out page by page: a training
    step of Sparse-B spends a fifth of its time on that. The process stays as large as it was at its largest.
    Only tensors up to `LARGEST`: ZeRO makes a bucket of 1 GB in every step and uses its beginning; if such a one came
    from the heap, small tensors would settle in it and the next step would need another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(option, LARGEST)


class KeptMemory:
    """Bounds what malloc keeps: experts have other numbers of rows in every step, so the holes between them add up.

    MoCo v3 of a small Sparse-MLP grew by 10 MB a step, of which nothing was in use.
    """

    def __init__(self):
        """What is there now is taken as what is needed."""
        self._at_first = _resident()

    def look(self) -> bool:
        """Give what is free back to the kernel if the process has outgrown its beginning; returns whether it did."""
        if _resident() < GROWTH * self._at_first + SLACK:
            return False
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return False
        return True


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss
