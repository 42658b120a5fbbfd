"""The pretraining stage: MoCo v3 (arXiv 2104.02057, algorithm 1) on any registered model."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_mlp_ds.config.stages import Pretrain
from sparse_mlp_ds.data import augment
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.ema import follow
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.ssl import collapse
from sparse_mlp_ds.ssl.loss import symmetric_info_nce
from sparse_mlp_ds.ssl.networks import MomentumNet, OnlineNet
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train import schedule
from sparse_mlp_ds.train.evaluate import knn_accuracy
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.method import Method

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MoCo(Method):
    """MoCo v3 as the training loop sees it; the companion is the momentum encoder."""

    module: OnlineNet
    companion: MomentumNet
    moves_companion_first = True

    def __init__(self, job: Job, name: str):
        """Build both networks; the online one's weights are freshly drawn, the other one gets them by `begin`.

        name: the stage's name.
        """
        stage = job.stage(name, Pretrain)
        self.job, self.stage, self.total_steps = job, stage, job.steps(name)
        self.views = stage.crops
        make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes)
        build = lambda: registry.build(job.recipe.spec, make_moe=make_moe)  # noqa: E731
        self.module = OnlineNet(build(), stage.hidden, stage.dim)
        self.companion = MomentumNet(build(), stage.hidden, stage.dim)
        init_weights(self.module, job.recipe.train.seed)
        for net in (self.module, self.companion):
            net.to(process_group.device())
        self.module.backbone.patch_embed.requires_grad_(not stage.freeze_patch)
        engines.join_expert_groups(self.companion)
        self.encoder = self._encoder(build)
        self.negatives = job.negatives(name) or 0
        batch = job.batches[name]
        self.shares = [batch.share(rank, job.world) for rank in range(job.world)]
        self.weight = batch.weight(process_group.rank(), job.world)
        self.evaluation_batch = batch.evaluation
        self.knn_steps = round((stage.knn_every_epochs or 0) * job.order(name).steps_per_epoch)
        self._measured: dict[str, float] = {}
        self._sums: Tensor | None = None

    def _encoder(self, build: Callable[[], Backbone]) -> MomentumNet:
        """Return the network that computes keys: the average itself, or its copy in the run's precision.

        An average of momentum 0.99 does not move in bf16, so it stays in float32; but a forward pass in float32 takes
        a GPU four times as long, almost half of the whole step.
        """
        if self.stage.momentum_precision == "float32" or self.job.ds_config.precision == "float32":
            return self.companion
        copy = MomentumNet(build(), self.stage.hidden, self.stage.dim)
        copy.to(process_group.device(), LOW_PRECISION[self.job.ds_config.precision])
        engines.join_expert_groups(copy)  # which also takes the routers back to float32
        return copy

    @property
    def networks(self) -> list[nn.Module]:
        """The online network, the momentum encoder, and its copy in the run's precision."""
        return [*super().networks, self.encoder]

    def begin(self) -> None:
        """Start the momentum encoder from the online network's weights."""
        follow(self.companion, dict(self.module.named_parameters()), momentum=0.0)
        self._renew_encoder()

    def losses(self, engine: Any, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Yield the contrastive loss of each micro-batch and the reports of its MoE layers."""
        if len(batches) > 1 and self.stage.contrast == "batch":
            yield from self._over_the_step(engine, batches)
            return
        for batch in batches:
            images, keys = self._images(batch)
            features, reports = engine(images, keys)
            yield self._contrast(self._by_view(features), self._by_view(self.encoder(images))), reports

    def _over_the_step(self, engine: Any, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Contrast and normalise over all micro-batches of a step, keeping the activations of one at a time.

        First the features of all micro-batches are computed without a graph, and from them the loss and its gradient
        for each feature. Then every micro-batch runs again, with the same random draws, and carries its part of that
        gradient to the weights (Gao et al., 2021, arXiv 2101.06983, there without batch norm). It costs one more
        forward pass, and the step equals that of one big batch.
        """
        with torch.no_grad():
            views = [self._images(batch) for batch in batches]
            features = torch.cat([self._by_view(engine.module(*one)[0]) for one in views], dim=1)
            momentum_features = torch.cat([self._by_view(self.encoder(images)) for images, _ in views], dim=1)
        loss = self._contrast(features.requires_grad_(), momentum_features)  # both [2, A B, C]
        # Batch norm ties the ranks' losses together, so each counts here as it will. The other factor is that of fp16,
        # in which small gradients would vanish.
        scale = self.weight * getattr(engine.optimizer, "loss_scale", 1.0)
        (gradient,) = torch.autograd.grad(scale * loss, features, retain_graph=True)
        parts = (gradient.float() / scale).split([len(batch.numbers) for batch in batches], dim=1)
        for number, ((images, keys), part) in enumerate(zip(views, parts, strict=True), start=1):
            again, reports = engine(images, keys)
            # The engine divides by the number of micro-batches.
            down = len(batches) * (again.float() * part.flatten(0, 1)).sum()
            heads = len(batches) * loss if number == len(batches) else 0.0  # ends at `features`: the heads' own
            yield _valued(down + heads, loss), reports

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return both views as normalised images [2 B, 3, H, W], and their sample keys [2 B]."""
        recipe = self.job.recipe
        views, keys = augment.views(batch, self.views, recipe.train.seed, recipe.data)
        return augment.normalize(views.flatten(0, 1), recipe.data), keys.flatten()

    def _contrast(self, features: Tensor, momentum_features: Tensor) -> Tensor:
        """Return the loss of both views' features [2, B, C] of the online network and of the momentum encoder."""
        queries, keys = self.module.queries(features), self.encoder.keys(momentum_features)
        if self.is_recorded:  # of several micro-batches, the last one stays
            self._sums = collapse.sums(features, queries, keys)
        turns = queries.shape[1] // len(self.shares[process_group.rank()])
        images = [turns * len(share) for share in self.shares]
        return symmetric_info_nce(queries, keys, self.stage.temperature, images)

    @staticmethod
    def _by_view(x: Tensor) -> Tensor:
        """[2 B, D] -> [2, B, D]."""
        return x.view(2, len(x) // 2, -1)

    def before_step(self, engine: Any, step: int) -> None:
        """Move the momentum encoder towards the online network, before the step's keys are computed.

        step: optimizer steps taken so far. It moves once per optimizer step, not per micro-batch.
        """
        momentum = schedule.encoder_momentum(step, self.total_steps, self.stage.momentum)
        follow(self.companion, dict(engines.masters(engine)), momentum)
        self._renew_encoder()

    @torch.no_grad()
    def _renew_encoder(self) -> None:
        if self.encoder is not self.companion:
            torch._foreach_copy_(list(self.encoder.parameters()), list(self.companion.parameters()))

    def after_step(self, engine: Any, step: int) -> None:
        """Measure the k-NN accuracy every `knn_every_epochs`. step: optimizer steps taken."""
        if self.knn_steps and self.job.measures_knn and step % self.knn_steps == 0 and step < self.total_steps:
            self._measured = {"knn_top1": self._knn()}

    def sums(self) -> Tensor | None:
        """Return what is needed to see if features collapse."""
        return self._sums

    def figures(self, sums: Tensor) -> dict[str, float]:
        """Return the number of negatives, how far features have collapsed, and a k-NN accuracy that was measured."""
        figures: dict[str, float] = {"negatives": self.negatives} | self._measured
        self._measured = {}
        if len(sums) and process_group.rank() == 0:
            signs = collapse.figures(sums, self.job.recipe.spec.width, self.stage.dim)
            figures |= {f"collapse/{name}": value for name, value in signs.items()}
        return figures

    def measure_start(self) -> dict[str, float]:
        """Return the k-NN accuracy of the features before training."""
        return {"knn_top1_untrained": self._knn()} if self.job.measures_knn else {}

    def measure_end(self) -> dict[str, float]:
        """Return the k-NN accuracy of the features after training."""
        return {"knn_top1": self._knn()} if self.job.measures_knn else {}

    def _knn(self) -> float:
        job, most = self.job, self.stage.knn_images
        forward = lambda images: self.module(images)[0]  # noqa: E731
        size, batch = job.image_size, self.evaluation_batch
        bank = job.probe.thinned(most) if job.probe else join(job.train).thinned(most)
        queries = None if job.probe else job.val
        return knn_accuracy(forward, bank, queries, job.recipe.data, size, batch, self.stage.knn_k)


def _valued(gradient_of: Tensor, value: Tensor) -> Tensor:
    """Return a scalar with the value of one tensor and the gradient of another."""
    return gradient_of + (value - gradient_of).detach()
