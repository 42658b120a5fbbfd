"""Spikes of the loss: steps whose loss is far above the median of the steps before them.

What is found depends on the losses alone, not on when somebody looks; so a run that was killed and started again finds
the same spikes. What is done about them is in `going_back`.
"""

import math
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from sparse_mlp_ds.config.recipe import LossSpike
from sparse_mlp_ds.distributed import comm
from sparse_mlp_ds.train.progress import Progress


@dataclass(frozen=True)
class Spike:
    """A step whose loss is far above that of the steps before it."""

    step: int
    """Steps of the stage taken with it: the first step is 1."""
    loss: float
    """Its loss, which may be no number."""
    median: float
    """Median loss of the steps before it."""


class LossSpikes:
    """Looks for spikes in one stage. Losses stay on the device until a log step."""

    def __init__(self, settings: LossSpike | None, progress: Progress):
        """Go on with the losses in `progress`, if they reach up to its step.

        settings: the recipe's; None does not look. progress: of the run; gets the losses of the last steps.
        """
        self.settings = settings
        self._progress = progress
        self._sums: list[
            list[Tensor]
        ] = []  # of each step that was not read yet: [images x loss, images] by micro-batch
        if settings is None:
            progress.losses = {}
        elif progress.losses.get("step") != progress.stage_step:
            progress.losses = {"step": progress.stage_step, "values": [], "unjudged": 0}

    def begin_step(self) -> None:
        """Begin an optimizer step."""
        if self.settings:
            self._sums.append([])

    def add(self, loss: Tensor, images: int) -> None:
        """Take the loss of one micro-batch of the step. loss: a scalar. images: of this rank."""
        if self.settings:
            sums = torch.stack([images * loss.detach().float(), torch.full_like(loss, images, dtype=torch.float32)])
            self._sums[-1].append(sums)

    def read(self) -> None:
        """Take the losses of the last steps, over all ranks, into the progress of the run. Collective."""
        if not self._sums:
            return
        sums = comm.all_reduce(torch.stack([torch.stack(step).sum(dim=0) for step in self._sums])).tolist()  # [N, 2]
        kept = self._progress.losses
        values = [loss / images for loss, images in sums]
        kept["values"] += [value if math.isfinite(value) else None for value in values]  # JSON has no other numbers
        kept["step"] += len(values)
        kept["unjudged"] += len(values)
        self._sums.clear()

    def find(self) -> list[Spike]:
        """Return the spikes among the steps since the last call, the same on all ranks. Collective."""
        if self.settings is None:
            return []
        self.read()
        kept, window = self._progress.losses, self.settings.window
        values: list[float | None] = kept["values"]
        spikes = []
        for place in range(len(values) - kept["unjudged"], len(values)):
            usual = [value for value in values[max(place - window, 0) : place] if value is not None]
            if place < window or not usual:
                continue
            middle, loss = median(usual), values[place]
            if loss is None or loss > middle + (self.settings.factor - 1) * abs(middle):
                spikes.append(Spike(kept["step"] - len(values) + place + 1, math.nan if loss is None else loss, middle))
        kept["values"], kept["unjudged"] = values[-window:], 0
        return spikes
