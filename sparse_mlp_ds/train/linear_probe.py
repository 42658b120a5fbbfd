"""The probe stage: linear classifiers on frozen features, one for each of several learning rates, trained together."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_mlp_ds.config.stages import Probe
from sparse_mlp_ds.data import augment
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.evaluate import knn_accuracy, outcomes
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.method import Method


class Frozen(nn.Module):
    """A frozen backbone, under the same name as in other stages."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features [B, C] as in evaluation: nothing is dropped, no noise."""
        return self.backbone.forward_features(images)[0].float()


class Heads(nn.Module):
    """Several linear heads, which learn independently of one another."""

    def __init__(self, width: int, classes: int, heads: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(heads))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [heads, B, classes]."""
        return torch.stack([head(features.to(next(head.parameters()).dtype)) for head in self.heads])


class LinearProbe(Method):
    """Linear evaluation as the training loop sees it; the companion is the frozen backbone.

    The backbone stays outside the engine, which therefore cannot change it, and is passed on unchanged.
    """

    companion: Frozen
    hands_over_companion = True
    clips = False  # one norm over all heads would tie them together

    def __init__(self, job: Job, name: str):
        """Build the frozen backbone and the heads. name: the stage's name."""
        stage = job.stage(name, Probe)
        self.job, self.stage = job, stage
        self.views, self.terms = stage.crops, len(stage.rates)
        self.evaluation_batch = job.batches[name].evaluation
        make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes)
        self.companion = Frozen(registry.build(job.recipe.spec, make_moe=make_moe))
        init_weights(self.companion, job.recipe.train.seed)
        self.companion.to(process_group.device())
        engines.join_expert_groups(self.companion)
        heads = Heads(job.recipe.spec.width, job.recipe.data.class_count, len(stage.rates))
        self.module = heads.to(process_group.device())

    @property
    def receives_weights(self) -> nn.Module:
        """The frozen backbone: the heads start at zero."""
        return self.companion

    def rate_scale(self, name: str) -> float:
        """Return a head's learning rate as a multiple of the stage's rate."""
        return self.stage.rates[int(name.split(".")[1])]

    def losses(self, engine: Any, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Yield the sum of the heads' cross-entropies of each micro-batch; each term trains its own head only."""
        return (self._loss(engine, batch) for batch in batches)

    def _loss(self, engine: Any, batch: Batch) -> tuple[Tensor, Reports]:
        recipe = self.job.recipe
        (images,), _ = augment.views(batch, self.views, recipe.train.seed, recipe.data)
        logits = engine(self.companion(augment.normalize(images, recipe.data)))
        return sum((F.cross_entropy(head.float(), batch.labels) for head in logits), start=logits.new_zeros(())), {}

    def measure_start(self) -> dict[str, float]:
        """Return the k-NN accuracy of the features."""
        job, size, batch = self.job, self.job.image_size, self.evaluation_batch
        sets = (join(job.train), job.val, job.recipe.data)
        return {"knn_top1": knn_accuracy(self.companion, *sets, size, batch, self.stage.knn_k)}

    def measure_end(self) -> dict[str, float]:
        """Return the best head's top-1 and top-5, and every head's top-1 by its learning rate."""
        job, size, batch = self.job, self.job.image_size, self.evaluation_batch
        forward = lambda images: self.module(self.companion(images)).float()  # noqa: E731
        found = outcomes(forward, job.val, job.recipe.data, size, batch)
        heads = [head.metrics() for head in found]
        self.outcome, _ = max(zip(found, heads, strict=True), key=lambda head: head[1]["top1"])
        rates = [scale * self.stage.optimizer.base_lr for scale in self.stage.rates]
        by_rate = {f"top1_lr_{rate:g}": head["top1"] for rate, head in zip(rates, heads, strict=True)}
        return max(heads, key=lambda head: head["top1"]) | by_rate
