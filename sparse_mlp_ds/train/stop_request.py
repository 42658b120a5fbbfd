"""Stopping on request: one rank receives the request, all ranks agree, and the run saves itself in mid-epoch."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as torch_dist

from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.log.console import say

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
FILE = "stop"
AGAIN_SECONDS = 5.0
"""A second signal ends the process at once; one that comes sooner is the same request on another way: Slurm and a
terminal's Ctrl-C signal every process of a job, and the launcher among them passes it on."""
LOOK_SECONDS = 1.0


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Give the signals of a `StopRequest` back, at the end of the `with` block, to who had them before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Listens for SIGTERM, SIGUSR1, SIGHUP and SIGINT (Ctrl-C) to this process, on rank 0 also for a file `stop` in the
    run folder."""

    def __init__(self, folder: Path):
        """folder: of the run."""
        self.file = folder / FILE
        self._why: str | None = None
        self._since = 0.0
        self._looked = 0.0
        self._group = process_group.control_group()
        self._pending: tuple[torch.Tensor, torch_dist.Work] | None = None
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._on_signal)

    def agreed(self) -> bool:
        """Say whether the ranks stop now; every rank calls it once a step and gets the same answer.

        What a rank hears is known to all one step later: the question travels while the next step is computed.
        """
        mine = torch.tensor([self._asked()], dtype=torch.int32)
        if self._group is None:
            return bool(mine)
        stop = False
        if self._pending:
            answer, work = self._pending
            comm.wait(work)
            stop = bool(answer)
        self._pending = mine, torch_dist.all_reduce(mine, group=self._group, async_op=True)
        return stop

    def done(self) -> None:
        """Take the request back: the same command is to start the run again."""
        if process_group.rank() == 0:
            with contextlib.suppress(OSError):
                self.file.unlink()
        comm.barrier()  # a launcher that sees one rank exit may kill the others

    def _asked(self) -> bool:
        if self._why is None and process_group.rank() == 0 and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            if self.file.exists():
                self._why = str(self.file)
                say(f"{self.file}: asked to stop")
        return self._why is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._why is None:
            self._why, self._since = signal.Signals(number).name, now
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, f"rank {process_group.rank()}: {self._why}, stopping after this step\n".encode())
        elif now - self._since > AGAIN_SECONDS:
            os._exit(128 + number)
