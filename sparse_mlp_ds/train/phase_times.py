"""How long a stage spends in each part of its steps: data, forward, backward, update, saving."""

import time
from collections import deque
from typing import Any

import torch

from sparse_mlp_ds.watchdog.client import Watch
from sparse_mlp_ds.watchdog.diagnosis import Phase


class PhaseTimes:
    """Tells the watchdog which phase begins, and adds up how long each phase takes on this rank.

    On a CPU the clock is the host's. A GPU works behind its host, which hands in a whole step before the device has
    done it; there the clock is the device's own, by marks (CUDA events) in its stream of work. Marks are read when the
    device has passed them, so nothing waits for it. The time a device has nothing to do counts for the phase that the
    host is in, so that waiting for data appears as data.
    """

    def __init__(self, watch: Watch, seconds: dict[str, float], device: torch.device):
        """Begin with no phase.

        Args:
            watch: The watchdog of this rank.
            seconds: Phase -> seconds spent in it so far; is changed.
            device: The device that computes.
        """
        self._watch, self._seconds = watch, seconds
        self._cuda = device.type == "cuda"
        self._marks: deque[tuple[Phase, Any]] = deque()  # a phase, and when it began

    def at(self, phase: Phase, step: int | None = None) -> None:
        """Begin a phase and tell the watchdog. step: in the run; None means the same as before."""
        self._watch.at(phase, step=step)
        self.count(phase)

    def count(self, phase: Phase) -> None:
        """Begin a phase for the count alone: for the watchdog, a different one goes on."""
        self._marks.append((phase, self._now()))
        while len(self._marks) > 1 and (not self._cuda or self._marks[1][1].query()):
            before, began = self._marks.popleft()
            ended = self._marks[0][1]
            seconds = began.elapsed_time(ended) / 1000 if self._cuda else ended - began
            self._seconds[before] = self._seconds.get(before, 0.0) + seconds

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark
