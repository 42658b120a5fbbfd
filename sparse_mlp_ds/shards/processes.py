"""The processes that read and write tars for `sparse-mlp-ds shards`: they end with it, and say so if a read hangs."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext

from sparse_mlp_ds.data import reads
from sparse_mlp_ds.distributed import host

DIED = (
    "died; if it gave no reason above, the kernel may have killed it for lack of memory: lower --workers; then give "
    "the same command again"
)
"""End of the message about a process that died."""


def pool(workers: int, context: BaseContext | None = None) -> ProcessPoolExecutor:
    """Return a pool of processes. workers: their number. context: how they are started; None for Python's default."""
    return ProcessPoolExecutor(max(workers, 1), mp_context=context, initializer=_begin, initargs=(reads.limit(),))


def _begin(limit: float) -> None:
    """Begin a process of a pool. limit: see `reads.limit`."""
    host.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the process that started it
    reads.set_limit(limit, name=f"process {os.getpid()}")
