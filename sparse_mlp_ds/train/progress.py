"""How far a run has come, as it is written into the manifest of each of its checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparse_mlp_ds.checkpoints.manifest import Checkpoint, is_count
from sparse_mlp_ds.distributed import comm
from sparse_mlp_ds.errors import UserError


@dataclass
class Progress:
    """How far a run has come."""

    stage: str | None = None
    """Name of the training stage that the newest checkpoint belongs to; None before the first stage."""
    stage_step: int = 0
    """Optimizer steps taken in that stage."""
    step: int = 0
    """Optimizer steps taken in the whole run."""
    skipped: int = 0
    """Steps of the stage that were skipped because gradients were not finite; the optimizer does not count them."""
    seconds: float = 0.0
    """Time spent in the stage so far."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds that rank 0 spent in each phase of the stage, see `phase_times`; empty for stages of version 0.1.0."""
    done: list[dict[str, Any]] = field(default_factory=list)
    """The entries that the finished stages have in summary.json."""
    measured: dict[str, float] = field(default_factory=dict)
    """What was measured before the stage's first step, by name."""

    data: str = ""
    """Digest of the training tars that the stage reads."""
    teacher: str = ""
    """Digest of the weights of the stage's teacher, if it has one."""
    negatives: int | None = None
    """Number of negatives of each query of a pretraining stage."""
    hands_over_average: bool = False
    """Whether the next stage starts from the `momentum/` tensors of the checkpoint instead of its `param/` tensors."""

    loss_scale: dict[str, float] = field(default_factory=dict)
    """State of the dynamic loss scale under fp16, by the name of its field; empty under every other precision."""
    expert_items: dict[str, list[int]] = field(default_factory=dict)
    """Items that chose each expert during the stage, up to the last record, by MoE layer."""
    losses: dict[str, Any] = field(default_factory=dict)
    """Losses of the stage's last steps, see `loss_spikes.LossSpikes`; empty if nobody looks for spikes."""
    passed_over: list[list[int]] = field(default_factory=list)
    """Stretches of data that the stage left out: [steps taken before, number of batches] of each."""
    best: dict[str, Any] = field(default_factory=dict)
    """The stage's best validation: figures by name, its `step` in the run, its `stage_step`, and `checkpoint`, the name
    of its checkpoint's folder, if it is kept; empty before the first validation."""
    without_gain: int = 0
    """Validations since the best one."""

    def begin(self, stage: str) -> None:
        """Start a training stage at its first step."""
        self.stage, self.stage_step, self.seconds, self.skipped, self.expert_items = stage, 0, 0.0, 0, {}
        self.losses, self.passed_over, self.phases = {}, [], {}
        self.best, self.without_gain = {}, 0

    def learn_from(self, teacher: str, resumes: bool) -> None:
        """Note the digest of the stage's teacher. Raises UserError if the stage resumes and had a different one."""
        if resumes and self.teacher != teacher:
            error = f"stage {self.stage}: the teacher's weights are not those that it began with; bring them back"
            raise comm.printed_by_rank_zero(UserError(f"{error}, or start over with --resume never"))
        self.teacher = teacher

    def reopen(self, stage: str) -> None:
        """Take a stage out of the finished ones, so that it goes on."""
        self.done = [entry for entry in self.done if entry["name"] != stage]

    def advance(self, seconds: float) -> None:
        """Count one optimizer step. seconds: spent in the stage so far."""
        self.stage_step, self.step, self.seconds = self.stage_step + 1, self.step + 1, seconds

    def count_items(self, items: dict[str, list[int]]) -> None:
        """Add the choices made since the last record. items: MoE layer -> items that chose each expert."""
        for layer, counts in items.items():
            before = self.expert_items.get(layer, [0] * len(counts))
            self.expert_items[layer] = [a + b for a, b in zip(before, counts, strict=True)]

    @classmethod
    def of(cls, found: Checkpoint) -> "Progress":
        """Return how far the run of a checkpoint had come. Raises UserError if its manifest does not say so."""
        try:
            progress = cls(**found.progress)
        except TypeError:
            progress = None
        counts = [] if progress is None else [progress.step, progress.stage_step, progress.without_gain]
        if progress is None or not (all(map(is_count, counts)) and progress.is_sound()):
            raise UserError(
                f"{found.path}: damaged, or of a different version: its progress cannot be read; use another checkpoint"
            )
        return progress

    def has_entries(self) -> bool:
        """Say whether `done` is a list of entries that each name a stage."""
        return isinstance(self.done, list) and all(isinstance(one, dict) and "name" in one for one in self.done)

    def data_step(self, step: int) -> int:
        """Return which batch of the data order a step of the stage gets: its own number, plus what was passed over."""
        return step + sum(batches for at, batches in self.passed_over if at <= step)

    def is_sound(self) -> bool:
        """Say whether what a manifest has as lists and mappings is what it should be."""
        phases = isinstance(self.phases, dict) and all(isinstance(one, float) for one in self.phases.values())
        return phases and self.has_entries() and self.has_best() and self.has_losses()

    def has_losses(self) -> bool:
        """Say whether `losses` and `passed_over` are what they should be."""
        stretches = isinstance(self.passed_over, list) and all(
            isinstance(one, list) and len(one) == 2 and all(map(is_count, one)) for one in self.passed_over
        )
        if not stretches or not isinstance(self.losses, dict):
            return False
        values = self.losses.get("values", [])
        numbers = isinstance(values, list) and all(one is None or isinstance(one, float) for one in values)
        counts = [self.losses.get(name, 0) for name in ("step", "unjudged")]
        return numbers and all(map(is_count, counts)) and counts[1] <= len(values)

    def compare(self, validation: dict[str, Any]) -> bool:
        """Count a validation of the stage, and return whether it is the best so far."""
        if self.best and not is_better(validation, self.best):
            self.without_gain += 1
            return False
        self.best, self.without_gain = validation, 0
        return True

    def has_best(self) -> bool:
        """Say whether `best` is empty or a validation with a step and what validations are compared by."""
        if self.best == {}:
            return True
        if not isinstance(self.best, dict) or not is_count(self.best.get("step")):
            return False
        value = self.best.get("perplexity")
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
        return number or any(is_share(self.best.get(name)) for name in ("top1", "f1"))

    def is_done(self, stage: str) -> bool:
        """Say whether the stage of that name is finished."""
        return any(entry["name"] == stage for entry in self.done)


def compared_by(validation: Mapping[str, Any]) -> str:
    """Return the name of the figure by which validations like this one are compared."""
    return next(name for name in ("perplexity", "f1", "top1") if name in validation)


def is_better(validation: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether a validation is better than another one: a higher top-1 or F1, or a lower perplexity."""
    name = compared_by(validation)
    value, before = validation[name], other[name]
    return value < before if name == "perplexity" else value > before


def is_share(value: Any) -> bool:
    """Return whether a value from JSON is a number from 0 to 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
