"""What a rank without a GPU asks of its host: its share of the cores, and memory that it may keep between steps."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGEST = 256 << 20
"""Bytes of a tensor that is kept."""


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
