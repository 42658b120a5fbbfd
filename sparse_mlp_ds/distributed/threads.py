"""How many threads a rank computes with: with more than there are cores for, small models train much slower."""

import contextlib
import json
import math
import os
import socket
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import torch
from torch.distributed.distributed_c10d import Store

from sparse_mlp_ds.distributed import host

PATIENCE = timedelta(seconds=10)
"""Time in which all ranks of a host must have said which cores they may use; they have all joined before."""


def share(store: Store, local_rank: int, ranks: int) -> None:
    """Let torch compute with this rank's share of the host's cores, unless the user has set OMP_NUM_THREADS.

    Args:
        store: where the run's ranks meet.
        local_rank: number of this rank on its host.
        ranks: how many of the ranks are on this host, as the launcher says.
    """
    # torchrun sets 1 of its own accord, where it starts several ranks and the user has set nothing.
    own = "1" if "TORCHELASTIC_RUN_ID" in os.environ and ranks > 1 else None
    if os.environ.get("OMP_NUM_THREADS") != own:
        return
    mine, place = sorted(host.core_numbers()), f"cores/{socket.gethostname()}"
    of_all = [mine] * ranks
    if ranks > 1:
        store.set(f"{place}/{local_rank}", json.dumps(mine))
        names = [f"{place}/{number}" for number in range(ranks)]
        with contextlib.suppress(RuntimeError):  # fewer are here than the launcher says: each gets what it would have
            store.wait(names, PATIENCE)
            of_all = [json.loads(store.get(name)) for name in names]
    torch.set_num_threads(number(mine, of_all, quota()))


def number(mine: Collection[int], of_all: Sequence[Collection[int]], allowed: float = math.inf) -> int:
    """Return the number of threads of one rank, so that all ranks of its host fill the cores that they may use.

    Args:
        mine: numbers of the cores that this rank may use.
        of_all: the same for each rank of the host, this one included. The launcher may have bound every rank to cores
            of its own (`srun --cpu-bind`, `mpirun --bind-to`), or none.
        allowed: how many cores' time all of them together may use.
    """
    ranks_on = Counter(core for cores in of_all for core in cores)
    cores = sum(Fraction(1, ranks_on[core]) for core in mine)
    return max(1, int(min(cores, allowed / len(of_all))))


def quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many cores' time this container may use; infinity if there is no limit. root: of control groups."""
    with contextlib.suppress(OSError, ValueError):  # version 2: "max 100000", or "200000 100000" for two cores
        limit, of = (root / "cpu.max").read_text(encoding="utf-8").split()
        return int(limit) / int(of)
    with contextlib.suppress(OSError, ValueError):  # version 1, where -1 is no limit
        parts = (root / "cpu" / f"cpu.cfs_{part}_us" for part in ("quota", "period"))
        allowed, period = (int(path.read_text(encoding="utf-8")) for path in parts)
        return allowed / period if allowed > 0 else math.inf
    return math.inf
