"""How many loader processes a rank has, what their host must offer them, and which of them is stuck."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from sparse_mlp_ds.distributed import host
from sparse_mlp_ds.distributed.processes import with_number
from sparse_mlp_ds.errors import RunError, UserError

LONGEST_TMPDIR = 72
"""Characters that the folder of temporary files may have, so that sockets inside it can be opened."""
AHEAD = 2
"""Number of batches that each loader process prepares ahead of time."""
SHORTEST_LIMIT = 12.0
"""Least number of seconds after which a loader process counts as stuck: torch lets an idle one look for its parent only
every 5 seconds."""
MAX_PROCESSES = 16
"""Largest number of loader processes of a rank if the recipe names no number."""


def processes(workers: int | None, ranks: int) -> int:
    """Return the number of loader processes of each rank.

    By default they are the rank's share of the host's cores minus one, which feeds the device. More than MAX_PROCESSES
    do not help: one core decodes about 200 images of ImageNet's size per second, and a GPU trains on about 3,000.

    Args:
        workers: The number that the recipe names; None if it names none.
        ranks: Number of ranks on this host.
    """
    return min(max(host.cores() // ranks - 1, 1), MAX_PROCESSES) if workers is None else workers


def check_socket_paths() -> None:
    """Raise UserError if loader processes could not hand over batches because the path of temporary files is too long.

    They do it through sockets DIRECTORY/pymp-XXXXXXXX/listener-XXXXXXXX, whose path may have 107 bytes; with a longer
    one they would never answer.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_TMPDIR:
        raise UserError(
            f"TMPDIR: {folder} is longer than {LONGEST_TMPDIR} characters, so loader processes could not hand over "
            "batches; set TMPDIR to a shorter path such as /tmp, or data.workers to 0"
        )


def check_shared_memory(workers: int, ranks: int, batch_bytes: int, folder: Path = Path("/dev/shm")) -> None:
    """Raise UserError if /dev/shm cannot hold the batches that the loader processes of one host prepare ahead.

    Args:
        workers: Loader processes per rank.
        ranks: Number of ranks on this host.
        batch_bytes: Size of one micro-batch.
        folder: Where shared memory is.
    """
    if not workers or not folder.is_dir():
        return
    needed, free = ranks * (workers * AHEAD + 1) * batch_bytes, shutil.disk_usage(folder).free
    if needed > free:
        room = -(-2 * needed // 2**30)
        raise UserError(
            f"{folder}: {free / 2**20:.0f} MiB are free, the loaders of {ranks} ranks prepare {needed / 2**20:.0f} "
            f"MiB; start the container with --shm-size={room}g, or lower data.workers"
        )


class Watch:
    """Notices a loader process that is stuck: stopped, or inside a call that does not return.

    Even one that has nothing to do is scheduled from time to time, to look for its parent.
    """

    def __init__(self, pids: Iterable[int], limit: float):
        """Begin to watch.

        Args:
            pids: the processes, in the loader's order.
            limit: seconds without being scheduled after which one counts as stuck, but at least SHORTEST_LIMIT.
        """
        self._limit = max(limit, SHORTEST_LIMIT)
        self._processes = {n: process for n, pid in enumerate(pids) if (process := with_number(pid))}
        self._seen: dict[int, tuple[Any, float]] = {}

    def look(self) -> None:
        """Look at all processes; to be called while a batch is waited for. Raises RunError naming one that is stuck."""
        for number, process in self._processes.items():
            try:
                state, status = (process.num_ctx_switches(), process.cpu_times()[:2]), process.status()
            except psutil.Error:  # it has died, which torch reports
                continue
            now = time.monotonic()
            before, since = self._seen.get(number, (None, now))
            if before != state:
                self._seen[number] = state, now
            elif now - since > self._limit:
                stopped = " (it is stopped)" if status == psutil.STATUS_STOPPED else ""
                raise RunError(
                    f"loader process {number} of {len(self._processes)} (process {process.pid}) has not moved for "
                    f"{now - since:.0f} s{stopped}; start again with the same command, or set data.workers to 0"
                )
