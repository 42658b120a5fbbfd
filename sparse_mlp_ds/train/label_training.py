"""What training on labels has in common, whatever samples and labels are: rates by layer, an average of the weights."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from sparse_mlp_ds.config.stage_base import LabelStage
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.ema import follow
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.method import Method
from sparse_mlp_ds.train.param_groups import layer_decay


class LabelTraining(Method):
    """Base of the methods that train all weights on labels; the companion is the average of the weights, if the stage
    has one. A subclass defines `_loss` and `measure_end`."""

    def __init__(self, job: Job, name: str, build: Callable[[], nn.Module]):
        """Build the network, and its average if the stage has one.

        Args:
            job: The run.
            name: The stage's name.
            build: Returns the network, with its model under the name `backbone`.
        """
        settings = job.stage(name, LabelStage)
        self.job, self.views, self._ema = job, settings.crops, settings.ema
        self.evaluation_batch = job.batches[name].evaluation
        self.module = build()
        self.companion = build().requires_grad_(False) if settings.ema else None
        self.hands_over_companion = self.companion is not None
        backbone = self.module.get_submodule("backbone")
        assert isinstance(backbone, Backbone)
        self._rate_scale = layer_decay(settings.layer_decay, len(backbone.blocks))

    @property
    def measured(self) -> nn.Module:
        """The network whose weights are measured and handed over: the average where there is one."""
        return self.module if self.companion is None else self.companion

    def rate_scale(self, name: str) -> float:
        """Return a parameter's learning rate under layer-wise decay, as a multiple of the stage's rate."""
        return self._rate_scale(name)

    def begin(self) -> None:
        """Start the average from the loaded weights."""
        if self.companion is not None:
            follow(self.companion, dict(self.module.named_parameters()), momentum=0.0)

    def losses(self, engine: Any, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Yield the loss of each micro-batch and the reports of its MoE layers."""
        return (self._loss(engine, batch) for batch in batches)

    def _loss(self, engine: Any, batch: Batch) -> tuple[Tensor, Reports]:
        """Return the loss of a micro-batch, a scalar, and the reports of its MoE layers."""
        raise NotImplementedError

    def after_step(self, engine: Any, step: int) -> None:
        """Move the average, faster at first so that it forgets the initial weights. step: optimizer steps taken."""
        if self.companion is not None and self._ema is not None:
            momentum = min(self._ema, (1 + step) / (10 + step))
            follow(self.companion, dict(engines.masters(engine)), momentum)
