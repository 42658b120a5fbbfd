"""What the training loop asks of a stage's method, such as MoCo v3, supervised training, or masked modelling."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from sparse_mlp_ds.data.config import View
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.train.stage_results import AnyOutcome


class Method:
    """Base of the methods; each sets `module` and `views`, defines `losses`, and overrides what else it needs."""

    module: nn.Module
    """The network that the DeepSpeed engine trains."""
    companion: nn.Module | None = None
    """A network outside the engine that checkpoints hold beside it, under `momentum/`: MoCo's momentum encoder, the
    weight average (EMA) of supervised training, or the frozen backbone of a probe."""
    moves_companion_first = False
    """Whether `before_step` changes the companion; else only `after_step` may."""
    hands_over_companion = False
    """Whether the next stage starts from the companion's weights instead of the module's."""
    teacher_digest = ""
    """Digest of the weights of a teacher, which are not in checkpoints; empty without one."""
    terms = 1
    """Number of losses that are added up to train independent parts of the module; log records have their mean."""
    clips = True
    """Whether the DeepSpeed JSON's `gradient_clipping` applies to this method."""
    is_recorded = False
    """Whether a record follows the step that is being taken; the training loop sets it."""
    views: Sequence[View]
    """The crops that the loader makes of each image; none of text."""
    outcome: AnyOutcome | None = None
    """What `measure_end` measured last, in all figures."""

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that the method runs."""
        return [self.module] if self.companion is None else [self.module, self.companion]

    @property
    def receives_weights(self) -> nn.Module:
        """The network that initial weights are loaded into."""
        return self.module

    def rate_scale(self, name: str) -> float:
        """Return the learning rate of the parameter called `name` as a multiple of the stage's rate."""
        return 1.0

    def begin(self) -> None:
        """Prepare the companion, after initial weights were loaded and before the first step."""

    def losses(self, engine: Any, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Yield each micro-batch's loss (a scalar, without balance losses) and the reports of its MoE layers."""
        raise NotImplementedError

    def before_step(self, engine: Any, step: int) -> None:
        """Act before an optimizer step. step: optimizer steps of the stage taken so far."""

    def after_step(self, engine: Any, step: int) -> None:
        """Act after an optimizer step. step: optimizer steps of the stage taken so far, this one included."""

    def sums(self) -> Tensor | None:
        """Return what a record needs of this rank to be added up over all ranks, [n] float32; None for nothing."""
        return None

    def figures(self, sums: Tensor) -> dict[str, float]:
        """Return the method's own entries of a log record. sums: those of `sums`, of all ranks and on the host."""
        return {}

    def measure_start(self) -> dict[str, float]:
        """Return what is measured before the first step, by name."""
        return {}

    def measure_end(self) -> dict[str, float]:
        """Return what is measured after the last step, by name."""
        return {}
