"""How many runs of a sweep go at the same time on this machine, and which cores and GPUs each of them gets."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from sparse_mlp_ds.distributed import host, threads
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.sweep.plan import Sweep


@dataclass(frozen=True)
class Jobs:
    """The places for runs on this machine; a run that starts takes one."""

    number: int
    """Runs at the same time."""
    ranks: int
    """Processes of each run."""
    threads: int | None = None
    """Threads of each process, where this program chooses them; None leaves that to the run."""
    reason: str = ""
    """How the number was chosen, as a line for the user; empty if it was given."""

    def cores(self, slot: int) -> Callable[[], None] | None:
        """Return a function that binds the calling process to the slot's share of the cores.

        None where runs do not share the machine or the system cannot bind processes. slot: number of the place.
        """
        if self.number == 1 or not hasattr(os, "sched_setaffinity"):
            return None
        cores = sorted(host.core_numbers())
        share = cores[slot :: self.number] or cores
        return lambda: os.sched_setaffinity(0, share)

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment variables that give the slot's run its own GPUs and its number of threads.

        Raises UserError if there are not enough GPUs. slot: number of the place.
        """
        gpus = visible_gpus()
        if gpus and self.number > 1:
            share = gpus[slot * self.ranks : (slot + 1) * self.ranks]
            if len(share) < self.ranks:
                raise UserError(
                    f"jobs {self.number} x ranks {self.ranks} exceed the {len(gpus)} GPUs; lower jobs, or give auto"
                )
            return {"CUDA_VISIBLE_DEVICES": ",".join(share)}
        if self.threads is not None and "OMP_NUM_THREADS" not in os.environ:
            return {"OMP_NUM_THREADS": str(self.threads)}
        return {}


def choose(sweep: Sweep, runs: int) -> Jobs:
    """Return the places for a sweep's runs: `jobs` of them, or as many as fill this machine.

    `auto` gives each process of a run one GPU; without GPUs, one core and one thread: runs side by side never wait for
    one another, as the threads of one run do. If there are fewer runs than cores, the runs share all of them.

    runs: number of runs that are to be executed.
    """
    if sweep.jobs != "auto":
        return Jobs(sweep.jobs, sweep.ranks)
    gpus, cores = len(visible_gpus()), max(int(min(host.cores(), threads.quota())), 1)
    units, what = (gpus, "GPU") if gpus else (cores, "core")
    number = max(min(units // sweep.ranks, runs), 1)
    own = None if gpus else max(cores // (number * sweep.ranks), 1)
    each = f"{own} thread{'s' * (own > 1)}" if own else "one GPU"
    reason = (
        f"jobs: auto is {number}: {units} {what}{'s' * (units > 1)}, {runs} run{'s' * (runs != 1)} to do, "
        f"{sweep.ranks} process{'es' * (sweep.ranks > 1)} of {each} for a run"
    )
    return Jobs(number, sweep.ranks, own, reason)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none on a host without GPUs."""
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
