"""The probe stage: how far frozen features go with a linear classifier, for several learning rates at once."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_mlp_ds import dist
from sparse_mlp_ds.data import augment
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.job import Job
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.stages import Probe
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.evaluate import knn_accuracy, outcomes


class Frozen(nn.Module):
    """The backbone under the name that other stages give it."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features [B, C], those of evaluation."""
        return self.backbone.forward_features(images)[0].float()


class Heads(nn.Module):
    """Linear heads that learn independently of one another."""

    def __init__(self, width: int, classes: int, heads: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(heads))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [heads, B, classes]."""
        return torch.stack([head(features.to(head.weight.dtype)) for head in self.heads])


class Probing:
    """What the loop needs to know of linear evaluation.

    The backbone stays outside the engine, which therefore cannot move it, and is handed on as it came.
    """

    hands_over_average = True
    clips = False  # one norm over all heads would tie them together

    def __init__(self, job: Job, name: str):
        """Build the frozen backbone and the heads; the loop loads the former's weights. name: of the stage."""
        stage: Probe = job.recipe.stages[name]
        self.job, self.stage = job, stage
        self.views = stage.views
        make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes)
        self.averaged: nn.Module = Frozen(registry.build(job.recipe.spec, make_moe=make_moe)).to(dist.device())
        init_weights(self.averaged, job.recipe.train.seed)
        engines.join_expert_groups(self.averaged)
        self.filled = self.averaged
        heads = Heads(job.recipe.spec.width, job.recipe.data.classes, len(stage.rates))
        self.module: nn.Module = heads.to(dist.device())

    def begin(self) -> None:
        """Nothing to do."""

    def rate_scale(self, name: str) -> float:
        """Return a head's learning rate over the stage's."""
        return self.stage.rates[int(name.split(".")[1])]

    def losses(self, engine, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Yield each micro-batch's sum of the heads' cross-entropies, each of which moves its own head alone."""
        return (self._loss(engine, batch) for batch in batches)

    def _loss(self, engine, batch: Batch) -> tuple[Tensor, Reports]:
        (images,), _ = augment.views(batch, self.views, self.job.recipe.train.seed)
        logits = engine(self.averaged(augment.normalize(images, self.job.recipe.data)))
        return sum(F.cross_entropy(one.float(), batch.labels) for one in logits), {}

    def before_step(self, engine, step: int) -> None:
        """Nothing to do."""

    def after_step(self, engine, step: int) -> None:
        """Nothing to do."""

    def read(self) -> dict[str, float]:
        """Nothing for the log."""
        return {}

    def measure_start(self) -> dict[str, float]:
        """Return the k-NN accuracy of the features."""
        job, size, batch = self.job, self.job.recipe.spec.image_size, self.stage.evaluation_batch
        sets = (join(job.train), job.val, job.recipe.data)
        return {"knn_top1": knn_accuracy(self.averaged, *sets, size, batch, self.stage.knn_k)}

    def measure_end(self) -> dict[str, float]:
        """Return the best head's top-1 and top-5, and every head's top-1 by its learning rate."""
        job, size, batch = self.job, self.job.recipe.spec.image_size, self.stage.evaluation_batch
        forward = lambda images: self.module(self.averaged(images)).float()  # noqa: E731
        heads = [head.metrics() for head in outcomes(forward, job.val, job.recipe.data, size, batch)]
        rates = [scale * self.stage.optimizer.base_lr for scale in self.stage.rates]
        by_rate = {f"top1_lr_{rate:g}": head["top1"] for rate, head in zip(rates, heads, strict=True)}
        return max(heads, key=lambda head: head["top1"]) | by_rate
