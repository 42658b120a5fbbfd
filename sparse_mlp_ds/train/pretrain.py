"""The pretraining stage: MoCo v3 (arXiv 2104.02057, algorithm 1) on any registered model."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from sparse_mlp_ds import dist
from sparse_mlp_ds.data import augment
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.job import Job
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.average import follow
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.ssl.contrastive import symmetric_info_nce
from sparse_mlp_ds.ssl.moco import MomentumNet, OnlineNet
from sparse_mlp_ds.stages import Pretrain
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train import schedule
from sparse_mlp_ds.train.evaluate import knn_accuracy
from sparse_mlp_ds.train.groups import RateScale


class Pretraining:
    """What the loop needs to know of MoCo v3."""

    hands_over_average = False
    clips = True
    rate_scale: RateScale = staticmethod(lambda name: 1.0)

    def __init__(self, job: Job, name: str):
        """Build both networks with equal, freshly drawn weights. name: of the stage."""
        stage: Pretrain = job.recipe.stages[name]
        self.job, self.stage, self.total_steps = job, stage, job.steps(name)
        self.views = stage.views
        make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes)
        build = lambda: registry.build(job.recipe.spec, make_moe=make_moe)  # noqa: E731
        self.module: nn.Module = OnlineNet(build(), stage.hidden, stage.dim)
        self.averaged: nn.Module = MomentumNet(build(), stage.hidden, stage.dim)
        for net in (self.module, self.averaged):
            init_weights(net, job.recipe.train.seed)
            net.to(dist.device())
        self.module.backbone.patch_embed.requires_grad_(not stage.freeze_patch)
        engines.join_expert_groups(self.averaged)
        self.filled = self.module
        self.negatives = job.negatives(name)
        batch = job.batches[name]
        self.shares = [batch.share(rank, job.world) for rank in range(job.world)]
        self.weight = batch.weight(dist.rank(), job.world)
        self.knn_steps = round((stage.knn_every_epochs or 0) * job.order(name).steps_per_epoch)
        self._measured: dict[str, float] = {}

    def begin(self) -> None:
        """Start the momentum net from the online net's weights."""
        follow(self.averaged, dict(self.module.named_parameters()), momentum=0.0)

    def losses(self, engine, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Yield each micro-batch's contrastive loss and the MoE layers' reports."""
        if len(batches) > 1 and self.stage.contrast == "batch":
            yield from self._over_the_step(engine, batches)
            return
        for batch in batches:
            images, keys = self._images(batch)
            features, reports = engine(images, keys)
            yield self._contrast(features, self.averaged(images)), reports

    def _over_the_step(self, engine, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Contrast and normalise over all micro-batches of a step, keeping one micro-batch's activations at a time.

        Features of all micro-batches come first, without a graph, and of the loss the gradient for each of them; then
        every micro-batch runs again, as the same draws make it the same, and carries its gradient down (Gao et al.,
        2021, arXiv 2101.06983, which has no batch norm). One more forward pass, and the step is that of one big batch.
        """
        with torch.no_grad():
            views = [self._images(batch) for batch in batches]
            features = torch.cat([self._by_view(engine.module(*one)[0]) for one in views], dim=1)
            momentum_features = torch.cat([self._by_view(self.averaged(images)) for images, _ in views], dim=1)
        leaf = features.flatten(0, 1).requires_grad_()  # [2 A B, C]
        loss = self._contrast(leaf, momentum_features.flatten(0, 1))
        # Batch norm ties the ranks' losses together, so each counts here as it will. The other factor is that of fp16,
        # in which small gradients would vanish.
        scale = self.weight * getattr(engine.optimizer, "loss_scale", 1.0)
        (gradient,) = torch.autograd.grad(scale * loss, leaf, retain_graph=True)
        gradient = (gradient.float() / scale).view_as(features)
        parts = gradient.split([len(batch.numbers) for batch in batches], dim=1)
        for number, ((images, keys), part) in enumerate(zip(views, parts, strict=True), start=1):
            again, reports = engine(images, keys)
            # The engine divides by the number of micro-batches.
            down = len(batches) * (again.float() * part.flatten(0, 1)).sum()
            heads = len(batches) * loss if number == len(batches) else 0.0  # ends at the leaf: the heads' own gradient
            yield _valued(down + heads, loss), reports

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return both views [2 B, 3, H, W], normalised, and their sample keys [2 B]."""
        views, keys = augment.views(batch, self.views, self.job.recipe.train.seed)
        return augment.normalize(views.flatten(0, 1), self.job.recipe.data), keys.flatten()

    def _contrast(self, features: Tensor, momentum_features: Tensor) -> Tensor:
        """Return the loss of features [2 B, C] of the online and the momentum net."""
        queries, keys = self.module.queries(features), self.averaged.keys(momentum_features)
        queries, keys = self._by_view(queries), self._by_view(keys)
        turns = queries.shape[1] // len(self.shares[dist.rank()])
        images = [turns * len(share) for share in self.shares]
        return symmetric_info_nce(queries, keys, self.stage.temperature, images)

    @staticmethod
    def _by_view(x: Tensor) -> Tensor:
        """[2 B, D] -> [2, B, D]."""
        return x.view(2, len(x) // 2, -1)

    def before_step(self, engine, step: int) -> None:
        """Move the momentum net towards the online net, which comes before its keys are computed.

        step: number of optimizer steps taken so far. Done once per optimizer step, not per micro-batch.
        """
        momentum = schedule.encoder_momentum(step, self.total_steps, self.stage.momentum)
        follow(self.averaged, dict(engines.masters(engine)), momentum)

    def after_step(self, engine, step: int) -> None:
        """Measure the features from time to time. step: optimizer steps taken."""
        if self.knn_steps and step % self.knn_steps == 0 and step < self.total_steps:
            self._measured = {"knn_top1": self._knn()}

    def read(self) -> dict[str, float]:
        """Return the negatives of each query, and the k-NN accuracy if it was measured since the last reading."""
        figures, self._measured = {"negatives": self.negatives} | self._measured, {}
        return figures

    def measure_start(self) -> dict[str, float]:
        """Return the k-NN accuracy of the features that random weights give."""
        return {"knn_top1_untrained": self._knn()}

    def measure_end(self) -> dict[str, float]:
        """Return the k-NN accuracy of the learnt features."""
        return {"knn_top1": self._knn()}

    def _knn(self) -> float:
        job, bank = self.job, join(self.job.train).thinned(self.stage.knn_images)
        forward = lambda images: self.module.backbone.forward_features(images)[0]  # noqa: E731
        size, batch = job.recipe.spec.image_size, self.stage.evaluation_batch
        return knn_accuracy(forward, bank, job.val, job.recipe.data, size, batch, self.stage.knn_k)


def _valued(gradient_of: Tensor, value: Tensor) -> Tensor:
    """Return a scalar with the value of one tensor and the gradient of another."""
    return gradient_of + (value - gradient_of).detach()
